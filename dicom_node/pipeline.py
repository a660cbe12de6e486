"""The story of a study, told in four chapters; read this first.

    Reception   an instance is durable: it is put on the shelf and becomes a row, in batches (`indexing`)
    Decision    (`decision`) a series or study is complete: every route says yes or why not; a yes becomes a job
    Work        a job is claimed: images -> findings -> SR and SEG, checked, filed, queued for every destination
    Dispatch    a result is claimed: it is sent, and the answer written down

Each chapter is a class whose `step` does one piece of work and says whether there was any; `roles` repeats it.
Hand-over between stages happens here and in `decision` alone. Nothing here knows SQL, sockets or pixels.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from dicom_node import __version__
from dicom_node.adoption import Adoption
from dicom_node.clock import Clock
from dicom_node.config.schema import Peer, SenderSettings, WorkerSettings
from dicom_node.decision import Decision
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
from dicom_node.records import ClaimedDelivery, ClaimedJob, Deliveries, Jobs, NewResult
from dicom_node.report import Predecessor, ResultIdentity, build_results, encode

__all__ = ["Decision", "Dispatch", "Work"]

SEND_BATCH: Final = 64
"""Results in one association."""


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
        except Exception as error:  # boundary: one job; it fails with the reason
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
            predecessors=tuple(
                Predecessor(
                    series_instance_uid=one.series_instance_uid,
                    sop_class_uid=one.sop_class_uid,
                    sop_instance_uid=one.sop_instance_uid,
                )
                for one in self._jobs.reports_replaced_by(job.id)
            ),
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
