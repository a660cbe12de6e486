"""Results to one destination by C-STORE: one association for all of them, one outcome each.

`stored` is said only after the destination answered 0x0000 or a warning of PS3.4 Table B.2-1; the warning is kept. An
association that breaks leaves the rest unanswered: sending the same bytes under the same UID again is harmless.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dicom_node.config.schema import Peer
from dicom_node.dimse import SendResult, Verdict, send_files
from dicom_node.errors import (
    DeliveryError,
    RejectedDeliveryError,
    TransientDeliveryError,
    UnreachableError,
    UsageError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One claimed delivery: which row, and the file of its result."""

    delivery_id: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one delivery in this attempt."""

    delivery_id: int
    status: int | None = None
    """The status of the response; None when none came."""
    reason: str
    """In words: success, the warning with which it was stored, or why it was not."""
    error: UnreachableError | DeliveryError | None = None
    """None: it is stored. Else what `retry.after_failure` decides on."""

    @property
    def is_stored(self) -> bool:
        """Whether the destination said that it keeps the result."""
        return self.error is None


def deliver_batch(
    parcels: Sequence[Parcel], peer: Peer, *, calling_ae: str, timeout_s: float, tls: ssl.SSLContext | None = None
) -> list[Outcome]:
    """Send the results of some deliveries to their destination; return one outcome each, in order.

    Raises
    ------
    UsageError
        When the peer has no address.
    """
    if peer.address is None:
        raise UsageError(f"peer {peer.name!r} has no `address` to deliver to")
    outcomes: list[Outcome] = []
    try:
        results = send_files(
            [parcel.path for parcel in parcels],
            peer.address,
            called_ae=peer.ae_title,
            calling_ae=calling_ae,
            timeout_s=timeout_s,
            tls=tls,
        )
        for parcel, result in zip(parcels, results, strict=True):
            outcomes.append(_outcome(parcel.delivery_id, result))
    except UnreachableError as error:
        left = parcels[len(outcomes) :]
        outcomes += [Outcome(delivery_id=parcel.delivery_id, reason=str(error), error=error) for parcel in left]
    return outcomes


def _outcome(delivery_id: int, result: SendResult) -> Outcome:
    error: DeliveryError | None
    match result.verdict:
        case Verdict.STORED | Verdict.STORED_WITH_WARNING:
            error = None
        case Verdict.UNANSWERED | Verdict.REFUSED:
            error = TransientDeliveryError(result.reason, status=result.status)
        case Verdict.REFUSED_FOR_GOOD:
            error = RejectedDeliveryError(result.reason, status=result.status)
    return Outcome(delivery_id=delivery_id, status=result.status, reason=result.reason, error=error)
