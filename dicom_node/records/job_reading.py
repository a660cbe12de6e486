"""Rows of the job's tables as the values that leave the records: what a worker gets, and what `list` and `show` say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.records.job_values import (
    FORWARDED_KIND,
    AttemptRow,
    ClaimedDelivery,
    ClaimedJob,
    DeliveryRow,
    JobDetail,
    JobEventRow,
    JobRow,
    ResultRow,
    destinations_from_json,
    input_from_json,
)
from dicom_node.records.pauses import PauseKind, PauseRow, read_pauses, words_for
from dicom_node.records.schema import attempt, delivery, job, job_event, result


def claimed_job(row: Row[Any]) -> ClaimedJob:
    """Return what a worker needs of a row that it has just claimed."""
    return ClaimedJob(
        id=row.id,
        token=row.token,
        attempt=row.attempts,
        max_attempts=row.max_attempts,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        route=row.route,
        plugin=row.plugin,
        plugin_version=row.plugin_version,
        parameters=row.parameters,
        pinned=row.input,
        input_digest=row.input_digest,
        config_digest=row.config_digest,
        generation=row.generation,
        uid_root=row.uid_root,
        result_uids=row.result_uids,
        destinations=destinations_from_json(row.destinations),
        queued_at=row.queued_at,
        leased_until=row.leased_until,
    )


def job_row(row: Row[Any], pauses: Sequence[PauseRow] = ()) -> JobRow:
    """Return one line of `jobs list`; the reason of a queued job that may not be claimed now is its pause."""
    is_queued = row.state == JobState.QUEUED
    named: set[tuple[PauseKind, str]] = {("plugin", row.plugin), ("route", row.route)} if is_queued else set()
    return JobRow(
        id=row.id,
        plugin=row.plugin,
        plugin_version=row.plugin_version,
        route=row.route,
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid,
        state=JobState(row.state),
        priority=row.priority,
        due_at=row.due_at,
        attempts=row.attempts,
        generation=row.generation,
        superseded_by=row.superseded_by,
        flag=row.flag,
        outcome=row.outcome,
        engine=row.engine,
        reason=words_for(pauses, named) or row.reason,
        received_at=row.received_at,
        queued_at=row.queued_at,
        started_at=row.started_at,
        filed_at=row.filed_at,
        finished_at=row.finished_at,
    )


def job_detail(connection: Connection, row: Row[Any]) -> JobDetail:
    """Return everything that is recorded of the job in `row`."""
    events = connection.execute(select(job_event).where(job_event.c.job_id == row.id).order_by(job_event.c.id))
    attempts = connection.execute(select(attempt).where(attempt.c.job_id == row.id).order_by(attempt.c.token))
    results = connection.execute(select(result).where(result.c.job_id == row.id).order_by(result.c.id))
    deliveries = connection.execute(delivery_listing().where(delivery.c.job_id == row.id))
    pauses = read_pauses(connection)
    return JobDetail(
        job=job_row(row, pauses),
        parameters=row.parameters,
        input=input_from_json(row.input),
        input_digest=row.input_digest,
        config_digest=row.config_digest,
        result_uids=row.result_uids,
        destinations=destinations_from_json(row.destinations),
        events=tuple(map(_event_row, events)),
        attempts=tuple(map(_attempt_row, attempts)),
        results=tuple(map(_result_row, results)),
        deliveries=tuple(delivery_row(one, pauses) for one in deliveries),
    )


def reports_replaced_by(connection: Connection, job_id: int) -> tuple[ResultRow, ...]:
    """Return the reports of the jobs that a job supersedes; of one that filed none, those that it superseded."""
    reports: list[ResultRow] = []
    newer = [job_id]
    while newer:
        former = connection.execute(select(job.c.id).where(job.c.superseded_by.in_(newer)).order_by(job.c.id))
        newer = []
        for id_ in former.scalars().all():
            filed = connection.execute(select(result).where(result.c.job_id == id_, result.c.kind == "sr")).all()
            reports += map(_result_row, filed)
            newer += [] if filed else [id_]
    return tuple(reports)


def delivery_listing() -> Select[Any]:
    """Return the query behind `deliveries list`, oldest first."""
    return (
        select(
            delivery,
            func.coalesce(result.c.kind, FORWARDED_KIND).label("kind"),
            func.coalesce(result.c.sop_instance_uid, delivery.c.instance_sop_uid).label("sop_instance_uid"),
            job.c.study_instance_uid,
        )
        .outerjoin(result, result.c.id == delivery.c.result_id)
        .join(job, job.c.id == delivery.c.job_id)
        .order_by(delivery.c.id)
    )


def delivery_row(row: Row[Any], pauses: Sequence[PauseRow] = ()) -> DeliveryRow:
    """Return one line of `deliveries list`, from a row of `delivery_listing`; a pause goes before the last answer."""
    is_queued = row.state == DeliveryState.QUEUED
    named: set[tuple[PauseKind, str]] = {("destination", row.destination)} if is_queued else set()
    return DeliveryRow(
        id=row.id,
        job_id=row.job_id,
        study_instance_uid=row.study_instance_uid,
        kind=row.kind,
        sop_instance_uid=row.sop_instance_uid,
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        refusals=row.refusals,
        status=row.status,
        reason=words_for(pauses, named) or row.reason,
        not_before=row.not_before,
        queued_at=row.queued_at,
        finished_at=row.finished_at,
    )


def claimed_delivery(row: Row[Any], filed: Row[Any], study_uid: str) -> ClaimedDelivery:
    """Return what a sender needs of a delivery that it has just claimed, of its result, and of its study."""
    return ClaimedDelivery(
        id=row.id,
        token=row.token,
        job_id=row.job_id,
        destination=row.destination,
        kind=filed.kind,
        sop_class_uid=filed.sop_class_uid,
        sop_instance_uid=filed.sop_instance_uid,
        path=Path(filed.path),
        digest=filed.digest,
        attempt=row.attempts,
        refusals=row.refusals,
        leased_until=row.leased_until,
        study_instance_uid=study_uid,
        is_variant=filed.variant_of is not None,
    )


def _event_row(row: Row[Any]) -> JobEventRow:
    return JobEventRow(
        event=row.event,
        from_state=row.from_state,
        to_state=row.to_state,
        actor=row.actor,
        reason=row.reason,
        at=row.at,
    )


def _attempt_row(row: Row[Any]) -> AttemptRow:
    return AttemptRow(
        token=row.token,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        reason=row.reason,
    )


def _result_row(row: Row[Any]) -> ResultRow:
    return ResultRow(
        id=row.id,
        kind=row.kind,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_instance_uid,
        path=Path(row.path),
        digest=row.digest,
        filed_at=row.filed_at,
    )
