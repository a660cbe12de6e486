"""How many may be inside, and from where: counts of connections, judged before and after they say who they are.

A connection that has not associated, or not any more, holds a place among the pending. When those are full the oldest
of the address that has most of them is shown out, so that silent strangers never cost an honest sender its place.
Counts of associations are answered transiently: senders come back.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Final, Protocol

from dicom_node.receive.access import NO_ROOM, Denied

NO_ROOM_FOR_ADDRESS: Final = Denied(
    result=NO_ROOM.result,
    source=NO_ROOM.source,
    diagnostic=NO_ROOM.diagnostic,
    reason="as many associations as one address may have are open",
)


class Visitor(Protocol):
    """A connection, as the gate sees it."""

    @property
    def address(self) -> str:
        """The address it comes from."""
        ...


class Gate:
    """Counts who is inside. Safe to use from many threads.

    Parameters
    ----------
    max_pending
        Connections that have not associated yet.
    max_associations, max_per_address
        Associations in all, and from one address.
    """

    def __init__(self, *, max_pending: int, max_associations: int, max_per_address: int) -> None:
        self._max_pending = max_pending
        self._max_associations = max_associations
        self._max_per_address = max_per_address
        self._lock = threading.Lock()
        self._pending: dict[int, Visitor] = {}
        """By identity, oldest first."""
        self._associated: dict[int, Visitor] = {}

    def enter(self, visitor: Visitor) -> Visitor | None:
        """Let a connection in among the pending; return the one that has to go for it, if any."""
        with self._lock:
            return self._await(visitor)

    def associate(self, visitor: Visitor) -> Denied | None:
        """Count an association instead of a pending connection; return why not, if not."""
        with self._lock:
            if len(self._associated) >= self._max_associations:
                return NO_ROOM
            here = sum(other.address == visitor.address for other in self._associated.values())
            if here >= self._max_per_address:
                return NO_ROOM_FOR_ADDRESS
            self._pending.pop(id(visitor), None)
            self._associated[id(visitor)] = visitor
            return None

    def release(self, visitor: Visitor) -> Visitor | None:
        """Count an association that is over among the pending until its connection is; return as `enter` does."""
        with self._lock:
            if self._associated.pop(id(visitor), None) is None:
                return None
            return self._await(visitor)

    def leave(self, visitor: Visitor) -> None:
        """Forget a connection; harmless a second time."""
        with self._lock:
            self._pending.pop(id(visitor), None)
            self._associated.pop(id(visitor), None)

    def _await(self, visitor: Visitor) -> Visitor | None:
        leaving = self._most_in_the_way() if len(self._pending) >= self._max_pending else None
        if leaving is not None:
            del self._pending[id(leaving)]
        self._pending[id(visitor)] = visitor
        return leaving

    def _most_in_the_way(self) -> Visitor:
        counts = Counter(visitor.address for visitor in self._pending.values())
        address, _count = counts.most_common(1)[0]
        return next(visitor for visitor in self._pending.values() if visitor.address == address)
