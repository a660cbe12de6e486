"""Late and changed images: what is new input, what only looks new, what replaces, and what is flagged instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless
from sqlalchemy import update

from dicom_node.config import load_config
from dicom_node.config.live import Live, Rules
from dicom_node.infer import PluginRegistry
from dicom_node.lifecycle import JobState
from dicom_node.logs import Log
from dicom_node.pipeline import Decision
from dicom_node.reading import content_or_itself, describe
from dicom_node.reading.content import content_digest
from dicom_node.reading.header import data_set_digest
from dicom_node.reading.synthetic import write_series
from dicom_node.records import Decisions, JobRow
from dicom_node.records.schema import instance
from dicom_node.study import FiledInstance
from dicom_node.upkeep import Compare
from tests.integration.records_case import OWNER, Records, association

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
STUDY, SERIES, N = "1.2.3", "1.2.3.4", 24
CONFIG = """
[[route]]
name = "qa"
plugin = "qa_phantom"
[route.complete]
quiet_s = 5
"""

Change = Callable[[Dataset], None]


class Site:
    """Records, a decision over the shipped plugins, and a series on disk that is sent slice by slice."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(folder / "records.sqlite")
        self.decisions = Decisions(self.records.database, self.records.jobs)
        self._folder = folder
        self._sent = 0
        array = np.random.default_rng(1).integers(-100, 100, (N, 8, 8)).astype(np.int16)
        affine = np.diag([8.0, 8.0, 2.0, 1.0])
        self.files = write_series(
            folder / "series",
            array,
            affine,
            headers={"SeriesDescription": "QA phantom"},
            study_instance_uid=STUDY,
            series_instance_uid=SERIES,
            frame_of_reference_uid="1.9",
            uid_root="1.2.3.4",
        )
        file = folder / "config.toml"
        file.write_text(CONFIG, encoding="utf-8")
        self.decision = Decision(
            self.records.studies,
            self.decisions,
            rules=Live(Rules.of(load_config(file))),
            registry=PluginRegistry([PLUGINS], folder / "models"),
            clock=self.records.clock,
            log=Log("test"),
        )
        self.compare = Compare(self.records.studies.contents, content_of=content_or_itself, log=Log("test"))

    def send(self, files: list[Path]) -> None:
        """Receive files over an association of their own, which is released."""
        self._sent += 1
        id_, now = f"a{self._sent}", self.records.clock.now()
        self.records.studies.open_association(association(id_, at=now), OWNER)
        self.records.studies.index([(self._filed(path, id_), describe(path)) for path in files])
        self.records.studies.release_association(id_, now, "released")

    def _filed(self, path: Path, association_id: str) -> FiledInstance:
        described = describe(path)
        return FiledInstance(
            sop_instance_uid=described.sop_instance_uid,
            sop_class_uid=described.sop_class_uid,
            transfer_syntax_uid=described.transfer_syntax_uid,
            digest=data_set_digest(path),
            path=path,
            size_bytes=path.stat().st_size,
            calling_ae="SCANNER",
            called_ae="DICOM_NODE",
            received_at=self.records.clock.now(),
            association=association_id,
        )

    def changed(self, change: Change, files: list[Path] | None = None) -> list[Path]:
        """Return copies of files with other content."""
        made = []
        for path in files or self.files:
            ds = dcmread(path)
            change(ds)
            made.append(self._folder / f"{self._sent}-{path.name}")
            ds.save_as(made[-1])
        return made

    def settle(self, seconds: float = 40.0) -> None:
        """Let so much time pass, with the worker's loops running."""
        for _ in range(int(seconds)):
            self.decision.step()
            self.compare.step()
            self.records.clock.advance(1)
        self.decision.step()

    def jobs(self) -> list[JobRow]:
        """Return the jobs, oldest first."""
        return list(reversed(self.records.jobs.list()))

    def outcomes(self) -> list[str]:
        """Return what the route said, oldest first."""
        return [one.outcome for one in self.decisions.list(STUDY) if one.series_instance_uid]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site at which the series, but for its last four slices, was decided."""
    site = Site(tmp_path)
    site.send(site.files[:-4])
    site.settle()
    assert ["matched"] == site.outcomes()
    return site


def rename(ds: Dataset) -> None:
    """Correct the patient's name and the ID of the study, as a PACS administrator does."""
    ds.PatientName, ds.StudyID, ds.PatientID = "Corrected^Name", "7", "QA-2"


def recompress(ds: Dataset) -> None:
    """Give the same pixels in another compression."""
    ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)


def repaint(ds: Dataset) -> None:
    """Change one pixel."""
    pixels = ds.pixel_array.copy()
    pixels[0, 0] += 1
    ds.PixelData = pixels.tobytes()


def move(ds: Dataset) -> None:
    """Change the position by half a millimetre."""
    ds.ImagePositionPatient[0] += 0.5


