"""The job queue: one row of work, one owner at a time, no late write of a former owner, nothing lost."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from dicom_node.clock import SystemClock
from dicom_node.errors import IllegalTransitionError, LeaseLostError, NotFoundError
from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.records import ClaimedJob, Jobs, open_database
from tests.integration.records_case import STUDY, Records, image, later, new_job, results_of

OTHER = "1.2.3.5"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a fresh database with one study of two series."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1), image(2, at=later(2)), image(1, series=OTHER)])
    return records


def _claimed(records: Records, lease_s: float = 30.0) -> ClaimedJob:
    job = records.jobs.claim("w1", lease_s)
    assert job is not None
    return job


def _state(records: Records, job_id: int) -> JobState:
    return records.jobs.show(job_id).job.state


def _file(records: Records, job: ClaimedJob) -> JobState:
    return records.jobs.file_results(
        job.id, job.token, results_of(job.result_uids), outcome="result", engine="onnxruntime", duration_s=1.5
    )


def test_claimed_job_is_what_was_asked_for(records: Records) -> None:
    """The worker gets the pinned versions, the destinations and the UIDs that were allocated with the row."""
    asked = new_job(records, parameters={"threshold": 0.5})
    job_id, is_new = records.jobs.enqueue(asked, config_digest="c0")
    claimed = _claimed(records)
    assert (job_id, True, 1, 1) == (claimed.id, is_new, claimed.attempt, claimed.token)
    assert (asked.input, asked.destinations, {"threshold": 0.5}, "c0") == (
        claimed.input,
        claimed.destinations,
        claimed.parameters,
        claimed.config_digest,
    )
    assert {"seg.instance", "sr.instance"} == set(claimed.result_uids)
    assert claimed.result_uids == records.jobs.show(job_id).result_uids
    assert later(2) == records.jobs.show(job_id).job.received_at
    assert records.jobs.claim("w2", 30.0) is None


def test_urgent_work_comes_first(records: Records) -> None:
    """Priority before age, age before everything else."""
    order = [("routine", "p1"), ("high", "p2"), ("stat", "p3"), ("high", "p4")]
    for priority, plugin in order:
        records.jobs.enqueue(new_job(records, plugin=plugin, priority=priority))
    assert ["p3", "p2", "p4", "p1"] == [_claimed(records).plugin for _ in order]


def test_same_work_has_one_row(records: Records) -> None:
    """The same plugin, version, parameters and images are one job, whichever route asks; it serves all destinations."""
    first, _ = records.jobs.enqueue(new_job(records))
    again, is_new = records.jobs.enqueue(
        new_job(records, route="second", destinations={"pacs": ("sr",), "archive": ("seg",)}, priority="high")
    )
    assert (first, False) == (again, is_new)
    shown = records.jobs.show(first)
    assert {"pacs": ("sr", "seg"), "archive": ("seg",)} == shown.destinations
    assert ("high", 1) == (shown.job.priority, len(records.jobs.list()))


@pytest.mark.parametrize(
    "change", [{"plugin": "other"}, {"plugin_version": "1.0.1"}, {"parameters": {"a": 1}}, {"input_digest": "f" * 64}]
)
def test_different_work_is_another_job(records: Records, change: dict[str, Any]) -> None:
    """Each part of the key makes a difference."""
    records.jobs.enqueue(new_job(records))
    _, is_new = records.jobs.enqueue(new_job(records, **change))
    assert is_new


def test_destination_that_joins_late_gets_filed_results(records: Records) -> None:
    """A job that is done is opened again for the new destination alone, and nobody infers again."""
    job_id, _ = records.jobs.enqueue(new_job(records, destinations={}))
    assert JobState.DONE is _file(records, _claimed(records))
    records.jobs.enqueue(new_job(records, destinations={"archive": ("seg",)}))
    (delivery,) = records.jobs.show(job_id).deliveries
    assert ("archive", "seg", JobState.DELIVERING) == (delivery.destination, delivery.kind, _state(records, job_id))
    assert records.jobs.claim("w1", 30.0) is None


def test_destination_that_joins_while_running_is_served(records: Records) -> None:
    """What a worker files goes to the destinations that stand in the row then, not to those it claimed with."""
    job_id, _ = records.jobs.enqueue(new_job(records, destinations={}))
    claimed = _claimed(records)
    records.jobs.enqueue(new_job(records, destinations={"archive": ("sr",)}))
    assert JobState.DELIVERING is _file(records, claimed)
    assert ["archive"] == [one.destination for one in records.jobs.show(job_id).deliveries]


def test_filing_queues_what_each_destination_takes(records: Records) -> None:
    """One delivery per result and destination whose profile wants that kind."""
    job_id, _ = records.jobs.enqueue(new_job(records, destinations={"pacs": ("sr", "seg"), "worklist": ("sr",)}))
    _file(records, _claimed(records))
    shown = records.jobs.show(job_id)
    assert {("pacs", "sr"), ("pacs", "seg"), ("worklist", "sr")} == {
        (one.destination, one.kind) for one in shown.deliveries
    }
    assert ("result", "onnxruntime", ["seg", "sr"]) == (
        shown.job.outcome,
        shown.job.engine,
        [one.kind for one in shown.results],
    )


def test_one_sop_instance_uid_never_has_two_contents(records: Records) -> None:
    """A second result under the same UID is refused, and the job stays as it was."""
    records.jobs.enqueue(new_job(records))
    records.jobs.enqueue(new_job(records, series=OTHER))
    one, other = _claimed(records), _claimed(records)
    _file(records, one)
    with pytest.raises(IntegrityError):
        records.jobs.file_results(
            other.id, other.token, results_of(one.result_uids), outcome="result", engine="e", duration_s=0.0
        )
    assert JobState.RUNNING is _state(records, other.id)


def test_lease_of_a_dead_worker_is_taken_over(records: Records) -> None:
    """After a kill -9 the lease runs out, the job is queued, and the next owner has a higher token."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    dead = _claimed(records, lease_s=30.0)
    records.clock.advance(29)
    assert () == records.jobs.reap()
    records.clock.advance(1)
    assert (job_id,) == records.jobs.reap()
    heir = _claimed(records)
    assert (dead.token + 1, 2) == (heir.token, heir.attempt)
    assert ["lease_expired", None] == [one.outcome for one in records.jobs.show(job_id).attempts]


