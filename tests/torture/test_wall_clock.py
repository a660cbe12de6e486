"""The wall clock jumps by an hour, either way, under open associations: deadlines do not notice, times are as told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.clock import ManualClock
from dicom_node.receive.connection import ASSOCIATE_TIMEOUT_S
from tests.integration.receiving import Node, association, encode_data_set, running_node, small_data_set, store_raw
from tests.torture.receiver import pause

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)
IDLE_TIMEOUT_S = 0.8
TWO_LOOKS_S = IDLE_TIMEOUT_S / 4 * 2 + 0.1
"""Real time in which a connection has looked at its deadlines."""
HOUR = timedelta(hours=1)


class WallClock(ManualClock):
    """A clock whose wall time is set, by an administrator or by NTP, while its monotonic time stands."""

    def jump(self, by: timedelta) -> None:
        self._now += by


@pytest.fixture
def clock() -> WallClock:
    """Return a clock that moves only when it is told to."""
    return WallClock(START)


@pytest.fixture
def node(tmp_path: Path, clock: WallClock) -> Iterator[Node]:
    """Return a listener that runs on the clock."""
    with running_node(tmp_path, clock=clock, idle_timeout_s=IDLE_TIMEOUT_S) as running:
        yield running


def test_no_association_dies_of_a_jump_and_times_are_as_told(node: Node, clock: WallClock) -> None:
    """One association through both jumps: each instance bears the time that the clock told when it came."""
    jumps = [timedelta(0), HOUR, -2 * HOUR]
    with association(node.address) as assoc:
        for number, by in enumerate(jumps):
            clock.jump(by)
            pause(TWO_LOOKS_S)
            uid = f"1.2.3.{number}"
            assert 0 == store_raw(assoc, encode_data_set(small_data_set(uid)), sop_instance_uid=uid)
        assoc.release()
    assert [START, START + HOUR, START - HOUR] == [one.received_at for one in node.filed]
    assert START == node.events.associations[0].opened_at
    assert node.events.wait_for("closed", "released")


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
def test_no_association_becomes_immortal(node: Node, clock: WallClock, by: timedelta) -> None:
    """After a jump silence still ends it, when the monotonic time has come."""
    with association(node.address):
        clock.jump(by)
        pause(TWO_LOOKS_S)
        assert "closed" not in {entry[0] for entry in node.events.log}
        clock.advance(IDLE_TIMEOUT_S + 1)
        assert node.events.wait_for("closed", "aborted")


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["forward", "back"])
def test_a_connection_that_never_speaks_ends_in_its_time(node: Node, clock: WallClock, by: timedelta) -> None:
    """A jump neither ends it nor keeps it; the time for a request does."""
    with socket.create_connection((node.address.host, node.address.port), timeout=10) as silent:
        clock.jump(by)
        pause(TWO_LOOKS_S)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)
        silent.settimeout(10)
        clock.advance(ASSOCIATE_TIMEOUT_S + 1)
        assert b"" == silent.recv(1)
