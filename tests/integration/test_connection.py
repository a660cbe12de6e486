"""Claims on one connection: every event in every state of the upper layer, on loopback, with a host that remembers."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from dicom_node.clock import Clock, ManualClock, SystemClock
from dicom_node.dimse import command, pdu
from dicom_node.dimse.pdu import AbortReason
from dicom_node.receive.access import NO_ROOM, Denied
from dicom_node.receive.connection import ASSOCIATE_TIMEOUT_S, Connection, RefusalError
from dicom_node.study import InstanceMeta
from tests.torture.hostile import (
    ABORT,
    ABORT_RQ,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    EXPLICIT,
    IMPLICIT,
    MR,
    P_DATA,
    RELEASE_RP,
    SMALL,
    VERIFY,
    associate,
    association_request,
    command_set,
    data_message,
    echo_message,
    read_all,
    read_pdu,
    read_status,
    store_command,
    store_message,
    surprises,
)

US = struct.Struct("<H").pack
ECHO = {"x0002": b"1.2.840.10008.1.1\x00", "x0100": US(0x30), "x0110": US(7)}
STORE = {"x0002": b"1.2.840.10008.5.1.4.1.1.4\x00", "x0100": US(1), "x0110": US(7), "x1000": b"1.2.3.4\x00"}
NO_DATA_SET = {"x0800": US(0x0101)}
DATA_SET = {"x0800": US(0)}
"""Any value but 0101H says that a data set follows."""


class Place:
    """An `Incoming` that keeps what is written."""

    def __init__(self, meta: Any = None) -> None:
        self.meta: InstanceMeta = meta
        self.content = b""
        self.is_aborted = False
        self.fails_at: int | None = None

    def digest(self) -> str:
        raise NotImplementedError

    def data_set(self) -> Any:
        raise NotImplementedError

    def commit(self) -> Any:
        raise NotImplementedError

    def write(self, views: Any) -> None:
        for view in views:
            if self.fails_at is not None and len(self.content) >= self.fails_at:
                raise OSError(28, "No space left on device")
            self.content += bytes(view)

    def abort(self) -> None:
        self.is_aborted = True


@dataclass
class Remembering:
    """A host that lets everybody in and remembers what it is told."""

    denied: Denied | None = None
    place: Callable[[], Place] = Place
    places: list[Place] = field(default_factory=list)
    stored: list[bytes | None] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    how: str = ""
    reason: str = ""
    is_over: threading.Event = field(default_factory=threading.Event)

    def expects(self, connection: Connection, calling_ae: str, called_ae: str) -> Denied | None:
        self.calls.append(f"expects {calling_ae} {called_ae}")
        return self.denied

    def admit(self, connection: Connection, asked: Any) -> Denied | None:
        self.calls.append("admit")
        return None

    def begin(self, connection: Connection, request: Any, context: Any) -> Place:
        self.calls.append("begin")
        place = self.place()
        self.places.append(place)
        return place

    def moved(self, connection: Connection) -> None:
        pass

    def store(self, connection: Connection, request: Any, incoming: Any, error: Exception | None) -> tuple[int, str]:
        if error is not None:
            self.errors.append(type(error).__name__)
            return (error.status, error.reason) if isinstance(error, RefusalError) else (0xA700, "the disk is full")
        self.stored.append(None if incoming is None else incoming.content)
        return 0, ""

    def echo(self, connection: Connection) -> int:
        self.calls.append("echo")
        return 0

    def released(self, connection: Connection) -> None:
        self.calls.append("released")

    def ended(self, connection: Connection, how: str, reason: str) -> None:
        self.how, self.reason = how, reason
        self.is_over.set()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The settings of a connection."""

    max_pdu: int = 16384
    idle_timeout_s: float = 0.2
    """Seconds of the clock that is passed in; a quarter of it is the real time between two looks at it."""
    min_rate: int = 1000
    other_storage_classes: str = "file"


