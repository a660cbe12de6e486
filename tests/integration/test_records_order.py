"""Which job is claimed next, what keeps one from being claimed, and what a job that kills its workers comes to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import text

from dicom_node.clock import ManualClock
from dicom_node.errors import IllegalTransitionError, LeaseLostError, NotFoundError
from dicom_node.lifecycle import JobState
from dicom_node.records import ClaimedJob, Jobs, Pauses, open_database
from dicom_node.records.database import _alembic_config
from tests.integration.records_case import STUDY, Records, image, later, new_job, results_of

LATER = "1.2.3.5"
LAST = "1.2.3.6"
SLOTS = {"onnxruntime": 1}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a database with three series: their last images came at 0, 60 and 120 s."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1), image(1, series=LATER, at=later(60)), image(1, series=LAST, at=later(120))])
    return records


def _claim(records: Records, worker: str = "w1", **limits: Any) -> ClaimedJob | None:
    return records.jobs.claim(worker, 30.0, **limits)


def _claimed(records: Records, worker: str = "w1", **limits: Any) -> ClaimedJob:
    claimed = _claim(records, worker, **limits)
    assert claimed is not None
    return claimed


def _order(records: Records) -> list[str]:
    plugins = []
    while (claimed := _claim(records)) is not None:
        plugins.append(claimed.plugin)
    return plugins


def _enqueue(records: Records, plugin: str, **changes: Any) -> int:
    return records.jobs.enqueue(new_job(records, plugin=plugin, **changes))[0]


def _state(records: Records, job_id: int) -> JobState:
    return records.jobs.show(job_id).job.state


# Priorities and deadlines


def test_the_nearest_deadline_comes_first(records: Records) -> None:
    """Within a priority; the deadline counts from the last image, and work without a target has an hour."""
    _enqueue(records, "hour")
    _enqueue(records, "late but short", series=LAST, target_s=60)
    _enqueue(records, "long", target_s=7200)
    _enqueue(records, "short", target_s=200)
    _enqueue(records, "urgent", series=LAST, priority="high", target_s=99999)
    assert ["urgent", "late but short", "short", "hour", "long"] == _order(records)
    due = {row.plugin: row.due_at for row in records.jobs.list()}
    assert (later(3600), later(180)) == (due["hour"], due["late but short"])


def test_same_deadline_goes_by_age(records: Records) -> None:
    """The row that was made first."""
    for number in range(5):
        _enqueue(records, f"p{number}", route=f"r{4 - number}")
    assert [f"p{number}" for number in range(5)] == _order(records)


def test_work_with_targets_does_not_starve_work_without(records: Records) -> None:
    """What has waited for an hour is more urgent than what is wanted in ten minutes."""
    _enqueue(records, "plain")
    records.studies.index([image(1, series="1.2.3.7", at=later(3100))])
    _enqueue(records, "targeted", series="1.2.3.7", target_s=600)
    assert ["plain", "targeted"] == _order(records)


def test_priority_changes_the_place_and_tells_who_did_it(records: Records) -> None:
    """The job goes first; a default target changes with the priority, one that the route states does not."""
    _enqueue(records, "first")
    plain, stated = _enqueue(records, "plain", series=LAST), _enqueue(records, "stated", series=LAST, target_s=77)
    for job_id in (plain, stated):
        assert JobState.QUEUED is records.jobs.prioritise(job_id, "stat", actor="anna", comment="in theatre")
    shown = records.jobs.show(plain)
    assert ("stat", later(120 + 300)) == (shown.job.priority, shown.job.due_at)
    assert later(120 + 77) == records.jobs.show(stated).job.due_at
    last = shown.events[-1]
    expected = ("priority", "queued", "queued", "anna", "from routine to stat; in theatre")
    assert expected == (last.event, last.from_state, last.to_state, last.actor, last.reason)
    assert ["stated", "plain", "first"] == _order(records)


def test_priority_of_what_is_filed_is_refused(records: Records) -> None:
    """It would change nothing."""
    job_id = _enqueue(records, "p")
    one = _claimed(records)
    records.jobs.file_results(one.id, one.token, results_of(one.result_uids), outcome="r", engine="e", duration_s=0.0)
    with pytest.raises(IllegalTransitionError, match="delivering"):
        records.jobs.prioritise(job_id, "stat")


def test_second_request_makes_a_job_more_urgent_never_less(records: Records) -> None:
    """Another route with a nearer target moves the deadline, one without leaves it."""
    job_id = _enqueue(records, "p", target_s=500)
    _enqueue(records, "p", route="other", target_s=100)
    assert later(100) == records.jobs.show(job_id).job.due_at
    _enqueue(records, "p", route="third")
    assert later(100) == records.jobs.show(job_id).job.due_at


def test_repeated_work_is_not_late_from_the_beginning(records: Records) -> None:
    """Reprocessing a year's studies does not push today's aside."""
    old = _enqueue(records, "old")
    records.clock.advance(86400 * 365)
    records.studies.index([image(1, series="1.2.3.8", at=records.clock.now() - timedelta(seconds=10))])
    _enqueue(records, "today", series="1.2.3.8")
    records.jobs.reprocess(old)
    assert ["today", "old"] == _order(records)


def test_order_of_the_queue_is_served_by_an_index(records: Records) -> None:
    """No claim sorts or scans the table, however long the queue is."""
    from dicom_node.records.claiming import _HEADS

    compiled = str(_HEADS.compile(dialect=records.database._engine.dialect, compile_kwargs={"literal_binds": False}))
    _enqueue(records, "p")
    with records.database.read() as connection:
        statement = compiled.replace("?", "'queued'")
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")]
    touching = [line for line in plan if " job" in line or " one" in line or " above" in line]
    assert touching
    assert [] == [line for line in touching if "SCAN" in line]
    assert 1 == sum("TEMP B-TREE" in line for line in plan)  # of the heads, one a lane


# Pauses


@pytest.mark.parametrize(("kind", "name"), [("plugin", "brain_mask"), ("route", "brain")])
def test_paused_jobs_wait_and_say_so(records: Records, kind: Any, name: str) -> None:
    """They are made and stay queued, others overtake them, and at the resume they are claimed at once."""
    pauses = Pauses(records.database)
    pauses.pause(kind, name, actor="anna", reason="new weights")
    waiting = _enqueue(records, "brain_mask", priority="stat")
    _enqueue(records, "chest", route="chest")
    assert "chest" == _claimed(records).plugin
    assert _claim(records) is None
    words = f"paused: {kind} {name}, new weights"
    assert words == records.jobs.show(waiting).job.reason
    assert words in {row.reason for row in records.jobs.list()}
    with records.database.read() as connection:
        queue = dict(connection.execute(text("SELECT job_id, reason FROM v_queue")).all())
    assert {waiting: words, waiting + 1: None} == queue
    pauses.resume(kind, name)
    assert waiting == _claimed(records).id


def test_pause_survives_a_restart(records: Records, tmp_path: Path) -> None:
    """It stands in the database, and counts for whoever opens it."""
    Pauses(records.database).pause("plugin", "brain_mask", actor="anna", reason="why")
    _enqueue(records, "brain_mask")
    records.database.close()
    again = open_database(tmp_path / "records.sqlite", clock=records.clock)
    assert Jobs(again).claim("w1", 30.0) is None
    assert [("plugin", "brain_mask", "anna", "why")] == [
        (one.kind, one.name, one.actor, one.reason) for one in Pauses(again).list()
    ]


def test_running_job_of_a_paused_plugin_ends(records: Records) -> None:
    """A pause takes nothing away."""
    _enqueue(records, "brain_mask")
    one = _claimed(records)
    Pauses(records.database).pause("plugin", "brain_mask", actor="a", reason="b")
    records.jobs.heartbeat(one.id, one.token)
    assert JobState.WITHHELD is records.jobs.withhold(one.id, one.token, "because")


def test_nothing_is_sent_to_a_paused_destination(records: Records) -> None:
    """Others get theirs, each delivery says why it waits, and a resume sends it."""
    _enqueue(records, "p", destinations={"pacs": ("sr",), "archive": ("sr",)})
    one = _claimed(records)
    records.jobs.file_results(one.id, one.token, results_of(one.result_uids), outcome="r", engine="e", duration_s=0.0)
    pauses = Pauses(records.database)
    pauses.pause("destination", "pacs", actor="anna", reason="upgrade")
    assert ("archive",) == records.deliveries.due()
    sent = records.deliveries.claim(None, "s1", 30.0)
    assert sent is not None
    assert ("archive", None, None) == (
        sent.destination,
        records.deliveries.claim(None, "s1", 30.0),
        records.deliveries.claim("pacs", "s1", 30.0),
    )
    words = "paused: destination pacs, upgrade"
    assert [words] == [row.reason for row in records.deliveries.list() if row.destination == "pacs"]
    with records.database.read() as connection:
        assert [words] == connection.execute(text("SELECT reason FROM v_queue")).scalars().all()
    pauses.resume("destination", "pacs")
    assert records.deliveries.claim("pacs", "s1", 30.0) is not None


def test_what_is_not_paused_cannot_go_on(records: Records) -> None:
    """Exit status 3; a second pause keeps the new words."""
    pauses = Pauses(records.database)
    with pytest.raises(NotFoundError):
        pauses.resume("plugin", "p")
    pauses.pause("plugin", "p", actor="a", reason="first")
    pauses.pause("plugin", "p", actor="b", reason="second")
    assert [("b", "second")] == [(one.actor, one.reason) for one in pauses.list()]
    with pytest.raises(NotFoundError):
        pauses.resume("route", "p")


# Slots of an engine


def test_fifty_studies_queue_for_one_slot(records: Records) -> None:
    """However many workers ask, as many jobs run on the engine as it has slots; another engine is not held up."""
    for number in range(50):
        _enqueue(records, f"p{number}", route=f"r{number % 3}")
    _enqueue(records, "other", engine="tensorrt")
    done = set()
    limits = SLOTS | {"tensorrt": 0}
    while (claimed := _claim(records, engine_slots=limits)) is not None:
        assert [None] * 4 == [_claim(records, f"w{number}", engine_slots=limits) for number in range(4)]
        done.add(claimed.id)
        records.jobs.refuse(claimed.id, claimed.token, "test")
    assert 50 == len(done)
    assert "other" == _claimed(records, engine_slots=SLOTS).plugin


def test_slot_of_a_dead_worker_is_free_when_its_job_is_taken_back(records: Records) -> None:
    """Not before: whether it still runs, nobody knows."""
    _enqueue(records, "p1")
    _enqueue(records, "p2")
    _claimed(records, engine_slots=SLOTS)
    records.clock.advance(31)
    assert _claim(records, engine_slots=SLOTS) is None
    records.jobs.reap()
    assert _claim(records, engine_slots=SLOTS) is not None


# What kills its workers


def _die(records: Records, job_id: int) -> None:
    assert job_id == _claimed(records).id
    assert (job_id,) == records.jobs.reap(lambda _worker: False)


def test_job_that_killed_its_worker_twice_is_set_aside(records: Records) -> None:
    """It is held with the reason in words, before its attempts are used up, and nobody tries it by himself."""
    job_id = _enqueue(records, "p", max_attempts=5)
    _die(records, job_id)
    assert JobState.QUEUED is _state(records, job_id)
    _die(records, job_id)
    shown = records.jobs.show(job_id)
    assert JobState.HELD is shown.job.state
    assert "set aside: 2 worker processes died" in (shown.job.reason or "")
    assert "set_aside" == shown.events[-1].event
    records.clock.advance(86400)
    records.jobs.wake()
    records.jobs.reap(lambda _worker: False)
    assert _claim(records) is None


@pytest.mark.parametrize("again", ["release", "retry"])
def test_job_that_was_set_aside_is_tried_again_by_hand(records: Records, again: str) -> None:
    """With a fresh count: one more death does not set it aside at once."""
    job_id = _enqueue(records, "p")
    _die(records, job_id)
    _die(records, job_id)
    getattr(records.jobs, again)(job_id, actor="anna", comment="more memory")
    assert ("anna", "more memory") == (lambda one: (one.actor, one.reason))(records.jobs.show(job_id).events[-1])
    _die(records, job_id)
    assert JobState.QUEUED is _state(records, job_id)


def test_stalls_and_the_end_of_the_node_do_not_set_aside(records: Records) -> None:
    """Only a worker that is known to be dead while its node lives counts."""
    job_id = _enqueue(records, "p", max_attempts=9)
    for _ in range(3):
        _claimed(records)
        records.jobs.reap(lambda _worker: False, lambda _worker: True)
        _claimed(records)
        records.clock.advance(31)
        records.jobs.reap(lambda _worker: True)
    assert JobState.QUEUED is _state(records, job_id)


# The administrator and the story


@pytest.mark.parametrize(("act", "state"), [("hold", "held"), ("retry", "queued"), ("cancel", "cancelled")])
def test_running_job_is_taken_from_its_worker(records: Records, act: str, state: str) -> None:
    """Whoever runs it learns so at the next beat, and writes nothing any more."""
    job_id = _enqueue(records, "p")
    one = _claimed(records)
    words = {} if act == "retry" else {"reason": "by hand"}
    assert state == getattr(records.jobs, act)(job_id, actor="anna", **words)
    with pytest.raises(LeaseLostError):
        records.jobs.heartbeat(one.id, one.token)
    with pytest.raises(LeaseLostError):
        records.jobs.withhold(one.id, one.token, "late")
    row = records.jobs.show(job_id)
    assert {"hold": 0, "retry": 0, "cancel": 1}[act] == row.job.attempts
    assert "anna" == row.events[-1].actor


def test_delivering_job_is_sent_at_once_by_a_retry(records: Records) -> None:
    """What waits for its back-off waits no longer; nobody infers again."""
    job_id = _enqueue(records, "p", destinations={"pacs": ("sr",)})
    one = _claimed(records)
    records.jobs.file_results(one.id, one.token, results_of(one.result_uids), outcome="r", engine="e", duration_s=0.0)
    sending = records.deliveries.claim("pacs", "s1", 30.0)
    assert sending is not None
    records.deliveries.retry_later(sending.id, sending.token, "away", None, later(600))
    assert () == records.deliveries.due()
    assert JobState.DELIVERING is records.jobs.retry(job_id)
    assert ("pacs",) == records.deliveries.due()


def test_each_event_says_who_and_why(records: Records) -> None:
    """Worker, account or node, and words, for every step; also for what is done to a delivery."""
    job_id = _enqueue(records, "p", destinations={"pacs": ("sr",)})
    records.jobs.hold(job_id, "wait for the senior", actor="anna")
    records.jobs.release(job_id, actor="ben")
    one = _claimed(records)
    records.jobs.file_results(one.id, one.token, results_of(one.result_uids), outcome="r", engine="e", duration_s=0.0)
    records.deliveries.skip(1, "not wanted", actor="anna")
    assert [
        ("enqueue", "routing", "route brain asks for it"),
        ("hold", "anna", "wait for the senior"),
        ("release", "ben", "released"),
        ("claim", "w1", "attempt 1 of 3"),
        ("file_results", "w1", "its results are durable"),
        ("delivery_skip", "anna", "delivery 1 to pacs; not wanted"),
        ("finish", "node", "nothing is left to deliver"),
    ] == [(event.event, event.actor, event.reason) for event in records.jobs.show(job_id).events]


# Upgrades


def test_queue_of_the_first_version_keeps_its_order(tmp_path: Path) -> None:
    """Jobs that waited at an upgrade are claimed by priority, and by the age of their images."""
    database = open_database(tmp_path / "old.sqlite", clock=ManualClock())
    config = _alembic_config()
    with database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text("INSERT INTO study VALUES (:u, 'P', 'complete', :t, :t, 1, 1)"),
            {"u": STUDY, "t": "2026-01-01 00:00:00"},
        )
        for number, priority in enumerate(("routine", "stat", "routine"), start=1):
            values = {
                **{"id": number, "study_instance_uid": STUDY, "route": "r", "plugin": "p", "plugin_version": "1"},
                **{"parameters": "{}", "parameters_digest": "d", "config_digest": "c", "input_digest": str(number)},
                **{"input": f'{{"study_instance_uid": "{STUDY}", "roles": {{}}}}', "generation": 0, "uid_root": "2.25"},
                **{"result_uids": "{}", "destinations": "{}", "priority": priority, "state": "queued", "attempts": 0},
                **{"max_attempts": 3, "token": 0, "queued_at": "2026-01-02 00:00:00.000000"},
                **{"received_at": f"2026-01-01 00:00:0{9 - number}.000000"},
            }
            names = ", ".join(values)
            connection.execute(text(f"INSERT INTO job ({names}) VALUES (:{', :'.join(values)})"), values)
            said = {"n": number, "t": "2026-01-02 00:00:00.000000"}
            connection.execute(
                text("INSERT INTO job_event (job_id, event, to_state, at) VALUES (:n, 'enqueue', 'queued', :t)"), said
            )
    database.migrate()
    jobs = Jobs(database)
    claimed = [jobs.claim("w1", 30.0) for _ in range(3)]
    assert [2, 3, 1] == [one.id for one in claimed if one]
    assert [("enqueue", ""), ("claim", "attempt 1 of 3")] == [(one.event, one.reason) for one in jobs.show(1).events]
