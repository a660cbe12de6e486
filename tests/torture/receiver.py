"""A receiver to be tortured: `dicom-node serve --role receiver` in its own process group, and what it left on disk."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from pynetdicom.dsutils import split_dataset
from sqlalchemy import text

from dicom_node.app import Node
from dicom_node.filing.layout import PART_SUFFIX, digest_in
from dicom_node.records import open_database
from tests import peers
from tests.torture.sender import CALLED, CALLING, Object, Scanner

CONFIG: Final = """
[node]
ae_titles = ["{called}"]
data_dir = "{data_dir}"

[receive]
host = "{host}"
port = {port}
idle_timeout_s = {idle_timeout_s}

[storage]
reserve_mb = {reserve_mb}
journal_mb = {journal_mb}
on_conflict = "{on_conflict}"

[plugins]
paths = []

[[peer]]
name = "scanner"
ae_title = "{calling}"
hosts = {hosts}
may = ["echo", "store"]
"""


class Receiver:
    """The folder of a receiver, its processes, and what files and rows say.

    Parameters
    ----------
    data_dir
        Where it keeps everything; a folder in `folder` by default.
    wrap
        Words before the command: strace, or `ip netns exec`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        data_dir: Path | None = None,
        host: str = "127.0.0.1",
        hosts: Sequence[str] = ("127.0.0.1/32",),
        reserve_mb: int = 0,
        journal_mb: int = 64,
        on_conflict: str = "replace_if_same_source",
        idle_timeout_s: float = 300,
        wrap: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = host
        self.port = peers.free_port()
        self.wrap = tuple(wrap)
        self.log = folder / "receiver.log"
        config_file = folder / "config.toml"
        config_file.write_text(
            CONFIG.format(
                called=CALLED,
                calling=CALLING,
                data_dir=data_dir or folder / "data",
                host=host,
                port=self.port,
                idle_timeout_s=idle_timeout_s,
                reserve_mb=reserve_mb,
                journal_mb=journal_mb,
                on_conflict=on_conflict,
                hosts=list(hosts),
            ),
            encoding="utf-8",
        )
        self.node = Node(config_file)
        self.store_folder = self.node.data_dir / "received"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever runs of it."""
        self.stop()

    @property
    def pid(self) -> int:
        """The receiver itself, or what it is wrapped in."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the receiver, and wait for nothing."""
        command = [sys.executable, "-P", "-m", "dicom_node", "serve", "--role", "receiver"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.wrap, *command, "--config", str(self.node.config_file)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """Start the receiver and wait until it listens."""
        before = self.log.stat().st_size if self.log.exists() else 0
        self.launch()
        assert self._process is not None
        process = self._process
        listens = lambda: b'"listening"' in self.log.read_bytes()[before:]  # noqa: E731
        held = peers.eventually(lambda: listens() or process.poll() is not None, timeout_s=60, every_s=0.02)
        assert held, f"the receiver does not listen:\n{self.last_words()}"
        assert process.poll() is None, f"the receiver ended:\n{self.last_words()}"

    def kill(self) -> None:
        """End all of its processes at once, by SIGKILL to the whole group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End it in order; one that is gone already is fine."""
        if self._process is None:
            return
        main = self.main_pid()
        if main is not None:
            os.kill(main, signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self._process = None

    def main_pid(self) -> int | None:
        """Return the process that listens, whatever it is wrapped in; None when it is gone."""
        tree = [self.pid, *descendants(self.pid)]
        return next((pid for pid in tree if "--role" in words_of(pid)[:8] and "strace" not in words_of(pid)[0]), None)

    def indexer_pid(self) -> int | None:
        """Return the process that indexes, None while there is none."""
        return next((pid for pid in descendants(self.pid) if "spawn_main" in " ".join(words_of(pid))), None)

    def is_listening(self) -> bool:
        """Return whether a connection is taken."""
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0

    def last_words(self) -> str:
        """Return the end of the log."""
        return self.log.read_text(errors="replace")[-4000:]

    # What it says and left

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what the records answer to a query."""
        database = open_database(self.node.data_dir / "records.sqlite", clock=self.node.clock)
        try:
            with database.read() as connection:
                return [tuple(row) for row in connection.execute(text(query))]
        finally:
            database.close()

    def versions(self) -> dict[tuple[str, str], Path]:
        """Return the file of each version that has a row, by SOP Instance UID and digest."""
        rows = self.rows("SELECT sop_instance_uid, digest, path FROM instance")
        return {(uid, digest): Path(path) for uid, digest, path in rows}

    def wait_for(self, holds: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Wait for a condition; where it never holds, fail with the receiver's last words."""
        assert peers.eventually(holds, timeout_s=timeout_s), f"never: {what}\n{self.last_words()}"

    def wait_until_indexed(self, versions: Iterable[tuple[str, str]], timeout_s: float = 60) -> None:
        """Wait until each version has its row."""
        wanted = set(versions)
        self.wait_for(lambda: wanted <= self.versions().keys(), f"{len(wanted)} versions are indexed", timeout_s)

    def shelf_files(self) -> list[Path]:
        """Return the path of every file on the shelf."""
        return [path for path in (self.store_folder / "instances").rglob("*") if path.is_file()]

    def leftovers(self) -> list[Path]:
        """Return what lies among the arrivals: parts, and files that wait to be shelved."""
        return sorted((self.store_folder / "incoming").iterdir())


def books(scanners: Iterable[Scanner]) -> tuple[Mapping[tuple[str, str], Object], Mapping[tuple[str, str], Object]]:
    """Return what was acknowledged and what was sent, of all scanners together."""
    acknowledged: dict[tuple[str, str], Object] = {}
    sent: dict[tuple[str, str], Object] = {}
    for scanner in scanners:
        acknowledged |= scanner.acknowledged
        sent |= scanner.sent
    return acknowledged, sent


def assert_nothing_lost(receiver: Receiver, scanners: Iterable[Scanner], *, except_parts: bool = False) -> None:
    """Each acknowledged version has one row and one file with the bytes that were sent; no file is torn, none is extra.

    Waits for indexing first; then the receiver is stopped, and nothing waits in the store (`except_parts`: but parts).
    """
    acknowledged, sent = books(scanners)
    receiver.wait_until_indexed(acknowledged)
    receiver.wait_for(lambda: not _unreleased(receiver), "everything that arrived is released")
    receiver.stop()
    assert [] == [path for path in receiver.leftovers() if not except_parts or path.suffix != PART_SUFFIX]
    assert [] == list(receiver.node.store.leftovers())
    rows = receiver.versions()
    assert set() == acknowledged.keys() - rows.keys()
    assert set() == rows.keys() - sent.keys()
    files = receiver.shelf_files()
    assert sorted(files) == sorted(rows.values())
    assert [] == [path for path in files if digest_in(path.name) != data_set_digest(path)]
    assert [] == [path for (_, digest), path in rows.items() if digest_in(path.name) != digest]


def assert_each_current_once(receiver: Receiver) -> None:
    """Of each instance one version counts."""
    counts = Counter(uid for (uid,) in receiver.rows("SELECT sop_instance_uid FROM instance WHERE is_current"))
    assert {1} == set(counts.values())
    assert len(counts) == receiver.rows("SELECT count(DISTINCT sop_instance_uid) FROM instance")[0][0]


def _unreleased(receiver: Receiver) -> bool:
    return any(True for _ in receiver.node.store.leftovers())


def data_set_digest(path: Path) -> str:
    """Return SHA-256 of the data set in a DICOM file, as another reader than ours finds it."""
    _meta, offset = split_dataset(path)
    return hashlib.sha256(path.read_bytes()[offset:]).hexdigest()


def words_of(pid: int) -> list[str]:
    """Return the command line of a process; nothing when it is gone."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def descendants(pid: int) -> list[int]:
    """Return the living descendants of a process, nearest first."""
    found: list[int] = []
    found += _children(pid)
    for one in found:
        found += [child for child in _children(one) if child not in found]
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = list((Path("/proc") / str(pid) / "task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_gone(pid: int) -> bool:
    """Return whether a process has ended (a zombie has)."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def pause(seconds: float) -> None:
    """Let a drawn moment come: it is what is tested, nothing waits for it."""
    time.sleep(seconds)
