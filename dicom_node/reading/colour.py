"""Colour frames -> RGB, and RGB -> grey: for plugins that ask for it, and for nobody else.

A network for grey images is given colour only when its manifest says so: which grey a colour becomes is a choice. The
choice here is the luminance of ITU-R BT.601, that of the YBR colour spaces of DICOM and JPEG.

Sources: DICOM PS3.3 C.7.6.3.1.2 (Photometric Interpretation), C.7.6.3.1.5, C.7.6.3.1.6 and C.7.9 (Palette Color Lookup
Tables, segmented ones); ITU-R BT.601-7 2.5.1 (luminance).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut

from dicom_node.errors import UndecodableError
from dicom_node.reading.decode import PixelLayout, stored_frames
from dicom_node.reading.header import VALUE_ERRORS, Header

Rgb: TypeAlias = NDArray[Any]
"""uint8 or uint16 (Y, X, 3): red, green, blue."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def rgb_frames(header: Header, layout: PixelLayout, indices: Iterable[int]) -> Iterator[Rgb]:
    """Yield frames in RGB, by their 0-based indices, whatever colour space or palette they are stored in.

    Parameters
    ----------
    layout
        As `pixel_layout(header, colour=True)` gives it.

    Raises
    ------
    UndecodableError
        When a frame cannot be decoded, is grey, or its palette is broken.
    """
    if not layout.is_colour:
        raise UndecodableError(f"the image is grey ({layout.photometric_interpretation}), not in colour")
    for stored in stored_frames(header, layout, indices):
        yield _from_palette(header, stored) if layout.samples == 1 else stored


def _from_palette(header: Header, stored: NDArray[Any]) -> Rgb:
    try:
        return np.asarray(apply_color_lut(stored, header.dataset))[..., :3]
    except VALUE_ERRORS as error:
        raise UndecodableError(f"the palette of colours cannot be read ({type(error).__name__})") from error


def luminance(rgb: Rgb) -> NDArray[np.float32]:
    """Return the grey of an RGB frame, float32 (Y, X), in the range of its values."""
    return np.asarray(rgb.astype(np.float32) @ _LUMINANCE, dtype=np.float32)
