"""Overlay pictures of what was found: a grey slice, and the outline of everything that crosses it.

Each finding has its picture, the slice of its longest diameter; findings that share a slice share the picture. For
people who try the node out: the radiologist sees the SEG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_node.findings import Mask
from dicom_node.imaging import Volume
from dicom_node.imaging.mask import outline
from dicom_node.report.capture import Outline, overlay_png

AMBER = (255, 170, 0)
"""sRGB; where nobody recommends a colour."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """One finding to draw."""

    number: int
    mask: Mask
    slice_index: int
    """The slice on which it must be seen."""
    colour: tuple[int, int, int] = AMBER
    """sRGB."""


def draw_outlines(volume: Volume, drawn: Sequence[Drawn], out: Path) -> list[Path]:
    """Write a PNG of each slice that one of `drawn` asks for into `out`; return the files."""
    window = window_of(volume, [one.mask for one in drawn])
    files = []
    for index in sorted({one.slice_index for one in drawn}):
        outlines = [
            Outline(points=points, colour=one.colour, text=str(one.number))
            for one in drawn
            if (points := outline(one.mask, index))
        ]
        row_mm, column_mm = volume.frames[index].pixel_spacing_mm
        png = overlay_png(volume.array[index], outlines, window=window, aspect=row_mm / column_mm)
        files.append(out / f"overlay_slice_{index + 1:03d}.png")
        files[-1].write_bytes(png)
    return files


def window_of(volume: Volume, masks: Sequence[Mask]) -> tuple[float, float]:
    """Return the values shown black and white: what lies in the boxes around the masks, each enlarged by half.

    Without masks, of the whole volume.
    """
    boxes = [volume.array[_enlarged_box(mask, volume.array.shape)].ravel() for mask in masks] or [volume.array.ravel()]
    low, high = np.percentile(np.concatenate(boxes), [5, 99.5])
    return float(low), float(high)


def _enlarged_box(mask: Mask, shape: tuple[int, ...]) -> tuple[slice, ...]:
    places = []
    for start, size, limit in zip(mask.offset, mask.array.shape, shape, strict=True):
        margin = (size + 3) // 4
        places.append(slice(max(0, start - margin), min(limit, start + size + margin)))
    return tuple(places)
