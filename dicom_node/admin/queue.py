"""What an administrator may do to jobs and deliveries, and what may be paused: each act with who did it and why.

Every act is one transition of the tables in `lifecycle`; one that the state does not allow is refused in words and
changes nothing. The comment stands in the job's events.
"""

from __future__ import annotations

import getpass
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dicom_node.errors import NotFoundError

if TYPE_CHECKING:
    from dicom_node.admin.node import Parts
    from dicom_node.records import PauseKind, Priority


class QueueAdmin:
    """The administrator's hand in the queue."""

    def __init__(self, node: Parts, *, actor: str) -> None:
        """`actor` is the account that the events name."""
        self._node = node
        self._actor = actor

    # Jobs

    def retry_job(self, job_id: int, comment: str | None = None) -> str:
        """Queue a job again, with all its attempts; return its state."""
        return self._node.jobs.retry(job_id, actor=self._actor, comment=comment)

    def cancel_job(self, job_id: int, comment: str | None = None) -> str:
        """End a job; return its state."""
        return self._node.jobs.cancel(job_id, comment or "cancelled by an administrator", actor=self._actor)

    def hold_job(self, job_id: int, comment: str | None = None) -> str:
        """Keep a job from running until it is released; return its state."""
        return self._node.jobs.hold(job_id, comment or "held by an administrator", actor=self._actor)

    def release_job(self, job_id: int, comment: str | None = None) -> str:
        """Let a held job run; return its state."""
        return self._node.jobs.release(job_id, actor=self._actor, comment=comment)

    def prioritise_job(self, job_id: int, priority: Priority, comment: str | None = None) -> str:
        """Give a job another priority; return its state."""
        return self._node.jobs.prioritise(job_id, priority, actor=self._actor, comment=comment)

    # Deliveries

    def retry_delivery(self, delivery_id: int, comment: str | None = None) -> str:
        """Send a delivery as soon as may be; return its state."""
        return self._node.deliveries.retry(delivery_id, actor=self._actor, comment=comment)

    def hold_delivery(self, delivery_id: int, comment: str | None = None) -> str:
        """Keep a delivery from being sent; return its state."""
        return self._node.deliveries.hold(delivery_id, comment or "held by an administrator", actor=self._actor)

    def skip_delivery(self, delivery_id: int, comment: str | None = None) -> str:
        """Do without a delivery; return its state."""
        return self._node.deliveries.skip(delivery_id, comment or "skipped by an administrator", actor=self._actor)

    # Pauses

    def pause(self, kind: PauseKind, name: str, comment: str | None = None) -> None:
        """Pause a plugin, a route or a destination of the configuration.

        Raises
        ------
        NotFoundError
            When the configuration has none of that name.
        """
        known = self._known(kind)
        if name not in known:
            raise NotFoundError(f"no {kind} is called {name!r}; known: {', '.join(sorted(known)) or 'none'}")
        self._node.pauses.pause(kind, name, actor=self._actor, reason=comment or f"by {self._actor}")

    def resume(self, kind: PauseKind, name: str) -> None:
        """Let it go on, also when the configuration does not know it any more.

        Raises
        ------
        NotFoundError
            When it is not paused.
        """
        self._node.pauses.resume(kind, name)

    def pauses(self) -> list[dict[str, Any]]:
        """Return what is paused: kind, name, actor, reason, at."""
        return [asdict(one) for one in self._node.pauses.list()]

    def _known(self, kind: PauseKind) -> set[str]:
        if kind == "route":
            return {route.name for route in self._node.config.route}
        if kind == "destination":
            return {destination.name for destination in self._node.config.destination}
        return {plugin.id for plugin in self._node.registry} | set(self._node.registry.broken)


def account() -> str:
    """Return who runs this command: the account, and behind sudo the one that called it."""
    caller = os.environ.get("SUDO_USER")
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        name = f"uid {os.getuid()}"
    return f"{name} (sudo by {caller})" if caller else name
