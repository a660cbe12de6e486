"""The database: connections, transactions, migration and self-check. The only module that knows a dialect.

SQLite as facts and hazards demand it: `pysqlite3` (the interpreter's own library may carry the WAL-reset bug that
3.51.3 fixed), write-ahead log, synchronous=FULL, and BEGIN IMMEDIATE for every transaction that writes, so that a
writer waits at its beginning and never fails half-way. Never on a network file system.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pysqlite3
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from dicom_node.clock import Clock
from dicom_node.errors import RecordsError, SchemaError, UsageError
from dicom_node.records.schema import VIEWS, metadata

BUSY_TIMEOUT_MS: Final = 30_000
"""How long a writer waits for another one."""

FIRST_SOUND_SQLITE: Final = (3, 51, 3)
"""Earlier versions from 3.7.0 on can corrupt a database when two connections write and checkpoint at once."""

_SQLITE_PRAGMAS: Final = (
    f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",  # first: the next line may have to wait
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # a committed row survives a power cut
    "PRAGMA foreign_keys = ON",
    # 16 MB of 4 kB pages: whoever fills the log copies it back, and every 60th claim of a job is too often for that.
    "PRAGMA wal_autocheckpoint = 4000",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseCheck:
    """What `dicom-node check` says about the database."""

    version: str
    """Name and version of the library or server."""
    warning: str | None
    """What is wrong with that version; None when nothing is."""
    integrity: str
    """"ok", or what SQLite found."""
    schema: str
    """"current", "older", "newer" or "empty"."""


class Database:
    """Connections to the records of one node; safe to share between threads."""

    def __init__(self, engine: Engine, *, clock: Clock) -> None:
        self.clock = clock
        self._engine = engine
        self._reader = engine.execution_options(read_only=True, postgresql_readonly=True)
        self._is_sqlite = engine.dialect.name == "sqlite"

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; commit at the end, roll back on an error.

        Raises
        ------
        RecordsError
            When the database is locked, full or away.
        """
        with _operational_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection that sees one moment of the database and must not write. Raises RecordsError."""
        with _operational_errors(), self._reader.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the schema up to this program's version, in one transaction.

        Raises
        ------
        SchemaError
            When a newer program has written the database.
        """
        config = _alembic_config()
        with self.begin() as connection:
            if self._schema_state(connection) == "newer":
                raise SchemaError("the database was written by a newer program; install that one, or restore a backup")
            for name in VIEWS:
                connection.execute(text(f"DROP VIEW IF EXISTS {name}"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            for name, select_sql in VIEWS.items():
                connection.execute(text(f"CREATE VIEW {name} AS {select_sql(self._seconds_between)}"))

    def require_current(self) -> None:
        """Refuse to work on a schema that is not this program's.

        Raises
        ------
        SchemaError
            When the schema is older, newer or not there.
        """
        with self.read() as connection:
            state = self._schema_state(connection)
        if state != "current":
            raise SchemaError(None if state == "newer" else f"the database is {state}; run `dicom-node migrate`")

    def check(self) -> DatabaseCheck:
        """Return versions and integrity; reads every page of a SQLite file."""
        with self.read() as connection:
            integrity = "ok"
            if self._is_sqlite:
                integrity = "; ".join(connection.execute(text("PRAGMA integrity_check")).scalars())
            return DatabaseCheck(
                version=self._version(connection),
                warning=self._version_warning(),
                integrity=integrity,
                schema=self._schema_state(connection),
            )

    def copy_to(self, target: Path) -> None:
        """Write a consistent copy to a new file, while others read and write; to make it durable is the caller's.

        Raises
        ------
        UsageError
            When the database is no SQLite file.
        RecordsError
            When the database cannot be read, or the file not be written.
        """
        if not self._is_sqlite:
            raise UsageError("a PostgreSQL database is copied with pg_dump, and restored with pg_restore")
        with _operational_errors(), closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute("PRAGMA query_only = 0")
            cursor.execute("PRAGMA synchronous = OFF")  # of the copy: whoever asked for it makes it durable
            try:
                cursor.execute("VACUUM INTO ?", (str(target),))  # one moment of the database; no writer waits for it
            except pysqlite3.OperationalError as error:
                raise RecordsError(f"the database cannot be copied: {error}") from error
            finally:
                cursor.execute("PRAGMA synchronous = FULL")

    def counters(self) -> dict[str, int]:
        """Return the number of rows of each table."""
        with self.read() as connection:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
            }

    def _version(self, connection: Connection) -> str:
        if self._is_sqlite:
            return f"SQLite {connection.execute(text('SELECT sqlite_version()')).scalar_one()}"
        return str(connection.execute(text("SELECT version()")).scalar_one())

    def _version_warning(self) -> str | None:
        version: tuple[int, ...] = pysqlite3.sqlite_version_info
        if not self._is_sqlite or version >= FIRST_SOUND_SQLITE:
            return None
        return f"SQLite {'.'.join(map(str, version))} can corrupt a database in WAL mode; install pysqlite3 >= 0.6.1"

    def _seconds_between(self, later: str, earlier: str) -> str:
        if self._is_sqlite:
            return f"round((julianday({later}) - julianday({earlier})) * 86400, 3)"
        return f"extract(epoch FROM {later} - {earlier})"

    def _schema_state(self, connection: Connection) -> str:
        script = ScriptDirectory.from_config(_alembic_config())
        heads = MigrationContext.configure(connection).get_current_heads()
        if not heads:
            return "empty"
        if heads == tuple(script.get_heads()):
            return "current"
        known = {revision.revision for revision in script.walk_revisions()}
        return "older" if set(heads) <= known else "newer"


@contextmanager
def _operational_errors() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:  # operational ones, and a file that is no database or damaged
        if not isinstance(error, OperationalError) and type(error) is not DatabaseError:
            raise
        raise RecordsError(f"the database cannot be used now: {error.orig}") from error


def open_database(url_or_path: str | Path, *, clock: Clock) -> Database:
    """Return the database at a path (a SQLite file, made when absent) or an SQLAlchemy URL. It does not migrate."""
    is_url = isinstance(url_or_path, str) and "://" in url_or_path
    url = make_url(str(url_or_path) if is_url else f"sqlite:///{url_or_path}")
    if url.get_backend_name() != "sqlite":
        return Database(create_engine(url), clock=clock)
    # A thread that finds no free connection makes one more: SQLite's own lock is the queue.
    engine = create_engine(url, module=pysqlite3, max_overflow=-1)
    folder = Path(url.database).absolute().parent if url.database not in (None, "", ":memory:") else None
    event.listen(engine, "connect", partial(_prepare_sqlite, folder=folder))
    event.listen(engine, "begin", _begin_sqlite)
    return Database(engine, clock=clock)


def _prepare_sqlite(connection: Any, _record: object, folder: Path | None) -> None:
    """Set a new connection up.

    The change of a new file to a write-ahead log waits for nobody, it fails when another connection looks on; so the
    roles of a fresh node take turns, by a lock on the folder (one on the file would disturb SQLite's own).
    """
    connection.isolation_level = None  # the driver would begin transactions of its own, too late and deferred
    with _locked(folder), closing(connection.cursor()) as cursor:
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)


@contextmanager
def _locked(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _alembic_config() -> Config:
    """Return alembic's configuration: the revisions lie beside this file, installed or not; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
