"""The simple way to find lung nodules: a threshold and a sphericity. What a network must beat. Pure.

The lung is the air within the body, each slice's holes filled; what is denser than a threshold in it and about as wide
as it is long is a nodule. It knows no pleural nodules (the hole is open) and takes vessels across for nodules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.imaging.volume import Volume
from model_build.evaluation.detection import Detection

__all__ = ["find_by_threshold"]

LUNG_BELOW_HU, NODULE_ABOVE_HU = -500.0, -500.0
LEAST_MM3, MOST_MM3 = 30.0, 20_000.0
LEAST_SPHERICITY = 0.6
"""Diameter of the ball of the same volume over the longest extent along an axis."""
_LUNG_ML = 200.0


def find_by_threshold(volume: Volume) -> list[Detection]:
    """Return what is dense and about round in the lungs; the confidence is the sphericity."""
    lungs = _filled_lungs(volume)
    dense = lungs & (volume.array > NODULE_ABOVE_HU)
    labels, _ = ndimage.label(dense)
    counts = np.bincount(labels.ravel())
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        mm3 = counts[number] * volume.grid.voxel_volume_mm3
        if box is None or not LEAST_MM3 <= mm3 <= MOST_MM3:
            continue
        extent = max((part.stop - part.start) * step for part, step in zip(box, volume.grid.spacing_mm, strict=True))
        sphericity = (6 * mm3 / np.pi) ** (1 / 3) / extent
        if sphericity < LEAST_SPHERICITY:
            continue
        centre = np.argwhere(labels[box] == number).mean(axis=0) + [part.start for part in box]
        x, y, z = (float(value) for value in volume.grid.to_world(centre[::-1]))
        found.append(Detection(centre_lps_mm=(x, y, z), volume_ml=mm3 / 1000, confidence=float(sphericity)))
    return found


def _filled_lungs(volume: Volume) -> NDArray[np.bool_]:
    """Return the air that does not reach the sides of the image, in large pieces, holes of each slice filled."""
    labels, _ = ndimage.label(volume.array < LUNG_BELOW_HU)
    sides = [labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]]
    counts = np.bincount(labels.ravel()) * volume.grid.voxel_volume_mm3 / 1000
    keep = counts >= _LUNG_ML
    keep[np.unique(np.concatenate([side.ravel() for side in sides]))] = False
    keep[0] = False
    lungs = keep[labels]
    for plane in lungs:
        plane[:] = ndimage.binary_fill_holes(plane)
    return np.asarray(lungs, dtype=np.bool_)
