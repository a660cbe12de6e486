"""Completeness on recorded schedules: nothing closes early where anything tells, and docs/completeness.md says so."""

from __future__ import annotations

import pytest

from tests.integration.arrivals import CASES, DOCUMENT, UNTOLD, Case, line_of, play, table

QUICK = (
    "one association, three series",
    "3 associations, a series each, pauses of 120 s",
    "a series cut into 3 associations, pauses of 30 s; the scanner counts its images",
    "two studies shuffled",
    "ten slices of a series 20 minutes late",
    "a truncated end: aborted after 40 of 60, sent again after 45 s",
    "slices missing in between; they come after 60 s",
    "a stalled series: 100 s of silence on an open association",
    "kill -9 of the receiver in mid-study; the sender comes again after 40 s",
)


@pytest.mark.parametrize("case", [case for case in CASES if case.name in QUICK], ids=lambda case: case.name)
def test_nothing_closes_early(case: Case) -> None:
    """The schedule decides each series once, behind its last image, as the document says."""
    outcome = play(case)
    assert line_of(case, outcome) in DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert 0 == outcome.n_early(case)
    assert all(wait > 0 for wait in outcome.waits(case))


def test_quick_cases_are_cases() -> None:
    """A case that was renamed is not lost."""
    assert set(QUICK) <= {case.name for case in CASES}


@pytest.mark.long
def test_document_is_what_is_measured() -> None:
    """All schedules, early closings where nothing tells included."""
    assert DOCUMENT.read_text(encoding="utf-8") == table()


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case.name not in QUICK], ids=lambda case: case.name)
def test_nothing_closes_early_in_long_schedules(case: Case) -> None:
    """The same of what takes long to play."""
    assert 0 == play(case).n_early(case)


def test_what_nothing_tells_is_read_again() -> None:
    """A series that was decided too early is decided again with all of its images."""
    outcome = play(UNTOLD[0])
    assert 1 == outcome.n_early(UNTOLD[0])
    (images,) = outcome.images.values()
    assert outcome.starts[-1].at > images[-1]
