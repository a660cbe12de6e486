"""Measurements with a known truth: analytic bodies in any grid."""

from __future__ import annotations

import importlib
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes

from dicom_node.findings import Mask, Measurements
from dicom_node.imaging import Grid, crop_mask, measure
from tests.unit.imaging_case import inside_ellipsoid, make_grid, make_volume, rotation_about, rotations

measuring = importlib.import_module("dicom_node.imaging.measure")
"""The module: in the package its name is the function's."""

CENTRE = (6.3, -7.2, 29.6)


def _measure(inside: NDArray[np.bool_], grid: Grid, values: NDArray[np.float64] | None = None) -> Measurements:
    mask = crop_mask(inside)
    assert mask is not None
    return measure(mask, make_volume(np.zeros(grid.shape) if values is None else values, grid))


@settings(max_examples=20, deadline=None)
@given(rotation=rotations(), shear=st.floats(-0.35, 0.35), z_mm=st.floats(0.5, 1.0))
def test_sphere_measures_as_a_sphere(rotation: NDArray[np.float64], shear: float, z_mm: float) -> None:
    """Radius 10 mm in any oblique, sheared grid: volume, diameters, place and roundness are the sphere's."""
    grid = make_grid((60, 50, 60), (0.6, 0.8, z_mm), rotation=rotation, shear=shear)
    found = _measure(inside_ellipsoid(grid, CENTRE, (10.0, 10.0, 10.0)), grid)
    volume_ml = 4 / 3 * math.pi
    assert found.volume_ml == pytest.approx(4.18879, rel=0.01)
    assert found.volume_mesh_ml == pytest.approx(volume_ml, rel=0.02)
    assert found.diameter_3d_mm == pytest.approx(20.0, abs=1.2)
    assert found.diameter_long.length_mm == pytest.approx(20.0, abs=1.2)
    assert found.diameter_short is not None
    assert found.diameter_short.length_mm == pytest.approx(20.0, abs=1.3)
    assert found.centroid_lps_mm == pytest.approx(CENTRE, abs=0.1)
    # Marching cubes of a binary mask has steps: its surface is up to a tenth too large.
    assert found.surface_mm2 == pytest.approx(400 * math.pi, rel=0.12)
    assert found.sphericity == pytest.approx(0.95, abs=0.06)


def test_ellipsoid_has_its_axes() -> None:
    """Half axes 15, 8 and 6 mm: the long diameter lies on the widest slice, the short one across it."""
    grid = make_grid((40, 60, 70), (0.5, 0.5, 1.0))
    found = _measure(inside_ellipsoid(grid, CENTRE, (15.0, 8.0, 6.0)), grid)
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * 15 * 8 * 6 / 1000, rel=0.01)
    assert found.diameter_long.length_mm == pytest.approx(30.0, abs=0.5)
    assert found.diameter_short is not None
    assert found.diameter_short.length_mm == pytest.approx(16.0, abs=0.6)
    assert found.diameter_long.slice_index == found.diameter_short.slice_index
    assert found.diameter_long.slice_index == round(grid.to_voxel(np.array(CENTRE))[2])
    assert found.slice_range == (14, 24) or found.slice_range[1] - found.slice_range[0] in (11, 12)


def test_diameters_end_where_they_say() -> None:
    """The ends, through the affine, are as far apart as the length says, and the two lines cross at right angles."""
    rotation = rotation_about(np.array([1.0, 2.0, 3.0]), 0.7)
    grid = make_grid((20, 80, 60), (0.9, 0.5, 2.0), rotation=rotation)
    found = _measure(inside_ellipsoid(grid, (6.0, -8.0, 31.0), (13.0, 9.0, 7.0)), grid)
    assert found.diameter_short is not None
    directions = []
    for line in (found.diameter_long, found.diameter_short):
        start, end = (grid.to_world(np.array([*point, line.slice_index])) for point in (line.start, line.end))
        assert np.linalg.norm(end - start) == pytest.approx(line.length_mm, abs=1e-9)
        directions.append((end - start) / line.length_mm)
    assert directions[0] @ directions[1] == pytest.approx(0.0, abs=1e-9)
    assert found.diameter_short.length_mm <= found.diameter_long.length_mm


def test_one_voxel_is_one_voxel_wide() -> None:
    """The smallest mask has a volume, a diameter and a short diameter, and no statistics fail."""
    grid = make_grid((5, 5, 5), (2.0, 3.0, 4.0))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[2, 2, 2] = True
    values = np.full(grid.shape, -7.0)
    found = _measure(inside, grid, values)
    assert (found.n_voxels, found.volume_ml) == (1, pytest.approx(0.024))
    assert found.diameter_long.length_mm == pytest.approx(3.0)
    assert (found.diameter_long.start, found.diameter_long.end) in [((2, 1.5), (2, 2.5)), ((2, 2.5), (2, 1.5))]
    assert found.diameter_short is not None
    assert found.diameter_short.length_mm == pytest.approx(2.0)
    assert found.diameter_3d_mm == pytest.approx(4.0)
    assert (found.mean, found.sd, found.minimum, found.maximum, found.median) == (-7, 0, -7, -7, -7)
    assert found.centroid_lps_mm == pytest.approx((5.0, -7.0, 30.0))


