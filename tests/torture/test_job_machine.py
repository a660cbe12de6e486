"""The queue as a state machine: whatever workers, senders, watchers and administrators do, in any order.

A small model says what must come of each step; after each step the tables are compared with it. What may never happen:
two owners of one job, a write of a former owner, a job that is lost, one that ends before its deliveries, a change of
the story that was told. The clock is moved by hand; the database lies in memory, for power cuts are tested elsewhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from dicom_node.errors import IllegalTransitionError, LeaseLostError, NotFoundError
from dicom_node.lifecycle import (
    DELIVERY_OPEN,
    DELIVERY_WELL,
    JOB_OPEN,
    JOB_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    next_delivery_state,
    next_job_state,
)
from dicom_node.records import ClaimedDelivery, ClaimedJob, NewJob, Pauses
from dicom_node.records.schema import attempt, delivery, job, job_event
from tests.integration.records_case import Records, image, new_job, results_of

RANKS = {"stat": 0, "high": 1, "routine": 2}
TARGETS_S = {"stat": 300.0, "high": 900.0, "routine": 3600.0}
LEASE_S = 30.0
BACKOFF_S = 10.0
MAX_ATTEMPTS = 4
WORKER_DEATHS = 2
SLOTS = {"onnxruntime": 2}
WORKERS = ("w1", "w2", "w3", "w4")
SENDERS = ("s1", "s2")
PLUGINS = ("p1", "p2", "p3")
ROUTES = ("r1", "r2")
DESTINATIONS = ("pacs", "archive")
SERIES = tuple(f"1.2.3.{number}" for number in (4, 5, 6))
SHARED_MEMORY = Path("/dev/shm")
ENDS = ("heartbeat", "file", "file", "file", "file", "withhold", "refuse", "fail", "retry_later", "give_back")
ANSWERS = ("stored", "stored", "fail", "refuse", "retry_later", "heartbeat")
NOT_FILED = frozenset({JobState.WAITING, JobState.QUEUED, JobState.HELD, JobState.RUNNING})


@dataclass
class Job:
    """What must stand in a job's row, and what the model knows beside it."""

    plugin: str
    route: str
    series: str
    key: tuple[str, str]
    """Plugin and input digest: what makes it the same work."""
    priority: str
    target_s: float | None
    due: float
    state: JobState = JobState.QUEUED
    token: int = 0
    attempts: int = 0
    deaths: int = 0
    worker: str | None = None
    leased_until: float = 0.0
    not_before: float = 0.0
    superseded: bool = False
    destinations: set[str] = field(default_factory=set)
    deliveries: dict[int, Delivery] = field(default_factory=dict)
    has_results: bool = False

    def queue_again(self) -> None:
        """Begin every count anew."""
        self.attempts, self.deaths = 0, 0

    def leave(self, event: JobEvent) -> None:
        """Take the step of an event that ends the ownership, if there is one."""
        self.state = next_job_state(self.state, event)
        self.worker = None


@dataclass
class Delivery:
    """What must stand in a delivery's row."""

    destination: str
    state: DeliveryState = DeliveryState.QUEUED
    token: int = 0
    sender: str | None = None
    leased_until: float = 0.0
    not_before: float = 0.0


