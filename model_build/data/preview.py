"""A sheet of augmented images, to be looked at before a training: the first is as it was, labels are outlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_build.data.augment import Augmentation, augment
from model_build.data.cases import Case

__all__ = ["PREVIEW", "middle_slices", "preview_sheet", "write_preview"]

PREVIEW = Augmentation(
    flip_axes=(1,), rotate_degrees=15, scale=(0.85, 1.2), shift=0.05, gain=(0.9, 1.1), noise=0.05, gamma=(0.8, 1.25)
)
_GAP = 4


def middle_slices(case: Case) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the slice (Y, X) with the most of the label, 0..1 between its 1st and 99th percentile, and its label."""
    volume = case.load()
    label = np.zeros(volume.grid.shape, dtype=np.uint8)
    for number, mask in enumerate(case.masks(volume).values(), 1):
        label[mask] = number
    filled = (label > 0).sum(axis=(1, 2))
    z = int(filled.argmax()) if filled.any() else volume.grid.shape[0] // 2
    plane = volume.array[z]
    low, high = np.percentile(plane, [1, 99])
    return np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32), label[z]


def preview_sheet(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    how: Augmentation,
    *,
    seed: int,
    rows: int = 3,
    columns: int = 4,
) -> NDArray[np.uint8]:
    """Return (H, W, 3): the image as it is, then augmented ones, the borders of labels in red."""
    y, x = image.shape
    sheet = np.full((rows * (y + _GAP) - _GAP, columns * (x + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    for place in range(rows * columns):
        shown, there = (image, label) if place == 0 else augment(rng, image, label, how)
        top, left = (place // columns) * (y + _GAP), (place % columns) * (x + _GAP)
        tile = sheet[top : top + shown.shape[0], left : left + shown.shape[1]]
        tile[:] = np.asarray(np.clip(shown, 0, 1) * 255, dtype=np.uint8)[..., None]
        if there is not None:
            tile[_border(there)] = (255, 40, 40)
    return sheet


def write_preview(
    path: Path, image: NDArray[np.float32], label: NDArray[np.uint8], how: Augmentation, *, seed: int
) -> None:
    """Write the sheet as PNG."""
    Image.fromarray(preview_sheet(image, label, how, seed=seed)).save(path, format="PNG")


def _border(label: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return the pixels of a label that have a neighbour of another value."""
    padded = np.pad(label, 1, mode="edge")
    inner = padded[1:-1, 1:-1]
    sides = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray((inner != 0) & np.logical_or.reduce([side != inner for side in sides]))
