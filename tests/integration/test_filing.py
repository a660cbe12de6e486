"""Claims on filing: bytes as received, durable before anybody hears of it, immutable, nothing left after a failure."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_node.clock import ManualClock
from dicom_node.errors import NotFoundError, RefusedInputError, StorageError
from dicom_node.filing import Incoming, InstanceMeta, InstanceStore, ResultStore
from dicom_node.study import FiledInstance
from tests import peers
from tests.integration.receiving import EXPLICIT, MR, encode_data_set, small_data_set

DATA_SET = encode_data_set(small_data_set())


def meta(sop_instance_uid: str = "1.2.3.4", *, calling_ae: str = "CT1") -> InstanceMeta:
    """Return what a sender announces."""
    return InstanceMeta(
        sop_class_uid=MR,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=EXPLICIT,
        calling_ae=calling_ae,
        called_ae="NODE",
        association="a1",
    )


def file_in(store: InstanceStore, data_set: bytes = DATA_SET, *, uid: str = "1.2.3.4") -> FiledInstance:
    """File a data set in one go, up to the shelf."""
    incoming = store.begin(meta(uid))
    incoming.write([data_set])
    return shelved(store, incoming)


def shelved(store: InstanceStore, incoming: Incoming) -> FiledInstance:
    """Commit, put on the shelf and release."""
    arrival = incoming.commit()
    filed = store.shelve(arrival)
    store.release(arrival)
    return filed


def files_below(root: Path) -> list[Path]:
    """Return every file, parts too."""
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    """Return a store on a clock that stands still."""
    return InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0)


def test_the_data_set_is_stored_as_received(store: InstanceStore) -> None:
    """After our file meta information come the sender's bytes, each of them, and pydicom reads the whole."""
    filed = file_in(store)
    assert filed.path.read_bytes().endswith(DATA_SET)
    assert hashlib.sha256(DATA_SET).hexdigest() == filed.digest
    assert (len(DATA_SET), True, "a1") == (filed.size_bytes, filed.is_new, filed.association)
    assert datetime(2026, 1, 1, tzinfo=UTC) == filed.received_at
    assert "42" == dcmread(filed.path).PatientID


def test_dcmtk_reads_what_is_filed(store: InstanceStore) -> None:
    """dcmdump takes the file meta information that we build by hand."""
    peers.require_peer("dcmtk")
    done = subprocess.run(["dcmdump", str(file_in(store).path)], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)
    assert "(0002,0018) AE [NODE]" in done.stdout


