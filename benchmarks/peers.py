"""The receivers that are compared, behind one face, and dcmtk's sender that feeds them all.

Each receiver gets a new folder for each run: creating files where others were just deleted is slow on ext4. What it
stored is asked in its own words (`stored`), so that a run that lost something is no result.

    ours         `dicom-node serve --role receiver`, durable by default
    dcmtk        storescp, the strongest setting found, made durable by fsync_preload.c
    orthanc      Debian's, its index and storage durable as shipped, 128 kB PDUs and a thread for each association
    pynetdicom   stock 3.0.4 with a raw handler that synchronises file and folder
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, Self

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, Corpus
from benchmarks.node import AE_TITLE, RunningNode
from benchmarks.processes import Program
from tests.peers import Orthanc, free_port

__all__ = ["RECEIVERS", "Receiver", "Stored", "build_preload", "send", "start_receiver"]

ROOT = Path(__file__).resolve().parents[1]
MAX_PDU_BYTES = "131072"
META_BYTES = 2048
"""More than the preamble and file meta information of any receiver."""
SEND_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a receiver says it holds."""

    count: int
    size_bytes: int

    def is_all_of(self, *corpora: Corpus) -> bool:
        """Whether these are the objects of the corpora, each once and whole."""
        count = sum(len(corpus.files) for corpus in corpora)
        size_bytes = sum(corpus.data_set_bytes for corpus in corpora)
        return self.count == count and size_bytes <= self.size_bytes <= size_bytes + (count + 1) * META_BYTES


class Receiver(Protocol):
    """A running receiver."""

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        ...

    def stored(self, expected: int) -> Stored:
        """Return what it holds; one that indexes later is given time until it has `expected` instances."""
        ...

    def last_words(self) -> str:
        """Return the end of its log."""
        ...


class Ours(RunningNode):
    """The node's receiver."""

    def stored(self, expected: int) -> Stored:
        """Count what the node's own commands list; weigh what lies under data_dir."""
        return Stored(count=self.wait_for_instances(expected), size_bytes=self.stored_bytes())


class FolderReceiver(Program):
    """A receiver that writes one file an object into one folder."""

    def __init__(self, folder: Path, command: list[str], *, port: int, environment: Mapping[str, str]) -> None:
        self._out = folder / "out"
        self._out.mkdir(parents=True)
        super().__init__(command, log=folder / "log", port=port, environment=environment, folder=ROOT)

    def stored(self, expected: int) -> Stored:  # noqa: ARG002 - it answers after the file is there
        """Count and weigh the files."""
        sizes = [path.stat().st_size for path in self._out.iterdir()]
        return Stored(count=len(sizes), size_bytes=sum(sizes))


class OrthancReceiver:
    """Debian's Orthanc; a context manager."""

    def __init__(self, folder: Path) -> None:
        # Our test PACS overwrites; Orthanc as shipped does not.
        settings = {"MaximumPduLength": int(MAX_PDU_BYTES), "DicomThreadsCount": 8, "OverwriteInstances": False}
        self._orthanc = Orthanc(folder, extra=settings)
        self.port = self._orthanc.dicom_port

    def __enter__(self) -> Self:
        """Return when it answers."""
        self._orthanc.start()
        return self

    def __exit__(self, *arguments: object) -> None:
        """End it."""
        self._orthanc.__exit__(*arguments)

    def stored(self, expected: int) -> Stored:  # noqa: ARG002 - it answers after the index has it
        """Ask the REST interface."""
        said = self._orthanc.rest("/statistics")
        return Stored(count=int(said["CountInstances"]), size_bytes=int(said["TotalDiskSize"]))

    def last_words(self) -> str:
        """Return the end of its log."""
        return self._orthanc.log.read_text(errors="replace")[-3000:]


