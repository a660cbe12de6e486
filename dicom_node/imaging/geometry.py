"""Grids in patient space: the affine between voxels and millimetres, always from positions.

Two orders meet here and are never mixed: arrays are indexed ``[z, y, x]`` (slice, row, column); affines map voxel
coordinates ``(x, y, z, 1)`` (column, row, slice) to LPS millimetres. A tilted stack keeps its sheared affine. Slices
are sorted along the normal, so z grows along row x column and every affine made here is right-handed; no plane is ever
flipped by its name.

Tolerances. Scanners round: positions to 0.01 mm and sometimes to 0.1 mm, cosines to four digits and more. A position
may lie off the regular grid by 5 % of the slice distance or by `POSITION_TOLERANCE_MM`, whichever is larger; a missing
slice lies off by 50 % and more. Two positions are one when they differ by less than a rounding (`same_position_mm`).

A missing slice leaves an empty place on the lattice. Whether it may be filled is the caller's policy; the lattice is
that of the slices that are there. Distances that vary otherwise are refused, with each distance that was seen.

Sources: DICOM PS3.3 C.7.6.2.1.1 (Image Position and Orientation), 10.7.1.1 (Pixel Spacing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import GeometryError
from dicom_node.study import Frame

POSITION_TOLERANCE_MM = 0.02
"""How far a position may lie off the regular grid whatever the slice distance: twice a rounding to 0.01 mm."""
POSITION_TOLERANCE_FRACTION = 0.05
"""The same as a part of the slice distance."""
SAME_POSITION_MM = 1e-3
"""Positions closer than this along the normal are one position, whatever the slice distance."""
COSINE_TOLERANCE = 1e-3
"""Of orientations between frames and of length and right angle within one: 0.06 degrees."""
SPACING_TOLERANCE = 1e-3
"""Relative, of Pixel Spacing between frames."""
_FEW_DISTANCES = 4
"""Distances that a reason lists one by one."""

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
        """Return the distances (z, y, x) between voxels along the axes; of a right-angled grid those between planes."""
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
        voxels: NDArray[np.float64] = np.asarray(positions_lps_mm) @ inverse[:3, :3].T + inverse[:3, 3]
        return voxels


def grid_from_frames(frames: Sequence[Frame], *, missing_slices: int = 0) -> tuple[Grid, tuple[int | None, ...]]:
    """Return the grid on which the frames lie, and the order that sorts them along the normal.

    Parameters
    ----------
    frames
        At least two, in any order.
    missing_slices
        How many missing slices, in all, may leave their place on the grid empty.

    Returns
    -------
    Grid
        Shape (Z, Y, X); the affine has the first position and the mean step between positions, so an oblique or
        sheared stack keeps its own axes.
    tuple of int or None
        ``frames[order[z]]`` is slice z, None where it is missing; the position along row x column grows with z.

    Raises
    ------
    GeometryError
        When the frames are fewer than two, differ in size, spacing, orientation or Frame of Reference, share a
        position, leave out more slices, or lie at irregular distances; the reason names where and what differs.
    """
    if not frames:
        raise GeometryError("no frame has a position in patient space (Image Position and Orientation are missing)")
    if len(frames) == 1:
        raise GeometryError("a single slice does not make a volume; at least two slices are needed")
    _check_uniform(frames)
    row, column, normal = _axes(frames[0])
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    slices = [frames[i] for i in order]
    places = _places(slices, along[order], missing_slices)
    step = _regular_step(slices, positions[order], places)
    found: list[int | None] = [None] * (int(places[-1]) + 1)
    for place, index in zip(places, order, strict=True):
        found[int(place)] = int(index)
    affine = _affine(frames[0], (row, column, step), positions[order[0]])
    return Grid(shape=(len(found), frames[0].rows, frames[0].columns), affine_lps=affine), tuple(found)


def single_slice_grid(frame: Frame, thickness_mm: float) -> Grid:
    """Return the grid (1, Y, X) of one slice; `thickness_mm` is a hint of the header, for one position has no distance.

    Raises
    ------
    GeometryError
        When the frame has no right-angled orientation, or no spacing.
    """
    _check_uniform([frame])
    row, column, normal = _axes(frame)
    affine = _affine(frame, (row, column, normal * thickness_mm), np.array(frame.position_mm))
    return Grid(shape=(1, frame.rows, frame.columns), affine_lps=affine)


def frame_between(before: Frame, grid: Grid, z: int) -> Frame:
    """Return the frame of slice z, which no image shows: where it would lie, and no instance."""
    x, y, z_mm = grid.to_world(np.array([0.0, 0.0, float(z)]))
    return replace(
        before,
        sop_instance_uid="",
        frame_number=0,
        position_mm=(float(x), float(y), float(z_mm)),
        stack=(),
        interpolated=True,
    )


def same_position_mm(along: NDArray[np.float64]) -> float:
    """Return how near two positions along the normal, in mm, must be to be one: a rounding, but never half a step."""
    steps = np.diff(np.sort(along))
    steps = steps[steps > SAME_POSITION_MM]
    # Three quarters: two or three frames at each position are a hair apart more often than a slice.
    usual = float(np.quantile(steps, 0.75)) if steps.size else 0.0
    return max(SAME_POSITION_MM, min(POSITION_TOLERANCE_MM, 0.1 * usual))


def shear_degrees(grid: Grid) -> float:
    """Return the angle between the step from slice to slice and the normal of the slices: the tilt of the gantry."""
    x, y, z = grid.affine_lps[:3, :3].T
    normal = np.cross(x, y)
    sine, cosine = float(np.linalg.norm(np.cross(normal, z))), float(normal @ z)
    return math.degrees(math.atan2(sine, abs(cosine)))


def slice_distance_mm(grid: Grid) -> float:
    """Return the distance between neighbouring slices along their normal, in mm; shorter than the step when sheared."""
    x, y, z = grid.affine_lps[:3, :3].T
    normal = np.cross(x, y)
    return abs(float(normal @ z)) / float(np.linalg.norm(normal))


def differing_marks(frames: Sequence[Frame]) -> str:
    """Return what sets frames apart besides their position, in words: "EchoTime: 4.9, 9.8"; empty when nothing does."""
    values: dict[str, dict[str, None]] = {}
    for frame in frames:
        for keyword, text in frame.stack:
            values.setdefault(keyword, {})[text] = None
    differing = {keyword: texts for keyword, texts in values.items() if len(texts) > 1}
    named = {keyword: texts for keyword, texts in differing.items() if not keyword.startswith("(")}
    parts = []
    for keyword, texts in (named or differing).items():  # private tags only when they alone tell
        if texts:
            shown = ", ".join(list(texts)[:4]) + (", ..." if len(texts) > 4 else "")
            parts.append(f"{keyword}: {shown}")
    return "; ".join(parts)


def _axes(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors along a row, down a column and along their normal."""
    cosines = np.array(frame.orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1)
    right_angle = abs(float(cosines[0] @ cosines[1])) <= COSINE_TOLERANCE
    if not (right_angle and np.all(np.abs(lengths - 1) <= COSINE_TOLERANCE)):
        text = "\\".join(f"{value:g}" for value in frame.orientation)
        raise GeometryError(f"Image Orientation (Patient) {text} is not two unit vectors at a right angle")
    row, column = cosines / lengths[:, None]
    normal = np.cross(row, column)
    return row, column, normal / np.linalg.norm(normal)


