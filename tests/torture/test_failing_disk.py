"""EIO from the disk while four scanners send: each object is refused or kept, and the node recovers by itself."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.torture.receiver import Receiver, assert_nothing_lost, pause
from tests.torture.sender import OUT_OF_RESOURCES, SMALL, SUCCESS, Object, Scanner, mixed, sending
from tests.torture.tracing import calls, traced

STEPS = ("fdatasync", "fsync", "rename")
"""What makes bytes and names durable, and publishes."""


def failing(*names: str, when: str) -> list[str]:
    """Return options of strace: these calls fail with EIO, in each thread those that `when` counts."""
    return ["-e", f"trace={','.join(names)}", "-e", f"inject={','.join(names)}:error=EIO:when={when}"]


@pytest.mark.parametrize(
    ("names", "when", "seconds"),
    [
        pytest.param(STEPS, "3+4", 1.5, id="all"),
        *(pytest.param((name,), "2+3", 15.0, id=name, marks=pytest.mark.long) for name in STEPS),
        pytest.param(("pwritev", "pwritev2"), "2+3", 15.0, id="pwritev", marks=pytest.mark.long),
        pytest.param(("pwrite64", "link", "linkat", "unlink"), "2+3", 15.0, id="shelving", marks=pytest.mark.long),
        pytest.param(STEPS, "1+1", 15.0, id="always", marks=pytest.mark.long),
    ],
)
def test_an_error_of_the_disk_loses_nothing(tmp_path: Path, names: tuple[str, ...], when: str, seconds: float) -> None:
    """0xA700 or Success, on associations that live; every Success survives a SIGKILL; afterwards all is as before."""
    with Receiver(tmp_path, journal_mb=32) as receiver:
        with sending(receiver.port, pause_s=0.005) as scanners:
            pause(0.3)
            with traced(receiver, tmp_path / "trace", failing(*names, when=when)):
                pause(seconds)
        assert {SUCCESS, OUT_OF_RESOURCES} >= {status for scanner in scanners for status in scanner.answers}
        assert [0] * 4 == [scanner.losses for scanner in scanners]
        assert " = -1 EIO" in (tmp_path / "trace").read_text()
        with Scanner(receiver.port) as after:
            assert [SUCCESS] * 25 == [after.store(one) for one in islice(mixed(1 << 20, 1), 25)]
            receiver.kill()
        receiver.start()
        assert_nothing_lost(receiver, [*scanners, after])


@pytest.mark.long
def test_a_shelf_that_was_not_brought_to_the_disk_keeps_its_journal(tmp_path: Path) -> None:
    """EIO of one syncfs: the next would report success for lost bytes, so the records stay for the next start."""
    with Receiver(tmp_path, journal_mb=32) as receiver, Scanner(receiver.port) as scanner:
        options = ["-e", "trace=syncfs,pwrite64", "-e", "inject=syncfs:error=EIO:when=1"]
        with traced(receiver, tmp_path / "trace", options):
            assert SUCCESS == scanner.store(Object(kind=SMALL, serial=1))
            scanner.release()
            failed = lambda: " = -1 EIO" in (tmp_path / "trace").read_text()  # noqa: E731
            receiver.wait_for(failed, "the file system is synchronised")
            pause(1.5)  # a second try would come after one
        assert [] == [call for call in calls(tmp_path / "trace") if call.words.endswith(", 64, 4096) = 64")]
        receiver.kill()
        assert [Object(kind=SMALL, serial=1).sop_instance_uid] == [
            one.meta.sop_instance_uid for one in receiver.node.store.leftovers()
        ]
        receiver.start()
        assert_nothing_lost(receiver, [scanner])
