"""The story of a study, told in four chapters; read this first.

    Reception   an instance is durable: it is put on the shelf and becomes a row, in batches (`indexing`)
    Decision    a series or study is complete: every route says yes or why not; a yes becomes a job
    Work        a job is claimed: images -> findings -> SR and SEG, checked, filed, queued for every destination
    Dispatch    a result is claimed: it is sent, and the answer written down

Each chapter is a class whose `step` does one piece of work and says whether there was any; `roles` repeats it.
Hand-over between stages happens here alone. Nothing here knows SQL, sockets or pixels.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

from dicom_node import __version__, routing
from dicom_node.adoption import Adoption
from dicom_node.clock import Clock
from dicom_node.config import Config
from dicom_node.config.live import Live, Rules
from dicom_node.config.schema import Complete, Peer, Route, SenderSettings, WorkerSettings
from dicom_node.deliver import Outcome, Parcel, RetryIn, after_failure, deliver_batch
from dicom_node.errors import (
    DeliveryError,
    DicomNodeError,
    LeaseLostError,
    RecordsError,
    RefusedInputError,
    UnreachableError,
)
from dicom_node.filing import ResultStore
from dicom_node.ids import Installation
from dicom_node.infer import PluginRegistry, Request, Slots
from dicom_node.lifecycle import DeliveryEvent
from dicom_node.logs import Log
from dicom_node.reading import read_headers
from dicom_node.records import (
    FORWARD,
    FORWARDED_KIND,
    ClaimedDelivery,
    ClaimedJob,
    Decisions,
    Deliveries,
    Jobs,
    NewDecision,
    NewJob,
    NewResult,
    Studies,
    StudyEvidence,
)
from dicom_node.report import ResultIdentity, build_results, encode
from dicom_node.study import JobInput

SEND_BATCH: Final = 64
"""Results in one association."""
RESULT_ROLES: Final = ("seg.series", "seg.instance", "sr.series", "sr.instance")
"""What UIDs are allocated for with every job; report.ResultIdentity derives the same."""
NO_ROUTE: Final = NewDecision(route="", outcome="not_matched", reason="Not processed: no [[route]] is configured.")


class Decision:
    """Complete series and studies become decisions, and those that a route wants become jobs.

    A route with ``start = "series"`` is asked about each series as soon as that is complete by the route's own quiet
    time; a route with ``start = "study"``, and the end of the study itself, wait for the whole study.
    """

    def __init__(
        self,
        studies: Studies,
        decisions: Decisions,
        *,
        rules: Live[Rules],
        registry: PluginRegistry,
        clock: Clock,
        log: Log,
        lets_through: Callable[[StudyEvidence], bool] = lambda _: True,
    ) -> None:
        """`lets_through`: whether a study may be decided at all; what says no has held it."""
        self._studies = studies
        self._lets_through = lets_through
        self._decisions = decisions
        self._live = rules
        self._rules = rules.current
        """Those of the present step: one study is judged by one set of rules."""
        self._plugins = {plugin.id: plugin for plugin in registry}
        self._judged: frozenset[tuple[str, str, str, int]] = frozenset()
        """(route, study, series, revision) that spoke while a slower route has not yet; lost with the process, which
        only makes them speak again."""
        self._since = clock.now()
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Ask about every study that has undecided content; return whether something was decided."""
        if self._rules is not self._live.current:
            self._rules = self._live.current
            self._judged = frozenset()  # every route speaks again: another rule may bear the same name
        decided = [self._ask(one) for one in self._studies.open_studies() if self._lets_through(one)]
        return any(decided)

    def _ask(self, study: StudyEvidence) -> bool:
        arrival = _arrival(study, self._since)
        by_series = [route for route in self._rules.config.route if route.start == "series"]
        asked = [self._ask_about_series(study, arrival, route, by_series) for route in by_series]
        whole = [route for route in self._rules.config.route if route.start == "study"]
        quiet = [route.complete for route in whole or by_series] or [Complete()]
        if all(self._is_complete(arrival, one, None) for one in quiet):
            return self._decide_study(study, whole)
        return any(asked)

    def _is_complete(self, arrival: routing.StudyEvidence, complete: Complete, series_uid: str | None) -> bool:
        verdict = routing.assess(arrival, self._clock.now(), complete, series_instance_uid=series_uid)
        return isinstance(verdict, routing.IsComplete)

    def _ask_about_series(
        self, study: StudyEvidence, arrival: routing.StudyEvidence, route: Route, routes: Sequence[Route]
    ) -> bool:
        """Ask one route about the series that are complete by its own measure: no slower route holds it up.

        All complete series are compared; what is written is about those that it has not judged as they stand now. A
        series is decided when the last of `routes` has judged it.
        """
        complete = [one for one in study.series if self._is_complete(arrival, route.complete, one.series_instance_uid)]
        key = (route.name, study.study_instance_uid)
        new = [
            one
            for one in complete
            if not one.is_decided and (*key, one.series_instance_uid, one.revision) not in self._judged
        ]
        if not new:
            return False
        answers = self._apply(study.study_instance_uid, [route], {one.series_instance_uid for one in complete})
        for series in new:
            mine = [answer for answer in answers if answer.series_instance_uid == series.series_instance_uid]
            judged = {
                (other.name, study.study_instance_uid, series.series_instance_uid, series.revision) for other in routes
            }
            mark = (*key, series.series_instance_uid, series.revision)
            is_last = judged <= self._judged | {mark}
            if self._write(
                study.study_instance_uid, series.series_instance_uid, series.revision, mine, is_final=is_last
            ):
                self._judged = self._judged - judged if is_last else self._judged | {mark}
        return True

    def _decide_study(self, study: StudyEvidence, routes: Sequence[Route]) -> bool:
        answers = self._apply(study.study_instance_uid, routes, None) if routes else ()
        spoken = [] if self._rules.config.route else [NO_ROUTE]
        return self._write(study.study_instance_uid, None, study.revision, answers, spoken)

    def _apply(
        self, study_uid: str, routes: Sequence[Route], complete: set[str] | None
    ) -> tuple[routing.RouteDecision, ...]:
        requirements = {name: plugin.manifest.input_series[0] for name, plugin in self._plugins.items()}
        view = self._studies.view(study_uid)
        return routing.apply_routes(
            view, routes, requirements, self._clock.now(), complete, origins(self._rules.config)
        )

    def _write(
        self,
        study_uid: str,
        series_uid: str | None,
        revision: int,
        answers: Sequence[routing.RouteDecision],
        spoken: Sequence[NewDecision] = (),
        *,
        is_final: bool = True,
    ) -> bool:
        """Write decisions and jobs in one transaction; nothing when more has come since, then it is asked again."""
        decided = self._decisions.decide(
            study_uid,
            series_uid,
            revision,
            [
                *spoken,
                *(self._spoken(answer) for answer in answers),
            ],
            config_digest=self._rules.digest,
            is_final=is_final,
        )
        for job_id, is_new in decided.jobs:
            self._log.info("job.queued" if is_new else "job.exists", job_id=job_id, study_instance_uid=study_uid)
        return decided.is_current

    def _spoken(self, answer: routing.RouteDecision) -> NewDecision:
        """Return the decision as the records keep it, with the work that it asks for."""
        jobs: list[NewJob] = []
        if answer.outcome is routing.Outcome.MATCHED:
            jobs = [self._job(answer)] if answer.plugin is not None else self._forwards(answer)
        return NewDecision(
            route=answer.route,
            outcome=answer.outcome.value,
            reason=routing.reason(answer),
            job=jobs[0] if jobs else None,
            more_jobs=tuple(jobs[1:]),
        )

    def _forwards(self, answer: routing.RouteDecision) -> list[NewJob]:
        """Return the jobs of a route without plugin: one for all destinations that get the same instances."""
        route = next(route for route in self._rules.config.route if route.name == answer.route)
        stored = self._studies.received_files(answer.study_instance_uid)
        by_content: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for forward in answer.forwards:
            if forward.instances:
                by_content.setdefault(forward.instances, []).append(forward.destination)
        jobs = []
        for instances, names in by_content.items():
            wanted = set(instances)
            files = tuple(one for one in stored if (one.sop_instance_uid, one.digest) in wanted)
            jobs.append(
                NewJob(
                    route=route.name,
                    plugin=FORWARD,
                    plugin_version="",
                    input=JobInput(study_instance_uid=answer.study_instance_uid, roles={FORWARDED_KIND: files}),
                    input_digest=input_digest(instances),
                    series_instance_uid=answer.series_instance_uid,
                    destinations=dict.fromkeys(names, (FORWARDED_KIND,)),
                    priority=route.priority,
                )
            )
        return jobs

    def _job(self, answer: routing.RouteDecision) -> NewJob:
        assert answer.plugin is not None
        plugin = self._plugins[answer.plugin]
        route = next(route for route in self._rules.config.route if route.name == answer.route)
        assert answer.series_instance_uid is not None
        stored = self._studies.series_images(answer.study_instance_uid, answer.series_instance_uid)
        wanted = set(answer.images)
        images = tuple(image for image in stored if (image.sop_instance_uid, image.digest) in wanted)
        role = plugin.manifest.input_series[0].role
        kinds = {one.name: tuple(one.profile.results) for one in self._rules.config.destination}
        return NewJob(
            route=route.name,
            plugin=plugin.id,
            plugin_version=plugin.manifest.plugin.version,
            input=JobInput(study_instance_uid=answer.study_instance_uid, roles={role: images}),
            input_digest=input_digest(answer.images),
            series_instance_uid=answer.series_instance_uid,
            parameters={"model_sha256": plugin.model_sha256, "spec_sha256": plugin.manifest.spec_sha256()},
            destinations={name: kinds[name] for name in route.destinations},
            priority=route.priority,
            target_s=route.target_s,
            engine=plugin.manifest.runtime.engines[0],
            result_roles=RESULT_ROLES,
            max_attempts=self._rules.config.worker.max_attempts,
        )


