"""From the source grid to the network's and back: what must hold for any grid a scanner can make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from dicom_node.errors import RefusedInputError
from dicom_node.imaging import Grid, Prepared, prepare
from dicom_node.imaging.preprocess import Box, box_on, interpolate, right_angled, whole_box
from dicom_node.imaging.steps import (
    Clip,
    CropForeground,
    Denoise,
    Enhance,
    Fit,
    GreyFromColour,
    Normalise,
    Orient,
    Pad,
    Resample,
    Step,
)
from tests.unit.imaging_case import (
    blob,
    dice,
    inside_ellipsoid,
    make_grid,
    make_volume,
    rotation_about,
    rotations,
    world,
)

CENTRE = (5.0, -7.0, 30.0)
AXES = ["SPL", "LIA", "RAS", "ASL", "IPR", "PRS"]


def _noise(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def to_source(probability: NDArray[np.float32], prepared: Grid, source: Grid, box: Box) -> NDArray[np.float32]:
    """Return what linear interpolation gives on a box of the source; outside the prepared field it is 0."""
    return interpolate(probability, prepared, source, order=1, outside=0.0, box=box)


def _run(array: NDArray[Any], grid: Grid, *steps: Step) -> Prepared:
    return prepare(make_volume(array, grid), steps)


@settings(max_examples=60, deadline=None)
@given(
    rotation=rotations(),
    spacing=st.tuples(st.floats(0.3, 5), st.floats(0.3, 5), st.floats(0.3, 5)),
    shear=st.floats(-0.4, 0.4),
)
def test_world_and_voxel_are_inverse(
    rotation: NDArray[np.float64], spacing: tuple[float, float, float], shear: float
) -> None:
    """Voxel -> millimetres -> voxel is the identity to a millionth, oblique and sheared grids included."""
    grid = make_grid(spacing_xyz=spacing, rotation=rotation, shear=shear)
    voxels = np.array([[0.0, 0.0, 0.0], [27.0, 23.0, 19.0], [3.25, -4.5, 11.75]])
    assert grid.to_voxel(grid.to_world(voxels)) == pytest.approx(voxels, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    rotation=rotations(),
    spacing=st.tuples(st.floats(0.7, 1.6), st.floats(0.7, 1.6), st.floats(0.8, 3.0)),
    shear=st.floats(-0.35, 0.35),
    axes=st.sampled_from(AXES),
    align=st.sampled_from(["source", "patient"]),
)
def test_a_body_comes_back_to_where_it_was(
    rotation: NDArray[np.float64], spacing: tuple[float, float, float], shear: float, axes: str, align: Any
) -> None:
    """Preprocessing and the way back return a smooth body on its own grid with Dice >= 0.98."""
    shape = tuple(math.ceil(40 / step) for step in reversed(spacing))
    grid = make_grid(shape, spacing, rotation=rotation, shear=shear)  # type: ignore[arg-type]
    body = blob(grid, (7.0, -6.0, 29.0), 11.0)
    prepared = _run(
        body,
        grid,
        Orient(axes=axes),
        Resample(spacing_mm=(1.0, 1.0, 1.0), align=align),
        CropForeground(above=5.0, margin_voxels=2),
        Fit(shape=(40, 36, 44), value=0.0),
        Pad(divisor=16),
        Normalise(method="linear", low=0.0, high=100.0),
    )
    back = to_source(prepared.array, prepared.grid, grid, whole_box(grid.shape))
    assert dice(back >= 0.5, body >= 50) >= 0.98


@settings(max_examples=25, deadline=None)
@given(rotation=rotations(), axes=st.sampled_from(AXES))
def test_orient_moves_no_voxel(rotation: NDArray[np.float64], axes: str) -> None:
    """After `orient` every value still lies at its own place in the patient, and the axes run as asked."""
    grid = make_grid((5, 6, 7), (1.0, 2.0, 3.0), rotation=rotation)
    # The value of a voxel is a linear function of where it is, so a moved voxel shows.
    prepared = _run(world(grid) @ [1.0, 10.0, 100.0], grid, Orient(axes=axes))
    assert prepared.array == pytest.approx(world(prepared.grid) @ [1.0, 10.0, 100.0], abs=1e-2)
    assert sorted(prepared.array.shape) == [5, 6, 7]


@pytest.mark.parametrize("axes", AXES)
def test_orient_gives_the_asked_directions(axes: str) -> None:
    """On a nearly straight grid each array axis increases along its letter."""
    rotation = rotation_about(np.array([1.0, 2.0, 3.0]), 0.2)
    prepared = _run(_noise((5, 6, 7)), make_grid((5, 6, 7), rotation=rotation), Orient(axes=axes))
    letters = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    for place, letter in enumerate(axes):
        world_axis, sign = letters[letter]
        assert prepared.grid.affine_lps[world_axis, 2 - place] * sign > 0.9


def test_resampling_to_the_own_spacing_changes_nothing() -> None:
    """A right-angled grid at its own spacing is itself, voxel by voxel."""
    grid = make_grid((9, 10, 11), (0.7, 0.9, 1.3), rotation=rotation_about(np.array([0.0, 1.0, 1.0]), 0.4))
    array = _noise(grid.shape)
    prepared = _run(array, grid, Resample(spacing_mm=(1.3, 0.9, 0.7)))
    assert prepared.grid.affine_lps == pytest.approx(grid.affine_lps, abs=1e-9)
    assert prepared.array == pytest.approx(array, abs=1e-4)


@pytest.mark.parametrize("order", [1, 3])
def test_linear_ramp_is_interpolated_exactly(order: Any) -> None:
    """A value that is linear in millimetres stays so on a finer grid, away from the edges."""
    grid = make_grid((12, 12, 12), (1.5, 1.5, 2.0), shear=0.3)
    prepared = _run(world(grid) @ [1.0, 2.0, 3.0], grid, Resample(spacing_mm=(1.0, 1.0, 1.0), order=order))
    truth = world(prepared.grid) @ [1.0, 2.0, 3.0]
    places = grid.to_voxel(world(prepared.grid))
    inner = np.all((places > 3) & (places < 8), axis=-1)
    assert inner.sum() > 100
    assert prepared.array[inner] == pytest.approx(truth[inner], abs=0.05)


def test_shear_is_taken_out() -> None:
    """A tilted stack comes out on right angles, over the same field of view."""
    grid = make_grid((10, 20, 20), (1.0, 1.0, 3.0), shear=0.33)
    target = right_angled(grid, (1.0, 1.0, 1.0))
    axes = target.affine_lps[:3, :3]
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-12)
    corners = target.to_voxel(world(grid).reshape(-1, 3))
    assert corners.min() > -0.5
    assert np.all(corners.max(axis=0) < np.array(target.shape[::-1]) - 0.5)


def test_outside_the_source_is_its_minimum() -> None:
    """What a turned grid sees beyond the images is the darkest value, never a smeared edge."""
    grid = make_grid((16, 16, 16), rotation=rotation_about(np.array([0.0, 0.0, 1.0]), np.pi / 4))
    prepared = _run(
        np.full(grid.shape, 70.0) + np.eye(16),
        grid,
        Orient(axes="SPL"),
        Resample(spacing_mm=(1, 1, 1), align="patient"),
    )
    assert prepared.array[8, 0, 0] == 70.0
    assert to_source(np.ones(grid.shape, np.float32), grid, prepared.grid, whole_box(prepared.grid.shape))[8, 0, 0] == 0


def test_anti_alias_smooths_before_shrinking() -> None:
    """A pattern finer than the new spacing vanishes instead of turning into a coarse one."""
    grid = make_grid((24, 24, 24))
    stripes = np.zeros(grid.shape, dtype=np.float32)
    stripes[:, :, ::2] = 100.0
    rough, smooth = (
        _run(stripes, grid, Resample(spacing_mm=(4.0, 4.0, 3.0), anti_alias=wanted)).array for wanted in (False, True)
    )
    assert rough[2, 2, 2:-2].std() > 40
    assert smooth[2, 2, 2:-2].std() < 10


def test_boxes_together_give_the_whole() -> None:
    """The way back gives the same values box by box as at once."""
    source = make_grid((11, 12, 13), rotation=rotation_about(np.array([1.0, 1.0, 0.0]), 0.5))
    array, prepared = _noise((9, 9, 9)), make_grid((9, 9, 9))
    whole = to_source(array, prepared, source, whole_box(source.shape))
    part = to_source(array, prepared, source, (slice(3, 7), slice(2, 12), slice(5, 6)))
    assert part == pytest.approx(whole[3:7, 2:12, 5:6], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(rotation=rotations(), start=st.tuples(*[st.integers(0, 6)] * 3), size=st.integers(1, 5))
def test_box_on_another_grid_misses_nothing(
    rotation: NDArray[np.float64], start: tuple[int, int, int], size: int
) -> None:
    """Outside the box that `box_on` gives for a voxel more, nothing of the other grid's box can be seen."""
    prepared, source = make_grid((12, 12, 12)), make_grid((14, 15, 16), (1.2, 0.8, 1.0), rotation=rotation)
    inner = tuple(slice(at, at + size) for at in start)
    array = np.zeros(prepared.shape, dtype=np.float32)
    array[inner] = 1.0
    seen = to_source(array, prepared, source, whole_box(source.shape))
    box = box_on(source, prepared, [at - 1 for at in start], [at + size for at in start])
    seen[box] = 0
    assert seen.max() == 0


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (Clip(low=2.0, high=5.0), [2, 2, 2, 3, 4, 5, 5, 5, 5, 5]),
        (Normalise(method="linear", low=0.0, high=5.0), [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8]),
        (Normalise(method="linear", low=0.0, high=5.0, clip=True), [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]),
        (Normalise(method="min_max"), [value / 9 for value in range(10)]),
        (Normalise(method="min_max", mask_above=4.5), [(value - 5) / 4 for value in range(10)]),
        (Normalise(method="percentile", low=0.0, high=50.0), [value / 4.5 for value in range(10)]),
        (Normalise(method="z_score"), [(value - 4.5) / math.sqrt(8.25) for value in range(10)]),
        (
            Normalise(method="min_max", mask_above=4.5, scope="mask"),
            [0] * 5 + [(value - 5) / 4 for value in range(5, 10)],
        ),
        (Normalise(method="min_max", exclude_padding=True), [(value - 1) / 8 for value in range(10)]),
        (Normalise(method="z_score", exclude_padding=True), [(value - 5) / math.sqrt(60 / 9) for value in range(10)]),
        (
            Normalise(method="linear", low=0.0, high=5.0, mask_above=2.0, scope="mask"),
            [0] * 3 + [v / 5 for v in range(3, 10)],
        ),
        (Clip(low=0.0, high=50.0, by="percentile"), [0, 1, 2, 3, 4] + [4.5] * 5),
        (Clip(low=50.0, high=100.0, by="percentile", mask_above=4.5), [7] * 8 + [8, 9]),
        (Enhance(method="gamma", gamma=2.0), [(value / 9) ** 2 for value in range(10)]),
        (Denoise(size_voxels=3), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (GreyFromColour(), list(range(10))),
    ],
)
def test_values_become(step: Step, expected: list[float]) -> None:
    """Each step of intensities does what its name says to 0, 1, ... 9."""
    array = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    assert _run(array, make_grid((1, 1, 10)), step).array.ravel() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Normalise(method="min_max"), "same value everywhere"),
        (Normalise(method="z_score"), "same value everywhere"),
        (Normalise(method="z_score", mask_above=50.0), "no voxel lies above 50"),
        (Normalise(method="z_score", scope="slice"), "same value everywhere"),
        (Normalise(method="percentile", low=5.0, high=95.0, exclude_padding=True), "same value everywhere"),
        (Clip(low=1.0, high=99.0, by="percentile", mask_above=50.0), "no voxel lies above 50"),
        (Enhance(method="clahe"), "same value everywhere"),
        (Enhance(method="gamma", gamma=0.5, scope="slice"), "same value everywhere"),
        (CropForeground(above="otsu"), "same value everywhere"),
    ],
)
def test_constant_image_is_refused(step: Step, words: str) -> None:
    """An image without contrast has no scale, and the reason says so."""
    with pytest.raises(RefusedInputError, match=words):
        _run(np.full((3, 3, 3), 4.0), make_grid((3, 3, 3)), step)