def test_late_slices_make_one_new_job_that_supersedes(site: Site) -> None:
    """They are collected for the debounce time, however they trickle in."""
    for path in site.files[-4:]:
        site.send([path])
        site.settle(20)
        assert 1 == len(site.jobs())
    site.settle(40)
    old, new = site.jobs()
    assert (new.id, JobState.CANCELLED, None) == (old.superseded_by, old.state, new.superseded_by)
    assert N == sum(len(images) for images in site.records.jobs.show(new.id).input.roles.values())
    assert ["matched", "matched"] == site.outcomes()


@pytest.mark.parametrize("change", [rename, recompress])
def test_copy_with_the_same_pixels_is_no_new_input(site: Site, change: Change) -> None:
    """Another compression or a corrected name: the same job answers, and the patient's identity follows."""
    site.send(site.changed(change, site.files[:-4]))
    site.settle(60)
    assert 1 == len(site.jobs())
    assert ["matched", "matched"] == site.outcomes()
    assert "complete" == site.records.studies.show(STUDY).state
    with site.records.database.read() as connection:
        patient = connection.exec_driver_sql("SELECT patient_id FROM study").scalar()
    assert ("QA-2" if change is rename else str(dcmread(site.files[0]).PatientID)) == patient


@pytest.mark.parametrize("change", [repaint, move])
def test_changed_pixels_or_geometry_are_new_input(site: Site, change: Change) -> None:
    """One pixel of one slice is enough."""
    site.send(site.changed(change, site.files[:1]))
    site.settle(60)
    assert 2 == len(site.jobs())


def test_corrected_copy_with_a_late_slice_is_read_as_corrected(site: Site) -> None:
    """The new job pins the versions that count now, so that its results carry the corrected name."""
    site.send(site.changed(rename))
    site.settle(60)
    _, new = site.jobs()
    paths = [image.path for images in site.records.jobs.show(new.id).input.roles.values() for image in images]
    assert {"Corrected^Name"} == {str(dcmread(path).PatientName) for path in paths}


def test_fourth_rerun_is_flagged_and_not_run(site: Site) -> None:
    """max_reruns = 3: something is wrong with a sender that changes a series for ever."""
    for number in range(5):
        site.send(site.changed(lambda ds, n=number: repaint_with(ds, n), site.files[:1]))  # type: ignore[misc]
        site.settle(60)
    assert 4 == len(site.jobs())
    assert ["matched"] * 4 + ["flagged"] * 2 == site.outcomes()
    said = site.decisions.list(STUDY)[-1].reason
    assert "late images made 3 new jobs already" in "".join(one.reason for one in site.decisions.list(STUDY)), said


def repaint_with(ds: Dataset, number: int) -> None:
    """Change one pixel to a value of its own."""
    pixels = ds.pixel_array.copy()
    pixels[1, 1] = 500 + number
    ds.PixelData = pixels.tobytes()


def test_revision_without_its_predecessors_images_never_supersedes(site: Site) -> None:
    """What is left of a purged series would be a worse result: it is flagged, and the old job stands."""
    with site.records.database.begin() as connection:
        connection.execute(update(instance).values(purged_at=site.records.clock.now()))
    site.send(site.files[-4:])
    site.settle(60)
    (job,) = site.jobs()
    assert job.superseded_by is None
    assert ["matched", "flagged"] == site.outcomes()
    assert "were purged" in "".join(one.reason for one in site.decisions.list(STUDY))


def test_decision_names_its_evidence(site: Site) -> None:
    """Stored beside the reason, for the administrator."""
    decided = site.decisions.list(STUDY)[0]
    assert ("quiet", "no image for 5 s, and no association moves data") == (decided.evidence, decided.complete_because)


def test_forced_study_starts_at_once(tmp_path: Path) -> None:
    """Whatever is missing; and what comes later opens it again."""
    site = Site(tmp_path)
    site.send([*site.files[:8], *site.files[12:]])
    site.settle(20)
    assert [] == site.outcomes()
    site.records.studies.force_complete(STUDY)
    site.decision.step()
    assert "forced" == site.decisions.list(STUDY)[0].evidence
    assert "complete" == site.records.studies.show(STUDY).state
    site.send(site.files[8:12])
    site.settle(60)
    assert 2 == len(site.jobs())


def test_content_is_pixels_and_geometry(tmp_path: Path) -> None:
    """Names and compression are not content; one pixel or half a millimetre is."""
    site = Site(tmp_path)
    (before,) = {content_digest(path) for path in site.files[:1]}
    for change, is_same in ((rename, True), (recompress, True), (repaint, False), (move, False)):
        (path,) = site.changed(change, site.files[:1])
        assert is_same == (before == content_digest(path))


def test_what_cannot_be_decoded_equals_nothing_else(tmp_path: Path) -> None:
    """A broken copy is new input; its job will say what is wrong with it."""
    file = tmp_path / "broken.dcm"
    file.write_bytes(b"nothing")
    assert "unread:d1" == content_or_itself(file, "d1")