@settings(max_examples=25, deadline=None)
@given(pieces=st.lists(st.binary(max_size=5000), min_size=1, max_size=30))
def test_fragments_make_the_whole(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    """However the bytes are cut, file, size and digest are those of the whole."""
    store = InstanceStore(tmp_path_factory.mktemp("store"), clock=ManualClock(), reserve_bytes=0)
    incoming = store.begin(meta())
    for first in range(0, len(pieces), 3):
        incoming.write([memoryview(piece) for piece in pieces[first : first + 3]])
    with incoming.data_set() as view:
        assert b"".join(pieces) == bytes(view)
    filed = shelved(store, incoming)
    assert filed.path.read_bytes().endswith(b"".join(pieces))
    assert hashlib.sha256(b"".join(pieces)).hexdigest() == filed.digest


def test_more_pieces_than_one_system_call_takes(store: InstanceStore) -> None:
    """writev takes 1024 buffers; three thousand are no problem."""
    pieces = [number.to_bytes(2, "little") for number in range(3000)]
    incoming = store.begin(meta())
    incoming.write(pieces)
    assert shelved(store, incoming).path.read_bytes().endswith(b"".join(pieces))


def test_the_same_again_changes_nothing(store: InstanceStore, tmp_path: Path) -> None:
    """An identical repeat is not new, and the first file stays as it is, inode and all."""
    first = file_in(store)
    before = first.path.stat()
    again = file_in(store)
    assert (False, first.path, first.digest) == (again.is_new, again.path, again.digest)
    after = again.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert [first.path] == files_below(tmp_path)


def test_a_corrected_resend_is_a_new_version(store: InstanceStore) -> None:
    """Other bytes under the same UID lie beside the old ones; a job that reads keeps its version."""
    first = file_in(store)
    second = file_in(store, DATA_SET + b"\xfc\xff\xfc\xffOB\x00\x00\x00\x00\x00\x00")
    assert second.is_new
    assert first.path != second.path
    assert first.path.read_bytes().endswith(DATA_SET)


def test_a_damaged_copy_is_replaced_by_a_repeat(store: InstanceStore) -> None:
    """A file that lost its end after it was filed does not count as the same bytes."""
    first = file_in(store)
    os.truncate(first.path, 300)
    again = file_in(store)
    assert again.is_new
    assert again.path.read_bytes().endswith(DATA_SET)


def test_two_associations_may_send_one_instance(store: InstanceStore, tmp_path: Path) -> None:
    """Interleaved writers of one UID never share a file; one of them is new."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(40):
            writers = [store.begin(meta(f"1.2.{number}")) for _ in range(4)]
            for writer in writers:
                writer.write([DATA_SET])
            with ThreadPoolExecutor(4) as pool:
                arrivals = list(pool.map(Incoming.commit, writers))
            filed = [store.shelve(arrival) for arrival in arrivals]
            for arrival in arrivals:
                store.release(arrival)
            assert [False, False, False, True] == sorted(one.is_new for one in filed)
    finally:
        sys.setswitchinterval(interval)
    assert 40 == len(files_below(tmp_path))


def test_abort_leaves_nothing(store: InstanceStore, tmp_path: Path) -> None:
    """What was not committed is gone; a second abort is harmless."""
    incoming = store.begin(meta())
    incoming.write([DATA_SET])
    incoming.abort()
    incoming.abort()
    assert [] == files_below(tmp_path)
    with pytest.raises(StorageError):
        incoming.commit()


@pytest.mark.parametrize("uid", ["../../x", "1.2.3\n", "", "1" * 65, "1.2/3"])
def test_what_is_no_uid_is_refused(store: InstanceStore, tmp_path: Path, uid: str) -> None:
    """A hostile UID is refused before a file exists."""
    with pytest.raises(RefusedInputError):
        store.begin(meta(uid))
    assert [] == files_below(tmp_path)


def test_below_the_reserve_nothing_is_accepted(tmp_path: Path) -> None:
    """The disk belongs to others too: the store stops before it is full."""
    store = InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=1 << 60)
    with pytest.raises(StorageError, match="reserve"):
        store.begin(meta())
    assert [] == files_below(tmp_path)


def test_the_reserve_is_asked_again_at_commit(tmp_path: Path, store: InstanceStore) -> None:
    """An instance that uses the space up while it arrives is thrown away."""
    incoming = store.begin(meta())
    incoming.write([DATA_SET])
    store._reserve_bytes = 1 << 60
    with pytest.raises(StorageError, match="reserve"):
        incoming.commit()
    assert [] == files_below(tmp_path)


FILL = """
import os, sys
from pathlib import Path
from dicom_node.clock import SystemClock
from dicom_node.errors import StorageError
from dicom_node.filing import InstanceMeta, InstanceStore
root = Path(sys.argv[1])
store = InstanceStore(root, clock=SystemClock(), reserve_bytes=0)
meta = InstanceMeta(sop_class_uid="1.2", sop_instance_uid="1.2.3", transfer_syntax_uid="1.2.840.10008.1.2.1",
                    calling_ae="CT1", called_ae="NODE", association=None)
incoming = store.begin(meta)
try:
    for written in range(0, size := int(sys.argv[2]), 1 << 20):
        incoming.write([os.urandom(min(1 << 20, size - written))])
    incoming.commit()
except StorageError as error:
    sys.exit(f"StorageError: {error}; left: {[path.name for path in root.rglob('*') if path.is_file()]}")
"""
"""A process that files one instance of so many bytes."""


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    """ENOSPC in the middle of an object: the error says so, and the partial file is gone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FILL, str(disk), "4000000"], capture_output=True, text=True, check=False
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert "StorageError: no space left while writing an instance; left: []" == done.stderr.strip()


@pytest.mark.parametrize("call", ["fdatasync", "rename", "fsync"])
def test_an_error_of_the_disk_is_never_retried(tmp_path: Path, call: str) -> None:
    """EIO in any step of publication: StorageError, and the failing call is not made a second time for the file."""
    peers.require_peer("strace")
    trace = tmp_path / "trace"
    store = tmp_path / "store"
    InstanceStore(store, clock=ManualClock(), reserve_bytes=0)
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO"]
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, str(store), "4000"], capture_output=True, text=True, check=False
    )
    if "attach" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert "StorageError: Input/output error while filing an instance; left: []" == done.stderr.strip()
    assert 1 == sum(" = -1 EIO" in line for line in trace.read_text().splitlines())


def test_a_large_instance_goes_to_the_disk_while_it_comes(tmp_path: Path) -> None:
    """The disk is told of every 8 MB as soon as they are written, once; what is left waits for fdatasync."""
    peers.require_peer("strace")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fadvise64,fdatasync"]
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, str(tmp_path / "store"), "20000000"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "attach" in done.stderr or "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    calls = [line.split(" ", 1)[1].lstrip() for line in trace.read_text().splitlines() if ".part>" in line]
    assert ["fadvise64", "fadvise64", "fdatasync"] == [call.split("(")[0] for call in calls]
    places = [[int(number) for number in re.findall(r", (\d+)", call)[:2]] for call in calls[:2]]
    assert [0, places[0][1]] == [start for start, _ in places]
    assert min(length for _, length in places) >= 1 << 23


