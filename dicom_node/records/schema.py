"""The tables of the records: what an administrator can read with sqlite3 or psql.

Stands at the bottom of `records`: names and columns only, no query and no dialect. A change here needs a revision in
`migrations/versions`; a test compares the two. The views are not part of any revision: `Database.migrate` makes them
anew each time. No attribute of a patient stands here except Patient ID and issuer of studies and instances, and what a
series' header holds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC with microseconds; a naive one is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - fixed
        """Return `value` in UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the records keep aware times only, for example datetime.now(UTC)")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - fixed
        """Return `value` aware: SQLite keeps no zone, and what was written is UTC."""
        if value is None:
            return None
        time: datetime = value
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

study = Table(
    "study",
    metadata,
    Column("study_instance_uid", Text, primary_key=True),
    Column("patient_id", Text, nullable=False),
    Column("state", Text, nullable=False),  # receiving, complete, held, purged
    Column("first_received", UtcDateTime, nullable=False),
    Column("last_received", UtcDateTime, nullable=False),  # of what is not ours
    Column("revision", Integer, nullable=False),  # raised by each new version that is not ours
    Column("decided_revision", Integer, nullable=False),  # newest revision that routing has judged
    Column("reason", Text),  # why it is held
    Column("rate_guard", Text),  # held: its sender exceeded its rate; released: an administrator let it through
    Column("identities", JSON),  # [Patient ID, issuer] of each that an administrator said to be one patient
    Column("purged_at", UtcDateTime),  # of the last purge; what came again since counts anew
    Column("unlinked_at", UtcDateTime),  # when the last of its files was gone
    Column("forced_revision", Integer, nullable=False, server_default="0"),  # complete as it stood: an administrator
    Index(None, "state"),
    Index(None, "state", "last_received"),
    Index(None, "first_received"),  # how many came within an hour
)

series = Table(
    "series",
    metadata,
    Column("study_instance_uid", Text, ForeignKey("study.study_instance_uid"), nullable=False),
    Column("series_instance_uid", Text, nullable=False),
    Column("header", JSON, nullable=False),  # DICOM JSON of one image, no bulk data
    Column("header_sop_instance_uid", Text, nullable=False),  # whose header it is
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("n_images", Integer, nullable=False),  # current versions, ours left out
    Column("n_instances", Integer, nullable=False),
    Column("first_received", UtcDateTime, nullable=False),
    Column("last_received", UtcDateTime, nullable=False),
    Column("revision", Integer, nullable=False),  # the study's revision at this series' last change
    Column("decided_revision", Integer, nullable=False),
    Column("last_association", Text),  # the one that brought its latest instance
    Column("n_runs", Integer, nullable=False, server_default="0"),  # times that an association turned to it
    Column("longest_pause_s", Float, nullable=False, server_default="0"),  # between two instances, late ones left out
    PrimaryKeyConstraint("study_instance_uid", "series_instance_uid"),
    Index(None, "calling_ae", "last_received"),
)

