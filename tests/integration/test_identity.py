"""Whose images: a study with two patients waits for an administrator; what a rejection note names does not count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import IllegalTransitionError, NotFoundError, UsageError
from dicom_node.records import Decisions, NewDecision, Withdrawn
from dicom_node.records.holding import are_two_patients, contradicts
from dicom_node.study import Rejection
from tests import peers
from tests.integration.cli_case import CommandLine
from tests.integration.records_case import SERIES, STUDY, Records, image, later, new_job, results_of

NOTE = "1.2.77"


@pytest.fixture
def records(tmp_path) -> Records:
    """Return records with a study of two images of P1."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1), image(2)])
    return records


def _patient(number: int, patient_id: str, issuer: str = "", **given: Any) -> Any:
    filed, description = image(number, patient_id=patient_id, **given)
    return filed, type(description)(**{**_fields(description), "issuer_of_patient_id": issuer})


def _note(code: str, *numbers: int, study: str = STUDY, at: float = 100, note: str = NOTE) -> Any:
    filed, description = image(77, study=STUDY, series="1.2.3.99", is_image=False, at=later(at), version=note)
    references = tuple((study, f"{SERIES}.{number}") for number in numbers)
    rejection = Rejection(code=code, reason=f"rejected ({code})", references=references)
    filed = type(filed)(**{**_fields(filed), "sop_instance_uid": note})
    return filed, type(description)(**{**_fields(description), "sop_instance_uid": note, "rejection": rejection})


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _state(records: Records) -> tuple[str, bool]:
    shown = records.studies.show(STUDY)
    return shown.state, shown.reason is not None


def _images(records: Records) -> list[str]:
    return [one.sop_instance_uid[-1] for one in records.studies.series_images(STUDY, SERIES)]


def _done(records: Records) -> int:
    """Do a job on the study, up to filed results."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    claimed = records.jobs.claim("w", 30)
    assert claimed is not None
    filed = results_of(claimed.result_uids)
    records.jobs.file_results(job_id, claimed.token, filed, outcome="result", engine="e", duration_s=1.0)
    return job_id


# Two patients


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("A", ""), ("A", ""), False),
        (("A", ""), ("B", ""), True),
        (("A", ""), ("", ""), False),
        (("A", "X"), ("A", ""), False),
        (("A", "X"), ("A", "Y"), True),
        (("", "X"), ("", "Y"), False),
    ],
)
def test_which_identities_contradict(one, other, expected):
    """Another ID, or the same of another issuer; what is absent says nothing. In either order."""
    assert (expected, expected) == (contradicts(one, other), contradicts(other, one))


@given(st.sets(st.tuples(st.sampled_from("AB"), st.sampled_from(["", "X", "Y"]))))
def test_what_is_accepted_is_one_patient(identities):
    """Whatever an administrator has accepted holds nothing; a further ID does."""
    assert not are_two_patients(identities, identities)
    assert bool(identities) == are_two_patients(identities | {("C", "")}, identities)


@pytest.mark.parametrize("came", [("P1", ""), ("", ""), ("P1", "HOSPITAL")])
def test_one_patient_holds_nothing(records, came):
    """The same ID, none, or one with an issuer where the others have none."""
    records.studies.index([_patient(3, *came)])
    assert ("receiving", False) == _state(records)


def test_a_second_patient_holds_the_study(records):
    """No further job is made, queued ones are not claimed, results wait; more images change nothing of that."""
    held: list[str] = []
    done = _done(records)
    queued, _ = records.jobs.enqueue(new_job(records, plugin="other"))
    records.studies.index([image(3, patient_id="P2")], on_held=held.append)
    assert ([STUDY], ("held", True)) == (held, _state(records))
    assert records.jobs.claim("w", 30) is None
    assert records.deliveries.claim("pacs", "s", 30) is None
    assert () == records.deliveries.due()
    matched = NewDecision(route="r", outcome="matched", reason="yes", job=new_job(records, plugin="third"))
    decided = Decisions(records.database, records.jobs).decide(STUDY, None, 9, [matched], config_digest="c")
    assert (False, 2) == (decided.is_current, len(records.jobs.list()))
    with pytest.raises(IllegalTransitionError, match="held"):
        records.jobs.reprocess(done)
    records.studies.index([image(4, patient_id="P3")], on_held=held.append)
    assert ([STUDY], ("held", True), ()) == (held, _state(records), records.studies.open_studies())
    shown = [(one.patient_id, one.n_instances) for one in records.studies.identities(STUDY)]
    assert [("P1", 2), ("P2", 1), ("P3", 1)] == shown
    records.studies.release(STUDY, is_same=True)
    claimed = records.jobs.claim("w", 30)
    assert claimed is not None
    assert queued == claimed.id
    assert records.deliveries.claim("pacs", "s", 30) is not None


def test_the_reason_of_a_hold_names_no_patient(records):
    """It reaches logs and screens; who they are is asked of the study."""
    records.studies.index([image(3, patient_id="MARKED^2")])
    assert "MARKED" not in (records.studies.show(STUDY).reason or "")


def test_a_running_job_may_end_but_nothing_of_it_leaves(records):
    """Its results are filed and wait for the release."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    claimed = records.jobs.claim("w", 30)
    records.studies.index([image(3, patient_id="P2")])
    filed = results_of(claimed.result_uids)
    state = records.jobs.file_results(job_id, claimed.token, filed, outcome="result", engine="e", duration_s=1.0)
    assert "delivering" == state
    assert records.deliveries.claim(None, "s", 30) is None


