"""The queue: one row of work, once; claimed by one worker at a time, under a lease and a fencing token.

A worker claims, beats, and ends its job by filing results, withholding, refusing, failing or asking for a later retry;
each of these writes names the job and the token of its claim, and changes nothing once another claim has raised the
token. What died is found by its lease (`reap`). Only `transitions` writes a state. Never reads a file or infers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from dicom_node.errors import IllegalTransitionError, LeaseLostError
from dicom_node.ids import new_uid
from dicom_node.lifecycle import DeliveryEvent, DeliveryState, JobEvent, JobState
from dicom_node.records.claiming import claim_next
from dicom_node.records.database import Database
from dicom_node.records.job_reading import claimed_job, job_detail, job_row, reports_replaced_by
from dicom_node.records.job_values import (
    FORWARD,
    PRIORITY_RANK,
    TARGET_S,
    ClaimedJob,
    JobDetail,
    JobRow,
    NewJob,
    NewResult,
    Priority,
    ResultRow,
    destinations_from_json,
    result_values,
)
from dicom_node.records.pauses import read_pauses
from dicom_node.records.queueing import enqueue_job, reprocess_job, require_input
from dicom_node.records.schema import delivery, job, result
from dicom_node.records.transitions import (
    NODE,
    add_event,
    advance_delivery,
    advance_job,
    close_delivered_job,
    find_job,
    queue_deliveries,
)

WORKER_DEATHS: Final = 2
"""So many processes may die while they have a job; then it is set aside, for it may be what kills them."""

_AFRESH: Final[Mapping[str, Any]] = {"attempts": 0, "worker_deaths": 0, "not_before": None}
"""What a job begins with when an administrator queues it."""

_NOT_FILED: Final = frozenset({JobState.WAITING, JobState.QUEUED, JobState.HELD, JobState.RUNNING})


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

    def claim(
        self, worker: str, lease_s: float, *, engine_slots: Mapping[str, int] = MappingProxyType({})
    ) -> ClaimedJob | None:
        """Take the next queued job, by priority, then by deadline; None when there is none that may run now.

        Jobs of a paused plugin or route stay queued, and so do those of an engine of which as many run as
        `engine_slots` says, whoever runs them; an engine that it does not name has no limit.
        """
        now = self._clock.now()
        with self._database.begin() as connection:
            row = claim_next(connection, worker, lease_s, engine_slots, now)
        return None if row is None else claimed_job(row)

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
                connection.execute(insert(result), [result_values(job_id, one, now) for one in results])
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
        must say True when in doubt. A job that was taken from `max_attempts` workers fails. One whose worker is known
        to have died under it WORKER_DEATHS times is held: the next worker would die of it, too. What died with the
        whole node or machine is not held against it.
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

    def hold(self, job_id: int, reason: str, *, actor: str = NODE) -> JobState:
        """Keep a job from running; one that runs is stopped, and that was no attempt."""
        with self._database.begin() as connection:
            was_running = find_job(connection, job_id).state == JobState.RUNNING
            values: dict[str, Any] = {"attempts": job.c.attempts - 1} if was_running else {}
            return advance_job(
                connection, job_id, JobEvent.HOLD, self._clock.now(), actor=actor, reason=reason, **values
            )

    def release(self, job_id: int, *, actor: str = NODE, comment: str | None = None) -> JobState:
        """Let a held job run, with all its attempts."""
        said: dict[str, Any] = {"actor": actor, "comment": comment}
        return self._end(job_id, JobEvent.RELEASE, None, **said, **_AFRESH)

    def cancel(self, job_id: int, reason: str, *, actor: str = NODE) -> JobState:
        """End a job; what it has not sent yet is not sent, and its worker loses the lease."""
        now = self._clock.now()
        with self._database.begin() as connection:
            state = advance_job(connection, job_id, JobEvent.CANCEL, now, actor=actor, reason=reason)
            unsent = (DeliveryState.QUEUED, DeliveryState.HELD)
            for delivery_id in _deliveries_in(connection, job_id, unsent):
                advance_delivery(connection, delivery_id, DeliveryEvent.SKIP, now, reason=reason)
        return state

    def retry(self, job_id: int, *, actor: str = NODE, comment: str | None = None) -> JobState:
        """Queue a job again with all its attempts; where results are filed, only their sending is repeated.

        One that waits does not wait any longer, and one that runs is taken from its worker.
        """
        now = self._clock.now()
        said: dict[str, Any] = {"actor": actor, "comment": comment}
        with self._database.begin() as connection:
            found = find_job(connection, job_id)
            destinations = destinations_from_json(found.destinations)
            filed = select(result.c.id).where(result.c.job_id == job_id).limit(1)
            if found.plugin != FORWARD and connection.execute(filed).first() is None:
                require_input(connection, found)
                return advance_job(connection, job_id, JobEvent.RETRY, now, **said, **_AFRESH)
            advance_job(connection, job_id, JobEvent.REDELIVER, now, **said)
            queue_deliveries(connection, job_id, destinations, now)  # some may have joined while it was cancelled
            again = (
                DeliveryState.QUEUED,
                DeliveryState.HELD,
                DeliveryState.REFUSED,
                DeliveryState.FAILED,
                DeliveryState.SKIPPED,
            )
            for delivery_id in _deliveries_in(connection, job_id, again):
                advance_delivery(connection, delivery_id, DeliveryEvent.RETRY, now, not_before=None, refusals=0)
            return close_delivered_job(connection, job_id, now)

    def prioritise(self, job_id: int, priority: Priority, *, actor: str = NODE, comment: str | None = None) -> JobState:
        """Give a job that has filed nothing yet another priority; a deadline that nobody stated changes with it.

        Raises
        ------
        IllegalTransitionError
            When its results are filed, or it has ended: its priority would change nothing.
        """
        with self._database.begin() as connection:
            row = find_job(connection, job_id)
            if row.state not in _NOT_FILED:
                raise IllegalTransitionError(
                    f"a job that is {row.state} is not in the queue; it has no use of a priority"
                )
            due_at = row.due_at
            if row.target_s is None:
                due_at += timedelta(seconds=TARGET_S[priority] - TARGET_S[row.priority])
            urgency = {"priority": priority, "rank": PRIORITY_RANK[priority], "due_at": due_at}
            connection.execute(update(job).where(job.c.id == job_id).values(**urgency))
            said = "; ".join(filter(None, (f"from {row.priority} to {priority}", comment)))
            add_event(connection, job_id, "priority", row.state, row.state, self._clock.now(), actor=actor, reason=said)
            return JobState(row.state)

    def reprocess(self, job_id: int, *, plugin_version: str | None = None, actor: str = NODE) -> int:
        """Do the same work again as a new job with new UIDs, with another version of the plugin if asked.

        The former jobs are superseded; one that is still open is cancelled. Returns the id of the new job.
        """
        now = self._clock.now()
        with self._database.begin() as connection:
            return reprocess_job(connection, job_id, plugin_version, self._allocate_uid, now, actor=actor)

    def reprocess_study(self, study_uid: str, *, actor: str = NODE) -> tuple[int, ...]:
        """Reprocess every job of a study that no other superseded; return the ids of the new jobs."""
        present = select(job.c.id).where(job.c.study_instance_uid == study_uid, job.c.superseded_by.is_(None))
        with self._database.begin() as connection:
            ids = connection.execute(present.order_by(job.c.id)).scalars().all()
            now = self._clock.now()
            return tuple(
                reprocess_job(connection, job_id, None, self._allocate_uid, now, actor=actor) for job_id in ids
            )

    # Reading

    def list(self, *, study_uid: str | None = None, state: JobState | None = None) -> tuple[JobRow, ...]:
        """Return the jobs, newest first."""
        query = select(job).order_by(job.c.id.desc())
        if study_uid is not None:
            query = query.where(job.c.study_instance_uid == study_uid)
        if state is not None:
            query = query.where(job.c.state == state)
        with self._database.read() as connection:
            pauses = read_pauses(connection)
            return tuple(job_row(row, pauses) for row in connection.execute(query))

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
            deaths = seen.worker_deaths + (is_dead and not is_blameless)
            if is_blameless:
                said, attempts = "the node ended while it ran", job.c.attempts - 1
                advance_job(connection, seen.id, JobEvent.LEASE_EXPIRED, now, reason=said, attempts=attempts)
            elif is_dead and deaths >= WORKER_DEATHS:
                said = f"set aside: {deaths} worker processes died while they ran it; release it to try it again"
                advance_job(connection, seen.id, JobEvent.SET_ASIDE, now, reason=said, worker_deaths=deaths)
            elif seen.attempts < seen.max_attempts:
                said = "its worker died" if is_dead else "its worker gave no sign of life"
                advance_job(connection, seen.id, JobEvent.LEASE_EXPIRED, now, reason=said, worker_deaths=deaths)
            else:
                said = f"its worker died or stalled {seen.attempts} times"
                advance_job(connection, seen.id, JobEvent.FAIL, now, reason=said, worker_deaths=deaths)
        return True


def _deliveries_in(connection: Connection, job_id: int, states: Sequence[DeliveryState]) -> Sequence[int]:
    query = select(delivery.c.id).where(delivery.c.job_id == job_id, delivery.c.state.in_(states))
    return connection.execute(query.order_by(delivery.c.id)).scalars().all()
