"""What a process of the node is: it dies with its parent, gives way to scanners, and loads no more than it needs."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from dicom_node.errors import UsageError

_T = TypeVar("_T")

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
    """Let the present thread, and what it starts, run behind those that scanners wait for.

    On Linux niceness belongs to threads. In vain where a sandbox forbids to say so.
    """
    with suppress(OSError):
        os.nice(_BEHIND)


def behind(work: Callable[[], _T]) -> _T:
    """Do `work` in a thread that gives way, and return what it does; the caller keeps its own niceness."""
    with ThreadPoolExecutor(max_workers=1, initializer=give_way) as thread:
        return thread.submit(work).result()


_SERVING: Final = "serving.lock"


@contextmanager
def serving(data_dir: Path) -> Iterator[None]:
    """Hold, with every other role, the sign that the node serves.

    Raises
    ------
    UsageError
        When a command has the node for itself.
    """
    with locked(data_dir / _SERVING, exclusive=False) as is_ours:
        if not is_ours:
            raise UsageError("a restore or migration is under way; start the node when it has ended")
        yield


@contextmanager
def alone(data_dir: Path) -> Iterator[None]:
    """Have the node's folder for oneself: no role runs, and none can start.

    Raises
    ------
    UsageError
        When a role runs.
    """
    with locked(data_dir / _SERVING) as is_ours:
        if not is_ours:
            raise UsageError("the node is serving; stop it first")
        yield


@contextmanager
def locked(file: Path, *, exclusive: bool = True) -> Iterator[bool]:
    """Yield whether this process has the lock on a file, which is made when missing, until the end of the block."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


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
