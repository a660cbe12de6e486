"""Time, as a collaborator that is passed in: nothing else in the house reads a clock.

Wall-clock times are aware and in UTC and serve for display and records; every deadline, lease and quiet period that
one process keeps for itself runs on monotonic seconds.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the node asks of a clock."""

    def now(self) -> datetime:
        """Return the present time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the present time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class ManualClock:
    """A clock that moves only when it is told to, for tests."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("give an aware datetime, for example with tzinfo=UTC")
        self._now = start
        self._monotonic = 0.0

    def now(self) -> datetime:
        """Return the time that was set, aware, in UTC."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds that this clock was moved."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Move by `seconds`: nobody waits on this clock."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both times forward."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
