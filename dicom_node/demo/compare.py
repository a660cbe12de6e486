"""Findings beside the truth of a phantom: which is which, and do they agree. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CENTRE_TOLERANCE_MM = 1.0
VOLUME_TOLERANCE = 0.15
"""Of the true volume; a sphere of 8 mm has some hundred voxels, whose counting alone may err by 5 %."""
SMALLEST_MM = 8.0
"""What is thinner than this in one direction may be missed, and its volume is not judged."""
SAME_WITHIN_MM = 10.0
"""A finding farther away from a true object is another thing."""

Verdict = Literal["agrees", "wrong place", "wrong volume", "not found", "nothing there", "small, not judged"]
Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One finding: where and how large."""

    number: int
    centre_lps_mm: Point
    volume_ml: float
    diameter_mm: float
    """Longest, in any direction."""
    mean: float
    """Unit of the modality."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueObject:
    """One object of the phantom, as its maker wrote it down."""

    kind: str
    """"sphere" or "ellipsoid"."""
    centre_lps_mm: Point
    volume_ml: float
    diameter_mm: float
    """Longest."""
    smallest_diameter_mm: float
    hu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What was found beside what is there; one of them may be missing."""

    found: Found | None
    true: TrueObject | None

    @property
    def centre_error_mm(self) -> float | None:
        """Return the distance between the found and the true centre."""
        if self.found is None or self.true is None:
            return None
        return math.dist(self.found.centre_lps_mm, self.true.centre_lps_mm)

    @property
    def volume_error(self) -> float | None:
        """Return (found - true) / true."""
        if self.found is None or self.true is None:
            return None
        return self.found.volume_ml / self.true.volume_ml - 1.0

    @property
    def verdict(self) -> Verdict:
        """Return in words whether found and true are the same thing within the tolerances."""
        if self.true is None:
            return "nothing there"
        is_small = self.true.smallest_diameter_mm < SMALLEST_MM
        if self.centre_error_mm is None or self.volume_error is None:
            return "small, not judged" if is_small else "not found"
        if self.centre_error_mm > CENTRE_TOLERANCE_MM:
            return "wrong place"
        if abs(self.volume_error) > VOLUME_TOLERANCE:
            return "small, not judged" if is_small else "wrong volume"
        return "agrees"

    @property
    def agrees(self) -> bool:
        """Return whether nothing is wrong with this row."""
        return self.verdict in ("agrees", "small, not judged")


def compare(found: Sequence[Found], truth: Sequence[TrueObject]) -> list[Row]:
    """Return one row per true object, in its order, with the finding that is it; then the findings that are nothing.

    Each finding is at most one object; the nearest pair is settled first.
    """
    pairs = sorted(
        (math.dist(one.centre_lps_mm, true.centre_lps_mm), i, j)
        for i, one in enumerate(found)
        for j, true in enumerate(truth)
    )
    taken: dict[int, int] = {}
    for distance_mm, i, j in pairs:
        if distance_mm <= SAME_WITHIN_MM and j not in taken and i not in taken.values():
            taken[j] = i
    rows = [Row(found=found[taken[j]] if j in taken else None, true=true) for j, true in enumerate(truth)]
    return rows + [Row(found=one, true=None) for i, one in enumerate(found) if i not in taken.values()]