def test_intensities_are_those_inside() -> None:
    """Population standard deviation, over the voxels of the mask alone."""
    grid = make_grid((1, 1, 6))
    values = np.array([[[1000.0, 1, 2, 3, 6, -1000]]])
    inside = np.array([[[False, True, True, True, True, False]]])
    found = _measure(inside, grid, values)
    assert (found.mean, found.minimum, found.maximum, found.median) == (3.0, 1.0, 6.0, 2.5)
    assert found.sd == pytest.approx(math.sqrt(3.5))


@pytest.mark.parametrize(("modality", "unit"), [("CT", "[hnsf'U]"), ("MR", "1"), ("PT", "1")])
def test_unit_is_the_modality_s(modality: str, unit: str) -> None:
    """Hounsfield units for CT; arbitrary numbers have the unit one."""
    grid = make_grid((3, 3, 3))
    mask = Mask(offset=(1, 1, 1), array=np.ones((1, 1, 1), dtype=bool))
    assert unit == measure(mask, make_volume(np.zeros(grid.shape), grid, modality=modality)).intensity_unit


def test_empty_mask_is_refused() -> None:
    """Nothing has no diameter."""
    grid = make_grid((3, 3, 3))
    with pytest.raises(ValueError, match="empty mask"):
        measure(Mask(offset=(0, 0, 0), array=np.zeros((2, 2, 2), dtype=bool)), make_volume(np.zeros(grid.shape), grid))


def test_two_parts_on_a_slice_are_measured_across_both() -> None:
    """A finding is one finding: its diameter spans its parts."""
    grid = make_grid((1, 3, 20))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[0, 1, 1] = inside[0, 1, 18] = True
    assert _measure(inside, grid).diameter_long.length_mm == pytest.approx(18.0)


@settings(max_examples=25, deadline=None)
@given(
    rotation=rotations(),
    shear=st.floats(-0.35, 0.35),
    spacing=st.tuples(*(st.floats(0.4, 1.1) for _ in range(3))),
    radii=st.tuples(st.floats(14, 20), st.floats(9, 13), st.floats(6, 8.5)),
)
def test_ellipsoid_has_its_axes_in_any_grid(
    rotation: NDArray[np.float64],
    shear: float,
    spacing: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> None:
    """Oblique, sheared, anisotropic, mirrored: volume, axes, elongation, flatness and 3D diameter are the body's.

    A solid ellipsoid's principal axes by four roots of its variances are 4 / sqrt(5) of its half axes.
    """
    grid = make_grid(_shape_around(20.5, spacing, shear), spacing, rotation=rotation, shear=shear, centre_lps=CENTRE)
    found = _measure(inside_ellipsoid(grid, CENTRE, radii), grid)
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * math.prod(radii) / 1000, rel=0.03)
    assert found.volume_mesh_ml == pytest.approx(found.volume_ml, rel=0.01)
    axes = (found.major_axis_mm, found.minor_axis_mm, found.least_axis_mm)
    assert axes == pytest.approx([4 / math.sqrt(5) * radius for radius in radii], rel=0.025)
    assert found.elongation == pytest.approx(radii[1] / radii[0], abs=0.025)
    assert found.flatness == pytest.approx(radii[2] / radii[0], abs=0.025)
    assert found.diameter_3d_mm == pytest.approx(2 * radii[0], abs=1.5 * max(spacing))
    assert found.diameter_long.length_mm <= found.diameter_3d_mm + 1e-9
    # Smooth and convex: what is rough about it are the steps of its voxels.
    assert found.border_irregularity == pytest.approx(1.06, abs=0.06)
    assert found.solidity == pytest.approx(0.95, abs=0.05)


def _shape_around(radius_mm: float, spacing: tuple[float, float, float], shear: float) -> tuple[int, int, int]:
    """Return the shape (Z, Y, X) of a grid, however turned, that holds a sphere."""
    x, y, z = (math.ceil(2 * radius_mm / step) + 4 for step in spacing)
    return z, math.ceil(y * 1.4), x


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 4), (3, 1, 1), (2, 3, 1), (3, 4, 5)])
def test_box_has_the_variances_of_its_voxels(size: tuple[int, int, int]) -> None:
    """Of n voxels in a row of step s the variance is s^2 (n^2 - 1) / 12: a row has one axis, a plate two."""
    grid = make_grid((7, 8, 9), (1.5, 2.0, 2.5), rotation=rotation_about(np.array([1.0, 2.0, 3.0]), 0.7))
    inside = np.zeros(grid.shape, dtype=bool)
    inside[tuple(slice(2, 2 + extent) for extent in size)] = True
    found = _measure(inside, grid)
    steps = (2.5, 2.0, 1.5)
    n_voxels = math.prod(size)
    of_a_sample = n_voxels / max(n_voxels - 1, 1)
    lengths = [4 * s * math.sqrt((n * n - 1) / 12 * of_a_sample) for s, n in zip(steps, size, strict=True)]
    expected = sorted(lengths, reverse=True)
    assert (found.major_axis_mm, found.minor_axis_mm, found.least_axis_mm) == pytest.approx(expected, abs=1e-9)
    if expected[0] == 0:
        assert (None, None) == (found.elongation, found.flatness)
    else:
        assert (found.elongation, found.flatness) == pytest.approx([axis / expected[0] for axis in expected[1:]])
    volume = math.prod(n * s for n, s in zip(size, steps, strict=True))
    assert found.volume_ml == pytest.approx(volume / 1000)
    assert found.solidity == pytest.approx(1.0)
    assert found.border_irregularity == pytest.approx(1.0)


