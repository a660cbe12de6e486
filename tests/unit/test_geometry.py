from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.errors import GeometryError
from dicom_node.imaging.geometry import (
    Grid,
    frame_between,
    grid_from_frames,
    same_position_mm,
    shear_degrees,
    single_slice_grid,
    slice_distance_mm,
)
from dicom_node.study import Frame

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def frame(position: tuple[float, float, float], **changes: Any) -> Frame:
    """Return an axial frame of 4 x 5 pixels of 2 x 3 mm at a position."""
    whole = Frame(
        sop_instance_uid="1.2",
        frame_number=1,
        position_mm=position,
        orientation=AXIAL,
        pixel_spacing_mm=(2.0, 3.0),
        rows=4,
        columns=5,
        frame_of_reference_uid="1.3",
    )
    return replace(whole, **changes)


def axial(*z_mm: float) -> list[Frame]:
    """Return axial frames at these heights."""
    return [frame((10.0, 20.0, z)) for z in z_mm]


@st.composite
def affines(draw: st.DrawFn) -> NDArray[np.float64]:
    """Right-handed, oblique, anisotropic and sheared affines: a turned grid whose step leans in both directions."""
    quaternion = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.1)))
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    sizes = [draw(st.floats(0.2, 6.0)) for _ in range(3)]
    lean = [draw(st.floats(-0.5, 0.5)) for _ in range(2)]
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[sizes[0], 0, lean[0]], [0, sizes[1], lean[1]], [0, 0, sizes[2]]])
    affine[:3, 3] = [draw(st.floats(-500, 500)) for _ in range(3)]
    return affine


def frames_on(affine: NDArray[np.float64], n_slices: int) -> list[Frame]:
    """Return the frames of slices 0, 1 ... of a grid."""
    columns, rows = np.linalg.norm(affine[:3, 0]), np.linalg.norm(affine[:3, 1])
    cosines = tuple(float(value) for value in [*(affine[:3, 0] / columns), *(affine[:3, 1] / rows)])
    return [
        frame(
            tuple(float(value) for value in affine[:3, 3] + z * affine[:3, 2]),
            orientation=cosines,
            pixel_spacing_mm=(float(rows), float(columns)),
        )
        for z in range(n_slices)
    ]