def _check_uniform(frames: Sequence[Frame]) -> None:
    """Refuse frames that cannot lie on one grid, whatever their positions."""
    if len(sizes := {(frame.rows, frame.columns) for frame in frames}) > 1:
        shown = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes)[:4])
        raise GeometryError(f"images of different sizes are mixed in one series (rows x columns: {shown})")
    if len({frame.frame_of_reference_uid for frame in frames}) > 1:
        raise GeometryError("two or more Frames of Reference are mixed in one series")
    orientations = np.array([frame.orientation for frame in frames])
    apart = np.abs(orientations - orientations[0]).max(axis=1) > COSINE_TOLERANCE
    if apart.any():
        marks = differing_marks([frames[0], frames[int(np.argmax(apart))]])
        raise GeometryError(
            f"images of different orientations are mixed in one series: {_count(orientations)} orientations, "
            f"as when localizers or several stacks stand together{f' ({marks})' if marks else ''}"
        )
    spacings = np.array([frame.pixel_spacing_mm for frame in frames])
    if not np.all(spacings > 0):
        raise GeometryError("Pixel Spacing is not positive")
    if np.any(np.abs(spacings / spacings[0] - 1) > SPACING_TOLERANCE):
        shown = ", ".join(f"{y:g} x {x:g} mm" for y, x in np.unique(spacings, axis=0)[:4])
        raise GeometryError(f"images of different Pixel Spacing are mixed in one series ({shown})")


def _count(orientations: NDArray[np.float64]) -> int:
    """Return how many orientations differ by more than the tolerance."""
    kept: list[NDArray[np.float64]] = []
    for orientation in orientations:
        if not any(np.abs(orientation - other).max() <= COSINE_TOLERANCE for other in kept):
            kept.append(orientation)
    return len(kept)