def _dcmtk(folder: Path, preload: Path) -> FolderReceiver:
    port = free_port()
    options = ["--fork", "--bit-preserving", "-pdu", MAX_PDU_BYTES, "-od", str(folder / "out")]
    environment = {"TCP_NODELAY": "1", "LD_PRELOAD": str(preload)}
    return FolderReceiver(folder, ["storescp", *options, str(port)], port=port, environment=environment)


def _pynetdicom(folder: Path) -> FolderReceiver:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.pynetdicom_storescp", str(folder / "out"), str(port)]
    return FolderReceiver(folder, command, port=port, environment={})


RECEIVERS: Mapping[str, str] = MappingProxyType(
    {
        "ours": "dicom-node serve --role receiver",
        "dcmtk": "storescp --fork --bit-preserving, fsync(file)+fsync(folder) preloaded",
        "orthanc": "Debian's Orthanc",
        "pynetdicom": "stock pynetdicom, raw handler, fsync(file)+fsync(folder)",
    }
)
"""Name -> what it is, in the order of the first round."""


def start_receiver(name: str, folder: Path, *, preload: Path, journal: Path) -> AbstractContextManager[Receiver]:
    """Return a receiver that is about to run in a new folder.

    Raises
    ------
    KeyError
        When there is no receiver of that name.
    """
    match name:
        case "ours":
            return Ours(folder, journal=journal)
        case "dcmtk":
            return _dcmtk(folder, preload)
        case "orthanc":
            return OrthancReceiver(folder)
        case "pynetdicom":
            return _pynetdicom(folder)
    raise KeyError(name)


def build_preload(folder: Path) -> Path:
    """Compile fsync_preload.c into `folder` and return the library.

    Raises
    ------
    RuntimeError
        When there is no C compiler, or it refuses.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("a C compiler is needed to make dcmtk durable (Debian: gcc, libc6-dev)")
    library = folder / "fsync_preload.so"
    source = Path(__file__).with_name("fsync_preload.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fsync_preload.c does not compile:\n{done.stderr}")
    return library


def _profile(folder: Path, sop_class_uid: str) -> Path:
    """Write a dcmtk association configuration that proposes what the corpus needs, and nothing else."""
    path = folder / f"storescu-{sop_class_uid}.cfg"
    lines = ["[[TransferSyntaxes]]", "[Uncompressed]", f"TransferSyntax1 = {EXPLICIT_VR_LITTLE_ENDIAN}"]
    lines += ["[[PresentationContexts]]", "[Offered]", f"PresentationContext1 = {sop_class_uid}\\Uncompressed"]
    path.write_text("\n".join([*lines, "[[Profiles]]", "[Default]", "PresentationContexts = Offered", ""]), "ascii")
    return path


def send(corpus: Corpus, receiver: Receiver, *, associations: int, folder: Path, has_nagle: bool = False) -> float:
    """Send a corpus by that many storescu at once; return the seconds from the first start to the last end.

    Raises
    ------
    RuntimeError
        When a sender did not end with success; it carries what sender and receiver said.
    """
    head = ["storescu", "-xf", str(_profile(folder, corpus.sop_class_uid)), "Default", "-pdu", MAX_PDU_BYTES]
    head += ["-aec", AE_TITLE, "-aet", "STORESCU", "127.0.0.1", str(receiver.port)]
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    if not has_nagle:
        environment["TCP_NODELAY"] = "1"
    commands = [[*head, *map(str, share)] for share in corpus.shares(associations)]
    with (folder / "storescu.log").open("w+b") as log:
        start = time.perf_counter()
        senders = [subprocess.Popen(command, stdout=log, stderr=log, env=environment) for command in commands]
        statuses = [sender.wait(SEND_TIMEOUT_S) for sender in senders]
        seconds = time.perf_counter() - start
        log.seek(0)
        said = log.read()[-3000:].decode(errors="replace")
    if any(statuses):
        raise RuntimeError(f"storescu ended with {statuses}:\n{said}\nthe receiver:\n{receiver.last_words()}")
    return seconds