@pytest.mark.parametrize("shape", [(4, 4, 4), (9, 9, 9), (4, 9, 7)])
def test_fit_keeps_the_centre_and_the_places(shape: tuple[int, int, int]) -> None:
    """Cropped or padded, what is left lies where it was, and the rest is the fill value."""
    grid = make_grid((6, 7, 8), (1.0, 2.0, 3.0))
    prepared = _run(world(grid) @ [1.0, 10.0, 100.0], grid, Fit(shape=shape, value=-1e6))
    held = prepared.array > -1e5
    assert prepared.array.shape == shape
    assert held.sum() == np.prod([min(a, b) for a, b in zip(shape, grid.shape, strict=True)])
    assert prepared.array[held] == pytest.approx((world(prepared.grid) @ [1.0, 10.0, 100.0])[held], abs=1e-2)


def test_crop_takes_the_largest_component() -> None:
    """A bright speck far away does not widen the crop to it, unless it is asked to."""
    grid = make_grid((20, 20, 20))
    array = np.zeros(grid.shape, dtype=np.float32)
    array[4:9, 5:12, 6:10] = 1.0
    array[18, 18, 18] = 1.0
    one, all_of_it = (
        _run(array, grid, CropForeground(above=0.5, margin_voxels=1, largest_component=wanted))
        for wanted in (True, False)
    )
    assert one.array.shape == (7, 9, 6)
    assert one.grid.affine_lps[:3, 3] == pytest.approx(grid.to_world(np.array([5.0, 4.0, 3.0])))
    assert all_of_it.array.shape == (17, 16, 15)


