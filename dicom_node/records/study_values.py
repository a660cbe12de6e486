"""What the records say about studies, as frozen values; and the spacing that rules ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Literal, TypeAlias

from dicom_node.ids import ProcessIdentity
from dicom_node.study import ArrivalEnd, DicomJson, Frame

StudyState: TypeAlias = Literal["receiving", "complete", "held", "purged"]

Plane: TypeAlias = Sequence[Sequence[float]]
"""[position, orientation] of one frame as the database keeps it: LPS, mm."""

SAME_POSITION_MM = 1e-3
"""Below any slice distance in use and above the rounding of a decimal string: such frames lie at one position."""

SAME_NORMAL_COSINE = 1 - 1e-4
"""Normals less than about 0.8 degrees apart are one orientation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """One line of `studies list`; counts leave our own results out."""

    study_instance_uid: str
    state: StudyState
    reason: str | None
    """Why it is held."""
    n_series: int
    n_instances: int
    first_received: datetime
    last_received: datetime
    decisions: int
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEvidence:
    """What completeness needs to know of one series."""

    series_instance_uid: str
    n_images: int
    last_received_at: datetime
    revision: int
    is_decided: bool
    """Routing has judged it as it stands."""
    was_decided: bool
    """Routing has judged it, as it stands or as it stood before."""
    is_forced: bool
    """An administrator said that it is complete as it stands."""
    calling_ae: str
    n_runs: int
    """Associations that brought it, one after the other."""
    longest_pause_s: float
    end: ArrivalEnd
    """Of the association that brought its latest instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAssociation:
    """An association that moved data of a study and has not been released."""

    id: str
    calling_ae: str
    owner: ProcessIdentity
    last_activity_at: datetime
    last_received_at: datetime
    """Of the study in question."""
    present_study_uid: str
    """The study that it moved most recently: having turned to another, it need not hold the former one open."""
    present_series_uid: str
    """The series of the study in question that it moved most recently; empty when it only repeated what was here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEvidence:
    """What completeness needs to know of a study that has undecided content."""

    study_instance_uid: str
    first_received_at: datetime
    last_received_at: datetime
    revision: int
    was_decided: bool
    """It was complete before, and what is new came since."""
    last_released_at: datetime | None
    """When an association that was released later last moved data of it, repeats included."""
    series: tuple[SeriesEvidence, ...]
    associations: tuple[LiveAssociation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """How a series of the past came."""

    n_runs: int
    longest_pause_s: float
    end: ArrivalEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesLayout:
    """Where the images of a series lie, and what its header says."""

    n_images: int
    planes: tuple[Plane, ...]
    """Of every frame of its current images."""
    header: DicomJson


def planes_of(frames: Sequence[Frame]) -> list[Plane]:
    """Return position and orientation of each frame, ready for JSON."""
    return [[list(frame.position_mm), list(frame.orientation)] for frame in frames]


def slice_spacing_mm(planes: Sequence[Plane]) -> float | None:
    """Return the median distance between neighbouring positions along the normal of the first plane, in mm.

    Planes of another orientation are left out, several at one position count once. None below two positions.
    """
    if not planes:
        return None
    normal = _normal(planes[0][1])
    along = sorted(
        _dot(position, normal)
        for position, orientation in planes
        if abs(_dot(_normal(orientation), normal)) >= SAME_NORMAL_COSINE
    )
    gaps = [after - before for before, after in pairwise(along) if after - before > SAME_POSITION_MM]
    return round(median(gaps), 4) if gaps else None


def _normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    ax, ay, az, bx, by, bz = orientation
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True))
