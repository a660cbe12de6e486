"""Nothing leaves that contradicts its sources, its findings or itself; and the same findings give the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.findings import Findings, Mask
from dicom_node.report import build_results, encode
from dicom_node.report.check import check_identity, check_seg, check_sr
from tests.unit import report_case as case

MASKS = [("sphere", case.ball((2, 8, 9), 2)), ("brain", case.ball((6, 12, 19), 2.5))]


@pytest.fixture
def headers(tmp_path: Path) -> list[Dataset]:
    return case.headers_of(tmp_path, case.affine(kind="oblique"), order=(3, 1, 0, 2, 8, 7, 6, 5, 4))


@pytest.fixture
def findings(headers: list[Dataset]) -> Findings:
    return case.findings_of(MASKS, headers, case.affine(kind="oblique"))


@pytest.fixture
def built(findings: Findings, headers: list[Dataset]) -> dict[str, Dataset]:
    return {r.kind: r.dataset for r in build_results(findings, case.MANIFEST, headers, case.IDENTITY)}


def test_the_same_findings_give_the_same_bytes(findings: Findings, headers: list[Dataset]) -> None:
    """No clock and no random value is left in an object, whatever the order of the sources."""
    first = [encode(r.dataset) for r in build_results(findings, case.MANIFEST, headers, case.IDENTITY)]
    again = [encode(r.dataset) for r in build_results(findings, case.MANIFEST, headers[::-1], case.IDENTITY)]

    assert first == again


def test_names_of_objects_derive_from_the_root(findings: Findings, headers: list[Dataset]) -> None:
    """Another root gives other names to everything, the same root the same."""
    built = build_results(findings, case.MANIFEST, headers, case.IDENTITY)
    other = build_results(findings, case.MANIFEST, headers, replace(case.IDENTITY, root_uid="2.25.42"))

    for mine, theirs in zip(built, other, strict=True):
        assert case.IDENTITY.sop_instance_uid(mine.kind) == mine.sop_instance_uid == mine.dataset.SOPInstanceUID
        assert mine.sop_class_uid == mine.dataset.file_meta.MediaStorageSOPClassUID
        assert mine.sop_instance_uid != theirs.sop_instance_uid
        assert mine.series_instance_uid != theirs.series_instance_uid
    assert 4 == len({uid for mine in built for uid in (mine.sop_instance_uid, mine.series_instance_uid)})


def test_times_are_written_in_the_zone_of_the_source(findings: Findings, headers: list[Dataset]) -> None:
    """The offset of an object speaks for all its times, so ours follow that of the source."""
    for header in headers:
        header.TimezoneOffsetFromUTC = "-0330"
    identity = replace(case.IDENTITY, created_at=datetime(2026, 3, 1, 1, 0, tzinfo=timezone(timedelta(hours=1))))

    for result in build_results(findings, case.MANIFEST, headers, identity):
        ds = result.dataset
        assert ("20260228", "203000.000000", "-0330") == (ds.ContentDate, ds.ContentTime, ds.TimezoneOffsetFromUTC)


def test_a_naive_time_is_refused() -> None:
    """A time without zone would mean another moment on another machine."""
    with pytest.raises(ValueError, match="time zone"):
        replace(case.IDENTITY, created_at=datetime(2026, 3, 1))  # noqa: DTZ001 - naive is the point


def test_a_withheld_result_never_leaves(findings: Findings, headers: list[Dataset]) -> None:
    """The plausibility gate has the last word."""
    withheld = replace(findings, outcome="withheld", reason="5 litres of brain")

    with pytest.raises(ResultError, match="5 litres"):
        build_results(withheld, case.MANIFEST, headers, case.IDENTITY)


def test_images_without_frame_of_reference_get_a_report_alone(findings: Findings, headers: list[Dataset]) -> None:
    """A SEG needs a Frame of Reference; the report does not."""
    frames = tuple(replace(frame, frame_of_reference_uid=None) for frame in findings.frames)

    built = build_results(replace(findings, frames=frames), case.MANIFEST, headers, case.IDENTITY)

    assert ["sr"] == [result.kind for result in built]


def _other_patient(ds: Dataset) -> None:
    ds.PatientID = "SOMEBODY-ELSE"


def _other_study(ds: Dataset) -> None:
    ds.StudyInstanceUID = "2.25.77"


def _stranger(ds: Dataset) -> None:
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID = "2.25.78"


@pytest.mark.parametrize(
    ("change", "words"), [(_other_patient, "PatientID"), (_other_study, "StudyInstanceUID"), (_stranger, "2.25.78")]
)
def test_another_identity_is_refused(
    change: Callable[[Dataset], None], words: str, built: dict[str, Dataset], headers: list[Dataset]
) -> None:
    """Patient, study and every reference are those of the sources."""
    check_identity(built["seg"], headers)
    change(built["seg"])

    with pytest.raises(ResultError, match=words):
        check_identity(built["seg"], headers)


def _front_to_back(ds: Dataset) -> None:
    positions = [groups.PlanePositionSequence for groups in ds.PerFrameFunctionalGroupsSequence]
    for groups, position in zip(ds.PerFrameFunctionalGroupsSequence, reversed(positions), strict=True):
        groups.PlanePositionSequence = position


def _half_thickness(ds: Dataset) -> None:
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1.05


def _lost_voxels(ds: Dataset) -> None:
    ds.PixelData = bytes(len(ds.PixelData) // 2) + ds.PixelData[len(ds.PixelData) // 2 :]


@pytest.mark.parametrize(
    ("change", "words"),
    [(_front_to_back, "voxels from its finding"), (_half_thickness, "Pixel Measures"), (_lost_voxels, "has . voxels")],
)
def test_a_segment_that_lies_elsewhere_is_refused(
    change: Callable[[Dataset], None], words: str, built: dict[str, Dataset], findings: Findings
) -> None:
    """Place, size and voxels are computed again from what was written."""
    check_seg(built["seg"], findings)
    change(built["seg"])

    with pytest.raises(ResultError, match=words):
        check_seg(built["seg"], findings)


def test_a_finding_whose_numbers_are_of_another_mask_is_refused(findings: Findings, headers: list[Dataset]) -> None:
    """Measurements and mask must speak of the same voxels."""
    first = findings.findings[0]
    moved = replace(first, mask=Mask(offset=(first.mask.offset[0] + 1, *first.mask.offset[1:]), array=first.mask.array))

    with pytest.raises(ResultError, match="voxels from its finding"):
        build_results(replace(findings, findings=(moved, findings.findings[1])), case.MANIFEST, headers, case.IDENTITY)


def test_a_report_with_another_volume_is_refused(findings: Findings, headers: list[Dataset]) -> None:
    """The volume that is read is that of the voxels: what the SEG holds, even where no SEG is built."""
    first = findings.findings[0]
    measurements = replace(first.measurements, volume_ml=first.measurements.volume_ml * 1.01)
    other = replace(findings, findings=(replace(first, measurements=measurements), findings.findings[1]))

    with pytest.raises(ResultError, match="in the report"):
        build_results(other, case.MANIFEST, headers, case.IDENTITY, kinds=("sr",))


def test_a_report_with_a_lost_group_is_refused(built: dict[str, Dataset], findings: Findings) -> None:
    """Every finding has its group and every group its finding."""
    check_sr(built["sr"], findings)

    with pytest.raises(ResultError, match="1 findings"):
        check_sr(built["sr"], replace(findings, findings=findings.findings[:1]))


def test_a_label_without_segment_is_refused(findings: Findings, headers: list[Dataset]) -> None:
    """What a plugin found must be what its manifest says it finds."""
    first = replace(findings.findings[0], label="melon")

    for kind in ("sr", "seg"):
        with pytest.raises(ResultError, match="melon"):
            build_results(replace(findings, findings=(first,)), case.MANIFEST, headers, case.IDENTITY, kinds=(kind,))


def test_no_patient_attribute_reaches_logs_or_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Not even an unusual name, which the library underneath would quote."""
    caplog.set_level(logging.DEBUG)
    marked = {"PatientName": "MARKEDNAME", "PatientID": "MARKEDID", "PatientBirthDate": "19010203"}
    headers = case.headers_of(tmp_path, case.affine(), headers=marked)
    findings = case.findings_of(MASKS, headers, case.affine())

    built = build_results(findings, case.MANIFEST, headers, case.IDENTITY)

    assert ["MARKEDNAME"] * 2 == [str(result.dataset.PatientName) for result in built]
    said = caplog.text + "".join(str(warning.message) for warning in recwarn)
    assert not any(value in said for value in marked.values())
