"""The two ends of the demonstration: a node as a process, and a stand-in PACS in this one, both on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from ipaddress import ip_network
from pathlib import Path

from dicom_node.app import shipped
from dicom_node.clock import Clock
from dicom_node.config.schema import Peer, ReceiveSettings
from dicom_node.errors import UnreachableError
from dicom_node.filing import InstanceStore
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.receive import Listener
from dicom_node.study import Arrival, Association, FiledInstance

CALLED_AE = "DICOM_NODE"


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Arrivals:
    """The events of the stand-in PACS: what arrived is put on its shelf. Implements receive.ReceiveEvents."""

    def __init__(self, store: InstanceStore) -> None:
        self._store = store
        self.instances: list[FiledInstance] = []
        self.changed = threading.Condition()

    def opened(self, association: Association) -> None:
        """Take note of nothing."""

    def filed(self, association_id: str, arrival: Arrival) -> None:  # noqa: ARG002 - the protocol's name
        """Keep the instance."""
        instance = self._store.shelve(arrival)
        self._store.release(arrival)
        with self.changed:
            self.instances.append(instance)
            self.changed.notify_all()

    def activity(self, association_id: str) -> None:
        """Take note of nothing."""

    def closed(self, association_id: str, how: str) -> None:
        """Take note of nothing."""


CONFIG_FILE = "config.toml"
MARK = "# Made by `dicom-node demo`"
"""First words of the configuration: by them a later demonstration knows that the folder is its own."""
CONFIG = (
    MARK
    + """: a node and its stand-in PACS on loopback.
[node]
ae_titles = ["{node_ae}"]
data_dir = "node"

[storage]
journal_mb = 32

[receive]
port = {node_port}

[plugins]
paths = []

[[peer]]
name = "scanner"
ae_title = "SCANNER"
hosts = ["127.0.0.1/32"]
may = ["echo", "store"]

[[peer]]
name = "pacs"
ae_title = "PACS"
hosts = ["127.0.0.1/32"]
address = "127.0.0.1:{pacs_port}"
may = ["echo"]

[[destination]]
name = "pacs"
peer = "pacs"
"""
)

ROUTE = """
[[route]]
name = "{plugin}"
plugin = "{plugin}"
destinations = ["pacs"]
[route.complete]
quiet_s = 1
"""


class Serving:
    """A `dicom-node serve` of our own, as a process."""

    def __init__(self, config_file: Path, log_file: Path, *, clock: Clock) -> None:
        self._clock = clock
        self._log_file = log_file
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dicom_node", "serve", "--config", str(config_file)],
                stdout=log,
                stderr=log,
            )

    def wait_for_port(self, port: int, timeout_s: float) -> None:
        """Return when the node listens.

        Raises
        ------
        UnreachableError
            When it ended, or does not listen in time; the message names its log.
        """
        deadline = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            self._clock.sleep(0.1)
        raise UnreachableError(f"the node does not listen on port {port}; its log: {self._log_file}")

    def stop(self) -> None:
        """Drain and end the node."""
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class StandInPacs:
    """A PACS of one association and one folder: our own listener with a store of its own."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        self._store = InstanceStore(folder, clock=clock, reserve_bytes=0)
        self._arrivals = Arrivals(self._store)
        self._listener = Listener(
            ReceiveSettings(port=free_port()),
            ["PACS"],
            [Peer(name="node", ae_title=CALLED_AE, hosts=(ip_network("127.0.0.1/32"),), may=("echo", "store"))],
            store=self._store,
            events=self._arrivals,
            clock=clock,
            log=Log("stand-in-pacs"),
        )
        self._listener.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    def stop(self) -> None:
        """Close the port."""
        self._listener.stop(1.0)

    def results(self) -> list[FiledInstance]:
        """Return what arrived, in its order."""
        return list(self._arrivals.instances)


def write_config(out: Path, pacs_port: int) -> Path:
    """Write the demonstration's config.toml: a route for each shipped plugin that can run here."""
    models = out / "node" / "models"
    ready = [plugin.id for plugin in PluginRegistry([shipped("plugins")], models) if plugin.defect() is None]
    text = CONFIG.format(node_ae=CALLED_AE, node_port=free_port(), pacs_port=pacs_port)
    file = out / CONFIG_FILE
    file.write_text(text + "".join(ROUTE.format(plugin=plugin) for plugin in ready), encoding="utf-8")
    return file