@settings(max_examples=100, deadline=None)
@given(affine=affines(), order=st.integers(2, 12).flatmap(lambda n: st.permutations(range(n))))
def test_any_regular_stack_in_any_order_gives_its_affine(affine: NDArray[np.float64], order: list[int]) -> None:
    """Oblique, sheared and shuffled frames give back the grid that they were cut from."""
    frames = frames_on(affine, len(order))
    grid, found = grid_from_frames([frames[z] for z in order])
    assert list(range(len(order))) == [order[i] for i in found]
    assert (len(order), 4, 5) == grid.shape
    np.testing.assert_allclose(grid.affine_lps, affine, rtol=0, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(affine=affines(), voxel=st.tuples(*[st.floats(-600, 600)] * 3))
def test_world_and_voxel_are_inverse(affine: NDArray[np.float64], voxel: tuple[float, float, float]) -> None:
    """A voxel's place in mm leads back to the voxel."""
    grid = Grid(shape=(2, 2, 2), affine_lps=affine)
    np.testing.assert_allclose(grid.to_voxel(grid.to_world(np.array(voxel))), voxel, rtol=0, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(affine=affines(), place=st.tuples(*[st.floats(-1000, 1000)] * 3))
def test_a_place_in_the_patient_survives_the_way_through_voxels(
    affine: NDArray[np.float64], place: tuple[float, float, float]
) -> None:
    """World to voxel to world, to a millionth of a millimetre, by the grid that the frames make."""
    grid, _ = grid_from_frames(frames_on(affine, 3))
    np.testing.assert_allclose(grid.to_world(grid.to_voxel(np.array(place))), place, rtol=0, atol=1e-6)
    np.testing.assert_allclose(grid.to_world(np.array([4.0, 3.0, 2.0])), affine[:3] @ [4, 3, 2, 1], rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    affine=affines(),
    lost=st.sets(st.integers(1, 8), max_size=4),
    order=st.permutations(range(10)),
)
def test_lost_slices_leave_their_places_empty(affine: NDArray[np.float64], lost: set[int], order: list[int]) -> None:
    """The grid is that of the whole stack, whichever slices within it are missing, and the frames stand at theirs."""
    frames = frames_on(affine, 10)
    kept = [z for z in order if z not in lost]
    grid, found = grid_from_frames([frames[z] for z in kept], missing_slices=len(lost))
    assert (10, 4, 5) == grid.shape
    assert [None if z in lost else z for z in range(10)] == [None if at is None else kept[at] for at in found]
    np.testing.assert_allclose(grid.affine_lps, affine, rtol=0, atol=1e-6)
    for z in lost:
        between = frame_between(frames[0], grid, z)
        assert between.interpolated
        np.testing.assert_allclose(between.position_mm, frames[z].position_mm, rtol=0, atol=1e-5)


def test_more_slices_are_missing_than_may_be() -> None:
    """The allowance is for the whole stack, not for each gap."""
    with pytest.raises(GeometryError, match=r"2 slices are missing \(first of 2 gaps"):
        grid_from_frames(axial(0, 2, 6, 8, 12, 14, 16), missing_slices=1)
    with pytest.raises(GeometryError, match="irregular distances"):
        grid_from_frames(axial(0, 2, 4.4, 6), missing_slices=9)


def test_a_single_slice_is_as_thick_as_it_is_said_to_be() -> None:
    """Its step is the normal times the thickness."""
    grid = single_slice_grid(frame((10.0, 20.0, 5.0), orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)), 7.0)
    assert (1, 4, 5) == grid.shape
    np.testing.assert_array_equal(
        [[-3, 0, 0, 10], [0, 2, 0, 20], [0, 0, -7, 5], [0, 0, 0, 1]], np.round(grid.affine_lps, 12)
    )


@pytest.mark.parametrize(
    ("along", "expected_mm"),
    [
        ([0, 3, 6, 9], 0.02),
        ([0, 0.01, 3, 3.01, 6, 6.01], 0.02),  # each slice twice, a rounding apart
        ([0, 0, 0, 0, 3, 3, 3, 3], 0.02),
        ([0, 0.05, 0.1, 0.15], 0.005),  # slices of 50 micrometres
        ([5], 0.001),
    ],
)
def test_one_position_is_a_rounding_and_never_a_slice(along: list[float], expected_mm: float) -> None:
    """Twice a rounding to 0.01 mm, but a tenth of the distance where slices are thinner than that."""
    assert expected_mm == pytest.approx(same_position_mm(np.array(along, dtype=float)))


def test_two_distances_are_named_with_their_numbers() -> None:
    """Half of a head at 4 mm, half at 7 mm: both distances stand in the reason."""
    with pytest.raises(
        GeometryError, match=r"irregular distances of 4\.000 to 7\.000 mm \(3 of 4\.000, 3 of 7\.000 mm\)"
    ):
        grid_from_frames(axial(0, 4, 8, 12, 19, 26, 33))


def test_pixel_spacing_is_rows_then_columns() -> None:
    """The first value of Pixel Spacing is the distance between rows: along y of an axial image (PS3.3 10.7.1.3)."""
    grid, _ = grid_from_frames(axial(0.0, 4.0))
    assert (4.0, 2.0, 3.0) == grid.spacing_mm
    np.testing.assert_array_equal(grid.to_world(np.array([1.0, 1.0, 1.0])), [13.0, 22.0, 4.0])


def test_negated_cosines_reverse_the_slices() -> None:
    """With rows that run to the right the normal points down: slice 0 is the uppermost, and nothing is flipped."""
    frames = [frame((0.0, 0.0, z), orientation=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) for z in (0.0, 4.0, 8.0)]
    grid, order = grid_from_frames(frames)
    assert (2, 1, 0) == order
    np.testing.assert_array_equal(np.diag(grid.affine_lps), [-3.0, 2.0, -4.0, 1.0])
    assert np.linalg.det(grid.affine_lps) > 0


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "no frame has a position"),
        (axial(0), "a single slice does not make a volume"),
        (
            axial(0, 2, 4, 8, 10),
            r"a slice is missing \(between slice 3 at .*4\.00\) mm and slice 4 .*8\.00\) mm: 4\.000",
        ),
        (axial(0, 2, 6), "a slice is missing"),
        (axial(0, 2, 8, 10), "2 slices are missing"),
        (axial(0, 2, 6, 8, 12, 14, 16), r"2 slices are missing \(first of 2 gaps: between slice 2"),
        (axial(0, 2, 2, 4), r"slices are doubled \(2 slices at \(10\.00, 20\.00, 2\.00\) mm, 1 doubled in all\)"),
        (axial(0, 2, 4.4, 6), "irregular distances of 1.600 to 2.400 mm"),
        (axial(0, 1, 2.5, 5), "irregular distances|missing"),
        ([*axial(0, 2), frame((10.0, 21.0, 4.0))], "irregular distances"),
        ([*axial(0, 2), frame((0.0, 0.0, 4.0), rows=6)], r"different sizes .*rows x columns: 4 x 5, 6 x 5"),
        ([*axial(0, 2), frame((10.0, 20.0, 4.0), pixel_spacing_mm=(2.0, 3.1))], "different Pixel Spacing"),
        ([*axial(0, 2), frame((10.0, 20.0, 4.0), frame_of_reference_uid="1.4")], "Frames of Reference"),
        ([*axial(0, 2), frame((10.0, 20.0, 4.0), frame_of_reference_uid=None)], "Frames of Reference"),
        (
            [*axial(0, 2), frame((0.0, 0.0, 4.0), orientation=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))],
            "different orientations .*2 orientations.*localizers",
        ),
        ([frame((0.0, 0.0, z), orientation=(1.0, 0.0, 0.0, 0.5, 0.8, 0.0)) for z in (0.0, 2.0)], "two unit vectors"),
        ([frame((0.0, 0.0, z), orientation=(0.0,) * 6) for z in (0.0, 2.0)], "two unit vectors"),
        ([frame((0.0, 0.0, z), pixel_spacing_mm=(0.0, 1.0)) for z in (0.0, 2.0)], "not positive"),
        ([frame((x, 0.0, 0.0)) for x in (0.0, 50.0)], "side by side"),
    ],
)
def test_frames_that_make_no_volume_are_refused(frames: list[Frame], reason: str) -> None:
    """Each defect of a stack is refused with what is wrong, and where."""
    with pytest.raises(GeometryError, match=reason):
        grid_from_frames(frames)


