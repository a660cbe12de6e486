"""The QA phantom's truth."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_build.phantoms import Phantom, make_phantom, object_occupancy, write_study
from model_build.phantoms.qa import GAP_MM
from model_build.phantoms.solids import Solid, occupancy, rotation_from, segment_distance_mm

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """Return one oblique phantom."""
    return make_phantom(7)


def test_seed_decides_everything(phantom: Phantom) -> None:
    """The same seed gives the same phantom, another seed another."""
    again, other = make_phantom(7), make_phantom(8)
    np.testing.assert_array_equal(phantom.array, again.array)
    assert phantom.truth() == again.truth()
    assert phantom.slice_order == again.slice_order
    assert phantom.truth() != other.truth()


@settings(max_examples=40, deadline=None)
@given(
    half=st.tuples(*[st.floats(3.0, 8.0)] * 3),
    quaternion=st.tuples(*[st.floats(0.1, 1.0)] * 4),
    spacing=st.tuples(st.floats(0.7, 1.2), st.floats(0.7, 1.2), st.floats(0.9, 2.0)),
    centre=st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    shape=st.sampled_from(["ellipsoid", "cylinder", "box"]),
)
def test_occupancy_sums_to_the_analytic_volume(
    half: tuple[float, float, float],
    quaternion: tuple[float, ...],
    spacing: tuple[float, float, float],
    centre: tuple[float, float, float],
    shape: str,
) -> None:
    """Whatever the grid, filled fractions times voxel volume give the solid's volume, a thin cylinder's to 1.5 %."""
    radius = half[0] if shape == "cylinder" else half[1]
    solid = Solid(
        shape=shape,  # type: ignore[arg-type]  # one of the three
        centre_lps_mm=centre,
        half_mm=(half[0], radius, half[2]),
        rotation=rotation_from(np.array(quaternion)),
        hu=50.0,
    )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(rotation_from(np.array(quaternion[::-1]))) * spacing
    affine[:3, 3] = -affine[:3, :3] @ (24, 24, 24)
    _, part = occupancy(solid, (49, 49, 49), affine)
    volume = float(part.sum()) * float(np.prod(spacing))
    assert pytest.approx(solid.volume_mm3, rel=0.015) == volume


def test_objects_fill_their_true_volume_and_never_overlap(phantom: Phantom) -> None:
    """The occupancy of each object alone is its volume to 1 %, and no voxel is filled twice."""
    voxel_ml = abs(np.linalg.det(phantom.affine_lps[:3, :3])) / 1000
    for each in phantom.objects:
        filled = object_occupancy((each,), phantom.array.shape, phantom.affine_lps)
        assert pytest.approx(each.volume_ml, rel=0.01) == float(filled.sum()) * voxel_ml
    together = object_occupancy(phantom.objects, phantom.array.shape, phantom.affine_lps)
    assert together.max() <= 1.0


@pytest.mark.parametrize("seed", range(6))
def test_solids_keep_their_distance_and_their_size(seed: int) -> None:
    """Objects are 8 to 36 mm, 40 to 120 HU, and nothing lies nearer than the gap to anything else."""
    phantom = make_phantom(seed)
    assert 4 <= len(phantom.objects) <= 9
    for each in phantom.objects:
        assert 8 <= each.smallest_diameter_mm <= each.diameter_mm <= 36
        assert 40 <= each.hu <= 120
    solids = [
        Solid(
            shape="ellipsoid",
            centre_lps_mm=each.centre_lps_mm,
            half_mm=each.semi_axes_mm,
            rotation=each.rotation,
            hu=each.hu,
        )
        for each in phantom.objects
    ] + list(phantom.distractors)
    gaps = [segment_distance_mm(a, b) for index, a in enumerate(solids) for b in solids[:index]]
    assert min(gaps) >= GAP_MM


def test_array_shows_each_object_at_its_place(phantom: Phantom) -> None:
    """The mean of an object's full voxels is its HU, to the noise; the water around is 0 and the corner is air."""
    for each in phantom.objects:
        filled = object_occupancy((each,), phantom.array.shape, phantom.affine_lps)
        inside = phantom.array[filled > 0.999]
        # 18 HU of noise whose neighbours correlate: the variance of a mean is ten times that of white noise.
        assert abs(float(inside.mean()) - each.hu) < 4 * 18 * np.sqrt(10 / inside.size)
    assert abs(float(phantom.array[:2, :2].mean()) + 1000) < 2


def test_orientations_differ_as_they_say() -> None:
    """Oblique: turned slices in random order. Axial: along the body's axes and in order."""
    axial, oblique = make_phantom(5, orientation="axial"), make_phantom(5)
    directions = axial.affine_lps[:3, :3] / np.linalg.norm(axial.affine_lps[:3, :3], axis=0)
    np.testing.assert_array_equal(np.eye(3), directions)
    assert list(range(len(axial.slice_order))) == list(axial.slice_order)
    assert np.abs(oblique.affine_lps[:3, :3]).min() > 0
    assert sorted(oblique.slice_order) != list(oblique.slice_order)


def test_empty_phantom_has_distractors_only() -> None:
    """Its right answer is an explicit nothing."""
    phantom = make_phantom(5, empty=True)
    assert () == phantom.objects
    assert phantom.distractors


def test_study_on_disk_agrees_with_the_phantom(phantom: Phantom, tmp_path: Path) -> None:
    """Every instance lies where the affine says, shows its slice, and truth.json holds the truth and the UIDs."""
    study = write_study(phantom, tmp_path, uid_root="2.25.5", acquired_at=NOON)
    assert len(phantom.slice_order) == len(study.instances)
    for path, z in list(zip(study.instances, phantom.slice_order, strict=True))[::10]:
        ds = pydicom.dcmread(path)
        np.testing.assert_allclose((phantom.affine_lps @ (0, 0, z, 1))[:3], ds.ImagePositionPatient, atol=1e-6)
        assert np.abs(ds.pixel_array - 1024.0 - phantom.array[z]).max() <= 0.5
    assert ("QA-PHANTOM-7", "QA phantom", "QA PHANTOM", "20260131", "CT") == (
        ds.PatientID,
        ds.StudyDescription,
        ds.SeriesDescription,
        ds.StudyDate,
        ds.Modality,
    )
    truth = json.loads(study.truth.read_text(encoding="utf-8"))
    assert study.study_instance_uid == truth["study_instance_uid"] == ds.StudyInstanceUID
    assert phantom.truth()["objects"] == truth["objects"]
    assert {
        "number",
        "kind",
        "centre_lps_mm",
        "semi_axes_mm",
        "diameter_mm",
        "smallest_diameter_mm",
        "volume_ml",
        "hu",
    } == set(truth["objects"][0])
