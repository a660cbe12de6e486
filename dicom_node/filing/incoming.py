"""One instance on its way in: the face through which receiving writes (ARCHITECTURE, decision 1).

A small instance waits in memory until `commit` hands it to the journal; one that grows goes into a file of its own from
then on, so memory does not depend on objects. `commit` returns only when the instance survives a power cut. Whatever
goes wrong before leaves no file behind.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from dicom_node.errors import StorageError
from dicom_node.filing.durable import Bytes, PartFile, storage_error
from dicom_node.filing.meta import encoded
from dicom_node.study import Arrival, InstanceMeta

LARGEST_IN_MEMORY: Final = 1 << 20
"""Bytes: a CT or MR slice stays below. Times the associations allowed, that is what receiving holds at most."""
_MOST_SPARE: Final = 16


class Buffers:
    """Memory for instances under way, used again: fresh pages for each would cost as much as writing them.

    Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._spare: deque[bytearray] = deque(maxlen=_MOST_SPARE)

    def take(self) -> bytearray:
        """Return a buffer of `LARGEST_IN_MEMORY` bytes with any content."""
        try:
            return self._spare.pop()
        except IndexError:
            return bytearray(LARGEST_IN_MEMORY)

    def give_back(self, buffer: bytearray) -> None:
        """Keep a buffer for the next instance."""
        self._spare.append(buffer)


class Publisher(Protocol):
    """What makes an incoming instance durable."""

    @property
    def buffers(self) -> Buffers:
        """Where the memory comes from."""
        ...

    @property
    def largest_in_memory(self) -> int:
        """Bytes of content up to which an instance waits in memory."""
        ...

    def open_part(self) -> PartFile:
        """Open a file of its own. Raises OSError."""
        ...

    def publish_content(self, meta: InstanceMeta, content: tuple[Bytes, ...]) -> Arrival:
        """Make an instance in memory durable. Raises OSError or StorageError."""
        ...

    def publish_part(self, meta: InstanceMeta, part: PartFile, content_bytes: int) -> Arrival:
        """Make a file of its own durable. Raises OSError or StorageError."""
        ...


class Incoming:
    """An instance that is being received. Made by `InstanceStore.begin`; used by one thread at a time.

    After `commit` or `abort`, successful or not, it takes no more calls but `abort`.
    """

    def __init__(self, meta: InstanceMeta, publisher: Publisher) -> None:
        self.meta = meta
        self._publisher = publisher
        self._head = encoded(meta)
        self._buffer: bytearray | None = None
        self._part: PartFile | None = None
        self._size_bytes = 0
        self._ended = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the data set that were written so far."""
        return self._size_bytes

    @property
    def part(self) -> PartFile | None:
        """The file under its temporary name; None while the instance is in memory."""
        return self._part

    def digest(self) -> str:
        """Return SHA-256, hexadecimal, of the data set bytes that were written so far."""
        with self.data_set() as view:
            return hashlib.sha256(view).hexdigest()

    def write(self, views: Iterable[Bytes]) -> None:
        """Append bytes of the data set, exactly as they came. The buffers belong to the caller again afterwards.

        Raises
        ------
        StorageError
            When the disk refuses; nothing is left behind, and every further call raises too.
        """
        self._require_open()
        try:
            if self._part is not None:
                self._size_bytes += self._part.write(views)
                return
            for view in views:
                self._take(view)
        except OSError as error:
            self.abort()
            raise storage_error("writing an instance", error) from error

    def _take(self, view: Bytes) -> None:
        """Keep a piece in memory, or begin a file of its own when it does not fit."""
        end = self._size_bytes + len(view)
        if self._part is not None:
            self._part.write((view,))
        elif end <= self._publisher.largest_in_memory:
            if self._buffer is None:
                self._buffer = self._publisher.buffers.take()
            self._buffer[self._size_bytes : end] = view
        else:
            self._part = self._publisher.open_part()
            self._part.write((self._head, self._in_memory(), view))
            self._give_buffer_back()
        self._size_bytes = end

    def _in_memory(self) -> memoryview:
        """Return what lies in the buffer, read-only."""
        return memoryview(self._buffer or b"").toreadonly()[: self._size_bytes]

    def _give_buffer_back(self) -> None:
        if self._buffer is not None:
            self._publisher.buffers.give_back(self._buffer)
            self._buffer = None

    @contextmanager
    def data_set(self) -> Iterator[memoryview]:
        """Give the data set that was written so far as a read-only view, valid inside the `with`; nothing is copied."""
        if self._part is None:
            with self._in_memory() as view:
                yield view
            return
        with (
            mmap.mmap(self._part.descriptor, 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[len(self._head) :] as view,
        ):
            yield view

    def commit(self) -> Arrival:
        """Make the instance durable and return where it lies.

        Raises
        ------
        StorageError
            When the disk refuses or its reserve is reached; nothing is left behind.
        """
        self._require_open()
        try:
            if self._part is None:
                with self._in_memory() as buffered:
                    arrival = self._publisher.publish_content(self.meta, (self._head, buffered))
            else:
                arrival = self._publisher.publish_part(self.meta, self._part, len(self._head) + self._size_bytes)
        except OSError as error:
            self.abort()
            raise storage_error("filing an instance", error) from error
        except StorageError:
            self.abort()
            raise
        self._ended = True
        self._give_buffer_back()
        return arrival

    def abort(self) -> None:
        """Throw away what was written; harmless after `commit` or a second time."""
        if self._part is not None and not self._ended:
            self._part.discard()
        self._ended = True
        self._give_buffer_back()

    def _require_open(self) -> None:
        if self._ended:
            raise StorageError("the instance was thrown away after an earlier error")
