"""The words of DICOM that every stage shares: frozen values for instances, series, studies and frames.

Nothing here reads a file or knows a library. Headers travel as the DICOM JSON model (PS3.18 F.2): a mapping from
eight upper-case hexadecimal digits to ``{"vr": ..., "Value": [...]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

DicomJson: TypeAlias = Mapping[str, Mapping[str, Any]]
"""A data set without bulk data in the DICOM JSON model (PS3.18 F.2)."""

EQUIPMENT_MANUFACTURER = "DICOM Node"
"""Manufacturer of every object that we make, and of our item in its Contributing Equipment Sequence: by it our own
objects are recognised when a PACS forwards them back (ARCHITECTURE, decision 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image plane in patient space, of a classic instance or of an enhanced one.

    Positions and orientations are LPS, in mm (PS3.3 C.7.6.2.1.1).
    """

    sop_instance_uid: str
    frame_number: int
    """1-based; 1 for a single-frame instance."""
    position_mm: tuple[float, float, float]
    """Centre of the first voxel: Image Position (Patient)."""
    orientation: tuple[float, float, float, float, float, float]
    """Direction cosines along a row (increasing column), then down a column: Image Orientation (Patient)."""
    pixel_spacing_mm: tuple[float, float]
    """Distance between rows, distance between columns: Pixel Spacing, in DICOM's order."""
    rows: int
    columns: int
    frame_of_reference_uid: str | None
    stack: tuple[tuple[str, str], ...] = ()
    """Values that set this frame apart from others at the same position: (keyword, text), sorted; for example
    ``(("EchoTime", "4.9"), ("TemporalPositionIndex", "2"))``."""
    interpolated: bool = False
    """No image shows this slice: it lies between two that do, and no result may refer to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """What a rejection note takes back (IHE IOCM)."""

    code: str
    """Of the note's title, DCM."""
    reason: str
    references: tuple[tuple[str, str], ...]
    """(Study Instance UID, SOP Instance UID), sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceDescription:
    """What indexing keeps of one instance: identity, header and the values that rules and geometry need."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    patient_id: str
    """Without surrounding blanks; empty when absent."""
    is_image: bool
    """It has Rows and Columns and pixel data, or is a CT, MR or PET image that lacks them, and its SOP class is no SEG,
    presentation state, SR or the like."""
    made_by_us: bool
    """Our own equipment made it, so it never triggers a route (ARCHITECTURE, decision 3)."""
    n_frames: int
    header: DicomJson
    """The series' header: no bulk data, of Per-frame Functional Groups the first item only."""
    frames: tuple[Frame, ...]
    """Geometry of each frame; empty when the instance has none."""
    issuer_of_patient_id: str = ""
    """Who gave the Patient ID; empty when absent."""
    rejection: Rejection | None = None
    """None: it is no rejection note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMeta:
    """What is known of an instance before its first byte arrives: from negotiation and the command set."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    called_ae: str
    association: str | None
    """Identifier of the association's row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An instance that survives a power cut and waits to be shelved as a version of its own."""

    meta: InstanceMeta
    received_at: datetime
    path: Path
    """The file that holds its bytes: one of its own, or a segment of the journal."""
    offset: int
    """Where its content begins in that file: preamble, file meta information, data set."""
    size_bytes: int
    """Of the content."""
    record_offset: int | None
    """Where its record begins in the journal; None when it has a file of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FiledInstance:
    """One immutable version of an instance in the store."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    digest: str
    """SHA-256, hexadecimal, of the data set part: the bytes exactly as received, file meta information excluded."""
    path: Path
    size_bytes: int
    """Of the data set part."""
    calling_ae: str
    called_ae: str
    received_at: datetime
    association: str | None
    """Identifier of the association's row, None when found by the sweep."""
    is_new: bool = True
    """False when exactly these bytes were in the store already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedVersion:
    """One version of an instance that counts and is not ours: what a route without plugin forwards."""

    sop_instance_uid: str
    digest: str
    calling_ae: str
    """Who sent it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesView:
    """A series as rules see it."""

    series_instance_uid: str
    header: DicomJson
    n_images: int
    """Instances that are images and not ours."""
    n_instances: int
    calling_ae: str
    called_ae: str
    slice_spacing_mm: float | None
    """Median distance between neighbouring positions along the normal; None where there are no positions."""
    image_digests: tuple[tuple[str, str], ...]
    """(SOP Instance UID, digest) of its images, sorted: what a job's input digest is made of."""
    received: tuple[ReceivedVersion, ...] = ()
    """All that was received of it, images or not, ordered by SOP Instance UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A study as rules see it: only what was received, never our own results."""

    study_instance_uid: str
    series: tuple[SeriesView, ...]
    first_received: datetime
    last_received: datetime


ArrivalEnd: TypeAlias = Literal["released", "aborted", "orphaned", "open", "unknown"]
"""How the association that brought the last image of a series ended; "unknown" when there is no row of it."""

MOST_PAUSE_S: Final = 600.0
"""A longer pause is no habit of sending: what comes then is late, and reopens its series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """Who sent, and how: the row that completeness reads."""

    id: str
    calling_ae: str
    called_ae: str
    address: str
    peer: str
    opened_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """One file that a job reads: where it is and which version it is."""

    sop_instance_uid: str
    digest: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInput:
    """The exact list of versions that a job pinned, by input role of its plugin."""

    study_instance_uid: str
    roles: Mapping[str, tuple[SourceImage, ...]] = field(default_factory=dict)
