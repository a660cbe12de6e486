"""SR: one group with an outline a finding, an explicit absence without findings, no group that blanks a viewer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.findings import Findings
from dicom_node.report import Predecessor, build_results, encode
from dicom_node.report.sr import image_coordinates
from tests.unit import report_case as case

MASKS = [("sphere", case.ball((2, 8, 9), 2)), ("brain", case.ball((6, 12, 19), 2.5))]


def sr_of(tmp_path: Path, findings: Findings, headers: list[Dataset]) -> Dataset:
    (built,) = build_results(findings, case.MANIFEST, headers, case.IDENTITY, kinds=("sr",))
    path = tmp_path / "sr.dcm"
    path.write_bytes(encode(built.dataset))
    return pydicom.dcmread(path)


def items(ds: Dataset, *names: str) -> Iterator[Dataset]:
    """Yield the content items at a path of concept names, at the first level below `ds` and so on."""
    for item in ds.get("ContentSequence", []):
        if item.ConceptNameCodeSequence[0].CodeMeaning == names[0]:
            yield from items(item, *names[1:]) if names[1:] else [item]


def groups_of(ds: Dataset) -> list[Dataset]:
    return list(items(ds, "Imaging Measurements", "Measurement Group"))


@pytest.mark.parametrize("enhanced", [False, True])
def test_every_group_has_its_outline_on_the_image_of_its_slice(enhanced: bool, tmp_path: Path) -> None:
    """TID 1410 with a closed POLYLINE that refers to the image, and the frame, at the slice of the longest diameter."""
    affine = case.affine(kind="oblique")
    headers = case.headers_of(tmp_path, affine, order=(3, 1, 0, 2, 8, 7, 6, 5, 4), enhanced=enhanced)
    findings = case.findings_of(MASKS, headers, affine)

    groups = groups_of(sr_of(tmp_path, findings, headers))

    assert 2 == len(groups)
    for group, finding in zip(groups, findings.findings, strict=True):
        assert "1410" == group.ContentTemplateSequence[0].TemplateIdentifier
        (region,) = items(group, "Image Region")
        assert ("SCOORD", "POLYLINE") == (region.ValueType, region.GraphicType)
        points = np.reshape(region.GraphicData, (-1, 2))
        np.testing.assert_allclose(points, np.array(finding.contour) + 0.5)
        source = region.ContentSequence[0].ReferencedSOPSequence[0]
        frame = findings.frames[finding.measurements.diameter_long.slice_index]
        assert frame.sop_instance_uid == source.ReferencedSOPInstanceUID
        assert (frame.frame_number if enhanced else None) == source.get("ReferencedFrameNumber")


def test_measurements_are_coded_and_in_their_units(tmp_path: Path) -> None:
    """Volume in ml, diameters in mm, intensities in HU with how they were derived."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of(MASKS[:1], headers, affine)
    measurements = findings.findings[0].measurements

    (group,) = groups_of(sr_of(tmp_path, findings, headers))

    numbers = {}
    for item in group.ContentSequence:
        if item.ValueType == "NUM":
            how = [d.ConceptCodeSequence[0].CodeMeaning for d in items(item, "Derivation")]
            name = " ".join([*how, item.ConceptNameCodeSequence[0].CodeMeaning])
            measured = item.MeasuredValueSequence[0]
            unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
            numbers[name] = (pytest.approx(float(measured.NumericValue)), unit)
    assert numbers == {
        "Volume": (measurements.volume_ml, "mL"),
        "Long axis": (8.25, "mm"),
        "Short axis": (7.75, "mm"),
        "Mean Attenuation Coefficient": (41.5, "[hnsf'U]"),
        "Standard Deviation Attenuation Coefficient": (3.25, "[hnsf'U]"),
        "Minimum Attenuation Coefficient": (30.0, "[hnsf'U]"),
        "Maximum Attenuation Coefficient": (55.0, "[hnsf'U]"),
        "Median Attenuation Coefficient": (41.0, "[hnsf'U]"),
        "Maximum 3D Diameter of a Mesh": (9.5, "mm"),
        "Surface Area of Mesh": (101.5, "mm2"),
        "Sphericity": (0.875, "1"),
    }


