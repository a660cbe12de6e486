"""What a process of the node is: it dies with its parent, gives way to scanners, and loads no more than it needs."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2), linux/prctl.h."""
_BEHIND: Final = 10
"""Niceness of what nobody waits for at a scanner: indexing and inference share what receiving leaves."""


def die_with_parent(parent_pid: int) -> None:
    """Make the present process end when its parent does; end it now when that is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before prctl took effect
        os._exit(1)


def give_way() -> None:
    """Let the present process run behind those that scanners wait for; in vain where a sandbox forbids to say so."""
    with suppress(OSError):
        os.nice(_BEHIND)


CODECS: Final = ("gdcm", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls", "PIL")
"""What pydicom loads to decode pixels, when it is imported and they are installed."""


def keep_out(*packages: str) -> None:
    """Make later imports of `packages` fail in this process.

    The process that faces the network decodes no pixel: 20 MB of codecs, written in C, have no business in it.
    """
    for package in packages:
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # None is how Python is told "not here"


def settle() -> None:
    """Take everything that was made so far for lasting: the garbage collector walks over it no more.

    A full collection walks over the modules too; in a receiver of small objects that was a tenth of its time.
    """
    gc.collect()
    gc.freeze()