def test_the_sweep_gives_every_version_back(store: InstanceStore, tmp_path: Path) -> None:
    """From the files alone: identity, digest, size, titles and time, for reconciling rows."""
    filed = [file_in(store, uid=f"1.2.3.{number}") for number in range(5)]
    swept = {one.sop_instance_uid: one for one in InstanceStore(tmp_path, clock=ManualClock(), reserve_bytes=0).sweep()}
    for one in filed:
        back = swept.pop(one.sop_instance_uid)
        assert (one.digest, one.path, one.size_bytes) == (back.digest, back.path, back.size_bytes)
        assert ("CT1", "NODE", MR, EXPLICIT) == (
            back.calling_ae,
            back.called_ae,
            back.sop_class_uid,
            back.transfer_syntax_uid,
        )
        assert abs(datetime.now(UTC) - back.received_at) < timedelta(minutes=5)
    assert {} == swept


def test_a_start_removes_the_parts_of_the_dead_only(store: InstanceStore, tmp_path: Path) -> None:
    """A part of a process that is gone is deleted; one that is being written now stays."""
    living = store.begin(meta())
    dead = tmp_path / "incoming" / "00000000-boot.4194304.1.0.part"
    stray = tmp_path / "incoming" / "x.part"
    for path in (dead, stray):
        path.write_bytes(b"half")
    living.write([DATA_SET])
    store.start()
    assert living.part is not None
    assert [living.part.path] == files_below(tmp_path)
    assert shelved(store, living).is_new


def test_the_sweep_survives_damage(store: InstanceStore, tmp_path: Path) -> None:
    """A file without readable head and a foreign file stop nobody."""
    good = file_in(store, uid="1.2.3.1")
    bad = file_in(store, uid="1.2.3.2")
    bad.path.write_bytes(b"garbage")
    (good.path.parent / "notes.txt").write_text("not ours")
    assert ["1.2.3.1"] == [one.sop_instance_uid for one in store.sweep()]


def test_another_version_is_told_from_the_same(store: InstanceStore) -> None:
    """Content tells versions apart; another instance is none."""
    filed = file_in(store, uid="1.2.3.1")
    assert store.has_other_version("1.2.3.1", "0" * 64)
    assert not store.has_other_version("1.2.3.1", filed.digest)
    assert not store.has_other_version("1.2.3.2", "0" * 64)


def test_the_sweep_is_lazy(store: InstanceStore) -> None:
    """The first version comes before the last folder was looked at."""
    for number in range(3):
        file_in(store, uid=f"1.2.3.{number}")
    sweep = store.sweep()
    next(sweep)
    for path in [one.path for one in store.sweep()]:
        path.unlink()
    assert [] == list(sweep)


def test_a_stored_version_is_opened(store: InstanceStore) -> None:
    """Readers get the file from its preamble on."""
    filed = file_in(store)
    with store.open_stored(filed.path) as stored:
        assert bytes(128) + b"DICM" == stored.read(132)


def test_nothing_outside_the_store_is_opened(store: InstanceStore, tmp_path: Path) -> None:
    """Paths from records are checked, links followed; purged versions are not found."""
    filed = file_in(store)
    secret = tmp_path / "secret"
    secret.write_text("x")
    link = filed.path.parent / "link"
    link.symlink_to(secret)
    filed.path.unlink()
    for path in (secret, link, filed.path.parent / ".." / ".." / ".." / "secret", filed.path):
        with pytest.raises(NotFoundError):
            store.open_stored(path)


def test_a_result_is_filed_once(tmp_path: Path) -> None:
    """The same bytes again are no change; the path tells nothing of the UID but its hash."""
    results = ResultStore(tmp_path)
    path, digest = results.file(b"a whole file", "1.2.3")
    assert hashlib.sha256(b"a whole file").hexdigest() == digest
    inode = path.stat().st_ino
    assert (path, digest) == results.file(b"a whole file", "1.2.3")
    assert inode == path.stat().st_ino
    assert b"a whole file" == results.read(path)
    assert [path] == files_below(tmp_path)


def test_a_result_without_a_row_blocks_nobody(tmp_path: Path) -> None:
    """Cut off between file and row, a job may compute again and differ in a byte: both versions stay, as filed."""
    results = ResultStore(tmp_path)
    first, _ = results.file(b"first", "1.2.3")
    second, digest = results.file(b"second", "1.2.3")
    assert (b"first", b"second") == (results.read(first), results.read(second))
    assert hashlib.sha256(b"second").hexdigest() == digest


def test_results_are_not_read_from_elsewhere(tmp_path: Path) -> None:
    """A path outside the results is not found."""
    results = ResultStore(tmp_path / "results")
    outside = tmp_path / "outside"
    outside.write_text("x")
    with pytest.raises(NotFoundError):
        results.read(outside)
