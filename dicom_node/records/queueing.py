"""How work enters the queue: once for the same work, superseding what read an earlier state of the same series.

The half of `jobs` that makes rows: asked for by a route (`enqueue_job`) or by an administrator (`reprocess_job`),
always inside a transaction of the caller's. UIDs of the results are allocated here, with the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, insert, or_, select, update

from dicom_node.errors import IllegalTransitionError, NotFoundError
from dicom_node.ids import derived_uid
from dicom_node.lifecycle import JobEvent, JobState
from dicom_node.records.claiming import Lane
from dicom_node.records.job_values import (
    FORWARD,
    PRIORITY_RANK,
    TARGET_S,
    NewJob,
    destinations_from_json,
    digest_of,
    input_from_json,
    input_to_json,
)
from dicom_node.records.purging import why_purged
from dicom_node.records.schema import instance, job, study
from dicom_node.records.transitions import (
    NODE,
    add_event,
    advance_job,
    close_delivered_job,
    find_job,
    queue_deliveries,
)

_ENDED_WITH_RESULTS: Final = frozenset({JobState.DONE, JobState.FAILED})
"""A failed job has results when only their delivery failed."""

_NOTHING_FILED: Final = frozenset({JobState.WAITING, JobState.QUEUED, JobState.HELD, JobState.RUNNING})

_KEPT: Final = (
    "study_instance_uid",
    "series_instance_uid",
    "route",
    "plugin",
    "parameters",
    "parameters_digest",
    "config_digest",
    "input",
    "input_digest",
    "destinations",
    "priority",
    "rank",
    "target_s",
    "lane",
    "max_attempts",
    "received_at",
)
"""Columns that a job takes over from the one that it repeats."""


def enqueue_job(
    connection: Connection, new: NewJob, config_digest: str, allocate_uid: Callable[[], str], now: datetime
) -> tuple[int, bool]:
    """Add the job, or find the row of the same work; return its id and whether it is new.

    Raises
    ------
    NotFoundError
        When none of the images that it would read is indexed.
    """
    same = connection.execute(
        select(job)
        .where(_same_work(new.plugin, new.plugin_version, digest_of(new.parameters), new.input_digest))
        .order_by(job.c.generation.desc())
        .limit(1)
        .with_for_update()
    ).first()
    if same is not None:
        _unite(connection, same, new, now)
        return int(same.id), False
    said = {"actor": "routing", "reason": f"route {new.route} asks for it"}
    job_id = _insert(connection, _row_of(connection, new, config_digest), new.result_roles, allocate_uid, now, **said)
    # What was forwarded stays true when more of the series comes.
    if new.series_instance_uid is not None and new.plugin != FORWARD:
        _supersede_earlier(connection, job_id, new, now)
    return job_id, True


def reprocess_job(
    connection: Connection,
    job_id: int,
    plugin_version: str | None,
    allocate_uid: Callable[[], str],
    now: datetime,
    *,
    actor: str = NODE,
) -> int:
    """Repeat a job under new UIDs, superseding it and its earlier repetitions; return the new id.

    Its deadline counts from now, not from the images: the repetition of last year's work is not late.

    Raises
    ------
    NotFoundError
        When there is no such job.
    """
    old = find_job(connection, job_id)
    require_input(connection, old)
    version = plugin_version or old.plugin_version
    same = _same_work(old.plugin, version, old.parameters_digest, old.input_digest)
    generation = connection.execute(select(func.max(job.c.generation)).where(same)).scalar()
    values = {name: getattr(old, name) for name in _KEPT}
    values |= {"plugin_version": version, "generation": 0 if generation is None else generation + 1}
    values["due_at"] = due_at(old.priority, old.target_s, now)
    said = {"actor": actor, "reason": f"repeats job {job_id}"}
    new_id = _insert(connection, values, tuple(old.result_uids), allocate_uid, now, **said)
    family = same | _same_work(old.plugin, old.plugin_version, old.parameters_digest, old.input_digest)
    former = select(job).where(family, job.c.id != new_id, job.c.superseded_by.is_(None))
    for row in connection.execute(former).all():
        _supersede(connection, row, new_id, f"reprocessed as job {new_id}", now)
    return new_id


def require_input(connection: Connection, row: Row[Any]) -> None:
    """Refuse to work on images that are not here any more, or not counted.

    Raises
    ------
    IllegalTransitionError
        With the reason, and what to do about it.
    """
    here = select(study.c.state).where(study.c.study_instance_uid == row.study_instance_uid)
    state = connection.execute(here.with_for_update()).scalar()  # no purge comes before the row that this allows
    if state == "held":
        raise IllegalTransitionError(f"job {row.id} cannot be done again: its study is held; release it first")
    pinned = {
        (image.sop_instance_uid, image.digest)
        for images in input_from_json(row.input).roles.values()
        for image in images
    }
    withdrawn = connection.execute(
        select(instance.c.sop_instance_uid, instance.c.digest).where(
            instance.c.study_instance_uid == row.study_instance_uid, instance.c.withdrawn.is_not(None)
        )
    )
    if any((one.sop_instance_uid, one.digest) in pinned for one in withdrawn):
        raise IllegalTransitionError(f"job {row.id} cannot be done again: images that it reads were withdrawn")
    reason = why_purged(connection, pinned, row.study_instance_uid)
    if reason is not None:
        raise IllegalTransitionError(f"job {row.id} cannot be done again: {reason}")


def _insert(
    connection: Connection,
    values: Mapping[str, Any],
    result_roles: Sequence[str],
    allocate_uid: Callable[[], str],
    now: datetime,
    *,
    actor: str,
    reason: str,
) -> int:
    """Insert a queued job with its UIDs; one that forwards has nothing to infer and delivers at once."""
    root = allocate_uid()
    forwards = values["plugin"] == FORWARD
    state = JobState.DELIVERING if forwards else JobState.QUEUED
    fresh = {
        "state": state,
        "attempts": 0,
        "worker_deaths": 0,
        "token": 0,
        "queued_at": now,
        "uid_root": root,
    }
    uids = {role: derived_uid(root, role) for role in result_roles}
    insertion = insert(job).values(**values, **fresh, result_uids=uids).returning(job.c.id)
    job_id = int(connection.execute(insertion).scalar_one())
    add_event(connection, job_id, "enqueue", None, state, now, actor=actor, reason=reason)
    if forwards:
        queue_deliveries(connection, job_id, destinations_from_json(values["destinations"]), now)
        close_delivered_job(connection, job_id, now)
    return job_id


def due_at(priority: str, target_s: float | None, since: datetime) -> datetime:
    """Return when a result is wanted whose last image came, or that was asked for, at `since`."""
    return since + timedelta(seconds=TARGET_S[priority] if target_s is None else target_s)


def _same_work(plugin: str, plugin_version: str, parameters_digest: str, input_digest: str) -> ColumnElement[bool]:
    return (
        (job.c.plugin == plugin)
        & (job.c.plugin_version == plugin_version)
        & (job.c.parameters_digest == parameters_digest)
        & (job.c.input_digest == input_digest)
    )


def _row_of(connection: Connection, new: NewJob, config_digest: str) -> dict[str, Any]:
    received_at = _last_received(connection, new)
    return {
        "study_instance_uid": new.input.study_instance_uid,
        "series_instance_uid": new.series_instance_uid,
        "route": new.route,
        "plugin": new.plugin,
        "plugin_version": new.plugin_version,
        "parameters": dict(new.parameters),
        "parameters_digest": digest_of(new.parameters),
        "config_digest": config_digest,
        "input": input_to_json(new.input),
        "input_digest": new.input_digest,
        "generation": 0,
        "destinations": dict(new.destinations),
        "priority": new.priority,
        "rank": PRIORITY_RANK[new.priority],
        "target_s": new.target_s,
        "due_at": due_at(new.priority, new.target_s, received_at),
        "lane": str(Lane(engine=new.engine, plugin=new.plugin, route=new.route)),
        "max_attempts": new.max_attempts,
        "not_before": new.not_before,
        "received_at": received_at,
    }


def _last_received(connection: Connection, new: NewJob) -> datetime:
    """Return when the last of the pinned images came.

    Raises
    ------
    NotFoundError
        When none of them is indexed.
    """
    pinned = {(image.sop_instance_uid, image.digest) for images in new.input.roles.values() for image in images}
    rows = connection.execute(
        select(instance.c.sop_instance_uid, instance.c.digest, instance.c.received_at).where(
            instance.c.study_instance_uid == new.input.study_instance_uid
        )
    )
    received: list[datetime] = [row.received_at for row in rows if (row.sop_instance_uid, row.digest) in pinned]
    if not received:
        raise NotFoundError("none of the images that the job would read is indexed")
    return max(received)


def _unite(connection: Connection, same: Row[Any], new: NewJob, now: datetime) -> None:
    """Let an existing job serve one more request: more destinations, perhaps a higher priority or a nearer deadline."""
    united = destinations_from_json(same.destinations)
    for name, kinds in new.destinations.items():
        united[name] = tuple(dict.fromkeys((*united.get(name, ()), *kinds)))
    priority = min(same.priority, new.priority, key=PRIORITY_RANK.__getitem__)
    due = min(same.due_at, due_at(priority, new.target_s, same.received_at))
    urgency = {"priority": priority, "rank": PRIORITY_RANK[priority], "due_at": due}
    connection.execute(update(job).where(job.c.id == same.id).values(destinations=united, **urgency))
    state = JobState(same.state)
    if (
        (state is JobState.DELIVERING or state in _ENDED_WITH_RESULTS)
        and queue_deliveries(connection, same.id, united, now)
        and state in _ENDED_WITH_RESULTS
    ):
        advance_job(connection, same.id, JobEvent.REDELIVER, now, reason="another route wants its results")


def _supersede_earlier(connection: Connection, job_id: int, new: NewJob, now: datetime) -> None:
    """Mark the jobs that read an earlier state of the same series."""
    earlier = connection.execute(
        select(job).where(
            job.c.study_instance_uid == new.input.study_instance_uid,
            job.c.series_instance_uid == new.series_instance_uid,
            job.c.plugin == new.plugin,
            # Another route may want the same series with other parameters: both stand side by side.
            or_(job.c.parameters_digest == digest_of(new.parameters), job.c.route == new.route),
            job.c.superseded_by.is_(None),
            job.c.id != job_id,
        )
    ).all()
    for former in earlier:
        _supersede(connection, former, job_id, f"job {job_id} reads a newer state of the series", now)


def _supersede(connection: Connection, former: Row[Any], job_id: int, reason: str, now: datetime) -> None:
    """Mark a job as superseded; cancel it where it has filed nothing, for its result would be outdated at birth."""
    connection.execute(update(job).where(job.c.id == former.id).values(superseded_by=job_id))
    if former.state in _NOTHING_FILED:
        advance_job(connection, former.id, JobEvent.CANCEL, now, reason=reason)