def test_crop_leaves_the_table_behind() -> None:
    """A thin table that touches the body is cut off before the largest component is taken; the body keeps its box."""
    grid = make_grid((24, 40, 40))
    array = np.where(inside_ellipsoid(grid, CENTRE, (14.0, 11.0, 9.0)), 40.0, -1000.0)
    body = np.argwhere(array > 0)
    array[:, 31:33, :] = 200.0
    step = CropForeground(above=-500.0, largest_component=True, opening_voxels=2)
    prepared = _run(array, grid, step)
    low, high = body.min(axis=0), body.max(axis=0)
    start = grid.to_voxel(prepared.grid.affine_lps[:3, 3])[::-1]
    # The tips of a round body are as thin as the table.
    assert np.abs(start - low).max() <= 2
    assert np.abs(np.array(prepared.array.shape) - (high - low + 1)).max() <= 4
    assert _run(array, grid, CropForeground(above=-500.0, largest_component=True)).array.shape[2] == 40


def test_otsu_finds_the_foreground() -> None:
    """Without a number in the manifest, the threshold that parts the values best is taken."""
    grid = make_grid((20, 20, 20))
    array = np.random.default_rng(2).normal(10.0, 3.0, grid.shape)
    array[4:9, 5:12, 6:10] += 500.0
    assert _run(array, grid, CropForeground(above="otsu", largest_component=True)).array.shape == (5, 7, 4)


