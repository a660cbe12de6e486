"""Why a rule took a study or series, or did not: one row per rule and evaluation, with the job that came of it.

`decide` is the hand-over from routing to the queue: decisions, jobs and "this revision is judged" are one transaction,
so that no study is judged without its jobs, and no job stands without its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from dicom_node.records.database import Database
from dicom_node.records.job_values import NewJob, input_from_json
from dicom_node.records.jobs import Jobs
from dicom_node.records.revisions import mark_decided, revision_of, state_of
from dicom_node.records.schema import decision, instance, job


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDecision:
    """What one rule said of a study or series."""

    route: str
    outcome: str
    """Routing's word, for example "matched" or "not_matched"."""
    reason: str
    job: NewJob | None = None
    """The work that it asks for."""
    more_jobs: tuple[NewJob, ...] = ()
    """Further work: what is forwarded to one destination may differ from what another gets."""
    evidence: str | None = None
    """Routing's word for what decided that nothing more was to come."""
    complete_because: str | None = None
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """What one rule said, and when, under which configuration."""

    study_instance_uid: str
    series_instance_uid: str | None
    """None: of the study as a whole."""
    route: str
    outcome: str
    reason: str
    revision: int
    evidence: str | None
    """What decided that nothing more was to come; None in rows of before it was kept."""
    complete_because: str | None
    config_digest: str
    job_id: int | None
    decided_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierWork:
    """What a rule had read of a series before."""

    input_digests: frozenset[str] = frozenset()
    """Of every job."""
    n_purged: int = 0
    """Images of its latest job that are no longer here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What `decide` wrote."""

    is_current: bool
    """False: more had come since that revision, or the study is held, and nothing was written; judge again."""
    jobs: tuple[tuple[int, bool], ...] = ()
    """(id, is new) of the jobs that were asked for, in the order of the decisions."""


class Decisions:
    """The aggregate of decisions."""

    def __init__(self, database: Database, jobs: Jobs) -> None:
        self._database = database
        self._clock = database.clock
        self._jobs = jobs

    def decide(
        self,
        study_uid: str,
        series_uid: str | None,
        revision: int,
        decisions: Sequence[NewDecision],
        *,
        config_digest: str,
        is_final: bool = True,
    ) -> Decided:
        """Write what the rules said of a study (`series_uid` None) or series as it stood at `revision`.

        Decisions, their jobs and the mark that this revision is judged are one transaction; nothing is written when
        the study or series has changed since. A repeated decision leaves the row that it finds. `is_final` False:
        other rules still have to speak, so the mark is not set.

        Raises
        ------
        NotFoundError
            When there is no such study or series.
        """
        with self._database.begin() as connection:
            if revision_of(connection, study_uid, series_uid) > revision or state_of(connection, study_uid) == "held":
                return Decided(is_current=False)
            jobs = []
            for one in decisions:
                job_id: int | None = None
                if one.job is not None:
                    asked = self._jobs.enqueue(one.job, config_digest=config_digest, connection=connection)
                    jobs.append(asked)
                    job_id = asked[0]
                    jobs += [
                        self._jobs.enqueue(other, config_digest=config_digest, connection=connection)
                        for other in one.more_jobs
                    ]
                self._record(connection, (study_uid, series_uid or "", one.route, revision), one, config_digest, job_id)
            if is_final:
                mark_decided(connection, study_uid, series_uid, revision)
        return Decided(is_current=True, jobs=tuple(jobs))

    def list(self, study_uid: str) -> tuple[DecisionRow, ...]:
        """Return the decisions about a study and its series, oldest first."""
        query = select(decision).where(decision.c.study_instance_uid == study_uid).order_by(decision.c.id)
        with self._database.read() as connection:
            return tuple(map(_row, connection.execute(query)))

    def earlier_work(self, study_uid: str, series_uid: str, route: str) -> EarlierWork:
        """Return what a rule had read of a series before, `reprocess` left out."""
        mine = (job.c.study_instance_uid == study_uid) & (job.c.series_instance_uid == series_uid)
        jobs = select(job.c.input, job.c.input_digest).where(mine, job.c.route == route, job.c.generation == 0)
        with self._database.read() as connection:
            rows = connection.execute(jobs.order_by(job.c.id)).all()
            if not rows:
                return EarlierWork()
            versions = connection.execute(
                select(
                    instance.c.sop_instance_uid, instance.c.digest, instance.c.purged_at, instance.c.is_current
                ).where(instance.c.study_instance_uid == study_uid)
            ).all()
        pinned = input_from_json(rows[-1].input)
        read = {(image.sop_instance_uid, image.digest) for images in pinned.roles.values() for image in images}
        here = {one.sop_instance_uid for one in versions if one.is_current and one.purged_at is None}
        purged = {(one.sop_instance_uid, one.digest) for one in versions if one.purged_at is not None}
        return EarlierWork(
            input_digests=frozenset(row.input_digest for row in rows),
            n_purged=sum(one in purged and one[0] not in here for one in read),
        )

    def _record(
        self,
        connection: Connection,
        key: tuple[str, str, str, int],
        new: NewDecision,
        config_digest: str,
        job_id: int | None,
    ) -> None:
        """Insert the decision, or let it replace the one of the same rule at the same revision."""
        study_uid, series_uid, route, revision = key
        here = (
            (decision.c.study_instance_uid == study_uid)
            & (decision.c.series_instance_uid == series_uid)
            & (decision.c.route == route)
            & (decision.c.revision == revision)
        )
        said = {"outcome": new.outcome, "reason": new.reason, "config_digest": config_digest, "job_id": job_id}
        row = connection.execute(select(decision).where(here).with_for_update()).first()
        if row is None:
            named = {"study_instance_uid": study_uid, "series_instance_uid": series_uid, "route": route}
            because = {"evidence": new.evidence, "complete_because": new.complete_because}
            connection.execute(
                insert(decision).values(**named, revision=revision, **said, **because, decided_at=self._clock.now())
            )
        elif any(getattr(row, name) != value for name, value in said.items()):
            connection.execute(update(decision).where(here).values(**said, decided_at=self._clock.now()))


def _row(row: Row[Any]) -> DecisionRow:
    return DecisionRow(
        study_instance_uid=row.study_instance_uid,
        series_instance_uid=row.series_instance_uid or None,
        route=row.route,
        outcome=row.outcome,
        reason=row.reason,
        revision=row.revision,
        evidence=row.evidence,
        complete_because=row.complete_because,
        config_digest=row.config_digest,
        job_id=row.job_id,
        decided_at=row.decided_at,
    )