@pytest.mark.parametrize(
    "write",
    [
        lambda jobs, old: jobs.heartbeat(old.id, old.token),
        lambda jobs, old: jobs.withhold(old.id, old.token, "late"),
        lambda jobs, old: jobs.refuse(old.id, old.token, "late"),
        lambda jobs, old: jobs.fail(old.id, old.token, "late"),
        lambda jobs, old: jobs.retry_later(old.id, old.token, "late", later(1)),
        lambda jobs, old: jobs.file_results(
            old.id, old.token, results_of(old.result_uids), outcome="result", engine="e", duration_s=0.0
        ),
    ],
    ids=["heartbeat", "withhold", "refuse", "fail", "retry_later", "file_results"],
)
@pytest.mark.parametrize("heir_works", [True, False], ids=["claimed again", "queued again"])
def test_late_write_of_a_zombie_changes_nothing(
    records: Records, write: Callable[[Jobs, ClaimedJob], object], heir_works: bool
) -> None:
    """A worker that lost its lease learns so, and no row shows that it wrote."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    zombie = _claimed(records)
    records.clock.advance(31)
    records.jobs.reap()
    if heir_works:
        _claimed(records)
    before = records.jobs.show(job_id)
    with pytest.raises(LeaseLostError):
        write(records.jobs, zombie)
    assert before == records.jobs.show(job_id)


def test_heartbeat_keeps_the_lease(records: Records) -> None:
    """A worker that beats is not reaped, however long it infers."""
    records.jobs.enqueue(new_job(records))
    claimed = _claimed(records, lease_s=30.0)
    for _ in range(5):
        records.clock.advance(20)
        records.jobs.heartbeat(claimed.id, claimed.token)
        assert () == records.jobs.reap()


def test_heartbeat_at_the_last_moment_saves_the_lease(records: Records) -> None:
    """A beat that comes while the reaper is looking counts."""
    records.jobs.enqueue(new_job(records))
    claimed = _claimed(records)
    records.clock.advance(31)

    def beat(worker: str) -> bool:
        records.jobs.heartbeat(claimed.id, claimed.token)
        return True

    assert () == records.jobs.reap(beat)


def test_expired_lease_that_nobody_took_may_still_end_the_job(records: Records) -> None:
    """Work that is done is not thrown away while no other has begun it."""
    records.jobs.enqueue(new_job(records))
    claimed = _claimed(records, lease_s=1.0)
    records.clock.advance(60)
    assert JobState.DELIVERING is _file(records, claimed)


def test_worker_whose_process_is_gone_need_not_be_waited_for(records: Records) -> None:
    """Liveness is a shortcut to the lease: only the worker that is known to be dead loses its job."""
    records.jobs.enqueue(new_job(records))
    records.jobs.enqueue(new_job(records, series=OTHER))
    orphan = records.jobs.claim("dead", 30.0)
    assert orphan is not None
    records.jobs.claim("alive", 30.0)
    assert (orphan.id,) == records.jobs.reap(lambda worker: worker == "alive")


def test_job_that_kills_its_workers_fails(records: Records) -> None:
    """After the last attempt the job is failed and says why; a good worker is not fed to it again."""
    job_id, _ = records.jobs.enqueue(new_job(records, max_attempts=2))
    for _ in range(2):
        _claimed(records, lease_s=1.0)
        records.clock.advance(2)
        records.jobs.reap()
    shown = records.jobs.show(job_id)
    assert (JobState.FAILED, "its worker died or stalled 2 times") == (shown.job.state, shown.job.reason)
    assert records.jobs.claim("w1", 30.0) is None


def test_retry_waits_for_its_time(records: Records) -> None:
    """A retryable error gives the job back; it wakes after its back-off, not before."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    claimed = _claimed(records)
    assert JobState.WAITING is records.jobs.retry_later(claimed.id, claimed.token, "out of memory", later(10))
    records.clock.advance(9)
    assert () == records.jobs.wake()
    records.clock.advance(1)
    assert (job_id,) == records.jobs.wake()
    assert 2 == _claimed(records).attempt


