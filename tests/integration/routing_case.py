"""A small node without processes, for the tests of routes: real filing, records, decisions and sending."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dicom_node.config import load_config
from dicom_node.config.live import Live, Rules
from dicom_node.filing import InstanceStore
from dicom_node.guard import FloodGuard
from dicom_node.indexing import Reception
from dicom_node.indexing.rows import Indexing
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.pipeline import Decision, Dispatch
from dicom_node.reading import content_or_itself
from dicom_node.records import Decisions
from dicom_node.study import InstanceMeta
from dicom_node.upkeep import Compare
from tests import peers
from tests.integration.receiving import EXPLICIT, MR, encode_data_set, small_data_set
from tests.integration.records_case import OWNER, STUDY, Records, association

SR = "1.2.840.10008.5.1.4.1.1.88.33"

PEERS = """
[[peer]]
name = "scanner"
ae_title = "SCANNER"
hosts = ["127.0.0.1/32"]
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
address = "127.0.0.1:{port}"
[[destination]]
name = "archive"
peer = "archive"
"""


class SmallNode:
    """The parts of a node in one thread, on a clock that the test moves."""

    def __init__(self, folder: Path, routes: str, *, port: int = 1, peers_text: str = PEERS) -> None:
        self.folder = folder
        self.peers_text = peers_text.format(port=port)
        self.records = Records(folder / "records.sqlite")
        self.store = InstanceStore(folder / "received", clock=self.records.clock, reserve_bytes=0)
        self.log = Log("test")
        index = Indexing(self.store, self.records.studies, log=self.log).index
        self.reception = Reception(self.store, index, process=OWNER, clock=self.records.clock, log=self.log)
        self.decisions = Decisions(self.records.database, self.records.jobs)
        self.rules = Live(self.read(routes))
        self.decision = self.new_decision()
        self.compare = Compare(self.records.studies.contents, content_of=content_or_itself, log=self.log)
        self._count = 0

    def read(self, routes: str) -> Rules:
        """Return the rules of a configuration with these routes."""
        file = self.folder / "config.toml"
        file.write_text(self.peers_text + routes, encoding="utf-8")
        return Rules.of(load_config(file))

    def new_decision(self) -> Decision:
        """Return what decides, as a worker that starts now has it."""
        return Decision(
            self.records.studies,
            self.decisions,
            rules=self.rules,
            registry=PluginRegistry([], self.folder / "models"),
            clock=self.records.clock,
            log=self.log,
            lets_through=FloodGuard(self.records.studies, self.rules, log=self.log).lets_through,
        )

    def receive(
        self,
        *numbers: int,
        study: str = STUDY,
        series: str = "1.2.3.4",
        calling_ae: str = "SCANNER",
        sop_class_uid: str = MR,
        comment: str = "",
    ) -> list[bytes]:
        """Receive one association with instances of a series; return the data sets, as they were received."""
        self._count += 1
        name = f"a{self._count}"
        self.reception.opened(replace(association(name, at=self.records.clock.now()), calling_ae=calling_ae))
        sent = []
        for number in numbers:
            data_set = small_data_set(f"{series}.{number}", sop_class_uid=sop_class_uid)
            data_set.StudyInstanceUID, data_set.SeriesInstanceUID = study, series
            data_set.Modality = "MR" if sop_class_uid == MR else "SR"
            if sop_class_uid != MR:
                del data_set.PixelData
            if comment:
                data_set.ImageComments = comment
            sent.append(encode_data_set(data_set))
            incoming = self.store.begin(
                InstanceMeta(
                    sop_class_uid=sop_class_uid,
                    sop_instance_uid=f"{series}.{number}",
                    transfer_syntax_uid=EXPLICIT,
                    calling_ae=calling_ae,
                    called_ae="DICOM_NODE",
                    association=name,
                )
            )
            incoming.write([sent[-1]])
            self.reception.filed(name, incoming.commit())
        self.reception.closed(name, "released")
        self.reception.drain()
        return sent

    def decide(self, after_s: float = 60.0) -> None:
        """See what came, let time pass, then decide what is complete."""
        while self.compare.step():
            pass
        self.decision.step()
        self.records.clock.advance(after_s)
        while self.decision.step():
            pass

    def dispatch(self, destination: str = "archive") -> None:
        """Send everything that is due to a destination."""
        config = self.rules.current.config
        (found,) = [one for one in config.destination if one.name == destination]
        sending = Dispatch(
            self.records.deliveries,
            destination=destination,
            peer=next(peer for peer in config.peer if peer.name == found.peer),
            calling_ae="DICOM_NODE",
            sender="s1",
            settings=config.sender,
            jitter=lambda: 0.5,
            clock=self.records.clock,
            log=self.log,
        )
        while sending.step():
            pass

    def outcomes(self, study: str = STUDY) -> list[tuple[str, str, str | None]]:
        """Return (route, outcome, series) of each decision, oldest first."""
        return [(one.route, one.outcome, one.series_instance_uid) for one in self.decisions.list(study)]


@contextmanager
def storescp(folder: Path, *, ae_title: str = "ARCHIVE") -> Iterator[int]:
    """Run dcmtk's receiver, which writes each data set to `folder` bit by bit as it comes; give its port."""
    peers.require_peer("dcmtk")
    # Not the one that pynetdicom puts into the virtual environment.
    program = shutil.which("storescp", path="/usr/bin:/usr/local/bin")
    assert program is not None
    folder.mkdir()
    port = peers.free_port()
    command = [program, "-aet", ae_title, "--bit-preserving", "+xa", "-od", str(folder), str(port)]
    with (folder.parent / "storescp.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
        try:
            assert peers.eventually(lambda: _listens(port)), "storescp does not listen"
            yield port
        finally:
            run.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