class Recorded(socket.socket):
    """A socket that remembers what is sent, and which options are set."""

    def __init__(self, plain: socket.socket) -> None:
        super().__init__(fileno=plain.detach())
        self.sent: list[bytes] = []
        self.acknowledged: list[int] = []
        """How many receives there had been, at each time that TCP_QUICKACK was set."""
        self.receives = 0

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.sent.append(bytes(data))
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        count = super().recv_into(buffer, nbytes, flags)
        self.receives += 1
        return count

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[:2] == (socket.IPPROTO_TCP, socket.TCP_QUICKACK):
            self.acknowledged.append(self.receives)
        super().setsockopt(*arguments)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A connection under test: its host, its own end, and the peer's end."""

    host: Remembering
    connection: Connection
    ours: Recorded
    peer: socket.socket

    def ended(self, how: str) -> str:
        """Wait until the connection is over, which has to be in this way; return the reason."""
        assert self.host.is_over.wait(10)
        assert how == self.host.how
        return self.host.reason


@contextmanager
def on_line(host: Remembering | None = None, *, clock: Clock | None = None, **limits: Any) -> Iterator[Line]:
    """Run a connection in a thread; whatever happens, it ends without an exception."""
    host = host or Remembering()
    with (
        surprises() as found,
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname(), timeout=10) as peer,
    ):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = Recorded(listening.accept()[0])
        connection = Connection(ours, "127.0.0.1", host=host, settings=Limits(**limits), clock=clock or ManualClock())
        thread = threading.Thread(target=connection.run)
        thread.start()
        try:
            yield Line(host=host, connection=connection, ours=ours, peer=peer)
        finally:
            peer.close()
            connection.end()
            thread.join(15)
    assert [] == found
    assert not thread.is_alive()
    assert -1 == ours.fileno()


@contextmanager
def associated(host: Remembering | None = None, **limits: Any) -> Iterator[Line]:
    """Run a connection that is associated, for MR under context 1 and verification under 3."""
    with on_line(host, **limits) as line:
        associate(line.peer)
        yield line


# Before an association


def test_titles_are_asked_before_anything_else() -> None:
    """The host hears who calls before the request is decoded; when it denies, its codes go out and nothing is read."""
    with on_line(Remembering(denied=NO_ROOM)) as line:
        line.peer.sendall(association_request()[:74] + b"\xff" * (len(association_request()) - 74))
        assert (ASSOCIATE_RJ, bytes((0, 2, 3, 2))) == read_pdu(line.peer)
        line.peer.close()
        assert NO_ROOM.reason == line.ended("lost")
        assert ["expects CT1 NODE"] == line.host.calls


@pytest.mark.parametrize(
    "said",
    [echo_message(), store_message(), pdu.RELEASE_RQ, pdu.RELEASE_RP],
    ids=["echo", "store", "release", "release response"],
)
def test_nothing_goes_before_an_association(said: bytes) -> None:
    """Data or a release before the request: A-ABORT by the provider, and nobody is asked for anything."""
    with on_line() as line:
        line.peer.sendall(said)
        assert (ABORT, bytes((0, 0, 2, AbortReason.UNEXPECTED_PDU))) == read_pdu(line.peer)
        line.peer.close()
        line.ended("aborted")
        assert [] == line.host.calls


@pytest.mark.parametrize("length", [0, 1, 5, 6, 70, 150])
def test_a_peer_that_leaves_before_its_request_is_whole_is_lost(length: int) -> None:
    """Closed at any byte: no association, no answer."""
    with on_line() as line:
        line.peer.sendall(association_request()[:length])
        line.peer.shutdown(socket.SHUT_WR)
        assert [] == read_all(line.peer)
        assert "the peer closed the connection" == line.ended("lost")


