"""Copies of the records, and the way back: checked before they count, and nothing is thrown away.

    backup    VACUUM INTO beside the running node -> integrity check of the copy -> rename
    restore   copy, check, put the present file aside, rename, migrate, and let rows and files agree again

Images and results are not part of a copy: rows whose files were purged since say so afterwards, and files that came
since get their rows. Never while the node serves.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicom_node.clock import Clock
from dicom_node.errors import NotFoundError, RecordsError, SchemaError, UsageError
from dicom_node.filing import InstanceStore
from dicom_node.filing.durable import fsync_folder, make_folders, storage_error
from dicom_node.indexing.rows import index_files
from dicom_node.logs import Log
from dicom_node.processes import alone, locked
from dicom_node.records import Database, Purges, Studies, open_database

_BATCH: Final = 256
_WRITE_OUT_S: Final = 0.02
"""Between two flushes of a copy under way: a few megabytes each."""
_SIDES: Final = ("-wal", "-shm", "")
"""What belongs to a SQLite file; the file itself goes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a restore did."""

    replaced: Path | None
    """Where the database that was replaced lies."""
    schema: str
    """Of the copy: current, or older and migrated."""
    n_lost: int
    """Rows whose files are not here any more; they are marked as purged."""
    n_indexed: int
    """Files that came after the copy was made; they got their rows."""


def backup(database: Database, target: Path, *, clock: Clock) -> None:
    """Write a checked copy of the records to a new file, beside whatever uses them.

    Raises
    ------
    UsageError
        When the file exists, or the database is no SQLite file.
    RecordsError
        When the database cannot be read, or the copy is damaged.
    StorageError
        When the disk refuses.
    """
    if target.exists():
        raise UsageError(f"{target} exists already; a backup replaces nothing")
    part = target.with_name(target.name + ".part")
    try:
        make_folders(target.parent)
        part.unlink(missing_ok=True)
        with _written_out(part):
            database.copy_to(part)
        _check(part, clock)
        _synchronise(part)
        part.rename(target)
        fsync_folder(target.parent)
    except OSError as error:
        raise storage_error("writing a backup", error) from error
    finally:
        part.unlink(missing_ok=True)


def restore(source: Path, records: Path, store: InstanceStore, *, data_dir: Path, clock: Clock, log: Log) -> Restored:
    """Put a copy in the place of the records, while no role runs.

    Raises
    ------
    NotFoundError
        When there is no such file.
    UsageError
        When the node serves.
    RecordsError
        When the copy is damaged, or is no database.
    SchemaError
        When a newer program has written it.
    StorageError
        When the disk refuses.
    """
    if not source.is_file():
        raise NotFoundError(f"{source} does not exist")
    with alone(data_dir):
        part = records.with_name(records.name + ".restoring")
        try:
            shutil.copyfile(source, part)
            schema = _check(part, clock)
            _synchronise(part)
            replaced = _put_aside(records, f"{clock.now():%Y%m%dT%H%M%S}")
            part.rename(records)
            fsync_folder(records.parent)
        except OSError as error:
            raise storage_error("restoring the records", error) from error
        finally:
            part.unlink(missing_ok=True)
        database = open_database(records, clock=clock)
        try:
            database.migrate()
            n_lost = _mark_lost(Purges(database))
            n_indexed = _index_missing(Studies(database), store, log)
        finally:
            database.close()
    return Restored(replaced=replaced, schema=schema, n_lost=n_lost, n_indexed=n_indexed)


class Nightly:
    """One copy a day in a folder, of which the newest are kept."""

    def __init__(self, database: Database, folder: Path, *, hour: int, keep: int, clock: Clock, log: Log) -> None:
        """`hour`: of the machine's day, from which on the copy is made; `keep` 0: none is made."""
        self._database = database
        self._folder = folder
        self._hour = hour
        self._keep = keep
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Make today's copy when it is due and not there; return False, so that the next look comes after a pause."""
        now = self._clock.now().astimezone()
        target = self._folder / f"records-{now:%Y-%m-%d}.sqlite"
        if not self._keep or now.hour < self._hour or target.exists():
            return False
        with locked(self._folder / ".turn") as is_ours:
            if is_ours and not target.exists():
                backup(self._database, target, clock=self._clock)
                for old in sorted(self._folder.glob("records-????-??-??.sqlite"))[: -self._keep]:
                    old.unlink(missing_ok=True)
                self._log.info("backup.made", file=target.name, bytes=target.stat().st_size)
        return False


def _check(copy: Path, clock: Clock) -> str:
    """Return the schema of a copy that is whole. Raises RecordsError, SchemaError."""
    database = open_database(copy, clock=clock)
    try:
        found = database.check()
    finally:
        database.close()
        for side in _SIDES[:-1]:
            Path(f"{copy}{side}").unlink(missing_ok=True)
    if found.integrity != "ok":
        raise RecordsError(f"the copy of the records is damaged: {found.integrity}")
    if found.schema == "newer":
        raise SchemaError("the backup was written by a newer program; install that one first")
    if found.schema == "empty":
        raise RecordsError("the file is no backup: it has none of the tables of the records")
    return found.schema


@contextmanager
def _written_out(file: Path) -> Iterator[None]:
    """Bring a file to the disk while it grows: all of it at once would hold up every scanner meanwhile."""
    done = threading.Event()
    failures: list[OSError] = []

    def follow() -> None:
        while not done.wait(_WRITE_OUT_S) and not failures:
            try:
                _synchronise(file)
            except FileNotFoundError:
                continue  # not yet
            except OSError as error:  # the next fsync would not tell of it
                failures.append(error)

    thread = threading.Thread(target=follow, name="backup", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


def _synchronise(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_aside(records: Path, when: str) -> Path | None:
    """Rename the present database, its write-ahead log with it; return its new name."""
    if not records.exists():
        return None
    aside = records.with_name(f"{records.name}.replaced-{when}")
    for side in _SIDES:
        with suppress(FileNotFoundError):
            Path(f"{records}{side}").rename(f"{aside}{side}")
    return aside


def _mark_lost(purges: Purges) -> int:
    """Mark the rows whose files are gone; return how many."""
    after, count = ("", "", ""), 0
    while found := purges.kept_files(after, _BATCH):
        gone = [one for one in found if not one[1].path.exists()]
        if gone:
            purges.lost(gone)
            count += len(gone)
        after = (found[-1][0], found[-1][1].name, found[-1][1].digest)
    return count


def _index_missing(studies: Studies, store: InstanceStore, log: Log) -> int:
    """Write the rows of what stands on the shelf without one; return how many."""
    missing = (one for one in store.sweep() if not studies.is_indexed(one.sop_instance_uid, one.digest))
    count = 0
    while batch := list(itertools.islice(missing, _BATCH)):
        index_files(studies, batch, log)
        count += len(batch)
    return count
