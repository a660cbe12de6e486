"""`identity = "destination"` over real records and files: against a real PACS, and against answers that are no help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from dicom_node.adoption import Adoption
from dicom_node.config.schema import Peer, SenderSettings
from dicom_node.dimse.find import find
from dicom_node.errors import QueryError, UnreachableError
from dicom_node.filing import ResultStore
from dicom_node.logs import Log
from dicom_node.pipeline import Dispatch
from dicom_node.records import NewResult
from dicom_node.records.transitions import queue_deliveries
from dicom_node.report import build_results, encode
from dicom_node.study import JobInput
from tests.integration.records_case import Records, image, new_job
from tests.unit import report_case as case

SETTINGS = SenderSettings(timeout_s=10, retry_base_s=1, max_refusals=3)


class Site:
    """Records with a job that has filed a real SEG and SR, and the dispatch of its destination."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(folder / "records.sqlite")
        self.results = ResultStore(folder / "results")
        affine = case.affine()
        self.headers = case.headers_of(folder, affine, headers={"PatientBirthDate": "19700101"})
        findings = case.findings_of([("sphere", case.ball((2, 8, 9), 2))], self.headers, affine)
        self.study = str(self.headers[0].StudyInstanceUID)
        self.records.studies.index([image(1, study=self.study, series="1.5")])
        images = self.records.studies.series_images(self.study, "1.5")
        job = new_job(self.records)
        job = type(job)(**{**_fields(job), "series_instance_uid": "1.5", "input": _input(self.study, images)})
        self.job_id, _ = self.records.jobs.enqueue(job)
        claimed = self.records.jobs.claim("w", 30)
        assert claimed is not None
        filed = []
        for built in build_results(findings, case.MANIFEST, self.headers, case.IDENTITY):
            path, digest = self.results.file(encode(built.dataset), built.sop_instance_uid)
            filed.append(
                NewResult(
                    kind=built.kind,
                    sop_class_uid=built.sop_class_uid,
                    sop_instance_uid=built.sop_instance_uid,
                    series_instance_uid=built.series_instance_uid,
                    path=path,
                    digest=digest,
                )
            )
        self.records.jobs.file_results(self.job_id, claimed.token, filed, outcome="result", engine="e", duration_s=1.0)

    def dispatch(self, port: int, ask: Callable[[Any], Sequence[Dataset]] | None = None) -> Dispatch:
        peer = Peer(name="pacs", ae_title="ORTHANC", address=f"127.0.0.1:{port}")
        question = ask or (lambda keys: find(peer, "STUDY", keys, calling_ae="NODE", timeout_s=10))
        common: dict[str, Any] = {"destination": "pacs", "clock": self.records.clock, "log": Log("test")}
        adoption = Adoption(self.records.deliveries, self.results, ask=question, patience=3, **common)
        return Dispatch(
            self.records.deliveries,
            peer=peer,
            calling_ae="NODE",
            sender="s",
            settings=SETTINGS,
            jitter=lambda: 0.0,
            adoption=adoption,
            **common,
        )

    def states(self) -> list[tuple[str, str]]:
        return [(one.state, one.reason or "") for one in self.records.deliveries.list()]


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _input(study: str, images: Any) -> Any:
    return JobInput(study_instance_uid=study, roles={"t1": images})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site whose results wait for their destination."""
    return Site(tmp_path)


def _upload(pacs: Any, site: Site, **values: str) -> None:
    """Let the PACS hold an image of the study under an identity of its own."""
    ds = dcmread(site.headers[0].filename) if getattr(site.headers[0], "filename", None) else site.headers[0].copy()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    pacs.raw("/instances", body=encode(ds), method="POST")


def test_results_join_the_study_as_the_pacs_knows_it(site: Site, orthanc: Any, tmp_path: Path) -> None:
    """The PACS has another patient and accession: results carry them under UIDs of their own, in one study there."""
    pacs = orthanc()
    _upload(pacs, site, PatientID="PACS-7", PatientName="Doe^Jane", AccessionNumber="ACC-9", StudyID="S9")
    assert site.dispatch(pacs.dicom_port).step()
    assert ["stored", "stored"] == [state for state, _ in site.states()]
    assert "done" == site.records.jobs.show(site.job_id).job.state
    assert 1 == len(pacs.rest("/studies"))
    rows = site.records.jobs.show(site.job_id).results
    assert 4 == len(rows)
    assert 4 == len({row.sop_instance_uid for row in rows})
    sent = [found for modality in ("SEG", "SR") for found in pacs.objects(site.study, modality)]
    assert 2 == len(sent)
    for number, orthanc_id in enumerate(sent):
        ds = dcmread(pacs.fetch(orthanc_id, tmp_path / f"{number}.dcm"))
        assert ("PACS-7", "Doe^Jane", "ACC-9", "S9") == (
            ds.PatientID,
            str(ds.PatientName),
            ds.AccessionNumber,
            ds.StudyID,
        )
        (row,) = [row for row in rows if row.sop_instance_uid == ds.SOPInstanceUID]
        assert row.path.exists()


def test_an_unknown_study_is_waited_for_and_then_held(site: Site, orthanc: Any) -> None:
    """The images may still be on their way: asked again with growing pauses, then held; `retry` asks once more."""
    pacs = orthanc()
    dispatch = site.dispatch(pacs.dicom_port)
    for _ in range(2):
        assert dispatch.step()
        assert [("queued", "pacs: it does not know the study")] * 2 == site.states()
        assert not dispatch.step()
        site.records.clock.advance(60)
    assert dispatch.step()
    assert [("held", "identity: it does not know the study")] * 2 == site.states()
    assert "delivering" == site.records.jobs.show(site.job_id).job.state
    _upload(pacs, site, PatientID="PACS-7")
    for one in site.records.deliveries.list():
        site.records.deliveries.retry(one.id)
    assert dispatch.step()
    assert ["stored", "stored"] == [state for state, _ in site.states()]


def _answers(site: Site, *patients: str, **values: str) -> list[Dataset]:
    found = []
    for patient_id in patients:
        ds = Dataset()
        ds.StudyInstanceUID, ds.PatientID = site.study, patient_id
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        found.append(ds)
    return found


@pytest.mark.parametrize(
    ("patients", "values", "reason"),
    [
        (("A", "B"), {}, "identity: it knows the study under 2 identities"),
        (("",), {}, "identity: it gives no Patient ID for the study"),
        (("A",), {"PatientBirthDate": "18990101"}, "identity: it knows the study's patient with another date of birth"),
    ],
)
def test_a_doubtful_identity_holds_the_delivery(site: Site, patients, values, reason) -> None:
    """Nothing is sent, and the reason is there; no patient is named in it."""
    site.dispatch(1, lambda _keys: _answers(site, *patients, **values)).step()
    assert [("held", reason)] * 2 == site.states()


def test_a_pacs_that_is_away_is_asked_for_ever(site: Site) -> None:
    """As with sending: no attempt counts as a refusal."""

    def away(_keys: Any) -> list[Dataset]:
        raise UnreachableError("nobody there")

    for _ in range(5):
        assert site.dispatch(1, away).step()
        assert [("queued", "nobody there")] * 2 == site.states()
        site.records.clock.advance(700)


def test_a_pacs_without_queries_holds_in_the_end(site: Site) -> None:
    """A refusal is believed after some attempts."""

    def refuses(_keys: Any) -> list[Dataset]:
        raise QueryError("pacs offers no queries")

    for _ in range(3):
        assert site.dispatch(1, refuses).step()
        site.records.clock.advance(700)
    assert [("held", "identity: pacs offers no queries")] * 2 == site.states()


def test_a_filed_variant_is_only_sent_again(site: Site) -> None:
    """The PACS is gone when the variant is to be sent, and knows another patient later: the first variant is sent, the
    PACS is not asked again, and no second one is filed.
    """
    asked = []

    def ask(keys: Any) -> list[Dataset]:
        asked.append(keys)
        return _answers(site, f"P{len(asked)}")

    dispatch = site.dispatch(1, ask)
    assert dispatch.step()
    assert ["queued", "queued"] == [state for state, _ in site.states()]
    rows = site.records.jobs.show(site.job_id).results
    assert (4, 1) == (len(rows), len(asked))
    site.records.clock.advance(700)
    assert dispatch.step()
    assert (rows, 1) == (site.records.jobs.show(site.job_id).results, len(asked))
    assert {"P1"} == {str(dcmread(row.path).PatientID) for row in rows[2:]}


def test_a_variant_stands_for_its_result(site: Site) -> None:
    """Asked for again, the job does not queue the source's result beside the variant; another destination gets that."""
    site.dispatch(1, lambda _keys: _answers(site, "P7")).step()
    with site.records.database.begin() as connection:
        wanted = {"pacs": ("sr", "seg"), "archive": ("sr", "seg")}
        assert 2 == queue_deliveries(connection, site.job_id, wanted, site.records.clock.now())
    by_destination = {(one.destination, one.sop_instance_uid) for one in site.records.deliveries.list()}
    assert 4 == len(by_destination)