@pytest.mark.parametrize("said", [b"", b"\x01", association_request()[:100]], ids=["silence", "a byte", "a half"])
def test_a_request_has_to_come_in_time(said: bytes) -> None:
    """ARTIM: silence, or a request that never ends, is over after its time on the clock that is passed in."""
    clock = ManualClock()
    with on_line(clock=clock) as line:
        line.peer.sendall(said)
        clock.advance(ASSOCIATE_TIMEOUT_S - 1)
        assert not line.host.is_over.wait(0.2)
        clock.advance(2)
        assert "no association was requested in time" == line.ended("lost")


def test_dripping_buys_no_time() -> None:
    """A byte every few seconds does not move the end of the time for a request."""
    clock = ManualClock()
    with on_line(clock=clock) as line:
        for byte in association_request()[:10]:
            line.peer.sendall(bytes((byte,)))
            clock.advance(ASSOCIATE_TIMEOUT_S / 10 + 0.1)
        assert "no association was requested in time" == line.ended("lost")


# States of an association


def test_release_is_answered_and_the_peer_closes() -> None:
    """A-RELEASE-RP, then the end."""
    with associated() as line:
        line.peer.sendall(pdu.RELEASE_RQ)
        assert [RELEASE_RP] == read_all(line.peer)
        line.peer.close()
        line.ended("released")


@pytest.mark.parametrize(
    "said",
    [
        association_request(),
        pdu.RELEASE_RP,
        b"\x02\x00\x00\x00\x00\x04abcd",
        b"\x03\x00\x00\x00\x00\x04abcd",
        b"\x08\x00\x00\x00\x00\x04abcd",
        store_command() + pdu.RELEASE_RQ,
        store_command() + association_request(),
    ],
    ids=[
        "second request",
        "release response, unasked",
        "answer to no request",
        "rejection of no request",
        "no such type",
        "release within an object",
        "request within an object",
    ],
)
def test_what_does_not_fit_the_state_is_aborted(said: bytes) -> None:
    """The provider aborts (AA-8), what was begun is thrown away, and nothing is stored."""
    with associated() as line:
        line.peer.sendall(said + pdu.RELEASE_RQ * 3)
        kinds = read_all(line.peer)
        assert [ABORT] == kinds
        line.peer.close()
        line.ended("aborted")
        assert [] == line.host.stored
        assert [True] * len(line.host.places) == [place.is_aborted for place in line.host.places]


CONVERSATION = association_request() + echo_message() + store_message(max_pdu=200) + pdu.RELEASE_RQ


@pytest.mark.parametrize("said", [ABORT_RQ, b""], ids=["abort", "close"])
def test_an_end_at_any_byte_is_the_end(said: bytes) -> None:
    """A-ABORT after each PDU, or the connection gone after each byte of the heads: never an exception, never a file."""
    pdus = list(_ends_of_pdus(CONVERSATION))
    places = pdus if said else [place for end in pdus for place in range(end - 3, end + 20, 4)]
    for place in sorted({place for place in places if place < len(CONVERSATION) - 10}):
        with on_line() as line:
            line.peer.sendall(CONVERSATION[:place] + said)
            line.peer.shutdown(socket.SHUT_WR)
            assert set(read_all(line.peer)) <= {ASSOCIATE_AC, P_DATA}
            line.ended("aborted" if said and place else "lost")
            if not line.host.stored:
                assert all(one.is_aborted for one in line.host.places)


def _ends_of_pdus(stream: bytes) -> Iterator[int]:
    position = 0
    while position < len(stream):
        yield position
        position += 6 + struct.unpack_from(">BxI", stream, position)[1]


def test_an_abort_before_an_association_is_no_association() -> None:
    """The row of an association is not there to be closed."""
    with on_line() as line:
        line.peer.sendall(ABORT_RQ)
        assert "the peer aborted" == line.ended("lost")


# Messages


@pytest.mark.parametrize("max_pdu", [7, 100, 16384])
def test_fragments_of_any_size_make_the_object(max_pdu: int) -> None:
    """The data set arrives as it was sent, and success is answered."""
    with associated() as line:
        line.peer.sendall(store_message(max_pdu=max_pdu))
        assert 0 == read_status(line.peer)
        assert [SMALL] == line.host.stored


