"""The listener's side: what happens at the port is noted in memory, in order, and handed on in batches.

Bytes are durable before anything is noted, so nothing here has to be: after a crash `recover` takes up what the store
holds and nobody released.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

from dicom_node.clock import Clock
from dicom_node.errors import ChildDiedError
from dicom_node.filing import InstanceStore
from dicom_node.ids import ProcessIdentity
from dicom_node.indexing.facts import Closed, Fact, Opened, Recovered
from dicom_node.logs import Log
from dicom_node.study import Arrival, Association, InstanceMeta

LARGEST_BATCH: Final = 128
"""Facts handed on at once: enough that a transaction costs little per instance, few enough to be quick."""
CALM_S: Final = 0.2
"""Without an arrival: then indexing takes nothing from a scanner that sends."""
PATIENCE_S: Final = 1.0
"""After that rows are written in the middle of a burst."""
_MOST_FAILURES: Final = 3
"""Times that an instance may bring indexing down, alone, before it is set aside."""
_MOST_RECENT: Final = 100_000
"""Instances whose digests are remembered until they stand on the shelf; far more than ever wait."""


class Reception:
    """What happens at the port becomes facts, handed to indexing in order, behind durable bytes.

    Implements `receive.ReceiveEvents`: its methods are called by the associations' threads and wait for nothing. A
    database that is locked, full or gone stops no scanner: facts wait here, bytes in the store.
    """

    def __init__(
        self,
        store: InstanceStore,
        index: Callable[[Sequence[Fact], Mapping[str, datetime]], int],
        *,
        process: ProcessIdentity,
        clock: Clock,
        log: Log,
    ) -> None:
        """`index` gets facts, and when associations were last active; it returns how many facts are dealt with."""
        self._store = store
        self._index = index
        self._process = process
        self._clock = clock
        self._log = log
        self._pending: deque[Fact] = deque()
        self._active: dict[str, datetime] = {}
        self._batch = LARGEST_BATCH
        self._failures = 0
        """How often the first fact in the queue, alone, brought indexing down."""
        self._filed_at = clock.monotonic() - CALM_S
        self._waiting_since: float | None = None

    def recover(self) -> int:
        """Take up what an earlier receiver left, before the first association; return how many instances that is."""
        self._pending.extend(self._store.leftovers())
        count = len(self._pending)
        self._pending.append(Recovered())
        self._log.info("store.recovered", count=count)
        return count

    def opened(self, association: Association) -> None:
        """Note the association, so that what it moves can hold its study open."""
        self._pending.append(Opened(association=association, process=self._process))

    def filed(self, association_id: str, arrival: Arrival) -> None:
        """Note a durable instance."""
        self._active[association_id] = self._clock.now()
        self._filed_at = self._clock.monotonic()
        self._pending.append(arrival)

    def activity(self, association_id: str) -> None:
        """Note that the association moves data."""
        self._active[association_id] = self._clock.now()

    def closed(self, association_id: str, how: str) -> None:
        """Note the end of the association behind its instances."""
        self._pending.append(Closed(association_id=association_id, at=self._clock.now(), how=how))

    def step_when_calm(self) -> bool:
        """Hand on one batch when the port is calm, or when facts have waited long enough; return whether it was.

        Scanners send in bursts. Shelving, parsing and rows in the middle of one would cost it half of the disk; bytes
        are safe meanwhile. Once begun in a burst that goes on, it goes on too, until nothing waits.
        """
        now = self._clock.monotonic()
        if self._pending and self._waiting_since is None:
            self._waiting_since = now
        if self._waiting_since is not None:
            is_calm = now - self._filed_at >= CALM_S
            if not is_calm and now - self._waiting_since < PATIENCE_S:
                return False
        worked = self.step()
        if not self._pending:
            self._waiting_since = None
        return worked

    def step(self) -> bool:
        """Hand on one batch; return whether there was any. What was not dealt with stays first in the queue.

        A fact that fails again and again goes alone, and an instance that then still fails is put on the shelf without
        a row: it blocks nobody.
        """
        batch = [self._pending[index] for index in range(min(len(self._pending), self._batch))]
        active, self._active = self._active, {}
        if not batch and not active:
            return False
        try:
            done = self._index(batch, active)
        except ChildDiedError as error:
            self._log.error("index.failed", reason=str(error), count=len(batch))
            done = self._after_failure(batch)
        else:
            self._batch, self._failures = min(LARGEST_BATCH, self._batch * 2), 0
        for fact in batch[:done]:
            if isinstance(fact, Arrival):
                self._store.release(fact)
            self._pending.popleft()
        if done < len(batch):
            self._active = active | self._active
        return bool(done)

    def drain(self) -> None:
        """Hand on all that waits, as long as that succeeds."""
        while self.step():
            pass

    def _after_failure(self, batch: Sequence[Fact]) -> int:
        """Make the next batch smaller; set a fact aside that fails alone too often. Return how many are dealt with."""
        self._batch = max(1, self._batch // 8)
        self._failures += len(batch) == 1
        if self._failures <= _MOST_FAILURES:
            return 0
        self._failures = 0
        for fact in batch:
            if isinstance(fact, Arrival):
                self._store.shelve(fact)
                self._log.error("instance.set_aside", sop_instance_uid=fact.meta.sop_instance_uid)
        return len(batch)


class RejectOtherContent:
    """What the listener asks before it files, under `on_conflict = "reject"`. Safe to use from many threads."""

    def __init__(self, store: InstanceStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._recent: OrderedDict[str, str] = OrderedDict()
        """Digest of instances that may not be shelved yet, by SOP Instance UID, oldest first."""

    def __call__(self, meta: InstanceMeta, digest: str) -> str | None:
        """Return why the instance is rejected: it is here with other content; None to file it."""
        with self._lock:
            is_other = self._recent.get(meta.sop_instance_uid, digest) != digest or self._store.has_other_version(
                meta.sop_instance_uid, digest
            )
            if is_other:
                return "this instance is here with other content"
            self._recent[meta.sop_instance_uid] = digest
            if len(self._recent) > _MOST_RECENT:
                self._recent.popitem(last=False)
            return None
