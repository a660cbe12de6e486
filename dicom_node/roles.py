"""The roles of the node as objects, and the supervisor that runs them as processes.

A role is a set of loops that share nothing with other roles but records and files. Each loop calls one small step of
the pipeline until it is told to stop; SIGTERM drains: no new association, the running job's lease is given back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from dicom_node.clock import Clock
from dicom_node.logs import Log
from dicom_node.processes import die_with_parent, give_way

RESTART_S = 2.0
"""A role that ended is started again after this long."""
REFUSED_RESTART_S = 10.0
"""The same, when it said that the configuration is wrong: somebody has to correct the file first."""
MORE_LOOPS_S = 0.5
"""How soon a destination that was added by a reload is sent to."""
DRAIN_S = 20.0
"""How long a role may take to stop before it is killed; leases and files survive either."""


class Role(Protocol):
    """What runs until it is told to stop."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then drain and return."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A step that is repeated: at once while it finds work, after `idle_s` when there was none."""

    name: str
    step: Callable[[], bool]
    """Does one piece of work; returns whether there was any."""
    idle_s: float
    gives_way: bool = False
    """Its thread runs behind all that somebody waits for."""


class LoopingRole:
    """A role made of loops, each in a thread of its own."""

    def __init__(
        self,
        loops: Sequence[Loop],
        *,
        log: Log,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
        more: Callable[[], Sequence[Loop]] = lambda: (),
    ) -> None:
        """`before` runs before the loops start, `after` when all of them have ended.

        `more` is asked now and then: a loop whose name is new is started beside the others.
        """
        self._loops = loops
        self._more = more
        self._log = log
        self._before = before
        self._after = after

    def run(self, stop: threading.Event) -> None:
        """Run every loop until `stop` is set."""
        self._before()
        threads: dict[str, threading.Thread] = {}
        while True:
            for loop in (*self._loops, *self._more()):
                if loop.name not in threads:
                    threads[loop.name] = threading.Thread(
                        target=self._repeat, args=(loop, stop), name=loop.name, daemon=True
                    )
                    threads[loop.name].start()
            if stop.wait(MORE_LOOPS_S):
                break
        for thread in threads.values():
            thread.join(DRAIN_S)
        self._after()

    def _repeat(self, loop: Loop, stop: threading.Event) -> None:
        """Repeat a step; a process boundary: an error in one is logged and the loop goes on."""
        if loop.gives_way:
            give_way()
        while not stop.is_set():
            try:
                worked = loop.step()
            except Exception as error:
                self._log.error("loop.failed", reason=loop.name, error=f"{type(error).__name__}: {error}")
                worked = False
                stop.wait(1.0)
            if not worked:
                stop.wait(loop.idle_s)


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def asked_on_hangup() -> threading.Event:
    """Return an event that SIGHUP sets: read the configuration again. Closing a terminal no longer ends the process."""
    asked = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    signal.signal(signal.SIGHUP, on_signal)
    return asked


class Supervisor:
    """Starts each role as a process of its own, starts it again when it ends, stops all together."""

    def __init__(self, command: Sequence[str], roles: Sequence[str], *, clock: Clock, log: Log) -> None:
        """`command` starts a role when the role's name is added to it."""
        self._command = command
        self._clock = clock
        self._log = log
        self._roles = roles

    def run(self, stop: threading.Event, asked: threading.Event) -> int:
        """Watch the roles until `stop` is set; return the exit status of the node. `asked` is passed on as SIGHUP.

        A role that cannot start because of the configuration (exit status 2) ends the node: a restart changes nothing.
        One that has served before is tried again: the file was broken meanwhile, and the other roles go on by the old.
        """
        processes = {role: self._start(role) for role in self._roles}
        due: dict[str, float] = {}
        have_served: set[str] = set()
        try:
            while not stop.wait(0.2):
                if asked.is_set():
                    asked.clear()
                    self._pass_on(processes)
                for role in self._roles:
                    if role in due and self._clock.monotonic() >= due[role]:
                        del due[role]
                        processes[role] = self._start(role)
                    status = None if role in due else processes[role].poll()
                    if status is None:
                        continue
                    self._log.error("role.ended", role=role, status=status)
                    if status == 2 and role not in have_served:
                        return 2
                    have_served.add(role)
                    due[role] = self._clock.monotonic() + (REFUSED_RESTART_S if status == 2 else RESTART_S)
            return 0
        finally:
            self._stop(processes)

    def _pass_on(self, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGHUP)

    def _start(self, role: str) -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def before_exec() -> None:
            # Until the role has its own handler, SIGHUP would end it; it has not read the file yet either.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            die_with_parent(parent)

        process = subprocess.Popen([*self._command, role], preexec_fn=before_exec)
        self._log.info("role.started", role=role, pid=process.pid)
        return process

    def _stop(self, processes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        for process in processes.values():
            process.terminate()
        deadline = self._clock.monotonic() + DRAIN_S + 5
        for role, process in processes.items():
            try:
                process.wait(timeout=max(0.1, deadline - self._clock.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.warning("role.killed", role=role, pid=process.pid)
                process.kill()
                process.wait()
