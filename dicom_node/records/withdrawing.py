"""Instances that do not count any more: rejected by a note (IHE IOCM), or found to be another patient's.

What is withdrawn is no image of its study; jobs that read it are cancelled, or flagged when results of theirs are
there already. Rows and files stay. A rejected instance stays withdrawn however often it comes again under its UID (IHE
RAD TF-2 4.66.4.2 and 4.66.4.3: "shall not accept subsequent occurrence"); one that was rejected because its retention
had expired (113039) counts again when it comes again (4.66.4.4 leaves that to us), and its results were never wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, insert, select, update

from dicom_node.lifecycle import JOB_OPEN, DeliveryEvent, DeliveryState, JobEvent
from dicom_node.records.job_values import input_from_json
from dicom_node.records.schema import delivery, instance, job, result, series, study, withdrawal
from dicom_node.records.transitions import NODE, add_event, advance_delivery, advance_job

RETENTION_EXPIRED: Final = "113039"
"""DCM: Data Retention Policy Expired."""
_UNSENT: Final = (DeliveryState.QUEUED, DeliveryState.HELD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """What a withdrawal did."""

    n_instances: int = 0
    """That counted until now."""
    cancelled: tuple[int, ...] = ()
    """Jobs that read one and had not ended."""
    flagged: tuple[int, ...] = ()
    """Jobs whose results are not to be relied on."""


def withdraw_by_note(
    connection: Connection, study_uid: str, sops: Collection[str], note: str, code: str, reason: str, now: datetime
) -> Withdrawn:
    """Withdraw what a rejection note names of one study; what it names and is not here yet will not count either.

    Parameters
    ----------
    note
        SOP Instance UID of the note.
    """
    here = (withdrawal.c.study_instance_uid == study_uid) & (withdrawal.c.note_sop_instance_uid == note)
    there = set(connection.execute(select(withdrawal.c.sop_instance_uid).where(here)).scalars())
    rows = [
        {
            "study_instance_uid": study_uid,
            "sop_instance_uid": sop,
            "note_sop_instance_uid": note,
            "code": code,
            "reason": reason,
            "at": now,
        }
        for sop in sorted(set(sops) - there)
    ]
    if not rows:
        return Withdrawn()
    connection.execute(insert(withdrawal), rows)
    new = set(sops) - there
    versions = [row for row in _versions(connection, study_uid) if row.sop_instance_uid in new]
    return withdraw(connection, study_uid, versions, new, reason, now, is_wrong=code != RETENTION_EXPIRED)


def withdraw(
    connection: Connection,
    study_uid: str,
    versions: Sequence[Row[Any]],
    sops: Collection[str],
    reason: str,
    now: datetime,
    *,
    is_wrong: bool,
) -> Withdrawn:
    """Let versions of a study count no more, and deal with the jobs that read an instance of `sops`.

    `is_wrong`: what remains is a new input, and results that were made of the rest are not to be relied on.
    """
    current = [row for row in versions if row.is_current]
    for row in versions:
        here = (instance.c.study_instance_uid == study_uid) & (instance.c.sop_instance_uid == row.sop_instance_uid)
        marks = update(instance).where(here, instance.c.digest == row.digest)
        connection.execute(marks.values(is_current=False, withdrawn=reason))
    _count_off(connection, study_uid, current, is_new_input=is_wrong)
    cancelled, flagged = [], []
    for row in connection.execute(select(job).where(job.c.study_instance_uid == study_uid).order_by(job.c.id)).all():
        results = connection.execute(select(result.c.sop_instance_uid).where(result.c.job_id == row.id)).scalars().all()
        read = {image.sop_instance_uid for images in input_from_json(row.input).roles.values() for image in images}
        if not (read & set(sops) or set(results) & set(sops)):
            continue
        if row.state in JOB_OPEN and (is_wrong or not results):
            _cancel(connection, row.id, reason, now)
            cancelled.append(int(row.id))
        if results and is_wrong:
            connection.execute(update(job).where(job.c.id == row.id).values(flag=reason))
            state = connection.execute(select(job.c.state).where(job.c.id == row.id)).scalar_one()
            add_event(connection, row.id, "flag", state, state, now, actor=NODE, reason=reason)
            flagged.append(int(row.id))
    return Withdrawn(n_instances=len(current), cancelled=tuple(cancelled), flagged=tuple(flagged))


def rejections(connection: Connection, study_uid: str, sops: Collection[str]) -> dict[str, str]:
    """Return why instances of a study are rejected, by SOP Instance UID; an expired retention does not keep one out."""
    rows = connection.execute(
        select(withdrawal.c.sop_instance_uid, withdrawal.c.reason).where(
            withdrawal.c.study_instance_uid == study_uid,
            withdrawal.c.sop_instance_uid.in_(sops),
            withdrawal.c.code != RETENTION_EXPIRED,
        )
    )
    return {row.sop_instance_uid: row.reason for row in rows}


def forget_expired(connection: Connection, study_uid: str, sops: Collection[str]) -> None:
    """Let instances count again that were withdrawn only because their retention had expired: they come again."""
    here = (withdrawal.c.study_instance_uid == study_uid) & withdrawal.c.sop_instance_uid.in_(sops)
    codes: dict[str, set[str]] = {}
    for row in connection.execute(select(withdrawal.c.sop_instance_uid, withdrawal.c.code).where(here)):
        codes.setdefault(row.sop_instance_uid, set()).add(row.code)
    expired = [sop for sop, said in codes.items() if said == {RETENTION_EXPIRED}]
    if expired:
        connection.execute(delete(withdrawal).where(here, withdrawal.c.sop_instance_uid.in_(expired)))
        gone = (instance.c.study_instance_uid == study_uid) & instance.c.sop_instance_uid.in_(expired)
        connection.execute(delete(instance).where(gone, instance.c.withdrawn.is_not(None)))


def _versions(connection: Connection, study_uid: str) -> Sequence[Row[Any]]:
    return connection.execute(select(instance).where(instance.c.study_instance_uid == study_uid)).all()


def _count_off(connection: Connection, study_uid: str, current: Sequence[Row[Any]], *, is_new_input: bool) -> None:
    """Take withdrawn versions from the counts of their series; what is left of the images is to be judged again."""
    foreign = [row for row in current if not row.made_by_us]
    if not foreign:
        return
    here = study.c.study_instance_uid == study_uid
    before = connection.execute(select(study).where(here).with_for_update()).one()
    is_changed = is_new_input and any(row.is_image for row in foreign)
    revision = before.revision + is_changed
    for uid in sorted({row.series_instance_uid for row in foreign}):
        of_series = [row for row in foreign if row.series_instance_uid == uid]
        n_images = sum(bool(row.is_image) for row in of_series)
        values: dict[str, Any] = {
            "n_instances": series.c.n_instances - len(of_series),
            "n_images": series.c.n_images - n_images,
        }
        if is_changed and n_images:
            values["revision"] = revision
        connection.execute(
            update(series)
            .where(series.c.study_instance_uid == study_uid, series.c.series_instance_uid == uid)
            .values(**values)
        )
    if is_changed:
        state = before.state if before.state in ("held", "purged") else "receiving"
        connection.execute(update(study).where(here).values(revision=revision, state=state))


def _cancel(connection: Connection, job_id: int, reason: str, now: datetime) -> None:
    advance_job(connection, job_id, JobEvent.CANCEL, now, reason=reason)
    unsent = select(delivery.c.id).where(delivery.c.job_id == job_id, delivery.c.state.in_(_UNSENT))
    for delivery_id in connection.execute(unsent.order_by(delivery.c.id)).scalars().all():
        advance_delivery(connection, delivery_id, DeliveryEvent.SKIP, now, reason=reason)
