"""What a compressed frame says of itself, read from its first markers without decoding anything. Pure.

Decoders make room for the size that the codestream announces, whatever the header says; so both are compared before.
The precision tells how wide a container a decoder fills, and which bits of it are the value.

Sources: ITU-T T.81 B.2.2 (JPEG: SOF), T.87 C.2.2 (JPEG-LS: SOF55), T.800 A.5.1 (JPEG 2000 and HTJ2K: SIZ).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_JPEG_START: Final = b"\xff\xd8"
_J2K_START: Final = b"\xff\x4f\xff\x51"
"""SOC, and SIZ, which follows at once."""
_J2K_SIZE: Final = struct.Struct(">8x4I16xHB")
"""From SOC on: Xsiz, Ysiz, XOsiz, YOsiz; then Csiz, and Ssiz of the first component."""
_SEGMENT: Final = struct.Struct(">BBH")
_SIZE: Final = struct.Struct(">4xBHHB")
"""From a marker on: sample precision, number of lines, samples a line, components."""
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""SOF of every process; DHT, JPG and DAC stand among their numbers."""
_BOX_BYTES: Final = 1 << 10
"""Some wrap JPEG 2000 into the boxes of a JP2 file, which are shorter than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What the first markers of a codestream say."""

    rows: int
    """0 in a JPEG whose number of lines is told at the end (DNL)."""
    columns: int
    components: int
    precision: int
    """Bits of a sample, of the first component."""


def announced(frame: bytes) -> Announced | None:
    """Return what a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame says of itself; None when it does not tell."""
    try:
        start = frame.find(_J2K_START, 0, _BOX_BYTES)
        if start >= 0:
            x_size, y_size, x_offset, y_offset, components, ssiz = _J2K_SIZE.unpack_from(frame, start)
            return Announced(
                rows=y_size - y_offset,
                columns=x_size - x_offset,
                components=components,
                precision=(ssiz & 0x7F) + 1,  # the highest bit says that values are signed
            )
        return _announced_by_jpeg(frame) if frame.startswith(_JPEG_START) else None
    except struct.error:
        return None


def _announced_by_jpeg(frame: bytes) -> Announced | None:
    position = len(_JPEG_START)
    while True:
        mark, kind, length = _SEGMENT.unpack_from(frame, position)
        if mark != 0xFF:
            return None
        if kind == 0xFF:  # a fill byte
            position += 1
        elif kind in _FRAME_HEADERS:
            precision, rows, columns, components = _SIZE.unpack_from(frame, position)
            return Announced(rows=rows, columns=columns, components=components, precision=precision)
        else:
            position += 2 + length
