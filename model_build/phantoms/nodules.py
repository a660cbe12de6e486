"""Lung nodules of known shape: a ball with a few low waves on its surface, solid or with a solid core. Pure.

The surface is a star: in direction u, in the nodule's own axes, it lies at ``radius * w(u)`` with ``w`` a sum of low
spherical waves about 1. What is not in the lung is not nodule: a pleural one ends at the pleura, since nobody can see
where in the chest wall it would go on. Truth is counted by supersampling, on any grid. Lengths mm, positions LPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from model_build.phantoms.solids import Rotation, Vector

__all__ = ["Attachment", "Nodule", "Texture", "nodule_parts", "random_nodule", "sampled"]

Texture: TypeAlias = Literal["solid", "part_solid"]
Attachment: TypeAlias = Literal["free", "pleural", "vessel"]
Points: TypeAlias = NDArray[np.float64]
Inside: TypeAlias = Callable[[Points], NDArray[np.float64]]
"""Points (..., 3) -> signed distance, negative inside."""

_FINE = 24
"""Points along the longest diameter of a nodule when its own volume is counted: 0.3 % of the volume of a ball."""
_SUBDIVISIONS = 4
"""Points along each edge of a voxel that a surface crosses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodule:
    """What must be found; `volume_ml` and `centre_lps_mm` are those of the part within the lung."""

    number: int
    """1-based, the largest first."""
    texture: Texture
    attachment: Attachment
    centre_lps_mm: Vector
    """Centroid of the part within the lung."""
    volume_ml: float
    origin_lps_mm: Vector
    """From where the star's surface is measured."""
    radii_mm: Vector
    """Semi-axes of the ball that waves are laid on."""
    rotation: Rotation
    waves: tuple[tuple[float, Vector], ...]
    """(amplitude, direction) of each wave, amplitude as a share of the radius."""
    hu: float
    core_share: float
    """Diameter of the solid core over that of the nodule; 0: none."""
    core_hu: float

    @property
    def kind(self) -> str:
        """Return texture and attachment in one word, for tables."""
        return f"{self.texture}/{self.attachment}"

    @property
    def diameter_mm(self) -> float:
        """Return the diameter of the ball of the same volume."""
        return float(2 * (3 * self.volume_ml * 1000 / (4 * np.pi)) ** (1 / 3))

    @property
    def reach_mm(self) -> float:
        """Return a radius about the origin that holds all of it."""
        return max(self.radii_mm) * (1 + sum(abs(amplitude) for amplitude, _ in self.waves))

    def margin_mm(self, points_lps: Points, share: float = 1.0) -> NDArray[np.float64]:
        """Return about the signed distance to the surface, negative inside, of the nodule shrunk by `share`."""
        own = (points_lps - np.asarray(self.origin_lps_mm)) @ np.asarray(self.rotation)
        level = np.sqrt(((own / self.radii_mm) ** 2).sum(axis=-1))
        direction = own / np.maximum(np.linalg.norm(own, axis=-1, keepdims=True), 1e-9)
        surface = np.ones(level.shape)
        for amplitude, axis in self.waves:
            along = direction @ np.asarray(axis)
            surface += amplitude * (3 * along * along - 1) * along
        return np.asarray((level - share * surface) * min(self.radii_mm))


def random_nodule(
    rng: np.random.Generator, diameter_mm: float, texture: Texture, attachment: Attachment, rotation: Rotation
) -> Nodule:
    """Return a nodule at the origin that is not measured yet; a part-solid one is at least 8 mm, or it has no core."""
    stretch = np.exp(rng.uniform(-0.16, 0.16, 3))
    radii = diameter_mm / 2 * stretch / np.prod(stretch) ** (1 / 3)
    waves = []
    for _ in range(3):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        waves.append((float(rng.uniform(-0.06, 0.06)), _vector(axis)))
    is_solid = texture == "solid"
    return Nodule(
        number=0,
        texture=texture,
        attachment=attachment,
        centre_lps_mm=(0.0, 0.0, 0.0),
        volume_ml=float(np.pi / 6 * diameter_mm**3 / 1000),
        origin_lps_mm=(0.0, 0.0, 0.0),
        radii_mm=_vector(radii),
        rotation=rotation,
        waves=tuple(waves),
        hu=float(rng.uniform(-30, 70) if is_solid else rng.uniform(-600, -400)),
        core_share=0.0 if is_solid else float(rng.uniform(0.35, 0.65)),
        core_hu=float(rng.uniform(-20, 50)),
    )


def sampled(nodule: Nodule, lung: Inside) -> tuple[float, Vector, float]:
    """Return volume in ml and centroid of the part within the lung, and that part's share of the whole."""
    reach = nodule.reach_mm
    steps = (np.arange(_FINE) + 0.5) / _FINE * 2 * reach - reach
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points = points + np.asarray(nodule.origin_lps_mm)
    inside = points[nodule.margin_mm(points) < 0]
    seen = inside[lung(inside) < 0]
    if not len(seen):
        return 0.0, nodule.origin_lps_mm, 0.0
    return len(seen) * (2 * reach / _FINE) ** 3 / 1000, _vector(seen.mean(axis=0)), len(seen) / len(inside)


def nodule_parts(
    nodule: Nodule, lung: Inside, shape: tuple[int, int, int], affine_lps: NDArray[np.float64]
) -> tuple[tuple[slice, slice, slice], NDArray[np.float32], NDArray[np.float32]]:
    """Return a window of the grid (Z, Y, X), and in it the shares 0..1 of the nodule and of its core in each voxel."""
    inverse = np.linalg.inv(affine_lps[:3, :3])
    middle = (np.asarray(nodule.origin_lps_mm) - affine_lps[:3, 3]) @ inverse.T
    half = nodule.reach_mm * np.linalg.norm(inverse, axis=1) + 1
    low, high = np.floor(middle - half)[::-1].astype(int), np.ceil(middle + half)[::-1].astype(int) + 1
    z, y, x = (slice(max(0, a), max(0, min(b, n))) for a, b, n in zip(low, high, shape, strict=True))
    grid = np.meshgrid(*(np.arange(part.start, part.stop) for part in (z, y, x)), indexing="ij")
    centres = np.stack(grid[::-1], axis=-1) @ affine_lps[:3, :3].T + affine_lps[:3, 3]
    whole, core = np.zeros(centres.shape[:3], np.float32), np.zeros(centres.shape[:3], np.float32)
    diagonal = float(np.linalg.norm(affine_lps[:3, :3], axis=0).sum())
    near = nodule.margin_mm(centres) < diagonal
    at = centres[near]
    steps = (np.arange(_SUBDIVISIONS) + 0.5) / _SUBDIVISIONS - 0.5
    offsets = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) @ affine_lps[:3, :3].T
    hits, core_hits = np.zeros(len(at), np.float32), np.zeros(len(at), np.float32)
    for offset in offsets:
        points = at + offset
        is_lung = lung(points) < 0
        hits += (nodule.margin_mm(points) < 0) & is_lung
        if nodule.core_share:
            core_hits += (nodule.margin_mm(points, nodule.core_share) < 0) & is_lung
    whole[near], core[near] = hits / len(offsets), core_hits / len(offsets)
    return (z, y, x), whole, core


def _vector(values: NDArray[np.float64]) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
