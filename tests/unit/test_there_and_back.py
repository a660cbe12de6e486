"""Prepared as a manifest says and brought back: shapes keep their voxels and points their places, on any grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.imaging import Grid, Prepared, prepare
from dicom_node.imaging.inverse import class_masks
from dicom_node.imaging.sliding import Region, slide
from dicom_node.imaging.steps import CropForeground, Denoise, Fit, Normalise, Orient, Pad, Resample, Step
from tests.unit.imaging_case import dice, make_grid, make_volume, rotation_about, rotations, world

LETTERS = ["".join(letters) for order in permutations(("RL", "AP", "IS")) for letters in product(*order)]
"""Every `axes` that a manifest may ask for: 48."""

CENTRE = (5.0, -7.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class Ellipsoid:
    """A smooth body about CENTRE."""

    rotation: NDArray[np.float64]
    radii_mm: NDArray[np.float64]

    def depth_mm(self, grid: Grid) -> NDArray[np.float64]:
        """Return how far each voxel centre lies inside the surface, to first order, in mm; negative outside."""
        place = (world(grid) - CENTRE) @ self.rotation
        level = np.linalg.norm(place / self.radii_mm, axis=-1)
        slope = np.linalg.norm(place / self.radii_mm**2, axis=-1) / np.maximum(level, 1e-9)
        return np.asarray((1 - level) / np.maximum(slope, 1e-9))


def brought_back(prepared: Prepared, source: Grid, *, window: int | None = None) -> NDArray[np.bool_]:
    """Return where the prepared array, taken as a probability, reaches one half on the source grid."""
    array = prepared.array[np.newaxis]
    regions = [Region(start=(0, 0, 0), values=array)]
    if window is not None:
        regions = slide(  # type: ignore[assignment]
            array, lambda batch: batch, window=(window,) * 3, overlap=0.25, blend="gaussian", max_windows=10_000
        )
    (found,) = class_masks(regions, prepared.grid, source, channels=[0], exclusive=False, threshold=0.5)
    return found.mask.on_grid(source.shape)


@st.composite
def chains(draw: st.DrawFn, spacing_mm: tuple[float, float, float]) -> tuple[Step, ...]:
    """Draw the steps of a manifest whose array has `spacing_mm`."""
    order = draw(st.sampled_from([1, 3]))
    resample = Resample(
        spacing_mm=spacing_mm,
        order=order,
        anti_alias=draw(st.booleans()),
        align=draw(st.sampled_from(["source", "patient"])),
    )
    crop = CropForeground(above=2.0, margin_voxels=draw(st.integers(1, 4)), largest_component=draw(st.booleans()))
    shape = Fit(shape=tuple(draw(st.integers(56, 72)) for _ in range(3)), value=0.0)  # type: ignore[arg-type]
    pad = Pad(divisor=draw(st.sampled_from([2, 8])), side=draw(st.sampled_from(["end", "both"])))
    values = Normalise(method="linear", low=0.0, high=100.0)
    more = draw(st.permutations([crop, shape, pad]))
    return (Orient(axes=draw(st.sampled_from(LETTERS))), resample, *more[: draw(st.integers(0, 3))], values)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    rotation=rotations(),
    spacing=st.tuples(*[st.floats(0.8, 1.6)] * 3),
    thick=st.floats(1.0, 2.0),
    shear=st.floats(-0.4, 0.4),
    turned=rotations(),
    radii=st.tuples(*[st.floats(8.0, 10.0)] * 3),
    window=st.sampled_from([None, 24, 40]),
)
def test_smooth_shapes_come_back(
    data: st.DataObject,
    rotation: NDArray[np.float64],
    spacing: tuple[float, float, float],
    thick: float,
    shear: float,
    turned: NDArray[np.float64],
    radii: tuple[float, float, float],
    window: int | None,
) -> None:
    """Radius 8 voxels and more: Dice >= 0.98, and no voxel is wrong that lies half a voxel from the true surface."""
    spacing = (spacing[0], spacing[1], spacing[2] * thick)
    new = tuple(data.draw(st.floats(0.8, 1.6)) for _ in range(3))
    voxel_mm = max(*spacing, *new)
    body = Ellipsoid(rotation=turned, radii_mm=np.array(radii) * voxel_mm)
    # The body, the ramp at its surface, and what a sheared corner loses.
    shape = tuple(
        math.ceil((2 * max(body.radii_mm) + 8 * voxel_mm) * (1 + abs(shear)) / step) for step in spacing[::-1]
    )
    grid = make_grid(shape, spacing, rotation=rotation, shear=shear)  # type: ignore[arg-type]
    depth = body.depth_mm(grid)
    array = np.clip(50 + 50 * depth / (3 * voxel_mm), 0, 100)

    prepared = prepare(make_volume(array, grid), data.draw(chains(new)))  # type: ignore[arg-type]
    back = brought_back(prepared, grid, window=window)

    assert dice(back, depth >= 0) >= 0.98
    wrong = back != (depth >= 0)
    assert np.abs(depth[wrong]).max(initial=0.0) <= 0.5 * voxel_mm


POINTS = ((9, 4, 6), (3, 15, 5), (14, 10, 17), (5, 6, 13))
"""Array indices (z, y, x) without any symmetry: whatever is flipped or swapped moves at least one of them."""


def points_on(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return an image with one bright voxel at each point."""
    array = np.zeros(shape, dtype=np.float32)
    array[tuple(np.transpose(POINTS))] = 100.0
    return array


