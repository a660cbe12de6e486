"""A small disk of its own for a receiver: ext4 in a file where loop devices are to be had, else tmpfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PIECE = bytes(1 << 16)


@contextmanager
def small_disk(folder: Path, *, size_mb: int) -> Iterator[Path]:
    """Mount a new file system of so many MB and give its folder; skip the test where mounts are not permitted."""
    image, disk = folder / "disk.img", folder / "disk"
    disk.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    ext4 = ["mount", "-o", "loop", str(image), str(disk)]
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(disk)]
    said = _run("mkfs.ext4", "-q", "-m", "0", str(image)) or _run(*ext4)
    if said and (said := _run(*tmpfs)):
        pytest.skip(f"a small file system cannot be mounted here: {said}")
    try:
        yield disk
    finally:
        assert "" == _run("umount", str(disk))


def fill(disk: Path, *, leave_mb: float = 0) -> Path:
    """Write a file that takes all free space but so many MB; delete it to free the space again."""
    ballast = disk / f"ballast-{len(list(disk.glob('ballast-*')))}"
    with ballast.open("wb", buffering=0) as file:
        try:
            while free_mb(disk) > leave_mb:
                file.write(_PIECE)
        except OSError:
            pass
        os.fsync(file.fileno())
    return ballast


def free_mb(disk: Path) -> float:
    """Return the MB that are free."""
    space = os.statvfs(disk)
    return space.f_bavail * space.f_frsize / (1 << 20)


def _run(*command: str) -> str:
    """Run a command; return nothing when it succeeds, else why not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""