def test_roughness_is_told_from_length() -> None:
    """A smooth long body is as regular as a sphere; spikes are not, and sphericity cannot tell the two apart."""
    grid = make_grid((64, 64, 64))
    middle = (5.0, -7.0, 30.0)
    ball = inside_ellipsoid(grid, middle, (14.0, 14.0, 14.0))
    cigar = inside_ellipsoid(grid, middle, (28.0, 8.0, 8.0))
    spiky = inside_ellipsoid(grid, middle, (13.0, 13.0, 13.0))
    spiky[::4, ::4, :] |= inside_ellipsoid(grid, middle, (17.0, 17.0, 17.0))[::4, ::4, :]
    round_, long, rough = (_measure(inside, grid) for inside in (ball, cigar, spiky))
    assert long.border_irregularity == pytest.approx(round_.border_irregularity, abs=0.04)
    assert rough.border_irregularity is not None
    assert round_.border_irregularity is not None
    assert rough.border_irregularity > round_.border_irregularity + 0.08
    assert long.asphericity is not None
    assert round_.asphericity is not None
    assert long.asphericity > round_.asphericity + 0.15


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), fill=st.floats(0.02, 0.6), slab=st.sampled_from([1, 100, 400, 10**6]))
def test_mesh_and_hull_do_not_depend_on_how_they_are_made(seed: int, fill: float, slab: int) -> None:
    """Slab by slab gives area and volume of the whole mesh; the hull from slices is that of the mesh's vertices."""
    inside = np.random.default_rng(seed).random((7, 9, 8)) < fill
    inside[3, 4, 4] = True
    mask = crop_mask(inside)
    assert mask is not None
    grid = make_grid(inside.shape, (0.7, 0.9, 2.1), rotation=rotation_about(np.array([3.0, 1.0, 2.0]), 1.1), shear=0.3)
    vertices, faces, _, _ = marching_cubes(np.pad(mask.array, 1).astype(np.float32), 0.5)
    points = vertices[:, ::-1].astype(float) @ grid.affine_lps[:3, :3].T
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    area_mm2 = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    volume_mm3 = abs(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
    hull = ConvexHull(points)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_SLAB_VOXELS", slab)
        found = _measure(inside, grid)
    assert found.surface_mm2 == pytest.approx(area_mm2, rel=1e-6)
    assert found.volume_mesh_ml == pytest.approx(volume_mm3 / 1000, rel=1e-6)
    assert found.solidity == pytest.approx(volume_mm3 / hull.volume, rel=1e-6)
    assert found.border_irregularity == pytest.approx(area_mm2 / hull.area, rel=1e-6)
    assert found.diameter_3d_mm == pytest.approx(pdist(points[hull.vertices]).max(), rel=1e-6)


def test_memory_follows_the_slab_not_the_mask() -> None:
    """A body of 7 million voxels is measured in less memory than its box takes as float32, and in seconds."""
    grid = make_grid((240, 240, 240))
    z, y, x = np.ogrid[:240, :240, :240]
    inside = ((z - 120) ** 2 + (y - 120) ** 2 + (x - 120) ** 2) < 118**2
    mask = crop_mask(inside)
    assert mask is not None
    volume = make_volume(np.zeros(grid.shape, dtype=np.float32), grid)
    measure(Mask(offset=(0, 0, 0), array=np.ones((1, 1, 1), dtype=bool)), volume)  # what is loaded is loaded
    tracemalloc.start()
    try:
        found = measure(mask, volume)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.diameter_3d_mm == pytest.approx(236, abs=1.0)
    values = 4 * found.n_voxels  # those inside, as float32; their spread needs them as float64 too
    assert peak < 4.5 * values


def test_a_liver_is_measured_in_less_than_a_second() -> None:
    """The best of three: half a million voxels, all measurements."""
    grid = make_grid((110, 240, 240))
    inside = inside_ellipsoid(grid, (5.0, -7.0, 30.0), (100.0, 60.0, 22.0))
    mask = crop_mask(inside)
    assert mask is not None
    assert mask.n_voxels > 366_708
    volume = make_volume(np.zeros(grid.shape), grid)
    taken = []
    for _ in range(3):
        started = time.process_time()
        measure(mask, volume)
        taken.append(time.process_time() - started)
    assert min(taken) < 1.0
