"""One instance -> what indexing keeps of it: from a file, or from the bytes of one.

Every instance that is received comes through here, so the cost counts: `head` finds the few values that are asked for,
the library parses only what is written strangely. The whole header becomes JSON when somebody asks for it, which is
once in a series.

Sources: DICOM PS3.3 C.12.1 (SOP Common), C.12.1.1.5 (Contributing Equipment); PS3.4 B.5 (storage classes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom.dataset import Dataset

from dicom_node.errors import UndecodableError
from dicom_node.reading.enhanced import frames_of
from dicom_node.reading.head import OddHeadError, find_head
from dicom_node.reading.header import (
    DEFER_BYTES,
    Attributes,
    PixelElement,
    header_json,
    integer,
    items,
    parse,
    quiet,
    text,
)
from dicom_node.reading.rejection import KEY_OBJECT_SELECTION, rejection_of
from dicom_node.study import EQUIPMENT_MANUFACTURER, DicomJson, InstanceDescription

_NO_IMAGE_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{suffix}"
    for suffix in ("9.", "11.", "30", "66", "66.", "67", "68.", "88.", "104.", "481.2", "481.3", "481.5")
)
"""Waveforms, presentation states, parametric maps, segmentations and other raw or derived objects, real world values,
surfaces, reports, encapsulated documents, radiotherapy doses, structures and plans: with a final dot the whole family
is meant (PS3.4 B.5). They may hold pixel data and still are no source of one."""
_SLICE_CLASSES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{suffix}"
    for suffix in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "128.1", "130")
)
"""CT, MR and PET images are images without their pixels too: one that lost them must not make its series a slice
shorter, which nobody would see at its end. The series is then refused when it is read."""

_FIRST_BYTES: Final = (1 << 16, 1 << 18, 1 << 22)
"""How much of a file is looked at for its head, one after the other: most have 2 to 20 kB, those of enhanced
objects megabytes; a longer one is the library's, which leaves large values in the file."""
_SEQUENCES: Final = (
    "ContributingEquipmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DetectorInformationSequence",
)
"""What is asked for inside sequences is parsed by the library, remarks and all."""
_LARGEST_WAITING_BYTES: Final = 1 << 18
"""Of a larger head the JSON is made at once: hundreds of descriptions wait for their rows together."""


def describe(path: Path) -> InstanceDescription:
    """Return what a file is, from its header alone.

    Raises
    ------
    UndecodableError
        When the file cannot be parsed or lacks a Study, Series or SOP Instance UID.
    OSError
        When the file cannot be opened or read.
    """
    return _with_identity(describe_any(path))


def describe_bytes(content: bytes | memoryview) -> InstanceDescription:
    """Return what `describe` returns of a file with this content; nothing of it is kept but a copy of its head.

    Raises
    ------
    UndecodableError
        As `describe` does.
    """
    return _with_identity(_describe(lambda size: bytes(content[:size]), lambda: parse(BytesIO(content))))


def describe_any(path: Path) -> InstanceDescription:
    """Return what `describe` returns, with empty UIDs where the file has none.

    Raises
    ------
    UndecodableError
        When the file cannot be parsed.
    OSError
        When the file cannot be opened or read.
    """
    with path.open("rb") as file:
        return _describe(lambda size: os.pread(file.fileno(), size, 0), lambda: parse(file, defer_bytes=DEFER_BYTES))


def _describe(
    beginning: Callable[[int], bytes], by_library: Callable[[], tuple[Dataset, str, PixelElement | None]]
) -> InstanceDescription:
    """Return what a file is, given its first bytes, so many as are asked for, or the library's view of it."""
    try:
        for size in _FIRST_BYTES:
            content = beginning(size)
            head = find_head(content, is_whole=len(content) < size)
            if head is not None:
                with quiet() if any(keyword in head for keyword in _SEQUENCES) else nullcontext():
                    header = HeaderOnDemand(head.without_bulk())
                    return _description(head, head.transfer_syntax_uid, head.has_pixels, header)
    except OddHeadError:
        pass
    dataset, transfer_syntax_uid, pixels = by_library()
    with quiet():
        return _description(dataset, transfer_syntax_uid, pixels is not None, header_json(dataset))


def _description(
    values: Attributes, transfer_syntax_uid: str, has_pixels: bool, header: DicomJson
) -> InstanceDescription:
    sop_class_uid = text(values, "SOPClassUID")
    is_image = _is_image(values, sop_class_uid) and (has_pixels or sop_class_uid in _SLICE_CLASSES)
    return InstanceDescription(
        study_instance_uid=text(values, "StudyInstanceUID"),
        series_instance_uid=text(values, "SeriesInstanceUID"),
        sop_instance_uid=text(values, "SOPInstanceUID"),
        sop_class_uid=sop_class_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        patient_id=text(values, "PatientID"),
        issuer_of_patient_id=text(values, "IssuerOfPatientID"),
        is_image=is_image,
        made_by_us=_made_by_us(values),
        n_frames=(integer(values, "NumberOfFrames") or 1) if has_pixels or is_image else 0,
        header=header,
        rejection=rejection_of(header) if sop_class_uid == KEY_OBJECT_SELECTION else None,
        frames=frames_of(values) if is_image else (),
    )


def _is_image(values: Attributes, sop_class_uid: str) -> bool:
    if not integer(values, "Rows") or not integer(values, "Columns"):
        return False
    return not any(
        sop_class_uid.startswith(name) if name.endswith(".") else sop_class_uid == name for name in _NO_IMAGE_CLASSES
    )


def _made_by_us(values: Attributes) -> bool:
    makers = [text(values, "Manufacturer")]
    makers += [text(item, "Manufacturer") for item in items(values, "ContributingEquipmentSequence")]
    return EQUIPMENT_MANUFACTURER in makers


def _with_identity(description: InstanceDescription) -> InstanceDescription:
    for keyword, uid in (
        ("Study Instance UID", description.study_instance_uid),
        ("Series Instance UID", description.series_instance_uid),
        ("SOP Instance UID", description.sop_instance_uid),
        ("SOP Class UID", description.sop_class_uid),
    ):
        if not uid:
            raise UndecodableError(f"the instance has no {keyword}")
    return description


class HeaderOnDemand(Mapping[str, Mapping[str, Any]]):
    """A header in the DICOM JSON model that is made of its bytes when it is first looked at.

    Equal to a dict with the same entries; what does not parse is empty, since nobody could be told of it any more.
    """

    __slots__ = ("_head", "_made")

    def __init__(self, head: bytes) -> None:
        """`head`: a DICOM file without its pixels, as `Head.without_bulk` gives it."""
        self._head = head
        self._made: DicomJson | None = None
        if len(head) > _LARGEST_WAITING_BYTES:
            self._json()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are kept to make the header of; 0 once it is made."""
        return len(self._head)

    def __getitem__(self, tag: str) -> Mapping[str, Any]:
        return self._json()[tag]

    def __iter__(self) -> Iterator[str]:
        return iter(self._json())

    def __len__(self) -> int:
        return len(self._json())

    def _json(self) -> DicomJson:
        if self._made is None:
            try:
                self._made = header_json(parse(BytesIO(self._head))[0])
            except UndecodableError:
                self._made = {}
            self._head = b""
        return self._made
