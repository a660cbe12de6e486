"""What receiving asks of the stage that keeps the bytes: filing implements it, and neither imports the other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from dicom_node.study import FiledInstance, InstanceMeta


class Incoming(Protocol):
    """A place for one instance that is being received."""

    @property
    def meta(self) -> InstanceMeta:
        """What was announced."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, hexadecimal, of the data set bytes that were written so far."""
        ...

    def write(self, views: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append bytes of the data set; the buffers belong to the caller again afterwards. Raises StorageError."""
        ...

    def data_set(self) -> AbstractContextManager[memoryview]:
        """Give what was written so far as a read-only view."""
        ...

    def commit(self) -> FiledInstance:
        """Return when the instance survives a power cut. Raises StorageError; then nothing is left behind."""
        ...

    def abort(self) -> None:
        """Throw away what was written; harmless after `commit` or a second time."""
        ...


class Store(Protocol):
    """Where instances are filed."""

    def begin(self, meta: InstanceMeta) -> Incoming:
        """Open a place. Raises StorageError when the disk refuses, RefusedInputError for a UID that is none."""
        ...
