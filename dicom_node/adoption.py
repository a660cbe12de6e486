"""`identity = "destination"`: before a result leaves, its destination is asked whose study it is.

    asked -> one answer          a variant with that patient and order is filed under UIDs of its own, once, and sent
          -> unknown             tried again later, the images may still be on their way; then held
          -> several, contrary   held with the reason; an administrator looks, and `deliveries retry` asks again

Called by `pipeline.Dispatch` with what it has claimed. A variant that is filed is only ever re-sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from dicom_node.clock import Clock
from dicom_node.errors import LeaseLostError, QueryError, TransientDeliveryError, UnreachableError
from dicom_node.filing import ResultStore
from dicom_node.logs import Log
from dicom_node.records import ClaimedDelivery, Deliveries, NewResult

if TYPE_CHECKING:
    from dicom_node.report.variant import Answers, Known

Ask: TypeAlias = "Callable[[Mapping[str, str | int | None]], Answers]"
"""A query at the level of studies to the destination; raises UnreachableError or QueryError."""
Failure: TypeAlias = UnreachableError | TransientDeliveryError


class Adoption:
    """Turns claimed results into variants with the identity that their destination knows."""

    def __init__(
        self,
        deliveries: Deliveries,
        results: ResultStore,
        *,
        destination: str,
        ask: Ask,
        patience: int,
        clock: Clock,
        log: Log,
    ) -> None:
        """`patience`: attempts after which a study that the destination does not know holds the delivery."""
        self._deliveries = deliveries
        self._results = results
        self._destination = destination
        self._ask = ask
        self._patience = patience
        self._clock = clock
        self._log = log

    def prepare(
        self, claimed: Sequence[ClaimedDelivery], fail: Callable[[ClaimedDelivery, Failure], object]
    ) -> list[ClaimedDelivery]:
        """Return what may be sent now; the rest is held, or given to `fail` to be tried again.

        One question a study serves all of its results.
        """
        ready: list[ClaimedDelivery] = []
        by_study: dict[str, list[ClaimedDelivery]] = {}
        for delivery in claimed:
            if delivery.is_variant:
                ready.append(delivery)
            else:
                by_study.setdefault(delivery.study_instance_uid, []).append(delivery)
        for study_uid, of_study in by_study.items():
            ready += self._of_study(study_uid, of_study, fail)
        return ready

    def _of_study(
        self,
        study_uid: str,
        claimed: Sequence[ClaimedDelivery],
        fail: Callable[[ClaimedDelivery, Failure], object],
    ) -> list[ClaimedDelivery]:
        from dicom_node.report.variant import ADOPTED, NotKnown, known_identity

        try:
            answers = self._ask({"StudyInstanceUID": study_uid, **dict.fromkeys(ADOPTED, "")})
            known = known_identity(answers, study_uid)
        except UnreachableError as error:
            for delivery in claimed:
                fail(delivery, error)
            return []
        except QueryError as error:
            known = NotKnown(reason=str(error), may_pass=True)
        if not isinstance(known, NotKnown):
            return [variant for one in claimed if (variant := self._adopt(one, known)) is not None]
        for delivery in claimed:
            if known.may_pass and delivery.attempt < self._patience:
                fail(delivery, TransientDeliveryError(f"{self._destination}: {known.reason}"))
            else:
                self._hold(delivery, known.reason)
        return []

    def _adopt(self, delivery: ClaimedDelivery, known: Known) -> ClaimedDelivery | None:
        from dicom_node.report import encode
        from dicom_node.report.variant import contradiction, make_variant

        content = self._results.read(delivery.path)
        reason = contradiction(content, known)
        if reason is not None:
            self._hold(delivery, reason)
            return None
        own_uids = self._deliveries.own_uids(delivery.job_id)
        ds = make_variant(content, known, self._destination, own_uids, self._clock.now())
        path, digest = self._results.file(encode(ds), str(ds.SOPInstanceUID))
        variant = NewResult(
            kind=delivery.kind,
            sop_class_uid=delivery.sop_class_uid,
            sop_instance_uid=str(ds.SOPInstanceUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            path=path,
            digest=digest,
        )
        try:
            return self._deliveries.adopt(delivery.id, delivery.token, variant)
        except LeaseLostError:
            self._log.warning("delivery.lost", destination=self._destination, job_id=delivery.job_id)
            return None

    def _hold(self, delivery: ClaimedDelivery, reason: str) -> None:
        try:
            self._deliveries.set_aside(delivery.id, delivery.token, f"identity: {reason}")
        except LeaseLostError:
            return
        self._log.warning(
            "delivery.held", job_id=delivery.job_id, destination=self._destination, reason=f"identity: {reason}"
        )
