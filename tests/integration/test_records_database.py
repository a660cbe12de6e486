"""The database under the records: migration, transactions, times, the choice of SQLite's settings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from dicom_node.clock import ManualClock
from dicom_node.errors import RecordsError, SchemaError
from dicom_node.records import Database, open_database
from dicom_node.records.schema import association_study, instance, metadata, study

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - the mistake that is to be refused


@pytest.fixture
def database(tmp_path: Path) -> Database:
    """Return a migrated database in a file."""
    database = open_database(tmp_path / "records.sqlite", clock=ManualClock())
    database.migrate()
    return database


def _study(uid: str, at: datetime) -> dict[str, object]:
    times = {"first_received": at, "last_received": at}
    return {
        "study_instance_uid": uid,
        "patient_id": "P",
        "state": "receiving",
        "revision": 1,
        "decided_revision": 0,
        **times,
    }


def test_revisions_make_the_tables_of_the_schema(database: Database) -> None:
    """What the migrations build and what the code expects are the same tables, columns, keys and indexes."""
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert [] == compare_metadata(context, metadata)


def test_migration_needs_no_file_but_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed node migrates from any folder, without an alembic.ini, through a path with odd characters."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "50% of it"
    odd.mkdir()
    database = open_database(odd / "records.sqlite", clock=ManualClock())
    database.migrate()
    assert "current" == database.check().schema


def test_second_migration_changes_nothing(database: Database) -> None:
    """Every role may migrate at its start."""
    with database.begin() as connection:
        connection.execute(insert(study).values(_study("1.2", datetime(2026, 1, 1, tzinfo=UTC))))
    database.migrate()
    assert 1 == database.counters()["study"]


def _at_once(n: int, act: Callable[[], None]) -> list[BaseException]:
    """Run `act` in threads that start together; return what they raised."""
    failures: list[BaseException] = []
    barrier = threading.Barrier(n)

    def run() -> None:
        barrier.wait()
        try:
            act()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def test_four_roles_may_migrate_at_once(tmp_path: Path) -> None:
    """The roles of a fresh node start together; one of them makes the tables and none fails."""

    def migrate() -> None:
        database = open_database(tmp_path / "records.sqlite", clock=ManualClock())
        database.migrate()
        database.require_current()
        database.close()

    assert [] == _at_once(4, migrate)


def test_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """The change to a write-ahead log waits for nobody; connections take turns."""
    for number in range(20):
        path = tmp_path / f"{number}.sqlite"

        def read(path: Path = path) -> None:
            database = open_database(path, clock=ManualClock())
            with database.read() as connection:
                connection.execute(text("SELECT 1"))
            database.close()

        assert [] == _at_once(6, read)


def test_newer_schema_is_refused(database: Database) -> None:
    """A program that went back to an older version must not write into tables that it does not know."""
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(SchemaError):
        database.migrate()
    with pytest.raises(SchemaError):
        database.require_current()
    assert "newer" == database.check().schema


def test_empty_database_is_not_worked_on(tmp_path: Path) -> None:
    """Without tables the remedy is named."""
    with pytest.raises(SchemaError, match="dicom-node migrate"):
        open_database(tmp_path / "records.sqlite", clock=ManualClock()).require_current()


def test_naive_time_is_refused(database: Database) -> None:
    """A time without zone never reaches a table."""
    with pytest.raises(StatementError, match="aware"), database.begin() as connection:
        connection.execute(insert(study).values(_study("1.2", NAIVE)))
    assert 0 == database.counters()["study"]


def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    """Whatever zone a time was written in, it is the same moment in UTC, to the microsecond, and it compares."""
    summer = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with database.begin() as connection:
        connection.execute(insert(study).values(_study("1.2", summer)))
        read = connection.execute(select(study.c.first_received)).scalar_one()
        before = select(study.c.revision).where(study.c.first_received < datetime(2026, 7, 1, 11, tzinfo=UTC))
        assert [1] == list(connection.execute(before).scalars())
    assert (summer, timedelta(0)) == (read, read.utcoffset())


@pytest.mark.parametrize(
    ("pragma", "expected"),
    [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 30_000)],
)
def test_every_connection_is_set_up(database: Database, pragma: str, expected: object) -> None:
    """Write-ahead log, FULL synchronisation, foreign keys and patience hold on each connection."""
    with database.read() as one, database.read() as other:
        for connection in (one, other):
            assert expected == connection.execute(text(f"PRAGMA {pragma}")).scalar_one()


def test_check_names_a_sound_library(database: Database) -> None:
    """The SQLite that the node brings along is past the WAL-reset bug, and the file is whole."""
    check = database.check()
    assert ("ok", "current", None) == (check.integrity, check.schema, check.warning)
    assert check.version.startswith("SQLite 3.")


def test_foreign_keys_hold(database: Database) -> None:
    """A row that names a study that is not there is refused."""
    values = {"association": "a", "study_instance_uid": "9.9", "last_received_at": datetime(2026, 1, 1, tzinfo=UTC)}
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(insert(association_study).values(values))


def test_error_rolls_the_whole_transaction_back(database: Database) -> None:
    """Nothing of a transaction that fails half-way stays."""
    values = _study("1.2", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(insert(study), [values, values])
    assert 0 == database.counters()["study"]


def test_two_writers_wait_for_each_other(database: Database) -> None:
    """A read-modify-write is never lost: writers queue at the beginning of their transactions."""
    with database.begin() as connection:
        connection.execute(insert(study).values(_study("1.2", datetime(2026, 1, 1, tzinfo=UTC))))

    def raise_revision() -> None:
        for _ in range(25):
            with database.begin() as connection:
                revision = connection.execute(select(study.c.revision)).scalar_one()
                connection.execute(update(study).values(revision=revision + 1))

    assert [] == _at_once(4, raise_revision)
    with database.read() as connection:
        assert 101 == connection.execute(select(study.c.revision)).scalar_one()


def test_reader_is_not_held_up_by_a_writer(database: Database) -> None:
    """While a transaction writes, others read the state before it."""
    with database.begin() as writer:
        writer.execute(insert(study).values(_study("1.2", datetime(2026, 1, 1, tzinfo=UTC))))
        assert 0 == database.counters()["study"]
    assert 1 == database.counters()["study"]


def test_reader_cannot_write(database: Database) -> None:
    """A read transaction that tries to write is refused, it would escape the queue of the writers."""
    with pytest.raises(RecordsError, match="readonly"), database.read() as connection:
        connection.execute(insert(study).values(_study("1.2", datetime(2026, 1, 1, tzinfo=UTC))))
    with database.begin() as connection:
        connection.execute(insert(study).values(_study("1.2", datetime(2026, 1, 1, tzinfo=UTC))))


def test_no_patient_attribute_but_the_id() -> None:
    """Of the patient, the tables know the identifier and its issuer; everything else stays in headers and files."""
    named = {f"{table.name}.{column.name}" for table in metadata.tables.values() for column in table.columns}
    identifiers = {"study.patient_id", "instance.patient_id", "instance.issuer_of_patient_id"}
    assert identifiers == {name for name in named if "patient" in name or "birth" in name or "sex" in name}
    assert "header" not in instance.columns
