"""Label maps and contours -> masks, each cropped to what it holds.

A volume has a hundred labels, or contours on a hundred slices; one array of the whole grid for each would take
gigabytes. Pure arrays: where they lie in the patient is `reading`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import Mask
from dicom_node.imaging.mask import crop_mask, union

_MOST_DIRECT_LABEL = 1 << 16
"""Larger ones are numbered anew first: scipy lists every number up to the largest."""


def split_labels(labels: NDArray[Any]) -> dict[int, Mask]:
    """Return the mask of every label but 0, in the order of the labels.

    `labels` is an integer array, axes (Z, Y, X); negative labels are labels too.
    """
    labels = np.asarray(labels, dtype=labels.dtype.newbyteorder("="))
    names: Sequence[int] | None = None
    if labels.size and (labels.min() < 0 or labels.max() > _MOST_DIRECT_LABEL):
        found, inverse = np.unique(labels, return_inverse=True)
        names = [0, *(int(label) for label in found)]
        labels = np.where(labels == 0, 0, inverse.reshape(labels.shape) + 1)
    masks = {}
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        if box is not None:
            z, y, x = (part.start for part in box)
            masks[number if names is None else names[number]] = Mask(offset=(z, y, x), array=labels[box] == number)
    return masks


def from_contours(contours: Mapping[int, Iterable[NDArray[np.float64]]]) -> Mask | None:
    """Return the mask of the voxels whose centres lie inside closed contours; None when there is none.

    Inside is decided by the even-odd rule over all contours of a slice, so a contour inside another one is a hole, and
    a contour that runs into a hole and back along one line (a keyhole) has one too. A centre on a left or upper edge is
    inside, one on a right or lower edge is not, so that neighbours share no voxel.

    Parameters
    ----------
    contours
        By slice index: corners (n, 2), (column, row), voxel centres being whole numbers; they close by themselves.
        Offsets may be negative: what lies outside the image is the caller's matter.
    """
    pieces = [
        Mask(offset=(place, *piece.offset[1:]), array=piece.array)
        for place, polygons in sorted(contours.items())
        if (piece := _filled(list(polygons))) is not None
    ]
    return union(pieces) if pieces else None


def _filled(polygons: Sequence[NDArray[np.float64]]) -> Mask | None:
    """Return one slice of a mask, by the crossings of every row of voxel centres with the edges."""
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    upwards = start[:, 1] > end[:, 1]
    upper = np.where(upwards[:, None], end, start)
    lower = np.where(upwards[:, None], start, end)
    first = np.ceil(upper[:, 1]).astype(np.intp)
    n_rows = np.ceil(lower[:, 1]).astype(np.intp) - first  # rows r with upper <= r < lower
    crossed = n_rows > 0
    if not crossed.any():
        return None
    edge = np.repeat(np.flatnonzero(crossed), n_rows[crossed])
    within = np.arange(len(edge)) - np.repeat(np.cumsum(n_rows[crossed]) - n_rows[crossed], n_rows[crossed])
    row = first[edge] + within
    part = (row - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
    column = np.ceil(upper[edge, 0] + part * (lower[edge, 0] - upper[edge, 0])).astype(np.intp)
    y, x = int(row.min()), int(column.min())
    crossings = np.zeros((int(row.max()) - y + 1, int(column.max()) - x + 1), dtype=np.intp)
    np.add.at(crossings, (row - y, column - x), 1)
    return crop_mask((np.cumsum(crossings, axis=1) % 2 == 1)[None], (0, y, x))