def origins(config: Config) -> dict[str, str]:
    """Return the AE title of the peer behind each destination: what it sent us is never forwarded to it."""
    titles = {peer.name: peer.ae_title for peer in config.peer}
    return {one.name: titles[one.peer] for one in config.destination}


def input_digest(images: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of the (SOP Instance UID, digest) pairs of the selected images, in any order."""
    return hashlib.sha256(json.dumps(sorted(images)).encode()).hexdigest()


def _arrival(study: StudyEvidence, since: datetime) -> routing.StudyEvidence:
    """Return the rows of a study as completeness reads them.

    Quiet times begin no earlier than `since`: after a restart nobody knows what was under way, so all count afresh.
    The association of a dead receiver is open until the next receiver has indexed what it filed (`indexing`),
    or until it has been idle too long: before, files without rows may belong to the study.
    """
    return routing.StudyEvidence(
        study_instance_uid=study.study_instance_uid,
        series=tuple(
            routing.SeriesEvidence(
                series_instance_uid=series.series_instance_uid,
                last_received_at=max(series.last_received_at, since),
                n_instances=series.n_images,
            )
            for series in study.series
        ),
        associations=tuple(
            routing.AssociationEvidence(
                id=association.id,
                calling_ae=association.calling_ae,
                is_open=True,
                study_instance_uid=association.present_study_uid,
                series_instance_uid=association.present_series_uid,
                last_activity_at=association.last_activity_at,
            )
            for association in study.associations
        ),
    )


class Work:
    """A claimed job becomes findings, and findings become filed results. One object serves every slot of a worker."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        worker: str,
        settings: WorkerSettings,
        registry: PluginRegistry,
        slots: Slots,
        results: ResultStore,
        installation: Installation,
        stopping: threading.Event,
        clock: Clock,
        log: Log,
    ) -> None:
        """Take the collaborators; once `stopping` is set, a running job is given back."""
        self._jobs = jobs
        self._worker = worker
        self._settings = settings
        self._registry = registry
        self._slots = slots
        self._results = results
        self._installation = installation
        self._stopping = stopping
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Do one job, if there is one; return whether there was."""
        limits = self._settings.engine_slots.limits()
        job = self._jobs.claim(self._worker, self._settings.lease_s, engine_slots=limits)
        if job is None:
            return False
        self._log.info("job.claimed", job_id=job.id, plugin=job.plugin, attempt=job.attempt)
        try:
            with self._lease(job) as is_ours:
                state = self._do(job, is_ours)
        except LeaseLostError:
            self._log.warning("job.lost", job_id=job.id)
        except DicomNodeError as error:
            self._end(job, error)
        except Exception as error:
            self._end(job, DicomNodeError(f"unexpected {type(error).__name__}: {error}"))
        else:
            self._log.info("job.ended", job_id=job.id, state=state)
        return True

    def _do(self, job: ClaimedJob, is_ours: Callable[[], bool]) -> str:
        plugin = self._registry.get(job.plugin)
        paths = {role: tuple(image.path for image in images) for role, images in job.input.roles.items()}
        findings = self._slots.run(plugin, Request(paths=paths), keep_going=is_ours)
        if findings.outcome == "withheld":
            reason = findings.reason or "the plausibility gate kept it back"
            return self._jobs.withhold(job.id, job.token, reason, engine=findings.provenance.engine)
        sources = read_headers([path for role in paths.values() for path in role])
        identity = ResultIdentity(
            root_uid=job.uid_root,
            device_uid=self._installation.uid,
            created_at=job.queued_at,
            input_digest=job.input_digest,
            node_version=__version__,
            device_serial_number=self._installation.serial_number,
        )
        filed = [
            self._file(
                built.kind,
                built.sop_class_uid,
                built.series_instance_uid,
                built.sop_instance_uid,
                encode(built.dataset),
            )
            for built in build_results(findings, plugin.manifest, sources, identity)
        ]
        return self._jobs.file_results(
            job.id,
            job.token,
            filed,
            outcome=findings.outcome,
            engine=findings.provenance.engine,
            duration_s=findings.provenance.duration_s,
        )

    def _file(self, kind: str, sop_class_uid: str, series_uid: str, sop_instance_uid: str, content: bytes) -> NewResult:
        path, digest = self._results.file(content, sop_instance_uid)
        return NewResult(
            kind=kind,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            series_instance_uid=series_uid,
            path=path,
            digest=digest,
        )

    def _after(self, job: ClaimedJob, error: DicomNodeError) -> str:
        if isinstance(error, RefusedInputError):
            return self._jobs.refuse(job.id, job.token, error.reason)
        if self._stopping.is_set() and error.retryable:
            return self._jobs.give_back(job.id, job.token)
        if not error.retryable:
            return self._jobs.fail(job.id, job.token, str(error))
        pause = timedelta(seconds=self._settings.retry_base_s * 2 ** (job.attempt - 1))
        return self._jobs.retry_later(job.id, job.token, str(error), self._clock.now() + pause)

    def _end(self, job: ClaimedJob, error: DicomNodeError) -> None:
        """Write how the job ended without a result, unless it is somebody else's by now."""
        try:
            state = self._after(job, error)
        except LeaseLostError:
            self._log.warning("job.lost", job_id=job.id)
            return
        self._log.warning("job.ended", job_id=job.id, state=state, reason=type(error).__name__)

    @contextmanager
    def _lease(self, job: ClaimedJob) -> Iterator[Callable[[], bool]]:
        """Keep the lease alive from a thread of its own; give a function that says whether the job is still ours."""
        ended, lost = threading.Event(), threading.Event()

        def beat() -> None:
            while not ended.wait(self._settings.lease_s / 3):
                try:
                    self._jobs.heartbeat(job.id, job.token)
                except LeaseLostError:
                    lost.set()
                    return
                except RecordsError:  # locked or full for the moment: the next beat may come in time
                    self._log.warning("lease.not_renewed", job_id=job.id)

        thread = threading.Thread(target=beat, name=f"lease-{job.id}", daemon=True)
        thread.start()
        try:
            yield lambda: not (lost.is_set() or self._stopping.is_set())
        finally:
            ended.set()
            thread.join()


