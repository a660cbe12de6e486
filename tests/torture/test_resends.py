"""The same instances again and again, with the same content or other, from four scanners at once and under a reader."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import pytest

from tests.torture.receiver import Receiver, assert_each_current_once, assert_nothing_lost, books
from tests.torture.sender import DUPLICATE, LARGE, SMALL, SUCCESS, Object, Scanner, mixed

SCANNERS = 4


def at_once(scanners: Sequence[Scanner], send: Callable[[int, Scanner], list[int | None]]) -> list[int | None]:
    """Let every scanner send in a thread of its own, beginning together; return all statuses."""
    start = threading.Barrier(len(scanners))

    def run(number: int) -> list[int | None]:
        start.wait()
        return send(number, scanners[number])

    with ThreadPoolExecutor(len(scanners)) as pool:
        return [status for statuses in pool.map(run, range(len(scanners))) for status in statuses]


def current(receiver: Receiver) -> dict[str, str]:
    """Return the digest of the version that counts, of each instance."""
    rows = receiver.rows("SELECT sop_instance_uid, digest FROM instance WHERE is_current")
    assert len({uid for uid, _ in rows}) == len(rows)
    return dict(rows)


@pytest.mark.parametrize(
    ("n_objects", "rounds"), [pytest.param(45, 2, id="45"), pytest.param(500, 20, id="500", marks=pytest.mark.long)]
)
def test_what_comes_again_from_four_at_once_is_there_once(tmp_path: Path, n_objects: int, rounds: int) -> None:
    """Identical repeats are one version; every other content is one more; of each instance the last to come counts."""
    objects = list(islice(mixed(0, 1), n_objects))
    corrected = [
        [Object(kind=one.kind, serial=one.serial, variant=variant) for one in objects[:: variant + 2]]
        for variant in range(1, SCANNERS + 1)
    ]
    with Receiver(tmp_path) as receiver, ExitStack() as stack:
        scanners = [stack.enter_context(Scanner(receiver.port)) for _ in range(SCANNERS)]
        same = at_once(scanners, lambda _, scanner: [scanner.store(one) for _ in range(rounds) for one in objects])
        assert {SUCCESS: SCANNERS * rounds * n_objects} == Counter(same)
        receiver.wait_until_indexed(books(scanners)[0])
        assert n_objects == len(receiver.versions())
        other = at_once(scanners, lambda number, scanner: [scanner.store(one) for one in corrected[number]])
        assert {SUCCESS} == set(other)
        last = Object(kind=SMALL, serial=objects[0].serial, variant=99)
        assert SUCCESS == scanners[0].store(last)
        for scanner in scanners:
            scanner.release()
        assert_nothing_lost(receiver, scanners)
        assert n_objects + sum(map(len, corrected)) + 1 == len(receiver.shelf_files())
        assert_each_current_once(receiver)
        assert last.digest() == current(receiver)[last.sop_instance_uid]
        assert [] == receiver.rows(
            "SELECT 1 FROM instance AS old JOIN instance AS new USING (sop_instance_uid)"
            " WHERE old.is_current AND NOT new.is_current AND new.received_at > old.received_at"
        )


def test_a_reader_never_sees_another_version(tmp_path: Path) -> None:
    """A job that has read half of a version reads on in the same bytes, whatever comes again meanwhile."""
    with Receiver(tmp_path) as receiver, Scanner(receiver.port) as scanner:
        firsts = [Object(kind=kind, serial=1) for kind in (SMALL, LARGE)]
        assert [SUCCESS] * 2 == [scanner.store(one) for one in firsts]
        receiver.wait_until_indexed(scanner.acknowledged)
        paths = [receiver.versions()[one.sop_instance_uid, one.digest()] for one in firsts]
        whole = [path.read_bytes() for path in paths]
        with ExitStack() as stack:
            readers = [stack.enter_context(receiver.node.store.open_stored(path)) for path in paths]
            read = [reader.read(len(content) // 2) for reader, content in zip(readers, whole, strict=True)]
            for variant in (0, 7, 0):
                for one in firsts:
                    again = Object(kind=one.kind, serial=1, variant=variant)
                    assert SUCCESS == scanner.store(again)
            receiver.wait_until_indexed(scanner.acknowledged)
            scanner.release()
            assert_nothing_lost(receiver, [scanner])
            assert whole == [half + reader.read() for half, reader in zip(read, readers, strict=True)]
        assert whole == [path.read_bytes() for path in paths]
        assert 4 == len(receiver.shelf_files())
        assert {Object(kind=one.kind, serial=1, variant=7).digest() for one in firsts} == set(
            current(receiver).values()
        )


@pytest.mark.long
def test_with_reject_the_first_of_four_contents_stays(tmp_path: Path) -> None:
    """Four scanners at once, each with other content under the same UIDs: one is taken, three hear 0x0111."""
    with Receiver(tmp_path, on_conflict="reject") as receiver, ExitStack() as stack:
        scanners = [stack.enter_context(Scanner(receiver.port)) for _ in range(SCANNERS)]
        statuses = at_once(
            scanners,
            lambda number, scanner: [
                scanner.store(Object(kind=SMALL, serial=serial, variant=number)) for serial in range(20)
            ],
        )
        assert {SUCCESS: 20, DUPLICATE: 60} == Counter(statuses)
        for scanner in scanners:
            scanner.release()
        assert_nothing_lost(receiver, scanners)
        assert {digest for _, digest in books(scanners)[0]} == set(current(receiver).values())
