"""Which job is next: by priority, then by the nearest deadline, among those that may run now.

Jobs of one engine, plugin and route stand in one lane. What keeps a job from running (a pause, no free slot of its
engine) keeps its whole lane, so a claim looks at the head of each lane and at nothing behind it: its cost grows with
the number of lanes, a handful, and not with that of the jobs. Each step is one descent in one index.

Two claims never see the same free slot because SQLite gives transactions that write turns. A database that lets them
in side by side needs a lock of its own here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Self

from sqlalchemy import Connection, Row, Select, bindparam, func, insert, or_, select, update

from dicom_node.lifecycle import JobEvent, JobState, next_job_state
from dicom_node.records.holding import is_held
from dicom_node.records.pauses import read_pauses
from dicom_node.records.schema import UtcDateTime, attempt, job
from dicom_node.records.transitions import add_event

RUNNING: Final = next_job_state(JobState.QUEUED, JobEvent.CLAIM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What is paused or full together. None of the three names may hold a slash."""

    engine: str
    plugin: str
    route: str

    def __str__(self) -> str:
        """Return the lane as the row keeps it."""
        return f"{self.engine}/{self.plugin}/{self.route}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the lane that a row keeps."""
        engine, plugin, route = text.split("/")
        return cls(engine=engine, plugin=plugin, route=route)


def _heads() -> Select[Any]:
    """Return the query for the head of each lane that has queued jobs, the most urgent first; it takes `now`.

    The lanes are found by a loose index scan: the least one, then the least one above it, and so on.
    """
    lanes = (
        select(func.min(job.c.lane).label("lane")).where(job.c.state == JobState.QUEUED).cte("lanes", recursive=True)
    )
    above = job.alias("above")
    following = select(func.min(above.c.lane)).where(above.c.state == JobState.QUEUED, above.c.lane > lanes.c.lane)
    lanes = lanes.union_all(select(following.scalar_subquery()).where(lanes.c.lane.is_not(None)))
    one = job.alias("one")
    is_due = or_(one.c.not_before.is_(None), one.c.not_before <= bindparam("now", type_=UtcDateTime))
    first = (
        select(one.c.id)
        .where(one.c.state == JobState.QUEUED, one.c.lane == lanes.c.lane, is_due, ~is_held(one.c.study_instance_uid))
        .order_by(one.c.rank, one.c.due_at, one.c.id)
        .limit(1)
    )
    heads = select(first.scalar_subquery().label("id")).where(lanes.c.lane.is_not(None)).subquery("heads")
    return select(job.c.id, job.c.lane).join(heads, job.c.id == heads.c.id).order_by(job.c.rank, job.c.due_at, job.c.id)


# Made once: to build a statement and find it in the cache costs as much as to execute it.
_HEADS: Final = _heads()
_BUSY: Final = select(job.c.lane, func.count()).where(job.c.state == RUNNING).group_by(job.c.lane)
_TAKE: Final = (
    update(job)
    .where(job.c.id == bindparam("taken"), job.c.state == JobState.QUEUED)
    .values(
        state=RUNNING,
        token=job.c.token + 1,
        attempts=job.c.attempts + 1,
        worker=bindparam("by"),
        lease_s=bindparam("for_s"),
        leased_until=bindparam("until"),
        started_at=bindparam("now"),
        not_before=None,
        reason=None,
    )
    .returning(job)
)
_BEGIN_ATTEMPT: Final = insert(attempt)


def claim_next(
    connection: Connection, worker: str, lease_s: float, engine_slots: Mapping[str, int], now: datetime
) -> Row[Any] | None:
    """Give the next job to `worker`; return its row, or None when nothing may run now."""
    while (job_id := _next(connection, engine_slots, now)) is not None:
        until = now + timedelta(seconds=lease_s)
        lease = {"taken": job_id, "by": worker, "for_s": lease_s, "until": until, "now": now}
        row = connection.execute(_TAKE, lease).first()
        if row is not None:  # else another has just taken it
            said = f"attempt {row.attempts} of {row.max_attempts}"
            add_event(connection, row.id, JobEvent.CLAIM, JobState.QUEUED, RUNNING, now, actor=worker, reason=said)
            begun = {"job_id": row.id, "token": row.token, "worker": worker, "started_at": now}
            connection.execute(_BEGIN_ATTEMPT, begun)
            return row
    return None


def _next(connection: Connection, engine_slots: Mapping[str, int], now: datetime) -> int | None:
    heads = [(int(row.id), Lane.parse(row.lane)) for row in connection.execute(_HEADS, {"now": now})]
    if not heads:
        return None
    paused = {(one.kind, one.name) for one in read_pauses(connection)}
    busy = _busy(connection) if engine_slots else Counter()
    for job_id, lane in heads:
        if ("plugin", lane.plugin) in paused or ("route", lane.route) in paused:
            continue
        if lane.engine in engine_slots and busy[lane.engine] >= engine_slots[lane.engine]:
            continue
        return job_id
    return None


def _busy(connection: Connection) -> Counter[str]:
    """Return how many jobs run on each engine, in all processes that share these records."""
    busy: Counter[str] = Counter()
    for lane, count in connection.execute(_BUSY):
        busy[Lane.parse(lane).engine] += count
    return busy
