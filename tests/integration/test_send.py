"""Claims on one association of ours: against peers that take little, that misbehave, that are slow, and over TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from dicom_node.config.schema import Address
from dicom_node.dimse import SendResult, Verdict, echo, pdu, send_files
from dicom_node.dimse.command import Command, decoded, response
from dicom_node.errors import UnreachableError
from tests import peers
from tests.integration.receiving import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    MR,
    dicom_file,
    encode_data_set,
    running_node,
    small_data_set,
)
from tests.peers.certificates import authority

MPEG4 = "1.2.840.10008.1.2.4.102"
RLE = str(RLELossless)
LARGE_BYTES = 200_000_000


def send(paths: list[Path], port: int, *, timeout_s: float = 20, tls: ssl.SSLContext | None = None) -> list[SendResult]:
    """Send files to a peer on loopback."""
    address = Address(host="127.0.0.1", port=port)
    return list(send_files(paths, address, called_ae="PACS", calling_ae="NODE", timeout_s=timeout_s, tls=tls))


def mr_file(folder: Path, syntax: str = EXPLICIT, *, uid: str = "1.2.3.4") -> tuple[Path, bytes]:
    """Write an MR image in this syntax; return it and its pixels, uncompressed, little endian."""
    ds = small_data_set(uid, n_pixels=2000)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
    pixels = np.arange(2000, dtype="<u2").tobytes()
    ds.PixelData = np.arange(2000, dtype=">u2" if syntax == BIG else "<u2").tobytes()
    if syntax == RLE:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        del ds.file_meta
    elif syntax not in (EXPLICIT, IMPLICIT, BIG):
        ds.PixelData = encapsulate([b"a film"])
        ds["PixelData"].is_undefined_length = True
    encoding = syntax if syntax in (IMPLICIT, BIG) else EXPLICIT
    path = dicom_file(folder / uid, encode_data_set(ds, encoding), syntax=syntax, sop_instance_uid=uid)
    return path, pixels


@dataclass
class Got:
    """One object as a peer got it."""

    sop_instance_uid: str
    syntax: str
    encoded: bytes
    dataset: Dataset


@contextmanager
def pacs(*syntaxes: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Got]]]:
    """Run a PACS of pynetdicom that takes MR in these syntaxes; give its port and what it got."""
    got: list[Got] = []

    def store(event: evt.Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        uid, syntax = str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax)
        got.append(Got(uid, syntax, event.request.DataSet.getvalue(), ds))
        return 0

    ae = AE(ae_title="PACS")
    for syntax in syntaxes:
        ae.add_supported_context(MR, syntax)
    handlers = [(evt.EVT_C_STORE, store)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("own", "taken"),
    [(RLE, EXPLICIT), (RLE, IMPLICIT), (EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT), (BIG, EXPLICIT), (BIG, IMPLICIT)],
)
def test_what_the_peer_refuses_is_transcoded(tmp_path: Path, own: str, taken: str) -> None:
    """The object arrives in the syntax that the peer takes, under the same UID, with the same pixels."""
    path, pixels = mr_file(tmp_path, own)
    with pacs(taken) as (port, got):
        (result,) = send([path], port)
    assert (Verdict.STORED, "1.2.3.4") == (result.verdict, result.sop_instance_uid)
    (one,) = got
    assert ("1.2.3.4", taken) == (one.sop_instance_uid, one.syntax)
    assert ("1.2.3.4", pixels) == (one.dataset.SOPInstanceUID, one.dataset.PixelData)


@pytest.mark.parametrize("own", [RLE, EXPLICIT, IMPLICIT])
def test_what_the_peer_takes_goes_as_it_lies(tmp_path: Path, own: str) -> None:
    """A peer that takes everything gets the filed bytes, also where it would like another syntax better."""
    path, _pixels = mr_file(tmp_path, own)
    with pacs(IMPLICIT, EXPLICIT, RLE) as (port, got):
        send([path], port)
    assert path.read_bytes().endswith(got[0].encoded)
    assert (own, True) == (got[0].syntax, len(got[0].encoded) > 300)


def test_dcmtk_takes_what_was_transcoded(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Storescp as shipped takes uncompressed objects alone."""
    peers.require_peer("dcmtk")
    path, pixels = mr_file(tmp_path, RLE)
    (tmp_path / "out").mkdir()
    port = free_port()
    with subprocess.Popen(["storescp", "-od", str(tmp_path / "out"), str(port)]) as program:
        try:
            assert peers.eventually(lambda: _answers(port))
            (result,) = send([path], port)
        finally:
            program.terminate()
    assert Verdict.STORED == result.verdict
    (stored,) = (tmp_path / "out").iterdir()
    ds = dcmread(stored)
    assert ("1.2.3.4", pixels, False) == (ds.SOPInstanceUID, ds.PixelData, ds.file_meta.TransferSyntaxUID.is_compressed)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path) -> None:
    """A film that the peer does not take, and nothing decodes: its neighbours are stored all the same."""
    film, _ = mr_file(tmp_path, MPEG4, uid="1.2.1")
    plain, _ = mr_file(tmp_path, EXPLICIT, uid="1.2.2")
    with pacs(EXPLICIT) as (port, got):
        refused, stored = send([film, plain], port)
    assert (Verdict.REFUSED_FOR_GOOD, None) == (refused.verdict, refused.status)
    assert UID(MPEG4).name in refused.reason
    assert "cannot be decoded here" in refused.reason
    assert (Verdict.STORED, ["1.2.2"]) == (stored.verdict, [one.sop_instance_uid for one in got])