class Queue(RuleBasedStateMachine):
    """Every step that the roles of a node, and its administrators, take on the queue."""

    steps: ClassVar[int] = 0
    taken: ClassVar[Counter[tuple[str, str]]] = Counter()
    """How often each transition of a job was taken, in all walks."""

    @initialize()
    def start(self) -> None:
        """Begin with one study of three series in an empty queue."""
        self.folder = TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
        self.records = Records(Path(self.folder.name) / "records.sqlite")
        self.records.studies.index([image(1, series=series) for series in SERIES])
        self.pauses = Pauses(self.records.database)
        self.paused: set[tuple[str, str]] = set()
        self.last_image = dict.fromkeys(SERIES, 0.0)
        self.versions = dict.fromkeys(SERIES, 1)
        self.model: dict[int, Job] = {}
        self.told: list[tuple[Any, ...]] = []
        self.held: dict[int, ClaimedJob] = {}
        self.sent: dict[int, ClaimedDelivery] = {}
        self.claims: list[ClaimedJob] = []
        self.sendings: list[ClaimedDelivery] = []
        for plugin, series in zip(PLUGINS, SERIES, strict=True):
            self.enqueue(plugin, ROUTES[0], series, "routine", None, set(DESTINATIONS))

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "records"):
            self.records.database.close()
            self.folder.cleanup()

    def _newest_first(self) -> list[int]:
        """Return the jobs, those that nothing supersedes before the others: choices shrink to the first."""
        return sorted(self.model, key=lambda number: (self.model[number].superseded, -number))

    @property
    def now(self) -> float:
        """Return the seconds since the start."""
        return self.records.clock.monotonic()

    def _after(self, seconds: float) -> datetime:
        return self.records.clock.now() + timedelta(seconds=seconds)

    # Asking for work

    @rule(
        plugin=st.sampled_from(PLUGINS),
        route=st.sampled_from(ROUTES),
        series=st.sampled_from(SERIES),
        priority=st.sampled_from(sorted(RANKS)),
        target_s=st.sampled_from([None, None, 60.0, 5000.0]),
        destinations=st.sets(st.sampled_from(DESTINATIONS)),
    )
    def ask(
        self, plugin: str, route: str, series: str, priority: str, target_s: float | None, destinations: set[str]
    ) -> None:
        """A route asks for work that may be there already."""
        self.enqueue(plugin, route, series, priority, target_s, destinations)

    def enqueue(
        self,
        plugin: str,
        route: str,
        series: str,
        priority: str,
        target_s: float | None,
        destinations: set[str],
    ) -> None:
        """Ask for work, and see that the same work has one row."""
        asked = new_job(
            self.records,
            series=series,
            plugin=plugin,
            route=route,
            priority=priority,
            target_s=target_s,
            max_attempts=MAX_ATTEMPTS,
            destinations=dict.fromkeys(destinations, ("sr",)),
        )
        job_id, is_new = self.records.jobs.enqueue(asked)
        key = (plugin, asked.input_digest)
        same = [number for number, one in self.model.items() if one.key == key]
        assert is_new == (not same)
        due = self.last_image[series] + (TARGETS_S[priority] if target_s is None else target_s)
        if is_new:
            self.model[job_id] = Job(plugin, route, series, key, priority, target_s, due, destinations=destinations)
            self._supersede(job_id, lambda one: (one.plugin, one.series) == (plugin, series))
        else:
            assert max(same) == job_id
            self._unite(job_id, asked, destinations)

    def _unite(self, job_id: int, asked: NewJob, destinations: set[str]) -> None:
        one = self.model[job_id]
        one.priority = min(asked.priority, one.priority, key=RANKS.__getitem__)
        target_s = TARGETS_S[one.priority] if asked.target_s is None else asked.target_s
        one.due = min(one.due, self.last_image[one.series] + target_s)
        one.destinations = one.destinations | destinations
        ended_with = {JobState.DONE, JobState.FAILED}
        if one.has_results and (one.state is JobState.DELIVERING or one.state in ended_with):
            made = self._add_deliveries(job_id)
            if made and one.state in ended_with:
                one.leave(JobEvent.REDELIVER)

    def _supersede(self, job_id: int, concerns: Callable[[Job], bool]) -> None:
        for number, former in self.model.items():
            if number != job_id and not former.superseded and concerns(former):
                former.superseded = True
                if former.state in NOT_FILED:
                    former.leave(JobEvent.CANCEL)

    @rule(series=st.sampled_from(SERIES), comes=st.sampled_from([False, False, True]))
    def late_image(self, series: str, comes: bool) -> None:
        """A late image comes, now and then: the next request for the series is other work."""
        if not comes:
            return
        self.versions[series] += 1
        self.last_image[series] = self.now
        self.records.studies.index([image(self.versions[series], series=series, at=self.records.clock.now())])

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def reprocess(self, data: st.DataObject) -> None:
        """An administrator has work repeated; only one generation is worked on."""
        job_id = data.draw(st.sampled_from(self._newest_first()))
        old = self.model[job_id]
        if len(self.model) > 25 or (old.state in NOT_FILED and data.draw(st.sampled_from([True, True, True, False]))):
            return
        new_id = self.records.jobs.reprocess(job_id, actor="anna")
        self._supersede(new_id, lambda one: one.key == old.key)
        target_s = TARGETS_S[old.priority] if old.target_s is None else old.target_s
        self.model[new_id] = Job(
            old.plugin,
            old.route,
            old.series,
            old.key,
            old.priority,
            old.target_s,
            self.now + target_s,
            destinations=set(old.destinations),
        )

    # Working

    def _may_run(self, one: Job) -> bool:
        is_paused = bool({("plugin", one.plugin), ("route", one.route)} & self.paused)
        return one.state is JobState.QUEUED and not is_paused

    @rule(worker=st.sampled_from(WORKERS), limited=st.booleans())
    def claim(self, worker: str, limited: bool) -> None:
        """A worker asks for work."""
        self.take(worker, limited=limited)

    def take(self, worker: str, *, limited: bool) -> ClaimedJob | None:
        """Claim the most urgent job that may run, or none."""
        limits: Mapping[str, int] = SLOTS if limited else {}
        claimed = self.records.jobs.claim(worker, LEASE_S, engine_slots=limits)
        running = sum(one.state is JobState.RUNNING for one in self.model.values())
        fits = not limited or running < SLOTS["onnxruntime"]
        queued = [(RANKS[one.priority], one.due, number) for number, one in self.model.items() if self._may_run(one)]
        assert (min(queued)[2] if queued and fits else None) == (claimed.id if claimed else None)
        if claimed is None:
            return None
        one = self.model[claimed.id]
        one.state, one.token, one.attempts = JobState.RUNNING, one.token + 1, one.attempts + 1
        one.worker, one.leased_until = worker, self.now + LEASE_S
        assert (one.token, one.attempts) == (claimed.token, claimed.attempt)
        self.held[claimed.id] = claimed
        self.claims.append(claimed)
        return claimed

    @precondition(lambda self: any(one.state in (JobState.RUNNING, JobState.QUEUED) for one in self.model.values()))
    @rule(data=st.data(), worker=st.sampled_from(WORKERS), end=st.sampled_from(ENDS))
    def work(self, data: st.DataObject, worker: str, end: str) -> None:
        """An owner writes; when there is none, a worker claims first."""
        if not self._running():
            self.take(worker, limited=True)
        if self._running():
            self.write(self.held[data.draw(st.sampled_from(self._running()))], end)

    def _running(self) -> list[int]:
        return sorted(number for number, one in self.model.items() if one.state is JobState.RUNNING)

    @precondition(lambda self: bool(self.claims))
    @rule(data=st.data(), end=st.sampled_from(ENDS), is_taken_over=st.booleans())
    def late_write(self, data: st.DataObject, end: str, is_taken_over: bool) -> None:
        """Whoever ever claimed writes: most are zombies by now, the worst of them while an heir runs the same job."""
        if is_taken_over and self._running():
            self._take_over(self._running()[0])
        under_heirs = [
            one for one in self.claims if self.held[one.id] is not one and self.model[one.id].state is JobState.RUNNING
        ]
        self.write(data.draw(st.sampled_from(under_heirs or self.claims)), end)

    def _take_over(self, job_id: int) -> None:
        """Take a job from its worker by hand, and let workers claim until one has it again, or none can."""
        self.act(job_id, JobEvent.RETRY)
        while self.model[job_id].state is JobState.QUEUED and self.take("w1", limited=False) is not None:
            pass

    def write(self, claimed: ClaimedJob, end: str) -> None:
        """Write as the owner; a zombie that tries to changes nothing."""
        one = self.model[claimed.id]
        if one.state is not JobState.RUNNING or one.token != claimed.token:
            with pytest.raises(LeaseLostError):
                self._write(claimed, end)
            return
        self._write(claimed, end)
        if end == "heartbeat":
            one.leased_until = self.now + LEASE_S
        elif end == "file":
            one.leave(JobEvent.FILE_RESULTS)
            one.has_results = True
            self._add_deliveries(claimed.id)
        elif end == "retry_later" and one.attempts < MAX_ATTEMPTS:
            one.leave(JobEvent.RETRY_LATER)
            one.not_before = self.now + BACKOFF_S
        elif end == "give_back":
            one.leave(JobEvent.GIVE_BACK)
            one.attempts -= 1
        else:
            one.leave(JobEvent.FAIL if end == "retry_later" else JobEvent(end))

    def _write(self, claimed: ClaimedJob, end: str) -> None:
        jobs, key = self.records.jobs, (claimed.id, claimed.token)
        if end in ("heartbeat", "give_back"):
            getattr(jobs, end)(*key)
        elif end == "file":
            jobs.file_results(*key, results_of(claimed.result_uids), outcome="result", engine="e", duration_s=0.0)
        elif end == "retry_later":
            jobs.retry_later(*key, "later", self._after(BACKOFF_S))
        else:
            getattr(jobs, end)(*key, "because")

    def _add_deliveries(self, job_id: int) -> int:
        """Take the new deliveries of a job into the model: one SR to each destination that has none yet."""
        rows = self.records.deliveries.list(job_id=job_id)
        known = self.model[job_id].deliveries
        new = {row.id: Delivery(row.destination) for row in rows if row.id not in known}
        assert sorted(self.model[job_id].destinations - {one.destination for one in known.values()}) == sorted(
            one.destination for one in new.values()
        )
        known |= new
        return len(new)

    # Time, deaths and the watch

    @rule(seconds=st.sampled_from([1, 5, 12, 31, 400]))
    def advance(self, seconds: int) -> None:
        """Time passes; leases run out, back-offs end, deadlines pass."""
        self.records.clock.advance(seconds)

    @rule(dead=st.sets(st.sampled_from([*WORKERS, *SENDERS]), max_size=3), with_node=st.booleans())
    def watch(self, dead: set[str], with_node: bool) -> None:
        """The watch looks, after some processes crashed, alone or with their node; leases and back-offs may be over."""
        suspects = {
            number: one
            for number, one in self.model.items()
            if one.state is JobState.RUNNING and (one.worker in dead or one.leased_until <= self.now)
        }
        assert sorted(suspects) == sorted(
            self.records.jobs.reap(lambda worker: worker not in dead, lambda _worker: with_node)
        )
        for one in suspects.values():
            self._lose(one, is_dead=one.worker in dead, with_node=with_node)
        self._reap_deliveries(dead)
        due = [k for k, one in self.model.items() if one.state is JobState.WAITING and one.not_before <= self.now]
        assert sorted(due) == sorted(self.records.jobs.wake())
        for number in due:
            self.model[number].leave(JobEvent.WAKE)

    @rule(worker=st.sampled_from(WORKERS))
    def die_of_it(self, worker: str) -> None:
        """A worker takes a job and dies, and so does its heir: of the same job, when that is the most urgent still."""
        for _ in range(2):
            if self.take(worker, limited=False) is not None:
                self.watch(dead={worker}, with_node=False)

    def _lose(self, one: Job, *, is_dead: bool, with_node: bool) -> None:
        if is_dead and with_node:
            one.attempts -= 1
            one.leave(JobEvent.LEASE_EXPIRED)
            return
        one.deaths += is_dead
        if is_dead and one.deaths >= WORKER_DEATHS:
            one.leave(JobEvent.SET_ASIDE)
        else:
            one.leave(JobEvent.LEASE_EXPIRED if one.attempts < MAX_ATTEMPTS else JobEvent.FAIL)

    def _reap_deliveries(self, dead: set[str]) -> None:
        sending = {
            number: one
            for number, one in self._deliveries().items()
            if one.state is DeliveryState.SENDING and (one.sender in dead or one.leased_until <= self.now)
        }
        assert sorted(sending) == sorted(self.records.deliveries.reap(lambda sender: sender not in dead))
        for one in sending.values():
            one.state = next_delivery_state(one.state, DeliveryEvent.LEASE_EXPIRED)

    # The administrator

    @rule(
        kind=st.sampled_from(["plugin", "route", "destination"]),
        number=st.integers(0, 1),
        comment=st.sampled_from("ab"),
    )
    def pause_or_resume(self, kind: Any, number: int, comment: str) -> None:
        """What is paused goes on, what is not is paused; each counts from this very moment."""
        name = {"plugin": PLUGINS, "route": ROUTES, "destination": DESTINATIONS}[kind][number]
        if (kind, name) in self.paused:
            self.pauses.resume(kind, name)
            self.paused.remove((kind, name))
        else:
            self.pauses.pause(kind, name, actor="anna", reason=comment)
            self.paused.add((kind, name))

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data(), makes_sense=st.sampled_from([True, True, False]))
    def administer(self, data: st.DataObject, makes_sense: bool) -> None:
        """An administrator steps in, at times where it makes no sense."""
        chosen = [
            (job_id, act)
            for job_id in self._newest_first()
            for act in (JobEvent.RETRY, JobEvent.RELEASE, JobEvent.HOLD, JobEvent.CANCEL)
            if makes_sense == ((self.model[job_id].state, self._meant(job_id, act)) in JOB_TRANSITIONS)
        ]
        if chosen:  # a state first, so that one in which jobs seldom stand has its share
            state = data.draw(st.sampled_from(sorted({self.model[job_id].state for job_id, _ in chosen})))
            self.act(*data.draw(st.sampled_from([one for one in chosen if self.model[one[0]].state == state])))

    def _meant(self, job_id: int, act: JobEvent) -> JobEvent:
        """Return the event of an act: a retry of what is filed sends it again."""
        return JobEvent.REDELIVER if act is JobEvent.RETRY and self.model[job_id].has_results else act

    def act(self, job_id: int, act: JobEvent) -> None:
        """Do what an administrator does; what the state does not know is refused and changes nothing."""
        one = self.model[job_id]
        was_running = one.state is JobState.RUNNING
        event = self._meant(job_id, act)
        words = {"reason": "by hand"} if act in (JobEvent.HOLD, JobEvent.CANCEL) else {"comment": "by hand"}
        step = getattr(self.records.jobs, act)
        try:
            next_job_state(one.state, event)
        except IllegalTransitionError:
            with pytest.raises(IllegalTransitionError):
                step(job_id, actor="anna", **words)
            return
        step(job_id, actor="anna", **words)
        one.leave(event)
        if act in (JobEvent.RELEASE, JobEvent.RETRY) and event is act:
            one.queue_again()
        elif act is JobEvent.HOLD:
            one.attempts -= was_running
        elif act is JobEvent.CANCEL:
            self._each_delivery(one, DeliveryEvent.SKIP, {DeliveryState.QUEUED, DeliveryState.HELD})
        elif event is JobEvent.REDELIVER:
            ended = {DeliveryState.HELD, DeliveryState.REFUSED, DeliveryState.FAILED, DeliveryState.SKIPPED}
            self._each_delivery(one, DeliveryEvent.RETRY, ended | {DeliveryState.QUEUED})
            self._add_deliveries(job_id)

    @staticmethod
    def _each_delivery(one: Job, event: DeliveryEvent, states: set[DeliveryState]) -> None:
        for sent in one.deliveries.values():
            if sent.state in states:
                sent.state = next_delivery_state(sent.state, event)
                sent.not_before = 0.0

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data(), priority=st.sampled_from(sorted(RANKS)))
    def prioritise(self, data: st.DataObject, priority: Any) -> None:
        """An administrator moves a job within the queue."""
        job_id = data.draw(st.sampled_from(self._newest_first()))
        one = self.model[job_id]
        if one.state not in NOT_FILED:
            with pytest.raises(IllegalTransitionError):
                self.records.jobs.prioritise(job_id, priority)
            return
        self.records.jobs.prioritise(job_id, priority)
        if one.target_s is None:
            one.due += TARGETS_S[priority] - TARGETS_S[one.priority]
        one.priority = priority

    @rule(act=st.sampled_from(["hold", "release", "cancel", "retry", "reprocess"]))
    def administer_nothing(self, act: str) -> None:
        """A job that is not there is not found, and nothing else happens."""
        words = {"reason": "x"} if act in ("hold", "cancel") else {}
        with pytest.raises(NotFoundError):
            getattr(self.records.jobs, act)(10_000, **words)

    # Sending

    def _deliveries(self) -> dict[int, Delivery]:
        return {number: sent for one in self.model.values() for number, sent in one.deliveries.items()}

    def _is_due(self, job_id: int, sent: Delivery) -> bool:
        return (
            sent.state is DeliveryState.QUEUED
            and sent.not_before <= self.now
            and self.model[job_id].state is JobState.DELIVERING
            and ("destination", sent.destination) not in self.paused
        )

    @rule(sender=st.sampled_from(SENDERS), destination=st.sampled_from([None, *DESTINATIONS]))
    def send(self, sender: str, destination: str | None) -> None:
        """A sender asks for something to send."""
        self.take_delivery(sender, destination)

    def take_delivery(self, sender: str, destination: str | None) -> ClaimedDelivery | None:
        """Claim the oldest delivery that is due, or none."""
        claimed = self.records.deliveries.claim(destination, sender, LEASE_S)
        due = [
            number
            for job_id, one in self.model.items()
            for number, sent in one.deliveries.items()
            if self._is_due(job_id, sent) and destination in (None, sent.destination)
        ]
        assert min(due, default=None) == (claimed.id if claimed else None)
        if claimed is None:
            return None
        sent = self.model[claimed.job_id].deliveries[claimed.id]
        sent.state, sent.token, sent.sender = DeliveryState.SENDING, sent.token + 1, sender
        sent.leased_until, sent.not_before = self.now + LEASE_S, 0.0
        assert sent.token == claimed.token
        self.sent[claimed.id] = claimed
        self.sendings.append(claimed)
        return claimed

    @precondition(lambda self: any(one.state is JobState.DELIVERING for one in self.model.values()))
    @rule(data=st.data(), sender=st.sampled_from(SENDERS), end=st.sampled_from(ANSWERS))
    def deliver(self, data: st.DataObject, sender: str, end: str) -> None:
        """The destination answers the owner; when there is none, a sender claims first."""
        if not self._sending():
            self.take_delivery(sender, None)
        if self._sending():
            self.answer(self.sent[data.draw(st.sampled_from(self._sending()))], end)

    def _sending(self) -> list[int]:
        return sorted(k for k, sent in self._deliveries().items() if sent.state is DeliveryState.SENDING)

    @precondition(lambda self: bool(self.sendings))
    @rule(data=st.data(), end=st.sampled_from(ANSWERS), is_taken_over=st.booleans())
    def late_answer(self, data: st.DataObject, end: str, is_taken_over: bool) -> None:
        """The destination answers whoever ever sent: most are zombies, the worst while an heir sends the same."""
        if is_taken_over and self._sending():
            self._reap_deliveries({str(self._deliveries()[self._sending()[0]].sender)})
            while self.take_delivery("s1", None) is not None:
                pass
        sent = self._deliveries()
        under_heirs = [
            one for one in self.sendings if self.sent[one.id] is not one and sent[one.id].state is DeliveryState.SENDING
        ]
        self.answer(data.draw(st.sampled_from(under_heirs or self.sendings)), end)

    def answer(self, claimed: ClaimedDelivery, end: str) -> None:
        """Write the destination's answer, which a sender that is no longer the owner cannot."""
        sent = self.model[claimed.job_id].deliveries[claimed.id]
        if sent.state is not DeliveryState.SENDING or sent.token != claimed.token:
            with pytest.raises(LeaseLostError):
                self._answer(claimed, end)
            return
        self._answer(claimed, end)
        if end == "heartbeat":
            sent.leased_until = self.now + LEASE_S
            return
        sent.state = next_delivery_state(sent.state, DeliveryEvent("store" if end == "stored" else end))
        sent.not_before = self.now + BACKOFF_S if end == "retry_later" else 0.0

    def _answer(self, claimed: ClaimedDelivery, end: str) -> None:
        deliveries, key = self.records.deliveries, (claimed.id, claimed.token)
        if end == "stored":
            deliveries.stored(*key, 0)
        elif end == "retry_later":
            deliveries.retry_later(*key, "later", 0xA700, self._after(BACKOFF_S))
        elif end == "heartbeat":
            deliveries.heartbeat(*key)
        else:
            getattr(deliveries, end)(*key, "because")

    @precondition(lambda self: bool(self._deliveries()))
    @rule(data=st.data(), act=st.sampled_from([DeliveryEvent.HOLD, DeliveryEvent.RETRY, DeliveryEvent.SKIP]))
    def administer_delivery(self, data: st.DataObject, act: DeliveryEvent) -> None:
        """An administrator steps in; a job that had ended because of this delivery is open again."""
        job_id, number = data.draw(
            st.sampled_from(sorted((k, number) for k, one in self.model.items() for number in one.deliveries))
        )
        one = self.model[job_id]
        sent = one.deliveries[number]
        words = {"comment": "by hand"} if act is DeliveryEvent.RETRY else {"reason": "by hand"}
        step = getattr(self.records.deliveries, act)
        try:
            sent.state = next_delivery_state(sent.state, act)
        except IllegalTransitionError:
            with pytest.raises(IllegalTransitionError):
                step(number, actor="anna", **words)
            return
        step(number, actor="anna", **words)
        reopened = {JobState.DONE, JobState.CANCELLED} if act is DeliveryEvent.RETRY else set()
        if one.state in reopened | {JobState.FAILED}:
            one.leave(JobEvent.REDELIVER)
            self._add_deliveries(job_id)
        if act is DeliveryEvent.RETRY:
            sent.not_before = 0.0

    # What must always hold

    @invariant()
    def tables_agree_with_the_model(self) -> None:
        """No job is lost, each stands where it must, is open or ended with a reason, and agrees with its deliveries."""
        if not hasattr(self, "records"):
            return
        Queue.steps += 1
        for one in self.model.values():
            if one.state is JobState.DELIVERING:
                one.state = _ended(one.deliveries.values())
        with self.records.database.read() as connection:
            jobs = {row.id: row for row in connection.execute(select(job))}
            sent = {row.id: row for row in connection.execute(select(delivery))}
            running = connection.execute(select(attempt).where(attempt.c.ended_at.is_(None))).all()
            events = [tuple(row) for row in connection.execute(select(job_event).order_by(job_event.c.id))]
        assert sorted(self.model) == sorted(jobs)
        for number, one in self.model.items():
            row = jobs[number]
            assert (one.state, one.token, one.attempts, one.deaths, one.priority, one.worker, one.superseded) == (
                *(row.state, row.token, row.attempts, row.worker_deaths, row.priority, row.worker),
                row.superseded_by is not None,
            )
            assert (row.state in JOB_OPEN) == (row.finished_at is None)
            assert row.reason or row.state in JOB_OPEN | {JobState.DONE}
        self._owners_are_the_runners(running)
        assert {k: (one.state, one.token) for k, one in self._deliveries().items()} == {
            k: (row.state, row.token) for k, row in sent.items()
        }
        self._story_is_told_once(events, {number: row.state for number, row in jobs.items()})

    def _owners_are_the_runners(self, running: list[Any]) -> None:
        """Each running job has one attempt under way, of the owner with the newest token; no other job has one."""
        owners = [(k, one.token, one.worker) for k, one in self.model.items() if one.state is JobState.RUNNING]
        assert sorted(owners) == sorted((row.job_id, row.token, row.worker) for row in running)

    def _story_is_told_once(self, events: list[Any], states: Mapping[int, str]) -> None:
        """Events are only ever added, each says who and why, and a replay of the table of states leads to the rows."""
        assert self.told == events[: len(self.told)]
        Queue.taken.update((before, event) for _, _, event, before, *_ in events[len(self.told) :])
        self.told = events
        replayed: dict[int, str] = {}
        for _, number, event, before, after, actor, reason, _ in events:
            assert replayed.get(number) == before
            assert actor
            assert reason
            if event in tuple(JobEvent):
                assert after == next_job_state(JobState(before), JobEvent(event))
            elif event != "enqueue":
                assert after == before
            replayed[number] = after
        assert states == replayed


