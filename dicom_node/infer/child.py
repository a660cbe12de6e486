"""One warm child process that reads images and infers, watched by its parent for time and memory.

Pixels are decoded and networks run here and nowhere else, so a broken file or a runaway model ends this process and
not the node. The child keeps its engine between jobs, dies with its parent, and answers with findings or with one of
our errors. Memory is judged by resident size, not RLIMIT_AS, which breaks CUDA (ARCHITECTURE, decision 9).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from dicom_node import errors
from dicom_node.clock import Clock, SystemClock
from dicom_node.errors import ChildDiedError, DicomNodeError, LimitExceededError
from dicom_node.findings import Findings
from dicom_node.infer.registry import Plugin
from dicom_node.processes import die_with_parent, give_way

POLL_S = 0.05
"""How often memory and time are looked at while a job runs."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One job for the child: the files of each input role."""

    paths: Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error of ours on its way from the child to its parent."""

    kind: str
    message: str

    def error(self) -> DicomNodeError:
        """Return the error as the class that it was."""
        kind = getattr(errors, self.kind, DicomNodeError)
        return kind(self.message) if issubclass(kind, DicomNodeError) else DicomNodeError(self.message)


class InferenceChild:
    """The parent's side: starts the process, hands over requests, enforces the plugin's limits."""

    def __init__(self, plugin: Plugin, *, threads: int, clock: Clock) -> None:
        self.plugin = plugin
        self._clock = clock
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_child_main, args=(theirs, plugin, threads, os.getpid()), name=f"infer-{plugin.id}", daemon=True
        )
        self._process.start()
        theirs.close()

    @property
    def is_alive(self) -> bool:
        """Return whether the child can take a request."""
        return self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """Return the child's process id."""
        return self._process.pid

    def run(self, request: Request, *, keep_going: Callable[[], bool] = lambda: True) -> Findings:
        """Return the findings for `request`.

        Parameters
        ----------
        keep_going
            Asked at every look; False ends the child (the lease is lost, or the job was cancelled).

        Raises
        ------
        LimitExceededError
            When the plugin's `time_s` or `ram_mb` is exceeded; the child is ended.
        ChildDiedError
            When the process ended by itself, or `keep_going` said no.
        DicomNodeError
            What the child answered, for example a GeometryError.
        """
        limits = self.plugin.manifest.limits
        deadline = self._clock.monotonic() + limits.time_s
        try:
            self._connection.send(request)
            while not self._connection.poll(POLL_S):
                if not self._process.is_alive():
                    raise ChildDiedError(f"the process that infers ended ({self._how_it_ended()}) without an answer")
                if self._clock.monotonic() > deadline:
                    raise LimitExceededError(f"{self.plugin.id} ran longer than its limit of {limits.time_s:g} s")
                used_mb = resident_bytes(self._process.pid) // _MIB
                if used_mb > limits.ram_mb:
                    raise LimitExceededError(
                        f"{self.plugin.id} used {used_mb} MB of memory, its limit is {limits.ram_mb} MB"
                    )
                if not keep_going():
                    raise ChildDiedError("the job was taken away while it ran")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise ChildDiedError(f"the process that infers ended ({self._how_it_ended()}) without an answer") from error
        except DicomNodeError:
            self.stop()
            raise
        if isinstance(answer, Failure):
            raise answer.error()
        assert isinstance(answer, Findings)
        return answer

    def stop(self) -> None:
        """End the child, whatever it does."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()

    def _how_it_ended(self) -> str:
        self._process.join(timeout=1)
        code = self._process.exitcode
        if code is None:
            return "no exit status"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def resident_bytes(pid: int | None) -> int:
    """Return the resident memory of a process in bytes; 0 when it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _child_main(connection: Connection, plugin: Plugin, threads: int, parent_pid: int) -> None:
    """Answer requests until the parent hangs up. A process boundary: every error becomes an answer."""
    # The runtime and what reads images are for this process alone; the parents, all roles, do without.
    from dicom_node.infer.engine import PluginEngine
    from dicom_node.predict import predict
    from dicom_node.reading import load_volume

    die_with_parent(parent_pid)
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes sends it to the whole group
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent drains and then ends the child itself
    runtime = PluginEngine(plugin, threads=threads)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            engine = runtime.engine()
            manifest = plugin.manifest
            policies = {series.role: series.policy for series in manifest.input_series}
            volumes = {
                role: load_volume(
                    paths,
                    policy=policies[role],
                    workers=threads,
                    grey_from_colour=manifest.preprocess.takes_colour,
                )
                for role, paths in request.paths.items()
            }
            connection.send(runtime.noted(predict(volumes, manifest, engine, clock=SystemClock())))
        except DicomNodeError as error:
            connection.send(Failure(kind=type(error).__name__, message=str(error)))
        except MemoryError:
            connection.send(Failure(kind="OutOfMemoryError", message="the host had too little memory for this input"))
        except Exception as error:
            connection.send(Failure(kind="EngineError", message=f"{type(error).__name__}: {error}"))
