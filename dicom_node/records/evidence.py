"""What completeness reads: how the series of a study arrived, and which associations still bring images of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from dicom_node.ids import ProcessIdentity
from dicom_node.records.schema import association, association_study, instance, series
from dicom_node.records.study_values import LiveAssociation, SeriesEvidence, StudyEvidence
from dicom_node.study import ArrivalEnd


def evidence_of(connection: Connection, row: Row[Any]) -> StudyEvidence:
    """Return what is known of the arrival of the study in `row`."""
    uid = row.study_instance_uid
    rows = connection.execute(
        select(*_ARRIVAL, association.c.how, association.c.id)
        .join(association, association.c.id == series.c.last_association, isouter=True)
        .where(series.c.study_instance_uid == uid, series.c.n_instances > 0)
        .order_by(series.c.series_instance_uid)
    )
    return StudyEvidence(
        study_instance_uid=uid,
        first_received_at=row.first_received,
        last_received_at=row.last_received,
        revision=row.revision,
        was_decided=row.decided_revision > 0,
        last_released_at=_last_released(connection, uid),
        series=tuple(
            SeriesEvidence(
                series_instance_uid=one.series_instance_uid,
                n_images=one.n_images,
                last_received_at=one.last_received,
                revision=one.revision,
                is_decided=one.decided_revision >= one.revision,
                was_decided=one.decided_revision > 0,
                is_forced=row.forced_revision >= one.revision > 0,
                calling_ae=one.calling_ae,
                n_runs=one.n_runs,
                longest_pause_s=one.longest_pause_s,
                end=end_of(one.last_association, one.how, is_open=one.id is not None),
            )
            for one in rows
        ),
        associations=_live_associations(connection, uid),
    )


_ARRIVAL = (
    *(series.c.series_instance_uid, series.c.n_images, series.c.last_received, series.c.revision),
    *(series.c.decided_revision, series.c.calling_ae, series.c.n_runs, series.c.longest_pause_s),
    series.c.last_association,
)
"""What completeness asks of a series; its header would have to be parsed each time."""


def end_of(association_id: str | None, how: str | None, *, is_open: bool) -> ArrivalEnd:
    """Return how an association ended; instances without one were found after their receiver had died."""
    if association_id is None:
        return "orphaned"
    if how is None:
        return "open" if is_open else "unknown"
    return "released" if how == "released" else "aborted" if how == "aborted" else "orphaned"


def _last_released(connection: Connection, study_uid: str) -> datetime | None:
    moved = association_study
    row = connection.execute(
        select(moved.c.last_received_at)
        .join(association, association.c.id == moved.c.association)
        .where(moved.c.study_instance_uid == study_uid, association.c.how == "released")
        .order_by(moved.c.last_received_at.desc())
        .limit(1)
    ).first()
    return None if row is None else row.last_received_at


def _live_associations(connection: Connection, study_uid: str) -> tuple[LiveAssociation, ...]:
    moved = association_study
    others = moved.alias("others")
    present_study = (
        select(others.c.study_instance_uid)
        .where(others.c.association == association.c.id)
        .order_by(others.c.last_received_at.desc(), others.c.study_instance_uid)
        .limit(1)
        .scalar_subquery()
    )
    present_series = (
        select(instance.c.series_instance_uid)
        .where(instance.c.study_instance_uid == study_uid, instance.c.association == association.c.id)
        .order_by(instance.c.received_at.desc(), instance.c.series_instance_uid)
        .limit(1)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(
            association,
            moved.c.last_received_at,
            present_study.label("present_study_uid"),
            present_series.label("present_series_uid"),
        )
        .join(moved, moved.c.association == association.c.id)
        .where(moved.c.study_instance_uid == study_uid, association.c.released_at.is_(None))
        .order_by(association.c.id)
    )
    return tuple(
        LiveAssociation(
            id=row.id,
            calling_ae=row.calling_ae,
            owner=owner_of(row),
            last_activity_at=row.last_activity_at,
            last_received_at=row.last_received_at,
            present_study_uid=row.present_study_uid,
            present_series_uid=row.present_series_uid or "",
        )
        for row in rows
    )


def owner_of(row: Row[Any]) -> ProcessIdentity:
    """Return which process serves the association in `row`."""
    return ProcessIdentity(boot_id=row.owner_boot_id, pid=row.owner_pid, start_ticks=row.owner_start_ticks)
