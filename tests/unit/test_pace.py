"""Claims on the pace of a connection: who keeps it is never sent away, who does not always is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.receive.pace import WINDOW_S, Pace

IDLE_S = 300.0
TICK_S = 2.0
"""How often a connection looks at its deadlines at least."""
STEPS = st.lists(st.floats(0.05, TICK_S), min_size=1, max_size=100)
"""Seconds between one receive and the next."""
RATES = st.integers(100, 1_000_000)


def begun(*, min_rate: int = 1000, idle_timeout_s: float = IDLE_S) -> Pace:
    """Return the pace of an association within an object, at 0 s, before its first byte counts."""
    pace = Pace(idle_timeout_s=idle_timeout_s, min_rate=min_rate, now=0.0)
    pace.moved(0, 0.0, inside=True)
    return pace


@given(steps=STEPS, min_rate=RATES, look=st.floats(0, 1))
def test_who_keeps_the_rate_is_never_complained_of(steps: list[float], min_rate: int, look: float) -> None:
    """A sender a little above the rate, looked at whenever: the pauses between its pieces are no harm."""
    pace = begun(min_rate=min_rate)
    now = 0.0
    for step in steps * (1 + int(3 * WINDOW_S / sum(steps))):
        assert pace.complaint(now + step * look) is None
        now += step
        pace.moved(int(min_rate * step * 1.05) + 1, now, inside=True)
        assert pace.complaint(now) is None


@given(steps=STEPS, min_rate=RATES)
def test_who_does_not_keep_the_rate_is_always_complained_of(steps: list[float], min_rate: int) -> None:
    """A sender a little below the rate does not get further than the second window."""
    pace = begun(min_rate=min_rate)
    now = 0.0
    for step in steps * (1 + int(3 * WINDOW_S / sum(steps))):
        now += step
        pace.moved(int(min_rate * step * 0.9), now, inside=True)
        if pace.complaint(now) is not None:
            break
    assert f"an object came slower than {min_rate:g} bytes a second" == pace.complaint(now)
    assert now <= WINDOW_S + TICK_S


def test_a_burst_pays_for_one_window_alone() -> None:
    """A megabyte at once does not buy an hour of dripping."""
    pace = begun()
    pace.moved(1 << 20, 1.0, inside=True)
    assert pace.complaint(WINDOW_S + 1) is None
    pace.moved(1, WINDOW_S + 2, inside=True)
    assert pace.complaint(2 * WINDOW_S) is None
    assert pace.complaint(2 * WINDOW_S + 2) is not None


@given(idle_timeout_s=st.floats(0.1, 10_000), min_rate=st.sampled_from([0, 1000]), inside=st.booleans())
def test_silence_ends_an_association_after_its_time(idle_timeout_s: float, min_rate: int, inside: bool) -> None:
    """Not before, and then with the time in the reason; inside an object without a rate too."""
    pace = Pace(idle_timeout_s=idle_timeout_s, min_rate=min_rate, now=0.0)
    pace.moved(min_rate * int(WINDOW_S + 1), 5.0, inside=inside)
    if not (inside and min_rate):
        assert pace.complaint(5.0 + idle_timeout_s * 0.999) is None
    assert f"nothing came for {idle_timeout_s:g} s" == pace.complaint(5.0 + idle_timeout_s * 1.001)


def test_between_messages_no_rate_is_asked_for() -> None:
    """A gateway that echoes every four minutes all day is served."""
    pace = Pace(idle_timeout_s=IDLE_S, min_rate=1_000_000, now=0.0)
    for number in range(1, 360):
        pace.moved(80, 240.0 * number, inside=False)
        assert pace.complaint(240.0 * number + 239) is None


def test_no_rate_leaves_silence_alone_to_count() -> None:
    """`min_rate = 0`: a byte every few minutes is enough."""
    pace = begun(min_rate=0)
    for number in range(1, 50):
        pace.moved(1, number * (IDLE_S - 1), inside=True)
        assert pace.complaint(number * (IDLE_S - 1) + 1) is None


def test_each_message_begins_a_window() -> None:
    """What was slow before an object is not held against it."""
    pace = begun()
    pace.moved(10, 1.0, inside=False)
    pace.moved(10, 200.0, inside=True)
    assert pace.complaint(200.0 + WINDOW_S) is None
    assert pace.complaint(200.0 + WINDOW_S + 1) is not None


@pytest.mark.parametrize("wait_s", [1.0, 59.0, 10_000.0])
def test_time_that_we_spend_ourselves_never_counts(wait_s: float) -> None:
    """A disk that stalls for hours, at an answer or in the middle of an object, is not the sender's fault."""
    pace = begun()
    pace.moved(1000, 1.0 + wait_s, inside=True, spent_s=wait_s)
    assert pace.complaint(1.0 + wait_s + WINDOW_S - 1) is None
    assert pace.complaint(1.0 + wait_s + WINDOW_S + 1) is not None
    answered = begun()
    answered.resume(wait_s)
    assert answered.complaint(wait_s + WINDOW_S) is None
    assert answered.complaint(wait_s + WINDOW_S + 1) is not None
