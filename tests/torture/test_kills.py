"""The receiver killed with SIGKILL while four scanners send: nothing is lost, nothing is doubled, nothing is torn."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.torture.receiver import (
    Receiver,
    assert_each_current_once,
    assert_nothing_lost,
    is_gone,
    pause,
)
from tests.torture.sender import LARGE, MEDIUM, SMALL, SUCCESS, Object, Scanner, sending


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """Return a receiver that does not run yet; whatever runs in the end is ended."""
    one = Receiver(tmp_path)
    yield one
    one.stop()


@pytest.mark.parametrize(
    "kills", [pytest.param(3, id="3"), pytest.param(100, id="100", marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_kills_lose_double_and_tear_nothing(receiver: Receiver, kills: int) -> None:
    """Killed at drawn moments, also within its start; what was answered with Success is there, once, byte for byte."""
    draw = random.Random(20261120)
    with sending(receiver.port, pause_s=0.004) as scanners:
        for number in range(kills):
            if number % 5 == 4:
                receiver.launch()
                pause(draw.uniform(0.0, 2.0))
            else:
                receiver.start()
                pause(draw.uniform(0.05, 0.6))
            receiver.kill()
    assert len(scanners) <= sum(scanner.losses for scanner in scanners)
    receiver.start()
    assert_nothing_lost(receiver, scanners)
    assert_each_current_once(receiver)
    assert kills < sum(len(scanner.acknowledged) for scanner in scanners)


def test_a_killed_indexing_process_costs_nothing(receiver: Receiver) -> None:
    """It is started again, while the scanners send on without a single loss."""
    receiver.start()
    killed = []
    with sending(receiver.port, pause_s=0.01) as scanners:
        for _ in range(2):
            assert peers.eventually(lambda: receiver.indexer_pid() not in (None, *killed), timeout_s=20, every_s=0.02)
            indexer = receiver.indexer_pid()
            assert indexer is not None
            pause(0.5)
            os.kill(indexer, signal.SIGKILL)
            killed.append(indexer)
    assert [0] * 4 == [scanner.losses for scanner in scanners]
    receiver.wait_until_indexed(version for scanner in scanners for version in scanner.acknowledged)
    assert_nothing_lost(receiver, scanners, except_parts=True)  # the next start clears away what was being written
    assert "instance.set_aside" not in receiver.log.read_text()


def test_the_indexing_process_dies_with_its_parent_and_a_repeat_is_no_double(receiver: Receiver) -> None:
    """Only the listener is killed: no orphan writes beside the next one, and what comes again is the same version."""
    receiver.start()
    indexer, main = receiver.indexer_pid(), receiver.main_pid()
    assert indexer is not None
    assert main is not None
    objects = [Object(kind=kind, serial=serial) for serial, kind in enumerate((SMALL, MEDIUM, LARGE))]
    first, second = Scanner(receiver.port), Scanner(receiver.port)
    assert [SUCCESS] * 3 == [first.store(one) for one in objects]
    os.kill(main, signal.SIGKILL)
    assert peers.eventually(lambda: is_gone(indexer), timeout_s=10, every_s=0.02)
    first.close()
    receiver.kill()
    receiver.start()
    assert [SUCCESS] * 3 == [second.store(one) for one in objects]
    second.release()
    assert_nothing_lost(receiver, [first, second])
    assert len(objects) == len(receiver.shelf_files())
