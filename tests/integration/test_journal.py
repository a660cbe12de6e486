"""Claims on the journal: what was appended survives whatever happens, once; what is torn is never read."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.clock import ManualClock
from dicom_node.errors import StorageError
from dicom_node.filing import InstanceStore
from dicom_node.filing import segment as format_
from dicom_node.filing.journal import Journal, JournalFullError
from dicom_node.filing.segment import Record
from tests import peers
from tests.integration.test_filing import DATA_SET, file_in, files_below, meta, shelved

MIB = 1 << 20


@contextmanager
def journal(folder: Path, *, capacity_bytes: int = MIB, boot_id: str = "boot-one") -> Iterator[Journal]:
    """Run a journal."""
    one = Journal(folder, capacity_bytes=capacity_bytes, boot_id=boot_id)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def content_of(record: Record) -> bytes:
    """Return the bytes that a record holds."""
    return record.segment.read_bytes()[record.content_offset : record.content_offset + record.content_bytes]


def left(folder: Path, *, boot_id: str = "boot-one") -> list[tuple[bytes, bytes]]:
    """Return label and content of what a start would find."""
    records = Journal(folder, capacity_bytes=MIB, boot_id=boot_id).unreleased()
    return [(record.label, content_of(record)) for record in records]


@settings(max_examples=30, deadline=None)
@given(contents=st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=9000)), min_size=1, max_size=20))
def test_what_was_appended_is_found_by_the_next_start(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[bytes, bytes]]
) -> None:
    """Labels and contents, byte for byte and in order, whatever their lengths."""
    folder = tmp_path_factory.mktemp("journal")
    with journal(folder) as one:
        records = [one.append(label, [content[:7], content[7:]]) for label, content in contents]
        assert [content for _, content in contents] == [content_of(record) for record in records]
    assert contents == left(folder)


def test_what_was_released_is_not_found_again(tmp_path: Path) -> None:
    """In the same boot; after a power cut all is found, since the shelf may not have reached the disk."""
    with journal(tmp_path) as one:
        records = [one.append(b"", [bytes([number])]) for number in range(5)]
        for record in records[1:4]:
            one.release(record)
    assert [b"\0", b"\4"] == [content for _, content in left(tmp_path)]
    assert 5 == len(left(tmp_path, boot_id="boot-two"))


def test_a_segment_is_used_again_when_all_is_released(tmp_path: Path) -> None:
    """Far more passes through than the journal holds, and nothing of an earlier life comes back."""
    with journal(tmp_path) as one:
        for number in range(400):
            for _try in range(200):
                try:
                    record = one.append(b"", [bytes([number % 251]) * 60_000])
                    break
                except JournalFullError:
                    threading.Event().wait(0.02)
            one.release(record)
        last = one.append(b"last", [b"x"])
        assert b"x" == content_of(last)
    assert [(b"last", b"x")] == left(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= MIB


def test_a_full_journal_says_so(tmp_path: Path) -> None:
    """Nothing waits for room: the instance gets a file of its own."""
    with journal(tmp_path) as one:
        n_taken = 0
        with suppress(JournalFullError):
            for _ in range(40):
                one.append(b"", [bytes(60_000)])
                n_taken += 1
        assert n_taken < 40
        assert n_taken == len(left(tmp_path)) > 0


def test_threads_share_one_write(tmp_path: Path) -> None:
    """Many at once: each gets its own record, with its own bytes."""
    with journal(tmp_path) as one:
        found: dict[int, Record] = {}
        start = threading.Barrier(16)

        def append(number: int) -> None:
            start.wait()
            for step in range(10):
                found[number * 10 + step] = one.append(b"%d" % number, [b"%d" % (number * 10 + step)])

        threads = [threading.Thread(target=append, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {b"%d" % number for number in range(160)} == {content_of(record) for record in found.values()}
    assert 160 == len(left(tmp_path))


@pytest.mark.parametrize("cut", [1, 39, 63, 70, 600, 3000])
def test_a_torn_record_is_not_read(tmp_path: Path, cut: int) -> None:
    """From the byte that did not reach the disk on, that record and what follows in its group are nothing."""
    with journal(tmp_path) as one:
        records = [one.append(b"label", [bytes([number]) * 3000]) for number in range(1, 4)]
    with records[1].segment.open("r+b") as file:
        file.seek(records[1].head_offset + cut)
        byte = file.read(1)
        file.seek(records[1].head_offset + cut)
        file.write(bytes([byte[0] ^ 0xFF]))
    expected = 3 if cut == 63 else 1  # the note of release is not under the checksum
    assert expected == len(left(tmp_path))


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    """The second files every instance on its own."""
    with journal(tmp_path), journal(tmp_path) as second:
        assert 0 == second.largest_content
        with pytest.raises(JournalFullError):
            second.append(b"", [b"x"])


def test_an_allocation_that_was_cut_off_is_cleared_away(tmp_path: Path) -> None:
    """A short segment of a crash, or of another capacity, goes when it holds nothing."""
    (tmp_path / f"1{format_.SUFFIX}").write_bytes(bytes(5000))
    with journal(tmp_path) as one:
        one.append(b"", [b"x"])
        assert not (tmp_path / f"1{format_.SUFFIX}").exists()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[InstanceStore]:
    """Return a store with a journal, receiving."""
    store = InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0, journal_bytes=MIB)
    store.start()
    yield store
    store.stop()


def test_a_small_instance_passes_through_the_journal(store: InstanceStore, tmp_path: Path) -> None:
    """It has no file of its own until it stands on the shelf, as received and with its time of receipt."""
    incoming = store.begin(meta())
    incoming.write([DATA_SET[:100]])
    incoming.write([DATA_SET[100:]])
    arrival = incoming.commit()
    assert not list(tmp_path.rglob("*.dcm"))
    filed = store.shelve(arrival)
    assert filed.path.read_bytes().endswith(DATA_SET)
    assert ManualClock().now().timestamp() == filed.path.stat().st_mtime
    assert filed.path.read_bytes() == store.content(arrival)


def test_what_waits_is_found_after_a_crash(store: InstanceStore, tmp_path: Path) -> None:
    """Journal and files of their own; what was shelved and released is not told again."""
    file_in(store, uid="1.2.1")
    for uid in ("1.2.2", "1.2.3"):
        incoming = store.begin(meta(uid))
        incoming.write([DATA_SET if uid == "1.2.2" else DATA_SET + bytes(300_000)])
        incoming.commit()
    after = InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0, journal_bytes=MIB)
    leftovers = list(after.leftovers())
    assert [("1.2.2", "CT1", None), ("1.2.3", "CT1", None)] == [
        (one.meta.sop_instance_uid, one.meta.calling_ae, one.meta.association) for one in leftovers
    ]
    assert [DATA_SET, DATA_SET + bytes(300_000)] == [
        after.shelve(one).path.read_bytes()[-size:]
        for one, size in zip(leftovers, (len(DATA_SET), len(DATA_SET) + 300_000), strict=True)
    ]


def test_a_start_does_not_look_at_the_shelf(
    store: InstanceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there has its rows: a million versions cost a start nothing."""
    filed = file_in(store, uid="1.2.1")
    filed.path.write_bytes(b"not even a DICOM file")
    looked_at: list[object] = []
    monkeypatch.setattr(os, "walk", lambda folder: looked_at.append(folder) or iter(()))
    after = InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0, journal_bytes=MIB)
    assert ([], []) == (list(after.leftovers()), looked_at)


