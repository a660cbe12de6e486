"""Attacks, before authentication and after: what they may cost, and that an honest sender is served meanwhile.

The short forms hold limits and ends. The long form weighs throughput: a node of its own, an honest sender from one
address, attackers from another that the node knows as well, in runs with and without in turn.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks import upper_layer
from benchmarks.corpus import KINDS, make_template
from benchmarks.node import AE_TITLE, RunningNode
from benchmarks.processes import cpu_s
from dicom_node.clock import ManualClock, SystemClock
from dicom_node.config.schema import Peer
from dicom_node.dimse import pdu
from dicom_node.dimse.pdu import LARGEST_CONTROL_BYTES
from dicom_node.dimse.tls import Certificates
from dicom_node.errors import UndecodableError
from dicom_node.logs import Log
from dicom_node.reading import load_volume
from dicom_node.reading.description import describe_bytes
from dicom_node.receive.connection import ASSOCIATE_TIMEOUT_S
from tests.integration.receiving import DEFLATED, EXPLICIT, IMPLICIT, MR, VERIFY, encode_data_set, small_data_set
from tests.peers import eventually, free_port
from tests.peers.certificates import authority
from tests.torture.hostile import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    RELEASE_RP,
    SMALL,
    Receiver,
    associate,
    association_request,
    calling,
    data_message,
    echo_message,
    footprint,
    is_honest_served,
    item,
    read_all,
    read_pdu,
    read_status,
    running_receiver,
    store_command,
    store_message,
    surprises,
)

LITTLE = 64 << 20
"""Bytes of resident memory that an attack may cost for a while: buffers of the connections that are open."""


@contextmanager
def held(receiver: Receiver) -> Iterator[None]:
    """Hold what an attack may cost: memory, and afterwards threads and descriptors; honest senders are served."""
    assert is_honest_served(receiver.port)
    assert eventually(lambda: not _associations(), timeout_s=10, every_s=0.02)
    before = footprint()
    with surprises() as found:
        yield
        assert footprint().resident_bytes - before.resident_bytes < LITTLE
        assert is_honest_served(receiver.port)
        assert eventually(lambda: footprint().threads <= before.threads, timeout_s=15, every_s=0.02)
        assert eventually(lambda: footprint().descriptors <= before.descriptors, timeout_s=15, every_s=0.02)
    assert [] == found


def _associations(address: str = "") -> list[threading.Thread]:
    """Return the threads of connections, of all or from one address."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"association@{address}")]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """Return a receiver with the limits of a small node."""
    peer = Peer(name="ct", ae_title="CT1", hosts=("127.0.0.0/8",))
    with running_receiver(
        tmp_path, peers=(peer,), max_pending=16, max_associations=12, max_associations_per_address=8
    ) as running:
        yield running


def from_address(address: str, port: int) -> socket.socket:
    """Return a connection that comes from an address of loopback."""
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))


# Before authentication


@pytest.mark.parametrize(
    "first",
    [
        struct.pack(">BxI", 1, 0xFFFFFFFF),
        struct.pack(">BxI", 1, LARGEST_CONTROL_BYTES + 1),
        struct.pack(">BxI", 4, 0xFFFFFFFF),
        struct.pack(">BxI", 5, 0xFFFFFFFF),
    ],
    ids=["request of 4 GB", "request above the cap", "data of 4 GB", "release of 4 GB"],
)
def test_a_giant_length_is_refused_by_its_header(receiver: Receiver, first: bytes) -> None:
    """Aborted after six bytes; what follows them is thrown away, piece by piece."""
    with held(receiver):
        for _ in range(20):
            with calling(receiver.port) as connection, suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(first)
                read = read_pdu(connection)
                assert read is not None
                assert ABORT == read[0]
                for _ in range(64):
                    connection.sendall(bytes(1 << 16))


def test_the_largest_request_is_waited_for_in_little_memory(receiver: Receiver) -> None:
    """Exactly at the cap, all but the last byte, as many as may be pending: 256 kB each."""
    request = struct.pack(">BxI", 1, LARGEST_CONTROL_BYTES) + association_request()[6:]
    request += bytes(LARGEST_CONTROL_BYTES + 6 - len(request))
    with held(receiver), ExitStack() as open_ones:
        for _ in range(40):
            connection = open_ones.enter_context(calling(receiver.port))
            with suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(request[:-1])


def test_a_stranger_with_the_largest_request_is_rejected_at_once(receiver: Receiver) -> None:
    """256 kB of items that would take half a second each to decode: titles come first."""
    items = item(0x50, item(0x56, b"\x00\x011\x00") * 8000) * 4
    content = association_request(calling="STRANGER")[6:] + items
    content = content[:LARGEST_CONTROL_BYTES]
    request = struct.pack(">BxI", 1, len(content)) + content
    with held(receiver):
        began_at = time.process_time()
        for _ in range(20):
            with calling(receiver.port) as connection:
                connection.sendall(request)
                assert (ASSOCIATE_RJ, bytes((0, 1, 1, 3))) == read_pdu(connection)
        assert 2 > time.process_time() - began_at


@pytest.mark.parametrize("is_associated", [False, True])
def test_dripping_is_ended(tmp_path: Path, is_associated: bool) -> None:
    """A byte a second, before an association and within an object: over after its time, by a clock that is moved."""
    clock = ManualClock()
    with (
        running_receiver(tmp_path, clock=clock, max_associations_per_address=30) as receiver,
        held(receiver),
        ExitStack() as open_ones,
    ):
        drips = [open_ones.enter_context(calling(receiver.port)) for _ in range(20)]
        if is_associated:
            for drip in drips:
                associate(drip)
                drip.sendall(store_command())
        assert is_honest_served(receiver.port)
        for byte in (data_message(1, SMALL) if is_associated else association_request())[:70]:
            for drip in drips:
                with suppress(ConnectionResetError, BrokenPipeError):
                    drip.sendall(bytes((byte,)))
            clock.advance(1 if is_associated else ASSOCIATE_TIMEOUT_S / 30)
            time.sleep(0.005)
        clock.advance(30)
        assert [[ABORT] if is_associated else []] * 20 == [read_all(drip) for drip in drips]


@pytest.mark.long
@pytest.mark.parametrize("is_associated", [False, True])
def test_dripping_is_ended_in_real_time(tmp_path: Path, is_associated: bool) -> None:
    """The same by the machine's clock: half a minute for a request, a window of a minute inside an object."""
    with running_receiver(tmp_path) as receiver, calling(receiver.port) as drip:
        if is_associated:
            associate(drip)
            drip.sendall(store_command())
        began_at = time.monotonic()
        with suppress(ConnectionResetError, BrokenPipeError):
            for byte in (data_message(1, SMALL) if is_associated else association_request())[:150]:
                drip.sendall(bytes((byte,)))
                drip.settimeout(1.0)
                with suppress(TimeoutError):
                    if not drip.recv(1, socket.MSG_PEEK) or is_associated:
                        break
        assert (60 if is_associated else ASSOCIATE_TIMEOUT_S) <= time.monotonic() - began_at + 1 < 75


