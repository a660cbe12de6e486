"""Deliveries: one row per result and destination, fenced, and the end of the job that they decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_node.errors import IllegalTransitionError, LeaseLostError, NotFoundError
from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.records import ClaimedDelivery, Deliveries
from tests.integration.records_case import Records, image, later, new_job, results_of


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a database with one job, whose SEG and SR are filed for two destinations."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1)])
    records.jobs.enqueue(new_job(records, destinations={"pacs": ("seg", "sr"), "worklist": ("sr",)}))
    job = records.jobs.claim("w1", 30.0)
    assert job is not None
    records.jobs.file_results(
        job.id, job.token, results_of(job.result_uids), outcome="result", engine="e", duration_s=1.0
    )
    return records


def _claimed(records: Records, destination: str | None = None) -> ClaimedDelivery:
    delivery = records.deliveries.claim(destination, "s1", 30.0)
    assert delivery is not None
    return delivery


def _job_state(records: Records) -> JobState:
    return records.jobs.list()[0].state


def _store_all(records: Records, destination: str | None = None) -> None:
    while (one := records.deliveries.claim(destination, "s1", 30.0)) is not None:
        records.deliveries.stored(one.id, one.token, 0x0000)


def test_claimed_delivery_says_what_to_send_and_whither(records: Records) -> None:
    """The path, the names and the attempt of the oldest result."""
    result = records.jobs.show(1).results[0]
    claimed = _claimed(records, "pacs")
    assert ("pacs", result.path, result.sop_class_uid, result.sop_instance_uid, 1, 0) == (
        claimed.destination,
        claimed.path,
        claimed.sop_class_uid,
        claimed.sop_instance_uid,
        claimed.attempt,
        claimed.refusals,
    )


def test_job_is_done_when_everything_is_stored(records: Records) -> None:
    """Not before the last delivery, and in the same transaction."""
    assert ("pacs", "worklist") == records.deliveries.due()
    _store_all(records, "pacs")
    assert JobState.DELIVERING is _job_state(records)
    _store_all(records, "worklist")
    assert JobState.DONE is _job_state(records)
    assert {DeliveryState.STORED: 3} == {state: n for state, n in records.deliveries.counts().items() if n}


def test_warning_is_stored_with_its_words(records: Records) -> None:
    """Status B000 and its kin are success, recorded with the comment."""
    claimed = _claimed(records)
    records.deliveries.stored(claimed.id, claimed.token, 0xB000, "coerced")
    row = records.deliveries.list()[0]
    assert (DeliveryState.STORED, 0xB000, "coerced") == (row.state, row.status, row.reason)


def test_dead_destination_stops_nobody(records: Records) -> None:
    """What waits for one destination does not keep the other one waiting."""
    while (one := records.deliveries.claim("pacs", "s1", 30.0)) is not None:
        records.deliveries.retry_later(one.id, one.token, "no answer", None, later(60))
    assert ("worklist",) == records.deliveries.due()
    assert "worklist" == _claimed(records).destination
    records.clock.advance(60)
    assert ("pacs",) == records.deliveries.due()
    assert 2 == _claimed(records, "pacs").attempt


def test_only_answers_count_as_refusals(records: Records) -> None:
    """A destination that is away is tried for ever; one that answers A700 is counted."""
    for status, expected in ((None, 0), (0xA700, 1), (None, 1), (0xA700, 2)):
        claimed = _claimed(records, "worklist")
        records.deliveries.retry_later(claimed.id, claimed.token, "later", status, records.clock.now())
        assert expected == records.deliveries.list()[-1].refusals


@pytest.mark.parametrize(("end", "state"), [("refuse", DeliveryState.REFUSED), ("fail", DeliveryState.FAILED)])
def test_job_fails_when_a_destination_has_not_got_its_result(records: Records, end: str, state: DeliveryState) -> None:
    """The other deliveries are finished first, and the job's reason names the destination."""
    claimed = _claimed(records, "worklist")
    assert state is getattr(records.deliveries, end)(claimed.id, claimed.token, "not supported", 0x0122)
    assert JobState.DELIVERING is _job_state(records)
    _store_all(records)
    row = records.jobs.list()[0]
    assert (JobState.FAILED, f"worklist {state}") == (row.state, row.reason)


