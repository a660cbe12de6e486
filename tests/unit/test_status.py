"""Claims on C-STORE statuses: stored is said by 0x0000 and the B-warnings alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.dimse import Verdict, classify, meaning


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x0000, Verdict.STORED),
        (0xB000, Verdict.STORED_WITH_WARNING),
        (0xB006, Verdict.STORED_WITH_WARNING),
        (0xB007, Verdict.STORED_WITH_WARNING),
        (None, Verdict.UNANSWERED),
        (0xA700, Verdict.REFUSED),
        (0xA7FF, Verdict.REFUSED),
        (0xA900, Verdict.REFUSED),
        (0xC000, Verdict.REFUSED),
        (0x0110, Verdict.REFUSED),
        (0x0111, Verdict.REFUSED),  # the peer may hold other content under this UID
        (0x0124, Verdict.REFUSED),
        (0x0122, Verdict.REFUSED_FOR_GOOD),
        (0x0118, Verdict.REFUSED_FOR_GOOD),
        (0xFF00, Verdict.REFUSED),  # pending has no place in C-STORE
        (0x0001, Verdict.REFUSED),
    ],
)
def test_verdict_of_a_status(status: int | None, expected: Verdict) -> None:
    """Each status has one verdict."""
    assert expected == classify(status)


@given(st.integers(min_value=1, max_value=0xFFFF))
def test_nothing_but_success_and_warnings_is_stored(status: int) -> None:
    """No status outside 0x0000 and 0xBxxx counts as arrival."""
    is_stored = classify(status) in {Verdict.STORED, Verdict.STORED_WITH_WARNING}
    assert (status >> 12 == 0xB) == is_stored


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0xA701, "refused: out of resources (0xA701)"),
        (0xC123, "cannot understand (0xC123)"),
        (0xB006, "stored, but data elements were discarded (0xB006)"),
        (0x0111, "the peer holds another instance of this UID (0x0111)"),
        (0x9999, "a status without a name (0x9999)"),
    ],
)
def test_meaning_in_words(status: int, expected: str) -> None:
    """An administrator reads words and the code."""
    assert expected == meaning(status)
