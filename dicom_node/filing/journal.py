"""A write-ahead journal for small instances: one sequential write and one fdatasync for all that arrive together.

A file of its own costs three commits of the file system's metadata before it is safe (create, rename, folder), 0.7 to
2 ms on the disk where this was measured; a record in a file that was written in full beforehand costs none, 0.1 to
0.5 ms, and concurrent associations share it. The journal is no store: every record is shelved as a file within seconds
and its segment used anew. After a crash or a power cut `unreleased` gives back what was not shelved.

A failed fdatasync is never tried again: who waited for it hears of the error, and the segment takes nothing more in
this life.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dicom_node import ids
from dicom_node.errors import StorageError
from dicom_node.filing import segment as format_
from dicom_node.filing.durable import Bytes, fsync_folder, make_folders, storage_error
from dicom_node.filing.segment import BLOCK, HEAD_BYTES, NOTE_BYTES, SUFFIX, Record

SEGMENT_BYTES: Final = 16 << 20
"""Thirty CT slices; small enough that one is soon free again."""
_TIDY_S: Final = 1.0
_LARGEST_SHARE: Final = 256
"""Records in one write: four buffers each fit into one pwritev."""


class JournalFullError(StorageError):
    """The journal has no room now; file the instance on its own."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Segment:
    path: Path
    descriptor: int
    life: int = 0
    position: int = BLOCK
    """Where the next group begins."""
    count: int = 0
    n_open: int = 0
    """Records that are durable and not released."""
    is_closed: bool = False
    """Nothing more is written to it in this life."""


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, kw_only=True, eq=False)
class _Ticket:
    """What one thread wants to have written, and what became of it."""

    label: bytes
    content: tuple[Bytes, ...]
    content_bytes: int
    checksum: int
    outcome: Record | StorageError | None = None
    turn: threading.Lock = field(default_factory=_held_lock)
    """Released when it was written, or when its own thread is to write."""

    @property
    def size(self) -> int:
        return format_.record_bytes(self.label, self.content_bytes)


