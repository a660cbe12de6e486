"""Identifiers: DICOM UIDs, and who a process is.

The one place that makes random values. A result's UIDs are *derived* from a root that is allocated with its job
(ARCHITECTURE, decision 4), so that a retry never gives a second name to one result.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self

IMPLEMENTATION_CLASS_UID = "2.25.278419253637041498862571384269016843521"
"""Names this implementation in file meta information and association negotiation (PS3.7 D.3.3.2)."""

IMPLEMENTATION_VERSION_NAME = "DICOM_NODE_0_1"
"""At most 16 characters (PS3.7 D.3.3.2.3)."""


def new_uid() -> str:
    """Return a new UID of the UUID-derived form `2.25.<decimal>` (PS3.5 B.2), at most 44 characters."""
    return f"2.25.{uuid.uuid4().int}"


def derived_uid(root_uid: str, role: str) -> str:
    """Return the UID that `role` has under `root_uid`: the same for the same pair, for ever.

    Parameters
    ----------
    root_uid
        The UID that was allocated with the job.
    role
        What the UID names, for example ``"sr.instance"`` or ``"tracking/3"``.
    """
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{root_uid}|{role}').int}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """Which process, in which boot of the machine: a pid alone is soon given to another."""

    boot_id: str
    pid: int
    start_ticks: int
    """Start time in clock ticks since boot, field 22 of /proc/PID/stat."""

    def __str__(self) -> str:
        """Return the identity as one word, which `parse` reads."""
        return f"{self.boot_id}:{self.pid}:{self.start_ticks}"

    @classmethod
    def parse(cls, word: str) -> Self:
        """Return the identity that `str` wrote.

        Raises
        ------
        ValueError
            When the word is none.
        """
        boot_id, pid, start_ticks = word.split(":")
        return cls(boot_id=boot_id, pid=int(pid), start_ticks=int(start_ticks))

    def is_alive(self) -> bool:
        """Return whether this very process still runs on this machine."""
        try:
            return self == process_identity(self.pid)
        except OSError:
            return False


def process_identity(pid: int | None = None) -> ProcessIdentity:
    """Return the identity of the process `pid` (default: the present one).

    Raises
    ------
    OSError
        When no such process runs.
    """
    pid = os.getpid() if pid is None else pid
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    if after_name[0] in "ZX":
        raise ProcessLookupError(f"process {pid} has ended")
    return ProcessIdentity(boot_id=boot_id, pid=pid, start_ticks=int(after_name[19]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Which installation of the node this is: the Device Observer UID and serial number of its results."""

    uid: str
    serial_number: str