def test_scope_slice_scales_each_slice() -> None:
    """Each slice of the first axis gets mean 0 and deviation 1; one of air alone becomes 0."""
    array = np.random.default_rng(4).normal(size=(4, 12, 12)) * np.array([1, 10, 0, 100]).reshape(-1, 1, 1) + 7
    result = _run(array, make_grid((4, 12, 12)), Normalise(method="z_score", scope="slice")).array
    assert result.mean(axis=(1, 2)) == pytest.approx([0, 0, 0, 0], abs=1e-5)
    assert result.std(axis=(1, 2)) == pytest.approx([1, 1, 0, 1], abs=1e-5)


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_clahe_spreads_a_narrow_histogram(scope: Any) -> None:
    """Values crowded in a tenth of the range take more of it afterwards, in order, between 0 and 1."""
    ramp = np.linspace(0.0, 0.1, 32 * 32).reshape(1, 32, 32).repeat(16, axis=0)
    ramp[:, 0, 0] = 1.0
    result = _run(ramp, make_grid(ramp.shape), Enhance(method="clahe", tiles=1, clip_limit=1.0, scope=scope)).array
    assert result.min() >= 0
    assert result.max() <= 1
    assert np.ptp(result[:, 1:]) > 0.5
    assert np.all(np.diff(result[5, 16]) >= -1e-3)


