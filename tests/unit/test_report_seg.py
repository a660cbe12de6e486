"""SEG: the voxels, the places and the sizes of the findings, whatever the order and kind of the sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.report import build_results, encode
from dicom_node.report.seg import slice_distance_mm
from tests.unit import report_case as case

GEOMETRIES = [
    (kind, order, enhanced)
    for kind in ("straight", "oblique", "tilted")
    for order in (None, (3, 1, 0, 2, 8, 7, 6, 5, 4))
    for enhanced in (False, True)
]

MASKS = {
    "one": [("sphere", case.ball((4, 8, 9), 3))],
    "apart": [("sphere", case.ball((2, 8, 9), 2)), ("sphere", case.ball((6, 12, 19), 2.5))],
    "overlapping": [("sphere", case.ball((4, 8, 9), 3)), ("brain", case.ball((5, 9, 10), 3.5))],
}


def seg_of(tmp_path: Path, findings: case.Findings, headers: list[Dataset]) -> Dataset:
    (built,) = build_results(findings, case.MANIFEST, headers, case.IDENTITY, kinds=("seg",))
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(built.dataset))
    return pydicom.dcmread(path)


def voxels_lps(ds: Dataset, number: int) -> NDArray[np.float64]:
    """Return the LPS positions of a segment's voxels, sorted, from the written object alone."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows_mm, columns_mm = shared.PixelMeasuresSequence[0].PixelSpacing
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    found = []
    for groups, frame in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        owner = groups if "SegmentIdentificationSequence" in groups else shared
        if owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            assert frame.any(), "a frame without voxels was written"
            origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            row, column = np.nonzero(frame)
            found.append(origin + np.outer(column * columns_mm, cosines[:3]) + np.outer(row * rows_mm, cosines[3:]))
    return np.array(sorted(np.concatenate(found).round(3).tolist()))


def expected_lps(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    places = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    return np.array(sorted(places.round(3).tolist()))


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize(("kind", "order", "enhanced"), GEOMETRIES)
def test_every_voxel_comes_back_at_its_place(
    masks: str, kind: str, order: tuple[int, ...] | None, enhanced: bool, tmp_path: Path
) -> None:
    """Read from the file by another library, each segment has exactly the voxels of its mask, in millimetres."""
    affine = case.affine(kind=kind)
    headers = case.headers_of(tmp_path, affine, order=order, enhanced=enhanced)
    findings = case.findings_of(MASKS[masks], headers, affine)

    ds = seg_of(tmp_path, findings, headers)

    for number, (_, mask) in enumerate(MASKS[masks], 1):
        np.testing.assert_allclose(voxels_lps(ds, number), expected_lps(mask, affine), atol=2e-3)
    assert ("YES" if masks == "overlapping" else "NO") == ds.SegmentsOverlap


@pytest.mark.parametrize(("kind", "order", "enhanced"), GEOMETRIES)
def test_each_frame_refers_to_the_image_at_its_position(
    kind: str, order: tuple[int, ...] | None, enhanced: bool, tmp_path: Path
) -> None:
    """The referenced image, and the frame of an enhanced one, lies where the SEG's frame lies."""
    affine = case.affine(kind=kind)
    headers = case.headers_of(tmp_path, affine, order=order, enhanced=enhanced)
    findings = case.findings_of(MASKS["one"], headers, affine)
    positions = {(f.sop_instance_uid, f.frame_number): f.position_mm for f in findings.frames}

    ds = seg_of(tmp_path, findings, headers)

    for groups in ds.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert enhanced == ("ReferencedFrameNumber" in source)
        assert str(headers[0].SOPClassUID) == source.ReferencedSOPClassUID
        expected = positions[source.ReferencedSOPInstanceUID, int(source.get("ReferencedFrameNumber", 1))]
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, expected, atol=1e-4)
    referenced = ds.ReferencedSeriesSequence[0]
    assert headers[0].SeriesInstanceUID == referenced.SeriesInstanceUID
    assert {h.SOPInstanceUID for h in headers} == {
        item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence
    }


