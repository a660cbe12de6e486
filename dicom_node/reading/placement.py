"""Whether a lattice of voxels falls on another one, and where: permuted, flipped, cropped, never resampled.

A mask is placed by its affine alone. When it does not fall on the image's voxels, the refusal names what differs: the
directions of the axes, the distances of the voxels, or the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import GeometryError
from dicom_node.findings import Mask
from dicom_node.imaging.geometry import Affine, Grid

_TOLERANCE_VOXELS = 0.05
"""How far a corner voxel of a mask may lie from a voxel of the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How the axes of a lattice become those of a grid."""

    name: str
    """Of what is placed, for refusals."""
    sources: tuple[int, int, int]
    """For axis x, y, z of the grid: the axis (x, y, z) of the lattice that lies along it."""
    signs: tuple[int, int, int]
    """1, or -1 where that axis runs the other way."""
    start: tuple[int, int, int]
    """Voxel (x, y, z) of the grid on which the lattice's first voxel lies."""
    grid_shape: tuple[int, int, int]

    def placed(self, mask: Mask) -> Mask:
        """Return a mask of the lattice as a mask of the grid.

        Raises
        ------
        GeometryError
            When it marks voxels outside the grid.
        """
        offset_xyz, turned = mask.offset[::-1], mask.array.transpose(2, 1, 0).transpose(self.sources)
        offset = []
        for axis, (source, sign) in enumerate(zip(self.sources, self.signs, strict=True)):
            first = offset_xyz[source]
            if sign < 0:
                turned = np.flip(turned, axis)
                first = -(first + turned.shape[axis] - 1)
            offset.append(first + self.start[axis])
        array = turned.transpose(2, 1, 0)
        z, y, x = offset[::-1]
        ends = np.add((z, y, x), array.shape)
        if min(z, y, x) < 0 or np.any(ends > self.grid_shape):
            raise GeometryError(f"{self.name} marks voxels outside the image")
        return Mask(offset=(z, y, x), array=np.ascontiguousarray(array))


def place(affine_lps: Affine, shape: tuple[int, int, int], grid: Grid, name: str) -> Placement:
    """Return how a lattice, of `shape` (Z, Y, X) and with an affine as a grid has one, lies on the grid.

    Raises
    ------
    GeometryError
        When its voxels are not voxels of the grid; the reason names what differs.
    """
    if not np.all(np.isfinite(affine_lps)) or np.linalg.matrix_rank(affine_lps[:3, :3]) < 3:
        raise GeometryError(f"{name} has an affine without volume: where its voxels lie is not known")
    to_image = np.linalg.inv(grid.affine_lps) @ affine_lps
    whole = np.rint(to_image)
    corners = np.array([[x, y, z, 1] for x in (0, shape[2] - 1) for y in (0, shape[1] - 1) for z in (0, shape[0] - 1)])
    off = np.abs(corners @ (to_image - whole).T).max()
    if off > _TOLERANCE_VOXELS or not _is_axis_permutation(whole[:3, :3]):
        raise GeometryError(f"{name} is not on the image's grid: {_difference(affine_lps, shape, grid)}")
    x, y, z = (int(source) for source in np.abs(whole[:3, :3]).argmax(axis=1))
    signs = [int(whole[axis, source]) for axis, source in enumerate((x, y, z))]
    start = [int(value) for value in whole[:3, 3]]
    return Placement(
        name=name,
        sources=(x, y, z),
        signs=(signs[0], signs[1], signs[2]),
        start=(start[0], start[1], start[2]),
        grid_shape=grid.shape,
    )


def _is_axis_permutation(matrix: NDArray[np.float64]) -> bool:
    magnitude = np.abs(matrix)
    return bool(np.all(magnitude.sum(axis=0) == 1) and np.all(magnitude.sum(axis=1) == 1) and magnitude.max() == 1)


def _difference(affine_lps: Affine, shape: tuple[int, int, int], grid: Grid) -> str:
    """Return in words what keeps a lattice off the grid."""
    theirs, ours = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (affine_lps, grid.affine_lps))
    cosines = np.abs((grid.affine_lps[:3, :3] / ours).T @ (affine_lps[:3, :3] / theirs))
    orders = list(permutations(range(3)))
    along = list(orders[int(np.argmax([sum(cosines[axis, order[axis]] for axis in range(3)) for order in orders]))])
    theirs, steps = theirs[along], np.maximum(np.array(shape[::-1])[along] - 1, 1)
    said = []
    angles = np.arccos(np.clip([cosines[axis, source] for axis, source in enumerate(along)], 0, 1))
    if np.any(np.sin(angles) * theirs * steps > _TOLERANCE_VOXELS * ours.min()):
        said.append(f"directions: its axes are turned by {np.degrees(angles.max()):.2g} degrees")
    if np.any(np.abs(theirs / ours - 1) * steps > _TOLERANCE_VOXELS):
        said.append(f"spacing: its voxels are {_spacing(theirs)} apart, the image's {_spacing(ours)} (x, y, z)")
    first = grid.to_voxel(affine_lps[:3, 3])
    beside = first - np.rint(first)
    if np.any(np.abs(beside) > _TOLERANCE_VOXELS):
        shift_mm = float(np.linalg.norm(grid.affine_lps[:3, :3] @ beside))
        voxels = ", ".join(f"{value:+.2f}" for value in beside)
        said.append(f"origin: it lies {shift_mm:.2f} mm beside a voxel of the image ({voxels} voxels in x, y, z)")
    return "; ".join(said) or "small differences of directions, spacing and origin add up"


def _spacing(spacing_mm: NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.5g}" for value in spacing_mm) + " mm"
