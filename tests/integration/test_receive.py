"""Claims on receiving: against dcmtk's senders and against one that misbehaves, over real associations on loopback."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pynetdicom import AE
from pynetdicom.dsutils import split_dataset

from dicom_node.clock import ManualClock, SystemClock
from dicom_node.config.schema import Peer
from dicom_node.dimse import RejectedAssociationError, Verdict, echo, send_files
from dicom_node.errors import StorageError
from dicom_node.filing import Incoming, InstanceMeta, InstanceStore
from dicom_node.filing.durable import PartFile
from dicom_node.indexing import RejectOtherContent
from dicom_node.records import OnConflict
from tests import peers
from tests.integration.receiving import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    Node,
    association,
    dicom_file,
    encode_data_set,
    running_node,
    small_data_set,
    store_raw,
)

SMALL = encode_data_set(small_data_set())
LARGE = encode_data_set(small_data_set(n_pixels=2_000_000))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Return a running listener that knows CT1 on loopback."""
    with running_node(tmp_path / "store") as running:
        yield running


def data_set_of(path: Path) -> bytes:
    """Return a file's bytes after its file meta information."""
    _meta, offset = split_dataset(path)
    return path.read_bytes()[offset:]


def stored_data_sets(node: Node) -> list[bytes]:
    """Return what the store holds once all is on the shelf."""
    assert all(node.filed) or not node.events.arrivals
    return [data_set_of(one.path) for one in node.store.sweep()]


