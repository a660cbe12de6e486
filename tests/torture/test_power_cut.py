"""A power cut, as far as it can be shown without one: the order of system calls, and journals that were torn."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom_node.filing import segment as format_
from dicom_node.filing.journal import Journal
from dicom_node.filing.segment import Record
from tests.torture.receiver import Receiver, assert_nothing_lost, pause
from tests.torture.sender import LARGE, SMALL, SUCCESS, Object, Scanner, sending
from tests.torture.tracing import calls, first_after, traced

WATCHED = "openat,write,writev,pwritev,pwritev2,pwrite64,fdatasync,fsync,syncfs,rename,link,linkat,unlink,sendto"
ANSWER = r'^\d+<[^>]*>, "\\4'
"""A P-DATA-TF PDU begins with 04H."""

NO_NOTE = bytes(format_.NOTE_BYTES)
"""Of a record that was not released."""

SMALL_WAY = (
    ("pwritev2?", r"\.journal>"),
    ("fdatasync", r"\.journal>"),
    ("sendto", ANSWER),
)
LARGE_WAY = (
    ("openat", r'\.part", O_RDWR\|O_CREAT\|O_EXCL'),
    ("writev", r"\.part>"),
    ("fdatasync", r"\.part>"),
    ("rename", r'\.part", "[^"]*\.arrived"'),
    ("fsync", r"/incoming>"),
    ("sendto", ANSWER),
)
SMALL_SHELVED = (
    ("rename", r'\.part", "[^"]*\.dcm"'),
    ("fdatasync|fsync", r"records\.sqlite-wal>"),
    ("pwrite64", r"\.journal>, .*, 16, "),  # the note that the record is released
    ("syncfs", r"/journal>"),
    ("pwrite64", r"\.journal>, .*, 64, 4096\)"),  # the end of the segment's life
    ("fdatasync", r"\.journal>"),
)
LARGE_SHELVED = (
    ("link", r'\.arrived", "[^"]*\.dcm"'),
    ("fsync", r"/instances/[0-9a-f]{2}/[0-9a-f]{2}>"),
    ("fsync", r"/instances/[0-9a-f]{2}>"),
    ("fsync", r"/instances>"),
    ("fdatasync|fsync", r"records\.sqlite-wal>"),
    ("unlink", r"\.arrived"),
)


@pytest.mark.parametrize(
    ("kind", "way", "shelved"),
    [
        pytest.param(SMALL, SMALL_WAY, SMALL_SHELVED, id="journal"),
        pytest.param(LARGE, LARGE_WAY, LARGE_SHELVED, id="file"),
    ],
)
def test_each_step_is_on_the_disk_before_the_next(
    tmp_path: Path, kind: str, way: tuple[tuple[str, str], ...], shelved: tuple[tuple[str, str], ...]
) -> None:
    """Seen by strace on a running receiver: durable, then answered; shelved, row committed, and only then given up.

    Each call has come to its end, without an error, before the next one of the list begins.
    """
    trace = tmp_path / "trace"
    with Receiver(tmp_path, journal_mb=8) as receiver, Scanner(receiver.port) as scanner:
        with traced(receiver, trace, ["-e", f"trace={WATCHED}"]):
            assert SUCCESS == scanner.store(Object(kind=kind, serial=1))
            given_up = re.compile(r"syncfs\(" if kind == SMALL else r'unlink\("[^"]*\.arrived"')
            receiver.wait_for(lambda: given_up.search(trace.read_text()) is not None, "what is indexed is given up")
            pause(0.2)  # the calls that follow at once
        scanner.release()
        seen = calls(trace)
        for steps in (way, shelved):
            place = -1
            for name, pattern in steps:
                call = first_after(seen, place, name, pattern)
                assert " = -1 " not in call.words
                place = call.ended
        assert 2 == sum(call.name == "sendto" for call in seen), "the association's answer, and one response"
        assert_nothing_lost(receiver, [scanner])


def test_the_power_goes_before_the_shelf_is_on_the_disk(tmp_path: Path) -> None:
    """In the next boot all that the journal holds is shelved again, over empty and torn files, released or not."""
    with Receiver(tmp_path, journal_mb=32) as receiver:
        with sending(receiver.port, pause_s=0.01) as scanners:
            pause(0.7)
        receiver.wait_until_indexed(version for scanner in scanners for version in scanner.acknowledged)
        receiver.kill()
        paths = {uid: path for (uid, _), path in receiver.versions().items()}
        records = [found for path in _segments(receiver) for found in format_.read_records(path)]
        assert any(note != NO_NOTE for _, note in records), "some were released"
        for number, (record, note) in enumerate(records):
            _note(record, note if note == NO_NOTE else b"an earlier boot.")
            shelved = paths[record.label.decode("ascii").split("\n")[1]]
            os.truncate(shelved, shelved.stat().st_size * (number % 3) // 3)
        receiver.start()
        assert_nothing_lost(receiver, scanners)


def _segments(receiver: Receiver) -> list[Path]:
    return sorted((receiver.store_folder / "journal").glob(f"*{format_.SUFFIX}"))


def _note(record: Record, note: bytes) -> None:
    descriptor = os.open(record.segment, os.O_RDWR)
    format_.note_release(descriptor, record, note)
    os.close(descriptor)


@pytest.fixture
def torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Record]]:
    """Return a segment with one released record and a group of three, and all four records in their order."""
    syncing, go_on, synchronise = threading.Event(), threading.Event(), os.fdatasync

    def slow(descriptor: int) -> None:
        syncing.set()
        go_on.wait()
        synchronise(descriptor)

    journal = Journal(tmp_path / "journal", capacity_bytes=1 << 16, boot_id="one")
    journal.start()
    monkeypatch.setattr(os, "fdatasync", slow)
    records: list[Record] = []
    threads = [
        threading.Thread(target=lambda number=number: records.append(journal.append(b"label", [bytes([number]) * 700])))
        for number in range(1, 5)
    ]
    threads[0].start()
    assert syncing.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(journal._queue) < 3:
        pause(0.001)
    go_on.set()
    for thread in threads:
        thread.join()
    records.sort(key=lambda record: record.head_offset)
    journal.release(records[0])
    journal.stop()
    return records[0].segment, records


@pytest.mark.parametrize("step", [pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)])
def test_a_group_torn_anywhere_harms_no_earlier_one(torn: tuple[Path, Sequence[Record]], step: int) -> None:
    """In the next boot the released record is given back, and of the torn group what lies whole before the tear."""
    segment, records = torn
    whole = segment.read_bytes()
    assert [1, 2, 2, 2] == [record.head_offset // format_.BLOCK for record in records], "the last three are one group"
    last = records[-1].content_offset + records[-1].content_bytes
    for cut in range(records[1].head_offset, last + 1, step):
        segment.write_bytes(whole[:cut].ljust(len(whole), b"\0"))
        expected = [
            whole[one.content_offset : one.content_offset + one.content_bytes]
            for one in records
            if one.content_offset + one.content_bytes <= cut
        ]
        given = Journal(segment.parent, capacity_bytes=1 << 16, boot_id="two").unreleased()
        assert expected == [
            segment.read_bytes()[one.content_offset : one.content_offset + one.content_bytes] for one in given
        ]


@pytest.mark.parametrize("sector", range(8))
def test_a_sector_that_is_missing_is_never_read(torn: tuple[Path, Sequence[Record]], sector: int) -> None:
    """Sectors reach the disk in any order: of a group without one of them only records before it are given back."""
    segment, records = torn
    first = records[1].head_offset + sector * format_.ALIGNMENT
    content = bytearray(segment.read_bytes())
    content[first : first + format_.ALIGNMENT] = bytes(format_.ALIGNMENT)
    segment.write_bytes(content)
    expected = [one.head_offset for one in records if one.content_offset + one.content_bytes <= first]
    if first >= records[-1].content_offset + records[-1].content_bytes:
        expected = [one.head_offset for one in records]
    given = Journal(segment.parent, capacity_bytes=1 << 16, boot_id="two").unreleased()
    assert expected == [one.head_offset for one in given]