class Journal:
    """The journal in `folder`. Safe to use from many threads; one process at a time writes.

    Parameters
    ----------
    capacity_bytes
        What all segments take; they are allocated by the first start and then kept. 0: no journal.
    boot_id
        Names the present boot of the machine.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int, boot_id: str) -> None:
        self._folder = folder
        self._segment_bytes = min(SEGMENT_BYTES, capacity_bytes // 2 // BLOCK * BLOCK)
        self._capacity_bytes = capacity_bytes
        self._note = boot_id.replace("-", "").encode("ascii").ljust(NOTE_BYTES, b"-")[:NOTE_BYTES]
        self._turns = threading.Lock()
        """Guards the queue and whose turn it is to write; the keeper is not woken by it."""
        self._changed = threading.Condition()
        self._queue: list[_Ticket] = []
        self._is_writing = False
        self._active: _Segment | None = None
        self._free: list[_Segment] = []
        self._used: dict[Path, _Segment] = {}
        self._keeper: threading.Thread | None = None
        self._is_stopping = False
        self._lock: int | None = None

    @property
    def largest_content(self) -> int:
        """The most bytes that one record takes; 0 when there is no journal or it was not started."""
        return self._segment_bytes // 8 if self._lock is not None else 0

    def unreleased(self) -> Iterator[Record]:
        """Give the records that were not released, as a start finds them.

        In another boot all are given: what was shelved may not have reached the disk before the power went.
        """
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            yield from (record for record, note in format_.read_records(path) if note != self._note)

    def start(self) -> None:
        """Take possession and allocate. Segments with unreleased records stay as they are until those are released.

        Without effect when another process has the journal. When the disk has no room for all of it, less has to do.

        Raises
        ------
        StorageError
            When the disk refuses.
        """
        if not self._segment_bytes:
            return
        try:
            for parent in make_folders(self._folder):
                fsync_folder(parent)
            self._lock = _locked(self._folder / "lock")
            if self._lock is None:
                return
            for path in sorted(self._folder.glob(f"*{SUFFIX}")):
                self._adopt(path)
            self.tidy()
            self._allocate()
        except OSError as error:
            raise storage_error("allocating the journal", error) from error
        self._keeper = threading.Thread(target=self._keep, name="journal", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """Take nothing more; what is not released stays for the next start."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._lock is None:
            return
        self._close_idle()
        self.tidy()
        for segment in (*self._free, *self._used.values()):
            os.close(segment.descriptor)
        os.close(self._lock)
        self._lock = None

    def append(self, label: bytes, content: Sequence[Bytes]) -> Record:
        """Write a record and return when it survives a power cut.

        Of the threads that come at the same time, one writes for all.

        Raises
        ------
        JournalFullError
            When there is no room.
        StorageError
            When the disk refuses.
        """
        size, checksum = 0, zlib.crc32(label)
        for part in content:
            size += len(part)
            checksum = zlib.crc32(part, checksum)
        ticket = _Ticket(label=label, content=tuple(content), content_bytes=size, checksum=checksum)
        with self._turns:
            self._queue.append(ticket)
            must_wait, self._is_writing = self._is_writing, True
        if must_wait:
            ticket.turn.acquire()
        if ticket.outcome is None:
            self._write_queue()
        assert ticket.outcome is not None
        if isinstance(ticket.outcome, Record):
            return ticket.outcome
        raise ticket.outcome

    def _write_queue(self) -> None:
        """Write all tickets that wait; then give the turn to the first of those that came meanwhile."""
        with self._turns:
            group, self._queue = self._queue, []
        try:
            self._write(group)
        finally:
            with self._turns:
                following = self._queue[0] if self._queue else None
                self._is_writing = following is not None
            if following is not None:
                following.turn.release()
            for ticket in group:
                ticket.outcome = ticket.outcome or StorageError("the journal was not written")
                ticket.turn.release()

    def release(self, record: Record) -> None:
        """Note that a record was shelved and has its row: a restart does not give it back. Once for each record."""
        segment = self._used.get(record.segment)
        if segment is None:
            return
        format_.note_release(segment.descriptor, record, self._note)
        with self._changed:
            segment.n_open -= 1
            if segment.is_closed and not segment.n_open:
                self._changed.notify_all()

    def tidy(self) -> None:
        """Make segments free whose records are all released."""
        with self._changed:
            done = [segment for segment in self._used.values() if segment.is_closed and not segment.n_open]
        if done:
            try:
                _sync_file_system(self._folder)  # the shelved files: only then may their records go
            except OSError:
                self._hold()
                raise
            for segment in done:
                format_.end_life(segment.descriptor)
                is_ours = os.fstat(segment.descriptor).st_size == self._segment_bytes
                with self._changed:
                    del self._used[segment.path]
                    if is_ours:
                        self._free.append(segment)
                if not is_ours:  # of another capacity, or its allocation was cut off
                    os.close(segment.descriptor)
                    segment.path.unlink()

    def _hold(self) -> None:
        """Keep every record for the next start: what was shelved may be lost, and a second syncfs would not tell."""
        with self._changed:
            for segment in self._used.values():
                segment.n_open += 1  # never all released: this process does not use it again
                for record, _ in format_.read_records(segment.path):
                    format_.note_release(segment.descriptor, record, bytes(NOTE_BYTES))

    def _allocate(self) -> None:
        """Make the segments that are missing."""
        while (len(self._free) + len(self._used) + 1) * self._segment_bytes <= self._capacity_bytes:
            path = self._folder / f"{ids.new_uid().rpartition('.')[2]}{SUFFIX}"
            try:
                descriptor = format_.allocated(path, self._segment_bytes)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    break
                raise
            self._free.append(_Segment(path=path, descriptor=descriptor))
        fsync_folder(self._folder)

    def _keep(self) -> None:
        """Tidy whenever there is something to do, and when nothing has come for a while."""
        before = -1
        while not self._is_stopping:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=_TIDY_S)
            now = sum(segment.count for segment in self._used.values())
            if now == before:
                self._close_idle()
            before = now
            try:
                self.tidy()
            except OSError:  # a full or failing disk: what is free serves on, then instances are filed on their own
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopping, timeout=_TIDY_S)

    def _has_work(self) -> bool:
        return self._is_stopping or any(one.is_closed and not one.n_open for one in self._used.values())

    def _close_idle(self) -> None:
        """Close the segment in use when all that it holds is released."""
        with self._changed:
            active = self._active
            if active is not None and active.count and not active.n_open and not self._is_writing:
                active.is_closed = True
                self._active = None

    def _write(self, group: Sequence[_Ticket]) -> None:
        """Write the tickets, a segment's share at a time."""
        pending = list(group)
        while pending:
            segment = self._with_room(pending[0].size)
            if segment is None:
                for ticket in pending:
                    ticket.outcome = JournalFullError("the journal has no room")
                return
            share, room = 0, self._segment_bytes - segment.position
            while share < min(len(pending), _LARGEST_SHARE) and room >= pending[share].size:
                room -= pending[share].size
                share += 1
            self._write_share(segment, pending[:share])
            pending = pending[share:]

    def _with_room(self, size: int) -> _Segment | None:
        """Return the segment that takes a record of this size; called by the one thread that writes."""
        with self._changed:
            if self._active is not None and self._segment_bytes - self._active.position >= size:
                return self._active
            if self._active is not None:
                self._active.is_closed = True
                self._active = None
            self._changed.notify_all()  # the keeper may free it
            if not self._free or self._is_stopping:
                return None
            fresh = self._free.pop(0)
            self._active = self._used[fresh.path] = _Segment(
                path=fresh.path,
                descriptor=fresh.descriptor,
                life=int(ids.new_uid().rpartition(".")[2]) & 0xFFFF_FFFF_FFFF_FFFF,
            )
            return self._active

    def _write_share(self, segment: _Segment, share: Sequence[_Ticket]) -> None:
        buffers: list[Bytes] = []
        records: list[Record] = []
        position = segment.position
        for number, ticket in enumerate(share, segment.count):
            record = Record(
                segment=segment.path,
                head_offset=position,
                label=ticket.label,
                content_offset=position + HEAD_BYTES + len(ticket.label),
                content_bytes=ticket.content_bytes,
            )
            head = format_.encoded_head(
                life=segment.life,
                number=number,
                label=ticket.label,
                content_bytes=ticket.content_bytes,
                checksum=ticket.checksum,
            )
            filling = position + ticket.size - record.content_offset - record.content_bytes
            buffers += [head, ticket.label, *ticket.content, bytes(filling)]
            records.append(record)
            position += ticket.size
        try:
            format_.write_all(segment.descriptor, buffers, segment.position)
            os.fdatasync(segment.descriptor)
        except OSError as error:
            self._retire(segment)
            for ticket in share:
                ticket.outcome = storage_error("writing the journal", error)
            return
        with self._changed:
            segment.position = format_.aligned(position, BLOCK)
            segment.count += len(share)
            segment.n_open += len(share)
        for ticket, record in zip(share, records, strict=True):
            ticket.outcome = record

    def _retire(self, segment: _Segment) -> None:
        """Write nothing more to a segment whose disk failed; what it holds is shelved from it."""
        with self._changed:
            segment.is_closed = True
            self._active = None

    def _adopt(self, path: Path) -> None:
        """Take over a segment of an earlier process."""
        segment = _Segment(path=path, descriptor=os.open(path, os.O_RDWR | os.O_CLOEXEC), is_closed=True)
        segment.n_open = sum(note != self._note for _, note in format_.read_records(path))
        self._used[path] = segment


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock, None when another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sync_file_system(folder: Path) -> None:
    """Bring all that was written to this file system to the disk: shelved files and their names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(descriptor)
