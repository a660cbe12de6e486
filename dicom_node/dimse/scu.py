"""The sender: C-ECHO, and C-STORE of files exactly as they lie on the disk.

One association carries all files; what it proposes stands in `proposal`, and more contexts than fit into one open
further associations. A file is one presentation context and a stream of bytes: nothing is encoded anew, unless the peer
refuses the object's transfer syntax and takes a plain one; then it is transcoded, under the same UID.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from pydicom.uid import UID

from dicom_node.config.schema import Address
from dicom_node.dimse.command import Command
from dicom_node.dimse.contexts import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dicom_node.dimse.part10 import HEAD_BYTES, FileHead, file_head
from dicom_node.dimse.proposal import MOST_CONTEXTS, Accepted, Pair, Proposed, chosen, contexts_of
from dicom_node.dimse.requestor import Call, Requestor, associated
from dicom_node.dimse.status import Verdict, classify, meaning
from dicom_node.errors import UndecodableError

_UNREADABLE: Final = "the file is missing or has no complete DICOM file meta information"
_GONE_MEANWHILE: Final = "the file could not be read while it was sent"
_NO_RESPONSE: Final = "no response; the association ended"
_LACKING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of our own machine: the file is good, another time it may be sent."""
_OVER: Final = "the association ended before this object was sent"


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
    head: FileHead | None
    """None when the file cannot be read."""

    @property
    def pair(self) -> Pair | None:
        """What it is sent under."""
        return None if self.head is None else (self.head.sop_class_uid, self.head.transfer_syntax_uid)


def echo(
    address: Address, *, called_ae: str, calling_ae: str, timeout_s: float, tls: ssl.SSLContext | None = None
) -> EchoResult:
    """Ask a peer whether it is there.

    Raises
    ------
    UnreachableError
        When there is no connection, or the peer rejects the association.
    """
    call = Call(address=address, called_ae=called_ae, calling_ae=calling_ae, timeout_s=timeout_s, tls=tls)
    syntaxes = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
    assoc = associated(call, [Proposed(sop_class_uid=VERIFICATION, transfer_syntax_uids=syntaxes)])
    try:
        if not assoc.contexts:
            return EchoResult(status=None, reason="the peer does not offer verification (C-ECHO)")
        answer = assoc.echo(assoc.contexts[0], message_id=1)
    finally:
        assoc.release()
    if answer is None or answer.status is None:
        return EchoResult(status=None, reason="no response")
    return EchoResult(status=answer.status, reason=meaning(answer.status))


def send_files(
    paths: Sequence[Path],
    address: Address,
    *,
    called_ae: str,
    calling_ae: str,
    timeout_s: float,
    tls: ssl.SSLContext | None = None,
) -> Iterator[SendResult]:
    """Send DICOM files and give one result each, in order, as answers come.

    When the connection breaks, the remaining files of its association come back unanswered; a file that cannot be read,
    or neither sent as it is nor transcoded, comes back refused for good.

    Raises
    ------
    UnreachableError
        When there is no connection, or the peer rejects the association.
    """
    call = Call(address=address, called_ae=called_ae, calling_ae=calling_ae, timeout_s=timeout_s, tls=tls)
    for batch, contexts in _batches([_read_head(path) for path in paths]):
        if not contexts:
            yield from (_unsent(file, Verdict.REFUSED_FOR_GOOD, _UNREADABLE) for file in batch)
            continue
        assoc = associated(call, contexts)
        try:
            for number, file in enumerate(batch):
                yield _sent(assoc, file, message_id=number % 0xFFFF + 1)
        finally:
            assoc.release()


def _read_head(path: Path) -> _File:
    try:
        with path.open("rb", buffering=0) as file:
            return _File(path, file_head(file.read(HEAD_BYTES)))
    except (OSError, UndecodableError):
        return _File(path, None)