@pytest.mark.parametrize("order", [1, 3])
def test_coarse_axis_takes_whole_slices(order: Any) -> None:
    """Across thick slices the nearest one is taken, or two are mixed; within them the order is the usual one."""
    grid = make_grid((5, 12, 12), (1.0, 1.0, 6.0))
    slices = np.array([3.0, 50.0, -20.0, 7.0, 11.0]).reshape(-1, 1, 1)
    array = np.broadcast_to(slices + np.arange(12.0), grid.shape)
    spacing = (2.0, 0.5, 0.5)
    nearest = _run(array, grid, Resample(spacing_mm=spacing, order=order, coarse_order=0)).array
    assert set(np.round(nearest[:, 12, 12] - nearest[0, 12, 12], 2)) == {0.0, 47.0, -23.0, 4.0, 8.0}
    if order == 3:
        mixed = _run(array, grid, Resample(spacing_mm=spacing, order=3, coarse_order=1)).array
        assert mixed[2:6, 12, 12] - mixed[1, 12, 12] == pytest.approx([47 / 3, 94 / 3, 47, 47 - 70 / 3], abs=1e-2)
    usual = _run(array, grid, Resample(spacing_mm=spacing, order=order, coarse_order=0, coarse_ratio=7.0)).array
    assert usual == pytest.approx(_run(array, grid, Resample(spacing_mm=spacing, order=order)).array)


@settings(max_examples=15, deadline=None)
@given(rotation=rotations(), shear=st.floats(-0.3, 0.3), coarse=st.sampled_from([0, 1]))
def test_coarse_axis_is_that_of_the_source_however_it_lies(
    rotation: NDArray[np.float64], shear: float, coarse: Any
) -> None:
    """On oblique and sheared stacks too the values of whole slices are taken: each becomes a constant of its own."""
    grid = make_grid((4, 16, 16), (1.0, 1.0, 5.0), rotation=rotation, shear=shear)
    levels = np.array([10.0, 20.0, 40.0, 80.0])
    step = Resample(spacing_mm=(1.5, 1.5, 1.5), order=3, coarse_order=coarse, align="patient")
    prepared = _run(np.broadcast_to(levels.reshape(-1, 1, 1), grid.shape), grid, step)
    place = grid.to_voxel(world(prepared.grid))
    inside = np.all((place > -0.4) & (place < np.array(grid.shape[::-1]) - 0.6), axis=-1)
    along = np.clip(place[..., 2], 0, 3)[inside]
    clear = np.abs(along - np.floor(along) - 0.5) > 1e-3 if coarse == 0 else np.ones(along.shape, dtype=bool)
    expected = levels[np.floor(along + 0.5).astype(int)] if coarse == 0 else np.interp(along, range(4), levels)
    assert prepared.array[inside][clear] == pytest.approx(expected[clear], abs=1e-2)


def test_crop_without_foreground_keeps_all() -> None:
    """Nothing above the threshold: nothing is cropped, and the gate or the network decides."""
    assert _run(np.zeros((5, 6, 7)), make_grid((5, 6, 7)), CropForeground(above=1.0)).array.shape == (5, 6, 7)


