"""Habits of senders: learned from enough series, bounded, and not spoilt by one accident."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.routing import PastSeries, habit_of
from dicom_node.routing.habits import ENOUGH
from dicom_node.study import MOST_PAUSE_S

WHOLE = PastSeries(n_runs=1, longest_pause_s=0.2, end="released")
CUT = PastSeries(n_runs=3, longest_pause_s=120.0, end="released")
OPEN = PastSeries(n_runs=1, longest_pause_s=0.2, end="unknown")


@pytest.mark.parametrize(
    ("past", "is_steady", "quiet_s"),
    [
        ([], False, 0.0),
        ([WHOLE] * (ENOUGH - 1), False, 0.0),
        ([WHOLE] * ENOUGH, True, 0.0),
        ([WHOLE] * ENOUGH + [CUT], False, 180.0),
        ([CUT], False, 180.0),
        ([WHOLE] * 39 + [CUT], True, 0.0),  # one accident in forty
        ([CUT] + [WHOLE] * 60, True, 0.0),
        ([WHOLE] * 50 + [CUT] * 50, True, 0.0),  # only the latest fifty count
    ],
)
def test_habit_is_what_nearly_all_series_show(past: list[PastSeries], is_steady: bool, quiet_s: float) -> None:
    """Few series prove nothing good, and one bad one counts as long as there are few."""
    habit = habit_of(past)
    assert (is_steady, quiet_s) == (habit.is_steady, habit.quiet_s)


def test_gateway_that_never_releases_is_steady_too() -> None:
    """Turning to the next series is its end of a series; silence says nothing of it."""
    habit = habit_of([OPEN] * 10)
    assert (True, False) == (habit.is_steady, habit.has_released)


@given(
    st.lists(
        st.builds(
            PastSeries,
            n_runs=st.integers(1, 9),
            longest_pause_s=st.floats(0, MOST_PAUSE_S),
            end=st.sampled_from(["released", "aborted", "orphaned", "unknown"]),
        )
    )
)
def test_learned_values_are_bounded(past: list[PastSeries]) -> None:
    """Whatever was seen, nobody waits longer than that for habit's sake."""
    habit = habit_of(past)
    assert 0 <= habit.quiet_s <= MOST_PAUSE_S
    assert 0 <= habit.idle_s <= MOST_PAUSE_S