def test_a_full_journal_costs_nothing_but_a_file(store: InstanceStore, tmp_path: Path) -> None:
    """Instances beyond its capacity are durable on their own and told by the next start all the same."""
    for number in range(60):
        incoming = store.begin(meta(f"1.2.{number}"))
        incoming.write([DATA_SET + bytes(40_000)])
        incoming.commit()
    own = list((tmp_path / "incoming").glob("*.arrived"))
    assert own
    assert 60 == len(list(InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0).leftovers()))


def test_shelving_again_is_harmless(store: InstanceStore, tmp_path: Path) -> None:
    """As after a crash between shelf and row: one version, and a torn copy of it is replaced."""
    incoming = store.begin(meta())
    incoming.write([DATA_SET])
    arrival = incoming.commit()
    first = store.shelve(arrival)
    os.truncate(first.path, 300)
    again = store.shelve(arrival)
    assert (True, first.path) == (again.is_new, again.path)
    assert again.path.read_bytes().endswith(DATA_SET)
    assert not store.shelve(arrival).is_new
    assert [first.path] == [path for path in files_below(tmp_path) if path.suffix == ".dcm"]


def test_a_repeat_is_shelved_once(store: InstanceStore) -> None:
    """The same bytes in journal and in a file of their own are one version."""
    incoming = store.begin(meta())
    incoming.write([DATA_SET])
    assert shelved(store, incoming).is_new
    assert not file_in(store).is_new


FILL = """
import sys
from pathlib import Path
from dicom_node.errors import StorageError
from dicom_node.filing.journal import Journal
journal = Journal(Path(sys.argv[1]), capacity_bytes=1 << 20, boot_id="boot-one")
journal.start()
print(journal.append(b"first", [b"1"]).head_offset, flush=True)
sys.stdin.readline()
for attempt in range(2):
    try:
        journal.append(b"more", [b"2"])
        print("durable", flush=True)
    except StorageError as error:
        print(error, flush=True)
"""


def test_a_failed_sync_is_told_and_never_tried_again(tmp_path: Path) -> None:
    """EIO of one fdatasync: its record is refused, the next goes elsewhere, and the first is still found."""
    peers.require_peer("strace")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fdatasync"]
    command += ["-e", "inject=fdatasync:error=EIO:when=2"]
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, str(tmp_path / "journal")],
        input="\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert ["4096", "Input/output error while writing the journal", "durable"] == done.stdout.split("\n")[:3]
    synced = [line.split("<")[1].split(">")[0] for line in trace.read_text().splitlines() if "fdatasync(" in line]
    assert synced[0] == synced[1] != synced[2]
    assert b"first" in [label for label, _ in left(tmp_path / "journal")]


def test_no_journal_is_made_when_none_is_wanted(tmp_path: Path) -> None:
    """journal_mb = 0: every instance in a file of its own."""
    store = InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0, journal_bytes=0)
    store.start()
    incoming = store.begin(meta())
    incoming.write([DATA_SET])
    assert incoming.commit().record_offset is None
    store.stop()
    assert not (tmp_path / "journal").exists()


def test_errors_of_the_journal_are_storage_errors() -> None:
    """A sender hears 0xA700 for each."""
    assert issubclass(JournalFullError, StorageError)
