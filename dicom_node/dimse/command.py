"""Command sets of DIMSE messages, read and written by hand: 3 microseconds instead of 300. Pure.

A command set is a data set of group 0000 in Implicit VR Little Endian, a few hundred bytes long. Anything longer, or
that does not parse, is the peer's breach of the protocol.

Sources: DICOM PS3.7 6.3 (command sets), 9.3.1 (C-STORE), 9.3.2 (C-FIND), 9.3.5 (C-ECHO), E.1 (command elements).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dicom_node.dimse.contexts import VERIFICATION
from dicom_node.dimse.pdu import AbortReason, ProtocolError

C_STORE_RQ: Final = 0x0001
C_STORE_RSP: Final = 0x8001
C_FIND_RQ: Final = 0x0020
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
_RESPONSE: Final = 0x8000
NO_DATA_SET: Final = 0x0101
"""Command Data Set Type that says that none follows; every other value says that one does (PS3.7 E.1-1)."""
_A_DATA_SET: Final = 0x0001
LARGEST_COMMAND_BYTES: Final = 1 << 13
"""Far above any command set of ours or of a peer."""
_COMMENT_LENGTH: Final = 64
"""VR LO (PS3.7 E.1-1, Error Comment)."""

_AFFECTED_SOP_CLASS_UID: Final = 0x0002
_COMMAND_FIELD: Final = 0x0100
_MESSAGE_ID: Final = 0x0110
_MESSAGE_ID_RESPONDED_TO: Final = 0x0120
_PRIORITY: Final = 0x0700
_DATA_SET_TYPE: Final = 0x0800
_STATUS: Final = 0x0900
_ERROR_COMMENT: Final = 0x0902
_AFFECTED_SOP_INSTANCE_UID: Final = 0x1000

_ELEMENT: Final = struct.Struct("<HHI")
_US: Final = struct.Struct("<H")
_GROUP_LENGTH: Final = struct.Struct("<HHII")
_ANSWER: Final = struct.Struct("<HHIHHHIHHHIHHHIH")
"""The four elements of two bytes that every response has, side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command set says; None where it has no such element."""

    command_field: int
    message_id: int | None = None
    message_id_responded_to: int | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    has_data_set: bool = False
    status: int | None = None
    error_comment: str = ""
    elements: Mapping[int, bytes] = field(default_factory=dict, repr=False, compare=False)
    """Every element of the command set, by its number in group 0000."""

    @property
    def is_response(self) -> bool:
        """Whether this answers a request."""
        return bool(self.command_field & _RESPONSE)


def decoded(command_set: bytes | bytearray | memoryview) -> Command:
    """Return what a command set says.

    Raises
    ------
    ProtocolError
        When it is none.
    """
    elements: dict[int, bytes] = {}
    position, end = 0, len(command_set)
    while position < end:
        if end - position < _ELEMENT.size:
            raise _broken("ends inside an element")
        group, number, length = _ELEMENT.unpack_from(command_set, position)
        first = position + _ELEMENT.size
        position = first + length
        if group != 0 or position > end:
            raise _broken("has an element that is no command element, or that is longer than it")
        elements[number] = bytes(command_set[first:position])
    command_field, data_set_type = _number(elements, _COMMAND_FIELD), _number(elements, _DATA_SET_TYPE)
    if command_field is None or data_set_type is None:
        raise _broken("lacks Command Field or Command Data Set Type")
    return Command(
        command_field=command_field,
        message_id=_number(elements, _MESSAGE_ID),
        message_id_responded_to=_number(elements, _MESSAGE_ID_RESPONDED_TO),
        sop_class_uid=_text(elements, _AFFECTED_SOP_CLASS_UID),
        sop_instance_uid=_text(elements, _AFFECTED_SOP_INSTANCE_UID),
        has_data_set=data_set_type != NO_DATA_SET,
        status=_number(elements, _STATUS),
        error_comment=_text(elements, _ERROR_COMMENT),
        elements=elements,
    )


def response(request: Command, status: int, comment: str = "") -> bytes:
    """Return the command set that answers a request, without a data set."""
    content = _repeated(request, _AFFECTED_SOP_CLASS_UID) + _ANSWER.pack(
        *(0, _COMMAND_FIELD, 2, request.command_field | _RESPONSE),
        *(0, _MESSAGE_ID_RESPONDED_TO, 2, request.message_id or 0),
        *(0, _DATA_SET_TYPE, 2, NO_DATA_SET),
        *(0, _STATUS, 2, status),
    )
    if comment:
        text = comment[:_COMMENT_LENGTH].encode("ascii", "replace")
        content += _element(_ERROR_COMMENT, _padded(text, b" "))
    content += _repeated(request, _AFFECTED_SOP_INSTANCE_UID)
    return _GROUP_LENGTH.pack(0, 0, 4, len(content)) + content


def _repeated(request: Command, number: int) -> bytes:
    """Return an element as the request has it; nothing when it has none."""
    value = request.elements.get(number)
    return b"" if value is None else _element(number, value)


def store_request(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Return the command set of a C-STORE-RQ of medium priority, whose data set follows."""
    return _encoded(
        [
            (_AFFECTED_SOP_CLASS_UID, _padded(sop_class_uid.encode("ascii"), b"\x00")),
            (_COMMAND_FIELD, _US.pack(C_STORE_RQ)),
            (_MESSAGE_ID, _US.pack(message_id)),
            (_PRIORITY, _US.pack(0)),
            (_DATA_SET_TYPE, _US.pack(_A_DATA_SET)),
            (_AFFECTED_SOP_INSTANCE_UID, _padded(sop_instance_uid.encode("ascii"), b"\x00")),
        ]
    )