def test_last_retry_fails(records: Records) -> None:
    """Attempts are capped, and each keeps its reason."""
    job_id, _ = records.jobs.enqueue(new_job(records, max_attempts=2))
    for expected in (JobState.WAITING, JobState.FAILED):
        claimed = _claimed(records)
        assert expected is records.jobs.retry_later(claimed.id, claimed.token, "out of memory", records.clock.now())
        records.jobs.wake()
    shown = records.jobs.show(job_id)
    assert "out of memory (attempt 2 of 2)" == shown.job.reason
    assert ["retry_later", "fail"] == [one.outcome for one in shown.attempts]


@pytest.mark.parametrize(
    ("end", "state"), [("withhold", JobState.WITHHELD), ("refuse", JobState.REFUSED), ("fail", JobState.FAILED)]
)
def test_job_without_result_says_why(records: Records, end: str, state: JobState) -> None:
    """The reason stands in the row, in the event and in the attempt."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    claimed = _claimed(records)
    assert state is getattr(records.jobs, end)(claimed.id, claimed.token, "because")
    shown = records.jobs.show(job_id)
    assert ("because", "because", "because") == (shown.job.reason, shown.events[-1].reason, shown.attempts[-1].reason)
    assert records.clock.now() == shown.job.finished_at


def test_job_for_newer_images_supersedes(records: Records) -> None:
    """A late image makes a new job; the old one is marked, and cancelled because it has filed nothing yet."""
    old, _ = records.jobs.enqueue(new_job(records))
    running = _claimed(records)
    elsewhere, _ = records.jobs.enqueue(new_job(records, series=OTHER))
    records.studies.index([image(3, at=later(9))])
    new, is_new = records.jobs.enqueue(new_job(records))
    assert is_new
    row = records.jobs.show(old).job
    assert (new, JobState.CANCELLED) == (row.superseded_by, row.state)
    assert records.jobs.show(elsewhere).job.superseded_by is None
    with pytest.raises(LeaseLostError):
        records.jobs.heartbeat(running.id, running.token)


def test_only_the_same_question_is_superseded(records: Records) -> None:
    """Another route's job with other parameters stands; that of the same route with a former model does not."""
    other_route, _ = records.jobs.enqueue(new_job(records, route="strict", parameters={"threshold": 0.9}))
    former, _ = records.jobs.enqueue(new_job(records, parameters={"model_sha256": "a"}))
    records.studies.index([image(3, at=later(9))])
    new, _ = records.jobs.enqueue(new_job(records, parameters={"model_sha256": "b"}))
    assert new == records.jobs.show(former).job.superseded_by
    assert records.jobs.show(other_route).job.superseded_by is None