def test_silent_connections_make_room_for_those_that_speak(receiver: Receiver) -> None:
    """Three hundred that say nothing: sixteen may stay, no honest sender waits."""
    with held(receiver), ExitStack() as open_ones:
        for number in range(300):
            open_ones.enter_context(from_address("127.6.6.6", receiver.port))
            if number % 50 == 0:
                assert is_honest_served(receiver.port)
        assert eventually(lambda: len(_associations("127.6.6.6")) <= 16, timeout_s=10)


def test_a_flood_of_connections_passes(receiver: Receiver) -> None:
    """A thousand that come and go at once, some by a reset: all are forgotten."""
    with held(receiver):
        for number in range(1000):
            with from_address("127.6.6.6", receiver.port) as connection:
                if number % 3 == 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif number % 3 == 1:
                    connection.sendall(association_request()[:50])
            if number % 200 == 0:
                assert is_honest_served(receiver.port)


def test_connections_of_no_peer_are_closed_unread(tmp_path: Path) -> None:
    """An address that no peer has: closed at accept, without a thread."""
    peer = Peer(name="ct", ae_title="CT1", hosts=("127.0.0.1/32",))
    with running_receiver(tmp_path, peers=(peer,)) as receiver, held(receiver):
        for _ in range(200):
            with from_address("127.6.6.6", receiver.port) as connection, suppress(OSError):
                connection.sendall(association_request())
                assert [] == read_all(connection)


