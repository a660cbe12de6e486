"""A peer that is made by hand, so that it can say anything, and the receiver that has to bear it.

Messages are plain bytes: nothing here follows a state machine, waits for an answer or checks what it sends.
Sources: DICOM PS3.8 9.3 (PDUs), PS3.7 Annex D (user information).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_node.clock import Clock, SystemClock
from dicom_node.config.schema import Peer, ReceiveSettings
from dicom_node.dimse import command, pdu
from dicom_node.filing import InstanceStore
from dicom_node.logs import Log
from dicom_node.receive import Listener
from dicom_node.study import Association
from tests.integration.receiving import EXPLICIT, IMPLICIT, MR, PEER, VERIFY, Events, encode_data_set, small_data_set
from tests.peers import free_port

Contexts = Mapping[int, tuple[str, Sequence[str]]]
"""Presentation context ID -> abstract syntax, transfer syntaxes."""

STORE_AND_ECHO: Contexts = {1: (MR, (EXPLICIT,)), 3: (VERIFY, (IMPLICIT,))}
SMALL = encode_data_set(small_data_set())
"""The data set of instance 1.2.3.4."""
ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, ABORT = 2, 3, 4, 6, 7
ABORT_RQ = pdu.abort(0)
ROLE = struct.pack(">BxHH", 0x54, 4 + len(MR), len(MR)) + MR.encode("ascii") + b"\x01\x01"
WINDOW = struct.pack(">BxHHH", 0x53, 4, 8, 8)
IDENTITY = struct.pack(">BxHBBH", 0x58, 12, 1, 1, 6) + b"nobody\x00\x00"
EXTENDED = struct.pack(">BxHH", 0x56, 4 + len(MR), len(MR)) + MR.encode("ascii") + b"\x02\x00"


def item(kind: int, content: bytes) -> bytes:
    """Return an item of an association request."""
    return struct.pack(">BxH", kind, len(content)) + content


def association_request(
    contexts: Contexts = STORE_AND_ECHO,
    *,
    calling: str = "CT1",
    called: str = "NODE",
    more: bytes = b"",
    max_pdu: int = 16384,
) -> bytes:
    """Return an A-ASSOCIATE-RQ; `more`: further sub-items of its user information."""
    content = struct.pack(">H2x", 1) + f"{called:<16}{calling:<16}".encode("ascii") + bytes(32)
    content += item(0x10, b"1.2.840.10008.3.1.1.1")
    for context_id, (abstract_syntax, transfer_syntaxes) in contexts.items():
        syntaxes = item(0x30, abstract_syntax.encode("ascii"))
        syntaxes += b"".join(item(0x40, syntax.encode("ascii")) for syntax in transfer_syntaxes)
        content += item(0x20, bytes((context_id, 0, 0, 0)) + syntaxes)
    content += item(0x50, item(0x51, struct.pack(">I", max_pdu)) + item(0x52, b"1.2.3") + more)
    return struct.pack(">BxI", 1, len(content)) + content


def echo_message(context_id: int = 3, message_id: int = 1) -> bytes:
    """Return a C-ECHO-RQ."""
    return pdu.command_pdus(context_id, command.echo_request(message_id), 0)


def data_message(context_id: int, data_set: bytes, max_pdu: int = 16384) -> bytes:
    """Return the P-DATA-TFs of a data set."""
    return b"".join(
        pdu.data_head(context_id, len(piece), is_command=False, is_last=is_last) + piece
        for piece, is_last in pdu.pieces(memoryview(data_set), max_pdu)
    )


def store_command(
    sop_instance_uid: str = "1.2.3.4", *, context_id: int = 1, sop_class_uid: str = MR, message_id: int = 1
) -> bytes:
    """Return the P-DATA-TF of a C-STORE-RQ's command set."""
    return pdu.command_pdus(context_id, command.store_request(message_id, sop_class_uid, sop_instance_uid), 0)


def store_message(data_set: bytes = SMALL, sop_instance_uid: str = "1.2.3.4", *, max_pdu: int = 16384) -> bytes:
    """Return a whole C-STORE-RQ under context 1."""
    return store_command(sop_instance_uid) + data_message(1, data_set, max_pdu)


def command_set(**elements: bytes) -> bytes:
    """Return a command set of elements that are named by their number, as in `x0100=...`, without a group length."""
    numbers = sorted((int(name[1:], 16), value) for name, value in elements.items())
    return b"".join(struct.pack("<HHI", 0, number, len(value)) + value for number, value in numbers)


def data_sets_in(stream: bytes) -> set[str]:
    """Return the SHA-256 of every data set that ends in what was sent, whatever surrounds it: the oracle of filing."""
    found, begun, position = set(), b"", 0
    while position + 6 <= len(stream):
        kind, length = struct.unpack_from(">BxI", stream, position)
        position += 6
        end = min(len(stream), position + length)
        while kind == P_DATA and position + 6 <= end:
            size, _context_id, control = struct.unpack_from(">IBB", stream, position)
            value = stream[position + 6 : position + 4 + size]
            position += 4 + max(size, 2)
            if control & 1:
                begun = b""
            else:
                begun += value
                if control & 2 and position <= end:
                    found.add(hashlib.sha256(begun).hexdigest())
                    begun = b""
        position = end
    return found


# Talking


