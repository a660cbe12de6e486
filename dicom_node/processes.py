"""Child processes of the node: they die with their parent, and give way to what scanners wait for."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2), linux/prctl.h."""
BEHIND: Final = 10
"""Niceness of what nobody waits for at a scanner: indexing and inference share what receiving leaves."""


def die_with_parent(parent_pid: int) -> None:
    """Make the present process end when its parent does; end it now when that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before prctl took effect
        os._exit(1)
