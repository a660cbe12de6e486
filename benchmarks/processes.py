"""A program under measurement: started, waited for, its process tree weighed by /proc, ended by its process id."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

__all__ = ["Program", "cpu_s", "disk_class", "peak_mb", "process_tree", "wait_for_port"]

READY_S = 60.0
STOP_S = 60.0
_PROC = Path("/proc")
_UTIME, _STIME = 11, 12
"""Fields 14 and 15 of /proc/PID/stat, counted from the one after the name (proc(5))."""


class Program:
    """One running program; a context manager that ends it and what it left behind.

    Parameters
    ----------
    command
        Program and arguments.
    log
        Where standard output and error go.
    port
        The loopback port on which it will listen.
    environment
        Variables over those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        port: int,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.port = port
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, cwd=folder, env={**os.environ, **(environment or {})}
            )

    @property
    def pid(self) -> int:
        """The first process of the tree."""
        return self._process.pid

    def __enter__(self) -> Self:
        """Return when the port answers."""
        try:
            wait_for_port(self.port, self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the program."""
        self.stop()

    def stop(self) -> None:
        """Ask it to end, and kill it when it does not."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Return when somebody listens on a loopback port.

    Raises
    ------
    RuntimeError
        When the process that should has ended, or a minute has passed.
    """
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def _status_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may itself hold blanks; none when it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def process_tree(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _status_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree = [pid]
    for one in tree:
        tree += children.get(one, [])
    return tree


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU, user and system, that the living processes of a tree have used."""
    ticks = 0
    for one in process_tree(pid):
        if fields := _status_fields(one):
            ticks += int(fields[_UTIME]) + int(fields[_STIME])
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int, *, is_tree: bool = True) -> float:
    """Return the peak resident memory (VmHWM) of a process in MB; of its tree: the sum over the living processes."""
    kilobytes = 0
    for one in process_tree(pid) if is_tree else [pid]:
        try:
            status = (_PROC / str(one) / "status").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            continue
        kilobytes += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    return kilobytes * 1024 / 1e6


def disk_class(folder: Path, *, repeats: int = 50) -> tuple[str, float]:
    """Return the type of the file system of a folder, and the median time of a durable write of 4 kB there, in ms."""
    said = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    path, times = folder / "disk-class", []
    with path.open("wb", buffering=0) as file:
        for _ in range(repeats):
            start = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    path.unlink()
    return said.stdout.strip(), sorted(times)[repeats // 2] * 1e3
