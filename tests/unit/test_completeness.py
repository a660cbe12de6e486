"""Completeness: quiet alone does not close a study, an idle association does not hold it open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config.schema import Complete
from dicom_node.routing import (
    AssociationEvidence,
    Evidence,
    Habit,
    IsComplete,
    Reopened,
    SeriesEvidence,
    Stack,
    StudyEvidence,
    WaitUntil,
    assess,
)
from dicom_node.routing.completeness import DOUBT_S

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return START and so many seconds."""
    return START + timedelta(seconds=seconds)


def arrived(**last_received_s: float) -> tuple[SeriesEvidence, ...]:
    """Return series by the second of their latest instance."""
    return tuple(
        SeriesEvidence(series_instance_uid=uid, last_received_at=at(seconds), n_instances=10)
        for uid, seconds in last_received_s.items()
    )


def association(active_s: float, **changes: object) -> AssociationEvidence:
    """Return an association that moves series s1 and was active at this second."""
    values: dict[str, object] = {
        "id": "a",
        "calling_ae": "CT1",
        "is_open": True,
        "study_instance_uid": "study",
        "series_instance_uid": "s1",
        "last_activity_at": at(active_s),
    }
    return AssociationEvidence(**(values | changes))  # type: ignore[arg-type]


def evidence(series: tuple[SeriesEvidence, ...], *associations: AssociationEvidence) -> StudyEvidence:
    """Return what is known of the study."""
    return StudyEvidence(study_instance_uid="study", series=series, associations=associations)


@pytest.mark.parametrize(
    ("now_s", "associations", "wait_until_s"),
    [
        # quiet time
        (0, [], 5),
        (4.9, [], 5),
        (5, [], None),
        (100, [], None),
        # an association that moves data
        (5, [association(4)], 34),
        (33.9, [association(4)], 34),
        (34, [association(4)], None),
        (6, [association(1), association(5, id="b")], 35),
        # none of these holds a study open
        (5, [association(4, is_open=False)], None),
        (5, [association(4, study_instance_uid="another")], None),
        (31, [association(1)], None),
    ],
)
def test_study_is_complete_when_quiet_and_nobody_moves_it(
    now_s: float, associations: list[AssociationEvidence], wait_until_s: float | None
) -> None:
    """The table of evidence, with each illegal complement beside its case; the last image came at 0 s."""
    answer = assess(evidence(arrived(s1=0), *associations), at(now_s), Complete(quiet_s=5))
    if wait_until_s is None:
        assert isinstance(answer, IsComplete)
    else:
        assert isinstance(answer, WaitUntil)
        assert at(wait_until_s) == answer.at


@pytest.mark.parametrize(("now_s", "complete"), [(9.9, False), (10, True)])
def test_longest_wait_ends_even_a_moving_association(now_s: float, complete: bool) -> None:
    """max_wait_s caps whatever holds the study open."""
    answer = assess(evidence(arrived(s1=0), association(now_s)), at(now_s), Complete(quiet_s=5, max_wait_s=10))
    assert complete == isinstance(answer, IsComplete)


def test_nobody_waits_beyond_the_longest_wait() -> None:
    """The time to ask again is the cap when that comes first."""
    answer = assess(evidence(arrived(s1=0), association(6)), at(6), Complete(quiet_s=5, max_wait_s=10))
    assert isinstance(answer, WaitUntil)
    assert at(10) == answer.at


def test_longest_wait_below_the_quiet_time_wins() -> None:
    """A contradictory pair of settings waits the shorter of both."""
    answer = assess(evidence(arrived(s1=0)), at(1), Complete(quiet_s=60, max_wait_s=2))
    assert isinstance(answer, WaitUntil)
    assert at(2) == answer.at


def test_series_completes_while_the_next_one_arrives() -> None:
    """The association went on to another series; the study still waits."""
    facts = evidence(arrived(s1=0, s2=20), association(20, series_instance_uid="s2"))
    assert isinstance(assess(facts, at(20), Complete(), series_instance_uid="s1"), IsComplete)
    assert isinstance(assess(facts, at(20), Complete(), series_instance_uid="s2"), WaitUntil)
    assert isinstance(assess(facts, at(20), Complete()), WaitUntil)


def test_series_waits_for_its_own_association_in_a_pause() -> None:
    """Twenty seconds of silence inside a series do not close it early."""
    facts = evidence(arrived(s1=0), association(10))
    answer = assess(facts, at(20), Complete(quiet_s=5), series_instance_uid="s1")
    assert isinstance(answer, WaitUntil)
    assert at(40) == answer.at