@pytest.mark.parametrize("side", ["end", "both"])
@pytest.mark.parametrize(("divisor", "least"), [(4, None), (1, (7, 9, 3)), (4, (7, 3, 9))])
def test_pad_moves_no_voxel(side: Any, divisor: int, least: Any) -> None:
    """Every axis has at least the wanted length and is a multiple; what was there lies where it was."""
    grid = make_grid((2, 5, 8), (1.0, 2.0, 3.0))
    linear = np.array([1.0, 10.0, 100.0])
    prepared = _run(world(grid) @ linear, grid, Pad(divisor=divisor, shape=least, side=side, value=-1e6))
    for size, held, wanted in zip(prepared.array.shape, grid.shape, least or (1, 1, 1), strict=True):
        assert size % divisor == 0
        assert max(held, wanted) <= size < max(held, wanted) + divisor
    held_voxels = prepared.array > -1e5
    assert held_voxels.sum() == 2 * 5 * 8
    assert held_voxels[0, 0, 0] == (side == "end" or prepared.array.shape == grid.shape)
    assert prepared.array[held_voxels] == pytest.approx((world(prepared.grid) @ linear)[held_voxels], abs=1e-2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7.0, [1, 2, 3, 7, 7]),
        ("minimum", [1, 2, 3, 1, 1]),
        ("edge", [1, 2, 3, 3, 3]),
        ("reflect", [1, 2, 3, 2, 1]),
    ],
)
def test_pad_puts_there(value: Any, expected: list[float]) -> None:
    """What lies beyond the image is what the manifest says."""
    array = np.array([1.0, 2.0, 3.0], dtype=np.float32).reshape(1, 1, 3)
    assert _run(array, make_grid((1, 1, 3)), Pad(shape=(1, 1, 5), value=value)).array.ravel() == pytest.approx(expected)


def test_the_volume_is_not_written_into() -> None:
    """The steps leave the volume as it was."""
    grid = make_grid((6, 6, 6))
    volume = make_volume(_noise(grid.shape), grid)
    before = volume.array.copy()
    prepare(volume, [Normalise(method="min_max", clip=True), Clip(low=0.2, high=0.8)])
    assert np.array_equal(before, volume.array)


def test_nearest_neighbour_makes_no_new_values() -> None:
    """Order 0 gives only values that were there: label maps may be resampled with it."""
    source, target = make_grid((6, 6, 6)), make_grid((15, 15, 15), (0.5, 0.5, 0.5))
    labels = np.random.default_rng(3).integers(0, 5, source.shape).astype(np.float32)
    assert set(np.unique(interpolate(labels, source, target, order=0, outside=0.0))) <= set(range(5))


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "orient", "axes": "LLA"},
        {"kind": "orient", "axes": "LA"},
        {"kind": "orient", "axes": "xyz"},
        {"kind": "resample", "spacing_mm": [1.0, 0.0, 1.0]},
        {"kind": "resample", "spacing_mm": [1.0, 1.0, 1.0], "order": 2},
        {"kind": "normalise", "method": "linear"},
        {"kind": "normalise", "method": "linear", "low": 5.0, "high": 1.0},
        {"kind": "normalise", "method": "percentile", "low": 5.0, "high": 120.0},
        {"kind": "normalise", "method": "z_score", "clip": True},
        {"kind": "normalise", "method": "min_max", "low": 0.0},
        {"kind": "normalise", "method": "linear", "low": 0.0, "high": 1.0, "scope": "slice"},
        {"kind": "normalise", "method": "z_score", "scope": "mask"},
        {"kind": "clip", "low": 0.0, "high": 1.0, "hihg": 2.0},
        {"kind": "clip", "low": 1.0, "high": 0.0},
        {"kind": "clip", "low": 1.0, "high": 101.0, "by": "percentile"},
        {"kind": "clip", "low": 1.0, "high": 2.0, "mask_above": 0.0},
        {"kind": "resample", "spacing_mm": [1.0, 1.0, 1.0], "order": 1, "coarse_order": 1},
        {"kind": "pad"},
        {"kind": "pad", "divisor": 0},
        {"kind": "denoise", "size_voxels": 2},
        {"kind": "enhance", "method": "gamma"},
        {"kind": "enhance", "method": "clahe", "clip_limit": 0.0},
        {"kind": "enhance", "method": "clahe", "gamma": 0.5},
        {"kind": "crop_foreground", "above": 0.0, "opening_voxels": -1},
    ],
)
def test_senseless_step_is_refused_when_read(table: dict[str, Any]) -> None:
    """A step that could not run, or would ignore a key, is an error of the manifest."""
    with pytest.raises(ValidationError):
        TypeAdapter(Step).validate_python(table)
