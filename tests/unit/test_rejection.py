"""Rejection notes as somebody else writes them, checked by a validator, are read; other documents reject nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from dicom_node.reading import describe
from dicom_node.reading.rejection import TITLES, rejection_of
from tests.integration.cli_case import head_mr
from tests.peers.validators import dciodvfy


def _note(folder: Path, code: str, scheme: str = "DCM") -> tuple[Path, list[Dataset]]:
    """Write a key object selection of that title over the first two of three images; return it, and the two."""
    images = [dcmread(path) for path in head_mr(folder / "study", slices=3)][:2]
    for ds in images:
        ds.PatientID, ds.StudyID, ds.AccessionNumber, ds.PatientName = "P1", "S1", "A1", "Doe^Jane"
        ds.PatientBirthDate, ds.PatientSex, ds.StudyDate, ds.StudyTime = "19700101", "O", "20260101", "120000"
        ds.ReferringPhysicianName = ""
    title = Code(code, scheme, TITLES.get(code, "For Referring Provider"))
    document = KeyObjectSelectionDocument(
        evidence=images,
        content=KeyObjectSelection(document_title=title, referenced_objects=images),
        series_instance_uid=generate_uid(),
        series_number=99,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="PACS",
    )
    path = folder / "note.dcm"
    document.save_as(path)
    return path, images


@pytest.mark.parametrize("code", TITLES)
def test_each_note_is_read(tmp_path, code):
    """Code, words, and every instance with its study."""
    path, images = _note(tmp_path, code)
    rejection = describe(path).rejection
    assert rejection is not None
    assert (code, TITLES[code]) == (rejection.code, rejection.reason)
    assert tuple(sorted(("1.2.3", str(ds.SOPInstanceUID)) for ds in images)) == rejection.references


def test_the_notes_of_these_tests_keep_their_iod(tmp_path):
    """What is parsed here is what others send: dciodvfy finds no error."""
    path, _ = _note(tmp_path, "113001")
    assert [] == dciodvfy(path)


@pytest.mark.parametrize(("code", "scheme"), [("113004", "DCM"), ("113000", "DCM"), ("113001", "99LOCAL")])
def test_other_titles_reject_nothing(tmp_path, code, scheme):
    """A selection for the referring provider, of interest, or of a local code of the same number."""
    assert describe(_note(tmp_path, code, scheme)[0]).rejection is None


def test_an_image_is_no_note(tmp_path):
    """Nor is any other kind of object."""
    assert describe(head_mr(tmp_path, slices=1)[0]).rejection is None


@pytest.mark.parametrize("header", [{}, {"0040A043": {"vr": "SQ"}}, {"0040A043": {"vr": "SQ", "Value": [{}]}}])
def test_a_broken_note_rejects_nothing(header):
    """What lacks its title or names nothing is an ordinary object."""
    assert rejection_of(header) is None
    title = {"00080100": {"vr": "SH", "Value": ["113001"]}, "00080102": {"vr": "SH", "Value": ["DCM"]}}
    assert rejection_of({**header, "0040A043": {"vr": "SQ", "Value": [title]}}) is None
