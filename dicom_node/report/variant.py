"""Results as a destination must have them when it knows the study under another patient or order. Pure.

A variant is an object of its own: every UID that our results gave each other is derived anew, so that no UID has two
contents, and its SR points at its SEG. What was changed stands in its Original Attributes Sequence.

Sources: DICOM PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.12.1.1.9 (Original Attributes).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.ids import derived_uid

ADOPTED: Final = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
)
"""What results take over from a destination."""
_MUST_AGREE: Final = {"PatientBirthDate": "another date of birth", "PatientSex": "another sex"}
"""What tells that the destination means another person; names and identifiers differ for good reasons."""


Answers: TypeAlias = Sequence[Dataset]
"""What a destination says to a query for a study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The patient and order under which a destination knows a study."""

    values: Mapping[str, str]
    """Keyword -> text; without those that it did not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotKnown:
    """Why nothing can be adopted."""

    reason: str
    """In words, without a patient's attribute."""
    may_pass: bool = False
    """The study may still be on its way to the destination."""


def known_identity(answers: Answers, study_instance_uid: str) -> Known | NotKnown:
    """Return what a destination's answers to a query for a study say of its patient and order."""
    values = {_pairs(answer) for answer in answers if _text(answer, "StudyInstanceUID") == study_instance_uid}
    if len(answers) and not values:
        return NotKnown(reason="it answers with another study than the one that was asked for")
    if not values:
        return NotKnown(reason="it does not know the study", may_pass=True)
    if len(values) > 1:
        return NotKnown(reason=f"it knows the study under {len(values)} identities")
    known = dict(values.pop())
    if not known.get("PatientID"):
        return NotKnown(reason="it gives no Patient ID for the study")
    return Known(values=known)


def contradiction(content: bytes, known: Known) -> str | None:
    """Return why a result (a whole DICOM file) cannot be of the patient that a destination knows; None when it can."""
    ds = dcmread(io.BytesIO(content), stop_before_pixels=True)
    for keyword, words in _MUST_AGREE.items():
        ours, theirs = _text(ds, keyword), known.values.get(keyword, "")
        if ours and theirs and ours != theirs:
            return f"it knows the study's patient with {words}"
    return None


def make_variant(content: bytes, known: Known, destination: str, own_uids: Sequence[str], now: datetime) -> Dataset:
    """Return a result with the identity that a destination knows, under UIDs of its own.

    Parameters
    ----------
    content
        The filed result, a whole DICOM file.
    destination
        Its name: the UIDs of the variant derive from it, the same each time.
    own_uids
        SOP and Series Instance UIDs of all results of the job.
    now
        Written as the time of the change.
    """
    ds = dcmread(io.BytesIO(content))
    before = Dataset()
    for keyword in ADOPTED:
        if keyword in known.values and _text(ds, keyword) != known.values[keyword]:
            setattr(before, keyword, ds.get(keyword) or "")
            setattr(ds, keyword, known.values[keyword])
    if len(before):
        original = Dataset()
        original.SourceOfPreviousValues = ""
        original.AttributeModificationDateTime = f"{now:%Y%m%d%H%M%S.%f%z}"
        original.ModifyingSystem = "DICOM Node"
        original.ReasonForTheAttributeModification = "COERCE"
        original.ModifiedAttributesSequence = [before]
        ds.OriginalAttributesSequence = [*ds.get("OriginalAttributesSequence", []), original]
    names = {uid: derived_uid(uid, f"identity/{destination}") for uid in own_uids}
    _rename(ds, names)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _rename(ds: Dataset, names: Mapping[str, str]) -> None:
    for element in ds.iterall():
        if element.VR == "UI" and element.value:
            if isinstance(element.value, MultiValue):
                element.value = [names.get(str(uid), uid) for uid in element.value]
            else:
                element.value = names.get(str(element.value), element.value)


def _pairs(answer: Dataset) -> tuple[tuple[str, str], ...]:
    return tuple((keyword, text) for keyword in ADOPTED if (text := _text(answer, keyword)))


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value).strip()
