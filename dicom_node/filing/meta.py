"""File meta information, written and read by hand: 3 microseconds instead of a parse per instance. Pure.

The preamble is 128 zeros, always: what a sender puts there (an executable, CVE-2019-11687) never reaches our disk.
Source: DICOM PS3.10 7.1; Explicit VR Little Endian, PS3.5 7.1.2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from dicom_node.errors import UndecodableError
from dicom_node.ids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.study import InstanceMeta

PREAMBLE: Final = bytes(128) + b"DICM"

MEDIA_STORAGE_SOP_CLASS_UID: Final = 0x0002
MEDIA_STORAGE_SOP_INSTANCE_UID: Final = 0x0003
TRANSFER_SYNTAX_UID: Final = 0x0010
_IMPLEMENTATION_CLASS_UID: Final = 0x0012
_IMPLEMENTATION_VERSION_NAME: Final = 0x0013
_SOURCE_AE_TITLE: Final = 0x0016
SENDING_AE_TITLE: Final = 0x0017
RECEIVING_AE_TITLE: Final = 0x0018

_LONG_FORM: Final = frozenset({b"OB", b"UN", b"UT", b"UC", b"UR", b"OW", b"SQ"})
"""VRs in group 2 whose length has four bytes after two reserved ones (PS3.5 7.1.2)."""
_HEAD: Final = len(PREAMBLE) + 12
"""Preamble, prefix and the group length element."""
LARGEST_META_BYTES: Final = 1 << 16
"""Far above any group 2 that we write; a longer one is damage."""


def encoded(meta: InstanceMeta) -> bytes:
    """Return preamble, prefix and group 2 for `meta`; the data set follows immediately.

    Raises
    ------
    UnicodeEncodeError
        When a value is not ASCII.
    """
    group = b"".join(
        (
            struct.pack("<HH2sHI", 2, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            _repeated(MEDIA_STORAGE_SOP_CLASS_UID, b"UI", meta.sop_class_uid),
            _element(MEDIA_STORAGE_SOP_INSTANCE_UID, b"UI", meta.sop_instance_uid),
            _repeated(TRANSFER_SYNTAX_UID, b"UI", meta.transfer_syntax_uid),
            _repeated(_IMPLEMENTATION_CLASS_UID, b"UI", IMPLEMENTATION_CLASS_UID),
            _repeated(_IMPLEMENTATION_VERSION_NAME, b"SH", IMPLEMENTATION_VERSION_NAME),
            _repeated(_SOURCE_AE_TITLE, b"AE", meta.calling_ae),
            _repeated(SENDING_AE_TITLE, b"AE", meta.calling_ae),
            _repeated(RECEIVING_AE_TITLE, b"AE", meta.called_ae),
        )
    )
    return PREAMBLE + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(group)) + group


@lru_cache(maxsize=256)
def _repeated(number: int, vr: bytes, text: str) -> bytes:
    """Return an element that most instances of a sender have in common."""
    return _element(number, vr, text)


def _element(number: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\x00" if vr == b"UI" else b" "
    return struct.pack("<HH2sH", 2, number, vr, len(value)) + value


def group_length(head: bytes) -> int:
    """Return the length of group 2 that follows the first `_HEAD` bytes of a file.

    Raises
    ------
    UndecodableError
        When this is no DICOM file or its group 2 is absurdly long.
    """
    if len(head) < _HEAD or head[128:132] != b"DICM" or head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise UndecodableError("the file does not begin with DICOM file meta information")
    (length,) = struct.unpack_from("<I", head, 140)
    if length > LARGEST_META_BYTES:
        raise UndecodableError(f"the file meta information claims {length} bytes")
    return int(length)


def decoded(group: bytes) -> Mapping[int, str]:
    """Return the text values of group 2 by element number; binary values are left out.

    Raises
    ------
    UndecodableError
        When an element is cut short or belongs to another group.
    """
    values: dict[int, str] = {}
    position = 0
    while position < len(group):
        try:
            of_group, number, vr, length = struct.unpack_from("<HH2sH", group, position)
            position += 8
            if vr in _LONG_FORM:
                (length,) = struct.unpack_from("<I", group, position)
                position += 4
        except struct.error:
            raise UndecodableError("the file meta information is cut short") from None
        if of_group != 2 or position + length > len(group):
            raise UndecodableError("the file meta information is damaged")
        if vr not in _LONG_FORM:
            values[number] = group[position : position + length].decode("ascii", "replace").strip("\x00 ")
        position += length
    return values


HEAD_BYTES: Final = _HEAD
