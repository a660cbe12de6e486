"""Claims on a whole node with TLS: it is called, and calls, by certificate alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.integration.cli_case import head_mr
from tests.peers.certificates import authority

CONFIG = """
[node]
ae_titles = ["DICOM_NODE"]

[storage]
journal_mb = 8

[receive]
port = {port}

[receive.tls]
port = {tls_port}
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"

[[peer]]
name = "itself"
ae_title = "DICOM_NODE"
hosts = ["127.0.0.1"]
address = "127.0.0.1:{tls_port}"
tls = true

[[peer]]
name = "plainly"
ae_title = "DICOM_NODE"
address = "127.0.0.1:{port}"

[[destination]]
name = "itself"
peer = "itself"

[[destination]]
name = "plainly"
peer = "plainly"
"""


COMMAND = (sys.executable, "-P", "-m", "dicom_node")


def say(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with the configuration in `folder`."""
    command = [*COMMAND, *map(str, words), "--config", str(folder / "config.toml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    """Run the receiver of a node that knows itself, once by TLS and once without; return its folder."""
    files = authority(tmp_path / "ca").issue("node")
    port, tls_port = peers.free_port(), peers.free_port()
    text = CONFIG.format(port=port, tls_port=tls_port, certificate=files.certificate, key=files.key, ca=files.ca)
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    command = [*COMMAND, "serve", "--role", "receiver", "--config", str(tmp_path / "config.toml")]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as serving:
        try:
            assert peers.eventually(lambda: say(tmp_path, "echo", "itself").returncode == 0, timeout_s=60)
            yield tmp_path
        finally:
            serving.terminate()


def test_a_node_calls_and_is_called_by_tls(node: Path) -> None:
    """C-ECHO and C-STORE go through both sides' contexts; what was sent is a study of the node."""
    head_mr(node / "images")
    sent = say(node, "send", node / "images", "--to", "itself")
    assert (0, "4 of 4 stored") == (sent.returncode, sent.stdout.strip()), sent.stderr

    def studies() -> list[dict[str, object]]:
        return list(json.loads(say(node, "studies", "list", "--json").stdout))

    assert peers.eventually(lambda: [one["n_instances"] for one in studies()] == [4], timeout_s=30)


def test_a_peer_that_has_tls_is_not_let_in_without(node: Path) -> None:
    """Its title and address alone open nothing on the plain port."""
    refused = say(node, "echo", "plainly")
    assert 4 == refused.returncode
    assert "rejects the association" in refused.stderr