def test_meta_information_that_contradicts_is_overruled(tmp_path: Path) -> None:
    """A strict receiver, ours, compares the request with the data set, and takes the object."""
    data_set = encode_data_set(small_data_set("1.2.99"))
    path = dicom_file(tmp_path / "x", data_set, sop_instance_uid="1.2.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.2")
    with running_node(tmp_path / "store") as node:
        (result,) = send_files([path], node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert ("1.2.99", 0) == (result.sop_instance_uid, result.status)


# A peer of raw bytes, which does what no library would.

Script = Callable[["Wire"], None]


@dataclass
class Wire:
    """The peer's side of a connection after the association was accepted."""

    stream: socket.socket
    parser: pdu.Parser = field(default_factory=lambda: pdu.Parser(1 << 18))
    controls: list[pdu.Control] = field(default_factory=list)
    data_bytes: int = 0
    message_ids: list[int | None] = field(default_factory=list)
    _command: bytearray = field(default_factory=bytearray)

    def message(self) -> Command | None:
        """Read until a message is complete; None when a control PDU or the end came instead."""
        command = None
        while received := self.stream.recv(1 << 18):
            for event in self.parser.feed(memoryview(received)):
                if isinstance(event, pdu.Control):
                    self.controls.append(event)
                    return None
                if event.is_command:
                    self._command += event.payload
                    if event.is_last:
                        command, self._command = decoded(self._command), bytearray()
                else:
                    self.data_bytes += len(event.payload)
                if event.is_last and command is not None and event.is_command != command.has_data_set:
                    return command
        return None

    def command(self, command_set: bytes) -> None:
        """Send a command set in the context of the request."""
        self.stream.sendall(pdu.command_pdus(1, command_set, 0))

    def answer(self, status: int = 0) -> None:
        """Answer the next request."""
        request = self.message()
        assert request is not None
        self.message_ids.append(request.message_id)
        self.command(response(request, status))


@contextmanager
def scripted(script: Script, *, max_pdu: int = 16384) -> Iterator[tuple[int, list[Wire]]]:
    """Run a peer that accepts one association, its first context alone, and follows the script."""
    wires: list[Wire] = []

    def serve(server: socket.socket) -> None:
        stream, _ = server.accept()
        with stream:
            stream.settimeout(20)
            wire = Wire(stream)
            wires.append(wire)
            _accept(wire, max_pdu)
            with suppress(OSError):  # we hung up: what was to be shown has been
                script(wire)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield server.getsockname()[1], wires
        thread.join(20)


def _accept(wire: Wire, max_pdu: int) -> None:
    assert wire.message() is None
    asked = A_ASSOCIATE_RQ()
    asked.decode(wire.controls.pop().content)
    primitive = asked.to_primitive()
    contexts = primitive.presentation_context_definition_list
    for context in contexts:
        context.result, context.transfer_syntax = 0 if context.context_id == 1 else 4, context.transfer_syntax[:1]
    primitive.presentation_context_definition_results_list = contexts
    primitive.result, primitive.result_source = 0, 1
    primitive.user_information[0].maximum_length_received = max_pdu
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(primitive)
    wire.stream.sendall(answer.encode())


def two_files(folder: Path) -> list[Path]:
    """Write two small images."""
    return [mr_file(folder, uid="1.2.1")[0], mr_file(folder, uid="1.2.2")[0]]


def drip(wire: Wire) -> None:
    """Answer a byte at a time, and never come to an end."""
    request = wire.message()
    assert request is not None
    for byte in pdu.command_pdus(1, response(request, 0), 0):
        wire.stream.sendall(bytes([byte]))
        time.sleep(0.1)


def other_request(wire: Wire) -> None:
    """Answer a request that was never made."""
    request = wire.message()
    assert request is not None
    other = decoded(response(request, 0))
    assert other.message_id_responded_to == 1
    wire.command(response(Command(command_field=1, message_id=77, elements=request.elements), 0))
    wire.message()


def with_data_set(wire: Wire) -> None:
    """Answer with a data set."""
    wire.message()
    wire.stream.sendall(pdu.data_head(1, 4, is_command=False, is_last=True) + b"abcd")
    wire.message()


def junk(wire: Wire) -> None:
    """Answer with a PDU of no type."""
    wire.message()
    wire.stream.sendall(bytes([0x55] * 6))
    wire.message()


def without_status(wire: Wire) -> None:
    """Answer without Status."""
    request = wire.message()
    assert request is not None
    full = response(request, 0)
    at = full.index(b"\x00\x00\x00\x09")
    wire.command(full[:at] + full[at + 10 :])
    wire.message()


def endless_command(wire: Wire) -> None:
    """Answer with a command set that does not end."""
    wire.message()
    for _ in range(20):
        wire.stream.sendall(pdu.data_head(1, 1000, is_command=True, is_last=False) + bytes(1000))
    wire.message()


USER_ABORT = (0, 0)
"""Source and reason of A-ABORT: of us as the user, and as the provider who says which rule was broken (Table 9-26)."""


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (drip, None),
        (other_request, (2, pdu.AbortReason.UNEXPECTED_PDU)),
        (with_data_set, (2, pdu.AbortReason.UNEXPECTED_PDU)),
        (junk, (2, pdu.AbortReason.UNRECOGNISED_PDU)),
        (without_status, USER_ABORT),
        (endless_command, (2, pdu.AbortReason.INVALID_PARAMETER)),
        (lambda wire: wire.message() and None, None),
    ],
    ids=["drip", "other_request", "with_data_set", "junk", "without_status", "endless_command", "hangs_up"],
)
def test_a_peer_that_breaks_the_rules_is_left(tmp_path: Path, script: Script, expected: tuple[int, int] | None) -> None:
    """No result is made up: both objects stay unanswered, in the time that was given, and the peer hears why."""
    begin = time.monotonic()
    with scripted(script) as (port, wires):
        first, second = send(two_files(tmp_path), port, timeout_s=1)
        took_s = time.monotonic() - begin
    assert [Verdict.UNANSWERED] * 2 == [first.verdict, second.verdict]
    assert "no response; the association ended" == first.reason
    assert "the association ended before this object was sent" == second.reason
    assert took_s < 4
    if expected is not None:
        assert [(pdu.PduType.ABORT, expected)] == [(one.kind, tuple(one.content[8:])) for one in wires[0].controls]