def values(*parts: tuple[int, int, bytes]) -> bytes:
    """Return one P-DATA-TF with several presentation data values: context, control header, content."""
    content = b"".join(
        struct.pack(">IBB", len(part) + 2, context_id, flags) + part for context_id, flags, part in parts
    )
    return struct.pack(">BxI", P_DATA, len(content)) + content


def test_values_may_share_a_pdu_be_split_and_be_empty() -> None:
    """Command set and data set in one PDU, the command in three pieces, empty values before and after."""
    asked = command_set(**STORE, **DATA_SET)
    with associated() as line:
        line.peer.sendall(
            values((1, 1, asked[:10]), (1, 1, b""), (1, 1, asked[10:20]))
            + values((1, 3, asked[20:]), (1, 0, b""), (1, 0, SMALL[:100]))
            + values((1, 0, SMALL[100:]))
            + values((1, 2, b""))
        )
        assert 0 == read_status(line.peer)
        assert [SMALL] == line.host.stored
        line.peer.sendall(values((1, 3, asked), (1, 2, SMALL), (3, 3, command_set(**ECHO, **NO_DATA_SET))))
        assert [0, 0] == [read_status(line.peer), read_status(line.peer)]
        assert [SMALL, SMALL] == line.host.stored


@pytest.mark.parametrize(
    "said",
    [
        echo_message(context_id=5),
        echo_message(context_id=0),
        data_message(1, SMALL),
        store_command() + data_message(3, SMALL),
        store_command() + echo_message(),
        values((1, 1, b"\x00\x00")) + values((3, 3, b"\x00\x00")),
        values((1, 1, b"\x00" * 100)) + data_message(1, SMALL),
        values((1, 3, b"\x00" * 7)),
        values((1, 3, command_set(**ECHO))),
        values((1, 3, command_set(x0110=US(1), **NO_DATA_SET))),
        values((1, 3, command_set(x0100=US(0x30), **NO_DATA_SET))),
        values((1, 3, command_set(x0100=US(0x8001), x0110=US(1), **NO_DATA_SET))),
        values((1, 3, command_set(x0100=US(0x30), x0110=b"\x01", **NO_DATA_SET))),
        values(*((1, 1, b"\x00" * 4000),) * 3),
        b"\x04\x00\x00\x00\x00\x05abcde",
        struct.pack(">BxI", P_DATA, 16385),
        struct.pack(">BxI", P_DATA, 0xFFFFFFFF),
        struct.pack(">BxIIBB", P_DATA, 10, 100, 1, 3) + bytes(4),
        struct.pack(">BxI", 1, 0xFFFFFFFF),
    ],
    ids=lambda said: said[:16].hex(),
)
def test_what_breaks_the_protocol_is_aborted(said: bytes) -> None:
    """Contexts not accepted, messages mixed, command sets that are none, lengths beyond: the provider's A-ABORT."""
    with associated() as line:
        line.peer.sendall(said)
        read = read_pdu(line.peer)
        assert read is not None
        assert (ABORT, 2) == (read[0], read[1][2])
        line.peer.close()
        line.ended("aborted")
        assert [] == line.host.stored


@pytest.mark.parametrize("operation", [0x0010, 0x0020, 0x0021, 0x0100, 0x0150, 0x7777])
def test_an_operation_that_we_lack_is_refused(operation: int) -> None:
    """0x0211, unrecognised operation; C-ECHO with a data set is none of ours either; the association lives on."""
    asked = {"x0100": US(operation), "x0110": US(1)}
    with associated() as line:
        line.peer.sendall(values((3, 3, command_set(**asked, **NO_DATA_SET))))
        assert 0x0211 == read_status(line.peer)
        line.peer.sendall(values((3, 3, command_set(**asked, **DATA_SET)), (3, 2, b"abc")))
        assert 0x0211 == read_status(line.peer)
        line.peer.sendall(values((3, 3, command_set(**ECHO, **DATA_SET)), (3, 2, b"abc")))
        assert 0x0211 == read_status(line.peer)
        line.peer.sendall(echo_message() + pdu.RELEASE_RQ)
        assert 0 == read_status(line.peer)
        assert [RELEASE_RP] == read_all(line.peer)
        assert ["echo", "released"] == line.host.calls[2:]


