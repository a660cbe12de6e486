"""How well two masks agree: Dice, 95 % Hausdorff distance, surface Dice; and how well two volumes do. Pure.

Surfaces are those voxels of a mask that have a neighbour outside it (six neighbours, the edge of the grid counts as
outside); distances are taken between their centres in mm. The grid may be oblique; a sheared grid is measured along
its own axes as if they were right-angled.

Sources: Dice 1945; Huttenlocher 1993 (95th percentile of both directed distances, the larger one); Nikolov 2018
(surface Dice, here with a count of surface voxels for the area); Bland & Altman 1986.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

__all__ = ["Agreement", "bland_altman", "dice", "hausdorff_95_mm", "surface_dice", "surface_distances_mm"]

BoolArray = NDArray[np.bool_]
Spacing = tuple[float, float, float]


def dice(first: BoolArray, second: BoolArray) -> float:
    """Return 2 |A and B| / (|A| + |B|); nan when both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")


def surface_distances_mm(
    first: BoolArray, second: BoolArray, spacing_mm: Spacing
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each surface voxel of the first its distance to the surface of the second, and the other way round.

    Raises
    ------
    ValueError
        When a mask is empty: there is no surface to be near to.
    """
    if not first.any() or not second.any():
        raise ValueError("an empty mask has no surface")
    box = _box_of(first | second)
    one, two = (_surface(np.pad(mask[box], 1)) for mask in (first, second))
    to_two, to_one = (distance_transform_edt(~surface, sampling=spacing_mm) for surface in (two, one))
    return np.asarray(to_two[one], dtype=np.float64), np.asarray(to_one[two], dtype=np.float64)


def hausdorff_95_mm(first: BoolArray, second: BoolArray, spacing_mm: Spacing) -> float:
    """Return the larger 95th percentile of both directed distances; nan when both are empty, inf when one is."""
    if not first.any() or not second.any():
        return float("nan") if first.any() == second.any() else float("inf")
    return max(float(np.percentile(d, 95)) for d in surface_distances_mm(first, second, spacing_mm))


def surface_dice(first: BoolArray, second: BoolArray, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Return the share of both surfaces that lies within the tolerance of the other; nan when both are empty."""
    if not first.any() or not second.any():
        return float("nan") if first.any() == second.any() else 0.0
    there, back = surface_distances_mm(first, second, spacing_mm)
    # A hair: 3 voxels of 0.7 mm are 2.0999999999999996 mm.
    near = (there <= tolerance_mm + 1e-9).sum() + (back <= tolerance_mm + 1e-9).sum()
    return float(near) / (len(there) + len(back))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Bland and Altman's: the mean difference and where 95 % of the differences lie; in the unit of the values."""

    bias: float
    sd: float
    """Of the differences, n - 1."""
    low: float
    high: float
    """bias -+ 1.96 sd."""
    n: int


def bland_altman(measured: NDArray[np.float64], true: NDArray[np.float64], *, relative: bool = False) -> Agreement:
    """Return how measured values agree with true ones.

    Parameters
    ----------
    relative
        Differences as a share of the truth; the truth is above 0.

    Raises
    ------
    ValueError
        Fewer than two pairs, or a truth of 0 where shares are asked for.
    """
    measured, true = np.asarray(measured, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if len(measured) != len(true) or len(true) < 2:
        raise ValueError(f"two or more pairs are needed, not {len(measured)} and {len(true)} values")
    if relative and true.min() <= 0:
        raise ValueError("a share of a truth that is not above 0")
    difference = (measured - true) / (true if relative else 1.0)
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    return Agreement(bias=bias, sd=sd, low=bias - 1.96 * sd, high=bias + 1.96 * sd, n=len(difference))


def _surface(mask: BoolArray) -> BoolArray:
    return np.asarray(mask & ~binary_erosion(mask))


def _box_of(mask: BoolArray) -> tuple[slice, ...]:
    """Return the bounding box of a mask that is not empty: transforms of the whole volume would cost seconds."""
    box = []
    for axis in range(mask.ndim):
        used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(used[0]), int(used[-1]) + 1))
    return tuple(box)
