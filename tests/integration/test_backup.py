"""Backup, restore and migrate: copies that were checked, a way back that throws nothing away, never under a node."""

from __future__ import annotations

import errno
import sqlite3
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text, update

from dicom_node.backup import Nightly, backup, restore
from dicom_node.clock import ManualClock
from dicom_node.errors import NotFoundError, RecordsError, SchemaError, StorageError, UsageError
from dicom_node.logs import Log
from dicom_node.processes import alone, serving
from dicom_node.records import Database, open_database
from dicom_node.records.database import _alembic_config
from dicom_node.records.schema import study
from tests import peers
from tests.integration.cli_case import CommandLine
from tests.integration.records_case import STUDY, Records, image
from tests.integration.test_retention import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with a study of three images."""
    site = Site(tmp_path)
    site.receive(3)
    return site


def _restore(site: Site, source: Path) -> object:
    site.records.database.close()
    folder = site.store._root.parent
    return restore(source, folder / "records.sqlite", site.store, data_dir=folder, clock=site.clock, log=Log("test"))


def test_a_backup_holds_what_was_committed(site: Site, tmp_path: Path) -> None:
    """A whole file, with every row, that needs no other; nothing else is left behind."""
    target = tmp_path / "copies" / "one.sqlite"
    backup(site.records.database, target, clock=site.clock)
    assert [target] == list(target.parent.iterdir())
    copy = open_database(target, clock=site.clock)
    assert ("ok", "current") == (copy.check().integrity, copy.check().schema)
    assert site.records.database.counters() == copy.counters()
    copy.close()


def test_writers_do_not_wait_for_a_backup(site: Site, tmp_path: Path) -> None:
    """Rows are written while copies are made, one after the other."""
    done = threading.Event()

    def copy() -> None:
        number = 0
        while not done.is_set():
            site.records.database.copy_to(tmp_path / f"{number}.sqlite")
            number += 1

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        for number in range(30):
            site.records.studies.index([image(number, study="1.5", series="1.5.1")])
    finally:
        done.set()
        thread.join()
    assert 30 == site.records.studies.show("1.5").n_instances


def test_a_copy_that_the_disk_lost_under_way_is_none(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush while it grows fails once, and later ones would succeed: an error all the same, and no file."""
    flushes = iter([OSError(errno.EIO, "lost")])
    copy_to, failed = Database.copy_to, threading.Event()

    def flush(file: Path) -> None:
        file.stat()  # not there yet: no failure of the disk
        for error in flushes:
            failed.set()
            raise error

    def copy(database: Database, target: Path) -> None:
        copy_to(database, target)
        assert failed.wait(10)

    monkeypatch.setattr("dicom_node.backup._synchronise", flush)
    monkeypatch.setattr(Database, "copy_to", copy)
    with pytest.raises(StorageError, match="writing a backup"):
        backup(site.records.database, tmp_path / "copies" / "one.sqlite", clock=site.clock)
    assert [] == list((tmp_path / "copies").iterdir())


def test_a_backup_replaces_nothing(site: Site, tmp_path: Path) -> None:
    """An existing file is left as it is."""
    target = tmp_path / "one.sqlite"
    target.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        backup(site.records.database, target, clock=site.clock)
    assert "mine" == target.read_text()