def test_a_corrected_version_is_no_second_patient(records):
    """The same instances with another ID, from the same sender: while they come there are two, at the end one."""
    records.studies.index([image(1, patient_id="P9", version="b", at=later(5))])
    assert ("held", True) == _state(records)
    records.studies.index([image(2, patient_id="P9", version="b", at=later(6))])
    assert ("receiving", False) == _state(records)
    assert ["P9"] == [one.patient_id for one in records.studies.identities(STUDY)]


def test_a_hold_by_hand_does_not_end_by_itself(records):
    """Only the hold that two patients made ends with them."""
    records.studies.hold(STUDY, "ask")
    records.studies.index([image(3)])
    assert ("held", True) == _state(records)


def test_what_another_sender_coerced_is_no_second_patient(records):
    """A PACS sends everything back under an ID of its own: not current, so nothing contradicts."""
    filed, description = image(1, patient_id="PACS-1", version="coerced", at=later(5))
    records.studies.index([(type(filed)(**{**_fields(filed), "calling_ae": "PACS"}), description)])
    records.studies.index([image(9, patient_id="PACS-1", made_by_us=True, at=later(6))])
    assert ("receiving", False) == _state(records)


def test_release_asks_which_patient(records):
    """Two patients are not released without a word; a word that fits no instance is refused."""
    records.studies.index([image(3, patient_id="P2")])
    with pytest.raises(UsageError, match="--same"):
        records.studies.release(STUDY)
    with pytest.raises(UsageError, match="no instance"):
        records.studies.release(STUDY, patient_id="P7")
    assert ("held", True) == _state(records)


def test_accepted_patients_hold_no_more(records):
    """Both IDs are one patient from now on; a third is not."""
    records.studies.index([image(3, patient_id="P2")])
    assert Withdrawn() == records.studies.release(STUDY, is_same=True)
    records.studies.index([image(4, patient_id="P2"), image(5, patient_id="P1")])
    assert (("receiving", False), ["1", "2", "3", "4", "5"]) == (_state(records), _images(records))
    records.studies.index([image(6, patient_id="P3")])
    assert ("held", True) == _state(records)


def test_the_wrong_patients_images_are_withdrawn(records):
    """They count no more, jobs that read them are cancelled or flagged, the rest is judged anew."""
    records.studies.index([image(3, patient_id="P2")])
    records.studies.release(STUDY, is_same=True)
    done = _done(records)
    queued, _ = records.jobs.enqueue(new_job(records, plugin="other"))
    records.studies.hold(STUDY, "are they one?")
    revision = records.studies.view(STUDY)
    taken = records.studies.release(STUDY, patient_id="P1")
    assert Withdrawn(n_instances=1, cancelled=(done, queued), flagged=(done,)) == taken
    assert (("receiving", False), ["1", "2"]) == (_state(records), _images(records))
    assert 2 == records.studies.show(STUDY).n_instances
    assert revision != records.studies.view(STUDY)
    assert "another patient's" in (records.jobs.show(done).job.flag or "")
    with pytest.raises(IllegalTransitionError, match="withdrawn"):
        records.jobs.reprocess(done)


def test_hold_and_release_by_hand(records):
    """A study waits for a reason of the administrator's, and goes on where it was."""
    records.studies.hold(STUDY, "ask the ward")
    assert ("held", "ask the ward") == (records.studies.show(STUDY).state, records.studies.show(STUDY).reason)
    with pytest.raises(IllegalTransitionError):
        records.studies.hold(STUDY, "twice")
    records.studies.release(STUDY)
    assert ("receiving", False) == _state(records)
    with pytest.raises(IllegalTransitionError, match="not held"):
        records.studies.release(STUDY)
    (evidence,) = records.studies.open_studies()
    records.studies.mark_decided(STUDY, SERIES, evidence.revision)
    records.studies.mark_decided(STUDY, None, evidence.revision)
    records.studies.hold(STUDY, "late")
    records.studies.release(STUDY)
    assert ("complete", False) == _state(records)
    with pytest.raises(NotFoundError):
        records.studies.hold("9.9", "who?")


# Rejection notes


