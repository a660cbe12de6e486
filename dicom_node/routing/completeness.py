"""Is everything here? The answer from evidence: images that stopped coming, and associations that still move data.

Pure. DICOM has no end-of-study message, and the two signs that exist are weak alone: a quiet time runs out in the pause
between two series, and an association may stay open all day. So a study or series is complete when it has been quiet
*and* nobody still moves data of it. `records` supplies the rows, `pipeline` asks again at `WaitUntil.at` or as soon as
the evidence changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from dicom_node.config.schema import Complete

IDLE_S: Final = 30.0
"""An association without network activity for this long holds nothing open; gateways keep them open all day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEvidence:
    """What is known of the arrival of one series."""

    series_instance_uid: str
    last_received_at: datetime
    """Its latest new instance; a repeat that changed nothing does not count."""
    n_instances: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationEvidence:
    """What is known of one association that brought data of the study."""

    id: str
    calling_ae: str
    is_open: bool
    """No release, abort or orphaning is recorded."""
    study_instance_uid: str
    """The study that it moved most recently."""
    series_instance_uid: str
    """The series that it moved most recently."""
    last_activity_at: datetime
    """The latest bytes on the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEvidence:
    """What is known of the arrival of one study."""

    study_instance_uid: str
    series: tuple[SeriesEvidence, ...]
    """At least one."""
    associations: tuple[AssociationEvidence, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IsComplete:
    """Nothing more is expected."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitUntil:
    """Something may still come."""

    at: datetime
    """When to ask again, unless the evidence changes before."""
    why: str


Completeness: TypeAlias = IsComplete | WaitUntil


def assess(
    evidence: StudyEvidence,
    now: datetime,
    complete: Complete,
    *,
    series_instance_uid: str | None = None,
    idle_s: float = IDLE_S,
) -> Completeness:
    """Return whether the study, or one series of it, is complete at `now`.

    Parameters
    ----------
    now
        Aware.
    complete
        Quiet time and cap, in seconds after the last instance.
    series_instance_uid
        The series to judge; None judges the study. An association that has gone on to another series no longer holds
        this one open.
    idle_s
        Silence after which an open association is taken for one that is only kept open.

    Raises
    ------
    ValueError
        When there is no evidence of the series, or none at all.
    """
    arrivals = [
        series.last_received_at
        for series in evidence.series
        if series_instance_uid in (None, series.series_instance_uid)
    ]
    if not arrivals:
        raise ValueError("nothing has arrived of this study or series")
    last = max(arrivals)
    quiet_until = last + timedelta(seconds=complete.quiet_s)
    moving = [
        association
        for association in evidence.associations
        if _is_moving(association, evidence.study_instance_uid, series_instance_uid, now, idle_s)
    ]
    caps = [] if complete.max_wait_s is None else [last + timedelta(seconds=complete.max_wait_s)]
    if any(now >= cap for cap in caps):
        return IsComplete(why=f"no image for {complete.max_wait_s:g} s, the longest wait (max_wait_s)")
    if now < quiet_until:
        return WaitUntil(at=min([quiet_until, *caps]), why=f"the last image is not {complete.quiet_s:g} s old")
    if moving:
        silent_at = max(association.last_activity_at for association in moving) + timedelta(seconds=idle_s)
        names = ", ".join(sorted({association.calling_ae for association in moving}))
        return WaitUntil(at=min([silent_at, *caps]), why=f"an association of {names} still moves data")
    return IsComplete(why=f"no image for {complete.quiet_s:g} s, and no association moves data")


def _is_moving(
    association: AssociationEvidence,
    study_instance_uid: str,
    series_instance_uid: str | None,
    now: datetime,
    idle_s: float,
) -> bool:
    return (
        association.is_open
        and association.study_instance_uid == study_instance_uid
        and series_instance_uid in (None, association.series_instance_uid)
        and now < association.last_activity_at + timedelta(seconds=idle_s)
    )
