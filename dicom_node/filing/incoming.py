"""One instance on its way in: the face through which receiving writes (ARCHITECTURE, decision 1).

`commit` returns only when the instance survives a power cut; whether it journals or groups is hidden behind it.
Whatever goes wrong before leaves no file behind.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from dicom_node.errors import StorageError
from dicom_node.filing.durable import Bytes, PartFile, storage_error
from dicom_node.filing.meta import encoded
from dicom_node.study import FiledInstance, InstanceMeta


class Incoming:
    """An instance that is being received. Made by `InstanceStore.begin`; used by one thread at a time.

    After `commit` or `abort`, successful or not, it takes no more calls but `abort`.
    """

    def __init__(self, meta: InstanceMeta, part: PartFile, publish: Callable[[Incoming], FiledInstance]) -> None:
        self.meta = meta
        self._part = part
        self._publish = publish
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._failed = False
        head = encoded(meta)
        self._data_set_offset = len(head)
        with self._failures_as_storage_errors("writing an instance"):
            part.write((head,))

    @property
    def size_bytes(self) -> int:
        """Bytes of the data set that were written so far."""
        return self._size_bytes

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the data set bytes that were written so far."""
        return self._hash.hexdigest()

    @property
    def part(self) -> PartFile:
        """The file under its temporary name."""
        return self._part

    def write(self, views: Iterable[Bytes]) -> None:
        """Append bytes of the data set, exactly as they came. The buffers belong to the caller again afterwards.

        Raises
        ------
        StorageError
            When the disk refuses; nothing is left behind, and every further call raises too.
        """
        if self._failed:
            raise StorageError("the instance was thrown away after an earlier error")
        views = tuple(views)
        with self._failures_as_storage_errors("writing an instance"):
            self._size_bytes += self._part.write(views)
        for view in views:
            self._hash.update(view)

    @contextmanager
    def data_set(self) -> Iterator[memoryview]:
        """Give the data set that was written so far as a read-only view, valid inside the `with`; nothing is copied."""
        if not self._size_bytes:
            yield memoryview(b"")
            return
        with (
            mmap.mmap(self._part.descriptor, 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as whole,
            whole[self._data_set_offset :] as view,
        ):
            yield view

    def commit(self) -> FiledInstance:
        """Make the instance durable under its final name and return what was filed.

        Raises
        ------
        StorageError
            When the disk refuses or its reserve is reached; nothing is left behind.
        """
        if self._failed:
            raise StorageError("the instance was thrown away after an earlier error")
        try:
            with self._failures_as_storage_errors("filing an instance"):
                return self._publish(self)
        except StorageError:
            self.abort()
            raise

    def abort(self) -> None:
        """Throw away what was written; harmless after `commit` or a second time."""
        self._failed = True
        self._part.discard()

    @contextmanager
    def _failures_as_storage_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abort()
            raise storage_error(action, error) from error
