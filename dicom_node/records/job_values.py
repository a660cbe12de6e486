"""What the records say about jobs, results and deliveries, as frozen values, and how a pinned input becomes JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.study import JobInput, SourceImage

Priority: TypeAlias = Literal["stat", "high", "routine"]

FORWARD: Final = "(forward)"
"""In place of a plugin: the job's results are the received instances that it names. No plugin can be called so."""
FORWARDED_KIND: Final = "instance"
"""Kind of a delivery that forwards what was received."""

PRIORITY_RANK: Final[Mapping[str, int]] = {"stat": 0, "high": 1, "routine": 2}
"""What is claimed first."""

TARGET_S: Final[Mapping[str, float]] = {"stat": 300.0, "high": 900.0, "routine": 3600.0}
"""From the last image to the result, where the route states none: every job has a deadline, so that work with a stated
one never keeps the rest waiting for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """Work that a route asks for."""

    route: str
    plugin: str
    plugin_version: str
    input: JobInput
    """The exact versions to read."""
    input_digest: str
    """Of those versions; with plugin, version and parameters it says whether this work exists already."""
    series_instance_uid: str | None = None
    """The series that it reads; a later job of the plugin on the same one supersedes it. None: several, nothing is."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    destinations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a destination -> kinds of result that it takes ("sr", "seg")."""
    priority: Priority = "routine"
    target_s: float | None = None
    """From the last image to the result; None: TARGET_S of the priority."""
    engine: str = "onnxruntime"
    """The runtime that it takes a slot of."""
    result_roles: tuple[str, ...] = ()
    """What UIDs are allocated for, for example "seg.instance"; see `ids.derived_uid`."""
    max_attempts: int = 3
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob:
    """A job and the right to work on it until the lease ends; `id` and `token` sign every later write."""

    id: int
    token: int
    attempt: int
    """1-based since it was queued by hand last."""
    max_attempts: int
    study_instance_uid: str
    series_instance_uid: str | None
    route: str
    plugin: str
    plugin_version: str
    parameters: Mapping[str, Any]
    pinned: Mapping[str, Any]
    """`input` as its row keeps it: a claim does not wait for a path of each image."""
    input_digest: str
    config_digest: str
    generation: int
    uid_root: str
    result_uids: Mapping[str, str]
    destinations: Mapping[str, tuple[str, ...]]
    queued_at: datetime
    leased_until: datetime

    @property
    def input(self) -> JobInput:
        """The exact list of versions that it reads."""
        return input_from_json(self.pinned)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewResult:
    """A result object whose bytes are durable already."""

    kind: str
    """"seg" or "sr": what a destination's profile chooses by."""
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: Path
    digest: str
    """SHA-256, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One line of `jobs list`."""

    id: int
    plugin: str
    plugin_version: str
    route: str
    study_instance_uid: str
    series_instance_uid: str | None
    state: JobState
    priority: Priority
    due_at: datetime
    """When the result is wanted: within a priority the nearest is claimed first."""
    attempts: int
    generation: int
    superseded_by: int | None
    flag: str | None
    """Why its results are not to be relied on."""
    outcome: str | None
    engine: str | None
    reason: str | None
    received_at: datetime
    """Of its last image."""
    queued_at: datetime
    started_at: datetime | None
    filed_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEventRow:
    """One thing that happened to a job."""

    event: str
    """A lifecycle.JobEvent; or "enqueue", "priority", "delivery_hold", "delivery_skip", "delivery_retry"."""
    from_state: str | None
    to_state: str
    actor: str
    """A worker, an account, or the part of the node that acted."""
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One try at a job."""

    token: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    """The event that ended it; None while it runs."""
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One result object."""

    id: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: Path
    digest: str
    filed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One line of `deliveries list`."""

    id: int
    job_id: int
    study_instance_uid: str
    kind: str
    sop_instance_uid: str
    destination: str
    state: DeliveryState
    attempts: int
    refusals: int
    status: int | None
    reason: str | None
    not_before: datetime | None
    queued_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedDelivery:
    """A delivery and the right to send it until the lease ends."""

    id: int
    token: int
    job_id: int
    destination: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    path: Path
    digest: str
    attempt: int
    """1-based."""
    refusals: int
    """Earlier attempts that the destination answered, but not with success."""
    leased_until: datetime
    study_instance_uid: str
    is_variant: bool
    """It has the identity that this destination knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetail:
    """Everything that is recorded of one job."""

    job: JobRow
    parameters: Mapping[str, Any]
    input: JobInput
    input_digest: str
    config_digest: str
    result_uids: Mapping[str, str]
    destinations: Mapping[str, tuple[str, ...]]
    events: tuple[JobEventRow, ...]
    attempts: tuple[AttemptRow, ...]
    results: tuple[ResultRow, ...]
    deliveries: tuple[DeliveryRow, ...]


def result_values(job_id: int, one: NewResult, now: datetime) -> dict[str, Any]:
    """Return the columns of a result that is filed now."""
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


def digest_of(parameters: Mapping[str, Any]) -> str:
    """Return the SHA-256 of parameters, the same for the same content in any order."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()


def input_to_json(pinned: JobInput) -> dict[str, Any]:
    """Return the pinned input, ready for a JSON column."""
    return {
        "study_instance_uid": pinned.study_instance_uid,
        "roles": {
            role: [[image.sop_instance_uid, image.digest, str(image.path)] for image in images]
            for role, images in pinned.roles.items()
        },
    }


def input_from_json(value: Mapping[str, Any]) -> JobInput:
    """Return the pinned input that a JSON column holds."""
    return JobInput(
        study_instance_uid=value["study_instance_uid"],
        roles={
            role: tuple(
                SourceImage(sop_instance_uid=uid, digest=digest, path=Path(path)) for uid, digest, path in images
            )
            for role, images in value["roles"].items()
        },
    )


def destinations_from_json(value: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the destinations that a JSON column holds."""
    return {name: tuple(kinds) for name, kinds in value.items()}