def test_a_damaged_copy_is_none(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that fails the integrity check never gets its name."""
    copy_to = Database.copy_to

    def damaged(self: Database, target: Path) -> None:
        copy_to(self, target)
        with target.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * (target.stat().st_size - 4096))

    monkeypatch.setattr(Database, "copy_to", damaged)
    with pytest.raises(RecordsError, match="damaged|malformed"):
        backup(site.records.database, tmp_path / "one.sqlite", clock=site.clock)
    assert [] == list(tmp_path.glob("one*"))


def test_postgresql_has_its_own_tool(tmp_path: Path) -> None:
    """There the command says what to use."""
    database = open_database(tmp_path / "records.sqlite", clock=ManualClock())
    database._is_sqlite = False
    with pytest.raises(UsageError, match="pg_dump"):
        backup(database, tmp_path / "one.sqlite", clock=ManualClock())
    database.close()


def test_restore_brings_rows_and_files_together(site: Site, tmp_path: Path) -> None:
    """What was purged since is marked, what came since gets its rows, and what was replaced is kept whole."""
    site.receive(2, study_uid="1.7")
    copy = tmp_path / "copy.sqlite"
    backup(site.records.database, copy, clock=site.clock)
    before = copy.read_bytes()
    site.retention().purge(STUDY)
    site.receive(2, study_uid="1.8")
    done = _restore(site, copy)
    assert (3, 2, "current") == (done.n_lost, done.n_indexed, done.schema)
    assert ("purged", "complete", "receiving") == (site.state(), site.state("1.7"), site.state("1.8"))
    assert before == copy.read_bytes()
    replaced = open_database(done.replaced, clock=site.clock)
    with replaced.read() as connection:
        assert 3 == connection.execute(text("SELECT count(*) FROM study")).scalar_one()
    replaced.close()


def test_what_is_no_sound_backup_is_not_restored(site: Site, tmp_path: Path) -> None:
    """A text, a damaged copy, a foreign database, a newer schema: each refused, the records stay as they are."""
    (tmp_path / "text").write_text("hello " * 1000)
    damaged = tmp_path / "damaged"
    backup(site.records.database, damaged, clock=site.clock)
    with damaged.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (damaged.stat().st_size - 4096))
    with sqlite3.connect(tmp_path / "foreign") as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    newer = tmp_path / "newer"
    backup(site.records.database, newer, clock=site.clock)
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'from_the_future'")
    connection.close()
    for name, error in {
        "text": RecordsError,
        "damaged": RecordsError,
        "foreign": RecordsError,
        "newer": SchemaError,
        "nowhere": NotFoundError,
    }.items():
        with pytest.raises(error):
            _restore(site, tmp_path / name)
        assert "complete" == site.state(), name
    assert [] == [path.name for path in tmp_path.glob("records.sqlite.*")]


def test_nothing_is_restored_under_a_node(site: Site, tmp_path: Path) -> None:
    """While a role holds the sign, restore refuses; while a restore works, no role starts; two roles may serve."""
    copy = tmp_path / "copy.sqlite"
    backup(site.records.database, copy, clock=site.clock)
    with serving(tmp_path), serving(tmp_path), pytest.raises(UsageError, match="serving"):
        _restore(site, copy)
    with alone(tmp_path), pytest.raises(UsageError, match="restore"), serving(tmp_path):
        pass
    _restore(site, copy)


def test_one_copy_a_day_and_the_newest_are_kept(site: Site, tmp_path: Path) -> None:
    """From the hour on, once a day, whoever looks how often; the oldest goes when there are more than `keep`."""
    folder = tmp_path / "backup"
    clock = ManualClock(datetime(2026, 3, 1, 2, 59, tzinfo=UTC).astimezone())
    offset_h = clock.now().astimezone().hour - 2
    nightly = Nightly(site.records.database, folder, hour=(3 + offset_h) % 24, keep=2, clock=clock, log=Log("test"))
    if offset_h == 0:
        nightly.step()
        assert not list(folder.glob("*"))
    names = []
    for _ in range(4):
        clock.advance(3600)
        for _ in range(3):
            nightly.step()
        names.append(f"records-{clock.now().astimezone():%Y-%m-%d}.sqlite")
        clock.advance(23 * 3600)
    assert names[-2:] == sorted(path.name for path in folder.glob("[!.]*"))
    never = Nightly(site.records.database, tmp_path / "no", hour=0, keep=0, clock=clock, log=Log("test"))
    assert not never.step()
    assert not (tmp_path / "no").exists()


def test_a_database_of_the_first_version_is_brought_up(tmp_path: Path) -> None:
    """Rows of the first schema get what later ones ask for, while other tables refer to them."""
    database = open_database(tmp_path / "records.sqlite", clock=ManualClock())
    config = _alembic_config()
    with database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for line in (
            "INSERT INTO study VALUES ('1.2', 'P7', 'complete', '2026-01-01', '2026-01-01', 1, 1)",
            "INSERT INTO series VALUES ('1.2', '1.2.1', '{}', '1.2.1.1', 'A', 'B', 1, 1,"
            " '2026-01-01', '2026-01-01', 1, 1)",
            "INSERT INTO instance VALUES ('1.2', '1.2.1.1', 'd', '1.2.1', 'c', 't', 'p', 1, 'A', 'B', NULL,"
            " '2026-01-01', 1, 1, 0, 1, '[]')",
        ):
            connection.execute(text(line))
    database.migrate()
    with database.read() as connection:
        rows = connection.execute(text("SELECT patient_id, issuer_of_patient_id, withdrawn, purged_at FROM instance"))
        assert [("P7", "", None, None)] == [tuple(row) for row in rows]
    database.close()


@pytest.fixture
def dicom_node(tmp_path: Path, monkeypatch, capsys) -> CommandLine:
    """Return the command line of a node whose folder is fresh."""
    return CommandLine(tmp_path, peers.free_port(), peers.free_port(), monkeypatch, capsys)


def test_the_commands(dicom_node: CommandLine, tmp_path: Path) -> None:
    """backup, restore and migrate as an administrator types them."""
    data = tmp_path / "var"
    data.mkdir()
    records = Records(data / "records.sqlite")
    records.studies.index([image(1)])
    copy = tmp_path / "copy.sqlite"
    made = dicom_node("backup", copy, "--json").json
    assert {"file": str(copy), "size_bytes": copy.stat().st_size} == made
    assert 2 == dicom_node("backup", copy).status
    with records.database.begin() as connection:
        connection.execute(update(study).values(state="held"))
    records.database.close()
    with serving(data):
        said = dicom_node("restore", copy)
        assert (2, True) == (said.status, "serving" in said.err)
    assert 0 == dicom_node("restore", copy).status
    # The image of this test has no file.
    assert [("receiving", 1)] == [(row.state, row.n_instances) for row in records.studies.list()]
    assert 3 == dicom_node("restore", tmp_path / "nowhere").status
    assert {"before": "current", "now": "current"} == dicom_node("migrate", "--json").json
    assert "nothing to do" in dicom_node("migrate").out
