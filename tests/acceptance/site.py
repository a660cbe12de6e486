"""A site for acceptance tests: one node under `dicom-node serve` in a process group of its own, beside a real PACS."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from dicom_node.app import Node
from tests import peers

ROUTES = """
[[route]]
name = "{plugin}"
plugin = "{plugin}"
destinations = ["pacs"]
[route.complete]
quiet_s = {quiet_s}
max_wait_s = 20
debounce_s = 2
"""

CONFIG = """
[node]
ae_titles = ["DICOM_NODE"]
data_dir = "var"

[storage]
journal_mb = 32

[receive]
port = {port}

[plugins]
paths = []

[worker]
retry_base_s = 0.2

[sender]
retry_base_s = 0.5
timeout_s = 10

[[peer]]
name = "scanner"
ae_title = "STORESCU"
hosts = ["127.0.0.1/32"]
may = ["echo", "store"]

[[peer]]
name = "pacs"
ae_title = "ORTHANC"
hosts = ["127.0.0.1/32"]
address = "127.0.0.1:{pacs_port}"
may = ["echo", "store"]

[[destination]]
name = "pacs"
peer = "pacs"
"""


class Site:
    """A node's folder, its running processes, and what it says of itself."""

    def __init__(self, folder: Path, *, pacs_port: int, plugins: tuple[str, ...], quiet_s: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = peers.free_port()
        self.config_file = folder / "config.toml"
        routes = "".join(ROUTES.format(plugin=plugin, quiet_s=quiet_s) for plugin in plugins)
        self.config_file.write_text(CONFIG.format(port=self.port, pacs_port=pacs_port) + routes, encoding="utf-8")
        self.log = folder / "node.log"
        self.node = Node(self.config_file)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node and wait until it listens."""
        command = [sys.executable, "-m", "dicom_node", "serve", "--config", str(self.config_file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_listening():
                return
            time.sleep(0.05)
        raise RuntimeError(f"the node does not listen:\n{self.log.read_text()[-3000:]}")

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def pid_of(self, role: str) -> int:
        """Return the process that has a role; 0 while there is none."""
        assert self._process is not None
        for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if [b"--role", role.encode()] in [words[at : at + 2] for at in range(len(words))]:
                return int(child)
        return 0

    def kill(self) -> None:
        """End every process of the node at once, as a power cut would: SIGKILL to the whole group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # The roles die on their own; until the receiver has, its port would still take a connection.
        assert peers.eventually(lambda: not self._is_listening(), every_s=0.01), "a killed node still listens"

    def stop(self) -> None:
        """End the node in order; a node that is gone already is fine."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def jobs(self, study_uid: str | None = None) -> list[dict[str, Any]]:
        """Return the jobs, or those of one study, as `jobs list --json` has them."""
        return [job for job in self.node.admin.jobs() if study_uid in (None, job["study_instance_uid"])]

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        """Return what the records answer to a query."""
        with self.node.database.read() as connection:
            return [tuple(row) for row in connection.execute(text(query), values)]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the node as an administrator does."""
        command = [sys.executable, "-m", "dicom_node", *arguments, "--config", str(self.config_file)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Wait for a condition; where it never holds, fail with the node's last words."""
        held = peers.eventually(holds, timeout_s=timeout_s)
        assert held, f"never: {what}\n{self.jobs()}\n{self.log.read_text()[-4000:]}"

    def wait_until_at_rest(self, timeout_s: float = 120) -> None:
        """Wait until nothing is under way: no association, no study that is still received, no job, no delivery."""
        under_way = """
            SELECT (SELECT count(*) FROM association WHERE released_at IS NULL)
                 + (SELECT count(*) FROM study WHERE state = 'receiving')
                 + (SELECT count(*) FROM job WHERE state IN ('waiting', 'queued', 'running', 'delivering'))
                 + (SELECT count(*) FROM delivery WHERE state IN ('queued', 'sending', 'committing'))"""
        self.wait_until(lambda: self.rows(under_way) == [(0,)], "at rest", timeout_s)

    def wait_for_decision(self, study_uid: str, timeout_s: float = 60) -> list[dict[str, Any]]:
        """Return the decisions about a study once it is complete."""
        uids = lambda: {study["study_instance_uid"] for study in self.node.admin.studies()}  # noqa: E731
        held = peers.eventually(
            lambda: study_uid in uids() and self.node.admin.study(study_uid)["state"] == "complete", timeout_s=timeout_s
        )
        assert held, f"study {study_uid} was not decided:\n{self.log.read_text()[-3000:]}"
        decisions: list[dict[str, Any]] = self.node.admin.study(study_uid)["decisions"]
        return decisions

    def wait_for_jobs(
        self, count: int, timeout_s: float = 240, *, study_uid: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the jobs, or those of one study, when `count` of them have ended."""
        ended = ("done", "withheld", "refused", "failed", "cancelled")
        held = peers.eventually(
            lambda: sum(job["state"] in ended for job in self.jobs(study_uid)) >= count,
            timeout_s=timeout_s,
            every_s=0.2,
        )
        assert held, f"{self.jobs()}\n{self.log.read_text()[-3000:]}"
        return self.jobs(study_uid)

    def install(self, plugin: str, source: Path) -> None:
        """Install a plugin's weights from a folder."""
        self.node.admin.install(plugin, source)

    def forget(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
