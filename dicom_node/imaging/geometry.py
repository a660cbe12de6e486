"""Grids in patient space: the affine between voxels and millimetres, always from positions.

Two orders meet here and are never mixed: arrays are indexed ``[z, y, x]`` (slice, row, column); affines map voxel
coordinates ``(x, y, z, 1)`` (column, row, slice) to LPS millimetres. A tilted stack keeps its sheared affine.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Affine: TypeAlias = NDArray[np.float64]
"""4x4, voxel (x, y, z) -> LPS mm."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """A regular, possibly oblique or sheared, lattice of voxels.

    `affine_lps` is 4x4 float64 and maps voxel (x, y, z) to the LPS position in mm of the voxel's centre.
    """

    shape: tuple[int, int, int]
    """(Z, Y, X)."""
    affine_lps: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distances (z, y, x) between the planes of a right-angled grid; lengths of the axes for a sheared one."""
        x, y, z = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_volume_mm3(self) -> float:
        """Return the volume of one voxel, shear included, in mm3."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3])))

    def to_world(self, voxels_xyz: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return LPS positions in mm, shape (..., 3), of voxel coordinates (..., 3) in x, y, z order."""
        return np.asarray(voxels_xyz) @ self.affine_lps[:3, :3].T + self.affine_lps[:3, 3]

    def to_voxel(self, positions_lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return voxel coordinates (..., 3) in x, y, z order of LPS positions in mm (..., 3)."""
        inverse = np.linalg.inv(self.affine_lps)
        return np.asarray(positions_lps_mm) @ inverse[:3, :3].T + inverse[:3, 3]
