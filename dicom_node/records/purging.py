"""What may be given up, and the marks of what was: the rows say so before a file goes, and they stay.

A study is purged as a whole: complete, without an open job or an open delivery. A result is purged when its job has
ended and everything of it that was to be delivered has arrived, or was skipped by an administrator. `retention` knows
the limits, and does to the files what stands here. Nothing here touches a file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from dicom_node.errors import IllegalTransitionError, NotFoundError
from dicom_node.lifecycle import DELIVERY_OPEN, DELIVERY_WELL, JOB_OPEN
from dicom_node.records.database import Database
from dicom_node.records.schema import association_study, delivery, instance, job, result, study


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgedFile:
    """A file whose row says that it was given up."""

    name: str
    """SOP Instance UID; of a result, its number."""
    digest: str
    path: Path


class Purges:
    """Marks of what was purged."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.clock

    # Studies

    def received_bytes(self) -> int:
        """Return what the received instances take that were not purged; looks at each row."""
        query = select(func.coalesce(func.sum(instance.c.size_bytes), 0)).where(instance.c.purged_at.is_(None))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def next_study(self, received_before: datetime) -> str | None:
        """Return the study that waits longest of those that may be purged and got nothing since that time."""
        query = (
            select(study.c.study_instance_uid)
            .where(study.c.state == "complete", study.c.last_received < received_before, ~_is_busy())
            .where(~_was_repeated_since(received_before))
            .order_by(study.c.last_received, study.c.study_instance_uid)
            .limit(1)
        )
        with self._database.read() as connection:
            return connection.execute(query).scalar()

    def mark_study(self, study_uid: str) -> int:
        """Write that the study is purged, and every version of it; return how many that are.

        Raises
        ------
        NotFoundError
            When there is no such study.
        IllegalTransitionError
            When it may not be purged now; the sentence says why.
        """
        now = self._clock.now()
        here = study.c.study_instance_uid == study_uid
        with self._database.begin() as connection:
            row = connection.execute(select(study.c.state).where(here).with_for_update()).first()
            if row is None:
                raise NotFoundError(f"there is no study {study_uid}")
            reason = _NOT_PURGED.get(row.state) or _why_busy(connection, study_uid)
            if reason is not None:
                raise IllegalTransitionError(f"study {study_uid} cannot be purged: {reason}")
            connection.execute(update(study).where(here).values(state="purged", purged_at=now, unlinked_at=None))
            marks = update(instance).where(instance.c.study_instance_uid == study_uid, instance.c.purged_at.is_(None))
            return int(connection.execute(marks.values(purged_at=now)).rowcount)

    def unlinking(self) -> tuple[str, ...]:
        """Return the studies of which files may be left, though their rows say that they were purged."""
        query = select(study.c.study_instance_uid).where(study.c.purged_at.is_not(None), study.c.unlinked_at.is_(None))
        with self._database.read() as connection:
            return tuple(connection.execute(query.order_by(study.c.purged_at)).scalars())

    def purged_files(self, study_uid: str, after: tuple[str, str], limit: int) -> tuple[PurgedFile, ...]:
        """Return purged versions of a study behind (SOP Instance UID, digest) `after`, in that order."""
        sop, digest = instance.c.sop_instance_uid, instance.c.digest
        query = (
            select(sop, digest, instance.c.path)
            .where(instance.c.study_instance_uid == study_uid, instance.c.purged_at.is_not(None))
            .where(or_(sop > after[0], and_(sop == after[0], digest > after[1])))
            .order_by(sop, digest)
            .limit(limit)
        )
        with self._database.read() as connection:
            return tuple(
                PurgedFile(name=row.sop_instance_uid, digest=row.digest, path=Path(row.path))
                for row in connection.execute(query)
            )

    def kept(self, digests: Collection[str]) -> frozenset[str]:
        """Return which of these digests belong to a version that is not purged: it came again meanwhile."""
        query = select(instance.c.digest).where(instance.c.digest.in_(digests), instance.c.purged_at.is_(None))
        with self._database.begin() as connection:  # behind every transaction that brought one back
            return frozenset(connection.execute(query.with_for_update()).scalars())

    def unlinked(self, study_uid: str) -> None:
        """Write that no purged file of the study is left."""
        with self._database.begin() as connection:
            connection.execute(
                update(study).where(study.c.study_instance_uid == study_uid).values(unlinked_at=self._clock.now())
            )

    def lost(self, versions: Sequence[tuple[str, PurgedFile]]) -> None:
        """Write that the files of these (study, version) are gone: purged after the backup that was restored."""
        now = self._clock.now()
        with self._database.begin() as connection:
            for _, one in versions:
                here = (instance.c.sop_instance_uid == one.name) & (instance.c.digest == one.digest)
                connection.execute(update(instance).where(here).values(purged_at=now))
            left = select(instance.c.digest).where(
                instance.c.study_instance_uid == study.c.study_instance_uid, instance.c.purged_at.is_(None)
            )
            uids = {uid for uid, _ in versions}
            empty = study.c.study_instance_uid.in_(uids) & (study.c.state == "complete") & ~left.exists()
            marks = {"state": "purged", "purged_at": now, "unlinked_at": now}
            connection.execute(update(study).where(empty).values(**marks))

    def kept_files(self, after: tuple[str, str, str], limit: int) -> tuple[tuple[str, PurgedFile], ...]:
        """Return (study, version) of what should have its file, behind the given key, in the order of the keys."""
        columns = (instance.c.study_instance_uid, instance.c.sop_instance_uid, instance.c.digest)
        query = select(*columns, instance.c.path).where(instance.c.purged_at.is_(None))
        query = query.where(_is_behind(columns, after)).order_by(*columns).limit(limit)
        with self._database.read() as connection:
            return tuple(
                (
                    row.study_instance_uid,
                    PurgedFile(name=row.sop_instance_uid, digest=row.digest, path=Path(row.path)),
                )
                for row in connection.execute(query)
            )

    # Results

    def mark_results(self, ended_before: datetime, limit: int) -> int:
        """Write that results are purged whose jobs ended before that time and that arrived everywhere."""
        open_ = select(delivery.c.id).where(
            delivery.c.job_id == result.c.job_id, delivery.c.state.not_in([*DELIVERY_WELL])
        )
        ids = (
            select(result.c.id)
            .join(job, job.c.id == result.c.job_id)
            .where(result.c.purged_at.is_(None), job.c.state.not_in([*JOB_OPEN]), job.c.finished_at < ended_before)
            .where(~open_.exists())
            .order_by(result.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            if connection.execute(ids.limit(1)).first() is None:
                return 0
        with self._database.begin() as connection:
            chosen = connection.execute(ids.with_for_update()).scalars().all()
            marks = update(result).where(result.c.id.in_(chosen))
            return int(connection.execute(marks.values(purged_at=self._clock.now())).rowcount)

    def purged_results(self, limit: int) -> tuple[PurgedFile, ...]:
        """Return purged results whose files may be left."""
        query = (
            select(result.c.id, result.c.digest, result.c.path)
            .where(result.c.purged_at.is_not(None), result.c.unlinked_at.is_(None))
            .order_by(result.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return tuple(
                PurgedFile(name=str(row.id), digest=row.digest, path=Path(row.path))
                for row in connection.execute(query)
            )

    def results_unlinked(self, files: Sequence[PurgedFile]) -> None:
        """Write that the files of these results are gone."""
        ids = [int(one.name) for one in files]
        with self._database.begin() as connection:
            connection.execute(update(result).where(result.c.id.in_(ids)).values(unlinked_at=self._clock.now()))


_NOT_PURGED: Final = {
    "receiving": "it is still being received",
    "held": "it is held; `dicom-node studies release` first",
    "purged": "it is purged already",
}
"""State of a study -> why it may not be purged."""


def why_purged(connection: Connection, pinned: Collection[tuple[str, str]], study_uid: str) -> str | None:
    """Return why a job cannot read its (SOP Instance UID, digest) versions any more; None when all are here."""
    rows = connection.execute(
        select(instance.c.sop_instance_uid, instance.c.digest, instance.c.purged_at).where(
            instance.c.study_instance_uid == study_uid, instance.c.purged_at.is_not(None)
        )
    ).all()
    gone = [row.purged_at for row in rows if (row.sop_instance_uid, row.digest) in pinned]
    if not gone:
        return None
    return (
        f"{len(gone)} of the {len(pinned)} images that it reads were purged on {max(gone):%Y-%m-%d}; "
        "send the study again first"
    )


def _is_behind(columns: Sequence[ColumnElement[str]], after: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that a row lies behind a key, column by column."""
    first, *rest = columns
    beyond: ColumnElement[bool] = first > after[0]
    return or_(beyond, and_(first == after[0], _is_behind(rest, after[1:]))) if rest else beyond


def _is_busy() -> ColumnElement[bool]:
    """Return the condition that a study has an open job, or a delivery that is still to be sent."""
    jobs = select(job.c.id).where(job.c.study_instance_uid == study.c.study_instance_uid, job.c.state.in_([*JOB_OPEN]))
    deliveries = (
        select(delivery.c.id)
        .join(job, job.c.id == delivery.c.job_id)
        .where(job.c.study_instance_uid == study.c.study_instance_uid, delivery.c.state.in_([*DELIVERY_OPEN]))
    )
    return or_(jobs.exists(), deliveries.exists())


def _was_repeated_since(time: datetime) -> ColumnElement[bool]:
    """Return the condition that somebody has sent the study again since: identical repeats change no row of its own."""
    moved = association_study
    here = moved.c.study_instance_uid == study.c.study_instance_uid
    return select(moved.c.association).where(here, moved.c.last_received_at >= time).exists()


def _why_busy(connection: Connection, study_uid: str) -> str | None:
    row = connection.execute(
        select(job.c.id, job.c.state)
        .where(job.c.study_instance_uid == study_uid, job.c.state.in_([*JOB_OPEN]))
        .order_by(job.c.id)
        .limit(1)
    ).first()
    if row is not None:
        return f"job {row.id} is {row.state}"
    row = connection.execute(
        select(delivery.c.id, delivery.c.state)
        .join(job, job.c.id == delivery.c.job_id)
        .where(job.c.study_instance_uid == study_uid, delivery.c.state.in_([*DELIVERY_OPEN]))
        .limit(1)
    ).first()
    return None if row is None else f"delivery {row.id} is {row.state}"
