"""What a compressed frame says of its own size, read from its first markers without decoding anything. Pure.

Decoders make room for the size that the codestream announces, whatever the header says; so both are compared before.
Sources: ITU-T T.81 B.2.2 (JPEG: SOF), T.87 C.2.2 (JPEG-LS: SOF55), T.800 A.5.1 (JPEG 2000 and HTJ2K: SIZ).
"""

from __future__ import annotations

import struct
from typing import Final

_JPEG_START: Final = b"\xff\xd8"
_J2K_START: Final = b"\xff\x4f\xff\x51"
"""SOC, and SIZ, which follows at once."""
_J2K_SIZE: Final = struct.Struct(">8x4I")
"""From SOC on: Xsiz, Ysiz, XOsiz, YOsiz."""
_SEGMENT: Final = struct.Struct(">BBH")
_SIZE: Final = struct.Struct(">5xHH")
"""From a marker on: number of lines, samples a line."""
_FRAME_HEADERS: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""SOF of every process; DHT, JPG and DAC stand among their numbers."""
_BOX_BYTES: Final = 1 << 10
"""Some wrap JPEG 2000 into the boxes of a JP2 file, which are shorter than this."""


def announced_size(frame: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame; None when it does not tell."""
    try:
        start = frame.find(_J2K_START, 0, _BOX_BYTES)
        if start >= 0:
            x_size, y_size, x_offset, y_offset = _J2K_SIZE.unpack_from(frame, start)
            return y_size - y_offset, x_size - x_offset
        return _jpeg_size(frame) if frame.startswith(_JPEG_START) else None
    except struct.error:
        return None


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    position = len(_JPEG_START)
    while True:
        mark, kind, length = _SEGMENT.unpack_from(frame, position)
        if mark != 0xFF:
            return None
        if kind == 0xFF:  # a fill byte
            position += 1
        elif kind in _FRAME_HEADERS:
            rows, columns = _SIZE.unpack_from(frame, position)
            return rows, columns
        else:
            position += 2 + length
