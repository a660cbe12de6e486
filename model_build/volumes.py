"""Arrays that did not come from DICOM as the volumes that `predict` and `prepare` take: phantoms and NIfTI images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.volume import Volume
from dicom_node.study import Frame

__all__ = ["volume_from_array"]


def volume_from_array(array: NDArray[np.float32], affine_lps: NDArray[np.float64], *, modality: str) -> Volume:
    """Return an array (Z, Y, X) with its affine, voxel (x, y, z) -> LPS mm, as a volume.

    A volume of the node is right-handed, slices sorted along row x column: a left-handed one (NIfTI often is) is turned
    over, slices and affine together. Frames have UIDs that name nothing.
    """
    array, affine = np.asarray(array, dtype=np.float32), np.asarray(affine_lps, dtype=np.float64)
    if np.linalg.det(affine[:3, :3]) < 0:
        array = array[::-1]
        turned = affine.copy()
        turned[:3, 2] = -affine[:3, 2]
        turned[:3, 3] = affine[:3, 3] + (array.shape[0] - 1) * affine[:3, 2]
        affine = turned
    z, y, x = array.shape
    axes = affine[:3, :3]
    along_row, down_column = (axes[:, axis] / np.linalg.norm(axes[:, axis]) for axis in (0, 1))
    frames = tuple(
        Frame(
            sop_instance_uid=f"2.25.{index + 1}",
            frame_number=1,
            position_mm=tuple(affine[:3, 3] + index * axes[:, 2]),
            orientation=(*along_row, *down_column),
            pixel_spacing_mm=(float(np.linalg.norm(axes[:, 1])), float(np.linalg.norm(axes[:, 0]))),
            rows=y,
            columns=x,
            frame_of_reference_uid=None,
        )
        for index in range(z)
    )
    return Volume(array=array, grid=Grid(shape=(z, y, x), affine_lps=affine), frames=frames, modality=modality)