def test_several_stacks_are_refused_and_what_sets_them_apart_is_named() -> None:
    """Two echoes at each position: the reason names the echo, not the acquisition time that differs everywhere."""
    frames = [
        frame((0.0, 0.0, z), stack=(("AcquisitionTime", f"12000{z:.0f}"), ("EchoTime", echo)))
        for z in (0.0, 2.0, 4.0)
        for echo in ("4.9", "9.8")
    ]
    with pytest.raises(
        GeometryError, match=r"several stacks are mixed .*3 doubled in all\); they differ in EchoTime: 4.9, 9.8$"
    ):
        grid_from_frames(frames)


@pytest.mark.parametrize("jitter_mm", [0.004, 0.05])
def test_rounding_of_positions_is_accepted(jitter_mm: float) -> None:
    """Positions rounded to 0.01 mm, or to 0.1 mm where slices are 3 mm apart, are still one stack."""
    spacing = 0.6 if jitter_mm < 0.01 else 3.0
    signs = [1, -1, -1, 1, 1, -1, 1, -1, 1, -1]
    frames = axial(*(z * spacing + sign * jitter_mm for z, sign in enumerate(signs)))
    grid, _ = grid_from_frames(frames)
    assert spacing == pytest.approx(grid.spacing_mm[0], rel=0.01)


def test_shear_is_kept_and_measured() -> None:
    """A stack whose slices slide by 1 mm for each 1 mm of height leans by 45 degrees; its voxels keep their volume."""
    grid, _ = grid_from_frames([frame((0.0, float(z), float(z))) for z in range(4)])
    assert 45.0 == pytest.approx(shear_degrees(grid))
    assert 1.0 == pytest.approx(slice_distance_mm(grid))
    assert 6.0 == pytest.approx(grid.voxel_volume_mm3)
    np.testing.assert_allclose([0.0, 1.0, 1.0], grid.affine_lps[:3, 2])
