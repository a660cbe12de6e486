"""What receiving asks of the stages around it: filing keeps the bytes, the pipeline hears the events.

They implement these faces; neither imports receiving, nor receiving them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Literal, Protocol, TypeAlias

from dicom_node.study import Arrival, Association, InstanceMeta

How: TypeAlias = Literal["released", "aborted", "lost"]
"""How an association ended: by agreement, by an abort of either side, or because the connection went away."""

Policy: TypeAlias = Callable[[InstanceMeta, str], str | None]
"""Gets an instance and the digest of its data set; returns None to file it, or why it is rejected (0x0111)."""


class Incoming(Protocol):
    """A place for one instance that is being received."""

    @property
    def meta(self) -> InstanceMeta:
        """What was announced."""
        ...

    def digest(self) -> str:
        """Return SHA-256, hexadecimal, of the data set bytes that were written so far."""
        ...

    def write(self, views: Iterable[bytes | bytearray | memoryview]) -> None:
        """Append bytes of the data set; the buffers belong to the caller again afterwards. Raises StorageError."""
        ...

    def data_set(self) -> AbstractContextManager[memoryview]:
        """Give what was written so far as a read-only view."""
        ...

    def commit(self) -> Arrival:
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

    def has_room(self) -> bool:
        """Return whether an instance would be accepted now."""
        ...


class ReceiveEvents(Protocol):
    """What the listener tells, from the associations' threads: implementations are safe to use from many."""

    def opened(self, association: Association) -> None:
        """Hear of an association before its peer does. An exception rejects it, as temporary congestion."""
        ...

    def filed(self, association_id: str, arrival: Arrival) -> None:
        """Take note of a durable instance; success is answered afterwards. An exception is answered as a failure."""
        ...

    def activity(self, association_id: str) -> None:
        """Hear that data arrived; called for every piece, so cheap."""
        ...

    def closed(self, association_id: str, how: How) -> None:
        """Hear that the association is over; after its last `filed`, exactly once per `opened`."""
        ...
