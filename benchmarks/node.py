"""Our node under measurement: `dicom-node serve` with a configuration of its own, as a user would run it.

Only the command line and config.toml are used: how the receiver works inside may change freely.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import Program
from tests.peers import free_port

__all__ = ["AE_TITLE", "RunningNode"]

AE_TITLE = "DICOM_NODE"
MAX_ASSOCIATIONS = 300
"""More than any measurement opens."""
CLI = (sys.executable, "-P", "-m", "dicom_node")
"""-P: not the code of the present folder."""

CONFIG = """
[node]
ae_titles = ["{ae_title}"]
data_dir = "data"

[receive]
port = {port}
max_associations = {max_associations}
max_associations_per_address = {max_associations}
max_pdu = 131072

[plugins]
paths = []

[[peer]]
name = "scanner"
ae_title = "STORESCU"
hosts = ["127.0.0.1/32"]
may = ["echo", "store"]
"""


class RunningNode(Program):
    """A node in a folder of its own; a context manager.

    Parameters
    ----------
    folder
        Made here; holds configuration, log and `data/`.
    role
        "receiver", or "all".
    more
        Further tables of config.toml: routes, destinations.
    records
        A database to begin with; it is moved into the node's folder.
    journal
        Where the journal lies between runs: a node allocates it at its first start, and is measured at a later one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        role: str = "receiver",
        more: str = "",
        records: Path | None = None,
        journal: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        port = free_port()
        self.folder = folder
        self.data = folder / "data"
        self.config_file = folder / "config.toml"
        settings = CONFIG.format(ae_title=AE_TITLE, port=port, max_associations=MAX_ASSOCIATIONS)
        self.config_file.write_text(settings + more, encoding="utf-8")
        if records is not None:
            self.data.mkdir()
            records.rename(self.data / "records.sqlite")
        self._journal = journal
        self._journal_in_use = self.data / "received" / "journal"
        if journal is not None and journal.exists():
            self._journal_in_use.parent.mkdir(parents=True)
            journal.rename(self._journal_in_use)
        command = [*CLI, "serve", "--role", role, "--config", str(self.config_file)]
        super().__init__(command, log=folder / "node.log", port=port)

    def __exit__(self, *arguments: object) -> None:
        """End the node, and put its journal back."""
        super().__exit__(*arguments)
        if self._journal is not None and self._journal_in_use.exists():
            self._journal_in_use.rename(self._journal)

    def ask(self, *arguments: str) -> Any:
        """Return what a command of the node answers with `--json`."""
        command = [*CLI, *arguments, "--json", "--config", str(self.config_file)]
        done = subprocess.run(command, capture_output=True, check=True, timeout=120)
        return json.loads(done.stdout)

    def count_instances(self) -> int:
        """Return how many instances the node says it has, of all studies."""
        return sum(study["n_instances"] for study in self.ask("studies", "list"))

    def wait_for_instances(self, count: int, *, timeout_s: float = 120.0) -> int:
        """Return the number of indexed instances, as soon as there are `count`, or when the time is over."""
        deadline = time.monotonic() + timeout_s
        while (found := self.count_instances()) < count and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def stored_bytes(self) -> int:
        """Return the bytes of all DICOM files under data_dir: after indexing every instance has one."""
        return sum(path.stat().st_size for path in self.data.rglob("*.dcm"))
