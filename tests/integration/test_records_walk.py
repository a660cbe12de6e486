"""Random walks over the queue: whatever workers, senders, reapers and administrators do, in any order.

A small model says what must come of each step; after each step the tables are compared with it. What may never
happen: two owners of one job, a write of a former owner, a job that is lost, a job that ended before its deliveries.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from dicom_node.errors import IllegalTransitionError, LeaseLostError
from dicom_node.lifecycle import DELIVERY_OPEN, DELIVERY_WELL, DeliveryState, JobEvent, JobState, next_job_state
from dicom_node.records import ClaimedDelivery, ClaimedJob
from dicom_node.records.schema import attempt
from tests.integration.records_case import STUDY, Records, image, new_job, results_of

RANKS = {"stat": 0, "high": 1, "routine": 2}
LEASE_S = 30.0


@dataclass
class Model:
    """What must stand in a job's row."""

    priority: str
    state: JobState = JobState.QUEUED
    token: int = 0
    attempts: int = 0
    leased_until: float = 0.0
    not_before: float = 0.0
    has_results: bool = False


class Walk(RuleBasedStateMachine):
    """Every step that the roles of a node take on the queue."""

    claims = Bundle("claims")
    sendings = Bundle("sendings")

    @initialize()
    def start(self) -> None:
        """Begin with one study in an empty queue."""
        self.folder = TemporaryDirectory()
        self.records = Records(Path(self.folder.name) / "records.sqlite")
        self.records.studies.index([image(1)])
        self.model: dict[int, Model] = {}
        self.by_plugin: dict[str, int] = {}

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "records"):
            self.records.database.close()
            self.folder.cleanup()

    @property
    def now(self) -> float:
        """Return the seconds since the start."""
        return self.records.clock.monotonic()

    @rule(number=st.integers(0, 4), priority=st.sampled_from(sorted(RANKS)))
    def enqueue(self, number: int, priority: str) -> None:
        """A route asks for work that may be there already."""
        plugin = f"p{number}"
        asked = new_job(self.records, plugin=plugin, priority=priority, max_attempts=2)
        job_id, is_new = self.records.jobs.enqueue(asked)
        assert is_new == (plugin not in self.by_plugin)
        if is_new:
            self.by_plugin[plugin] = job_id
            self.model[job_id] = Model(priority)
        else:
            assert self.by_plugin[plugin] == job_id
            self.model[job_id].priority = min(priority, self.model[job_id].priority, key=RANKS.__getitem__)

    @rule(target=claims, worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker: str) -> object:
        """A worker takes the most urgent, oldest job, or none."""
        queued = [(RANKS[one.priority], job_id) for job_id, one in self.model.items() if one.state is JobState.QUEUED]
        claimed = self.records.jobs.claim(worker, LEASE_S)
        assert (min(queued)[1] if queued else None) == (claimed.id if claimed else None)
        if claimed is None:
            return multiple()
        one = self.model[claimed.id]
        one.state, one.token, one.attempts = JobState.RUNNING, one.token + 1, one.attempts + 1
        one.leased_until = self.now + LEASE_S
        assert (one.token, one.attempts) == (claimed.token, claimed.attempt)
        return claimed

    @rule(claimed=claims, end=st.sampled_from(["heartbeat", "file", "withhold", "refuse", "fail", "retry_later"]))
    def write(self, claimed: ClaimedJob, end: str) -> None:
        """The owner writes, or a zombie tries to."""
        one = self.model[claimed.id]
        if one.state is not JobState.RUNNING or one.token != claimed.token:
            with pytest.raises(LeaseLostError):
                self._write(claimed, end)
            return
        self._write(claimed, end)
        if end == "heartbeat":
            one.leased_until = self.now + LEASE_S
        elif end == "file":
            one.state, one.has_results = JobState.DELIVERING, True
        elif end == "retry_later" and one.attempts < 2:
            one.state, one.not_before = JobState.WAITING, self.now + 10
        else:
            event = JobEvent.FAIL if end == "retry_later" else JobEvent(end)
            one.state = next_job_state(JobState.RUNNING, event)

    def _write(self, claimed: ClaimedJob, end: str) -> None:
        jobs, key = self.records.jobs, (claimed.id, claimed.token)
        if end == "heartbeat":
            jobs.heartbeat(*key)
        elif end == "file":
            jobs.file_results(*key, results_of(claimed.result_uids), outcome="result", engine="e", duration_s=0.0)
        elif end == "retry_later":
            jobs.retry_later(*key, "later", _after(self.records, 10))
        else:
            getattr(jobs, end)(*key, "because")

    @rule(seconds=st.sampled_from([1, 12, 31]))
    def advance(self, seconds: int) -> None:
        """Time passes; leases run out, back-offs end."""
        self.records.clock.advance(seconds)

    @rule()
    def reap(self) -> None:
        """Whoever let a lease run out loses the job."""
        expired = [
            job_id
            for job_id, one in self.model.items()
            if one.state is JobState.RUNNING and one.leased_until <= self.now
        ]
        assert expired == sorted(self.records.jobs.reap())
        for job_id in expired:
            one = self.model[job_id]
            one.state = JobState.QUEUED if one.attempts < 2 else JobState.FAILED
        self.records.deliveries.reap()

    @rule()
    def wake(self) -> None:
        """Jobs whose back-off is over are queued."""
        due = [k for k, one in self.model.items() if one.state is JobState.WAITING and one.not_before <= self.now]
        assert due == sorted(self.records.jobs.wake())
        for job_id in due:
            self.model[job_id].state = JobState.QUEUED

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data(), act=st.sampled_from([JobEvent.HOLD, JobEvent.RELEASE, JobEvent.CANCEL, JobEvent.RETRY]))
    def administer(self, data: st.DataObject, act: JobEvent) -> None:
        """An administrator steps in, at times where it makes no sense."""
        job_id = data.draw(st.sampled_from(sorted(self.model)))
        one = self.model[job_id]
        event = JobEvent.REDELIVER if act is JobEvent.RETRY and one.has_results else act
        try:
            one.state = next_job_state(one.state, event)
        except IllegalTransitionError:
            with pytest.raises(IllegalTransitionError):
                self._administer(job_id, act)
            return
        self._administer(job_id, act)
        if event is JobEvent.RETRY:
            one.attempts = 0

    def _administer(self, job_id: int, act: JobEvent) -> None:
        if act in (JobEvent.HOLD, JobEvent.CANCEL):
            getattr(self.records.jobs, act)(job_id, "by hand")
        else:
            getattr(self.records.jobs, act)(job_id)

    @rule(target=sendings)
    def send(self) -> object:
        """A sender takes the oldest delivery of a job that delivers."""
        claimed = self.records.deliveries.claim(None, "s1", LEASE_S)
        if claimed is None:
            return multiple()
        assert JobState.DELIVERING is self.model[claimed.job_id].state
        return claimed

    @rule(claimed=consumes(sendings), end=st.sampled_from(["stored", "fail", "refuse", "retry_later"]))
    def answer(self, claimed: ClaimedDelivery, end: str) -> None:
        """The destination answers, perhaps to a sender that is no longer the owner."""
        row = next(one for one in self.records.deliveries.list(job_id=claimed.job_id) if one.id == claimed.id)
        is_owner = row.state is DeliveryState.SENDING and row.attempts == claimed.attempt
        deliveries, key = self.records.deliveries, (claimed.id, claimed.token)
        try:
            if end == "stored":
                deliveries.stored(*key, 0)
            elif end == "retry_later":
                deliveries.retry_later(*key, "later", 0xA700, _after(self.records, 10))
            else:
                getattr(deliveries, end)(*key, "because")
        except LeaseLostError:
            assert not is_owner
        else:
            assert is_owner

    @invariant()
    def tables_agree_with_the_model(self) -> None:
        """No job is lost, each stands where it must, and its end agrees with its deliveries."""
        if not hasattr(self, "records"):
            return
        rows = {row.id: row for row in self.records.jobs.list(study_uid=STUDY)}
        assert sorted(self.model) == sorted(rows)
        states: dict[int, set[DeliveryState]] = {}
        for delivery in self.records.deliveries.list():
            states.setdefault(delivery.job_id, set()).add(delivery.state)
        for job_id, one in self.model.items():
            if one.has_results and one.state is not JobState.CANCELLED:
                one.state = _ended(states[job_id])
            assert (one.state, one.attempts, one.priority) == (
                rows[job_id].state,
                rows[job_id].attempts,
                rows[job_id].priority,
            )
            assert one.has_results == (job_id in states)

    @invariant()
    def each_running_job_has_one_owner(self) -> None:
        """Attempts that have not ended and jobs that run are the same."""
        if not hasattr(self, "records"):
            return
        unended = select(attempt.c.job_id, func.count().label("n")).where(attempt.c.ended_at.is_(None))
        with self.records.database.read() as connection:
            owners = {row.job_id: row.n for row in connection.execute(unended.group_by(attempt.c.job_id))}
        running = {job_id: 1 for job_id, one in self.model.items() if one.state is JobState.RUNNING}
        assert running == owners


def _ended(deliveries: set[DeliveryState]) -> JobState:
    if deliveries & DELIVERY_OPEN:
        return JobState.DELIVERING
    return JobState.DONE if deliveries <= DELIVERY_WELL else JobState.FAILED


def _after(records: Records, seconds: float) -> datetime:
    return records.clock.now() + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("examples", "steps"), [(8, 40), pytest.param(60, 80, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_no_walk_breaks_the_queue(examples: int, steps: int) -> None:
    """Never two owners, never a lost job, never a late write."""
    run_state_machine_as_test(
        Walk,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
