"""What a DICOM file is, told by its first bytes: enough to send it, in ten microseconds. Pure.

Class and instance come from the data set; the file meta information, which others write and which contradicts the data
set in real files, speaks only where the data set is silent. A strict receiver compares the request with the data set.

Sources: DICOM PS3.10 7.1 (file meta information, Explicit VR Little Endian), PS3.5 7.1.2 (explicit VR).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

from dicom_node.dimse.identify import sop_uids
from dicom_node.errors import UndecodableError

HEAD_BYTES: Final = 1 << 15
"""Of a file: what `file_head` wants to see. File meta information of the house has 400 bytes."""

_PREFIX: Final = b"DICM"
_AFTER_PREFIX: Final = 132
_ELEMENT: Final = struct.Struct("<HH2sH")
_LONG_LENGTH: Final = struct.Struct("<I")
_LONG_FORM: Final = frozenset({b"OB", b"UN", b"UT", b"UC", b"UR", b"OW", b"SQ"})
"""VRs whose length has four bytes after two reserved ones, as far as group 2 has use for them."""
_MEDIA_STORAGE_SOP_CLASS_UID: Final = 0x0002
_MEDIA_STORAGE_SOP_INSTANCE_UID: Final = 0x0003
_TRANSFER_SYNTAX_UID: Final = 0x0010

_UID: Final = re.compile(r"[0-9.]{1,64}")
_ODD_UID: Final = re.compile(r"[!-~]{1,64}")
"""Real instances have letters in their UIDs: the receiver judges them; what is sent must fit into a command set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHead:
    """What a file says of its object, and where the data set begins."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int


def file_head(beginning: bytes) -> FileHead:
    """Return what a DICOM file is; `beginning` are its first `HEAD_BYTES`, or all of it.

    Raises
    ------
    UndecodableError
        When it is no DICOM file, or names no class, instance or transfer syntax.
    """
    if beginning[_AFTER_PREFIX - len(_PREFIX) : _AFTER_PREFIX] != _PREFIX:
        raise UndecodableError("the file does not begin with DICOM file meta information")
    meta, offset = _meta(beginning)
    transfer_syntax_uid = meta.get(_TRANSFER_SYNTAX_UID, "")
    sop_class_uid, sop_instance_uid = _of_data_set(beginning, offset, transfer_syntax_uid)
    head = FileHead(
        sop_class_uid=sop_class_uid or meta.get(_MEDIA_STORAGE_SOP_CLASS_UID, ""),
        sop_instance_uid=sop_instance_uid or meta.get(_MEDIA_STORAGE_SOP_INSTANCE_UID, ""),
        transfer_syntax_uid=transfer_syntax_uid,
        data_set_offset=offset,
    )
    if not (_UID.fullmatch(head.sop_class_uid) and _UID.fullmatch(transfer_syntax_uid)):
        raise UndecodableError("the file names no SOP class or no transfer syntax")
    if not _ODD_UID.fullmatch(head.sop_instance_uid):
        raise UndecodableError("the file names no SOP instance")
    return head


def _meta(beginning: bytes) -> tuple[dict[int, str], int]:
    """Return the values of group 2 by element number, and where it ends; its stated length is not trusted."""
    values: dict[int, str] = {}
    position = _AFTER_PREFIX
    try:
        while position < len(beginning):
            group, number, vr, length = _ELEMENT.unpack_from(beginning, position)
            if group != 2:
                break
            position += _ELEMENT.size
            if vr in _LONG_FORM:
                (length,) = _LONG_LENGTH.unpack_from(beginning, position)
                position += _LONG_LENGTH.size
            values[number] = beginning[position : position + length].decode("ascii", "replace").strip("\x00 ")
            position += length
    except struct.error:
        raise UndecodableError("the file meta information is cut short") from None
    if position > len(beginning):
        raise UndecodableError("the file meta information is cut short, or absurdly long")
    return values, position


def _of_data_set(beginning: bytes, offset: int, transfer_syntax_uid: str) -> tuple[str, str]:
    try:
        return sop_uids(memoryview(beginning)[offset:], transfer_syntax_uid)
    except UndecodableError:  # the receiver will judge it; the file meta information says what it is
        return "", ""
