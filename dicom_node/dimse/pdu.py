"""Protocol data units of the DICOM upper layer: bytes in, events out, and the other way round. Pure.

The parser never holds a data set and never copies one: of a P-DATA-TF it gives every piece as a view of the buffer that
was fed, so memory does not depend on objects or on PDU lengths. What it does hold is capped: a header of twelve bytes,
or an association request. Every length that a peer announces is judged before one byte of it is waited for.

Sources: DICOM PS3.8 9.3 (PDUs), 9.3.5 (P-DATA-TF), Annex E.2 (message control header), Table 9-26 (reasons of A-ABORT).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias


class PduType(IntEnum):
    """PS3.8 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA_TF = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


class AbortReason(IntEnum):
    """Why the service provider aborts: PS3.8 Table 9-26."""

    NOT_SPECIFIED = 0
    UNRECOGNISED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNISED_PARAMETER = 4
    UNEXPECTED_PARAMETER = 5
    INVALID_PARAMETER = 6


class ProtocolError(Exception):
    """The peer breaks the protocol; the association is aborted for `reason`."""

    def __init__(self, reason: AbortReason, words: str) -> None:
        self.reason = reason
        super().__init__(words)


@dataclass(frozen=True, slots=True)
class Control:
    """A whole PDU other than P-DATA-TF."""

    kind: PduType
    content: bytes
    """With its header of six bytes, as it came."""


class Fragment(NamedTuple):
    """A piece of a presentation data value; a tuple, because several come with each object."""

    context_id: int
    is_command: bool
    is_last: bool
    """The message's command set, or its data set, ends with this piece."""
    payload: memoryview
    """A view of the buffer that was fed: read it before the buffer is used again. May be empty."""


Event: TypeAlias = Control | Fragment

LARGEST_CONTROL_BYTES: Final = 1 << 18
"""Of an association request, which comes before we know the peer: 128 contexts of 40 transfer syntaxes need 170 kB."""
_SHORT_CONTROL_BYTES: Final = 4
"""Of release and abort PDUs, exactly (PS3.8 9.3.6 to 9.3.8); of A-ASSOCIATE-RJ too (9.3.4)."""
_PDU_HEAD: Final = struct.Struct(">BxI")
_PDV_HEAD: Final = struct.Struct(">IBB")
_BOTH_HEADS: Final = struct.Struct(">BxIIBB")
_COMMAND: Final = 1
_LAST: Final = 2

RELEASE_RQ: Final = bytes((PduType.RELEASE_RQ, 0, 0, 0, 0, 4, 0, 0, 0, 0))
RELEASE_RP: Final = bytes((PduType.RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0))


def abort(source: int, reason: AbortReason = AbortReason.NOT_SPECIFIED) -> bytes:
    """Return an A-ABORT; source 0 is the service user, 2 the service provider (PS3.8 9.3.8)."""
    return bytes((PduType.ABORT, 0, 0, 0, 0, 4, 0, 0, source, reason))


