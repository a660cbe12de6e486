"""The states of a job and of a delivery: everything that affects transitions lives in these two tables.

Pure. An event that a state does not know raises and changes nothing. `records` writes what these functions return;
the diagrams in ARCHITECTURE.md are generated from the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeVar

from dicom_node.errors import IllegalTransitionError


class JobState(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"  # a retry is due later (back-off)
    QUEUED = "queued"  # ready for any worker
    RUNNING = "running"  # a worker holds the lease
    HELD = "held"  # an administrator stopped it, or it was set aside: it ended its worker again and again
    DELIVERING = "delivering"  # results are filed; deliveries are under way
    DONE = "done"  # every delivery ended well, or was skipped
    WITHHELD = "withheld"  # the plausibility gate kept the result back
    REFUSED = "refused"  # the images cannot be judged
    FAILED = "failed"  # attempts used up, or an error that no retry cures
    CANCELLED = "cancelled"  # an administrator ended it


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"  # a worker takes it
    FILE_RESULTS = "file_results"  # result bytes are durable, deliveries are rows
    FINISH = "finish"  # nothing is left to deliver
    WITHHOLD = "withhold"  # the gate spoke
    REFUSE = "refuse"  # the input cannot be judged
    RETRY_LATER = "retry_later"  # a retryable error, attempts left
    WAKE = "wake"  # its back-off is over
    FAIL = "fail"  # no attempt is left, or the error is final
    LEASE_EXPIRED = "lease_expired"  # its worker died or stalled
    SET_ASIDE = "set_aside"  # its worker died once more; it is not tried again by itself
    GIVE_BACK = "give_back"  # its worker is being stopped
    HOLD = "hold"
    RELEASE = "release"
    CANCEL = "cancel"
    RETRY = "retry"  # an administrator queues it again
    REDELIVER = "redeliver"  # its filed results are to be sent again, or to one destination more


JOB_TRANSITIONS: Final[Mapping[tuple[JobState, JobEvent], JobState]] = MappingProxyType(
    {
        (JobState.QUEUED, JobEvent.CLAIM): JobState.RUNNING,
        (JobState.WAITING, JobEvent.WAKE): JobState.QUEUED,
        (JobState.RUNNING, JobEvent.FILE_RESULTS): JobState.DELIVERING,
        (JobState.RUNNING, JobEvent.WITHHOLD): JobState.WITHHELD,
        (JobState.RUNNING, JobEvent.REFUSE): JobState.REFUSED,
        (JobState.RUNNING, JobEvent.RETRY_LATER): JobState.WAITING,
        (JobState.RUNNING, JobEvent.LEASE_EXPIRED): JobState.QUEUED,
        (JobState.RUNNING, JobEvent.SET_ASIDE): JobState.HELD,
        (JobState.RUNNING, JobEvent.GIVE_BACK): JobState.QUEUED,
        (JobState.RUNNING, JobEvent.FAIL): JobState.FAILED,
        (JobState.DELIVERING, JobEvent.FINISH): JobState.DONE,
        (JobState.DELIVERING, JobEvent.FAIL): JobState.FAILED,
        **{(state, JobEvent.HOLD): JobState.HELD for state in (JobState.WAITING, JobState.QUEUED, JobState.RUNNING)},
        (JobState.HELD, JobEvent.RELEASE): JobState.QUEUED,
        **{
            (state, JobEvent.CANCEL): JobState.CANCELLED
            for state in (JobState.WAITING, JobState.QUEUED, JobState.HELD, JobState.RUNNING, JobState.DELIVERING)
        },
        **{
            (state, JobEvent.RETRY): JobState.QUEUED
            for state in (
                JobState.WAITING,
                JobState.RUNNING,
                JobState.HELD,
                JobState.WITHHELD,
                JobState.REFUSED,
                JobState.FAILED,
                JobState.CANCELLED,
            )
        },
        **{
            (state, JobEvent.REDELIVER): JobState.DELIVERING
            for state in (JobState.DELIVERING, JobState.DONE, JobState.FAILED, JobState.CANCELLED)
        },
    }
)

JOB_OPEN: Final = frozenset({JobState.WAITING, JobState.QUEUED, JobState.RUNNING, JobState.HELD, JobState.DELIVERING})
"""States in which something is still to be done: such a job's images are never purged."""


