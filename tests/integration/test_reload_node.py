"""Reload in real processes: a worker that decides meanwhile, and the supervisor that passes SIGHUP on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.app import Node
from dicom_node.clock import SystemClock
from dicom_node.config import config_digest, load_config
from dicom_node.config.schema import Peer
from dicom_node.dimse import RejectedAssociationError, echo
from dicom_node.logs import Log
from dicom_node.reload import SERVING, serving
from dicom_node.roles import Loop, LoopingRole, Supervisor
from tests import peers
from tests.integration.receiving import association, encode_data_set, running_node, small_data_set, store_raw
from tests.integration.records_case import image

BASE = """
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
address = "127.0.0.1:1"
[[destination]]
name = "archive"
peer = "archive"
"""
ROUTE = '[[route]]\nname = "{name}"\ndestinations = ["archive"]\n[route.complete]\nquiet_s = 0\nmax_wait_s = 1\n'
ROLE = """
import signal, sys, time
from pathlib import Path
folder, status, role = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
told = folder / role
if status == 2 and told.exists():
    (folder / "again").write_text("")
    raise SystemExit(2)
def on_hangup(*_):
    told.write_text(told.read_text() + "H")
signal.signal(signal.SIGHUP, on_hangup)
told.write_text("")
while True:
    time.sleep(0.02)
"""


class Worker:
    """A node's worker as a process, and the node's records beside it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "config.toml"
        self.write("first")
        self.node = Node(self.file)
        self.node.database  # noqa: B018 - migrated before the worker starts
        self.log = folder / "log"
        command = [sys.executable, "-m", "dicom_node", "serve", "--role", "worker", "--config", str(self.file)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        assert peers.eventually(lambda: bool(self.digests())), self.log.read_text()

    def write(self, name: str, more: str = "") -> None:
        """Replace the file atomically by one with this route."""
        fresh = self.file.with_suffix(".fresh")
        fresh.write_text(BASE + ROUTE.format(name=name) + more)
        fresh.replace(self.file)

    def digests(self) -> list[str]:
        """Return the digest that the worker says it serves by."""
        return [one.digest for one in serving(self.node.data_dir / SERVING)]

    def decide(self, number: int) -> tuple[str, str]:
        """Receive a study; return the route that took it and the digest that its job keeps."""
        uid = f"1.2.{number}"
        self.node.studies.index([image(1, study=uid, series=f"{uid}.1", at=self.node.clock.now())])
        assert peers.eventually(lambda: bool(self.node.jobs.list(study_uid=uid))), self.log.read_text()
        (job,) = self.node.jobs.list(study_uid=uid)
        return job.route, self.node.jobs.show(job.id).config_digest

    def said(self, action: str) -> list[dict[str, str]]:
        """Return the log lines of an action."""
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["action"] == action]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """Return a running worker."""
    one = Worker(tmp_path)
    yield one
    one.process.terminate()
    one.process.wait(30)


def test_a_running_worker_takes_up_good_files_and_refuses_others(worker: Worker) -> None:
    """Each job keeps the digest of the rules that decided; a wrong file is named and changes nothing."""
    first = config_digest(load_config(worker.file))
    assert ("first", first) == worker.decide(1)

    worker.write("second")  # noticed without a signal
    second = config_digest(load_config(worker.file))
    assert peers.eventually(lambda: worker.digests() == [second]), worker.log.read_text()
    assert ("second", second) == worker.decide(2)

    worker.write("third", "[[rout]]\n")
    worker.process.send_signal(signal.SIGHUP)
    assert peers.eventually(lambda: bool(worker.said("rules.refused"))), worker.log.read_text()
    assert 'config.toml:15: unknown key "rout"' in worker.said("rules.refused")[0]["reason"]
    assert ("second", second) == worker.decide(3)

    worker.write("fourth")
    worker.process.send_signal(signal.SIGHUP)
    fourth = config_digest(load_config(worker.file))
    assert peers.eventually(lambda: worker.digests() == [fourth]), worker.log.read_text()
    check = [one for one in worker.node.admin.check(network=False) if one["what"] == "rules of the worker"]
    assert [True] == [one["ok"] for one in check]
    assert fourth[:12] in check[0]["detail"]
    assert ("fourth", fourth) == worker.decide(4)
    assert [] == worker.said("loop.failed")


def _supervise(folder: Path, status: int) -> tuple[threading.Event, threading.Event, threading.Thread]:
    script = folder / "role.py"
    script.write_text(ROLE)
    supervisor = Supervisor(
        [sys.executable, str(script), str(folder), str(status)], ["a", "b"], clock=SystemClock(), log=Log("test")
    )
    stop, asked = threading.Event(), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(stop, asked))
    thread.start()
    assert peers.eventually(lambda: all((folder / role).exists() for role in "ab"))
    return stop, asked, thread


def test_the_supervisor_passes_a_hangup_on(tmp_path: Path) -> None:
    """Every role hears of it, once."""
    stop, asked, thread = _supervise(tmp_path, 0)
    asked.set()
    try:
        assert peers.eventually(lambda: ["H", "H"] == [(tmp_path / role).read_text() for role in "ab"])
    finally:
        stop.set()
        thread.join(30)


def test_a_broken_file_does_not_end_a_node_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that dies meanwhile cannot come back; the others go on until the file is good again."""
    monkeypatch.setattr("dicom_node.roles.RESTART_S", 0.05)
    stop, _asked, thread = _supervise(tmp_path, 2)
    try:
        pids = [int(pid) for pid in Path(f"/proc/self/task/{thread.native_id}/children").read_text().split()]
        os.kill(pids[0], signal.SIGKILL)
        assert peers.eventually((tmp_path / "again").exists)
        assert not peers.eventually(lambda: not thread.is_alive(), timeout_s=1.0)
        assert Path(f"/proc/{pids[1]}").exists()
    finally:
        stop.set()
        thread.join(30)


def test_a_peer_that_was_added_is_let_in_beside_open_associations(tmp_path: Path) -> None:
    """The receiver drops nobody to know somebody new; who was taken out is let in no more."""
    scanner = Peer(name="mr", ae_title="MR1", hosts=("127.0.0.0/8",))
    with running_node(tmp_path) as node, association(node.address) as opened:
        with pytest.raises(RejectedAssociationError):
            echo(node.address, called_ae="NODE", calling_ae="MR1", timeout_s=5)
        node.listener.know([scanner])
        assert echo(node.address, called_ae="NODE", calling_ae="MR1", timeout_s=5).is_success
        with pytest.raises(RejectedAssociationError):
            echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=5)
        assert 0x0000 == store_raw(opened, encode_data_set(small_data_set()))


def test_a_destination_that_was_added_gets_a_loop_of_its_own() -> None:
    """The sender starts it beside those that run, once."""
    names, began, stop = ["a"], [], threading.Event()

    def sending() -> list[Loop]:
        return [Loop(name=name, step=lambda name=name: began.append(name) or False, idle_s=60) for name in names]

    role = LoopingRole([], log=Log("test"), more=sending)
    thread = threading.Thread(target=role.run, args=(stop,))
    thread.start()
    try:
        assert peers.eventually(lambda: began == ["a"])
        names.append("b")
        assert peers.eventually(lambda: began == ["a", "b"])
    finally:
        stop.set()
        thread.join(30)