def test_a_peer_that_stops_reading_is_left(tmp_path: Path) -> None:
    """It takes nothing for the time limit: the object is unanswered, and nobody waits for ever."""
    path = tmp_path / "large"
    dicom_file(path, encode_data_set(small_data_set(n_pixels=20_000_000)))
    stop = threading.Event()
    begin = time.monotonic()
    with scripted(lambda _wire: stop.wait(20) and None) as (port, _wires):
        (result,) = send([path], port, timeout_s=0.5)
        took_s = time.monotonic() - begin
        stop.set()
    assert Verdict.UNANSWERED == result.verdict
    assert took_s < 4


def test_a_slow_peer_is_waited_for(tmp_path: Path) -> None:
    """It takes longer than the time limit in sum, but never pauses for so long."""
    path = tmp_path / "large"
    dicom_file(path, encode_data_set(small_data_set(n_pixels=5_000_000)))

    def slowly(wire: Wire) -> None:
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        request = None
        while request is None:
            time.sleep(0.03)
            for event in wire.parser.feed(memoryview(wire.stream.recv(1 << 20))):
                assert isinstance(event, pdu.Fragment)
                wire.data_bytes += len(event.payload)
                if event.is_command:
                    first = decoded(event.payload)
                elif event.is_last:
                    request = first
        wire.command(response(request, 0))
        wire.message()
        wire.stream.sendall(pdu.RELEASE_RP)

    with scripted(slowly, max_pdu=0) as (port, wires):
        begin = time.monotonic()
        (result,) = send([path], port, timeout_s=0.7)
        took_s = time.monotonic() - begin
    assert (Verdict.STORED, True) == (result.verdict, took_s > 0.7)
    assert wires[0].data_bytes > 10_000_000


