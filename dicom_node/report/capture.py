"""Pictures for people: a slice in grey with the outlines of findings drawn over it.

Pure: arrays in, PNG bytes out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCALE = 3
"""Pixels of the picture per pixel of the slice, so that an outline of one pixel hides nothing."""
TEXT_PIXELS = 18


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
        _draw(draw, outline, aspect, picture.width)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _draw(draw: ImageDraw.ImageDraw, outline: Outline, aspect: float, width: int) -> None:
    """Draw a line and, right of it or left where the picture ends, its text; black behind both for bright slices."""
    points = [((x + 0.5) * SCALE, (y + 0.5) * SCALE * aspect) for x, y in outline.points]
    if len(points) < 2:
        return
    draw.line(points, fill=(0, 0, 0), width=4, joint="curve")
    draw.line(points, fill=outline.colour, width=2, joint="curve")
    font = ImageFont.load_default(TEXT_PIXELS)
    right, left = max(point[0] for point in points), min(point[0] for point in points)
    middle = (max(point[1] for point in points) + min(point[1] for point in points)) / 2
    text_width = draw.textlength(outline.text, font=font)
    x = right + 6 if right + 6 + text_width < width else left - 6 - text_width
    draw.text((x, middle), outline.text, outline.colour, font=font, anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0))
