"""Claims on requests put together for the wire: the bytes of a file, whole, in order, in PDUs that the peer takes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dicom_node.dimse import pdu
from dicom_node.dimse.command import store_request
from dicom_node.dimse.envelope import Envelope
from dicom_node.dimse.proposal import MAX_PDU

COMMAND = store_request(1, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")


def parsed(wire: bytes, max_pdu: int) -> list[tuple[int, bool, bytes, bool]]:
    """Return the fragments as a receiver that takes no longer PDU sees them: context, command?, bytes, last?"""
    found = []
    for event in pdu.Parser(max_pdu or MAX_PDU).feed(memoryview(wire)):
        assert isinstance(event, pdu.Fragment)
        found.append((event.context_id, event.is_command, bytes(event.payload), event.is_last))
    return found


def sent(content: bytes, offset: int, max_pdu: int, *, messages: int = 1) -> list[bytes]:
    """Return the bytes on the wire of each message, from one envelope."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        envelope = Envelope(max_pdu)
        length = len(content) - offset
        return [
            b"".join(map(bytes, envelope.blocks(COMMAND, file.fileno(), offset, length, context_id=3)))
            for _ in range(messages)
        ]


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(0, 3_000_000),
    offset=st.integers(0, 999),
    max_pdu=st.sampled_from([0, 4096, 16384, 16383, 131072, 1 << 24]) | st.integers(3000, 1 << 18),
)
@example(length=1 << 19, offset=0, max_pdu=131072)
@example(length=4 * 131066, offset=1, max_pdu=131072)
@example(length=2 * 4 * 131066, offset=1, max_pdu=0)
@example(length=5000, offset=0, max_pdu=16)
@example(length=5000, offset=0, max_pdu=8)
def test_a_receiver_gets_command_and_file_whole(length: int, offset: int, max_pdu: int) -> None:
    """Whatever the length and whatever the peer takes; the last piece alone says that it is the last."""
    content = (b"%d " % length + bytes(range(256)) * (length // 256 + 5))[: length + offset]
    for wire in sent(content, offset, max_pdu, messages=2):
        fragments = parsed(wire, max_pdu)
        command = [one for one in fragments if one[1]]
        data = [one for one in fragments if not one[1]]
        assert COMMAND == b"".join(payload for _, _, payload, _ in command)
        assert content[offset:] == b"".join(payload for _, _, payload, _ in data)
        assert {3} == {context for context, *_ in fragments}
        assert [False] * (len(data) - 1) + [True] == [is_last for *_, is_last in data]
        assert [] == [payload for _, _, payload, is_last in data if len(payload) % 2 and not is_last]


def test_a_file_that_shrank_is_told() -> None:
    """Half a file never passes for a whole one."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100))
        file.flush()
        blocks = Envelope(0).blocks(COMMAND, file.fileno(), 0, 200, context_id=1)
        with pytest.raises(OSError, match="shorter"):
            next(blocks)


def test_memory_does_not_follow_the_object(tmp_path: Path) -> None:
    """Of a file of 3 GB no block is longer than a megabyte."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 3 << 30)
    with path.open("rb") as file:
        blocks = Envelope(0).blocks(COMMAND, file.fileno(), 0, 3 << 30, context_id=1)
        longest = max(len(next(blocks)) for _ in range(20))
    assert longest < 1 << 20