def send(node: Node, path: Path) -> int | None:
    """Send one file with our sender; return the status."""
    (result,) = send_files([path], node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    return result.status


# Bytes


@pytest.mark.parametrize(
    "syntax",
    [IMPLICIT, EXPLICIT, BIG, DEFLATED, "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50"],
)
@pytest.mark.parametrize("n_pixels", [1, 100_000])
def test_bytes_are_stored_as_sent(node: Node, tmp_path: Path, syntax: str, n_pixels: int) -> None:
    """In every kind of transfer syntax, one fragment or many, the data set arrives byte for byte."""
    encoding = syntax if syntax in {IMPLICIT, BIG, DEFLATED} else EXPLICIT
    data_set = encode_data_set(small_data_set(n_pixels=n_pixels), encoding)
    assert 0x0000 == send(node, dicom_file(tmp_path / "x.dcm", data_set, syntax=syntax))
    assert [data_set] == stored_data_sets(node)
    assert [syntax] == [one.transfer_syntax_uid for one in node.filed]


def test_dcmtk_stores_and_echoes(node: Node, tmp_path: Path) -> None:
    """storescu and echoscu get success; what is filed is what storescu wrote on the wire."""
    path = dicom_file(tmp_path / "x.dcm", SMALL)
    peers.storescu([path], node.address.port, called="NODE", calling="CT1")
    assert [SMALL] == stored_data_sets(node)
    done = subprocess.run(
        ["echoscu", "-aec", "NODE", "-aet", "CT1", "127.0.0.1", str(node.address.port)], check=False, timeout=30
    )
    assert 0 == done.returncode


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")  # pydicom warns of what foreign headers hold, in threads that would end of it
def test_real_files_are_stored_as_they_are(node: Node, shared_data: Path) -> None:
    """Every DICOM file there: byte-identical, or refused with a status that its defect explains."""
    files = [path for path in sorted(shared_data.rglob("*")) if path.is_file()]
    paths = [path for path in files if path.read_bytes()[128:132] == b"DICM"]
    assert 600 < len(paths)
    results = list(send_files(paths, node.address, called_ae="NODE", calling_ae="CT1", timeout_s=60))
    filed = {one.digest for one in node.filed}
    refused: dict[str, int] = {}
    for result in results:
        if result.status == 0x0000:
            assert hashlib.sha256(data_set_of(result.path)).hexdigest() in filed, result.path
        else:
            assert result.status in {None, 0x0117, 0xA900, 0xC000}, (result.path, result)
            assert result.verdict in {Verdict.REFUSED, Verdict.REFUSED_FOR_GOOD}, (result.path, result)
            refused[result.path.name] = result.status or 0
    assert len(paths) - 50 < sum(result.status == 0 for result in results), refused


def test_an_object_of_a_private_class_is_filed(node: Node) -> None:
    """A console whose private object is rejected gives up the study: it is taken and answered."""
    private = "1.3.12.2.1107.5.9.1"
    data_set = encode_data_set(small_data_set(sop_class_uid=private))
    with association(node.address, abstract_syntax=private) as assoc:
        assert 0x0000 == store_raw(assoc, data_set, sop_class_uid=private)
    assert [data_set] == stored_data_sets(node)


def test_many_objects_share_an_association(node: Node, tmp_path: Path) -> None:
    """Object after object, each answered, one association row around them, its end after the last."""
    paths = [
        dicom_file(
            tmp_path / f"{number}.dcm",
            encode_data_set(small_data_set(f"1.2.{number}")),
            sop_instance_uid=f"1.2.{number}",
        )
        for number in range(20)
    ]
    results = list(send_files(paths, node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20))
    assert [0] * 20 == [result.status for result in results]
    assert node.events.wait_for("closed", "released")
    kinds = [entry[0] for entry in node.events.log]
    assert ("opened", 20, "closed") == (kinds[0], kinds.count("filed"), kinds[-1])
    assert 20 <= kinds.count("activity")
    assert 1 == len({entry[1] for entry in node.events.log})


# Admission


@pytest.mark.parametrize(
    ("calling", "called", "words"),
    [
        ("UNKNOWN", "NODE", "Calling AE Title Not Recognized"),
        ("CT1", "OTHER", "Called AE Title Not Recognized"),
    ],
)
def test_unknown_titles_are_rejected(node: Node, calling: str, called: str, words: str) -> None:
    """A-ASSOCIATE-RJ with the reason of the standard, read by dcmtk; no row is opened."""
    done = subprocess.run(
        ["echoscu", "-v", "-aec", called, "-aet", calling, "127.0.0.1", str(node.address.port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert 0 != done.returncode
    assert words in done.stdout + done.stderr
    assert [] == node.events.log


def test_a_known_title_from_elsewhere_is_rejected(tmp_path: Path) -> None:
    """The title alone opens nothing: another peer's address does not carry it."""
    others = (
        Peer(name="ct", ae_title="CT1", hosts=("10.0.0.0/8",)),
        Peer(name="mr", ae_title="MR1", hosts=("127.0.0.1/32",)),
    )
    with running_node(tmp_path, peers_known=others) as node:
        ae = AE(ae_title="CT1")
        ae.add_requested_context("1.2.840.10008.1.1")
        assoc = ae.associate("127.0.0.1", node.address.port, ae_title="NODE")
        assert assoc.is_rejected
        assert (1, 1, 3) == (
            assoc.acceptor.primitive.result,
            assoc.acceptor.primitive.result_source,
            assoc.acceptor.primitive.diagnostic,
        )
        assert 0 == (echo(node.address, called_ae="NODE", calling_ae="MR1", timeout_s=20)).status


def test_an_address_of_no_peer_is_closed_at_once(tmp_path: Path) -> None:
    """Before a thread is made, before a byte is read."""
    with running_node(tmp_path, peers_known=(Peer(name="far", ae_title="CT1", hosts=("10.0.0.0/8",)),)) as node:
        with socket.create_connection(("127.0.0.1", node.address.port), timeout=20) as connection:
            assert b"" == connection.recv(1)
        assert [] == node.events.log


def test_what_a_peer_may_not_is_refused(tmp_path: Path) -> None:
    """Store: 0x0124, nothing filed. Echo: 0x0122. The association lives on."""
    barred = Peer(name="ct", ae_title="CT1", hosts=("127.0.0.0/8",), may=("commit",))
    with running_node(tmp_path, peers_known=(barred,)) as node, association(node.address) as assoc:
        assert 0x0124 == store_raw(assoc, SMALL)
        assert 0x0122 == assoc.send_c_echo().Status
        assert [] == node.files


def test_too_many_associations_are_put_off(tmp_path: Path) -> None:
    """Transient, local limit exceeded: senders come back; silent connections take nobody's place."""
    with running_node(tmp_path, max_associations=1) as node:
        with socket.create_connection(("127.0.0.1", node.address.port)), association(node.address):
            ae = AE(ae_title="CT1")
            ae.add_requested_context("1.2.840.10008.1.1")
            refused = ae.associate("127.0.0.1", node.address.port, ae_title="NODE")
            answer = refused.acceptor.primitive
            assert (2, 3, 2) == (answer.result, answer.result_source, answer.diagnostic)
        assert node.events.wait_for("closed", "aborted")
        assert echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20).is_success


# Refusals


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom warns while this sender encodes it
def test_a_hostile_uid_never_becomes_a_path(node: Node) -> None:
    """It is answered 0x0117 or the association ends; the disk has no trace of it."""
    with association(node.address) as assoc:
        assert 0x0117 == store_raw(assoc, SMALL, sop_instance_uid="../../../x")
        assert 0x0117 == store_raw(assoc, SMALL, sop_instance_uid="")
        assert [] == node.files
        assert 0x0000 == store_raw(assoc, SMALL)


@pytest.mark.parametrize(
    ("data_set", "expected"),
    [
        (encode_data_set(small_data_set("1.2.3.5")), 0xA900),  # another instance than announced
        (encode_data_set(small_data_set(sop_class_uid="1.2.840.10008.5.1.4.1.1.2")), 0xA900),  # another class
        (SMALL[:20], 0xC000),
        (encode_data_set(small_data_set(), IMPLICIT), 0xC000),
        (b"\x00" * 2, 0xC000),
    ],
)
def test_what_is_not_what_it_says_is_refused(node: Node, data_set: bytes, expected: int) -> None:
    """The status says what is wrong, nothing is filed, and the next object is taken."""
    with association(node.address) as assoc:
        assert expected == store_raw(assoc, data_set)
        assert [] == node.files
        assert 0x0000 == store_raw(assoc, SMALL)
    assert [SMALL] == stored_data_sets(node)


def test_another_class_than_negotiated_is_refused(node: Node) -> None:
    """The presentation context binds the SOP class."""
    with association(node.address) as assoc:
        assert 0xA900 == store_raw(assoc, SMALL, sop_class_uid="1.2.840.10008.5.1.4.1.1.2")
    assert [] == node.files


def test_a_full_disk_costs_no_association(tmp_path: Path) -> None:
    """0xA700 after the data were drained; when there is space again the same association stores."""
    with running_node(tmp_path) as node, association(node.address) as assoc:
        node.store._reserve_bytes = 1 << 60
        assert 0xA700 == store_raw(assoc, LARGE)
        assert [] == node.files
        node.store._reserve_bytes = 0
        assert 0x0000 == store_raw(assoc, LARGE)
        assert [LARGE] == stored_data_sets(node)


def test_below_the_reserve_associations_are_put_off(tmp_path: Path) -> None:
    """Temporary congestion: senders come back when there is space, instead of hearing 0xA700 for each image."""
    with running_node(tmp_path, reserve_bytes=1 << 60) as node:
        with pytest.raises(RejectedAssociationError) as caught:
            echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
        assert caught.value.is_transient
        node.store._reserve_bytes = 0
        assert echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20).is_success


def test_a_disk_that_fills_on_the_way_costs_no_association(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails in the middle of an object is answered 0xA700, and leaves no part."""
    written = PartFile.write
    calls = iter(range(1000))

    def fail_at_the_fifth(part: PartFile, views: object) -> int:
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        return written(part, views)  # type: ignore[arg-type]

    monkeypatch.setattr(PartFile, "write", fail_at_the_fifth)
    with association(node.address) as assoc:
        assert 0xA700 == store_raw(assoc, LARGE)
        assert [] == node.files
        assert 0x0000 == store_raw(assoc, SMALL)


def test_an_object_that_lost_a_fragment_is_never_filed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """When space comes back while an object arrives, its rest is not taken for an object of its own."""
    begun = node.store.begin
    answers = iter([StorageError("no space")])

    def begin(meta: InstanceMeta) -> Incoming:
        for error in answers:
            raise error
        return begun(meta)

    monkeypatch.setattr(node.store, "begin", begin)
    with association(node.address) as assoc:
        assert 0xA700 == store_raw(assoc, LARGE)
        assert [] == node.files
        assert 0x0000 == store_raw(assoc, LARGE)


def test_success_waits_for_the_events(node: Node) -> None:
    """When nobody takes note of a durable instance, its sender does not hear success; the listener lives on."""
    with association(node.address) as assoc:
        node.events.failure = RuntimeError("a defect")
        assert 0x0110 == store_raw(assoc, SMALL)
        node.events.failure = StorageError("the database is full")
        assert 0xA700 == store_raw(assoc, SMALL)
        node.events.failure = None
        assert 0x0000 == store_raw(assoc, SMALL)


def test_an_association_that_cannot_be_recorded_is_put_off(node: Node) -> None:
    """Temporary congestion: without its row completeness could not be judged."""
    node.events.failure = RuntimeError("the database is locked")
    ae = AE(ae_title="CT1")
    ae.add_requested_context("1.2.840.10008.1.1")
    answer = ae.associate("127.0.0.1", node.address.port, ae_title="NODE").acceptor.primitive
    assert (2, 3, 1) == (answer.result, answer.result_source, answer.diagnostic)


def test_the_policy_is_asked_with_the_digest(tmp_path: Path) -> None:
    """What it rejects is answered 0x0111 and not filed."""
    asked = []

    def keep_first(meta: object, digest: str) -> str | None:
        asked.append(digest)
        return None if len(asked) == 1 else "another version is kept"

    with running_node(tmp_path, policy=keep_first) as node, association(node.address) as assoc:
        assert 0x0000 == store_raw(assoc, SMALL)
        assert 0x0111 == store_raw(assoc, SMALL + b"\xfc\xff\xfc\xffOB\x00\x00\x00\x00\x00\x00")
        assert [SMALL] == stored_data_sets(node)
    assert node.filed[0].digest == asked[0]


@pytest.mark.parametrize(
    ("on_conflict", "answer"), [("reject", 0x0111), ("keep_first", 0), ("replace_if_same_source", 0)]
)
def test_reject_answers_that_the_instance_is_here(tmp_path: Path, on_conflict: OnConflict, answer: int) -> None:
    """Only `reject` refuses other content, and the same content again is a success under every policy."""
    store = InstanceStore(tmp_path, clock=SystemClock(), reserve_bytes=0)
    policy = RejectOtherContent(store) if on_conflict == "reject" else None
    with running_node(tmp_path, policy=policy) as node, association(node.address) as assoc:
        assert 0x0000 == store_raw(assoc, SMALL)
        assert answer == store_raw(assoc, SMALL + b"\xfc\xff\xfc\xffOB\x00\x00\x00\x00\x00\x00")
        assert 0x0000 == store_raw(assoc, SMALL)
        assert (1 if answer else 2) == len(stored_data_sets(node))


# Ends


@pytest.mark.parametrize(("end", "how"), [("abort", "aborted"), ("loss", "lost")])
def test_a_sender_that_ends_within_an_object_leaves_no_file(node: Node, end: str, how: str) -> None:
    """A-ABORT or a dead connection in the middle: no part, no file, the row says how it ended, the next one stores."""
    with association(node.address) as assoc:
        assert store_raw(assoc, LARGE, pdus=20) is None
        assert node.events.wait_for("activity")
        if end == "abort":
            assoc.abort()
        else:
            assoc.dul.socket.socket.shutdown(socket.SHUT_RDWR)
        assert node.events.wait_for("closed", how)
    assert [] == node.files
    with association(node.address) as again:
        assert 0x0000 == store_raw(again, SMALL)


def test_an_idle_association_is_aborted_by_the_monotonic_clock(tmp_path: Path) -> None:
    """Silence beyond the limit ends it; a jump of the wall clock does not (the clock here moves both by hand)."""
    clock = ManualClock()
    with running_node(tmp_path, clock=clock, idle_timeout_s=60) as node, association(node.address) as assoc:
        clock.advance(59)
        assert 0x0000 == store_raw(assoc, SMALL)
        clock.advance(59)
        assert 0x0000 == assoc.send_c_echo().Status
        clock.advance(61)
        assert node.events.wait_for("closed", "aborted")


def test_stop_lets_the_open_association_finish(tmp_path: Path) -> None:
    """Draining: no new connection, but the object on its way is stored and answered."""
    with running_node(tmp_path) as node, association(node.address) as assoc:
        stopping = threading.Thread(target=node.listener.stop, args=(20,))
        stopping.start()
        assert 0x0000 == store_raw(assoc, LARGE)
        assoc.release()
        stopping.join(timeout=20)
        assert not stopping.is_alive()
        assert node.events.wait_for("closed", "released")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", node.address.port))
        node.listener.start()  # so that the fixture has something to stop


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.0\r\n\r\n", b"\x09\x00\x00\x00\x00\x04abcd", b"\x04\x00\x00\x00\x00\x00", b"\x01\x00"]
)
def test_junk_hurts_nobody(node: Node, junk: bytes) -> None:
    """What is no association request is dropped, and an honest sender is served."""
    with socket.create_connection(("127.0.0.1", node.address.port)) as connection:
        connection.sendall(junk)
    assert echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20).is_success


# Order

SERVE = """
import sys
from pathlib import Path
from tests.integration.receiving import running_node
with running_node(Path(sys.argv[1])) as node:
    print(node.address.port, flush=True)
    sys.stdin.read()
"""


def test_success_is_sent_after_the_instance_is_durable(tmp_path: Path) -> None:
    """Seen by strace: create exclusively, write, fdatasync, rename, fsync of the folder, and only then the response."""
    peers.require_peer("strace")
    trace = tmp_path / "trace"
    calls = "trace=openat,write,writev,fdatasync,rename,fsync,sendto"
    server = subprocess.Popen(
        [
            "strace",
            "-f",
            "-y",
            "-s",
            "8",
            "-o",
            str(trace),
            "-e",
            calls,
            sys.executable,
            "-c",
            SERVE,
            str(tmp_path / "s"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdin is not None
        assert server.stdout is not None
        first = server.stdout.readline()
        if not first:
            pytest.skip(f"strace may not trace here: {server.communicate()[1].strip()[-200:]}")
        path = dicom_file(tmp_path / "x.dcm", SMALL)
        peers.storescu([path], int(first), called="NODE", calling="CT1")
        server.communicate(timeout=30)
    assert 0 == server.returncode
    wanted: list[tuple[str, Callable[[str], object]]] = [
        ("create", re.compile(r'openat\(.*\.part", O_RDWR\|O_CREAT\|O_EXCL').search),
        ("write", re.compile(r"write(v)?\(\d+<[^>]*\.part>").search),
        ("fdatasync", re.compile(r"fdatasync\(\d+<[^>]*\.part>").search),
        ("rename", re.compile(r'rename\("[^"]*\.part", "[^"]*\.arrived"\)').search),
        ("fsync folder", re.compile(r"fsync\(\d+<[^>]*/incoming>").search),
        ("answer", re.compile(r'sendto\(\d+<[^>]*>, "\\4').search),  # a P-DATA-TF PDU begins with 04H
    ]
    lines = trace.read_text().splitlines()
    order = sorted((number, name) for name, found in wanted for number, line in enumerate(lines) if found(line))
    names = list(dict.fromkeys(name for _number, name in order))
    assert [name for name, _found in wanted] == names