def test_a_peer_that_never_reads_is_left(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests without end, no response read: given up after a while, others are served meanwhile."""
    monkeypatch.setattr("dicom_node.receive.connection.SEND_TIMEOUT_S", 0.5)
    with held(receiver), ExitStack() as open_ones:
        for number in range(2):
            connection = open_ones.enter_context(from_address(f"127.0.0.{number + 2}", receiver.port))
            associate(connection)
            connection.settimeout(0.2)
            with suppress(OSError):
                for _ in range(5000):
                    connection.sendall(echo_message() * 100)
            assert is_honest_served(receiver.port)


def test_limits_hold_by_address_and_in_all(receiver: Receiver) -> None:
    """Eight of one address and twelve in all; the next is put off, and a place that is left is free again."""
    with held(receiver), ExitStack() as open_ones:

        def answer(address: str) -> tuple[int, bytes]:
            connection = open_ones.enter_context(from_address(address, receiver.port))
            connection.sendall(association_request())
            read = read_pdu(connection)
            assert read is not None
            return read[0], read[1][:4]

        no_room = (ASSOCIATE_RJ, bytes((0, 2, 3, 2)))
        assert [ASSOCIATE_AC] * 8 == [answer("127.6.6.6")[0] for _ in range(8)]
        assert no_room == answer("127.6.6.6")
        assert is_honest_served(receiver.port)
        assert [ASSOCIATE_AC] * 4 == [answer("127.0.0.9")[0] for _ in range(4)]
        assert [no_room, no_room] == [answer("127.0.0.9"), answer("127.0.0.10")]


def test_a_released_place_is_free_when_its_peer_hears_of_it(receiver: Receiver) -> None:
    """Twenty in a row where eight may be: none waits until those before it have closed; those are bounded as silent."""
    with held(receiver), ExitStack() as open_ones:
        for _ in range(20):
            connection = open_ones.enter_context(from_address("127.6.6.6", receiver.port))
            associate(connection)
            connection.sendall(pdu.RELEASE_RQ)
            assert (RELEASE_RP, bytes(4)) == read_pdu(connection)
        assert eventually(lambda: len(_associations("127.6.6.6")) <= 16, timeout_s=4)


def test_a_connection_without_a_thread_is_forgotten(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system has no thread left: the connection is closed, holds no place, and stopping waits for nobody."""
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "association@127.6.6.6":
            raise RuntimeError("can't start new thread")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(20):
        with from_address("127.6.6.6", receiver.port) as connection:
            assert [] == read_all(connection)
    assert is_honest_served(receiver.port)
    assert eventually(lambda: not receiver.listener._connections, timeout_s=10)


@pytest.fixture
def tls_receiver(tmp_path: Path) -> Iterator[Receiver]:
    """Return a receiver that has a TLS port too."""
    files = authority(tmp_path / "ca").issue("node")
    certificates = Certificates(files, clock=SystemClock(), log=Log("tls"))

    def wrap(plain: socket.socket) -> object:
        return certificates.server().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)

    with running_receiver(tmp_path / "store", tls=wrap, max_pending=16) as running:  # type: ignore[arg-type]
        yield running


def test_silent_tls_blocks_nobody(tls_receiver: Receiver) -> None:
    """Clients that never shake hands, half of them within a hello: the port without TLS knows nothing of it."""
    with held(tls_receiver), ExitStack() as open_ones:
        for number in range(60):
            connection = open_ones.enter_context(calling(tls_receiver.tls_port))
            if number % 2:
                with suppress(OSError):
                    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
            if number % 20 == 0:
                began_at = time.monotonic()
                assert is_honest_served(tls_receiver.port)
                assert 2 > time.monotonic() - began_at