@pytest.mark.parametrize("collides", [False, True])
def test_an_association_is_released(tmp_path: Path, collides: bool) -> None:
    """After the last answer we ask for release; when the peer asks at the same moment, it gets its answer."""
    seen: list[list[pdu.PduType]] = []

    def script(wire: Wire) -> None:
        for _ in range(2):
            wire.answer()
        wire.message()
        if collides:
            wire.stream.sendall(pdu.RELEASE_RQ)
            wire.message()
        wire.stream.sendall(pdu.RELEASE_RP)
        wire.message()
        seen.append([control.kind for control in wire.controls])

    with scripted(script) as (port, wires):
        results = send(two_files(tmp_path), port)
    assert [0, 0] == [result.status for result in results]
    assert [1, 2] == wires[0].message_ids
    expected = [pdu.PduType.RELEASE_RQ, *([pdu.PduType.RELEASE_RP] if collides else [])]
    assert [expected] == seen


def test_a_release_that_is_not_answered_keeps_nobody(tmp_path: Path) -> None:
    """The results stand; the peer hears an abort after the time limit."""

    def script(wire: Wire) -> None:
        for _ in range(2):
            wire.answer()
        wire.message()
        wire.message()

    with scripted(script) as (port, wires):
        results = send(two_files(tmp_path), port, timeout_s=0.5)
    assert [0, 0] == [result.status for result in results]
    assert [pdu.PduType.RELEASE_RQ, pdu.PduType.ABORT] == [control.kind for control in wires[0].controls]


def test_a_peer_that_releases_gets_its_answer(tmp_path: Path) -> None:
    """It wants to end after the first object: the second is unanswered, and the release is confirmed."""

    def script(wire: Wire) -> None:
        wire.answer()
        wire.message()
        wire.stream.sendall(pdu.RELEASE_RQ)
        wire.message()

    with scripted(script) as (port, wires):
        first, second = send(two_files(tmp_path), port)
    assert [Verdict.STORED, Verdict.UNANSWERED] == [first.verdict, second.verdict]
    assert [pdu.PduType.RELEASE_RP] == [control.kind for control in wires[0].controls]


