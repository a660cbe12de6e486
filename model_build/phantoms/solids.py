"""Solids of a test object: where they are, how large they are, and how much of each voxel they fill.

A solid answers one question, a signed lower bound of the distance to its surface; everything else follows from it.
Voxels that the surface cannot reach are full or empty at once, the others are divided into n x n x n points. Lengths
are mm, positions LPS, affines 4x4 voxel (x, y, z) -> LPS mm, arrays (Z, Y, X). Pure: numpy alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Points", "Rotation", "Shape", "Solid", "Vector", "occupancy", "rotation_from", "segment_distance_mm"]

Vector: TypeAlias = tuple[float, float, float]
Rotation: TypeAlias = tuple[Vector, Vector, Vector]
"""Rows of a 3x3 rotation matrix, solid's own axes -> LPS."""
Points: TypeAlias = NDArray[np.float64]
"""(..., 3)."""
Shape: TypeAlias = Literal["ellipsoid", "cylinder", "box"]

_SUBDIVISIONS = 5
"""Points along each edge of a voxel that a surface crosses: the volume of an 8 mm sphere comes out to about 0.2 %."""

_BODY_DIAGONALS = np.array([(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)], dtype=np.float64)
"""Of a unit voxel; in a sheared grid they differ in length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """A homogeneous body.

    `half_mm` are the semi-axes of an ellipsoid, (radius, radius, half length) of a cylinder, half edges of a box.
    """

    shape: Shape
    centre_lps_mm: Vector
    half_mm: Vector
    rotation: Rotation
    hu: float

    @property
    def volume_mm3(self) -> float:
        """Return the analytic volume."""
        factor = {"ellipsoid": 4 / 3 * math.pi, "cylinder": 2 * math.pi, "box": 8.0}[self.shape]
        return factor * math.prod(self.half_mm)

    @property
    def segment(self) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return a capsule that holds the solid: both ends of its axis and its radius."""
        longest = int(np.argmax(self.half_mm))
        others = [half for axis, half in enumerate(self.half_mm) if axis != longest]
        radius = max(others) if self.shape != "box" else math.hypot(*others)
        if self.shape == "ellipsoid":
            radius = max(self.half_mm)
        reach = self.half_mm[longest] if self.shape != "ellipsoid" else 0.0
        axis = np.asarray(self.rotation)[:, longest] * reach
        centre = np.asarray(self.centre_lps_mm)
        return centre - axis, centre + axis, radius

    def margin_mm(self, points_lps: Points) -> NDArray[np.float64]:
        """Return a signed bound, negative inside: the surface is at least |margin| away. Shape (...)."""
        own = (points_lps - np.asarray(self.centre_lps_mm)) @ np.asarray(self.rotation)
        half = np.asarray(self.half_mm)
        if self.shape == "ellipsoid":
            # |p / s| changes by at most 1 / min(s) per mm, so this never exceeds the distance.
            level = np.sqrt(np.einsum("...i,...i->...", own / half, own / half)) - 1.0
            return np.asarray(level * half.min(), dtype=np.float64)
        if self.shape == "cylinder":
            radial = np.hypot(own[..., 0], own[..., 1]) - half[0]
            return np.asarray(np.maximum(radial, np.abs(own[..., 2]) - half[2]), dtype=np.float64)
        return np.asarray((np.abs(own) - half).max(axis=-1), dtype=np.float64)


def occupancy(
    solid: Solid, shape: tuple[int, int, int], affine_lps: NDArray[np.float64]
) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]]:
    """Return which part of the grid the solid can reach, and the filled fraction 0..1 of each voxel in it.

    Parameters
    ----------
    shape
        (Z, Y, X) of the grid.
    affine_lps
        Of the grid; may be oblique.
    """
    window = _reached_window(solid, shape, affine_lps)
    z, y, x = np.meshgrid(*(np.arange(part.start, part.stop) for part in window), indexing="ij")
    centres = np.stack([x, y, z], axis=-1) @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    half_diagonal = float(np.linalg.norm(_BODY_DIAGONALS @ affine_lps[:3, :3].T, axis=1).max()) / 2
    margin = solid.margin_mm(centres)
    filled = (margin < 0).astype(np.float32)
    near = np.abs(margin) <= half_diagonal
    steps = (np.arange(_SUBDIVISIONS) + 0.5) / _SUBDIVISIONS - 0.5
    hits = np.zeros(int(np.count_nonzero(near)), dtype=np.float32)
    at_surface = centres[near]
    for offset in np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) @ affine_lps[:3, :3].T:
        hits += solid.margin_mm(at_surface + offset) < 0
    filled[near] = hits / _SUBDIVISIONS**3
    return window, filled


def _reached_window(
    solid: Solid, shape: tuple[int, int, int], affine_lps: NDArray[np.float64]
) -> tuple[slice, slice, slice]:
    """Return the slices (z, y, x) of the grid that hold every voxel the solid may touch."""
    own_corners = np.array(np.meshgrid(*([-1, 1],) * 3)).reshape(3, -1).T * np.asarray(solid.half_mm)
    corners = own_corners @ np.asarray(solid.rotation).T + np.asarray(solid.centre_lps_mm)
    voxels = (corners - affine_lps[:3, 3]) @ np.linalg.inv(affine_lps[:3, :3]).T
    low = np.floor(voxels.min(axis=0) - 0.5)[::-1]
    high = np.ceil(voxels.max(axis=0) + 0.5)[::-1]
    bounds = [
        slice(max(0, min(int(start), size)), max(0, min(int(stop) + 1, size)))
        for start, stop, size in zip(low, high, shape, strict=True)
    ]
    return bounds[0], bounds[1], bounds[2]


def segment_distance_mm(first: Solid, second: Solid) -> float:
    """Return a lower estimate of the gap between two solids, from the capsules that hold them."""
    a_start, a_end, a_radius = first.segment
    b_start, b_end, b_radius = second.segment
    along = np.linspace(0.0, 1.0, 25)[:, None]
    a_points, b_points = a_start + along * (a_end - a_start), b_start + along * (b_end - b_start)
    distances = np.linalg.norm(a_points[:, None] - b_points[None], axis=-1)
    return float(distances.min()) - a_radius - b_radius


def rotation_from(quaternion: NDArray[np.float64]) -> Rotation:
    """Return the rotation of a quaternion (w, x, y, z) of any length but zero.

    Four independent normal numbers give every rotation with equal chance.
    """
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return (
        (float(1 - 2 * (y * y + z * z)), float(2 * (x * y - w * z)), float(2 * (x * z + w * y))),
        (float(2 * (x * y + w * z)), float(1 - 2 * (x * x + z * z)), float(2 * (y * z - w * x))),
        (float(2 * (x * z - w * y)), float(2 * (y * z + w * x)), float(1 - 2 * (x * x + y * y))),
    )
