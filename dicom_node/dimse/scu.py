"""The sender: C-ECHO, and C-STORE of files exactly as they lie on the disk.

One association carries all files; it proposes the pairs of SOP class and transfer syntax at hand and nothing else,
since receivers differ in what they take. More than 128 pairs (PS3.8 9.3.2.2: odd identifiers from 1 to 255) open
further associations. Nothing is encoded anew: a file is one presentation context and a stream of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node import ids
from dicom_node.config.schema import Address
from dicom_node.dimse.contexts import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dicom_node.dimse.status import Verdict, classify, meaning
from dicom_node.errors import UnreachableError

_MOST_CONTEXTS: Final = 128
_UNREADABLE: Final = "the file is missing or has no complete DICOM file meta information"
_NOT_ACCEPTED: Final = "the peer does not accept this SOP class in this transfer syntax"
_MAX_PDU: Final = 131072
"""Bytes that we take in one PDU; what we send follows the peer's."""

_REJECTIONS: Final[dict[tuple[int | None, int | None], str]] = {
    # (source, diagnostic) of A-ASSOCIATE-RJ, PS3.8 Table 9-21
    (1, 1): "it gives no reason",
    (1, 2): "it does not know the DICOM application context",
    (1, 3): "it does not know our AE title",
    (1, 7): "it does not answer to the AE title that we called",
    (2, 1): "it gives no reason",
    (2, 2): "it does not support this protocol version",
    (3, 1): "it is congested for now",
    (3, 2): "it has as many associations as it allows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoResult:
    """The answer to a C-ECHO."""

    status: int | None
    """None when no response came."""
    reason: str

    @property
    def is_success(self) -> bool:
        """Whether the peer answered with success."""
        return self.status == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """What became of one file."""

    path: Path
    sop_instance_uid: str
    status: int | None
    """The status of the C-STORE response; None when none came or nothing was sent."""
    verdict: Verdict
    reason: str
    """In words, with the peer's comment."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    sop_instance_uid: str = ""
    pair: tuple[str, str] | None = None
    """SOP class and transfer syntax: what it is sent under. None when the file cannot be read."""


class RejectedAssociationError(UnreachableError):
    """The peer rejects the association; check both AE titles and its list of known peers."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        self.is_transient = is_transient
        super().__init__(message)


def echo(address: Address, *, called_ae: str, calling_ae: str, timeout_s: float) -> EchoResult:
    """Ask a peer whether it is there.

    Raises
    ------
    UnreachableError
        When there is no connection, or the peer rejects the association.
    """
    contexts = [build_context(VERIFICATION, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])]
    assoc = _associated(address, contexts, called_ae=called_ae, calling_ae=calling_ae, timeout_s=timeout_s)
    if not assoc.is_established:
        return EchoResult(status=None, reason="the peer does not offer verification (C-ECHO)")
    try:
        status = _status(assoc.send_c_echo())
    finally:
        _ended(assoc)
    return EchoResult(status=status, reason="no response" if status is None else meaning(status))