@pytest.mark.parametrize("junk", [association_request(), bytes(10_000), b"\x16\x03\x01\xff\xff" + bytes(70_000)])
def test_what_is_no_tls_is_closed(tls_receiver: Receiver, junk: bytes) -> None:
    """Plain DICOM, zeros and a record beyond measure on the TLS port: closed, without an exception."""
    with held(tls_receiver):
        for _ in range(10):
            with calling(tls_receiver.tls_port) as connection, suppress(OSError):
                connection.sendall(junk)
                while connection.recv(1 << 12):
                    continue


# After authentication


def nested(depth: int, *, is_defined: bool, syntax: str) -> bytes:
    """Return a data set whose Referenced Study Sequence (0008,1110) holds itself, `depth` times."""
    head = b"\x08\x00\x10\x11" + (b"" if syntax == IMPLICIT else b"SQ\x00\x00")
    content = b""
    if is_defined:
        for _ in range(depth):
            inside = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content
            content = head + struct.pack("<I", len(inside)) + inside
    else:
        begin = head + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        content = begin * depth + (b"\xfe\xff\x0d\xe0" + bytes(4) + b"\xfe\xff\xdd\xe0" + bytes(4)) * depth
    plain = encode_data_set(small_data_set(), syntax)
    at = plain.index(b"\x08\x00\x10\x11")
    sop = plain[:at]
    return sop + content + plain[plain.index(b"\x10\x00\x20\x00") :]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
@pytest.mark.parametrize("is_defined", [False, True])
def test_nested_sequences_end_nothing(receiver: Receiver, syntax: str, is_defined: bool) -> None:
    """Five thousand levels: refused, or, where lengths allow to step over them, filed and described like any other."""
    data_set = nested(5000, is_defined=is_defined, syntax=syntax)
    with held(receiver), calling(receiver.port) as connection:
        associate(connection, association_request({1: (MR, (syntax,)), 3: (VERIFY, (IMPLICIT,))}))
        connection.sendall(store_message(data_set))
        assert (0 if is_defined else 0xC000) == read_status(connection)
        connection.sendall(echo_message())
        assert 0 == read_status(connection)
    if is_defined:
        content = receiver.store.content(receiver.events.arrivals[-1])
        with suppress(UndecodableError):
            description = describe_bytes(content)
            assert "1.2.3.4" == description.sop_instance_uid
            assert "0020000D" in description.header or not description.header


