"""Variants: another patient, the same content, UIDs of their own; and what a destination's answers are believed for."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_node.report import build_results, encode
from dicom_node.report.variant import ADOPTED, Known, NotKnown, contradiction, known_identity, make_variant
from tests.peers.validators import dciodvfy
from tests.unit import report_case as case

STUDY = "1.2.3"
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
KNOWN = Known(
    values={"PatientID": "PACS-7", "PatientName": "Döe^Jane", "AccessionNumber": "ACC-9", "StudyID": "S9"},
)


def _answer(**values: str) -> Dataset:
    ds = Dataset()
    for keyword, value in {"StudyInstanceUID": STUDY, "PatientID": "P1", **values}.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("answers", "words", "may_pass"),
    [
        ([], "does not know", True),
        ([_answer(StudyInstanceUID="1.9")], "another study", False),
        ([_answer(), _answer(PatientID="P2")], "2 identities", False),
        ([_answer(), _answer(AccessionNumber="A2")], "2 identities", False),
        ([_answer(PatientID=" ")], "no Patient ID", False),
    ],
)
def test_unclear_answers_give_nothing(answers, words, may_pass):
    """None, several, another study, no patient: each with its reason; only an unknown study may still come."""
    said = known_identity(answers, STUDY)
    assert isinstance(said, NotKnown)
    assert (may_pass, True) == (said.may_pass, words in said.reason)


def test_one_answer_is_believed():
    """Also when it comes twice, and beside those of other studies; without surrounding blanks."""
    one = _answer(PatientID=" P1 ", PatientName="Doe^Jane", PatientSex="F")
    said = known_identity([one, _answer(StudyInstanceUID="1.9", PatientID="P2"), one], STUDY)
    assert Known(values={"PatientID": "P1", "PatientName": "Doe^Jane", "PatientSex": "F"}) == said


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a SEG and an SR that points at it, as files."""
    folder = tmp_path_factory.mktemp("results")
    affine = case.affine()
    headers = case.headers_of(folder, affine)
    findings = case.findings_of([("sphere", case.ball((2, 8, 9), 2))], headers, affine)
    return {
        built.kind: encode(built.dataset) for built in build_results(findings, case.MANIFEST, headers, case.IDENTITY)
    }


def _uids(results: dict[str, bytes]) -> list[str]:
    datasets = [dcmread(io.BytesIO(content)) for content in results.values()]
    return [str(uid) for ds in datasets for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID)]


@pytest.mark.parametrize("kind", ["seg", "sr"])
def test_a_variant_is_the_result_of_the_known_patient(results, kind, tmp_path: Path):
    """Identity is the destination's, what it did not say stays; UIDs are new, the same each time; content is the same;
    the former values are kept; dciodvfy finds no error.
    """
    before = dcmread(io.BytesIO(results[kind]))
    ds = make_variant(results[kind], KNOWN, "pacs", _uids(results), NOW)
    again = make_variant(results[kind], KNOWN, "pacs", _uids(results), NOW)
    assert encode(ds) == encode(again)
    other = make_variant(results[kind], KNOWN, "archive", _uids(results), NOW)
    assert 3 == len({before.SOPInstanceUID, ds.SOPInstanceUID, other.SOPInstanceUID})
    assert KNOWN.values == {keyword: str(ds.get(keyword)) for keyword in KNOWN.values}
    assert str(before.PatientBirthDate) == str(ds.PatientBirthDate)
    (original,) = ds.OriginalAttributesSequence
    (modified,) = original.ModifiedAttributesSequence
    assert ("COERCE", str(before.PatientID)) == (original.ReasonForTheAttributeModification, modified.PatientID)
    path = tmp_path / "variant.dcm"
    path.write_bytes(encode(ds))
    assert [] == dciodvfy(path)
    for left in (before, ds):
        for keyword in (*ADOPTED, "OriginalAttributesSequence", "SOPInstanceUID", "SeriesInstanceUID"):
            if keyword in left:
                delattr(left, keyword)
    if kind == "seg":
        assert before == ds


def test_the_variants_of_a_job_belong_together(results):
    """The report's variant points at the variant of the segmentation, and at nothing of the source identity."""
    own = _uids(results)
    seg = make_variant(results["seg"], KNOWN, "pacs", own, NOW)
    sr = make_variant(results["sr"], KNOWN, "pacs", own, NOW)
    named = {str(element.value) for element in sr.iterall() if element.VR == "UI"}
    before = {str(e.value) for e in dcmread(io.BytesIO(results["sr"])).iterall() if e.VR == "UI"}
    assert set() == named & set(own)
    assert (str(dcmread(io.BytesIO(results["seg"])).SOPInstanceUID) in before) == (str(seg.SOPInstanceUID) in named)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"PatientName": "Roe^Mary"}, None),
        ({"PatientBirthDate": "19010101"}, "another date of birth"),
        ({"PatientSex": "M"}, "another sex"),
        ({"PatientBirthDate": "", "PatientSex": ""}, None),
    ],
)
def test_another_person_is_not_adopted(results, values, expected):
    """Another birth date or sex is another person; a name is spelt in many ways; what is absent says nothing."""
    ds = dcmread(io.BytesIO(results["sr"]))
    ds.PatientBirthDate, ds.PatientSex = "19700101", "F"
    said = contradiction(encode(ds), Known(values={"PatientID": "X", **values}))
    assert (expected is None) == (said is None)
    assert expected is None or expected in (said or "")
