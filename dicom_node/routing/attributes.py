"""What a condition finds in a header: the values of one attribute of a DICOM JSON data set.

Pure. Enhanced objects keep many attributes in functional groups (PS3.3 C.7.6.16): a keyword that is not at the top
level is looked up in the Shared Functional Groups, then in the first item of the Per-frame ones, the shallowest first.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dicom_node.config.keywords import AE_TITLE_KEYWORDS, identifies_patient, tag_of
from dicom_node.config.schema import Condition
from dicom_node.study import DicomJson, SeriesView

SHARED_FUNCTIONAL_GROUPS: Final = "52009229"
PER_FRAME_FUNCTIONAL_GROUPS: Final = "52009230"


def values_of(condition: Condition, series: SeriesView) -> tuple[str, ...]:
    """Return the values of the condition's attribute as texts without surrounding blanks; empty when absent or empty.

    A person name is its alphabetic group; a sequence has no values of its own but ``"(sequence)"`` when it has items.
    """
    if condition.keyword in AE_TITLE_KEYWORDS:
        title = series.calling_ae if condition.keyword == "CallingAETitle" else series.called_ae
        return (title.strip(),) if title.strip() else ()
    return values_in(condition, series.header)


def values_in(condition: Condition, header: DicomJson) -> tuple[str, ...]:
    """Return the values that a header has of the condition's attribute; AE titles stand in no header."""
    tag = _tag(condition, header)
    return _texts(_find(header, tag)) if tag else ()


def text_of(keyword: str, header: DicomJson) -> str | None:
    """Return the first value of a keyword, None when it is absent or empty."""
    values = _texts(_find(header, tag_of(keyword)))
    return values[0] if values else None


def is_private_to_patient(condition: Condition) -> bool:
    """Return whether found values must not be written down: they identify a patient, or nobody knows what they are."""
    if condition.keyword:
        return identifies_patient(condition.keyword)
    return True


def _tag(condition: Condition, header: DicomJson) -> str | None:
    """Return the eight digits that the attribute has in this header, None when its private block is not reserved."""
    if condition.keyword:
        return tag_of(condition.keyword)
    group, element = str(condition.tag)[1:5].upper(), str(condition.tag)[6:10].upper()
    if condition.private_creator is None:
        return group + element
    # PS3.5 7.8.1: (gggg,00bb) with the creator's name reserves the elements (gggg,bb00) to (gggg,bbFF).
    for block in range(0x10, 0x100):
        if condition.private_creator.strip() in _texts(header.get(f"{group}00{block:02X}", {})):
            return f"{group}{block:02X}{element[2:]}"
    return None


def _find(header: DicomJson, tag: str) -> Mapping[str, Any]:
    if tag in header:
        return header[tag]
    for groups in (SHARED_FUNCTIONAL_GROUPS, PER_FRAME_FUNCTIONAL_GROUPS):
        level = _items(header.get(groups, {}))[:1]
        while level:
            for item in level:
                if tag in item:
                    return dict(item[tag])
            level = [inner for item in level for element in item.values() for inner in _items(element)]
    return {}


def _items(element: Mapping[str, Any]) -> list[DicomJson]:
    return [item for item in element.get("Value", ()) if element.get("vr") == "SQ" and item]


def _texts(element: Mapping[str, Any]) -> tuple[str, ...]:
    if "InlineBinary" in element:
        return tuple(_texts_of_unknown(element["InlineBinary"]))
    texts = (_text(value) for value in element.get("Value", ()) if value is not None)
    return tuple(text for text in texts if text)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value["Alphabetic"]).strip() if "Alphabetic" in value else "(sequence)"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip(" \0\t\r\n")


def _texts_of_unknown(encoded: str) -> Iterator[str]:
    """Yield the values of an element of unknown representation (private ones from Implicit VR) that is plain text."""
    try:
        text = base64.b64decode(encoded).decode("ascii").strip(" \0")
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    if not text.isprintable():
        return
    for value in text.split("\\"):
        if value.strip():
            yield value.strip()
