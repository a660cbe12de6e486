"""From a probability to the masks of single findings: components, what to keep of them, and their outlines.

Between the way back onto the source grid (`preprocess.to_source`) and `measure`. Masks are cropped to what they hold
as early as possible. Sizes are in mm3 of the source grid, never in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import Mask
from dicom_node.imaging.volume import Volume

Connectivity: TypeAlias = Literal[6, 18, 26]

_RANK = {6: 1, 18: 2, 26: 3}
"""Neighbours of a voxel -> scipy's connectivity: shared faces; and edges; and corners."""

_SHELL_VOXELS = 2
_COLLINEAR = 1e-3
"""Pixels: points of an outline nearer to the line between their neighbours say nothing."""


def crop_mask(array: NDArray[np.bool_], offset: tuple[int, int, int] = (0, 0, 0)) -> Mask | None:
    """Return the mask cropped to its bounding box, None when it is empty.

    `array` is bool, axes (Z, Y, X); `offset` is the index of its first voxel in the full grid.
    """
    bounds = []
    for axis in range(3):
        held = np.flatnonzero(array.any(axis=tuple(other for other in range(3) if other != axis)))
        if held.size == 0:
            return None
        bounds.append((int(held[0]), int(held[-1]) + 1))
    cropped = array[tuple(slice(*bound) for bound in bounds)]
    z, y, x = (at + start for at, (start, _) in zip(offset, bounds, strict=True))
    return Mask(offset=(z, y, x), array=np.ascontiguousarray(cropped))


def components(mask: Mask, connectivity: Connectivity, *, min_voxels: int = 1) -> tuple[Mask, ...]:
    """Return the connected components with at least `min_voxels` voxels, largest first."""
    labels, _ = ndimage.label(mask.array, ndimage.generate_binary_structure(3, _RANK[connectivity]))
    sizes = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    # Equal sizes keep the order of their first voxels, so the same image gives the same numbers.
    order = sorted(np.flatnonzero(sizes >= min_voxels), key=lambda label: -int(sizes[label]))
    found = []
    for label in order:
        box = boxes[label]
        z, y, x = (at + part.start for at, part in zip(mask.offset, box, strict=True))
        found.append(Mask(offset=(z, y, x), array=labels[box] == label + 1))
    return tuple(found)


def filled(mask: Mask) -> Mask:
    """Return the mask with every hole filled that has no way out through faces."""
    return Mask(offset=mask.offset, array=ndimage.binary_fill_holes(mask.array))


def union(masks: Sequence[Mask]) -> Mask:
    """Return one mask that holds all of them; at least one is given."""
    low = np.min([mask.offset for mask in masks], axis=0)
    high = np.max([np.add(mask.offset, mask.array.shape) for mask in masks], axis=0)
    array = np.zeros(high - low, dtype=bool)
    for mask in masks:
        start = np.subtract(mask.offset, low)
        array[tuple(slice(at, at + size) for at, size in zip(start, mask.array.shape, strict=True))] |= mask.array
    z, y, x = (int(at) for at in low)
    return Mask(offset=(z, y, x), array=array)


def mean_contrast(mask: Mask, volume: Volume) -> float:
    """Return the mean inside the mask less the mean of the shell of two voxels around it, in the volume's unit.

    Infinite when the mask fills the volume, so that it has no shell.
    """
    low = [max(0, at - _SHELL_VOXELS) for at in mask.offset]
    high = [
        min(size, at + held + _SHELL_VOXELS)
        for size, at, held in zip(volume.grid.shape, mask.offset, mask.array.shape, strict=True)
    ]
    inside = np.zeros(np.subtract(high, low), dtype=bool)
    start = np.subtract(mask.offset, low)
    inside[tuple(slice(at, at + size) for at, size in zip(start, mask.array.shape, strict=True))] = mask.array
    around = ndimage.binary_dilation(inside, iterations=_SHELL_VOXELS) & ~inside
    values = volume.array[tuple(slice(*bound) for bound in zip(low, high, strict=True))]
    if not around.any():
        return float("inf")
    return float(values[inside].mean(dtype=np.float64) - values[around].mean(dtype=np.float64))


def outline(mask: Mask, slice_index: int) -> tuple[tuple[float, float], ...]:
    """Return the outline of the mask's largest part on a slice: (column, row), voxel centres whole, last = first.

    It runs half-way between the centres of voxels inside and outside, as the surface does that `measure` measures;
    holes have no outline. Empty when the slice holds nothing.
    """
    from skimage.measure import approximate_polygon, find_contours  # a second to load; only a finding needs it

    place = slice_index - mask.offset[0]
    if not 0 <= place < mask.array.shape[0] or not mask.array[place].any():
        return ()
    # A frame of one empty pixel closes outlines at the edge of the image.
    plane = np.pad(ndimage.binary_fill_holes(mask.array[place]), 1).astype(np.float32)
    parts = find_contours(plane, 0.5, fully_connected="high")
    largest = max(parts, key=_enclosed)
    largest = approximate_polygon(largest, _COLLINEAR)
    rows = largest[:, 0] - 1 + mask.offset[1]
    columns = largest[:, 1] - 1 + mask.offset[2]
    return tuple(zip(columns.tolist(), rows.tolist(), strict=True))


def _enclosed(polygon: NDArray[np.float64]) -> float:
    """Return the area inside a closed polygon (shoelace formula)."""
    x, y = polygon[:, 1], polygon[:, 0]
    return float(abs(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2)
