"""Pictures for people: a slice in grey with the outlines of findings drawn over it.

Pure: arrays in, PNG bytes out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SCALE = 3
"""Pixels of the picture per pixel of the slice, so that an outline of one pixel hides nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A closed line to draw, in pixel coordinates (column, row) of the slice, voxel centres being whole numbers."""

    points: tuple[tuple[float, float], ...]
    colour: tuple[int, int, int]
    """sRGB."""
    text: str = ""


def overlay_png(
    plane: NDArray[np.float32], outlines: Sequence[Outline], *, window: tuple[float, float], aspect: float = 1.0
) -> bytes:
    """Return a PNG of one slice with outlines.

    Parameters
    ----------
    plane
        Axes (Y, X), unit of the modality.
    window
        Values shown as black and as white, in the same unit.
    aspect
        Distance between rows divided by distance between columns: pixels that are not square are shown true.
    """
    low, high = window
    grey = np.clip((plane - low) / max(high - low, 1e-6) * 255.0, 0, 255).astype(np.uint8)
    rows, columns = grey.shape
    picture = Image.fromarray(grey).convert("RGB")
    picture = picture.resize((columns * SCALE, round(rows * SCALE * aspect)), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        points = [((x + 0.5) * SCALE, (y + 0.5) * SCALE * aspect) for x, y in outline.points]
        if len(points) > 1:
            draw.line(points, fill=outline.colour, width=2, joint="curve")
        if points and outline.text:
            right = max(point[0] for point in points)
            draw.text((right + 4, points[0][1]), outline.text, fill=outline.colour)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