def test_filed_results_of_a_superseded_job_are_still_delivered(records: Records) -> None:
    """Results that may have been sent in part already are sent whole; the newer job follows."""
    old, _ = records.jobs.enqueue(new_job(records))
    _file(records, _claimed(records))
    records.studies.index([image(3, at=later(9))])
    new, _ = records.jobs.enqueue(new_job(records))
    row = records.jobs.show(old).job
    assert (new, JobState.DELIVERING) == (row.superseded_by, row.state)


def test_report_of_the_last_job_that_filed_one_is_replaced(records: Records) -> None:
    """A job that was cancelled before it filed anything is no predecessor; what it superseded is."""
    old, _ = records.jobs.enqueue(new_job(records))
    _file(records, _claimed(records))
    records.studies.index([image(3, at=later(9))])
    records.jobs.enqueue(new_job(records))
    records.studies.index([image(4, at=later(19))])
    new, _ = records.jobs.enqueue(new_job(records))
    (report,) = [one for one in records.jobs.show(old).results if one.kind == "sr"]
    assert (report,) == records.jobs.reports_replaced_by(new)
    assert () == records.jobs.reports_replaced_by(old)


def test_reprocessing_is_a_new_generation_with_new_names(records: Records) -> None:
    """The same images are read again under other UIDs, and the former job says by whom it was superseded."""
    old, _ = records.jobs.enqueue(new_job(records))
    _file(records, _claimed(records))
    new = records.jobs.reprocess(old)
    before, after = records.jobs.show(old), records.jobs.show(new)
    assert (0, 1, new) == (before.job.generation, after.job.generation, before.job.superseded_by)
    assert before.input == after.input
    assert not set(before.result_uids.values()) & set(after.result_uids.values())
    assert set(before.result_uids) == set(after.result_uids)
    assert (new, False) == records.jobs.enqueue(new_job(records))
    newest = records.jobs.reprocess(old)
    assert (newest, 2) == (records.jobs.show(new).job.superseded_by, records.jobs.show(newest).job.generation)


def test_reprocessing_cancels_what_has_not_begun(records: Records) -> None:
    """Only one generation is worked on."""
    old, _ = records.jobs.enqueue(new_job(records))
    new = records.jobs.reprocess(old)
    assert (JobState.CANCELLED, new) == (_state(records, old), _claimed(records).id)


def test_reprocessing_may_use_another_version(records: Records) -> None:
    """After an upgrade a study is judged again by the plugin as it is now."""
    old, _ = records.jobs.enqueue(new_job(records))
    new = records.jobs.reprocess(old, plugin_version="2.0.0")
    row = records.jobs.show(new).job
    assert ("2.0.0", 0, new) == (row.plugin_version, row.generation, records.jobs.show(old).job.superseded_by)


