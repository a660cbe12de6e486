"""Bytes -> elements: what stands before the pixels of one instance, found without parsing a value.

What indexing reads of every instance that is received. Only the headers of elements are walked; a value becomes text
or a number when it is asked for and is as the standard writes it. Whatever is written otherwise is left to the
library, which knows the habits of broken writers: one value of a strange form, or (`OddHeadError`) the whole head. So
both ways give the same answers, and tests compare them.

Sources: DICOM PS3.10 7 (file format), PS3.5 6.2 (value representations), 7.1 (data elements), 7.5 (sequences).
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, NamedTuple

from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, STANDARD_VR

from dicom_node.errors import UndecodableError
from dicom_node.reading.header import (
    DEFER_BYTES,
    KEPT_BYTES,
    PIXEL_KEYWORDS,
    UNDEFINED_LENGTH,
    PixelElement,
    quiet,
)

_PREFIX_END: Final = 132
_META_END: Final = 0x00030000
_TRANSFER_SYNTAX_UID: Final = 0x00020010
_CHARACTER_SET: Final = 0x00080005
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_FUNCTIONAL_GROUPS: Final = (0x52009229, 0x52009230)
_FIRST_BYTES: Final = (1 << 14, 1 << 16, 1 << 18, 1 << 22)
"""How much of a file is looked at for its head, one after the other: most have 2 to 16 kB."""
_DEEPEST: Final = 16
"""Sequences of undefined length nested deeper than this are left to the library: this walk recurses."""

_VRS: Final = frozenset(vr.encode() for vr in STANDARD_VR)
_LONG_VRS: Final = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
"""With four bytes of length after two reserved ones (PS3.5 Table 7.1-1)."""
_BYTE_VRS: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW"})
_TEXT_VRS: Final = frozenset({b"CS", b"LO", b"SH", b"TM", b"UI"})
_NUMBERS: Final = {b"US": struct.Struct("<H"), b"FD": struct.Struct("<d")}
_explicit: Final = struct.Struct("<HH2sH").unpack_from
_implicit: Final = struct.Struct("<HHI").unpack_from
_long: Final = struct.Struct("<I").unpack_from

_DECIMAL: Final = rb" *[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)? *"
_plain_ds: Final = re.compile(_DECIMAL + rb"(?:\\" + _DECIMAL + rb")*").fullmatch
_INTEGER: Final = rb" *[+-]?\d{1,9} *"
_plain_is: Final = re.compile(_INTEGER + rb"(?:\\" + _INTEGER + rb")*").fullmatch
_unusual: Final = re.compile(rb"[\x00\x1b\x80-\xff]").search
"""Bytes that make text depend on the character set: not ASCII, or an escape sequence; or a NUL inside."""


class OddHeadError(Exception):
    """The head is not written as the standard says: it takes the library to read it."""


class _Element(NamedTuple):
    """Where a value stands."""

    vr: bytes | None
    """None in implicit VR."""
    start: int
    length: int


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Head:
    """The elements that stand before the pixels; `header.text` and its like read it as they read a data set."""

    content: bytes
    """From the preamble on."""
    transfer_syntax_uid: str
    pixels: PixelElement | None
    length: int
    """Of the part of `content` that stands before the pixels."""
    elements: dict[int, _Element]
    """By tag, in the order of the file."""

    @property
    def has_pixels(self) -> bool:
        """Return whether pixels follow."""
        return self.pixels is not None

    def __contains__(self, keyword: str) -> bool:
        """Return whether there is such an element."""
        return _named(keyword)[0] in self.elements

    def get(self, keyword: str) -> Any:
        """Return a value as text, number, a list of these or of items; None when the element is absent."""
        tag, vr = _named(keyword)
        element = self.elements.get(tag)
        if element is None:
            return None
        if element.vr is None or element.vr == vr:
            value = _plain_value(vr, self.content[element.start : element.start + element.length])
            if value is not None:
                return value
        with quiet():
            known = [one for one in (_CHARACTER_SET, tag) if one in self.elements]
            return Dataset({BaseTag(one): self._raw(one) for one in known})[BaseTag(tag)].value

    def _raw(self, tag: int) -> RawDataElement:
        vr, start, length = self.elements[tag]
        value = self.content[start : start + length]
        return RawDataElement(BaseTag(tag), vr.decode() if vr else None, length, value, start, vr is None, True)

    def without_bulk(self) -> bytes:
        """Return the head without the values that a header in JSON leaves out anyway: tables, a vendor's blobs."""
        kept, position = [], 0
        for vr, start, length in self.elements.values():
            if (length > KEPT_BYTES and vr in _BYTE_VRS) or (length > DEFER_BYTES and vr not in (b"SQ", None)):
                kept.append(self.content[position : start - _header_length(vr)])
                position = start + length
        return b"".join([*kept, self.content[position : self.length]])


def find_head(content: bytes, *, is_whole: bool) -> Head | None:
    """Return the head of the instance whose file begins with `content`; None when it may go on behind `content`.

    Raises
    ------
    OddHeadError
        When it is broken, deflated or big endian, or not quite what the standard says.
    UndecodableError
        When it is no DICOM file.
    """
    if content[128:_PREFIX_END] != b"DICM":
        raise UndecodableError("not a DICOM file: the prefix DICM is missing")
    try:
        transfer_syntax_uid, start = _meta(content)
        elements, end, pixels = _elements(content, start, implicit=transfer_syntax_uid == ImplicitVRLittleEndian)
    except struct.error:  # an element begins before the end of `content` and goes on behind it
        if is_whole:
            raise OddHeadError from None
        return None
    if pixels is None and not is_whole:
        return None
    if end > len(content):
        raise OddHeadError
    return Head(content=content, transfer_syntax_uid=transfer_syntax_uid, pixels=pixels, length=end, elements=elements)