def test_a_file_that_shrinks_is_no_half_object(tmp_path: Path) -> None:
    """It is cut while it is sent: the peer hears an abort, and the file counts as unreadable."""
    path = tmp_path / "large"
    dicom_file(path, encode_data_set(small_data_set(n_pixels=20_000_000)))

    def script(wire: Wire) -> None:
        wire.stream.recv(1000)
        with path.open("r+b") as file:
            file.truncate(2_000_000)
        while wire.stream.recv(1 << 20):
            pass

    with scripted(script) as (port, _wires):
        (result,) = send([path], port)
    assert (Verdict.REFUSED_FOR_GOOD, "the file could not be read while it was sent") == (
        result.verdict,
        result.reason,
    )


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Of an object of 200 MB about a megabyte lies in memory, with what the peer's side of the test takes."""
    path = tmp_path / "large"
    head = small_data_set()
    del head.PixelData
    data_set = encode_data_set(head) + b"\xe0\x7f\x10\x00OW\x00\x00" + LARGE_BYTES.to_bytes(4, "little")
    dicom_file(path, data_set)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + LARGE_BYTES)

    def script(wire: Wire) -> None:
        wire.answer()
        wire.message()
        wire.stream.sendall(pdu.RELEASE_RP)

    with scripted(script, max_pdu=0) as (port, wires):
        tracemalloc.start()
        (result,) = send([path], port)
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (Verdict.STORED, True) == (result.verdict, wires[0].data_bytes > LARGE_BYTES)
    assert peak < 2_000_000


def test_a_peer_that_does_not_verify_says_so() -> None:
    """An association without a context for C-ECHO is no answer, and no failure of the network."""
    with pacs(EXPLICIT) as (port, _got):
        result = echo(Address(host="127.0.0.1", port=port), called_ae="PACS", calling_ae="NODE", timeout_s=20)
    assert (False, None, "the peer does not offer verification (C-ECHO)") == (
        result.is_success,
        result.status,
        result.reason,
    )


def test_an_echo_is_answered(tmp_path: Path) -> None:
    """By our own receiver."""
    with running_node(tmp_path) as node:
        result = echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert (True, 0) == (result.is_success, result.status)


def contexts_of(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's TLS context that trust each other."""
    files = authority(folder).issue("node")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return server, client


def test_tls_carries_the_same_bytes(tmp_path: Path) -> None:
    """A large object over mutual TLS, and an answer."""
    server, client = contexts_of(tmp_path)
    data_set = encode_data_set(small_data_set(n_pixels=1_000_000))
    path = dicom_file(tmp_path / "x", data_set)
    with pacs(EXPLICIT, tls=server) as (port, got):
        (result,) = send([path], port, tls=client)
    assert Verdict.STORED == result.verdict
    assert data_set == got[0].encoded


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_tls_that_fails_says_so(tmp_path: Path, whose: str) -> None:
    """A certificate that the other side does not trust: unreachable, with TLS named."""
    server, client = contexts_of(tmp_path)
    if whose == "ours":
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    else:
        _other, client = contexts_of(tmp_path / "other")
    path, _ = mr_file(tmp_path)
    with pacs(EXPLICIT, tls=server) as (port, _got), pytest.raises(UnreachableError, match="do not agree on TLS"):
        send([path], port, tls=client)


def test_a_peer_without_tls_is_unreachable(tmp_path: Path) -> None:
    """It does not know what it is told, and we do not wait for ever."""
    _server, client = contexts_of(tmp_path)
    path, _ = mr_file(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError, match="does not answer"):
        send([path], silent.getsockname()[1], timeout_s=0.5, tls=client)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "pydicom-test_files/test_files/rtplan.dcm",
        "pydicom-test_files/test_files/rtdose_expb.dcm",
        "pydicom-test_files/charset_files/chrJapMulti.dcm",
        "nibabel/0.dcm",
        "dicom2nifti/hitachi/anatomical/001_implicit/001.dcm",
        "misc/deflate/wave_dfl",
    ],
)
def test_real_files_that_contradict_themselves_are_stored(tmp_path: Path, shared_data: Path, name: str) -> None:
    """Their meta information names another instance than their data set does, which a strict receiver would refuse."""
    path = shared_data / name
    ds = dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    assert ds.file_meta.MediaStorageSOPInstanceUID != ds.SOPInstanceUID
    with running_node(tmp_path) as node:
        (result,) = send_files([path], node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert (ds.SOPInstanceUID, 0) == (result.sop_instance_uid, result.status)
