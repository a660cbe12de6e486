"""Bytes that survive a power cut: `.part` -> write -> fdatasync -> rename -> fsync(folder).

The one place that creates, publishes and synchronises files. A failed fsync is never tried again: the kernel may have
dropped the dirty pages, and a second fsync then reports success for lost bytes. The part is thrown away and the error
goes up. New folders are synchronised into their parents up to the root.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from dicom_node.errors import StorageError
from dicom_node.filing.layout import PART_SUFFIX
from dicom_node.ids import ProcessIdentity, process_identity

Bytes: TypeAlias = bytes | bytearray | memoryview

_IOV_MAX: Final = 1024
"""Most buffers that one writev takes (POSIX IOV_MAX on Linux)."""
_WRITE_OUT_BYTES: Final = 1 << 23
"""A file that grows is handed to the disk in pieces of this size."""
_COUNTER: Final = itertools.count()


def storage_error(action: str, error: OSError) -> StorageError:
    """Return our error for a failed system call, in words for the log and the sender."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space left while {action}")
    return StorageError(f"{os.strerror(error.errno or errno.EIO)} while {action}")


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_names(folders: Iterable[Path], new: Path | None) -> None:
    """Make the names in `folders` durable; when that fails, take the file `new` away again.

    A repeat then writes it afresh, instead of trusting a second fsync of a folder whose first one failed.
    """
    try:
        for folder in folders:
            fsync_folder(folder)
    except OSError:
        if new is not None:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        raise


def make_folders(folder: Path) -> list[Path]:
    """Create `folder` and what is missing above it; return the parents to synchronise, inner first."""
    changed: list[Path] = []
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        with suppress(FileExistsError):
            new.mkdir()
        changed.insert(0, new.parent)
    return changed


class PartFile:
    """A file that is being written and has no name that anybody reads yet.

    The name consists of the identity of the process and a counter: two associations that send one instance at the same
    time never share it, and the sweep sees whether the writer still lives.
    """

    def __init__(self, folder: Path, owner: ProcessIdentity) -> None:
        name = f"{owner.boot_id}.{owner.pid}.{owner.start_ticks}.{next(_COUNTER)}{PART_SUFFIX}"
        self.path = folder / name
        self._descriptor: int | None = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
        )
        self._size_bytes = 0
        self._on_its_way = 0

    @property
    def descriptor(self) -> int:
        """The open file.

        Raises
        ------
        ValueError
            When it was published or thrown away.
        """
        if self._descriptor is None:
            raise ValueError("the part file is closed")
        return self._descriptor

    def write(self, views: Iterable[Bytes]) -> int:
        """Write all of `views` in order and return their bytes; short writes are continued."""
        pending = [memoryview(view).cast("B") for view in views if len(view)]
        total = sum(view.nbytes for view in pending)
        while pending:
            written = os.writev(self.descriptor, pending[:_IOV_MAX])
            pending = _rest(pending, written)
        self._size_bytes += total
        if self._size_bytes - self._on_its_way >= _WRITE_OUT_BYTES:
            self._write_out()
        return total

    def _write_out(self) -> None:
        """Let the disk begin with what has come, while the rest is coming: `synchronise` then waits for less.

        Linux starts to write dirty pages on this advice, and drops only those that are written already.
        """
        start, self._on_its_way = self._on_its_way, self._size_bytes
        with suppress(OSError):  # advice: a file system that takes none writes all of it in the end
            os.posix_fadvise(self.descriptor, start, self._size_bytes - start, os.POSIX_FADV_DONTNEED)

    def synchronise(self) -> None:
        """Bring the content to the disk."""
        os.fdatasync(self.descriptor)

    def rename(self, target: Path) -> None:
        """Give the file its final name; the caller synchronises the folder."""
        self._close()
        self.path.rename(target)

    def discard(self) -> None:
        """Close and delete the file; harmless when it is gone."""
        self._close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None or error is not None:
            self.discard()


def _rest(views: Sequence[memoryview], written: int) -> list[memoryview]:
    """Return what is left of `views` after `written` bytes."""
    for index, view in enumerate(views):
        if written < view.nbytes:
            return [view[written:], *views[index + 1 :]]
        written -= view.nbytes
    return []


def sweep_parts(folder: Path) -> int:
    """Delete the parts whose writer no longer runs; return how many."""
    removed = 0
    for part in folder.glob(f"*{PART_SUFFIX}"):
        owner = _owner(part.name)
        if owner is None or not owner.is_alive():
            part.unlink(missing_ok=True)
            removed += 1
    return removed


def _owner(name: str) -> ProcessIdentity | None:
    fields = name.removesuffix(PART_SUFFIX).split(".")
    if len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
        return None
    return ProcessIdentity(boot_id=fields[0], pid=int(fields[1]), start_ticks=int(fields[2]))


def this_process() -> ProcessIdentity:
    """Return who writes: the present process."""
    return process_identity()
