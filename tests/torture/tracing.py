"""strace on a running receiver, listener and indexing process: its system calls in order, and faults put into them."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests import peers
from tests.torture.receiver import Receiver

_ATTACHED: Final = " attached"
_LINE: Final = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_STARTED: Final = re.compile(r"(?P<name>\w+)\((?P<words>.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(?P<words>.*)")


@contextmanager
def traced(receiver: Receiver, trace: Path, options: Sequence[str]) -> Iterator[None]:
    """Watch a receiver with strace, from the first line of the `with` to its last; it runs on without afterwards.

    Skips the test where strace may not attach.
    """
    peers.require_peer("strace")
    pids = [str(pid) for pid in (receiver.main_pid(), receiver.indexer_pid()) if pid is not None]
    command = ["strace", "-f", "-y", "-s", "8", "-o", str(trace), *options]
    said = trace.with_suffix(".said")
    with said.open("wb") as errors:
        strace = subprocess.Popen([*command, *(word for pid in pids for word in ("-p", pid))], stderr=errors)
    try:
        held = peers.eventually(
            lambda: strace.poll() is not None or said.read_text().count(_ATTACHED) >= len(pids), every_s=0.02
        )
        if not held or strace.poll() is not None:
            pytest.skip(f"strace may not trace here: {said.read_text().strip()}")
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # it lets go
        strace.wait(30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One system call: when it began and when it was over, as places in the trace."""

    name: str
    words: str
    """Arguments and result as strace writes them; descriptors with their paths."""
    began: int
    ended: int


def calls(trace: Path) -> list[Call]:
    """Return the calls of a trace that came to their end, in the order of their beginnings."""
    found: list[Call] = []
    open_calls: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(trace.read_text(errors="replace").splitlines()):
        parts = _LINE.fullmatch(line)
        if parts is None:
            continue
        pid, rest = parts["pid"], parts["rest"]
        resumed, started = _RESUMED.fullmatch(rest), _STARTED.fullmatch(rest)
        if resumed is not None and pid in open_calls:
            name, words, began = open_calls.pop(pid)
            found.append(Call(name=name, words=words + resumed["words"], began=began, ended=number))
        elif started is not None and rest.endswith("<unfinished ...>"):
            open_calls[pid] = started["name"], started["words"].removesuffix("<unfinished ...>"), number
        elif started is not None:
            found.append(Call(name=started["name"], words=started["words"], began=number, ended=number))
    return sorted(found, key=lambda call: call.began)


def first_after(trace: Sequence[Call], place: int, name: str, pattern: str) -> Call:
    """Return the first call that begins after a place in the trace and whose name and words match.

    Raises
    ------
    AssertionError
        When there is none.
    """
    later = (call for call in trace if call.began > place)
    call = next((one for one in later if re.fullmatch(name, one.name) and re.search(pattern, one.words)), None)
    assert call is not None, f"no {name}({pattern}) after line {place}"
    return call
