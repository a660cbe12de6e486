"""The statuses of C-STORE: what each means and what a sender makes of it. Pure.

Sources: DICOM PS3.4 Table B.2-1 (storage), PS3.7 Annex C (general statuses).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

SUCCESS: Final = 0x0000

PENDING: Final = frozenset({0xFF00, 0xFF01})
"""PS3.4 Table C.4-1: of C-FIND, another answer follows; FF01 says that some optional keys were not supported."""

# PS3.4 Table B.2-1
OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000

# PS3.7 Annex C
PROCESSING_FAILURE: Final = 0x0110
DUPLICATE_SOP_INSTANCE: Final = 0x0111
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
NOT_AUTHORIZED: Final = 0x0124

_MEANINGS: Final[dict[int, str]] = {
    SUCCESS: "success",
    # PS3.4 Table B.2-1, warnings: the instance is stored
    0xB000: "stored, but data elements were coerced",
    0xB006: "stored, but data elements were discarded",
    0xB007: "stored, but the data set does not match its SOP class",
    # PS3.7 Annex C, in the order of their codes
    0x0105: "no such attribute",
    0x0106: "invalid attribute value",
    0x0107: "attribute list error",
    PROCESSING_FAILURE: "processing failure",
    DUPLICATE_SOP_INSTANCE: "the peer holds another instance of this UID",
    0x0112: "no such SOP instance",
    0x0115: "invalid argument value",
    0x0116: "attribute value out of range",
    0x0117: "invalid SOP instance UID",
    0x0118: "no such SOP class",
    0x0119: "class and instance do not go together",
    0x0120: "missing attribute",
    0x0121: "missing attribute value",
    SOP_CLASS_NOT_SUPPORTED: "SOP class not supported",
    NOT_AUTHORIZED: "not authorised",
    0x0210: "duplicate invocation",
    0x0211: "unrecognised operation",
    0x0212: "mistyped argument",
    0x0213: "resource limitation",
}
_RANGES: Final[tuple[tuple[int, int, str], ...]] = (
    # PS3.4 Table B.2-1, failures
    (0xA700, 0xA7FF, "refused: out of resources"),
    (0xA900, 0xA9FF, "data set does not match its SOP class"),
    (0xC000, 0xCFFF, "cannot understand"),
    (0xB000, 0xBFFF, "stored, with a warning"),
)


class Verdict(StrEnum):
    """What a status means for the object that was sent."""

    STORED = "stored"
    STORED_WITH_WARNING = "stored_with_warning"
    """The peer keeps it, and said what it changed: recorded."""
    UNANSWERED = "unanswered"
    """No status came: whether it was stored is unknown; the same UID may be sent again for ever."""
    REFUSED = "refused"
    """The peer answered that it does not keep it; another time it may."""
    REFUSED_FOR_GOOD = "refused_for_good"
    """It will never take this object as it is."""


_FOR_GOOD: Final = frozenset({0x0118, SOP_CLASS_NOT_SUPPORTED})


def classify(status: int | None) -> Verdict:
    """Return what the status of a C-STORE response means for the sender; None stands for no response.

    Stored is 0x0000 and the B-warnings of PS3.4 Table B.2-1, and nothing else: in particular not 0x0111, for the peer
    may hold other content under the UID.
    """
    if status is None:
        return Verdict.UNANSWERED
    if status == SUCCESS:
        return Verdict.STORED
    if 0xB000 <= status <= 0xBFFF:
        return Verdict.STORED_WITH_WARNING
    return Verdict.REFUSED_FOR_GOOD if status in _FOR_GOOD else Verdict.REFUSED


def meaning(status: int) -> str:
    """Return a status in words, with its code: `cannot understand (0xC001)`."""
    words = _MEANINGS.get(status)
    if words is None:
        words = next((text for low, high, text in _RANGES if low <= status <= high), "a status without a name")
    return f"{words} (0x{status:04X})"
