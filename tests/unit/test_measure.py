"""Measurements with a known truth: analytic bodies in any grid, and the IBSI phantom."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.findings import Mask, Measurements
from dicom_node.imaging import Grid, crop_mask, measure
from dicom_node.reading import read_nifti
from tests.unit.imaging_case import inside_ellipsoid, make_grid, make_volume, rotation_about, rotations

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


@pytest.mark.data
def test_ibsi_digital_phantom_has_its_consensus_values(shared_data: Path) -> None:
    """IBSI 1.0 consensus: 592 mm3, mesh 556 +- 4, diameter 13.1 +- 0.1 mm, mean 2.15, variance 3.05, median 1."""
    folder = shared_data / "ibsi_digital_phantom" / "nifti"
    values, affine = read_nifti(folder / "image" / "phantom.nii.gz")
    labels, _ = read_nifti(folder / "mask" / "mask.nii.gz")
    found = _measure(labels > 0, Grid(shape=values.shape, affine_lps=affine), values)
    assert found.volume_mesh_ml is not None
    assert found.volume_ml * 1000 == pytest.approx(592)
    assert found.volume_mesh_ml * 1000 == pytest.approx(556, abs=4)
    assert found.diameter_3d_mm == pytest.approx(13.1, abs=0.1)
    assert found.mean == pytest.approx(2.15, abs=0.005)
    assert found.sd**2 == pytest.approx(3.05, abs=0.005)
    assert (found.median, found.minimum, found.maximum) == (1, 1, 6)