def test_a_number_that_is_not_defined_is_left_out(tmp_path: Path) -> None:
    """The spread of a single voxel is no number; the report has none rather than a wrong one."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of(MASKS[:1], headers, affine)
    finding = findings.findings[0]
    thin = replace(finding.measurements, sd=float("nan"), diameter_short=None, intensity_unit="1")
    findings = replace(findings, findings=(replace(finding, measurements=thin),))

    (group,) = groups_of(sr_of(tmp_path, findings, headers))

    assert [] == list(items(group, "Short axis"))
    assert 4 == len(list(items(group, "MR signal intensity")))


def test_a_finding_is_tracked_alike_in_report_and_segmentation(tmp_path: Path) -> None:
    """Tracking Identifier and UID tie the group to its segment."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of(MASKS, headers, affine)
    built = {r.kind: r.dataset for r in build_results(findings, case.MANIFEST, headers, case.IDENTITY)}

    in_report = [
        (next(items(group, "Tracking Identifier")).TextValue, next(items(group, "Tracking Unique Identifier")).UID)
        for group in groups_of(built["sr"])
    ]

    assert [(s.TrackingID, s.TrackingUID) for s in built["seg"].SegmentSequence] == in_report


def test_nothing_found_is_said_and_not_kept_silent(tmp_path: Path) -> None:
    """No SEG; the report has no group, names every segment as absent and says so in words."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of([], headers, affine)

    built = build_results(findings, case.MANIFEST, headers, case.IDENTITY)

    assert ["sr"] == [result.kind for result in built]
    ds = built[0].dataset
    assert [] == groups_of(ds)
    (evaluations,) = items(ds, "Qualitative Evaluations")
    absent = {
        item.ConceptNameCodeSequence[0].CodeMeaning: item.ConceptCodeSequence[0].CodeValue
        for item in evaluations.ContentSequence
        if item.ValueType == "CODE"
    }
    assert {"Physical object": "272519000", "Brain": "272519000"} == absent
    assert any(item.TextValue.startswith("Nothing found") for item in items(evaluations, "Comment"))


def test_the_report_says_what_it_is(tmp_path: Path) -> None:
    """Complete, unverified, preliminary, research, by a device; a demonstrator says so; provenance is there."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine, modality="MR")
    findings = replace(case.findings_of(MASKS, headers, affine), notes=("Slice Thickness contradicts the positions.",))

    ds = sr_of(tmp_path, findings, headers)

    assert ("COMPLETE", "UNVERIFIED", "PRELIMINARY") == (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag)
    assert "RESEARCH" == ds.ContentQualification
    (observer,) = items(ds, "Device Observer UID")
    assert case.IDENTITY.device_uid == observer.UID
    (procedure,) = items(ds, "Procedure reported")
    assert "25056-3" == procedure.ConceptCodeSequence[0].CodeValue
    said = "\n".join(item.TextValue for item in items(ds, "Qualitative Evaluations", "Comment"))
    for expected in ("Nothing clinical", "Commissioning of", "Slice Thickness", "a" * 64, "b" * 64, "d" * 64, "1.31.1"):
        assert expected in said
    evidence = ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert {header.SOPInstanceUID for header in headers} == {item.ReferencedSOPInstanceUID for item in evidence}


@pytest.mark.parametrize(
    ("point", "expected"),
    [((0.0, 0.0), (0.5, 0.5)), ((-0.5, -0.5), (0, 0)), ((-2.0, 9.5), (0, 10)), ((26.5, 30.0), (27, 20))],
)
def test_image_coordinates_count_from_the_corner(point: tuple[float, float], expected: tuple[float, float]) -> None:
    """The centre of the first voxel is 0.5, 0.5 (PS3.3 C.18.6); an outline ends at the edge of its image."""
    data = image_coordinates([point, (3.0, 3.0), (4.0, 4.0), point], rows=20, columns=27)

    assert expected == tuple(data[0])


@pytest.mark.parametrize("contour", [(), ((1.0, 1.0), (2.0, 2.0), (3.0, 1.0), (4.0, 4.0))])
def test_an_outline_that_is_none_is_refused(contour: tuple[tuple[float, float], ...]) -> None:
    """Without a closed outline a viewer would blank the whole report."""
    with pytest.raises(ResultError, match="closed outline"):
        image_coordinates(contour, rows=20, columns=27)


def test_report_names_those_that_it_replaces(tmp_path: Path) -> None:
    """Predecessor Documents Sequence, by series (PS3.3 C.17.2); a first report has none."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of(MASKS, headers, affine)
    assert "PredecessorDocumentsSequence" not in sr_of(tmp_path, findings, headers)
    former = [
        Predecessor(series_instance_uid=f"1.2.{series}", sop_class_uid="1.9", sop_instance_uid=f"1.2.{series}.{number}")
        for series, number in ((1, 1), (1, 2), (2, 1))
    ]
    identity = replace(case.IDENTITY, predecessors=tuple(former))
    (built,) = build_results(findings, case.MANIFEST, headers, identity, kinds=("sr",))
    (study,) = built.dataset.PredecessorDocumentsSequence
    assert headers[0].StudyInstanceUID == study.StudyInstanceUID
    named = [
        (series.SeriesInstanceUID, one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID)
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    ]
    assert [(one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid) for one in former] == named