@pytest.mark.parametrize("code", ["113001", "113037", "113038"])
def test_rejected_images_do_not_count(records, code):
    """Out of series, view and counts; open jobs are cancelled, delivered results flagged; the rest is new input."""
    done = _done(records)
    while (claimed := records.deliveries.claim("pacs", "s", 30)) is not None:
        records.deliveries.stored(claimed.id, claimed.token, 0)
    queued, _ = records.jobs.enqueue(new_job(records, plugin="other"))
    revision = records.studies.open_studies()[0].revision
    heard: list[tuple[str, Withdrawn]] = []
    records.studies.index([_note(code, 2)], on_withdrawn=lambda uid, taken: heard.append((uid, taken)))
    assert [(STUDY, Withdrawn(n_instances=1, cancelled=(queued,), flagged=(done,)))] == heard
    assert ["1"] == _images(records)
    assert {f"rejected ({code})": 1} == records.studies.withdrawn(STUDY)
    job = records.jobs.show(done)
    assert ("done", f"rejected ({code})", "flag") == (job.job.state, job.job.flag, job.events[-1].event)
    (evidence,) = records.studies.open_studies()
    assert revision < evidence.revision
    (series,) = [one for one in evidence.series if one.series_instance_uid == SERIES]
    assert (1, False) == (series.n_images, series.is_decided)


@pytest.mark.parametrize("version", ["a", "corrected"])
def test_a_rejected_image_stays_withdrawn(records, version):
    """However it comes again under its UID, from whomever: filed, said, not counted."""
    records.studies.index([_note("113038", 2)])
    kept: list[str] = []
    records.studies.index(
        [image(2, version=version, at=later(200))], on_kept_back=lambda _one, reason: kept.append(reason)
    )
    assert ["1"] == _images(records)
    assert ([] if version == "a" else ["rejected (113038)"]) == kept


def test_a_note_may_come_before_its_images(records):
    """What it names never counts."""
    records.studies.index([_note("113037", 3, 4)])
    records.studies.index([image(3, at=later(200)), image(5, at=later(200))])
    assert ["1", "2", "5"] == _images(records)


def test_expired_retention_is_no_error_of_results(records):
    """113039: the images go, results stay right and go on to their destination, nothing is judged anew; what comes
    again counts again.
    """
    done = _done(records)
    queued, _ = records.jobs.enqueue(new_job(records, plugin="other"))
    revision = records.studies.open_studies()[0].revision
    records.studies.index([_note("113039", 1, 2)])
    assert ([], "delivering", "cancelled") == (
        _images(records),
        records.jobs.show(done).job.state,
        records.jobs.show(queued).job.state,
    )
    assert records.jobs.show(done).job.flag is None
    (evidence,) = records.studies.open_studies()
    assert revision + 1 == evidence.revision  # that of the note's own series
    records.studies.index([image(2, at=later(200))])
    assert ["2"] == _images(records)
    assert (2, 1) == (records.studies.show(STUDY).n_series, len(records.studies.withdrawn(STUDY)))


def test_a_rejected_result_flags_its_job(records):
    """The PACS rejects our own segmentation."""
    job_id = _done(records)
    uid = records.jobs.show(job_id).results[0].sop_instance_uid
    filed, description = _note("113037", 1)
    rejection = Rejection(code="113037", reason="unsafe", references=((STUDY, uid),))
    records.studies.index([(filed, type(description)(**{**_fields(description), "rejection": rejection}))])
    assert (["1", "2"], "unsafe") == (_images(records), records.jobs.show(job_id).job.flag)


def test_the_same_note_again_changes_nothing(records):
    """A note is sent to many and by many."""
    records.studies.index([_note("113001", 2)])
    before = records.database.counters(), records.studies.open_studies()
    records.studies.index([_note("113001", 2)])
    assert before == (records.database.counters(), records.studies.open_studies())


# Commands


@pytest.fixture
def dicom_node(tmp_path, monkeypatch, capsys) -> CommandLine:
    """Return the command line of a node whose folder is fresh."""
    return CommandLine(tmp_path, peers.free_port(), peers.free_port(), monkeypatch, capsys)


def test_the_commands(dicom_node):
    """hold, release with a word, and what `studies show` says of it all."""
    (dicom_node.folder / "var").mkdir()
    records = Records(dicom_node.folder / "var" / "records.sqlite")
    records.studies.index([image(1), image(2)])
    job_id = _done(records)
    assert 0 == dicom_node("studies", "hold", STUDY, "--reason", "ask").status
    assert "ask" in dicom_node("studies", "show", STUDY).out
    assert 0 == dicom_node("studies", "release", STUDY).status
    records.studies.index([image(3, patient_id="P2")])
    shown = dicom_node("studies", "show", STUDY, "--json").json
    assert ["P1", "P2"] == [one["patient_id"] for one in shown["identities"]]
    assert "P2" in dicom_node("studies", "show", STUDY).out
    said = dicom_node("studies", "release", STUDY)
    assert (2, True) == (said.status, "--same" in said.err)
    (done,) = dicom_node("studies", "release", STUDY, "--patient", "P1", "--json").json
    assert STUDY == done.pop("study_instance_uid")
    assert {"n_instances": 1, "cancelled": [], "flagged": []} == done
    records.studies.index([_note("113001", 1)])
    out = dicom_node("studies", "show", STUDY).out
    assert "1 instances do not count: rejected (113001)" in out
    assert f"the results of job {job_id} are not to be relied on: rejected (113001)" in out
