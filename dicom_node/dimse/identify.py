"""Which instance a data set says it is, read before the sender gets its answer. Pure.

Only headers of elements are walked, up to the instance's UIDs in group 0020; values are skipped, sequences too, without
recursion. So the cost does not depend on the size of the object, and a hostile one (nested sequences, absurd lengths)
costs nothing. Sources: DICOM PS3.5 7.1 (elements), 7.5 (nesting), A.5 (deflated).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dicom_node.dimse.contexts import (
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)
from dicom_node.errors import RefusedInputError, UndecodableError

_SOP_CLASS_UID: Final = 0x00080016
_SOP_INSTANCE_UID: Final = 0x00080018
_STUDY_INSTANCE_UID: Final = 0x0020000D
_SERIES_INSTANCE_UID: Final = 0x0020000E
_NAMES: Final[Mapping[int, str]] = {
    _SOP_CLASS_UID: "SOP Class UID",
    _SOP_INSTANCE_UID: "SOP Instance UID",
    _STUDY_INSTANCE_UID: "Study Instance UID",
    _SERIES_INSTANCE_UID: "Series Instance UID",
}
_IDENTITY: Final = frozenset(_NAMES)
_SOP: Final = frozenset({_SOP_CLASS_UID, _SOP_INSTANCE_UID})
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF

_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
"""VRs with a length of four bytes after two reserved ones (PS3.5 Table 7.1-1)."""
_SHORT_VRS: Final = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)


class _Order:
    """How elements are packed in one byte order; made once, for every data set of it."""

    def __init__(self, mark: str) -> None:
        self.implicit_head = struct.Struct(f"{mark}HHI")
        self.explicit_head = struct.Struct(f"{mark}HH2sH")
        self.numeric_head = struct.Struct(f"{mark}HHHH")
        """As `explicit_head`, with the VR as a number: no object is made of it."""
        self.long = struct.Struct(f"{mark}I")
        self.short_vrs = frozenset(struct.unpack(f"{mark}H", vr)[0] for vr in _SHORT_VRS)


_LITTLE: Final = _Order("<")
_BIG: Final = _Order(">")
_DEEPEST: Final = 64
"""Sequences nested deeper than this are no medical image, and would break recursive readers."""
_MOST_ELEMENTS: Final = 1 << 18
"""Walked before the instance's UIDs are found, a quarter of a second: references to 50,000 images have fewer."""
LARGEST_INFLATED_BYTES: Final = 1 << 30
"""A deflated data set that grows beyond this is refused; readers inflate it in memory."""
LARGEST_INFLATION: Final = 100
"""Times that a deflated data set above `_HARMLESS_BYTES` may grow; images grow two to ten times."""
_HARMLESS_BYTES: Final = 1 << 26
_INFLATE_STEP: Final = 1 << 20
_NOT_DEFLATED: Final = "the data set is not deflated as its transfer syntax says"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a data set says it is."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str


def identify(data_set: memoryview, transfer_syntax_uid: str) -> Identity:
    """Return the identity that the data set carries.

    Raises
    ------
    UndecodableError
        When the bytes are no data set in this transfer syntax.
    RefusedInputError
        When a required UID is missing.
    """
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        data_set = memoryview(_inflated_head(data_set))
    found = _found(data_set, transfer_syntax_uid, _IDENTITY)
    missing = [name for tag, name in _NAMES.items() if not found.get(tag)]
    if missing:
        raise RefusedInputError(f"{missing[0]} is missing")
    return Identity(
        sop_class_uid=found[_SOP_CLASS_UID],
        sop_instance_uid=found[_SOP_INSTANCE_UID],
        study_instance_uid=found[_STUDY_INSTANCE_UID],
        series_instance_uid=found[_SERIES_INSTANCE_UID],
    )


def sop_uids(beginning: memoryview, transfer_syntax_uid: str) -> tuple[str, str]:
    """Return SOP Class UID and SOP Instance UID of a data set whose first bytes are given; "" for what it lacks.

    Raises
    ------
    UndecodableError
        When the bytes are no data set in this transfer syntax, or end before these UIDs.
    """
    if transfer_syntax_uid == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN:
        try:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            beginning = memoryview(inflater.decompress(beginning, _INFLATE_STEP))
        except zlib.error:
            raise UndecodableError(_NOT_DEFLATED) from None
    found = _found(beginning, transfer_syntax_uid, _SOP)
    return found.get(_SOP_CLASS_UID, ""), found.get(_SOP_INSTANCE_UID, "")


def _found(data_set: memoryview, transfer_syntax_uid: str, tags: frozenset[int]) -> dict[int, str]:
    try:
        return _Walk(
            data_set,
            implicit=transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN,
            order=_BIG if transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else _LITTLE,
        ).uids(tags)
    except struct.error:
        raise UndecodableError("the data set is cut short") from None


