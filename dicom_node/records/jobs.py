"""The queue: one row of work, once; claimed by one worker at a time, under a lease and a fencing token.

A worker claims, beats, and ends its job by filing results, withholding, refusing, failing or asking for a later retry;
each of these writes names the job and the token of its claim, and changes nothing once another claim has raised the
token. What died is found by its lease (`reap`). Only `transitions` writes a state. Never reads a file or infers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, insert, or_, select, update

from dicom_node.errors import LeaseLostError
from dicom_node.ids import new_uid
from dicom_node.lifecycle import DeliveryEvent, DeliveryState, JobEvent, JobState, next_job_state
from dicom_node.records.database import Database
from dicom_node.records.job_reading import claimed_job, job_detail, job_row, reports_replaced_by
from dicom_node.records.job_values import (
    PRIORITY_RANK,
    ClaimedJob,
    JobDetail,
    JobRow,
    NewJob,
    NewResult,
    ResultRow,
    destinations_from_json,
)
from dicom_node.records.queueing import enqueue_job, reprocess_job
from dicom_node.records.schema import attempt, delivery, job, result
from dicom_node.records.transitions import (
    add_event,
    advance_delivery,
    advance_job,
    close_delivered_job,
    find_job,
    queue_deliveries,
)

_RANK = case(PRIORITY_RANK, value=job.c.priority, else_=len(PRIORITY_RANK))


class Jobs:
    """The aggregate of jobs, their attempts, events and results."""

    def __init__(self, database: Database, *, allocate_uid: Callable[[], str] = new_uid) -> None:
        self._database = database
        self._clock = database.clock
        self._allocate_uid = allocate_uid

    # Asking for work

    def enqueue(
        self, new: NewJob, *, config_digest: str = "", connection: Connection | None = None
    ) -> tuple[int, bool]:
        """Add the job; return its id and whether it is new.

        The same work (plugin, version, parameters, input) has one row: asked for again, its destinations are united,
        and results that are filed already are queued for the new ones. A job for other images of the same series
        supersedes its predecessors, and cancels those that have filed nothing yet. With `connection`, all of this
        belongs to the caller's transaction.
        """
        if connection is None:
            with self._database.begin() as own:
                return self.enqueue(new, config_digest=config_digest, connection=own)
        return enqueue_job(connection, new, config_digest, self._allocate_uid, self._clock.now())

    # Working

    def claim(self, worker: str, lease_s: float) -> ClaimedJob | None:
        """Take the next queued job, by priority, then by age; None when there is none."""
        now = self._clock.now()
        chosen = (
            select(job.c.id)
            .where(job.c.state == JobState.QUEUED, or_(job.c.not_before.is_(None), job.c.not_before <= now))
            .order_by(_RANK, job.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        running = next_job_state(JobState.QUEUED, JobEvent.CLAIM)
        take = update(job).where(job.c.id == chosen, job.c.state == JobState.QUEUED)
        with self._database.begin() as connection:
            row = connection.execute(
                take.values(
                    state=running,
                    token=job.c.token + 1,
                    attempts=job.c.attempts + 1,
                    worker=worker,
                    lease_s=lease_s,
                    leased_until=now + timedelta(seconds=lease_s),
                    started_at=now,
                    not_before=None,
                    reason=None,
                ).returning(job)
            ).first()
            if row is None:
                return None
            add_event(connection, row.id, JobEvent.CLAIM, JobState.QUEUED, running, now)
            connection.execute(insert(attempt).values(job_id=row.id, token=row.token, worker=worker, started_at=now))
        return claimed_job(row)

    def heartbeat(self, job_id: int, token: int) -> None:
        """Renew the lease; call it from a thread other than the one that infers.

        Raises
        ------
        LeaseLostError
            When the job was given to another worker, or cancelled: stop working on it.
        """
        now = self._clock.now()
        mine = (job.c.id == job_id) & (job.c.token == token) & (job.c.state == JobState.RUNNING)
        with self._database.begin() as connection:
            lease_s = connection.execute(select(job.c.lease_s).where(mine).with_for_update()).scalar()
            if lease_s is None:
                raise LeaseLostError
            connection.execute(update(job).where(mine).values(leased_until=now + timedelta(seconds=lease_s)))

    def file_results(
        self,
        job_id: int,
        token: int,
        results: Sequence[NewResult],
        *,
        outcome: str,
        engine: str,
        duration_s: float,
    ) -> JobState:
        """Write the results, whose bytes are durable, and queue them for the job's destinations.

        `outcome` is "result" or "nothing_found". Returns the job's new state: delivering, or done when no
        destination takes anything.
        """
        now = self._clock.now()
        with self._database.begin() as connection:
            advance_job(
                connection,
                job_id,
                JobEvent.FILE_RESULTS,
                now,
                token=token,
                outcome=outcome,
                engine=engine,
                duration_s=duration_s,
                filed_at=now,
            )
            if results:
                connection.execute(insert(result), [_result_values(job_id, one, now) for one in results])
            names = connection.execute(select(job.c.destinations).where(job.c.id == job_id)).scalar_one()
            queue_deliveries(connection, job_id, destinations_from_json(names), now)
            return close_delivered_job(connection, job_id, now)

    def withhold(self, job_id: int, token: int, reason: str, *, engine: str | None = None) -> JobState:
        """Write that the plausibility gate kept the result back."""
        return self._end(job_id, JobEvent.WITHHOLD, reason, token=token, engine=engine)

    def refuse(self, job_id: int, token: int, reason: str) -> JobState:
        """Write that the images cannot be judged."""
        return self._end(job_id, JobEvent.REFUSE, reason, token=token)

    def fail(self, job_id: int, token: int, reason: str) -> JobState:
        """Write that an error stands in the way that no retry cures."""
        return self._end(job_id, JobEvent.FAIL, reason, token=token)

    def retry_later(self, job_id: int, token: int, reason: str, not_before: datetime) -> JobState:
        """Give the job back for a later attempt; it fails when no attempt is left. Returns which of the two."""
        now = self._clock.now()
        with self._database.begin() as connection:
            row = find_job(connection, job_id)
            if row.attempts < row.max_attempts:
                return advance_job(
                    connection, job_id, JobEvent.RETRY_LATER, now, token=token, reason=reason, not_before=not_before
                )
            last = f"{reason} (attempt {row.attempts} of {row.max_attempts})"
            return advance_job(connection, job_id, JobEvent.FAIL, now, token=token, reason=last)

    def give_back(self, job_id: int, token: int) -> JobState:
        """Queue the job again because its worker is being stopped; that is no attempt."""
        return self._end(job_id, JobEvent.GIVE_BACK, "its worker was stopped", token=token, attempts=job.c.attempts - 1)

    # Upkeep

    def reap(
        self,
        is_alive: Callable[[str], bool] | None = None,
        died_with_its_node: Callable[[str], bool] = lambda _worker: False,
    ) -> tuple[int, ...]:
        """Take the jobs from workers whose lease has run out; return their ids.

        `is_alive` tells of a worker's name whether its process runs, a shortcut that spares waiting for the lease; it
        must say True when in doubt. A job that was taken from `max_attempts` workers fails; what died with the whole
        node or machine is not held against it.
        """
        with self._database.read() as connection:
            running = connection.execute(select(job).where(job.c.state == JobState.RUNNING)).all()
        now = self._clock.now()
        workers = {row.worker for row in running}
        dead = {worker for worker in workers if is_alive is not None and not is_alive(worker)}
        suspects = [row for row in running if row.worker in dead or row.leased_until <= now]
        blameless = {worker for worker in dead if died_with_its_node(worker)}
        return tuple(
            row.id for row in suspects if self._take_back(row, row.worker in dead, row.worker in blameless, now)
        )

    def wake(self) -> tuple[int, ...]:
        """Queue the waiting jobs whose back-off is over; return their ids."""
        now = self._clock.now()
        due = select(job.c.id).where(job.c.state == JobState.WAITING, job.c.not_before <= now).order_by(job.c.id)
        with self._database.read() as connection:
            if connection.execute(due.limit(1)).first() is None:
                return ()
        with self._database.begin() as connection:
            ids = tuple(connection.execute(due.with_for_update()).scalars())
            for job_id in ids:
                advance_job(connection, job_id, JobEvent.WAKE, now, not_before=None)
        return ids

    # The administrator

    def hold(self, job_id: int, reason: str) -> JobState:
        """Keep a job that does not run yet from running."""
        return self._end(job_id, JobEvent.HOLD, reason)

    def release(self, job_id: int) -> JobState:
        """Let a held job run."""
        return self._end(job_id, JobEvent.RELEASE, None, not_before=None)

    def cancel(self, job_id: int, reason: str) -> JobState:
        """End a job; what it has not sent yet is not sent, and its worker loses the lease."""
        now = self._clock.now()
        with self._database.begin() as connection:
            state = advance_job(connection, job_id, JobEvent.CANCEL, now, reason=reason)
            unsent = (DeliveryState.QUEUED, DeliveryState.HELD)
            for delivery_id in _deliveries_in(connection, job_id, unsent):
                advance_delivery(connection, delivery_id, DeliveryEvent.SKIP, now, reason=reason)
        return state

    def retry(self, job_id: int) -> JobState:
        """Queue an ended job again with all its attempts; where results are filed, only their sending is repeated."""
        now = self._clock.now()
        with self._database.begin() as connection:
            find_job(connection, job_id)
            filed = select(result.c.id).where(result.c.job_id == job_id).limit(1)
            if connection.execute(filed).first() is None:
                return advance_job(connection, job_id, JobEvent.RETRY, now, attempts=0, not_before=None)
            advance_job(connection, job_id, JobEvent.REDELIVER, now)
            ended = (DeliveryState.HELD, DeliveryState.REFUSED, DeliveryState.FAILED, DeliveryState.SKIPPED)
            for delivery_id in _deliveries_in(connection, job_id, ended):
                advance_delivery(connection, delivery_id, DeliveryEvent.RETRY, now, not_before=None, refusals=0)
            return close_delivered_job(connection, job_id, now)

    def reprocess(self, job_id: int, *, plugin_version: str | None = None) -> int:
        """Do the same work again as a new job with new UIDs, with another version of the plugin if asked.

        The former jobs are superseded; one that is still open is cancelled. Returns the id of the new job.
        """
        with self._database.begin() as connection:
            return reprocess_job(connection, job_id, plugin_version, self._allocate_uid, self._clock.now())

    def reprocess_study(self, study_uid: str) -> tuple[int, ...]:
        """Reprocess every job of a study that no other superseded; return the ids of the new jobs."""
        present = select(job.c.id).where(job.c.study_instance_uid == study_uid, job.c.superseded_by.is_(None))
        with self._database.begin() as connection:
            ids = connection.execute(present.order_by(job.c.id)).scalars().all()
            now = self._clock.now()
            return tuple(reprocess_job(connection, job_id, None, self._allocate_uid, now) for job_id in ids)

    # Reading

    def list(self, *, study_uid: str | None = None, state: JobState | None = None) -> tuple[JobRow, ...]:
        """Return the jobs, newest first."""
        query = select(job).order_by(job.c.id.desc())
        if study_uid is not None:
            query = query.where(job.c.study_instance_uid == study_uid)
        if state is not None:
            query = query.where(job.c.state == state)
        with self._database.read() as connection:
            return tuple(map(job_row, connection.execute(query)))

    def show(self, job_id: int) -> JobDetail:
        """Return everything that is recorded of a job.

        Raises
        ------
        NotFoundError
            When there is no such job.
        """
        with self._database.read() as connection:
            return job_detail(connection, find_job(connection, job_id))

    def reports_replaced_by(self, job_id: int) -> tuple[ResultRow, ...]:
        """Return the reports of the jobs that this one supersedes; of one that filed none, those that it superseded."""
        with self._database.read() as connection:
            return reports_replaced_by(connection, job_id)

    def counts(self) -> dict[JobState, int]:
        """Return how many jobs stand in each state."""
        with self._database.read() as connection:
            rows = connection.execute(select(job.c.state, func.count()).group_by(job.c.state)).all()
        return dict.fromkeys(JobState, 0) | {JobState(state): n for state, n in rows}

    def _end(
        self, job_id: int, event: JobEvent, reason: str | None, *, token: int | None = None, **values: Any
    ) -> JobState:
        with self._database.begin() as connection:
            return advance_job(connection, job_id, event, self._clock.now(), token=token, reason=reason, **values)

    def _take_back(self, seen: Row[Any], is_dead: bool, is_blameless: bool, now: datetime) -> bool:
        """Take a job from its worker, unless a heartbeat or another reaper came first."""
        still: ColumnElement[bool] = (job.c.token == seen.token) & (job.c.state == JobState.RUNNING)
        if not is_dead:
            still &= job.c.leased_until <= now
        with self._database.begin() as connection:
            if connection.execute(select(job.c.id).where(job.c.id == seen.id, still).with_for_update()).first() is None:
                return False
            if is_blameless:
                advance_job(
                    connection,
                    seen.id,
                    JobEvent.LEASE_EXPIRED,
                    now,
                    reason="the node ended while it ran",
                    attempts=job.c.attempts - 1,
                )
            elif seen.attempts < seen.max_attempts:
                advance_job(connection, seen.id, JobEvent.LEASE_EXPIRED, now, reason="its worker died or stalled")
            else:
                reason = f"its worker died or stalled {seen.attempts} times"
                advance_job(connection, seen.id, JobEvent.FAIL, now, reason=reason)
        return True


def _deliveries_in(connection: Connection, job_id: int, states: Sequence[DeliveryState]) -> Sequence[int]:
    query = select(delivery.c.id).where(delivery.c.job_id == job_id, delivery.c.state.in_(states))
    return connection.execute(query.order_by(delivery.c.id)).scalars().all()


def _result_values(job_id: int, one: NewResult, now: datetime) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "kind": one.kind,
        "sop_class_uid": one.sop_class_uid,
        "sop_instance_uid": one.sop_instance_uid,
        "series_instance_uid": one.series_instance_uid,
        "path": str(one.path),
        "digest": one.digest,
        "filed_at": now,
    }
