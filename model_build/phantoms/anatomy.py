"""A chest as signed distances: body, lungs, heart, ribs, spine, airways, table, and a tree of vessels. Pure.

Nothing here is a patient: shapes are simple bodies whose sizes vary from study to study, made to confuse a detector in
the ways a chest does (vessels in cross-section, fissures, scars, costal cartilage), not to teach anatomy. LPS, mm: x to
the left, y to the back, z to the head; the origin lies between the lungs, at the height of the diaphragm's domes.
Every distance is a signed bound, negative inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anatomy", "Capsule", "clearance_mm", "random_anatomy", "random_vessels"]

Points: TypeAlias = NDArray[np.float64]
Distance: TypeAlias = Callable[[Points], NDArray[np.float64]]

RIB_STEP_MM = 25.0
_ROOT_MM = 5.0
"""Radius of a vessel at the hilum."""
_MURRAY = 2.7
"""Radius of a branch: the root's times its share of all ends to 1 / 2.7 (Murray's law has 3, lungs about 2.7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """A piece of a vessel, a scar, a dot: a segment with a radius."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius_mm: float
    hu: float

    def margin_mm(self, points: Points) -> NDArray[np.float64]:
        """Return the signed distance to the surface."""
        start = np.asarray(self.start)
        along = np.asarray(self.end) - start
        length = float(along @ along)
        own = points - start
        place = np.clip(own @ along / length, 0.0, 1.0) if length else np.zeros(points.shape[:-1])
        return np.asarray(np.linalg.norm(own - place[..., None] * along, axis=-1) - self.radius_mm)


def clearance_mm(pieces: Sequence[Capsule], point: NDArray[np.float64]) -> float:
    """Return the signed distance from a point to the nearest of many pieces."""
    starts = np.array([each.start for each in pieces])
    along = np.array([each.end for each in pieces]) - starts
    lengths = np.maximum((along * along).sum(axis=1), 1e-12)
    place = np.clip(((point - starts) * along).sum(axis=1) / lengths, 0.0, 1.0)
    gaps = np.linalg.norm(point - starts - place[:, None] * along, axis=1)
    return float((gaps - np.array([each.radius_mm for each in pieces])).min())


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """The sizes of one chest, in mm."""

    half_width: float
    half_depth: float
    fat: float
    height: float
    """Of the lungs above the domes."""
    dome: float
    """How high the diaphragm rises above its rim."""
    heart: tuple[float, float, float]
    """Semi-axes."""
    rib_phase: float
    rib_slope: float
    fissure: tuple[float, float]
    """Height of the oblique fissures at y = 0, right and left."""
    lung_hu: float
    gravity_hu: float
    """From front to back."""

    @property
    def box_mm(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Return what is imaged, (low, high) along z, y, x."""
        return (
            (-self.dome - 12.0, self.height + 8.0),
            (-self.half_depth - 8.0, self.half_depth + 26.0),
            (-self.half_width - 8.0, self.half_width + 8.0),
        )

    def body(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the skin."""
        return self._oval(points, 0.0)

    def muscle(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the inner border of the fat under the skin."""
        return self._oval(points, self.fat)

    def cavity(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the inside of the ribs: an oval that closes towards the apex."""
        z = np.clip(points[..., 2] / self.height, 0.0, 1.0)
        narrow = (1 - 0.96 * z**3.2) ** 0.5
        wide, deep = (half - self.fat - 22 for half in (self.half_width, self.half_depth))
        level = np.sqrt((points[..., 0] / wide) ** 2 + (points[..., 1] / deep) ** 2)
        return np.asarray((level - narrow) * min(wide, deep))

    def lungs(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the pleura: the cavity without mediastinum, heart, spine and what the domes hold."""
        x, y, z = (points[..., axis] for axis in range(3))
        wide = self.half_width - self.fat - 22
        side = np.abs(x) - 0.52 * wide
        heart, spine = self.heart_margin(points), self.spine(points)
        dome = -self.dome * ((side / (0.55 * wide)) ** 2 + (y / self.half_depth) ** 2)
        mediastinum = 22 + 8 * np.cos(y / 40) - np.abs(x)
        cavity = self.cavity(points)
        return np.asarray(np.maximum.reduce([cavity, 0.8 * (dome - z), mediastinum, -heart, 4 - spine]))

    def heart_margin(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the heart."""
        centre = np.array([22.0, -0.3 * self.half_depth, 38.0])
        level = np.sqrt((((points - centre) / self.heart) ** 2).sum(axis=-1))
        return np.asarray((level - 1) * min(self.heart))

    def spine(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the column of vertebrae."""
        level = np.sqrt((points[..., 0] / 19) ** 2 + ((points[..., 1] - 0.62 * self.half_depth) / 16) ** 2)
        return np.asarray((level - 1) * 16)

    def vertebrae(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the bone of the column: it is interrupted by discs of 5 mm."""
        between = 12.5 - np.abs((points[..., 2] + self.rib_phase) % RIB_STEP_MM - RIB_STEP_MM / 2)
        return np.asarray(np.maximum(self.spine(points), 2.5 - between))

    def ribs(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the ribs: sloping hoops outside the cavity, open in front."""
        height = points[..., 2] + self.rib_slope * points[..., 1] + self.rib_phase
        beside = np.abs(height % RIB_STEP_MM - RIB_STEP_MM / 2)
        across = self.cavity(points) - 7.0
        front = (-0.55 * self.half_depth - points[..., 1]) * (np.abs(points[..., 0]) < 0.45 * self.half_width)
        return np.asarray(np.maximum(np.hypot(beside / 1.3, across) - 4.2, front))

    def sternum(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the sternum."""
        y = points[..., 1] + self.half_depth - self.fat - 13
        return np.asarray(np.maximum(np.abs(points[..., 0]) - 18, np.abs(y) - 5))

    def aorta(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the descending aorta."""
        return np.asarray(np.hypot(points[..., 0] - 20, points[..., 1] - 0.4 * self.half_depth) - 11)

    def airways(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the lumen of trachea and main bronchi."""
        carina = (0.0, 6.0, 0.62 * self.height)
        pieces = [Capsule(start=carina, end=(0.0, 0.0, self.height + 40), radius_mm=7.5, hu=0)]
        pieces += [
            Capsule(start=carina, end=(side * 34.0, 8.0, 0.62 * self.height - 26), radius_mm=5.0, hu=0)
            for side in (-1, 1)
        ]
        return np.asarray(np.minimum.reduce([piece.margin_mm(points) for piece in pieces]))

    def table(self, points: Points) -> NDArray[np.float64]:
        """Return the distance to the table, a curved plate behind the back."""
        bend = (points[..., 0] / self.half_width) ** 2 * 8
        return np.asarray(np.abs(points[..., 1] + bend - self.half_depth - 15) - 4)

    def fissures(self, points: Points) -> NDArray[np.float64]:
        """Return the signed side of the oblique fissures: 0 on them, not a distance to a body."""
        x, y, z = (points[..., axis] for axis in range(3))
        at = np.where(x < 0, *self.fissure)
        return np.asarray((z - at - 0.9 * y - 6 * np.sin(x / 30)) / 1.35)

    def hilum(self, side: int) -> NDArray[np.float64]:
        """Return where the vessels of a lung begin; side -1 is the right lung."""
        return np.array([side * 33.0, 10.0, 0.45 * self.height])

    def _oval(self, points: Points, inside: float) -> NDArray[np.float64]:
        wide, deep = self.half_width - inside, self.half_depth - inside
        level = (np.abs(points[..., 0] / wide) ** 2.5 + np.abs(points[..., 1] / deep) ** 2.5) ** 0.4
        return np.asarray((level - 1) * deep)


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    """Return the sizes of one chest."""
    depth = rng.uniform(98, 118)
    return Anatomy(
        half_width=float(depth * rng.uniform(1.4, 1.55)),
        half_depth=float(depth),
        fat=float(rng.uniform(6, 16)),
        height=float(rng.uniform(170, 205)),
        dome=float(rng.uniform(30, 45)),
        heart=(float(rng.uniform(46, 58)), float(rng.uniform(36, 44)), float(rng.uniform(46, 58))),
        rib_phase=float(rng.uniform(0, RIB_STEP_MM)),
        rib_slope=float(rng.uniform(-0.55, -0.35)),
        fissure=(float(rng.uniform(60, 85)), float(rng.uniform(65, 90))),
        lung_hu=float(rng.uniform(-880, -820)),
        gravity_hu=float(rng.uniform(30, 90)),
    )


def random_vessels(rng: np.random.Generator, anatomy: Anatomy, ends: int = 260) -> list[Capsule]:
    """Return the vessels of both lungs: trees that fill them, each with so many ends.

    The ends are drawn first; a branch runs part of the way to the middle of its ends, then parts them in two across
    their longest extent (Wang 1992, after Tawhai).
    """
    pieces: list[Capsule] = []
    for side in (-1, 1):
        root = anatomy.hilum(side)
        targets = points_in(rng, anatomy.lungs, anatomy, ends, deeper_mm=5.0, side=side)
        waiting = [(root, targets)]
        while waiting:
            start, group = waiting.pop()
            share = (len(group) / ends) ** (1 / _MURRAY)
            is_last = len(group) == 1
            reach = 1.0 if is_last else float(rng.uniform(0.35, 0.5))
            end = start + reach * (group.mean(axis=0) - start) + rng.normal(0, 0.0 if is_last else 1.5, 3)
            pieces.append(
                Capsule(
                    start=_vector(start), end=_vector(end), radius_mm=_ROOT_MM * share, hu=float(rng.uniform(25, 60))
                )
            )
            if not is_last:
                spread = group - group.mean(axis=0)
                axis = np.linalg.svd(spread, full_matrices=False)[2][0] if len(group) > 2 else spread[0]
                order = np.argsort(spread @ axis, kind="stable")
                middle = len(group) // 2
                waiting += [(end, group[order[:middle]]), (end, group[order[middle:]])]
    return pieces


def points_in(
    rng: np.random.Generator, inside: Distance, anatomy: Anatomy, n: int, *, deeper_mm: float = 0.0, side: int = 0
) -> Points:
    """Return n random points at least so deep inside a body, in one half of the chest unless `side` is 0."""
    found = np.zeros((0, 3))
    low, high = (np.array([axis[end] for axis in anatomy.box_mm])[::-1] for end in (0, 1))
    while len(found) < n:
        points = rng.uniform(low, high, (4 * n + 200, 3))
        keep = (inside(points) < -deeper_mm) & ((side == 0) | (np.sign(points[:, 0]) == side))
        found = np.concatenate([found, points[keep]])
    return found[:n]


def _vector(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
