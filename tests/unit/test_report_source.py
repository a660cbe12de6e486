"""The header sanitiser: each row of the crash table was seen in real data and broke a library or a validator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.report import build_results, clean_header, encode
from dicom_node.report.source import match_sources
from tests.unit import report_case as case

Change = Callable[[Dataset], None]


def without(*keywords: str) -> Change:
    def change(ds: Dataset) -> None:
        for keyword in keywords:
            if keyword in ds:
                delattr(ds, keyword)

    return change


def with_value(keyword: str, value: object) -> Change:
    def change(ds: Dataset) -> None:
        with pydicom.config.disable_value_validation():
            setattr(ds, keyword, value)

    return change


TYPE_2 = (
    "PatientID",
    "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime",
    "Modality", "ReferringPhysicianName", "PositionReferenceIndicator",
)  # fmt: skip

CRASHES: dict[str, Change] = {
    **{f"{keyword} missing": without(keyword) for keyword in TYPE_2},
    **{f"{keyword} empty": with_value(keyword, None) for keyword in TYPE_2},
    "all of type 2 missing": without(*TYPE_2),
    **{
        f"{keyword} missing": without(keyword)
        for keyword in ("SpecificCharacterSet", "InstanceNumber", "SeriesNumber", "Manufacturer", "StudyDescription",
                        "SliceThickness", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
    },
    "SliceThickness empty": with_value("SliceThickness", None),
    "sex U": with_value("PatientSex", "U"),
    "sex with a blank": with_value("PatientSex", "M "),
    "sex in words": with_value("PatientSex", "Male"),
    "time with colons": with_value("StudyTime", "10:11:12"),
    "birth date without month": with_value("PatientBirthDate", "19600000"),
    "Japanese character sets": with_value("SpecificCharacterSet", ["", "ISO 2022 IR 87"]),
    "age without unit": with_value("PatientAge", "42"),
    "weight in words": with_value("PatientWeight", ""),
    "control character in a name": with_value("PatientName", "Doe^Jane\n"),
    "two manufacturers": with_value("Manufacturer", ["A", "B"]),
    "de-identified without a method": with_value("PatientIdentityRemoved", "YES"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRASHES)
def test_every_header_of_the_crash_table_gives_seg_and_sr(name: str, tmp_path: Path) -> None:
    """Whatever stands in the header, both objects are built and read back."""
    affine = case.affine()
    headers = case.headers_of(tmp_path, affine)
    findings = case.findings_of([("sphere", case.ball((4, 8, 9), 3))], headers, affine)
    for header in headers:
        CRASHES[name](header)

    built = build_results(findings, case.MANIFEST, headers, case.IDENTITY)

    assert ["sr", "seg"] == [result.kind for result in built]
    for result in built:
        (tmp_path / "result.dcm").write_bytes(encode(result.dataset))
        ds = pydicom.dcmread(tmp_path / "result.dcm")
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"):
            assert keyword in ds


@pytest.mark.parametrize(
    ("keyword", "raw", "expected"),
    [
        ("PatientSex", "U", ""),
        ("PatientSex", "Male", "M"),
        ("PatientSex", "f ", "F"),
        ("StudyTime", "10:11:12", "101112"),
        ("StudyTime", "101112.123456789", "101112.123456"),
        ("StudyTime", "25", ""),
        ("StudyDate", "2026.01.31", "20260131"),
        ("StudyDate", "2026-02-30", ""),
        ("PatientBirthDate", "19600000", ""),
        ("PatientAge", "42", "042Y"),
        ("PatientAge", "6m", "006M"),
        ("PatientAge", "young", ""),
        ("PatientWeight", "72.5", "72.5"),
        ("PatientName", "Doe^Jane\r\n", "Doe^Jane"),
        ("PatientID", " 007 ", " 007"),
        ("StudyDescription", "x" * 70, "x" * 64),
        ("TimezoneOffsetFromUTC", "+0130", "+0130"),
        ("TimezoneOffsetFromUTC", "CET", ""),
        ("LossyImageCompression", "yes", ""),
    ],
)
def test_value_is_repaired_by_its_representation(keyword: str, raw: str, expected: str) -> None:
    """A legal value stays, a known deviation is repaired, anything else is left out or empty."""
    header = Dataset()
    with_value(keyword, raw)(header)

    assert expected == str(clean_header(header).get(keyword) or "").rstrip()


def test_the_source_is_never_changed(tmp_path: Path) -> None:
    """Cleaning makes a new data set."""
    header = case.headers_of(tmp_path, case.affine())[0]
    with_value("PatientSex", "Male")(header)
    before = header.to_json()

    clean_header(header)

    assert before == header.to_json()


@pytest.mark.parametrize(
    ("character_sets", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 100", "SingleComponent"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
    ],
)
def test_names_survive_their_character_set(character_sets: object, name: str, tmp_path: Path) -> None:
    """A result is written in UTF-8; the name reads as it did in the source."""
    affine = case.affine()
    changed = {"SpecificCharacterSet": character_sets, "PatientName": name}
    headers = case.headers_of(tmp_path, affine, headers=changed)
    findings = case.findings_of([("sphere", case.ball((4, 8, 9), 3))], headers, affine)

    for result in build_results(findings, case.MANIFEST, headers, case.IDENTITY):
        (tmp_path / "result.dcm").write_bytes(encode(result.dataset))
        ds = pydicom.dcmread(tmp_path / "result.dcm")
        assert name == str(ds.PatientName)
        assert "ISO_IR 192" == ds.SpecificCharacterSet


def test_an_image_without_header_is_refused(tmp_path: Path) -> None:
    """A result must not refer to what was not read."""
    headers = case.headers_of(tmp_path, case.affine())

    with pytest.raises(ResultError, match="1 of 9 source images"):
        match_sources(case.frames_of(headers), headers[1:])


def test_sources_of_two_studies_are_refused(tmp_path: Path) -> None:
    """One result belongs to one study."""
    headers = case.headers_of(tmp_path, case.affine())
    headers[3].StudyInstanceUID = "2.25.77"

    with pytest.raises(ResultError, match="2 studies"):
        match_sources(case.frames_of(headers), headers)