def _ended(deliveries: Any) -> JobState:
    states = {one.state for one in deliveries}
    if states & DELIVERY_OPEN:
        return JobState.DELIVERING
    return JobState.DONE if states <= DELIVERY_WELL else JobState.FAILED


MOST_ROUNDS = 4
"""Of 20,000 steps each, until every step of the table was taken; a seldom one may be missing in one of them."""


@pytest.mark.parametrize(
    ("examples", "steps"),
    [(45, 80), pytest.param(260, 100, marks=[pytest.mark.long, pytest.mark.timeout(3600)])],
    ids=["2000", "20000"],
)
def test_no_walk_breaks_the_queue(examples: int, steps: int) -> None:
    """Never two owners, never a lost job, never a late write, never another story."""
    Queue.steps = 0
    Queue.taken.clear()
    is_long = examples > 100
    for _ in range(MOST_ROUNDS if is_long else 1):
        run_state_machine_as_test(
            Queue,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                # To find the shortest walk takes minutes; the default form only tells that there is one.
                phases=(Phase.generate, Phase.shrink) if is_long else (Phase.generate,),
            ),
        )
        if set(JOB_TRANSITIONS) <= set(Queue.taken):
            break
    assert (20_000 if is_long else 2_000) <= Queue.steps
    if is_long:
        assert set() == set(JOB_TRANSITIONS) - set(Queue.taken)
