"""The one place that writes the state of a job or a delivery, always as lifecycle's tables say.

Each step names the token of the one who takes it, where it has one, and the state it starts from, and checks that
exactly one row changed: a worker whose lease was given to another changes nothing. Every step of a job leaves an
event row, and ends its attempt row when it leaves `running`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from dicom_node.errors import IllegalTransitionError, LeaseLostError, NotFoundError
from dicom_node.lifecycle import (
    DELIVERY_OPEN,
    JOB_OPEN,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
    job_outcome,
    next_delivery_state,
    next_job_state,
)
from dicom_node.records.job_values import FORWARD, input_from_json
from dicom_node.records.schema import attempt, delivery, job, job_event, result

_SAID: Final[Mapping[JobEvent, str]] = {
    JobEvent.FILE_RESULTS: "its results are durable",
    JobEvent.FINISH: "nothing is left to deliver",
    JobEvent.WAKE: "its back-off is over",
    JobEvent.RELEASE: "released",
    JobEvent.RETRY: "queued again",
    JobEvent.REDELIVER: "its results are sent again",
}
"""What an event says of itself when nobody gave a reason."""

_ADD_EVENT: Final = insert(job_event)

NODE: Final = "node"
"""Who acts when it is neither a worker nor an administrator."""

_NO_LEASE: Final[Mapping[str, Any]] = {"worker": None, "leased_until": None}
_NO_DELIVERY_LEASE: Final[Mapping[str, Any]] = {"sender": None, "leased_until": None}


def advance_job(
    connection: Connection,
    job_id: int,
    event: JobEvent,
    now: datetime,
    *,
    token: int | None = None,
    actor: str | None = None,
    reason: str | None = None,
    comment: str | None = None,
    **values: Any,
) -> JobState:
    """Write that `event` happened to a job, with further column `values`; return its new state.

    `reason` becomes the row's reason, None included: it speaks of the present state only. The event says `comment`, or
    else the reason; `actor` is the owner of the lease where a token is given, and otherwise the node itself.

    Raises
    ------
    NotFoundError
        When there is no such job.
    LeaseLostError
        When `token` is given and is not that of the present owner.
    IllegalTransitionError
        When the job's state knows no such event.
    """
    row = find_job(connection, job_id)
    if token is not None and (row.token != token or row.state != JobState.RUNNING):
        raise LeaseLostError(f"job {job_id} is {row.state} and no longer this worker's; its late write was refused")
    state = next_job_state(JobState(row.state), event)
    if row.state == JobState.RUNNING:
        values = {**_NO_LEASE, **values}
        end_attempt(connection, job_id, row.token, event, now, reason)
    values["finished_at"] = None if state in JOB_OPEN else now
    change = update(job).where(job.c.id == job_id, job.c.token == row.token, job.c.state == row.state)
    if connection.execute(change.values(state=state, reason=reason, **values)).rowcount != 1:
        raise LeaseLostError(f"job {job_id} was changed by another at the same moment; look again")
    who = actor or (NODE if token is None else row.worker)
    add_event(connection, job_id, event, row.state, state, now, actor=who, reason=comment or reason or _SAID[event])
    return state


def find_job(connection: Connection, job_id: int) -> Row[Any]:
    """Return the row of a job, locked where the dialect locks rows.

    Raises
    ------
    NotFoundError
        When there is no such job.
    """
    row = connection.execute(select(job).where(job.c.id == job_id).with_for_update()).first()
    if row is None:
        raise NotFoundError(f"there is no job {job_id}")
    return row


def add_event(
    connection: Connection,
    job_id: int,
    event: str,
    from_state: str | None,
    to_state: str,
    now: datetime,
    *,
    actor: str,
    reason: str,
) -> None:
    """Append to the job's story: what happened, who did it, and why in words. Nothing ever changes such a row."""
    said = {"from_state": from_state, "to_state": to_state, "actor": actor, "reason": reason}
    connection.execute(_ADD_EVENT, {"job_id": job_id, "event": event, "at": now, **said})


def end_attempt(
    connection: Connection, job_id: int, token: int, event: JobEvent, now: datetime, reason: str | None
) -> None:
    """Write how an attempt ended."""
    connection.execute(
        update(attempt)
        .where(attempt.c.job_id == job_id, attempt.c.token == token)
        .values(ended_at=now, outcome=event, reason=reason)
    )


def queue_deliveries(
    connection: Connection, job_id: int, destinations: Mapping[str, Collection[str]], now: datetime
) -> int:
    """Insert the deliveries that are missing: every filed result to every destination that takes its kind.

    Returns how many were inserted. A job that forwards has no results: its deliveries are the instances it names.
    """
    row = find_job(connection, job_id)
    if row.plugin == FORWARD:
        return queue_forwards(connection, row, destinations, now)
    here = (result.c.job_id == job_id) & result.c.purged_at.is_(None) & result.c.variant_of.is_(None)
    results = connection.execute(select(result.c.id, result.c.kind).where(here)).all()
    there = {
        (row.made_of, row.destination)  # a variant stands for what it was made of
        for row in connection.execute(
            select(func.coalesce(result.c.variant_of, result.c.id).label("made_of"), delivery.c.destination)
            .join(result, result.c.id == delivery.c.result_id)
            .where(delivery.c.job_id == job_id)
        )
    }
    rows = [
        {"job_id": job_id, "result_id": one.id, "destination": name, "queued_at": now}
        for name, kinds in destinations.items()
        for one in results
        if one.kind in kinds and (one.id, name) not in there
    ]
    _insert_deliveries(connection, rows)
    return len(rows)