def test_a_deflate_bomb_is_refused_in_little_memory(receiver: Receiver) -> None:
    """A gigabyte in a megabyte: inflated in pieces and measured, never held."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = encode_data_set(small_data_set())[:-4] + struct.pack("<I", 1 << 30) + bytes(1 << 20)
    bomb = deflater.compress(zeros) + b"".join(deflater.compress(bytes(1 << 20)) for _ in range(1000))
    bomb += deflater.flush()
    with held(receiver), calling(receiver.port) as connection:
        associate(connection, association_request({1: (MR, (DEFLATED,)), 3: (VERIFY, (IMPLICIT,))}))
        connection.sendall(store_message(bomb))
        assert 0xC000 == read_status(connection)


def test_absurd_rows_and_columns_cost_nothing(receiver: Receiver, tmp_path: Path) -> None:
    """65535 x 65535 and a billion frames over a hundred bytes: filed as sent, described, and refused when read."""
    ds = small_data_set()
    ds.Rows = ds.Columns = 65535
    ds.NumberOfFrames = 1 << 30
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
    with held(receiver):
        with calling(receiver.port) as connection:
            associate(connection)
            connection.sendall(store_message(encode_data_set(ds)))
            assert 0 == read_status(connection)
        content = receiver.store.content(receiver.events.arrivals[-1])
        description = describe_bytes(content)
        assert (1 << 30, "1.2.3.4") == (description.n_frames, description.sop_instance_uid)
        path = tmp_path / "absurd.dcm"
        path.write_bytes(content)
        with pytest.raises(UndecodableError, match="pixels are more than"):
            load_volume([path, path])


def test_a_command_set_without_end_is_aborted(receiver: Receiver) -> None:
    """Fragment after fragment that is not the last: over after some kilobytes."""
    fragment = pdu.data_head(1, 1000, is_command=True, is_last=False) + bytes(1000)
    with held(receiver), calling(receiver.port) as connection:
        associate(connection)
        with suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(1000):
                connection.sendall(fragment)
        assert set(read_all(connection)) <= {ABORT}


def test_a_data_set_without_end_costs_no_memory(receiver: Receiver, tmp_path: Path) -> None:
    """It goes to the disk as it comes, and from there when its sender has gone."""
    fragment = pdu.data_head(1, 16378, is_command=False, is_last=False) + bytes(16378)
    with held(receiver):
        with calling(receiver.port) as connection:
            associate(connection)
            connection.sendall(store_command())
            before = footprint()
            for _ in range(4000):
                connection.sendall(fragment)
            assert footprint().resident_bytes - before.resident_bytes < LITTLE
        assert eventually(lambda: not list(tmp_path.rglob("*.part")), timeout_s=10)


def test_elements_without_end_are_not_walked(receiver: Receiver) -> None:
    """Twenty megabytes of empty elements would hold the interpreter for seconds: given up after a quarter of one."""
    data_set = struct.pack("<HHI", 8, 5, 0) * 2_500_000
    with held(receiver), calling(receiver.port) as connection:
        associate(connection, association_request({1: (MR, (IMPLICIT,)), 3: (VERIFY, (IMPLICIT,))}))
        connection.sendall(store_command() + data_message(1, data_set, 1 << 14))
        assert 0xC000 == read_status(connection)


def test_many_contexts_cost_little(receiver: Receiver) -> None:
    """128 contexts of twenty syntaxes on every association that is allowed; 129 are a breach of the protocol."""
    syntaxes = (*(f"1.2.840.10008.1.2.4.{number}" for number in range(50, 69)), EXPLICIT)
    contexts = {2 * number + 1: (MR, syntaxes) for number in range(128)}
    with held(receiver), ExitStack() as open_ones:
        for _ in range(8):
            connection = open_ones.enter_context(from_address("127.0.0.7", receiver.port))
            associate(connection, association_request(contexts))
        with from_address("127.0.0.8", receiver.port) as connection:
            request = association_request({**contexts, 2: (MR, syntaxes)})
            connection.sendall(request)
            assert [ABORT] == read_all(connection)


def test_nothing_is_stored_under_a_context_for_verification(receiver: Receiver) -> None:
    """Not even an object that says it is of that class: 0x0122."""
    data_set = encode_data_set(small_data_set(sop_class_uid=VERIFY), IMPLICIT)
    with calling(receiver.port) as connection:
        associate(connection)
        connection.sendall(store_command(context_id=3, sop_class_uid=VERIFY) + data_message(3, data_set))
        assert 0x0122 == read_status(connection)
    assert [] == receiver.filed_digests()


# An honest sender's throughput

PEERS = """
[[peer]]
name = "compromised"
ae_title = "OTHER"
hosts = ["127.6.6.6/32"]
may = ["echo", "store"]