def _affine(
    frame: Frame,
    axes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    origin: NDArray[np.float64],
) -> Affine:
    """Return the affine from unit vectors along a row and down a column, the step from slice to slice and slice 0."""
    row, column, step = axes
    affine = np.eye(4)
    affine[:3, 0] = row * frame.pixel_spacing_mm[1]
    affine[:3, 1] = column * frame.pixel_spacing_mm[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin
    return affine


def _places(slices: Sequence[Frame], along: NDArray[np.float64], missing_slices: int) -> NDArray[np.intp]:
    """Return the number on the lattice of each slice, sorted along the normal; refuse doubled ones and gaps."""
    steps = np.diff(along)
    doubled = np.flatnonzero(steps <= same_position_mm(along))
    if doubled.size:
        first = int(doubled[0])
        raise GeometryError(_doubled(slices, along, first, doubled.size))
    smallest = float(np.quantile(steps, 0.1, method="lower"))
    multiples = np.rint(steps / smallest)
    tolerance = np.maximum(0.1 * smallest, 2 * POSITION_TOLERANCE_MM)
    gaps = np.flatnonzero(multiples >= 2)
    if not gaps.size or np.any(np.abs(steps - multiples * smallest) > tolerance * multiples):
        return np.arange(len(along), dtype=np.intp)
    first = int(gaps[0])
    n_missing = int((multiples - 1).sum())
    if n_missing > missing_slices:
        missing = "a slice is missing" if n_missing == 1 else f"{n_missing} slices are missing"
        where = "" if gaps.size == 1 else f"first of {gaps.size} gaps: "
        raise GeometryError(
            f"{missing} ({where}between slice {first + 1} at {_place(slices[first])} and slice {first + 2} at "
            f"{_place(slices[first + 1])}: {steps[first]:.3f} mm apart instead of {smallest:.3f} mm)"
        )
    return np.concatenate([[0], np.cumsum(multiples)]).astype(np.intp)


def _doubled(slices: Sequence[Frame], along: NDArray[np.float64], first: int, n_doubled: int) -> str:
    """Return why slices at one position do not make a volume: several stacks, or one stack twice."""
    here = [slices[i] for i in map(int, np.flatnonzero(np.abs(along - along[first]) <= same_position_mm(along)))]
    if len({frame.position_mm for frame in here}) > 1:
        shift = float(np.linalg.norm(np.subtract(here[0].position_mm, here[-1].position_mm)))
        if shift > POSITION_TOLERANCE_MM:
            return f"slices lie side by side in one plane ({shift:.2f} mm apart at {_place(here[0])}): no stack"
    marks = differing_marks(here)
    where = f"{len(here)} slices at {_place(here[0])}, {n_doubled} doubled in all"
    if marks:
        return f"several stacks are mixed in one series ({where}); they differ in {marks}"
    return f"slices are doubled ({where}), and nothing in their headers tells which of them belong together"


def _regular_step(
    slices: Sequence[Frame], positions: NDArray[np.float64], places: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the mean step between sorted positions (n, 3), once every position is seen to lie at its place."""
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / places[-1]
    wanted = positions[0] + places[:, None] * step
    off = np.linalg.norm(positions - wanted, axis=1)
    allowed = max(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_FRACTION * float(np.linalg.norm(step)))
    if off.max() > allowed:
        worst = int(off.argmax())
        distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        marks = differing_marks(slices)
        raise GeometryError(
            f"slices lie at irregular distances of {distances.min():.3f} to {distances.max():.3f} mm{_few(distances)}: "
            f"slice {worst + 1} at {_place(slices[worst])} is {off[worst]:.3f} mm off a regular stack"
            + (f"; slices differ in {marks}" if marks else "")
        )
    return step


def _few(distances: NDArray[np.float64]) -> str:
    """Return the distances and how often each is there, when they are a few: " (13 of 4.220, 13 of 7.380 mm)"."""
    counted: list[list[float]] = []
    for distance in np.sort(distances):
        if counted and distance - counted[-1][0] <= POSITION_TOLERANCE_MM:
            counted[-1].append(float(distance))
        else:
            counted.append([float(distance)])
    if not 2 <= len(counted) <= _FEW_DISTANCES:
        return ""
    return f" ({', '.join(f'{len(group)} of {np.mean(group):.3f}' for group in counted)} mm)"


def _place(frame: Frame) -> str:
    """Return a position in words."""
    x, y, z = frame.position_mm
    return f"({x:.2f}, {y:.2f}, {z:.2f}) mm"
