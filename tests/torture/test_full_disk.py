"""The disk of a receiver fills up and is freed again: senders are told, associations live, promises are kept."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from tests.torture.disks import fill, small_disk
from tests.torture.receiver import Receiver, assert_nothing_lost, pause
from tests.torture.sender import (
    CONGESTION,
    LARGE,
    MEDIUM,
    OUT_OF_RESOURCES,
    SMALL,
    SUCCESS,
    Object,
    Scanner,
    mixed,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a small disk."""
    with small_disk(tmp_path / "mounted", size_mb=160) as folder:
        yield folder


def receiver_on(disk: Path, tmp_path: Path, *, reserve_mb: int) -> Receiver:
    """Return a receiver that keeps everything on the disk, not started."""
    return Receiver(tmp_path / "node", data_dir=disk / "data", reserve_mb=reserve_mb, journal_mb=48)


def test_below_the_reserve_senders_are_told_and_come_back(disk: Path, tmp_path: Path) -> None:
    """0xA700 on an open association, which lives; congestion for a new one; success for both once space is free."""
    objects = mixed(0, 1)
    with (
        receiver_on(disk, tmp_path, reserve_mb=8) as receiver,
        Scanner(receiver.port) as first,
        Scanner(receiver.port) as second,
    ):
        ballasts = [fill(disk, leave_mb=24)]
        assert OUT_OF_RESOURCES == next(status for one in objects if (status := first.store(one)) != SUCCESS)
        ballasts.append(fill(disk, leave_mb=4))
        assert OUT_OF_RESOURCES == first.store(next(objects))
        assert None is second.store(next(objects))
        assert [CONGESTION] == second.rejections
        for ballast in ballasts:
            ballast.unlink()
        assert [SUCCESS] * 20 == [scanner.store(next(objects)) for scanner in (first, second) for _ in range(10)]
        assert 0 == first.losses
        first.release()
        second.release()
        assert_nothing_lost(receiver, [first, second])


@pytest.mark.parametrize(
    "ends", [pytest.param(("kill",), id="killed"), pytest.param(("kill", "stop"), id="both", marks=pytest.mark.long)]
)
def test_a_disk_without_a_byte_loses_nothing(disk: Path, tmp_path: Path, ends: tuple[str, ...]) -> None:
    """No room for files or rows: ended and started on the full disk it serves; all is indexed when there is room.

    What the journal, written in full beforehand, still takes is a promise like any other.
    """
    with receiver_on(disk, tmp_path, reserve_mb=0) as receiver, Scanner(receiver.port) as scanner:
        assert [SUCCESS] * 30 == [scanner.store(one) for one in islice(mixed(0, 1), 30)]
        ballasts = [fill(disk)]
        assert OUT_OF_RESOURCES == scanner.store(Object(kind=LARGE, serial=1000))
        in_the_journal = (scanner.store(Object(kind=MEDIUM, serial=serial)) for serial in range(1100, 1200))
        assert OUT_OF_RESOURCES == next(status for status in in_the_journal if status != SUCCESS)
        assert 0 == scanner.losses
        for end in ends:
            receiver.wait_for(lambda: "index.postponed" in receiver.log.read_text(), "rows are postponed")
            scanner.close()
            {"kill": receiver.kill, "stop": receiver.stop}[end]()
            ballasts.append(fill(disk))
            receiver.log.unlink()
            receiver.start()
            assert OUT_OF_RESOURCES == scanner.store(Object(kind=LARGE, serial=1001))
        pause(1.5)  # time enough to give an instance up, if it were
        for ballast in ballasts:
            ballast.unlink()
        assert SUCCESS == scanner.store(Object(kind=LARGE, serial=1001))
        assert SUCCESS == scanner.store(Object(kind=SMALL, serial=1002))
        scanner.release()
        assert len(scanner.acknowledged) > 30
        assert_nothing_lost(receiver, [scanner])
        assert "instance.set_aside" not in receiver.log.read_text()