[receive.tls]
port = {port}
certificate = "{certificate}"
key = "{key}"
ca = "{ca}"
"""
PAIRS = 11
OBJECTS = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """What is said on each connection, how many are held, and how long it is until the next one."""

    said: bytes = b""
    held: int = 0
    pause_s: float
    drips: bool = False
    """One byte of a request on each connection that is held, between one and the next."""


def _heavy() -> bytes:
    content = association_request(calling="NOBODY", called=AE_TITLE)[6:]
    content += item(0x50, item(0x56, b"\x00\x011\x00") * 8000) * 4
    return struct.pack(">BxI", 1, LARGEST_CONTROL_BYTES) + content[:LARGEST_CONTROL_BYTES]


ATTACKS = {
    "giant": Attack(said=struct.pack(">BxI", 1, 0xFFFFFFFF) + bytes(1 << 16), held=5, pause_s=0.05),
    "stranger": Attack(said=_heavy(), held=5, pause_s=0.05),
    "flood": Attack(pause_s=0.01),
    "silent": Attack(held=300, pause_s=0.1),
    "silent tls": Attack(said=b"\x16\x03", held=300, pause_s=0.1),
    "drip": Attack(held=60, pause_s=0.5, drips=True),
}


def attack(name: str, port: int, tls_port: int) -> None:
    """Attack from 127.6.6.6 until this process is ended; run as a program, so that its CPU is its own."""
    plan, place = ATTACKS[name], 0
    kept: deque[socket.socket] = deque()
    while True:
        with suppress(OSError):
            kept.append(from_address("127.6.6.6", tls_port if name == "silent tls" else port))
            kept[-1].sendall(plan.said)
        if len(kept) < plan.held:
            continue
        if kept:
            kept.popleft().close()
        for one in kept if plan.drips else ():
            with suppress(OSError):
                one.sendall(association_request()[place % 100 : place % 100 + 1])
        place += 1
        time.sleep(plan.pause_s)


@contextmanager
def _attacking(name: str, port: int, tls_port: int) -> Iterator[None]:
    """Attack from a process of its own, which has begun when this returns."""
    command = [sys.executable, __file__, name, str(port), str(tls_port)]
    attacker = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "."})
    try:
        time.sleep(3)  # to start, and to hold as many connections as it will
        yield
        assert attacker.poll() is None
    finally:
        attacker.kill()
        attacker.wait()


def _settle(pid: int) -> None:
    """Wait until the node has indexed what came before, and rests."""

    def rests() -> bool:
        before_s = cpu_s(pid)
        time.sleep(0.5)
        return cpu_s(pid) - before_s < 0.05

    assert eventually(rests, timeout_s=60)


@pytest.mark.long
@pytest.mark.parametrize("name", ATTACKS)
def test_an_honest_sender_keeps_its_throughput(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In pairs of runs with and without the attack, four fifths of what it has in peace, by the medians."""
    files = authority(tmp_path / "ca").issue("node")
    tls_port = free_port()
    more = PEERS.format(port=tls_port, certificate=files.certificate, key=files.key, ca=files.ca)
    template = make_template(KINDS["mr"], seed="attacks")
    content, serials = bytearray(template.content), itertools.count()
    data_set = memoryview(content)[template.data_set_offset :]

    def run_s(port: int) -> float:
        contexts = {1: (template.sop_class_uid, EXPLICIT)}
        connection = upper_layer.associate(port, called=AE_TITLE, calling="STORESCU", contexts=contexts)
        with connection:
            sender = upper_layer.Association(connection)
            began_at = time.perf_counter()
            for serial in itertools.islice(serials, OBJECTS):
                template.patch(content, serial)
                uid = template.uid(serial)
                assert 0 == sender.store(data_set, sop_class_uid=template.sop_class_uid, sop_instance_uid=uid)
            return time.perf_counter() - began_at

    seconds: dict[bool, list[float]] = {False: [], True: []}
    # In memory where that is possible: the moods of a disk would drown what is measured.
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with TemporaryDirectory(dir=memory) as folder, RunningNode(Path(folder) / "node", more=more) as node:
        run_s(node.port)
        for pair in range(PAIRS):
            for attacked in (False, True) if pair % 2 else (True, False):
                _settle(node.pid)
                with _attacking(name, node.port, tls_port) if attacked else nullcontext():
                    seconds[attacked].append(run_s(node.port))
    ratios = sorted(peace / war for peace, war in zip(seconds[False], seconds[True], strict=True))
    figure = statistics.median(seconds[False]) / statistics.median(seconds[True])
    quarter = len(ratios) // 4
    with capsys.disabled():
        spread = f"{ratios[quarter]:.2f}-{ratios[-quarter - 1]:.2f}"
        sys.stdout.write(f"\n{name}: {figure:.2f} of the throughput in peace; half of the pairs {spread}\n")
    assert 0.8 <= figure


if __name__ == "__main__":
    attack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
