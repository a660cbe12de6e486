"""The states of a job and of a delivery: the whole tables, what is illegal, and long walks."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import IllegalTransitionError
from dicom_node.lifecycle import (
    DELIVERY_OPEN,
    DELIVERY_TRANSITIONS,
    DELIVERY_WELL,
    JOB_OPEN,
    JOB_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    job_outcome,
    next_delivery_state,
    next_job_state,
    state_diagram,
)

JOB_TABLE = {
    JobState.WAITING: {"wake": "queued", "hold": "held", "cancel": "cancelled", "retry": "queued"},
    JobState.QUEUED: {"claim": "running", "hold": "held", "cancel": "cancelled"},
    JobState.RUNNING: {
        "file_results": "delivering",
        "withhold": "withheld",
        "refuse": "refused",
        "retry_later": "waiting",
        "lease_expired": "queued",
        "give_back": "queued",
        "set_aside": "held",
        "fail": "failed",
        "hold": "held",
        "cancel": "cancelled",
        "retry": "queued",
    },
    JobState.HELD: {"release": "queued", "cancel": "cancelled", "retry": "queued"},
    JobState.DELIVERING: {"finish": "done", "fail": "failed", "cancel": "cancelled", "redeliver": "delivering"},
    JobState.DONE: {"redeliver": "delivering"},
    JobState.WITHHELD: {"retry": "queued"},
    JobState.REFUSED: {"retry": "queued"},
    JobState.FAILED: {"retry": "queued", "redeliver": "delivering"},
    JobState.CANCELLED: {"retry": "queued", "redeliver": "delivering"},
}
"""Written a second time, state by state, as an administrator reads it."""

DELIVERY_TABLE = {
    DeliveryState.QUEUED: {"claim": "sending", "hold": "held", "skip": "skipped", "retry": "queued"},
    DeliveryState.SENDING: {
        "store": "stored",
        "retry_later": "queued",
        "lease_expired": "queued",
        "refuse": "refused",
        "fail": "failed",
        "set_aside": "held",
    },
    DeliveryState.STORED: {"ask_commitment": "committing"},
    DeliveryState.COMMITTING: {"commit": "committed", "fail": "failed"},
    DeliveryState.COMMITTED: {},
    DeliveryState.REFUSED: {"retry": "queued", "skip": "skipped"},
    DeliveryState.HELD: {"retry": "queued", "skip": "skipped"},
    DeliveryState.FAILED: {"retry": "queued", "skip": "skipped"},
    DeliveryState.SKIPPED: {"retry": "queued"},
}

JOB_ILLEGAL = [(s, e) for s, e in product(JobState, JobEvent) if e not in JOB_TABLE[s]]
DELIVERY_ILLEGAL = [(s, e) for s, e in product(DeliveryState, DeliveryEvent) if e not in DELIVERY_TABLE[s]]


@pytest.mark.parametrize(("state", "events"), JOB_TABLE.items())
def test_job_events_lead_where_the_table_says(state: JobState, events: dict[str, str]) -> None:
    """Each legal event of a job leads to its one state."""
    assert events == {event: next_job_state(state, JobEvent(event)) for event in events}


@pytest.mark.parametrize(("state", "event"), JOB_ILLEGAL)
def test_any_other_job_event_is_refused(state: JobState, event: JobEvent) -> None:
    """The complement of the table raises and says which state refused what."""
    with pytest.raises(IllegalTransitionError, match=f"{state}.*{event}"):
        next_job_state(state, event)


@pytest.mark.parametrize(("state", "events"), DELIVERY_TABLE.items())
def test_delivery_events_lead_where_the_table_says(state: DeliveryState, events: dict[str, str]) -> None:
    """Each legal event of a delivery leads to its one state."""
    assert events == {event: next_delivery_state(state, DeliveryEvent(event)) for event in events}


@pytest.mark.parametrize(("state", "event"), DELIVERY_ILLEGAL)
def test_any_other_delivery_event_is_refused(state: DeliveryState, event: DeliveryEvent) -> None:
    """The complement of the table raises and says which state refused what."""
    with pytest.raises(IllegalTransitionError, match=f"{state}.*{event}"):
        next_delivery_state(state, event)


def test_the_tables_cannot_be_changed_at_run_time() -> None:
    """The tables are read-only for everybody."""
    for table in (JOB_TRANSITIONS, DELIVERY_TRANSITIONS):
        with pytest.raises(TypeError):
            table[JobState.DONE, JobEvent.CLAIM] = JobState.RUNNING  # type: ignore[index]


def test_every_state_can_be_reached_and_no_open_state_is_a_dead_end() -> None:
    """From queued every state is reachable; from every open state so is an end."""
    for transitions, start, still_open in (
        (JOB_TRANSITIONS, JobState.QUEUED, JOB_OPEN),
        (DELIVERY_TRANSITIONS, DeliveryState.QUEUED, DELIVERY_OPEN),
    ):
        states = type(start)
        assert set(states) == _reachable(transitions, start)
        for state in still_open:
            assert _reachable(transitions, state) - still_open


def _reachable(transitions: object, start: object) -> set[object]:
    seen = {start}
    while True:
        found = {after for (before, _), after in transitions.items() if before in seen} - seen  # type: ignore[attr-defined]
        if not found:
            return seen
        seen |= found


@given(st.lists(st.sampled_from(JobEvent), max_size=60))
def test_a_walk_of_any_events_stays_on_the_table(events: list[JobEvent]) -> None:
    """Whatever happens in whatever order: a legal event moves, an illegal one changes nothing."""
    state, filed = JobState.QUEUED, False
    for event in events:
        try:
            after = next_job_state(state, event)
        except IllegalTransitionError:
            assert event not in JOB_TABLE[state]
            continue
        assert JOB_TABLE[state][event] == after
        filed = filed or event is JobEvent.FILE_RESULTS
        state = after
        # `redeliver` is for jobs with filed results; records asks for them.
        if event is JobEvent.REDELIVER:
            filed = True
        assert filed or state is not JobState.DONE


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        (set(), JobEvent.FINISH),
        ({DeliveryState.STORED}, JobEvent.FINISH),
        ({DeliveryState.STORED, DeliveryState.COMMITTED, DeliveryState.SKIPPED}, JobEvent.FINISH),
        ({DeliveryState.STORED, DeliveryState.QUEUED}, None),
        ({DeliveryState.FAILED, DeliveryState.SENDING}, None),
        ({DeliveryState.HELD}, None),
        ({DeliveryState.COMMITTING}, None),
        ({DeliveryState.STORED, DeliveryState.FAILED}, JobEvent.FAIL),
        ({DeliveryState.REFUSED}, JobEvent.FAIL),
    ],
)
def test_a_job_ends_as_its_deliveries_ended(deliveries: set[DeliveryState], expected: JobEvent | None) -> None:
    """One open delivery keeps the job open; one that ended badly fails it; otherwise it is done."""
    assert expected is job_outcome(frozenset(deliveries))


def test_every_delivery_state_is_open_or_well_or_bad() -> None:
    """The three kinds of states do not overlap and leave none out."""
    bad = {DeliveryState.REFUSED, DeliveryState.FAILED}
    assert set(DeliveryState) == DELIVERY_OPEN | DELIVERY_WELL | bad
    assert not DELIVERY_OPEN & DELIVERY_WELL


def test_the_diagram_draws_each_transition_once() -> None:
    """The diagram has one line per entry of the table."""
    lines = state_diagram(DELIVERY_TRANSITIONS).splitlines()
    assert "stateDiagram-v2" == lines[0]
    assert len(DELIVERY_TRANSITIONS) == len(set(lines[1:]))
    assert "    sending --> stored: store" in lines