@contextmanager
def calling(port: int, *, timeout_s: float = 20.0) -> Iterator[socket.socket]:
    """Open a connection to a loopback port."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes, fewer when the peer closes before."""
    content = b""
    while len(content) < count:
        try:
            piece = connection.recv(count - len(content))
        except ConnectionResetError:
            break
        if not piece:
            break
        content += piece
    return content


def read_pdu(connection: socket.socket) -> tuple[int, bytes] | None:
    """Return type and content of the next PDU, None when the peer closed."""
    head = read_exactly(connection, 6)
    if len(head) < 6:
        return None
    kind, length = struct.unpack(">BxI", head)
    return kind, read_exactly(connection, length)


def read_all(connection: socket.socket) -> list[int]:
    """Return the types of all PDUs up to one after which it is ours to close (PS3.8 9.2), or until the peer does."""
    kinds: list[int] = []
    while not set(kinds) & {ASSOCIATE_RJ, RELEASE_RP, ABORT} and (read := read_pdu(connection)) is not None:
        kinds.append(read[0])
    return kinds


def read_status(connection: socket.socket) -> int | None:
    """Return the status of the response that comes next; None when something else comes, or nothing."""
    read = read_pdu(connection)
    return command.decoded(read[1][6:]).status if read is not None and read[0] == P_DATA else None


def associate(connection: socket.socket, request: bytes | None = None) -> None:
    """Ask for an association, which has to be accepted."""
    connection.sendall(association_request() if request is None else request)
    read = read_pdu(connection)
    assert read is not None
    assert read[0] == ASSOCIATE_AC


def is_honest_served(port: int, *, calling_ae: str = "CT1", called_ae: str = "NODE") -> bool:
    """Return whether a sender that does everything right stores an object and is released."""
    with calling(port) as connection:
        associate(connection, association_request(calling=calling_ae, called=called_ae))
        connection.sendall(store_message())
        status = read_status(connection)
        connection.sendall(pdu.RELEASE_RQ)
        return status == 0 and read_all(connection) == [RELEASE_RP]


# What must not change

Surprise = tuple[str, str]
"""What came as one: the exception of a thread, or a line of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What this process holds."""

    threads: int
    descriptors: int
    resident_bytes: int


def footprint(pid: int | None = None) -> Footprint:
    """Return what a process holds now; None: this one."""
    proc = Path(f"/proc/{os.getpid() if pid is None else pid}")
    return Footprint(
        threads=len(list((proc / "task").iterdir())),
        descriptors=len(list((proc / "fd").iterdir())),
        resident_bytes=int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    )


class _Brief(Events):
    """Events of which only arrivals are remembered: a test that watches memory must not use it up."""

    def activity(self, association_id: str) -> None:
        pass

    def _add(self, *entry: str) -> None:
        pass

    def opened(self, association: Association) -> None:
        pass


class _Lines(logging.Handler):
    """Keeps the lines of the node's log that tell of a defect."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = json.loads(record.getMessage())
        if record.levelno >= logging.ERROR or line.get("status") == "0x0110":
            self.lines.append(record.getMessage())


@contextmanager
def surprises() -> Iterator[list[Surprise]]:
    """Collect exceptions that end a thread, and lines of the log that tell of a defect of ours."""
    found: list[Surprise] = []
    before, handler, logger = threading.excepthook, _Lines(), logging.getLogger("dicom_node")

    def hook(told: Any) -> None:
        found.append(("thread", f"{told.exc_type.__name__}: {told.exc_value}"))

    threading.excepthook = hook
    logger.addHandler(handler)
    try:
        yield found
    finally:
        threading.excepthook = before
        logger.removeHandler(handler)
        found.extend(("log", line) for line in handler.lines)


# The receiver


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A running listener with its store and its events."""

    listener: Listener
    events: Events
    store: InstanceStore
    port: int
    tls_port: int = 0

    def filed_digests(self) -> list[str]:
        """Return the SHA-256 of the data sets that arrived since the last call, and give up their bytes."""
        found = []
        for _ in range(len(self.events.arrivals)):
            arrival = self.events.arrivals.pop(0)
            content = self.store.content(arrival)
            length = 144 + int.from_bytes(content[140:144], "little")
            found.append(hashlib.sha256(content[length:]).hexdigest())
            self.store.release(arrival)
        return found


@contextmanager
def running_receiver(
    root: Path,
    *,
    clock: Clock | None = None,
    peers: tuple[Peer, ...] = (PEER,),
    tls: Callable[[socket.socket], ssl.SSLSocket] | None = None,
    **settings: Any,
) -> Iterator[Receiver]:
    """Run a listener over a store with a journal in `root`; `settings` are those of [receive]."""
    clock = clock or SystemClock()
    port, tls_port = free_port(), free_port()
    if tls is not None:
        settings["tls"] = {"port": tls_port, "certificate": "-", "key": "-", "ca": "-"}
    store = InstanceStore(root, clock=clock, reserve_bytes=0, journal_bytes=32 << 20)
    store.start()
    events = _Brief()
    listener = Listener(
        ReceiveSettings(port=port, **settings),
        ("NODE",),
        peers,
        store=store,
        events=events,
        clock=clock,
        log=Log("receiver"),
        tls=tls,
    )
    listener.start()
    try:
        yield Receiver(listener=listener, events=events, store=store, port=port, tls_port=tls_port)
    finally:
        listener.stop(drain_s=0)
        store.stop()