instance = Table(
    "instance",
    metadata,
    Column("study_instance_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("digest", Text, nullable=False),  # SHA-256 of the data set part: one row per version
    Column("series_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("association", Text),  # no foreign key: an instance is indexed even if that row could not be written
    Column("received_at", UtcDateTime, nullable=False),
    Column("is_current", Boolean, nullable=False),  # the newest accepted version
    Column("is_image", Boolean, nullable=False),
    Column("made_by_us", Boolean, nullable=False),
    Column("n_frames", Integer, nullable=False),
    Column("planes", JSON, nullable=False),  # per frame [position, orientation], LPS, mm
    Column("patient_id", Text, nullable=False, server_default=""),
    Column("issuer_of_patient_id", Text, nullable=False, server_default=""),
    Column("withdrawn", Text),  # why it does not count any more: a rejection note, or another patient's
    Column("purged_at", UtcDateTime),  # when its file was given up; the row stays
    Column("content_digest", Text),  # of decoded pixels and geometry, once another version came; NULL: not needed
    PrimaryKeyConstraint("study_instance_uid", "sop_instance_uid", "digest"),
    ForeignKeyConstraint(
        ["study_instance_uid", "series_instance_uid"], ["series.study_instance_uid", "series.series_instance_uid"]
    ),
    Index(None, "study_instance_uid", "series_instance_uid"),
    Index(None, "sop_instance_uid"),
)

association = Table(
    "association",
    metadata,
    Column("id", Text, primary_key=True),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("last_activity_at", UtcDateTime, nullable=False),
    Column("released_at", UtcDateTime),  # written after all its instance rows
    Column("how", Text),  # released, aborted, orphaned
    Column("last_series", Text),  # study and series of the newest instance that it brought, repeats included
    Column("owner_boot_id", Text, nullable=False),
    Column("owner_pid", Integer, nullable=False),
    Column("owner_start_ticks", Integer, nullable=False),
    Index(None, "released_at"),
)

association_study = Table(
    "association_study",
    metadata,
    Column("association", Text, nullable=False),
    Column("study_instance_uid", Text, ForeignKey("study.study_instance_uid"), nullable=False),
    Column("last_received_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("association", "study_instance_uid"),
    Index(None, "study_instance_uid"),
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_instance_uid", Text, ForeignKey("study.study_instance_uid"), nullable=False),
    Column("series_instance_uid", Text),  # the series that it reads; NULL: several
    Column("route", Text, nullable=False),  # the first rule that asked for it
    Column("plugin", Text, nullable=False),  # "(forward)": none, the received instances themselves are delivered
    Column("plugin_version", Text, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("parameters_digest", Text, nullable=False),
    Column("config_digest", Text, nullable=False),
    Column("input", JSON, nullable=False),  # by role: [SOP Instance UID, digest, path] of every image
    Column("input_digest", Text, nullable=False),
    Column("generation", Integer, nullable=False),  # raised by `reprocess`
    Column("superseded_by", Integer, ForeignKey("job.id")),
    Column("flag", Text),  # why its results are not to be relied on: they read what was withdrawn
    Column("uid_root", Text, nullable=False),
    Column("result_uids", JSON, nullable=False),  # role of a UID -> UID
    Column("destinations", JSON, nullable=False),  # name -> kinds of result it takes
    Column("priority", Text, nullable=False),  # stat, high, routine
    Column(
        "rank", Integer, nullable=False
    ),  # of the priority: 0 stat, 1 high, 2 routine; the queue's order is an index
    Column("target_s", Float),  # from the last image to the result, as the route states it
    Column("due_at", UtcDateTime, nullable=False),  # within a priority the nearest is claimed first
    Column("lane", Text, nullable=False),  # "engine/plugin/route": what is paused, or full, together
    Column("state", Text, nullable=False),  # lifecycle.JobState
    Column("reason", Text),  # why it waits, was withheld, refused, failed, held or cancelled
    Column("attempts", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column(
        "worker_deaths", Integer, nullable=False
    ),  # processes that died while they had it, since it was queued by hand
    Column("not_before", UtcDateTime),
    Column("token", Integer, nullable=False),  # raised at each claim: fences late writes of former owners
    Column("worker", Text),
    Column("lease_s", Float),
    Column("leased_until", UtcDateTime),
    Column("outcome", Text),  # result, nothing_found
    Column("engine", Text),
    Column("duration_s", Float),  # of inference
    Column("received_at", UtcDateTime, nullable=False),  # of its last image
    Column("queued_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),  # of the latest attempt
    Column("filed_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    UniqueConstraint("plugin", "plugin_version", "parameters_digest", "input_digest", "generation"),
    Index(None, "state", "lane", "rank", "due_at", "id"),
    Index(None, "study_instance_uid"),
    sqlite_autoincrement=True,
)

job_event = Table(
    "job_event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    # lifecycle.JobEvent, or enqueue; priority, and delivery_hold, delivery_skip, delivery_retry, leave the state alone
    Column("event", Text, nullable=False),
    Column("from_state", Text),
    Column("to_state", Text, nullable=False),
    Column("actor", Text, nullable=False),  # a worker, an account, or the part of the node that acted
    Column("reason", Text, nullable=False),  # in words
    Column("at", UtcDateTime, nullable=False),
    Index(None, "job_id"),
    sqlite_autoincrement=True,
)

attempt = Table(
    "attempt",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("token", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("outcome", Text),  # the event that ended it
    Column("reason", Text),
    PrimaryKeyConstraint("job_id", "token"),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("kind", Text, nullable=False),  # seg, sr
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False, unique=True),  # never two contents under one name
    Column("series_instance_uid", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("filed_at", UtcDateTime, nullable=False),
    # "": for all; else a variant with the identity that this destination knows
    Column("destination", Text, nullable=False, server_default=""),
    Column("variant_of", Integer),  # the result that it was made of; no foreign key, SQLite could not add it in place
    Column("purged_at", UtcDateTime),  # when its file was given up; the row stays
    Column("unlinked_at", UtcDateTime),
    Index(None, "job_id"),
    sqlite_autoincrement=True,
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False),
    Column("result_id", Integer, ForeignKey("result.id")),  # NULL: a received instance is forwarded
    Column("instance_sop_uid", Text),  # the version that is forwarded, with the next; NULL: a result is sent
    Column("instance_digest", Text),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),  # lifecycle.DeliveryState
    Column("attempts", Integer, nullable=False),
    Column("refusals", Integer, nullable=False),  # attempts that the destination answered, but not with success
    Column("status", Integer),  # the last DIMSE status
    Column("reason", Text),  # the last answer or error in words
    Column("not_before", UtcDateTime),
    Column("token", Integer, nullable=False),
    Column("sender", Text),
    Column("lease_s", Float),
    Column("leased_until", UtcDateTime),
    Column("queued_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    UniqueConstraint("result_id", "destination"),
    UniqueConstraint("job_id", "instance_sop_uid", "instance_digest", "destination"),
    Index(None, "state", "destination", "id"),
    Index(None, "job_id"),
    sqlite_autoincrement=True,
)

decision = Table(
    "decision",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_instance_uid", Text, ForeignKey("study.study_instance_uid"), nullable=False),
    Column("series_instance_uid", Text, nullable=False),  # "": the study as a whole; NULLs would not be unique
    Column("route", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", Text),  # routing.Evidence: what decided that nothing more was to come
    Column("complete_because", Text),  # the same in words
    Column("config_digest", Text, nullable=False),
    Column("job_id", Integer, ForeignKey("job.id")),
    Column("decided_at", UtcDateTime, nullable=False),
    UniqueConstraint("study_instance_uid", "series_instance_uid", "route", "revision"),
    sqlite_autoincrement=True,
)

pause = Table(
    "pause",
    metadata,
    Column("kind", Text, nullable=False),  # plugin, route, destination
    Column("name", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("kind", "name"),
)

withdrawal = Table(
    "withdrawal",
    metadata,
    Column("study_instance_uid", Text, nullable=False),  # no foreign key: a note may come before what it rejects
    Column("sop_instance_uid", Text, nullable=False),
    Column("note_sop_instance_uid", Text, nullable=False),  # the rejection note; "": an administrator
    Column("code", Text, nullable=False),  # 113001, 113037, 113038, 113039 (DCM); "identity"
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("study_instance_uid", "sop_instance_uid", "note_sop_instance_uid"),
)

VIEWS: Final[dict[str, Callable[[Callable[[str, str], str]], str]]] = {
    "v_queue": lambda _seconds: (
        """
        SELECT job.id AS job_id, job.priority, job.due_at, job.state, job.plugin, job.route, job.study_instance_uid,
               job.attempts, job.queued_at, job.not_before, job.worker, job.leased_until,
               coalesce(
                   (SELECT min('paused: ' || pause.kind || ' ' || pause.name || ', ' || pause.reason) FROM pause
                    WHERE (job.state = 'queued' AND pause.kind = 'plugin' AND pause.name = job.plugin)
                       OR (job.state = 'queued' AND pause.kind = 'route' AND pause.name = job.route)
                       OR (job.state = 'delivering' AND pause.kind = 'destination' AND EXISTS (
                           SELECT 1 FROM delivery WHERE delivery.job_id = job.id AND delivery.state = 'queued'
                                                    AND delivery.destination = pause.name))),
                   job.reason) AS reason,
               (SELECT count(*) FROM delivery
                WHERE delivery.job_id = job.id AND delivery.state IN ('queued', 'sending', 'committing', 'held')
               ) AS open_deliveries
        FROM job
        WHERE job.state IN ('waiting', 'queued', 'running', 'held', 'delivering')
        ORDER BY job.rank, job.due_at, job.id"""
    ),
    "v_time_to_result": lambda seconds: (
        f"""
        SELECT job.id AS job_id, job.plugin, job.study_instance_uid, job.received_at, job.finished_at,
               {seconds("job.queued_at", "job.received_at")} AS until_queued_s,
               {seconds("job.started_at", "job.queued_at")} AS queued_s,
               {seconds("job.filed_at", "job.started_at")} AS inferring_s,
               {seconds("job.finished_at", "job.filed_at")} AS delivering_s,
               {seconds("job.finished_at", "job.received_at")} AS time_to_result_s
        FROM job
        WHERE job.state = 'done'
        ORDER BY job.id"""
    ),
}
"""SELECT of each view, given how the dialect writes the seconds between a later and an earlier time."""