class DeliveryState(StrEnum):
    """Where one result stands on its way to one destination."""

    QUEUED = "queued"  # to be sent, now or after a back-off
    SENDING = "sending"  # a sender holds the lease
    STORED = "stored"  # status 0x0000 or a recorded warning
    COMMITTING = "committing"  # storage commitment was asked for
    COMMITTED = "committed"  # the destination promised safekeeping
    REFUSED = "refused"  # the destination never takes this kind of object
    HELD = "held"  # an administrator stopped it, or the destination's patient is not ours
    FAILED = "failed"  # the destination answers, but not with success, again and again
    SKIPPED = "skipped"  # an administrator does without it


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    CLAIM = "claim"
    STORE = "store"
    RETRY_LATER = "retry_later"
    LEASE_EXPIRED = "lease_expired"
    REFUSE = "refuse"
    FAIL = "fail"
    SET_ASIDE = "set_aside"  # the destination knows the study under another patient, or several
    HOLD = "hold"
    RETRY = "retry"
    SKIP = "skip"
    ASK_COMMITMENT = "ask_commitment"
    COMMIT = "commit"


DELIVERY_TRANSITIONS: Final[Mapping[tuple[DeliveryState, DeliveryEvent], DeliveryState]] = MappingProxyType(
    {
        (DeliveryState.QUEUED, DeliveryEvent.CLAIM): DeliveryState.SENDING,
        (DeliveryState.SENDING, DeliveryEvent.STORE): DeliveryState.STORED,
        (DeliveryState.SENDING, DeliveryEvent.RETRY_LATER): DeliveryState.QUEUED,
        (DeliveryState.SENDING, DeliveryEvent.LEASE_EXPIRED): DeliveryState.QUEUED,
        (DeliveryState.SENDING, DeliveryEvent.REFUSE): DeliveryState.REFUSED,
        (DeliveryState.SENDING, DeliveryEvent.SET_ASIDE): DeliveryState.HELD,
        (DeliveryState.SENDING, DeliveryEvent.FAIL): DeliveryState.FAILED,
        (DeliveryState.STORED, DeliveryEvent.ASK_COMMITMENT): DeliveryState.COMMITTING,
        (DeliveryState.COMMITTING, DeliveryEvent.COMMIT): DeliveryState.COMMITTED,
        (DeliveryState.COMMITTING, DeliveryEvent.FAIL): DeliveryState.FAILED,
        (DeliveryState.QUEUED, DeliveryEvent.HOLD): DeliveryState.HELD,
        (DeliveryState.QUEUED, DeliveryEvent.SKIP): DeliveryState.SKIPPED,
        **{
            (state, DeliveryEvent.RETRY): DeliveryState.QUEUED
            for state in (
                DeliveryState.QUEUED,  # at once, without the rest of its back-off
                DeliveryState.HELD,
                DeliveryState.REFUSED,
                DeliveryState.FAILED,
                DeliveryState.SKIPPED,
            )
        },
        **{
            (state, DeliveryEvent.SKIP): DeliveryState.SKIPPED
            for state in (DeliveryState.HELD, DeliveryState.REFUSED, DeliveryState.FAILED)
        },
    }
)

DELIVERY_OPEN: Final = frozenset(
    {DeliveryState.QUEUED, DeliveryState.SENDING, DeliveryState.COMMITTING, DeliveryState.HELD}
)
DELIVERY_WELL: Final = frozenset({DeliveryState.STORED, DeliveryState.COMMITTED, DeliveryState.SKIPPED})


S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


def next_job_state(state: JobState, event: JobEvent) -> JobState:
    """Return the state that `event` leads to.

    Raises
    ------
    IllegalTransitionError
        When a job in `state` knows no such event.
    """
    try:
        return JOB_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(f"a job that is {state} cannot take the event {event}") from None


def next_delivery_state(state: DeliveryState, event: DeliveryEvent) -> DeliveryState:
    """Return the state that `event` leads to.

    Raises
    ------
    IllegalTransitionError
        When a delivery in `state` knows no such event.
    """
    try:
        return DELIVERY_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransitionError(f"a delivery that is {state} cannot take the event {event}") from None


def job_outcome(deliveries: frozenset[DeliveryState]) -> JobEvent | None:
    """Return how a delivering job ends when its deliveries stand so; None while one is open."""
    if deliveries & DELIVERY_OPEN:
        return None
    return JobEvent.FINISH if deliveries <= DELIVERY_WELL else JobEvent.FAIL


def state_diagram(transitions: Mapping[tuple[S, E], S]) -> str:
    """Return the table as a Mermaid state diagram; ARCHITECTURE.md shows it and a test keeps the two equal."""
    lines = sorted(f"    {state} --> {target}: {event}" for (state, event), target in transitions.items())
    return "\n".join(("stateDiagram-v2", *lines))