def test_study_is_reprocessed_by_its_present_jobs(records: Records) -> None:
    """Each job that stands is repeated once, superseded ones are not."""
    records.jobs.enqueue(new_job(records))
    records.jobs.enqueue(new_job(records, series=OTHER))
    first = records.jobs.reprocess_study(STUDY)
    second = records.jobs.reprocess_study(STUDY)
    assert (2, 2, 6) == (len(first), len(second), len(records.jobs.list(study_uid=STUDY)))
    assert 2 == records.jobs.counts()[JobState.QUEUED]


def test_held_job_is_not_claimed(records: Records) -> None:
    """An administrator may hold a job, and let it go."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    records.jobs.hold(job_id, "scanner under repair")
    assert records.jobs.claim("w1", 30.0) is None
    records.jobs.release(job_id)
    assert job_id == _claimed(records).id


def test_cancelled_job_takes_the_lease_away(records: Records) -> None:
    """The worker learns at its next beat."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    claimed = _claimed(records)
    records.jobs.cancel(job_id, "wrong patient")
    with pytest.raises(LeaseLostError):
        records.jobs.heartbeat(claimed.id, claimed.token)
    assert "cancel" == records.jobs.show(job_id).attempts[0].outcome


def test_cancelled_delivery_is_not_sent(records: Records) -> None:
    """What waits is skipped; a retry of the job sends it after all, without inferring again."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    _file(records, _claimed(records))
    records.jobs.cancel(job_id, "wrong patient")
    assert {DeliveryState.SKIPPED} == {one.state for one in records.deliveries.list()}
    assert JobState.DELIVERING is records.jobs.retry(job_id)
    assert records.deliveries.claim(None, "s1", 30.0) is not None
    assert records.jobs.claim("w1", 30.0) is None


def test_delivery_under_way_is_not_tried_again_after_a_cancel(records: Records) -> None:
    """What a sender holds at that moment may arrive; when it does not, that was the last attempt."""
    job_id, _ = records.jobs.enqueue(new_job(records, destinations={"pacs": ("sr",)}))
    _file(records, _claimed(records))
    sending = records.deliveries.claim("pacs", "s1", 30.0)
    assert sending is not None
    records.jobs.cancel(job_id, "wrong patient")
    records.deliveries.retry_later(sending.id, sending.token, "no answer", None, records.clock.now())
    assert ((), None) == (records.deliveries.due(), records.deliveries.claim("pacs", "s1", 30.0))


def test_retry_by_hand_has_all_attempts_again(records: Records) -> None:
    """The counter starts anew, the token does not."""
    job_id, _ = records.jobs.enqueue(new_job(records, max_attempts=1))
    first = _claimed(records)
    records.jobs.fail(first.id, first.token, "model missing")
    assert JobState.QUEUED is records.jobs.retry(job_id)
    second = _claimed(records)
    assert (1, first.token + 1, None) == (second.attempt, second.token, records.jobs.show(job_id).job.reason)


def test_illegal_event_changes_nothing(records: Records) -> None:
    """What the table of states does not know raises."""
    job_id, _ = records.jobs.enqueue(new_job(records))
    before = records.jobs.show(job_id)
    for act in (records.jobs.release, records.jobs.retry):
        with pytest.raises(IllegalTransitionError):
            act(job_id)
    assert before == records.jobs.show(job_id)


def test_story_of_a_job_is_complete(records: Records) -> None:
    """Every step is an event with the states around it and its time."""
    job_id, _ = records.jobs.enqueue(new_job(records, destinations={}))
    _file(records, _claimed(records))
    assert [
        ("enqueue", None, "queued"),
        ("claim", "queued", "running"),
        ("file_results", "running", "delivering"),
        ("finish", "delivering", "done"),
    ] == [(one.event, one.from_state, one.to_state) for one in records.jobs.show(job_id).events]


def test_enqueue_belongs_to_the_callers_transaction(records: Records) -> None:
    """With a connection of the caller's, an error there takes the job along."""

    def fail_after_enqueueing() -> None:
        with records.database.begin() as connection:
            records.jobs.enqueue(new_job(records), connection=connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_after_enqueueing()
    assert () == records.jobs.list()


def test_job_on_images_that_are_not_indexed_is_refused(records: Records) -> None:
    """A job pins versions that are there."""
    asked = new_job(records)
    with pytest.raises(NotFoundError):
        records.jobs.enqueue(new_job(records, input=type(asked.input)(study_instance_uid=STUDY)))


def test_unknown_job_is_not_found(records: Records) -> None:
    """The error that faces turn into exit code 3."""
    for ask in (records.jobs.show, records.jobs.retry, records.jobs.reprocess):
        with pytest.raises(NotFoundError):
            ask(99)


def test_views_answer_the_two_questions(records: Records) -> None:
    """What waits, in the order of claiming; how long results took, from the last image on."""
    records.jobs.enqueue(new_job(records, destinations={}))
    urgent, _ = records.jobs.enqueue(new_job(records, series=OTHER, priority="stat", destinations={}))
    with records.database.read() as connection:
        queue = connection.execute(text("SELECT job_id, state, open_deliveries FROM v_queue")).all()
    assert [(urgent, "queued", 0), (1, "queued", 0)] == [tuple(row) for row in queue]
    records.clock.advance(3)
    claimed = _claimed(records)
    records.clock.advance(1.25)
    _file(records, claimed)
    with records.database.read() as connection:
        (row,) = connection.execute(text("SELECT * FROM v_time_to_result")).all()
    assert (urgent, 0.0, 3.0, 1.25, 0.0, 4.25) == (
        row.job_id,
        row.until_queued_s,
        row.queued_s,
        row.inferring_s,
        row.delivering_s,
        row.time_to_result_s,
    )


def _drain(path: str, worker: str) -> list[int]:
    jobs = Jobs(open_database(path, clock=SystemClock()))
    taken = []
    while (claimed := jobs.claim(worker, 60.0)) is not None:
        taken.append(claimed.id)
        jobs.withhold(claimed.id, claimed.token, "test")
    return taken


def _enqueue_many(records: Records, n: int) -> list[int]:
    return [records.jobs.enqueue(new_job(records, plugin=f"p{number}"))[0] for number in range(n)]


def test_four_processes_never_take_one_job_twice(records: Records, tmp_path: Path) -> None:
    """Four workers drain one queue: each job goes to exactly one of them."""
    expected = _enqueue_many(records, 60)
    path = str(tmp_path / "records.sqlite")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        taken = pool.starmap(_drain, [(path, f"w{number}") for number in range(4)])
    assert expected == sorted(job_id for one in taken for job_id in one)
    assert {1} == {row.attempts for row in records.jobs.list()}


def test_four_threads_never_take_one_job_twice(records: Records) -> None:
    """The slots of one worker share a database object."""
    expected = _enqueue_many(records, 60)
    taken: list[int] = []

    def drain(worker: str) -> None:
        while (claimed := records.jobs.claim(worker, 60.0)) is not None:
            taken.append(claimed.id)

    threads = [threading.Thread(target=drain, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert expected == sorted(taken)


def test_job_that_is_given_back_has_its_attempt_again(records: Records) -> None:
    """Stopping a worker is no attempt of the job, and the former owner's late write is refused."""
    job_id, _ = records.jobs.enqueue(new_job(records, max_attempts=1))
    first = _claimed(records)
    records.jobs.give_back(first.id, first.token)
    assert JobState.QUEUED == _state(records, job_id)
    again = _claimed(records)
    assert 1 == again.attempt
    with pytest.raises(LeaseLostError):
        _file(records, first)


def test_death_of_the_whole_node_is_not_held_against_the_job(records: Records) -> None:
    """Twenty ends of the node leave a job with all its attempts; a worker that dies alone costs one."""
    job_id, _ = records.jobs.enqueue(new_job(records, max_attempts=1))
    for _ in range(20):
        _claimed(records)
        assert (job_id,) == records.jobs.reap(lambda _worker: False, lambda _worker: True)
        assert JobState.QUEUED == _state(records, job_id)
    _claimed(records)
    records.jobs.reap(lambda _worker: False, lambda _worker: False)
    assert JobState.FAILED == _state(records, job_id)
