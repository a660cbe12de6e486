"""What keeps work from getting stuck, without anybody asking."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicom_node.ids import ProcessIdentity, process_identity
from dicom_node.logs import Log
from dicom_node.records import Contents, Deliveries, Jobs

COMPARED: Final = 16
"""Versions that are decoded before the others are asked whether they are still wanted."""


class Watch:
    """Takes work back from processes that died or stalled, and wakes what waited long enough."""

    def __init__(self, jobs: Jobs, deliveries: Deliveries, *, log: Log) -> None:
        self._jobs = jobs
        self._deliveries = deliveries
        self._log = log

    def step(self) -> bool:
        """Look once; return False, so that the next look comes after a pause."""
        for job_id in self._jobs.reap(owner_is_alive, died_with_its_node):
            self._log.warning("job.taken_back", job_id=job_id)
        self._deliveries.reap(owner_is_alive)
        self._jobs.wake()
        return False


class Compare:
    """Finds out which new versions of images hold what an earlier one held: recompressed, or with other names."""

    def __init__(self, contents: Contents, *, content_of: Callable[[Path, str], str], log: Log) -> None:
        """`content_of`: (path, digest) -> digest of pixels and geometry."""
        self._contents = contents
        self._content_of = content_of
        self._log = log

    def step(self) -> bool:
        """Look at some versions; return whether there were any."""
        found = [(one, self._content_of(one.path, one.digest)) for one in self._contents.uncompared(limit=COMPARED)]
        if found:
            self._contents.write(found)
            self._log.info("versions.compared", count=len(found))
        return bool(found)


def owner_name() -> str:
    """Return the name under which this process owns work: who it is, and who started it."""
    return f"{process_identity()}/{process_identity(os.getppid())}"


def owner_is_alive(name: str) -> bool:
    """Return whether the process that a worker or sender is named after runs; True when in doubt."""
    return _is_alive(name.partition("/")[0])


def died_with_its_node(name: str) -> bool:
    """Return whether the process that started the owner is gone too: then no job of the owner's brought it down."""
    return not _is_alive(name.partition("/")[2])


def _is_alive(word: str) -> bool:
    try:
        return ProcessIdentity.parse(word).is_alive()
    except ValueError:
        return True