def find_request(message_id: int, sop_class_uid: str) -> bytes:
    """Return the command set of a C-FIND-RQ of medium priority, whose identifier follows."""
    return _encoded(
        [
            (_AFFECTED_SOP_CLASS_UID, _padded(sop_class_uid.encode("ascii"), b"\x00")),
            (_COMMAND_FIELD, _US.pack(C_FIND_RQ)),
            (_MESSAGE_ID, _US.pack(message_id)),
            (_PRIORITY, _US.pack(0)),
            (_DATA_SET_TYPE, _US.pack(_A_DATA_SET)),
        ]
    )


def echo_request(message_id: int) -> bytes:
    """Return the command set of a C-ECHO-RQ."""
    return _encoded(
        [
            (_AFFECTED_SOP_CLASS_UID, _padded(VERIFICATION.encode("ascii"), b"\x00")),
            (_COMMAND_FIELD, _US.pack(C_ECHO_RQ)),
            (_MESSAGE_ID, _US.pack(message_id)),
            (_DATA_SET_TYPE, _US.pack(NO_DATA_SET)),
        ]
    )


def _encoded(values: list[tuple[int, bytes]]) -> bytes:
    """Return a command set with its group length; `values` are sorted by number."""
    content = b"".join([_element(number, value) for number, value in values])
    return _GROUP_LENGTH.pack(0, 0, 4, len(content)) + content


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, number, len(value)) + value


def _padded(value: bytes, with_: bytes) -> bytes:
    return value + with_ if len(value) % 2 else value


def _number(elements: Mapping[int, bytes], number: int) -> int | None:
    value = elements.get(number)
    if not value:
        return None
    if len(value) != _US.size:
        raise _broken("has a number that is not two bytes long")
    return int(_US.unpack(value)[0])


def _text(elements: Mapping[int, bytes], number: int) -> str:
    return elements.get(number, b"").rstrip(b"\x00 ").decode("ascii", "replace")


def _broken(how: str) -> ProtocolError:
    return ProtocolError(AbortReason.INVALID_PARAMETER, f"the command set {how}")