def head_of(file: int) -> Head | None:
    """Return the head of the DICOM file behind a descriptor, nothing else of it; None when the library must read it.

    Functional groups are the library's: it parses a sequence once, this walk each time it is asked.

    Raises
    ------
    UndecodableError
        When it is no DICOM file.
    OSError
        When it cannot be read.
    """
    try:
        for size in _FIRST_BYTES:
            content = os.pread(file, size, 0)
            head = find_head(content, is_whole=len(content) < size)
            if head is not None:
                if any(tag in head.elements for tag in _FUNCTIONAL_GROUPS):
                    return None
                return replace(head, content=content[: head.length])
    except OddHeadError:
        pass
    return None


def _meta(content: bytes) -> tuple[str, int]:
    """Return the transfer syntax and where the data set begins: past group 0002, in explicit VR (PS3.10 7.1)."""
    transfer_syntax_uid: Any = None
    position = _PREFIX_END
    while _implicit(content, position)[0] == 2:
        tag, vr, start, length = _element(content, position, implicit=False)
        position = start + length
        if tag == _TRANSFER_SYNTAX_UID and vr == b"UI":
            transfer_syntax_uid = _plain_value(vr, content[start:position])
    if not isinstance(transfer_syntax_uid, str):
        raise OddHeadError
    if transfer_syntax_uid in ("", DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        raise OddHeadError
    looks_implicit = _explicit(content, position)[2] not in _VRS
    if looks_implicit != (transfer_syntax_uid == ImplicitVRLittleEndian):
        raise OddHeadError
    return transfer_syntax_uid, position


def _elements(content: bytes, position: int, *, implicit: bool) -> tuple[dict[int, _Element], int, PixelElement | None]:
    """Return the elements up to the pixels, where they end, and the pixels."""
    elements: dict[int, _Element] = {}
    while position + 8 <= len(content):
        tag, vr, start, length = _element(content, position, implicit=implicit)
        if tag in PIXEL_KEYWORDS:
            name = vr.decode() if vr else None
            pixels = PixelElement(keyword=PIXEL_KEYWORDS[tag], value_offset=start, length=length, vr=name)
            return elements, position, pixels
        if tag in elements or not _META_END < tag < _ITEM:
            raise OddHeadError
        position = start + length
        if length == UNDEFINED_LENGTH:
            end, position = _sequence(content, tag, vr, start, 0)
            length = end - start
        elements[tag] = _Element(vr, start, length)
    return elements, max(position, len(content)), None


def _element(content: bytes, position: int, *, implicit: bool) -> tuple[int, bytes | None, int, int]:
    """Return tag, VR, start of the value and length of the element at `position`."""
    if implicit:
        group, number, length = _implicit(content, position)
        return group << 16 | number, None, position + 8, length
    group, number, vr, length = _explicit(content, position)
    if vr in _LONG_VRS:
        return group << 16 | number, vr, position + 12, _long(content, position + 8)[0]
    if vr not in _VRS and group != 0xFFFE:  # delimiters have no VR
        raise OddHeadError
    return group << 16 | number, vr, position + 8, length


def _header_length(vr: bytes | None) -> int:
    return 12 if vr in _LONG_VRS else 8


def _sequence(content: bytes, tag: int, vr: bytes | None, position: int, depth: int) -> tuple[int, int]:
    """Return where the items of a sequence of undefined length end, and where its delimiter does."""
    is_sequence = vr == b"SQ" if vr else not dictionary_has_tag(tag) or dictionary_VR(tag) == "SQ"
    if not is_sequence or depth > _DEEPEST:
        raise OddHeadError
    while True:
        group, number, length = _implicit(content, position)
        tag, start = group << 16 | number, position + 8
        if tag == _SEQUENCE_END:
            return position, start
        if tag != _ITEM:
            raise OddHeadError
        position = _item(content, start, length, vr is None, depth)


def _item(content: bytes, position: int, length: int, implicit: bool, depth: int) -> int:
    """Return where an item ends; one of defined length is walked too, since the library parses it with the rest."""
    end = None if length == UNDEFINED_LENGTH else position + length
    while end is None or position < end:
        tag, vr, start, length = _element(content, position, implicit=implicit)
        if tag >= _ITEM:
            if tag != _ITEM_END or end is not None:
                raise OddHeadError
            return start
        position = start + length
        if length == UNDEFINED_LENGTH:
            _, position = _sequence(content, tag, vr, start, depth + 1)
    if position != end:
        raise OddHeadError
    return position


@cache
def _named(keyword: str) -> tuple[int, bytes]:
    """Return tag and VR of an attribute."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"there is no attribute {keyword}")
    return tag, dictionary_VR(tag).encode()


def _plain_value(vr: bytes, raw: bytes) -> str | list[str] | int | float | None:
    """Return the value that the bytes stand for; None when their form, or their VR, is for the library to read."""
    if vr in _TEXT_VRS:
        raw = raw.rstrip(b"\x00 ")
        if _unusual(raw):
            return None
    elif vr == b"DS":
        if not _plain_ds(raw):
            return None
    elif vr == b"IS":
        if not _plain_is(raw):
            return None
    elif vr in _NUMBERS and len(raw) == _NUMBERS[vr].size:
        number: int | float = _NUMBERS[vr].unpack(raw)[0]
        return number
    else:
        return None
    value = raw.decode("ascii")
    return value.split("\\") if "\\" in value else value