class Parser:
    """Turns the bytes of one association into events, whatever pieces they come in.

    Parameters
    ----------
    max_pdu
        Bytes of the largest P-DATA-TF that we announced to take.
    """

    def __init__(self, max_pdu: int) -> None:
        self._max_pdu = max_pdu
        self._head = bytearray()
        """The header under way, of a PDU or of a PDV."""
        self._control: bytearray | None = None
        self._control_bytes = 0
        self._pdu_left = 0
        """Bytes of the present P-DATA-TF that have not come yet."""
        self._pdv_left = 0
        self._pdv: tuple[int, int] = (0, 0)
        """Presentation context and message control header of the present PDV."""

    @property
    def is_between(self) -> bool:
        """Whether the last PDU is complete and the next has not begun."""
        return not (self._head or self._control is not None or self._pdu_left)

    def feed(self, data: memoryview) -> Iterator[Event]:
        """Give the events that `data`, the next bytes of the connection, completes.

        Raises
        ------
        ProtocolError
            When the bytes break the protocol; the events before that were given.
        """
        position, end = 0, len(data)
        while position < end:
            if self._pdv_left:
                taken = min(self._pdv_left, end - position)
                self._pdv_left -= taken
                self._pdu_left -= taken
                yield self._fragment(data[position : position + taken])
                position += taken
            elif self._control is not None:
                taken = min(self._control_bytes - len(self._control), end - position)
                self._control += data[position : position + taken]
                position += taken
                yield from self._completed_control()
            elif whole := self._whole_pdu(data, position, end):
                yield whole
                position += _BOTH_HEADS.size + len(whole.payload)
            else:
                wanted = _PDV_HEAD.size if self._pdu_left else _PDU_HEAD.size
                taken = min(wanted - len(self._head), end - position)
                self._head += data[position : position + taken]
                position += taken
                if len(self._head) == wanted:
                    head, self._head = self._head, bytearray()
                    yield from self._begun_pdv(head) if self._pdu_left else self._begun_pdu(head)

    def _whole_pdu(self, data: memoryview, position: int, end: int) -> Fragment | None:
        """Return what lies at `position` when it is all of a P-DATA-TF with one value, as most are; None otherwise.

        A short cut: what it does not take, and every breach of the protocol, is for the general way.
        """
        if self._pdu_left or self._head or end - position < _BOTH_HEADS.size or data[position] != PduType.P_DATA_TF:
            return None
        _, length, pdv_length, context_id, control = _BOTH_HEADS.unpack_from(data, position)
        stop = position + _PDU_HEAD.size + length
        if stop > end or length > self._max_pdu or pdv_length + 4 != length or pdv_length < 2:
            return None
        payload = data[position + _BOTH_HEADS.size : stop]
        return Fragment(context_id, bool(control & _COMMAND), bool(control & _LAST), payload)

    def _begun_pdu(self, head: bytearray) -> Iterator[Event]:
        number, length = _PDU_HEAD.unpack(head)
        try:
            kind = PduType(number)
        except ValueError:
            raise ProtocolError(AbortReason.UNRECOGNISED_PDU, f"no PDU has the type 0x{number:02X}") from None
        if kind is PduType.P_DATA_TF:
            if length > self._max_pdu:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, f"a PDU of {length} bytes is above our maximum")
            if length < _PDV_HEAD.size:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, "a P-DATA-TF without a presentation data value")
            self._pdu_left = length
            return
        is_request = kind in (PduType.ASSOCIATE_RQ, PduType.ASSOCIATE_AC)
        if length > LARGEST_CONTROL_BYTES or not (is_request or length == _SHORT_CONTROL_BYTES):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, f"a PDU of type {kind.name} with {length} bytes")
        self._control, self._control_bytes = head, len(head) + length
        yield from self._completed_control()

    def _completed_control(self) -> Iterator[Event]:
        if self._control is not None and len(self._control) == self._control_bytes:
            content, self._control = bytes(self._control), None
            yield Control(PduType(content[0]), content)

    def _begun_pdv(self, head: bytearray) -> Iterator[Event]:
        length, context_id, control = _PDV_HEAD.unpack(head)
        if length < 2 or length + 4 > self._pdu_left:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation data value is longer than its PDU")
        self._pdu_left -= _PDV_HEAD.size
        self._pdv_left = length - 2
        self._pdv = (context_id, control)
        if 0 < self._pdu_left - self._pdv_left < _PDV_HEAD.size:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a P-DATA-TF ends inside a header")
        if not self._pdv_left:
            yield self._fragment(memoryview(b""))

    def _fragment(self, payload: memoryview) -> Fragment:
        context_id, control = self._pdv
        is_last = bool(control & _LAST) and not self._pdv_left
        return Fragment(context_id, bool(control & _COMMAND), is_last, payload)


def data_head(context_id: int, length: int, *, is_command: bool, is_last: bool) -> bytes:
    """Return the twelve bytes before `length` bytes of a message: a P-DATA-TF with one presentation data value."""
    control = is_command * _COMMAND | is_last * _LAST
    return _BOTH_HEADS.pack(PduType.P_DATA_TF, length + 6, length + 2, context_id, control)


def command_pdus(context_id: int, command_set: bytes, max_pdu: int) -> bytes:
    """Return the P-DATA-TFs of a command set; `max_pdu` is what the peer takes, 0 for no limit (PS3.8 D.1)."""
    return b"".join(
        data_head(context_id, len(piece), is_command=True, is_last=is_last) + piece
        for piece, is_last in pieces(memoryview(command_set), max_pdu)
    )


def pieces(message: memoryview, max_pdu: int) -> Iterator[tuple[memoryview, bool]]:
    """Cut a message so that each piece fits into a PDU of the peer's; the flag marks the last one."""
    step = max(1, max_pdu - _PDV_HEAD.size) if max_pdu else max(1, len(message))
    for first in range(0, max(1, len(message)), step):
        yield message[first : first + step], first + step >= len(message)