def test_pixel_measures_come_from_positions_not_from_headers(tmp_path: Path) -> None:
    """A series with every second slice removed still states its old thickness; its volumes must not be halved."""
    affine = case.affine(kind="oblique")
    wrong = {"SliceThickness": 1.05, "SpacingBetweenSlices": 1.05}
    headers = case.headers_of(tmp_path, affine, headers=wrong)
    findings = case.findings_of(MASKS["one"], headers, affine)

    measures = seg_of(tmp_path, findings, headers).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]

    assert 2.1 == pytest.approx(measures.SliceThickness)
    assert 2.1 == pytest.approx(measures.SpacingBetweenSlices)
    assert [0.9, 0.7] == [float(value) for value in measures.PixelSpacing]


def test_slice_distance_of_a_tilted_stack_is_along_the_normal() -> None:
    """The step of a sheared stack is longer than the distance of its planes; only the latter gives volumes."""
    assert 2.1 == pytest.approx(slice_distance_mm(case.affine(kind="tilted")))


def test_a_segment_says_what_it_is_and_who_made_it(tmp_path: Path) -> None:
    """Codes, tracking, colour and algorithm come from the manifest and the identity."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of(MASKS["apart"] + MASKS["overlapping"][1:], headers, affine)

    ds = seg_of(tmp_path, findings, headers)

    assert ["sphere 1", "sphere 2", "brain"] == [segment.SegmentLabel for segment in ds.SegmentSequence]
    assert ["sphere 1", "sphere 2", "brain 3"] == [segment.TrackingID for segment in ds.SegmentSequence]
    assert [case.IDENTITY.tracking_uid(n) for n in (1, 2, 3)] == [s.TrackingUID for s in ds.SegmentSequence]
    brain = ds.SegmentSequence[2]
    assert "12738006" == brain.SegmentedPropertyTypeCodeSequence[0].CodeValue
    assert "12738006" == brain.AnatomicRegionSequence[0].CodeValue
    assert 3 == len(brain.RecommendedDisplayCIELabValue)
    algorithm = brain.SegmentationAlgorithmIdentificationSequence[0]
    assert ("Test spheres", "1.2.3") == (algorithm.AlgorithmName, algorithm.AlgorithmVersion)
    assert "a" * 64 in algorithm.AlgorithmParameters
    assert "RESEARCH" == ds.ContentQualification
    assert "demonstrator" in ds.SeriesDescription
    assert ["DICOM Node"] == [item.Manufacturer for item in ds.ContributingEquipmentSequence[1:]]
    assert "DICOM Node" == ds.Manufacturer


@st.composite
def point_phantoms(draw: st.DrawFn) -> tuple[NDArray[np.float64], tuple[int, int, int], tuple[int, ...]]:
    """Return a random right-angled affine, one voxel (z, y, x), and an order of the files."""
    numbers = st.floats(-1, 1, allow_nan=False).filter(lambda v: abs(v) > 0.05)
    turn, _ = np.linalg.qr(np.array([[draw(numbers) for _ in range(3)] for _ in range(3)]) + 2 * np.eye(3))
    turn[:, 2] *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn * [draw(st.floats(0.3, 3)) for _ in range(3)]
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    voxel = (draw(st.integers(0, 4)), draw(st.integers(0, 6)), draw(st.integers(0, 8)))
    return affine, voxel, tuple(draw(st.permutations(range(5))))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(phantom=point_phantoms())
def test_a_single_voxel_lies_where_the_affine_says(
    phantom: tuple[NDArray[np.float64], tuple[int, int, int], tuple[int, ...]], tmp_path: Path
) -> None:
    """One voxel in any orientation and file order comes back within a hundredth of a millimetre."""
    affine, voxel, order = phantom
    headers = case.headers_of(tmp_path, affine, shape=(5, 7, 9), order=order)
    mask = np.zeros((5, 7, 9), dtype=bool)
    mask[voxel] = True
    findings = case.findings_of([("sphere", mask)], headers, affine)

    place = voxels_lps(seg_of(tmp_path, findings, headers), 1)

    np.testing.assert_allclose(place, [affine[:3, :3] @ voxel[::-1] + affine[:3, 3]], atol=0.01)
