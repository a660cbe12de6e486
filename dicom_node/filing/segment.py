"""One segment of the journal: its format, written and read back.

    segment  = one block of zeros, then groups; a group begins on a block and is made durable by one fdatasync
    record   = head (64 bytes) + label + content, filled to a multiple of 512 bytes; CRC-32 over label and content

Each life of a segment has a number of its own, which stands in every head: a record of an earlier life, or one that a
power cut tore, ends the reading. A group never shares a block with an earlier one, so that tearing it harms no other.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dicom_node.filing.durable import Bytes

BLOCK: Final = 4096
ALIGNMENT: Final = 512
HEAD_BYTES: Final = 64
NOTE_BYTES: Final = 16
SUFFIX: Final = ".journal"

_MAGIC: Final = b"DNREC1\r\n"
_HEAD: Final = struct.Struct("<8sQIIQI")
"""Magic, life of the segment, number in it, bytes of the label, bytes of the content, CRC-32 of both."""
_HEAD_CHECK: Final = struct.Struct("<I")
_NOTE_AT: Final = 48
"""Where in the head the boot in which the record was released is noted: after a power cut that note means nothing."""
_IOV_MAX: Final = 1024
_ALLOCATED_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Where a durable record lies."""

    segment: Path
    head_offset: int
    label: bytes
    content_offset: int
    """Of the content in the segment, in bytes."""
    content_bytes: int


def encoded_head(*, life: int, number: int, label: bytes, content_bytes: int, checksum: int) -> bytes:
    """Return the head of a record; `checksum` is the CRC-32 of label and content."""
    head = _HEAD.pack(_MAGIC, life, number, len(label), content_bytes, checksum)
    return (head + _HEAD_CHECK.pack(zlib.crc32(head))).ljust(HEAD_BYTES, b"\0")


def record_bytes(label: bytes, content_bytes: int) -> int:
    """Return how many bytes of a segment a record takes."""
    return aligned(HEAD_BYTES + len(label) + content_bytes, ALIGNMENT)


def aligned(position: int, to: int) -> int:
    """Return the first multiple of `to` that is not below `position`."""
    return -(-position // to) * to


def allocated(path: Path, size: int) -> int:
    """Make a segment, written in full so that later writes change no metadata of the file system; return it open.

    Raises
    ------
    OSError
        When the disk refuses; nothing is left behind.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        for first in range(0, size, _ALLOCATED_AT_ONCE):
            write_all(descriptor, [bytes(min(_ALLOCATED_AT_ONCE, size - first))], first)
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def write_all(descriptor: int, buffers: Sequence[Bytes], offset: int) -> None:
    """Write all of `buffers` in order from `offset` on; short writes are continued."""
    pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    while pending:
        written = os.pwritev(descriptor, pending[:_IOV_MAX], offset)
        offset += written
        while pending and written >= pending[0].nbytes:
            written -= pending.pop(0).nbytes
        if written:
            pending[0] = pending[0][written:]


def note_release(descriptor: int, record: Record, note: bytes) -> None:
    """Write into the head of a record that it was released; not synchronised."""
    os.pwrite(descriptor, note, record.head_offset + _NOTE_AT)


def end_life(descriptor: int) -> None:
    """Make every record of a segment unreadable, durably."""
    os.pwrite(descriptor, bytes(HEAD_BYTES), BLOCK)
    os.fdatasync(descriptor)


def read_records(path: Path) -> Iterator[tuple[Record, bytes]]:
    """Give the intact records of a segment's present life, each with the note of its release."""
    with path.open("rb", buffering=0) as file:
        position, life, number = BLOCK, None, 0
        while True:
            found = _record_at(file.fileno(), path, position, life, number)
            if found is None and position % BLOCK:
                position = aligned(position, BLOCK)
                found = _record_at(file.fileno(), path, position, life, number)
            if found is None:
                return
            record, life, note = found
            yield record, note
            number += 1
            position = aligned(record.content_offset + record.content_bytes, ALIGNMENT)


def _record_at(
    descriptor: int, path: Path, position: int, life: int | None, number: int
) -> tuple[Record, int, bytes] | None:
    head = os.pread(descriptor, HEAD_BYTES, position)
    if len(head) < HEAD_BYTES or _HEAD_CHECK.unpack_from(head, _HEAD.size)[0] != zlib.crc32(head[: _HEAD.size]):
        return None
    magic, of_life, of_number, label_bytes, content_bytes, checksum = _HEAD.unpack_from(head)
    if magic != _MAGIC or of_number != number or (life is not None and of_life != life):
        return None
    body = os.pread(descriptor, label_bytes + content_bytes, position + HEAD_BYTES)
    if len(body) < label_bytes + content_bytes or zlib.crc32(body) != checksum:
        return None
    record = Record(
        segment=path,
        head_offset=position,
        label=body[:label_bytes],
        content_offset=position + HEAD_BYTES + label_bytes,
        content_bytes=content_bytes,
    )
    return record, of_life, head[_NOTE_AT : _NOTE_AT + NOTE_BYTES]
