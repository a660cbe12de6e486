"""Claims on peers that break the rules, are slow, or keep silent: no result is made up, and nobody waits for ever."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from dicom_node.dimse import Verdict, pdu
from dicom_node.dimse.command import Command, decoded, response
from tests.integration.receiving import (
    dicom_file,
    encode_data_set,
    small_data_set,
)
from tests.integration.scripted_peer import Script, Wire, scripted
from tests.integration.test_send import mr_file, send, two_files

LARGE_BYTES = 200_000_000


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
    for _ in range(9):  # 8 kB are too many; what would lie unread when we hang up would cost the peer our abort
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


def test_an_answer_in_two_writes_costs_no_wait(tmp_path: Path) -> None:
    """A peer with Nagle on holds the second write back until we confirm the first, which we do at once."""
    count = 60
    paths = [mr_file(tmp_path, uid=f"1.2.{number}")[0] for number in range(count)]

    def script(wire: Wire) -> None:
        for _ in range(count):
            request = wire.message()
            assert request is not None
            answer = pdu.command_pdus(1, response(request, 0), 0)
            wire.stream.sendall(answer[:12])
            wire.stream.sendall(answer[12:])
        wire.message()
        wire.stream.sendall(pdu.RELEASE_RP)

    with scripted(script) as (port, _wires):
        begin = time.monotonic()
        results = send(paths, port)
        took_s = time.monotonic() - begin
    assert {Verdict.STORED} == {result.verdict for result in results}
    assert took_s < count * 0.02


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
