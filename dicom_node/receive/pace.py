"""Deadlines of one connection, as a pure function of monotonic times: silence, and a pace that must be kept.

An object of 3 GB over a slow line may take an hour; what ends a connection is that nothing comes for long, or so little
that nobody sends like that but to hold us. Time that we spend ourselves, on the disk, never counts.
"""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 60.0
"""Over which the rate inside an object is judged: a line may stall for less without harm."""


class Pace:
    """Watches one association.

    Parameters
    ----------
    idle_timeout_s
        Silence that is allowed between messages.
    min_rate
        Bytes per second inside a message, over `WINDOW_S`; 0: silence alone counts there too.
    """

    def __init__(self, *, idle_timeout_s: float, min_rate: int, now: float) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._window_bytes = min_rate * WINDOW_S
        self._last_at = now
        self._window_at = now
        self._moved_bytes = 0
        self._is_inside = False

    def moved(self, count: int, now: float, *, inside: bool, spent_s: float = 0.0) -> None:
        """Note that bytes came and were dealt with, which took us `spent_s`.

        `inside` says whether a message is under way after them.
        """
        self._last_at = now
        if not self._is_inside:
            self._window_at, self._moved_bytes = now, 0
        else:
            self._window_at = min(now, self._window_at + spent_s)
        self._moved_bytes += count
        self._is_inside = inside

    def resume(self, now: float) -> None:
        """Begin to watch anew: what lies before was not the peer's time."""
        self._last_at = self._window_at = now
        self._moved_bytes = 0

    def complaint(self, now: float) -> str | None:
        """Return why the association has to end now, if it has."""
        if now - self._last_at > self._idle_timeout_s:
            return f"nothing came for {self._idle_timeout_s:g} s"
        if not self._is_inside or not self._window_bytes or now - self._window_at <= WINDOW_S:
            return None
        if self._moved_bytes < self._window_bytes:
            return f"an object came slower than {self._window_bytes / WINDOW_S:g} bytes a second"
        self._window_at, self._moved_bytes = now, 0
        return None