def _worst_miss(back: NDArray[np.bool_]) -> float:
    """Return how far, in voxels of the source, the points lie from where they were put; each is looked for near it."""
    found = np.argwhere(back)
    nearest = np.linalg.norm(found[:, None] - np.array(POINTS)[None], axis=-1).argmin(axis=1)
    misses = [
        found[nearest == number].mean(axis=0) - point
        for number, point in enumerate(POINTS)
        if (nearest == number).any()
    ]
    return float(np.abs(misses).max()) if len(misses) == len(POINTS) else math.inf


def _points_back(grid: Grid, axes: str, *, broken: int | None = None) -> float:
    """Return the worst miss of the point phantom; `broken` negates that column of the prepared affine."""
    steps: list[Any] = [
        Orient(axes=axes),
        Resample(spacing_mm=(0.75, 0.7, 0.8), align="patient"),
        Normalise(method="linear", low=0.0, high=20.0),
    ]
    prepared = prepare(make_volume(points_on(grid.shape), grid), steps)
    if broken is not None:
        affine = prepared.grid.affine_lps.copy()
        affine[:3, broken] *= -1
        # About the centre of the array, as a wrong flip would have it: the field of view is the same.
        centre = (np.array(prepared.grid.shape[::-1]) - 1) / 2
        affine[:3, 3] = prepared.grid.to_world(centre) - affine[:3, :3] @ centre
        prepared = Prepared(array=prepared.array, grid=Grid(shape=prepared.grid.shape, affine_lps=affine))
    return _worst_miss(brought_back(prepared, grid))


@pytest.mark.parametrize("axes", LETTERS)
def test_points_stay_where_they_are(axes: str) -> None:
    """Whatever orientation a manifest asks for, a point lies within half a voxel of its place."""
    rotation = rotation_about(np.array([1.0, -2.0, 0.5]), 0.15)
    grid = make_grid((18, 20, 22), (1.0, 1.1, 1.2), rotation=rotation, shear=0.1)
    assert _points_back(grid, axes) <= 0.5


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("axes", ["SPL", "LIA", "ARS"])
def test_a_negated_column_would_be_noticed(axes: str, broken: int) -> None:
    """The phantom is worth something: with one column of an affine negated its points are elsewhere."""
    assert _points_back(make_grid((18, 20, 22), (1.0, 1.1, 1.2)), axes, broken=broken) > 2


def test_median_moves_nothing() -> None:
    """A filter that smooths leaves a symmetrical body where it is."""
    grid = make_grid((20, 20, 20))
    body = Ellipsoid(rotation=np.eye(3), radii_mm=np.full(3, 6.0)).depth_mm(grid) > 0
    prepared = prepare(make_volume(body * 100.0, grid), [Denoise(size_voxels=3)])
    held = prepared.array > 50
    assert np.argwhere(held).mean(axis=0) == pytest.approx(np.argwhere(body).mean(axis=0), abs=1e-9)