def test_a_cancel_is_not_answered() -> None:
    """C-CANCEL-RQ has no Message ID and no response (PS3.7 9.3.2.3); nothing of ours can be cancelled."""
    with associated() as line:
        line.peer.sendall(values((3, 3, command_set(x0100=US(0x0FFF), x0120=US(1), **NO_DATA_SET))) + echo_message())
        assert 0 == read_status(line.peer)


def test_a_store_without_a_data_set_is_the_hosts_to_refuse() -> None:
    """Command Data Set Type 0101H in a C-STORE-RQ: it is asked, with nothing to file, and answers at once."""
    with associated() as line:
        line.peer.sendall(values((1, 3, command_set(**STORE, **NO_DATA_SET))))
        assert 0 == read_status(line.peer)
        assert ([None], []) == (line.host.stored, line.host.places)


@pytest.mark.parametrize("fails_at", [0, 1, 200])
def test_an_object_that_fails_is_drained_and_answered(fails_at: int) -> None:
    """The disk gives up in the middle: the rest is read, the status tells, the next object is stored."""

    def failing() -> Place:
        place = Place()
        place.fails_at = fails_at if not host.places else None
        return place

    host = Remembering(place=failing)
    with associated(host) as line:
        line.peer.sendall(store_message(max_pdu=50) + store_message())
        assert [0xA700, 0] == [read_status(line.peer), read_status(line.peer)]
        assert (["OSError"], [SMALL]) == (host.errors, host.stored)


def test_an_object_that_is_refused_at_once_is_drained_and_answered() -> None:
    """The host refuses before the first byte of the data set, and the peer hears why after the last."""

    def refusing() -> Place:
        raise RefusalError(0x0124, "this peer may not store")

    with associated(Remembering(place=refusing)) as line:
        line.peer.sendall(store_message(max_pdu=50))
        assert 0x0124 == read_status(line.peer)


# TCP


@pytest.mark.parametrize("max_pdu", [0, 16384, 64])
def test_a_response_is_one_send(max_pdu: int) -> None:
    """Two writes would cost a peer with delayed acknowledgements 40 ms; its maximum length cuts PDUs alone."""
    with on_line() as line:
        associate(line.peer, association_request(max_pdu=max_pdu))
        for _ in range(3):
            line.peer.sendall(store_message())
            response = b""
            while not response or not response[-1]:
                read = read_pdu(line.peer)
                assert read is not None
                assert len(read[1]) <= (max_pdu or 1 << 16)
                response += read[1][6:]
                if read[1][5] & 2:
                    break
            assert 0 == command.decoded(response).status
        line.peer.sendall(pdu.RELEASE_RQ)
        assert [RELEASE_RP] == read_all(line.peer)
        assert 1 + 3 + 1 == len(line.ours.sent)


def test_nothing_waits_for_small_packets() -> None:
    """Nagle's algorithm is off, and acknowledgements are asked for again after each receive."""
    with associated() as line:
        for _ in range(5):
            line.peer.sendall(echo_message())
            assert 0 == read_status(line.peer)
        assert 1 == line.ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert list(range(1, 7)) == line.ours.acknowledged[:6]