def _batches(files: Sequence[_File]) -> Iterator[tuple[list[_File], list[Proposed]]]:
    """Split into runs whose presentation contexts fit into one association, and give these contexts."""
    batch: list[_File] = []
    pairs: dict[Pair, None] = {}
    contexts: list[Proposed] = []
    for file in files:
        if file.pair is not None and file.pair not in pairs:
            more = contexts_of([*pairs, file.pair])
            if len(more) > MOST_CONTEXTS:
                yield batch, contexts
                batch, pairs, more = [], {}, contexts_of([file.pair])
            pairs[file.pair] = None
            contexts = more
        batch.append(file)
    if batch:
        yield batch, contexts


def _sent(assoc: Requestor, file: _File, *, message_id: int) -> SendResult:
    """Send one file, as it is or transcoded, and say what became of it."""
    if file.head is None or file.pair is None:
        return _unsent(file, Verdict.REFUSED_FOR_GOOD, _UNREADABLE)
    context = chosen(assoc.contexts, file.pair)
    if context is None:
        return _unsent(file, Verdict.REFUSED_FOR_GOOD, _not_accepted(file.head))
    if not assoc.is_open:
        return _unsent(file, Verdict.UNANSWERED, _OVER)
    try:
        with _opened(file.path, file.head, context) as (data_set, offset):
            descriptor = data_set.fileno()
            length = os.fstat(descriptor).st_size - offset
            answer = assoc.store(context, file.head.sop_instance_uid, descriptor, offset, length, message_id=message_id)
    except OSError as error:
        return _local_failure(file, error)
    except UndecodableError as error:
        return _unsent(file, Verdict.REFUSED_FOR_GOOD, f"{_not_accepted(file.head)}, and {error}")
    return _answered(assoc, file, answer)


@contextmanager
def _opened(path: Path, head: FileHead, context: Accepted) -> Iterator[tuple[BinaryIO, int]]:
    """Give an open file and where in it the data set begins: the file itself, or what it was transcoded to."""
    if context.transfer_syntax_uid == head.transfer_syntax_uid:
        with path.open("rb") as file:
            yield file, head.data_set_offset
        return
    from dicom_node.reading.transcode import transcode  # decoders cost memory, and are seldom needed

    # In memory, where it was decoded anyway: what is a patient's never lies in a folder for temporary files.
    with os.fdopen(os.memfd_create("transcoded"), "w+b") as data_set:
        transcode(path, context.transfer_syntax_uid, to=data_set)
        data_set.flush()
        yield data_set, 0


def _answered(assoc: Requestor, file: _File, answer: Command | None) -> SendResult:
    status = None if answer is None else answer.status
    if answer is None or status is None:
        assoc.abort()  # an answer without a status: whatever it means, the next one could not be believed
        return _unsent(file, classify(None), _NO_RESPONSE)
    comment = answer.error_comment.strip()
    return SendResult(
        path=file.path,
        sop_instance_uid="" if file.head is None else file.head.sop_instance_uid,
        status=status,
        verdict=classify(status),
        reason=f"{meaning(status)}: {comment}" if comment else meaning(status),
    )


def _unsent(file: _File, verdict: Verdict, reason: str) -> SendResult:
    uid = "" if file.head is None else file.head.sop_instance_uid
    return SendResult(path=file.path, sop_instance_uid=uid, status=None, verdict=verdict, reason=reason)


def _local_failure(file: _File, error: OSError) -> SendResult:
    """Tell what this machine lacks for now from a file that is gone or damaged."""
    if error.errno in _LACKING:
        return _unsent(file, Verdict.UNANSWERED, f"this machine could not send it now: {error.strerror}")
    return _unsent(file, Verdict.REFUSED_FOR_GOOD, _GONE_MEANWHILE)


def _not_accepted(head: FileHead) -> str:
    name = UID(head.transfer_syntax_uid).name
    return f"the peer does not accept this SOP class in this transfer syntax ({name})"
