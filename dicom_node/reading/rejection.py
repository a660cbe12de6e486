"""Rejection notes: Key Object Selection documents by which somebody takes instances back (IHE IOCM). Pure.

A note is told by its title; what it rejects is its Current Requested Procedure Evidence Sequence. Other key object
selections (for referring provider, for teaching) reject nothing.

Sources: DICOM PS3.3 A.35.4 and C.17.6.2 (KOS), PS3.16 CID 7010 and 7011; IHE RAD TF-2 4.66 (Rejection Note Stored).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from dicom_node.study import DicomJson, Rejection

KEY_OBJECT_SELECTION: Final = "1.2.840.10008.5.1.4.1.1.88.59"

TITLES: Final[Mapping[str, str]] = {
    "113001": "rejected for quality reasons",
    "113037": "rejected for patient safety reasons",
    "113038": "rejected: incorrect modality worklist entry",
    "113039": "given up: its data retention policy expired",
}
"""Code value (DCM) of a note's title -> in words."""

_CONCEPT_NAME, _CODE, _SCHEME = "0040A043", "00080100", "00080102"
_EVIDENCE, _SERIES, _SOPS = "0040A375", "00081115", "00081199"
_STUDY_UID, _SOP_UID = "0020000D", "00081155"


def rejection_of(header: DicomJson) -> Rejection | None:
    """Return what a key object selection rejects; None when it is no rejection note, or names nothing."""
    title = next(_items(header, _CONCEPT_NAME), {})
    code = _text(title, _CODE)
    if code not in TITLES or _text(title, _SCHEME) != "DCM":
        return None
    references = {
        (_text(study, _STUDY_UID), sop)
        for study in _items(header, _EVIDENCE)
        for series in _items(study, _SERIES)
        for one in _items(series, _SOPS)
        if (sop := _text(one, _SOP_UID))
    }
    found = tuple(sorted(reference for reference in references if reference[0]))
    return Rejection(code=code, reason=TITLES[code], references=found) if found else None


def _items(header: DicomJson, tag: str) -> Iterator[DicomJson]:
    for item in _values(header, tag):
        if isinstance(item, Mapping):
            yield item


def _text(header: DicomJson, tag: str) -> str:
    values = _values(header, tag)
    return str(values[0]).strip() if values else ""


def _values(header: DicomJson, tag: str) -> list[Any]:
    values = header.get(tag, {}).get("Value", [])
    return values if isinstance(values, list) else []