def send_files(
    paths: Sequence[Path], address: Address, *, called_ae: str, calling_ae: str, timeout_s: float
) -> Iterator[SendResult]:
    """Send DICOM files and give one result each, in order, as answers come.

    When the connection breaks, the remaining files of its association come back unanswered; a file that cannot be read
    comes back refused for good.

    Raises
    ------
    UnreachableError
        When there is no connection, or the peer rejects the association.
    """
    for batch in _batches([_read_meta(path) for path in paths]):
        pairs = list(dict.fromkeys(file.pair for file in batch if file.pair is not None))
        if not pairs:
            yield from (_result(file, None, Verdict.REFUSED_FOR_GOOD, _UNREADABLE) for file in batch)
            continue
        contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in pairs]
        assoc = _associated(address, contexts, called_ae=called_ae, calling_ae=calling_ae, timeout_s=timeout_s)
        try:
            accepted = {
                (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in assoc.accepted_contexts
            }
            for number, file in enumerate(batch):
                yield _sent(assoc, file, accepted, message_id=number % 0xFFFF + 1)
        finally:
            _ended(assoc)


def _batches(files: Sequence[_File]) -> Iterator[list[_File]]:
    """Split into runs whose presentation contexts fit into one association."""
    batch: list[_File] = []
    pairs: set[tuple[str, str]] = set()
    for file in files:
        if file.pair is not None and file.pair not in pairs:
            if len(pairs) == _MOST_CONTEXTS:
                yield batch
                batch, pairs = [], set()
            pairs.add(file.pair)
        batch.append(file)
    if batch:
        yield batch


def _sent(assoc: Association, file: _File, accepted: set[tuple[str, str]], *, message_id: int) -> SendResult:
    if file.pair is None:
        return _result(file, None, Verdict.REFUSED_FOR_GOOD, _UNREADABLE)
    if file.pair not in accepted:
        return _result(file, None, Verdict.REFUSED_FOR_GOOD, _NOT_ACCEPTED)
    if not assoc.is_established:
        return _result(file, None, Verdict.UNANSWERED, "the association ended before this object was sent")
    try:
        response = assoc.send_c_store(file.path, msg_id=message_id)
    except OSError:  # the file went away while it was sent; the peer holds half a message
        assoc.abort()
        return _result(file, None, Verdict.REFUSED_FOR_GOOD, _UNREADABLE)
    status = _status(response)
    if status is None:
        assoc.abort()  # also when the peer did: pynetdicom notices late, and the next request would wait in vain
        return _result(file, None, classify(None), "no response; the association ended")
    comment = str(response.get("ErrorComment", "")).strip()
    return _result(file, status, classify(status), f"{meaning(status)}: {comment}" if comment else meaning(status))


def _result(file: _File, status: int | None, verdict: Verdict, reason: str) -> SendResult:
    return SendResult(
        path=file.path, sop_instance_uid=file.sop_instance_uid, status=status, verdict=verdict, reason=reason
    )


def _status(response: Dataset) -> int | None:
    """Return the status; pynetdicom gives an empty data set after a timeout or abort."""
    return int(response.Status) if "Status" in response else None


def _read_meta(path: Path) -> _File:
    try:
        meta, _offset = split_dataset(path)
        sop_class_uid, transfer_syntax_uid = str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
        sop_instance_uid = str(meta.MediaStorageSOPInstanceUID)
        is_complete = sop_class_uid and sop_instance_uid and transfer_syntax_uid
        return _File(path, sop_instance_uid, (sop_class_uid, transfer_syntax_uid) if is_complete else None)
    except (AttributeError, ValueError, EOFError, OSError, InvalidDicomError):
        return _File(path)


def _associated(
    address: Address, contexts: list[PresentationContext], *, called_ae: str, calling_ae: str, timeout_s: float
) -> Association:
    """Return an association; not established only when the peer accepted none of `contexts`."""
    ae = AE(ae_title=calling_ae)
    ae.implementation_class_uid = ids.IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = ids.IMPLEMENTATION_VERSION_NAME
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = timeout_s
    connected: list[bool] = []
    try:
        assoc = ae.associate(
            address.host,
            address.port,
            contexts=contexts,
            ae_title=called_ae,
            max_pdu=_MAX_PDU,
            evt_handlers=[(evt.EVT_CONN_OPEN, lambda _event: connected.append(True))],
        )
    except OSError as error:  # the name of the host does not resolve
        raise UnreachableError(f"{address.host} is no address that this machine knows") from error
    where = f"{called_ae} at {address.host}:{address.port}"
    answer = assoc.acceptor.primitive
    if assoc.is_established or (answer is not None and answer.result == 0):
        return assoc
    if assoc.is_rejected and answer is not None:
        words = _REJECTIONS.get((answer.result_source, answer.diagnostic), "it gives a reason that has no name")
        raise RejectedAssociationError(
            f"{where} rejects the association: {words}; check AE titles and its list of peers",
            is_transient=answer.result == 2,
        )
    if connected:
        raise UnreachableError(f"{where} takes the connection but does not answer the association request")
    raise UnreachableError(f"{where} does not answer; check its address, its port and the network")


def _ended(assoc: Association) -> None:
    if assoc.is_established:
        assoc.release()
