"""How the node behaves towards studies that are not the ordinary case: repeated, unwanted, broken, late, undeliverable.

Small studies cut out of a phantom: what is found in them is not the question here.
"""

from __future__ import annotations

import json

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000MC, generate_uid

from tests import peers


def _held_by(pacs, study_uid):
    """Return the numbers of SEG and SR that the PACS holds of a study."""
    return tuple(len(pacs.objects(study_uid, modality)) for modality in ("SEG", "SR"))


def _done(node, study_uid, count=1):
    """Return the study's jobs, newest first, when `count` have ended, all of them done."""
    jobs = node.wait_for_jobs(count, study_uid=study_uid)
    assert [("done", None)] * count == [(job["state"], job["reason"]) for job in jobs]
    return jobs


def test_the_same_study_again_is_no_new_work(orthanc, site, storescu, small_study):
    """A repeat of every image, and of the whole once more: one job, one decision, one SEG and one SR."""
    pacs, study = orthanc(), small_study()
    node = site(pacs=pacs)
    node.start()
    storescu(study.folder, node.port)
    _done(node, study.uid)
    decided = node.node.admin.study(study.uid)["decisions"]
    for _ in range(2):
        storescu(study.folder, node.port)
        node.wait_until_at_rest()
    after = node.node.admin.study(study.uid)
    assert decided == after["decisions"]
    assert ["matched"] == [decision["outcome"] for decision in decided]
    assert (1, "complete") == (len(after["jobs"]), after["state"])
    assert (1, 1) == _held_by(pacs, study.uid)


def test_a_pacs_that_forwards_everything_makes_no_loop(orthanc, site, storescu, small_study):
    """Our SEG and SR come back, and so do the images: all are filed, and nothing starts again."""
    pacs, study, last = orthanc(forward_to="node"), small_study(), small_study(lambda slices: slices[:1])
    node = site(pacs=pacs)
    pacs.add_modality("node", "DICOM_NODE", "127.0.0.1", node.port)
    node.start()
    storescu(study.folder, node.port)
    (job,) = _done(node, study.uid)
    storescu(study.folder, pacs.dicom_port, called="ORTHANC")

    storescu(last.folder, pacs.dicom_port, called="ORTHANC")  # the PACS forwards in order: with this one all is back
    forwarded = "SELECT count(*) FROM instance WHERE calling_ae = 'ORTHANC' AND (made_by_us OR study_instance_uid = :u)"
    node.wait_until(lambda: node.rows(forwarded, u=last.uid) == [(3,)], "the PACS forwarded our results and the images")
    node.wait_until_at_rest()
    after = node.node.admin.study(study.uid)
    assert [job["id"]] == [one["id"] for one in after["jobs"]]
    assert (["matched"], "complete") == ([one["outcome"] for one in after["decisions"]], after["state"])
    assert [study.series_uid] == [one["series_instance_uid"] for one in after["decisions"]]
    assert len(study.files) == after["n_instances"]
    assert [job["id"]] == [one["id"] for one in node.jobs()]
    assert (1, 1) == _held_by(pacs, study.uid)


def test_a_study_that_no_rule_wants_says_why(orthanc, site, storescu, small_study):
    """It is complete, has no job, and `studies show --json` gives the condition that failed, with what was found."""

    def rename(slices):
        for one in slices:
            one.SeriesDescription = one.StudyDescription = "Thorax"
        return slices

    study = small_study(rename)
    node = site(pacs=orthanc())
    node.start()
    storescu(study.folder, node.port)
    node.wait_for_decision(study.uid)
    shown = node.cli("studies", "show", study.uid, "--json")
    assert 0 == shown.returncode, shown.stderr
    entry = json.loads(shown.stdout)
    (decision,) = entry["decisions"]
    assert ("complete", [], "not_applicable") == (entry["state"], entry["jobs"], decision["outcome"])
    assert "SeriesDescription" in decision["reason"]
    assert "Thorax" in decision["reason"]


