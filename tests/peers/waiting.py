"""Waiting for another process: the one thing in the tests that needs real time."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(holds: Callable[[], bool], *, timeout_s: float = 30.0, every_s: float = 0.1) -> bool:
    """Return True as soon as `holds()` is true, False when it never was."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
