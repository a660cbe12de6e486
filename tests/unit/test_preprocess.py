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
from dicom_node.imaging.preprocess import box_on, interpolate, pad_to_multiple, right_angled, to_source, whole_box
from dicom_node.imaging.steps import Clip, CropForeground, Denoise, Fit, Normalise, Orient, Pad, Resample, Step
from tests.unit.imaging_case import blob, dice, make_grid, make_volume, rotation_about, rotations, world

CENTRE = (5.0, -7.0, 30.0)
AXES = ["SPL", "LIA", "RAS", "ASL", "IPR", "PRS"]


def _noise(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


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
    """Outside the box that `box_on` gives, nothing of the other grid's box can be seen."""
    prepared, source = make_grid((12, 12, 12)), make_grid((14, 15, 16), (1.2, 0.8, 1.0), rotation=rotation)
    inner = tuple(slice(at, at + size) for at in start)
    array = np.zeros(prepared.shape, dtype=np.float32)
    array[inner] = 1.0
    seen = to_source(array, prepared, source, whole_box(source.shape))
    box = box_on(source, prepared, inner)  # type: ignore[arg-type]
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
        (Denoise(size_voxels=3), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
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


def test_crop_without_foreground_keeps_all() -> None:
    """Nothing above the threshold: nothing is cropped, and the gate or the network decides."""
    assert _run(np.zeros((5, 6, 7)), make_grid((5, 6, 7)), CropForeground(above=1.0)).array.shape == (5, 6, 7)


def test_pad_adds_at_the_end() -> None:
    """Padding to a multiple moves no voxel."""
    padded = pad_to_multiple(np.ones((2, 5, 8, 3), dtype=np.float32), 4, -2.0)
    assert padded.shape == (2, 8, 8, 4)
    assert padded[:, :5, :, :3].min() == 1.0
    assert padded.sum() == 2 * 5 * 8 * 3 - 2.0 * (padded.size - 2 * 5 * 8 * 3)


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
        {"kind": "clip", "low": 0.0, "high": 1.0, "hihg": 2.0},
    ],
)
def test_senseless_step_is_refused_when_read(table: dict[str, Any]) -> None:
    """A step that could not run, or would ignore a key, is an error of the manifest."""
    with pytest.raises(ValidationError):
        TypeAdapter(Step).validate_python(table)
