"""How many jobs infer at once, and which warm child serves which: admission by slots, the queue holds the rest."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from dicom_node.clock import Clock
from dicom_node.findings import Findings
from dicom_node.infer.child import InferenceChild, Request
from dicom_node.infer.registry import Plugin


class Slots:
    """A fixed number of inferring children, kept warm between jobs and shared by all plugins.

    Safe to be called from as many threads as there are slots.
    """

    def __init__(self, count: int, *, clock: Clock) -> None:
        self.count = count
        self._clock = clock
        self._idle: list[InferenceChild] = []
        self._lock = threading.Lock()

    def run(self, plugin: Plugin, request: Request, *, keep_going: Callable[[], bool] = lambda: True) -> Findings:
        """Return the findings of `plugin` for `request`; see InferenceChild.run for what it raises."""
        child = self._take(plugin)
        try:
            return child.run(request, keep_going=keep_going)
        finally:
            with self._lock:
                if child.is_alive:
                    self._idle.append(child)

    def close(self) -> None:
        """End every idle child."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.stop()

    def _take(self, plugin: Plugin) -> InferenceChild:
        """Return a warm child of this very plugin and model, or a new one in the place of the longest idle."""
        with self._lock:
            for child in self._idle:
                if child.is_alive and child.plugin == plugin:
                    self._idle.remove(child)
                    return child
            displaced = self._idle[: max(0, len(self._idle) - self.count + 1)]
            self._idle = self._idle[len(displaced) :]
        for child in displaced:
            child.stop()
        threads = threads_per_slot(self.count, plugin.manifest.runtime.threads, n_cores=len(os.sched_getaffinity(0)))
        return InferenceChild(plugin, threads=threads, clock=self._clock)


def threads_per_slot(n_slots: int, wanted: int, *, n_cores: int) -> int:
    """Return the threads of one engine: all slots together never have more than there are cores.

    Parameters
    ----------
    wanted
        By the manifest; 0: as many as there are.
    n_cores
        That this process may use, which is fewer than the machine has under a CPU quota by affinity.
    """
    share = max(1, n_cores // n_slots)
    return min(wanted, share) if wanted else share