def test_retried_delivery_can_still_end_the_job_well(records: Records) -> None:
    """An administrator repairs the destination: the job is delivering again, then done, and nobody infers."""
    claimed = _claimed(records, "worklist")
    records.deliveries.fail(claimed.id, claimed.token, "refused 5 times", 0xA700)
    _store_all(records)
    records.deliveries.retry(claimed.id)
    assert JobState.DELIVERING is _job_state(records)
    _store_all(records)
    assert JobState.DONE is _job_state(records)


def test_retried_job_sends_only_what_failed(records: Records) -> None:
    """`jobs retry` on a job with results repeats the deliveries that ended badly, with fresh counters."""
    claimed = _claimed(records, "worklist")
    records.deliveries.fail(claimed.id, claimed.token, "refused 5 times", 0xA700)
    _store_all(records)
    assert JobState.DELIVERING is records.jobs.retry(1)
    assert {"worklist": DeliveryState.QUEUED} == {
        one.destination: one.state for one in records.deliveries.list() if one.state is not DeliveryState.STORED
    }
    assert records.jobs.claim("w1", 30.0) is None


def test_skipped_delivery_ends_the_job_well(records: Records) -> None:
    """Also when it had failed already."""
    claimed = _claimed(records, "worklist")
    records.deliveries.fail(claimed.id, claimed.token, "refused", 0xA700)
    _store_all(records)
    assert JobState.FAILED is _job_state(records)
    records.deliveries.skip(claimed.id, "printed by hand")
    assert JobState.DONE is _job_state(records)


def test_held_delivery_waits_and_keeps_the_job_open(records: Records) -> None:
    """Until it is retried."""
    held = records.deliveries.list()[-1]
    records.deliveries.hold(held.id, "maintenance")
    _store_all(records)
    assert JobState.DELIVERING is _job_state(records)
    records.deliveries.retry(held.id)
    _store_all(records)
    assert JobState.DONE is _job_state(records)


def test_lease_of_a_dead_sender_is_taken_over(records: Records) -> None:
    """By its time, or at once when the process is known to be gone; the object is then sent again, under its UID."""
    first = _claimed(records, "worklist")
    assert () == records.deliveries.reap(lambda _sender: True)
    records.clock.advance(31)
    assert (first.id,) == records.deliveries.reap()
    second = _claimed(records, "worklist")
    assert (first.token + 1, first.sop_instance_uid) == (second.token, second.sop_instance_uid)
    assert (first.id,) == records.deliveries.reap(lambda _sender: False)


def test_heartbeat_keeps_the_lease(records: Records) -> None:
    """A large object over a slow line is not sent twice."""
    claimed = _claimed(records)
    records.clock.advance(20)
    records.deliveries.heartbeat(claimed.id, claimed.token)
    records.clock.advance(20)
    assert () == records.deliveries.reap()


@pytest.mark.parametrize(
    "write",
    [
        lambda deliveries, old: deliveries.heartbeat(old.id, old.token),
        lambda deliveries, old: deliveries.stored(old.id, old.token, 0),
        lambda deliveries, old: deliveries.refuse(old.id, old.token, "late"),
        lambda deliveries, old: deliveries.fail(old.id, old.token, "late"),
        lambda deliveries, old: deliveries.retry_later(old.id, old.token, "late", None, later(1)),
    ],
    ids=["heartbeat", "stored", "refuse", "fail", "retry_later"],
)
@pytest.mark.parametrize("heir_sends", [True, False], ids=["claimed again", "queued again"])
def test_late_write_of_a_zombie_changes_nothing(
    records: Records, write: Callable[[Deliveries, ClaimedDelivery], object], heir_sends: bool
) -> None:
    """A sender that lost its lease learns so."""
    zombie = _claimed(records, "worklist")
    records.clock.advance(31)
    records.deliveries.reap()
    if heir_sends:
        _claimed(records, "worklist")
    before = records.deliveries.list()
    with pytest.raises(LeaseLostError):
        write(records.deliveries, zombie)
    assert before == records.deliveries.list()


def test_illegal_event_changes_nothing(records: Records) -> None:
    """A delivery that is stored cannot be retried; one that does not exist is not found."""
    _store_all(records)
    with pytest.raises(IllegalTransitionError):
        records.deliveries.retry(1)
    with pytest.raises(NotFoundError):
        records.deliveries.skip(99, "no such")