def _inflated_head(deflated: memoryview) -> bytes:
    """Return the first bytes of the inflated data set, after the whole was inflated piece by piece and measured."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    limit = max(_HARMLESS_BYTES, min(LARGEST_INFLATED_BYTES, len(deflated) * LARGEST_INFLATION))
    head, total = b"", 0
    pending: bytes | memoryview = deflated
    try:
        while len(pending) and not inflater.eof:
            piece = inflater.decompress(pending[:_INFLATE_STEP], _INFLATE_STEP)
            pending = _after(pending, inflater.unconsumed_tail)
            head = head or piece
            total += len(piece)
            if total > limit:
                raise UndecodableError("the deflated data set grows beyond all measure")
    except zlib.error:
        raise UndecodableError(_NOT_DEFLATED) from None
    return head


def _after(pending: bytes | memoryview, unconsumed: bytes) -> bytes | memoryview:
    """Return what is left of `pending` when of its first step `unconsumed` was left over."""
    return pending[min(len(pending), _INFLATE_STEP) - len(unconsumed) :]


class _Walk:
    """A walk along the elements of one data set."""

    def __init__(self, data: memoryview, *, implicit: bool, order: _Order) -> None:
        self._data = data
        self._implicit = implicit
        self._order = order
        self._left = _MOST_ELEMENTS

    def uids(self, tags: frozenset[int]) -> dict[int, str]:
        """Return the text of these elements, as far as the top level has them, by tag."""
        found: dict[int, str] = {}
        position, end, last = 0, len(self._data), max(tags)
        while position < end:
            if not self._implicit:
                position = self._after_short_elements(position, tags, last)
            tag, length, value, implicit = self._element(position, self._implicit)
            if tag > last:
                break
            if length == _UNDEFINED:
                position = self._after_sequence(value, implicit)
                continue
            position = value + length
            if position > end:
                raise UndecodableError("an element is longer than the data set")
            if tag in tags:
                found[tag] = bytes(self._data[value:position]).decode("ascii", "replace").rstrip("\x00 ")
                if tag == last:
                    break
        return found

    def _after_short_elements(self, position: int, tags: frozenset[int], last: int) -> int:
        """Return where the first element begins that is one of `tags`, beyond them, or has no short form.

        A call for each of the others would cost more than all the rest that is done for a small object.
        """
        data, last_head = self._data, len(self._data) - 8
        unpack, short_vrs = self._order.numeric_head.unpack_from, self._order.short_vrs
        n_passed, most = 0, self._left
        while position <= last_head and n_passed < most:
            group, number, vr, length = unpack(data, position)
            tag = group << 16 | number
            if vr not in short_vrs or tag > last or tag in tags:
                break
            position += 8 + length
            n_passed += 1
        self._left -= n_passed
        return position

    def _element(self, position: int, implicit: bool) -> tuple[int, int, int, bool]:
        """Return tag, length, start of the value, and whether a nested value is in implicit VR."""
        self._left -= 1
        if self._left < 0:
            raise UndecodableError("the data set has too many elements before its UIDs")
        if implicit:
            group, number, length = self._order.implicit_head.unpack_from(self._data, position)
            return group << 16 | number, length, position + 8, True
        group, number, vr, length = self._order.explicit_head.unpack_from(self._data, position)
        if vr in _SHORT_VRS:
            return group << 16 | number, length, position + 8, False
        if group == 0xFFFE:  # items and their ends have no VR
            (length,) = self._order.long.unpack_from(self._data, position + 4)
            return group << 16 | number, length, position + 8, False
        if vr not in _LONG_VRS:
            raise UndecodableError("the data set does not follow its transfer syntax")
        (length,) = self._order.long.unpack_from(self._data, position + 8)
        # PS3.5 6.2.2: UN of undefined length holds a sequence in implicit VR little endian.
        return group << 16 | number, length, position + 12, vr == b"UN"

    def _after_sequence(self, position: int, implicit: bool) -> int:
        """Return where the sequence of undefined length ends whose first item begins at `position`."""
        open_levels = [(_SEQUENCE_END, implicit)]
        while open_levels:
            end, implicit = open_levels[-1]
            tag, length, position, nested_implicit = self._element(position, implicit)
            if tag == end:
                open_levels.pop()
            elif end == _SEQUENCE_END and tag != _ITEM:
                raise UndecodableError("a sequence holds something that is no item")
            elif length == _UNDEFINED:
                inner = (_ITEM_END, implicit) if end == _SEQUENCE_END else (_SEQUENCE_END, nested_implicit)
                open_levels.append(inner)
                if len(open_levels) > _DEEPEST:
                    raise UndecodableError("sequences are nested too deep")
            else:
                position += length
        return position