def test_quiet_time_counts_from_the_latest_series() -> None:
    """A study is as young as its youngest series."""
    answer = assess(evidence(arrived(s1=0, s2=8)), at(9), Complete(quiet_s=5))
    assert isinstance(answer, WaitUntil)
    assert at(13) == answer.at


@pytest.mark.parametrize(
    ("facts", "now_s", "why"),
    [
        (evidence(arrived(s1=0)), 1, "the last image is not 5 s old"),
        (evidence(arrived(s1=0), association(6)), 6, "an association of CT1 still moves data"),
        (evidence(arrived(s1=0)), 6, "no image for 5 s, and no association moves data"),
        (evidence(arrived(s1=0)), 60, "no image for 60 s, the longest wait (max_wait_s)"),
    ],
)
def test_answer_names_its_evidence(facts: StudyEvidence, now_s: float, why: str) -> None:
    """An administrator reads which sign decided."""
    assert why == assess(facts, at(now_s), Complete(quiet_s=5, max_wait_s=60)).why


@pytest.mark.parametrize("series_uid", [None, "s1"])
def test_question_about_nothing_is_refused(series_uid: str | None) -> None:
    """Without any arrival there is nothing to be complete."""
    with pytest.raises(ValueError, match="nothing has arrived"):
        assess(evidence(()), at(0), Complete(), series_instance_uid=series_uid)


@given(
    quiet_s=st.floats(0, 60),
    max_wait_s=st.none() | st.floats(0.1, 100),
    last_s=st.floats(0, 100),
    active_s=st.lists(st.floats(0, 100), max_size=3),
    now_s=st.floats(0, 200),
)
def test_asking_again_when_told_to_always_ends(
    quiet_s: float, max_wait_s: float | None, last_s: float, active_s: list[float], now_s: float
) -> None:
    """Each wait lies in the future, and without new evidence the answer is "complete" after a few of them."""
    facts = evidence(arrived(s1=last_s), *(association(active) for active in active_s))
    settings = Complete(quiet_s=quiet_s, max_wait_s=max_wait_s)
    now = at(now_s)
    for _ in range(3):
        answer = assess(facts, now, settings)
        if isinstance(answer, IsComplete):
            break
        assert answer.at > now
        now = answer.at
    assert isinstance(assess(facts, now, settings), IsComplete)


# One piece of evidence after the other

STEADY = Habit(n_series=10, releases=True)
GATEWAY = Habit(n_series=10)
WHOLE = Stack(n_images=10, n_positions=10, is_regular=True, n_missing=0)


def of_one(*associations: AssociationEvidence, habit: Habit = STEADY, **changes: object) -> StudyEvidence:
    """Return a study of one whole series, released by a sender that is known; its last image came at 0 s."""
    values: dict[str, object] = {
        "series_instance_uid": "s1",
        "last_received_at": at(0),
        "n_instances": 10,
        "calling_ae": "CT1",
        "end": "released",
        "stack": WHOLE,
    }
    more = {name: changes.pop(name) for name in ("expected", "pause_s", "was_decided") if name in changes}
    if "was_decided" in more:
        values["was_decided"] = more["was_decided"]
    series = SeriesEvidence(**(values | changes))  # type: ignore[arg-type]
    return StudyEvidence(
        study_instance_uid="study", series=(series,), associations=associations, habits={"CT1": habit}, **more
    )  # type: ignore[arg-type]


GAP = Stack(n_images=10, n_positions=10, is_regular=False, n_missing=2)
COUNTED = Stack(n_images=10, n_positions=10, is_regular=True, n_missing=0, n_claimed=10)
SHORT = Stack(n_images=10, n_positions=10, is_regular=True, n_missing=0, n_claimed=12)
LONE = Stack(n_images=1, n_positions=1, is_regular=False, n_missing=0)
NEXT = association(0, series_instance_uid="s2")