def test_a_peer_that_reads_nothing_does_not_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of requests, their responses never read: sending fails after its time, and the connection is over."""
    monkeypatch.setattr("dicom_node.receive.connection.SEND_TIMEOUT_S", 0.3)
    with on_line() as line:
        line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        associate(line.peer)
        line.peer.settimeout(5)
        with suppress(OSError):
            for _ in range(2000):
                line.peer.sendall(echo_message() * 100)
        line.ended("lost")


# Deadlines and ends of our own


def test_silence_is_aborted_by_the_user() -> None:
    """After its idle time the association ends with A-ABORT, source service user."""
    clock = ManualClock()
    with associated(clock=clock) as line:
        while not select.select([line.peer], [], [], 0.1)[0]:
            clock.advance(0.3)
        assert (ABORT, bytes(4)) == read_pdu(line.peer)
        line.peer.close()
        assert "nothing came for 0.2 s" == line.ended("aborted")


def test_a_slow_object_is_aborted() -> None:
    """Bytes come, but fewer a second than a sender keeps up: over after one window."""
    clock = ManualClock()
    with associated(clock=clock, idle_timeout_s=4) as line:
        line.peer.sendall(store_command())
        for byte in data_message(1, SMALL)[:100]:
            line.peer.sendall(bytes((byte,)))
            clock.advance(1)
            if line.host.is_over.wait(0.02):
                break
        assert "an object came slower than 1000 bytes a second" == line.ended("aborted")
        assert [True] == [place.is_aborted for place in line.host.places]


def test_end_from_another_thread_aborts_an_association() -> None:
    """The peer hears A-ABORT, in the middle of an object too, and the host that the node stops."""
    with associated() as line:
        line.peer.sendall(store_message()[:-30])
        threading.Timer(0.05, line.connection.end).start()
        assert (ABORT, bytes(4)) == read_pdu(line.peer)
        assert "the node stops" == line.ended("aborted")
        assert [True] == [place.is_aborted for place in line.host.places]


def test_end_before_an_association_is_silent() -> None:
    """Nobody is told: nobody said who it is."""
    with on_line(clock=SystemClock()) as line:
        line.connection.end()
        assert [] == read_all(line.peer)
        line.ended("lost")


def test_end_after_the_end_is_harmless() -> None:
    """Stopping may come when the connection is over already."""
    with associated() as line:
        line.peer.sendall(pdu.RELEASE_RQ)
        assert [RELEASE_RP] == read_all(line.peer)
        line.peer.close()
        line.ended("released")
        line.connection.end()


def test_a_peer_that_does_not_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a release it may take its time to close, and no longer; what it still says is not heard."""
    monkeypatch.setattr("dicom_node.receive.connection.CLOSE_TIMEOUT_S", 0.3)
    with associated(clock=SystemClock()) as line:
        line.peer.sendall(pdu.RELEASE_RQ)
        assert [RELEASE_RP] == read_all(line.peer)
        with suppress(OSError):
            while not line.host.is_over.wait(0.01):
                line.peer.sendall(store_message())
        line.ended("released")
        assert [] == line.host.stored


def test_contexts_that_are_not_accepted_leave_an_association_without_use() -> None:
    """Every context rejected: the association stands, as the standard has it, and whatever is sent under it aborts."""
    with on_line() as line:
        associate(
            line.peer, association_request({1: ("1.2.840.10008.5.1.4.1.2.2.1", (EXPLICIT,)), 3: (MR, ("1.2.3",))})
        )
        line.peer.sendall(echo_message(3))
        assert [ABORT] == read_all(line.peer)
        line.peer.close()
        line.ended("aborted")


def test_each_context_has_its_class() -> None:
    """The host is told under which context a request came."""
    asked = []

    class Asking(Remembering):
        def begin(self, connection: Connection, request: Any, context: Any) -> Place:
            asked.append((context.abstract_syntax, context.transfer_syntax))
            return super().begin(connection, request, context)

    contexts = {1: (MR, (EXPLICIT,)), 5: (MR, (IMPLICIT,)), 9: (VERIFY, (IMPLICIT,))}
    with on_line(Asking()) as line:
        associate(line.peer, association_request(contexts))
        for context_id in (5, 1):
            line.peer.sendall(store_command(context_id=context_id) + data_message(context_id, SMALL))
            assert 0 == read_status(line.peer)
    assert [(MR, IMPLICIT), (MR, EXPLICIT)] == asked
