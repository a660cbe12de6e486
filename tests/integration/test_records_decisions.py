"""Decisions: one row per rule and evaluation, in one transaction with the jobs that came of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.errors import NotFoundError
from dicom_node.records import Decisions, NewDecision
from dicom_node.study import JobInput
from tests.integration.records_case import SERIES, STUDY, Records, image, later, new_job

NO = NewDecision(route="chest", outcome="not_matched", reason="Modality is MR, not CT")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a database with one study."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1)])
    return records


@pytest.fixture
def decisions(records: Records) -> Decisions:
    """Return the decisions of the same database."""
    return Decisions(records.database, records.jobs)


def _yes(records: Records) -> NewDecision:
    return NewDecision(route="brain", outcome="matched", reason="all conditions hold", job=new_job(records))


def test_decisions_and_jobs_are_written_together(records: Records, decisions: Decisions) -> None:
    """Each rule leaves its reason, the one that matched names its job, and the study is complete."""
    decided = decisions.decide(STUDY, None, 1, [_yes(records), NO], config_digest="c0")
    assert (True, ((1, True),)) == (decided.is_current, decided.jobs)
    assert [("brain", "matched", 1), ("chest", "not_matched", None)] == [
        (one.route, one.outcome, one.job_id) for one in decisions.list(STUDY)
    ]
    row = records.studies.show(STUDY)
    assert ("complete", 2, 1) == (row.state, row.decisions, row.jobs)
    assert "c0" == records.jobs.show(1).config_digest


def test_series_decision_leaves_the_study_open(records: Records, decisions: Decisions) -> None:
    """A series may be judged before its study."""
    decisions.decide(STUDY, SERIES, 1, [_yes(records)], config_digest="c0")
    assert [SERIES] == [one.series_instance_uid for one in decisions.list(STUDY)]
    (evidence,) = records.studies.open_studies()
    assert evidence.series[0].is_decided
    decisions.decide(STUDY, None, 1, [NO], config_digest="c0")
    assert [SERIES, None] == [one.series_instance_uid for one in decisions.list(STUDY)]


def test_repeated_decision_is_not_doubled(records: Records, decisions: Decisions) -> None:
    """After a crash between two steps the same evaluation leaves the same rows, with the time of the first."""
    decisions.decide(STUDY, None, 1, [_yes(records), NO], config_digest="c0")
    before = decisions.list(STUDY)
    records.clock.advance(5)
    decided = decisions.decide(STUDY, None, 1, [_yes(records), NO], config_digest="c0")
    assert (((1, False),), before) == (decided.jobs, decisions.list(STUDY))


def test_other_answer_to_the_same_revision_replaces_the_first(records: Records, decisions: Decisions) -> None:
    """A rule that was changed says something else about the same images: the row tells what holds."""
    decisions.decide(STUDY, None, 1, [NO], config_digest="c0")
    changed = NewDecision(route="chest", outcome="not_matched", reason="disabled")
    decisions.decide(STUDY, None, 1, [changed], config_digest="c1")
    assert [("disabled", "c1")] == [(one.reason, one.config_digest) for one in decisions.list(STUDY)]


def test_new_revision_has_its_own_row(records: Records, decisions: Decisions) -> None:
    """What was said of the study before the late image stays readable."""
    decisions.decide(STUDY, None, 1, [NO], config_digest="c0")
    records.studies.index([image(2, at=later(1))])
    decisions.decide(STUDY, None, 2, [NO], config_digest="c0")
    assert [1, 2] == [one.revision for one in decisions.list(STUDY)]


def test_stale_decision_writes_nothing(records: Records, decisions: Decisions) -> None:
    """An image that came between view and decision: no row, no job, judge again."""
    asked = _yes(records)
    records.studies.index([image(2, at=later(1))])
    assert not decisions.decide(STUDY, None, 1, [asked], config_digest="c0").is_current
    assert ((), (), "receiving") == (decisions.list(STUDY), records.jobs.list(), records.studies.show(STUDY).state)


def test_failure_leaves_neither_decision_nor_mark(records: Records, decisions: Decisions) -> None:
    """A job that cannot be written takes the whole evaluation along."""
    impossible = NewDecision(
        route="brain", outcome="matched", reason="-", job=new_job(records, input=JobInput(study_instance_uid=STUDY))
    )
    with pytest.raises(NotFoundError):
        decisions.decide(STUDY, None, 1, [NO, impossible], config_digest="c0")
    assert ((), "receiving") == (decisions.list(STUDY), records.studies.show(STUDY).state)


def test_decision_on_an_unknown_study_is_refused(decisions: Decisions) -> None:
    """There is nothing to decide on."""
    with pytest.raises(NotFoundError):
        decisions.decide("7.7", None, 1, [NO], config_digest="c0")