@pytest.mark.parametrize(
    ("facts", "decided_s", "evidence"),
    [
        (of_one(), 0, Evidence.RELEASED),
        (of_one(NEXT, end="open"), 0, Evidence.GONE_ON),
        (of_one(habit=Habit()), 5, Evidence.QUIET),
        (of_one(NEXT, end="open", habit=Habit()), 5, Evidence.QUIET),
        (of_one(n_runs=3), 0, Evidence.RELEASED),
        (of_one(NEXT, end="open", n_runs=3), 5, Evidence.QUIET),  # shuffled: it may turn back
        (of_one(stack=None), 5, Evidence.QUIET),
        (of_one(pause_s={"CT1": 20.0}), 20, Evidence.QUIET),
        (of_one(habit=Habit(n_series=10, cuts=True, cut_pause_s=40.0)), 60, Evidence.QUIET),
        (of_one(habit=Habit(), n_runs=3, longest_pause_s=8.0), 16, Evidence.QUIET),
        (of_one(habit=Habit(), n_runs=1, longest_pause_s=8.0), 5, Evidence.QUIET),
        (of_one(habit=Habit(), stack=LONE, n_instances=1), 10, Evidence.QUIET),
        (of_one(stack=COUNTED, habit=Habit(), n_runs=10), 0, Evidence.COUNTED),
        (of_one(association(0), stack=COUNTED, end="open", habit=Habit()), 5, Evidence.COUNTED),
        (of_one(stack=COUNTED, end="aborted"), 5, Evidence.COUNTED),
        (of_one(expected={"s1": 10}, habit=Habit()), 0, Evidence.COUNTED),
        (of_one(expected={"s1": 9}), 0, Evidence.RELEASED),  # the PACS lags behind
        (of_one(association(0), end="open", habit=GATEWAY), 5, Evidence.QUIET),
        (of_one(association(0), end="open", habit=Habit()), 30, Evidence.QUIET),
        # what speaks against it
        (of_one(stack=GAP), DOUBT_S, Evidence.LONGEST_WAIT),
        (of_one(stack=SHORT), DOUBT_S, Evidence.LONGEST_WAIT),
        (of_one(expected={"s1": 11}), DOUBT_S, Evidence.LONGEST_WAIT),
        (of_one(end="aborted"), DOUBT_S, Evidence.LONGEST_WAIT),
        (of_one(end="orphaned"), DOUBT_S, Evidence.LONGEST_WAIT),
        (of_one(end="aborted", habit=Habit(n_series=10, aborts=True)), 5, Evidence.QUIET),
        (of_one(association(0), end="open"), DOUBT_S, Evidence.LONGEST_WAIT),  # stalled
        # whatever speaks against it
        (of_one(association(0), stack=GAP, end="open", is_forced=True), 0, Evidence.FORCED),
        (of_one(was_decided=True), 30, Evidence.RELEASED),  # late images are collected
        (of_one(was_decided=True, stack=COUNTED), 30, Evidence.COUNTED),
    ],
)
def test_series_is_decided_by_the_strongest_evidence(
    facts: StudyEvidence, decided_s: float, evidence: Evidence
) -> None:
    """A series waits exactly so long; a moment before it does not count as complete."""
    if decided_s:
        before = assess(facts, at(decided_s - 0.1), Complete(), series_instance_uid="s1")
        assert not isinstance(before, IsComplete)
        assert isinstance(before, Reopened) == facts.series[0].was_decided
        assert at(decided_s) >= before.at
    answer = assess(facts, at(decided_s), Complete(), series_instance_uid="s1")
    assert isinstance(answer, IsComplete)
    assert evidence == answer.evidence


@pytest.mark.parametrize(
    ("facts", "evidence"),
    [
        (of_one(stack=GAP), Evidence.GAP),
        (of_one(stack=SHORT), Evidence.SHORT),
        (of_one(end="orphaned"), Evidence.BROKEN),
        (of_one(association(0), end="open"), Evidence.STALLED),
        (of_one(was_decided=True), Evidence.LATE),
        (of_one(habit=Habit()), Evidence.RECENT),
    ],
)
def test_wait_names_what_it_waits_for(facts: StudyEvidence, evidence: Evidence) -> None:
    """Also when the association has been silent for long."""
    now = 2 if evidence in (Evidence.LATE, Evidence.RECENT) else 200
    answer = assess(facts, at(now), Complete(), series_instance_uid="s1")
    assert not isinstance(answer, IsComplete)
    assert evidence == answer.evidence


def test_longest_wait_ends_a_doubt_sooner() -> None:
    """max_wait_s is how long a gap waits."""
    assert isinstance(assess(of_one(stack=GAP), at(20), Complete(max_wait_s=20)), IsComplete)
    assert not isinstance(assess(of_one(stack=GAP), at(19.9), Complete(max_wait_s=20)), IsComplete)


def test_study_lacks_a_series_that_the_pacs_holds() -> None:
    """Of a series that never came there is no evidence but the PACS's."""
    facts = of_one(expected={"s1": 10, "s2": 40})
    waiting = assess(facts, at(20), Complete())
    assert not isinstance(waiting, IsComplete)
    assert Evidence.SHORT == waiting.evidence
    assert isinstance(assess(of_one(expected={"s1": 10}), at(5), Complete()), IsComplete)