class Dispatch:
    """Queued results of one destination are sent, and its answers written down. One object a destination."""

    def __init__(
        self,
        deliveries: Deliveries,
        *,
        destination: str,
        peer: Peer,
        calling_ae: str,
        sender: str,
        settings: SenderSettings,
        jitter: Callable[[], float],
        clock: Clock,
        log: Log,
        tls: Callable[[], ssl.SSLContext | None] = lambda: None,
        adoption: Adoption | None = None,
    ) -> None:
        """`tls` is asked at every call, so that renewed certificates count; None calls without TLS.

        `adoption`: what gives results the identity that the destination knows; None leaves them as they are.
        """
        self._adoption = adoption
        self._deliveries = deliveries
        self._destination = destination
        self._peer = peer
        self._calling_ae = calling_ae
        self._sender = sender
        self._settings = settings
        self._jitter = jitter
        self._tls = tls
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Send what is due, in one association; return whether there was any."""
        claimed = self._claim()
        if not claimed:
            return False
        if self._adoption is not None:
            claimed = self._adoption.prepare(claimed, self._fail)
            if not claimed:
                return True
        parcels = [Parcel(delivery_id=delivery.id, path=delivery.path) for delivery in claimed]
        outcomes = deliver_batch(
            parcels,
            self._peer,
            calling_ae=self._calling_ae,
            timeout_s=self._settings.timeout_s,
            tls=self._tls(),
        )
        for delivery, outcome in zip(claimed, outcomes, strict=True):
            try:
                state = self._write(delivery, outcome)
            except LeaseLostError:
                self._log.warning("delivery.lost", destination=self._destination, job_id=delivery.job_id)
                continue
            self._log.info(
                "delivery.ended",
                job_id=delivery.job_id,
                destination=self._destination,
                sop_instance_uid=delivery.sop_instance_uid,
                state=state,
                status=outcome.status,
            )
        return True

    def _fail(self, delivery: ClaimedDelivery, error: UnreachableError | DeliveryError) -> None:
        """Write that a delivery could not even be prepared."""
        try:
            self._write(delivery, Outcome(delivery_id=delivery.id, reason=str(error), error=error))
        except LeaseLostError:
            self._log.warning("delivery.lost", destination=self._destination, job_id=delivery.job_id)

    def _claim(self) -> list[ClaimedDelivery]:
        lease_s = self._settings.timeout_s * 4
        claimed: list[ClaimedDelivery] = []
        while len(claimed) < SEND_BATCH:
            delivery = self._deliveries.claim(self._destination, self._sender, lease_s)
            if delivery is None:
                break
            claimed.append(delivery)
        return claimed

    def _write(self, delivery: ClaimedDelivery, outcome: Outcome) -> str:
        if outcome.error is None:
            assert outcome.status is not None
            return self._deliveries.stored(delivery.id, delivery.token, outcome.status, outcome.reason)
        follows = after_failure(
            attempts=delivery.attempt,
            refusals=delivery.refusals + (outcome.status is not None),
            error=outcome.error,
            settings=self._settings,
            jitter=self._jitter(),
        )
        if isinstance(follows, RetryIn):
            later = self._clock.now() + timedelta(seconds=follows.delay_s)
            return self._deliveries.retry_later(delivery.id, delivery.token, outcome.reason, outcome.status, later)
        give_up = self._deliveries.refuse if follows.event is DeliveryEvent.REFUSE else self._deliveries.fail
        return give_up(delivery.id, delivery.token, outcome.reason, outcome.status)
