"""Facts become rows, behind the shelf: an instance is shelved first, described, and then written, in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from dicom_node.errors import NotFoundError, RecordsError, StorageError, UndecodableError
from dicom_node.filing import InstanceStore
from dicom_node.ids import ProcessIdentity
from dicom_node.indexing.facts import Closed, Fact, Opened, Recovered
from dicom_node.indexing.reception import LARGEST_BATCH
from dicom_node.logs import Log
from dicom_node.reading import describe
from dicom_node.records import Studies
from dicom_node.study import Arrival, FiledInstance, InstanceDescription


class Indexing:
    """Facts become rows. Runs in a process of its own, so that it takes no time from receiving."""

    def __init__(self, store: InstanceStore, studies: Studies, *, log: Log) -> None:
        self._store = store
        self._studies = studies
        self._log = log
        self._is_postponed = False
        """The last batch could not be written; that was said."""

    def index(self, facts: Sequence[Fact], active: Mapping[str, datetime]) -> int:
        """Deal with facts in order and return how many are dealt with: fewer when the disk or database refuses.

        Dealing with one again is harmless.
        """
        done = 0
        try:
            self._studies.touch_associations(active)
            for is_arrivals, group in itertools.groupby(facts, key=lambda fact: isinstance(fact, Arrival)):
                members = list(group)
                if is_arrivals:
                    self._index_arrivals([fact for fact in members if isinstance(fact, Arrival)])
                else:
                    self._index_associations(members)
                done += len(members)
        except (StorageError, RecordsError) as error:
            if not self._is_postponed:
                self._log.error("index.postponed", reason=str(error), count=len(facts) - done)
            self._is_postponed = True
        else:
            self._is_postponed = False
        return done

    def _index_arrivals(self, arrivals: Sequence[Arrival]) -> None:
        shelved = []
        for arrival in arrivals:
            try:
                shelved.append((arrival, self._store.shelve(arrival)))
            except NotFoundError:
                self._log.warning("instance.gone", sop_instance_uid=arrival.meta.sop_instance_uid)
        index_files(self._studies, [filed for _, filed in shelved], self._log)
        for arrival, filed in shelved:
            if not filed.path.exists():  # a purge took the same content away before it knew that it came again
                self._store.shelve(arrival)

    def _index_associations(self, facts: Sequence[Fact]) -> None:
        for fact in facts:
            match fact:
                case Opened():
                    self._studies.open_association(fact.association, fact.process)
                case Closed():
                    self._studies.release_association(fact.association_id, fact.at, fact.how)
                case Recovered():
                    self._adopt_shelf()
                    self._studies.orphan_associations(ProcessIdentity.is_alive)

    def _adopt_shelf(self) -> None:
        """Write the rows of the versions on the shelf when there is no row at all: the database was lost, or is new.

        Otherwise nothing is looked at, however many versions there are: what waits for its row was told before.
        """
        if not self._studies.is_empty():
            return
        shelf, count = self._store.sweep(), 0
        while batch := list(itertools.islice(shelf, LARGEST_BATCH)):
            index_files(self._studies, batch, self._log)
            count += len(batch)
        self._log.info("store.adopted", count=count)


def index_files(studies: Studies, instances: Iterable[FiledInstance], log: Log) -> None:
    """Write the rows of filed instances; what cannot be described stays filed and is logged with the reason."""
    described: list[tuple[FiledInstance, InstanceDescription]] = []
    for instance in instances:
        try:
            described.append((instance, describe(instance.path)))
        except FileNotFoundError:  # a purge took it away; the arrival is still here, and is shelved once more
            raise StorageError("an instance left the shelf while it was indexed") from None
        except UndecodableError as error:
            log.warning("instance.unreadable", sop_instance_uid=instance.sop_instance_uid, reason=error.reason)
    if described:
        studies.index(
            described,
            on_kept_back=lambda one, reason: log.warning(
                "instance.kept_back", sop_instance_uid=one.sop_instance_uid, calling_ae=one.calling_ae, reason=reason
            ),
            on_held=lambda uid: log.warning("study.held", study_instance_uid=uid, reason="two Patient IDs"),
            on_withdrawn=lambda uid, taken: log.warning(
                "instances.withdrawn", study_instance_uid=uid, count=taken.n_instances
            ),
        )
