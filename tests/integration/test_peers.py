"""The foreign programs themselves: a verdict of theirs is worth something only if it can be bad."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from tests import peers
from tests.peers import require

pytestmark = pytest.mark.data


@pytest.fixture
def seg(shared_data: Path) -> Path:
    """Return a SEG that others wrote (one segment: a liver)."""
    return shared_data / "dcmqi" / "data" / "segmentations" / "liver.dcm"


def test_a_sent_seg_arrives_in_the_pacs(
    seg: Path, tmp_path: Path, orthanc: Callable[..., peers.Orthanc], storescu: Callable[..., peers.SendReport]
) -> None:
    """The sender offers what its file needs, and the PACS gives it back as it was."""
    pacs = orthanc()
    storescu([seg], pacs.dicom_port, called=pacs.ae_title)
    (found,) = pacs.instances()
    sent, back = dcmread(seg), dcmread(pacs.fetch(found["ID"], tmp_path / "back.dcm"))
    assert sent == back
    assert [found["ID"]] == pacs.objects(sent.StudyInstanceUID, "SEG")
    assert [] == pacs.objects(sent.StudyInstanceUID, "SR")


def test_an_unreachable_pacs_is_reported(
    seg: Path, free_port: Callable[[], int], storescu: Callable[..., peers.SendReport]
) -> None:
    """The sender's failure is the test's failure."""
    with pytest.raises(AssertionError, match="refused"):
        storescu([seg], free_port())


def test_a_forwarding_pacs_sends_everything_on(
    seg: Path, orthanc: Callable[..., peers.Orthanc], storescu: Callable[..., peers.SendReport]
) -> None:
    """`forward_to` makes the PACS that loops are tested with."""
    far = orthanc(ae_title="FAR")
    near = orthanc(forward_to="far", modalities={"far": ("FAR", "127.0.0.1", far.dicom_port)})
    storescu(seg, near.dicom_port)
    assert peers.eventually(lambda: len(far.instances()) == 1)


def test_dciodvfy_finds_a_missing_attribute(seg: Path, tmp_path: Path, dciodvfy: Callable[[Path], list[str]]) -> None:
    """An object without a type 1 attribute has one error more."""
    ds = dcmread(seg)
    before = len(dciodvfy(seg))
    del ds.SegmentationType
    ds.save_as(tmp_path / "broken.dcm")
    assert before < len(dciodvfy(tmp_path / "broken.dcm"))


def test_dcmqi_reads_a_seg(
    seg: Path, tmp_path: Path, dcmqi_segimage2itkimage: Callable[[Path, Path], list[Path]]
) -> None:
    """One segment gives one file."""
    assert ["1"] == [path.stem.split("-")[-1] for path in dcmqi_segimage2itkimage(seg, tmp_path / "out")]


@pytest.mark.long
def test_pixelmed_finds_a_missing_template_row(
    shared_data: Path, pixelmed_sr_errors: Callable[[Path], list[str]]
) -> None:
    """A foreign report with an outdated language code has that one error."""
    errors = pixelmed_sr_errors(shared_data / "dcmqi" / "data" / "sr-example" / "sr.dcm")
    assert ["context group 5000"] == [line[-18:] for line in errors]


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_peer_fails_in_ci_and_skips_elsewhere(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI never passes by skipping what it should have asked."""
    monkeypatch.setitem(os.environ, "CI", ci)
    monkeypatch.setitem(require.PEERS, "nobody", (Path("/nonexistent/program"),))
    with pytest.raises(outcome, match=r"install\.sh"):
        require.require_peer("nobody")