def _cut_pixels(slices):
    """Half of the pixels of one slice are missing; the element says so, and the file is well formed."""
    slices[7].PixelData = slices[7].PixelData[: len(slices[7].PixelData) // 4 * 2]
    return slices


def _without_pixels(slices):
    """One slice of the series has no pixel data at all."""
    del slices[7].PixelData
    return slices


def _without_a_slice(slices):
    """One slice in the middle never arrives."""
    return slices[:11] + slices[12:]


def _unreadable_syntax(slices):
    """Every slice is in a transfer syntax that no decoder here reads."""
    for one in slices:
        one.PixelData = encapsulate([bytes(one.PixelData)])
        one["PixelData"].VR = "OB"
        one.file_meta.TransferSyntaxUID = JPEG2000MC
    return slices


def _with_a_report_beside(slices):
    """A report without pixels lies in the series of the images."""
    report = Dataset()
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate"):
        setattr(report, keyword, slices[0].get(keyword))
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", generate_uid(), "SR"
    report.file_meta = slices[0].file_meta.copy()
    return [*slices, report]


BROKEN = {
    _cut_pixels: ("refused", "the file is truncated"),
    _without_pixels: ("refused", "no pixel data"),
    _without_a_slice: ("refused", "a slice is missing"),
    _unreadable_syntax: ("refused", "JPEG 2000 Part 2"),
    _with_a_report_beside: ("done", None),
}
"""How a study is broken -> how its job ends, and a word of the reason."""


def test_broken_studies_are_refused_with_a_reason_and_the_next_one_runs(orthanc, site, storescu, small_study):
    """Each breakage has its own words, no process ends, and a good study sent last runs to its end."""
    pacs = orthanc()
    node = site(pacs=pacs)
    node.start()
    broken = {change: small_study(change) for change in BROKEN}
    good = small_study()
    for study in (*broken.values(), good):
        storescu(study.folder, node.port)
    _done(node, good.uid)
    for change, (state, word) in BROKEN.items():
        (job,) = node.wait_for_jobs(1, study_uid=broken[change].uid)
        assert state == job["state"], (change.__doc__, job)
        assert word is None or word in job["reason"], (change.__doc__, job["reason"])
        assert ((1, 1) if state == "done" else (0, 0)) == _held_by(pacs, broken[change].uid), change.__doc__
    said = node.log.read_text()
    assert "role.ended" not in said
    assert "loop.failed" not in said


def test_a_file_cut_off_within_its_pixels_is_refused_as_truncated(orthanc, site, small_study):
    """A file that ends within its pixels is sent as it lies on the disk; the node names what is wrong with it."""
    study = small_study()
    node = site(pacs=orthanc())
    node.start()
    cut = study.files[5]
    cut.write_bytes(cut.read_bytes()[:-500])
    sent = node.node.admin.send_to(
        [study.folder], host="127.0.0.1", port=node.port, called_ae="DICOM_NODE", calling_ae="STORESCU"
    )
    assert [True] * len(study.files) == [one["stored"] for one in sent]
    (job,) = node.wait_for_jobs(1, study_uid=study.uid)
    assert "refused" == job["state"]
    assert "the file is truncated" in job["reason"]
    assert "role.ended" not in node.log.read_text()


def test_a_late_image_supersedes_and_reprocess_makes_a_new_generation(orthanc, site, storescu, small_study):
    """Three jobs, all visible: on the first images, on all of them, and once more under new UIDs."""
    pacs, study = orthanc(), small_study()
    node = site(pacs=pacs)
    node.start()
    storescu(study.files[:-1], node.port)
    (first,) = _done(node, study.uid)
    storescu(study.files[-1:], node.port)
    second, superseded = _done(node, study.uid, 2)
    assert (first["id"], second["id"]) == (superseded["id"], superseded["superseded_by"])
    assert (len(study.files) - 1, len(study.files)) == tuple(
        node.node.admin.job(job["id"])["n_images"] for job in (first, second)
    )
    again = node.cli("studies", "reprocess", study.uid, "--json")
    assert 0 == again.returncode, again.stderr
    third, *_ = _done(node, study.uid, 3)
    assert [third["id"]] == json.loads(again.stdout)["jobs"]
    assert (0, 1) == (second["generation"], third["generation"])
    assert {first["id"]: second["id"], second["id"]: third["id"], third["id"]: None} == {
        job["id"]: job["superseded_by"] for job in node.jobs(study.uid)
    }
    results = [one for job in node.jobs(study.uid) for one in node.node.admin.job(job["id"])["results"]]
    uids = [one["sop_instance_uid"] for one in results]
    assert (6, 6) == (len(uids), len(set(uids)))
    node.wait_until_at_rest()
    assert (3, 3) == _held_by(pacs, study.uid)


@pytest.mark.parametrize(
    ("titles", "reason"),
    [
        ({"calling": "STRANGER"}, "Calling AE Title Not Recognized"),
        ({"called": "ANOTHER"}, "Called AE Title Not Recognized"),
        ({"calling": "ELSEWHERE"}, "Calling AE Title Not Recognized"),
    ],
)
def test_strangers_are_rejected(orthanc, site, storescu, small_study, titles, reason):
    """An unknown title, a title that is not ours, and a known title from a foreign address: nothing is stored."""
    node = site(pacs=orthanc())
    known_elsewhere = '\n[[peer]]\nname = "far"\nae_title = "ELSEWHERE"\nhosts = ["192.0.2.7"]\nmay = ["store"]\n'
    node.config_file.write_text(node.config_file.read_text() + known_elsewhere)
    node.start()
    sent = storescu(small_study().files[:1], node.port, check=False, **titles)
    assert 0 != sent.exit_status
    assert reason in sent.output
    assert [(0,)] == node.rows("SELECT count(*) FROM instance")


def test_results_wait_for_a_pacs_that_is_down(site, storescu, small_study, tmp_path):
    """Deliveries stay queued with the reason and come again, later each time; once it is up, all are stored once."""
    pacs, study = peers.Orthanc(tmp_path / "pacs"), small_study()
    node = site(pacs=pacs)
    node.start()
    storescu(study.folder, node.port)

    def tried_twice():
        deliveries = node.node.admin.deliveries()
        return len(deliveries) == 2 and all(one["attempts"] >= 2 for one in deliveries)

    node.wait_until(tried_twice, "two attempts at each delivery")
    for delivery in node.node.admin.deliveries():
        assert delivery["state"] in ("queued", "sending")
        assert delivery["reason"]
    assert [("delivering",)] == node.rows("SELECT state FROM job")
    with pacs:
        _done(node, study.uid)
        assert (1, 1) == _held_by(pacs, study.uid)
        assert {"stored"} == {one["state"] for one in node.node.admin.deliveries()}