def queue_forwards(connection: Connection, row: Row[Any], destinations: Collection[str], now: datetime) -> int:
    """Insert the deliveries of the instances that the job in `row` names and that a destination was not given yet.

    A version goes to a destination once, whichever job asked for it; a job that was reprocessed sends all again. What
    waits of an older version of the same instance is skipped: the newer one would arrive before it.
    """
    siblings = (job.c.study_instance_uid == row.study_instance_uid) & (job.c.plugin == FORWARD)
    given = select(delivery).join(job, job.c.id == delivery.c.job_id).where(siblings)
    rows = connection.execute(given.where(delivery.c.destination.in_(destinations))).all()
    there = {
        (one.destination, one.instance_sop_uid, one.instance_digest)
        for one in rows
        if row.generation == 0 or one.job_id == row.id
    }
    pinned = [image for images in input_from_json(row.input).roles.values() for image in images]
    fresh = [
        {
            "job_id": row.id,
            "instance_sop_uid": image.sop_instance_uid,
            "instance_digest": image.digest,
            "destination": name,
            "queued_at": now,
        }
        for name in destinations
        for image in pinned
        if (name, image.sop_instance_uid, image.digest) not in there
    ]
    newer = {(one["destination"], one["instance_sop_uid"]): one["instance_digest"] for one in fresh}
    for one in rows:
        digest = newer.get((one.destination, one.instance_sop_uid), one.instance_digest)
        if one.state == DeliveryState.QUEUED and digest != one.instance_digest:
            advance_delivery(connection, one.id, DeliveryEvent.SKIP, now, reason=f"job {row.id} sends a newer version")
    _insert_deliveries(connection, fresh)
    for other in {one.job_id for one in rows} - {row.id}:
        close_delivered_job(connection, other, now)
    return len(fresh)


def _insert_deliveries(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        fresh = insert(delivery).values(state=DeliveryState.QUEUED, attempts=0, refusals=0, token=0)
        connection.execute(fresh, rows)


def advance_delivery(
    connection: Connection,
    delivery_id: int,
    event: DeliveryEvent,
    now: datetime,
    *,
    token: int | None = None,
    **values: Any,
) -> DeliveryState:
    """Write that `event` happened to a delivery, with further column `values`; return its new state.

    Raises
    ------
    NotFoundError
        When there is no such delivery.
    LeaseLostError
        When `token` is given and is not that of the present owner.
    IllegalTransitionError
        When the delivery's state knows no such event, or its result was purged.
    """
    row = find_delivery(connection, delivery_id)
    if token is not None and (row.token != token or row.state != DeliveryState.SENDING):
        raise LeaseLostError(f"delivery {delivery_id} is {row.state} and no longer this sender's")
    state = next_delivery_state(DeliveryState(row.state), event)
    if event is DeliveryEvent.RETRY:
        _require_result(connection, row.result_id)
    values["finished_at"] = None if state in DELIVERY_OPEN else now
    change = update(delivery).where(
        delivery.c.id == delivery_id, delivery.c.token == row.token, delivery.c.state == row.state
    )
    if connection.execute(change.values(state=state, **_NO_DELIVERY_LEASE, **values)).rowcount != 1:
        raise LeaseLostError(f"delivery {delivery_id} was changed by another at the same moment; look again")
    return state


def _require_result(connection: Connection, result_id: int) -> None:
    purged_at = connection.execute(select(result.c.purged_at).where(result.c.id == result_id)).scalar()
    if purged_at is not None:
        raise IllegalTransitionError(f"the result was purged on {purged_at:%Y-%m-%d}; reprocess its study instead")


def find_delivery(connection: Connection, delivery_id: int) -> Row[Any]:
    """Return the row of a delivery, locked where the dialect locks rows.

    Raises
    ------
    NotFoundError
        When there is no such delivery.
    """
    row = connection.execute(select(delivery).where(delivery.c.id == delivery_id).with_for_update()).first()
    if row is None:
        raise NotFoundError(f"there is no delivery {delivery_id}")
    return row


def close_delivered_job(connection: Connection, job_id: int, now: datetime) -> JobState:
    """End a delivering job when none of its deliveries is open; return the job's state."""
    state = JobState(connection.execute(select(job.c.state).where(job.c.id == job_id).with_for_update()).scalar_one())
    if state != JobState.DELIVERING:
        return state
    rows = connection.execute(select(delivery.c.state, delivery.c.destination).where(delivery.c.job_id == job_id)).all()
    event = job_outcome(frozenset(DeliveryState(row.state) for row in rows))
    if event is None:
        return state
    unwell = sorted({f"{row.destination} {row.state}" for row in rows if row.state in _UNWELL})
    return advance_job(connection, job_id, event, now, reason="; ".join(unwell) or None)


_UNWELL: Final = frozenset({DeliveryState.REFUSED, DeliveryState.FAILED})
