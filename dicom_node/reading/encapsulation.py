"""Where the frames of encapsulated pixel data lie in their file: found by walking the items, no pixel is read.

A frame may lie in several fragments, and offset tables may be there, empty, or wrong. They are believed where they
point to fragments; otherwise there is a fragment for each frame, or a frame begins where a codestream does. What cannot
be told apart with certainty is refused.

Sources: DICOM PS3.5 A.4 (encapsulation, Basic Offset Table), PS3.3 C.7.6.3.1.8 (Extended Offset Table).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias

from dicom_node.errors import UndecodableError

Extents: TypeAlias = tuple[tuple[int, int], ...]
"""Offset in the file and length of each fragment of a frame."""

_ITEM: Final = 0xFFFEE000
_SEQUENCE_END: Final = 0xFFFEE0DD
_ITEM_HEAD: Final = struct.Struct("<HHI")
_STARTS: Final = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
"""What a codestream begins with: SOI of JPEG and JPEG-LS, SOC and SIZ of JPEG 2000, the signature of JP2."""
_START_BYTES: Final = 8
_MOST_FRAGMENTS: Final = 1 << 20
_LARGEST_TABLE: Final = 1 << 24
"""Bytes of a Basic Offset Table: four million frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fragment:
    item_offset: int
    """Of its item, from the first fragment's on: what offset tables count."""
    value_offset: int
    """In the file."""
    length: int
    begins_codestream: bool


def frame_extents(path: Path, value_offset: int, n_frames: int, *, extended: bytes | None = None) -> list[Extents]:
    """Return where each frame lies.

    Parameters
    ----------
    value_offset
        Of the Basic Offset Table's item in the file.
    extended
        The value of Extended Offset Table, when there is one.

    Raises
    ------
    UndecodableError
        When the items are broken, or do not make `n_frames` frames.
    OSError
        When the file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        table, fragments = _walk(file.fileno(), value_offset)
    if not fragments:
        raise UndecodableError("the pixel data hold no frame; the file is truncated")
    if n_frames == 1:
        return [_extents(fragments)]
    for offsets in (_offsets(extended or b"", "<Q"), _offsets(table, "<I")):
        found = _by_table(offsets, fragments, n_frames)
        if found is not None:
            return found
    if len(fragments) < n_frames:
        raise UndecodableError(f"the pixel data hold {len(fragments)} of {n_frames} frames; the file is truncated")
    if len(fragments) == n_frames:
        return [_extents([fragment]) for fragment in fragments]
    starts = [i for i, fragment in enumerate(fragments) if fragment.begins_codestream]
    if len(starts) < n_frames or starts[0] != 0:
        raise UndecodableError(
            f"the {len(fragments)} fragments of pixel data cannot be told apart as {n_frames} frames: there is no "
            "offset table"
        )
    return _between(starts, fragments)[:n_frames]


def _walk(file: int, position: int) -> tuple[bytes, list[_Fragment]]:
    """Return the Basic Offset Table and the fragments; a delimiter that is missing at the end does no harm."""
    fragments: list[_Fragment] = []
    size = os.fstat(file).st_size
    table, first = b"", 0
    is_table = True
    while position + _ITEM_HEAD.size <= size:
        head = os.pread(file, _ITEM_HEAD.size + _START_BYTES, position)
        group, number, length = _ITEM_HEAD.unpack_from(head)
        tag, start = group << 16 | number, position + _ITEM_HEAD.size
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or start + length > size or len(fragments) >= _MOST_FRAGMENTS:
            raise UndecodableError("the items of the pixel data are broken; the file is damaged or truncated")
        if is_table:
            table = os.pread(file, length, start) if length <= _LARGEST_TABLE else b""
            first, is_table = start + length, False
        else:
            begins = head[_ITEM_HEAD.size :].startswith(_STARTS)
            fragments.append(
                _Fragment(item_offset=position - first, value_offset=start, length=length, begins_codestream=begins)
            )
        position = start + length
    return table, fragments


def _offsets(table: bytes, layout: str) -> list[int]:
    size = struct.calcsize(layout)
    return [offset for (offset,) in struct.iter_unpack(layout, table[: len(table) // size * size])]


def _by_table(offsets: Sequence[int], fragments: Sequence[_Fragment], n_frames: int) -> list[Extents] | None:
    """Return the frames that a table makes; None when it does not point to as many fragments, in rising order."""
    place = {fragment.item_offset: i for i, fragment in enumerate(fragments)}
    starts = [place[offset] for offset in offsets if offset in place]
    if len(starts) != n_frames or len(offsets) != n_frames or starts[0] != 0:
        return None
    if any(after <= before for before, after in pairwise(starts)):
        return None
    return _between(starts, fragments)


def _between(starts: Sequence[int], fragments: Sequence[_Fragment]) -> list[Extents]:
    return [_extents(fragments[first:after]) for first, after in pairwise([*starts, len(fragments)])]


def _extents(fragments: Sequence[_Fragment]) -> Extents:
    return tuple((fragment.value_offset, fragment.length) for fragment in fragments)
