"""When a delivery is tried again, and when it is given up: a policy that returns a value and waits for nobody. Pure.

A destination that is away is tried for ever, for a PACS comes back from its upgrade; one that answers is believed after
a few answers; one that will never take the object as it is, at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from dicom_node.config.schema import SenderSettings
from dicom_node.errors import DeliveryError, RejectedDeliveryError, UnreachableError
from dicom_node.lifecycle import DeliveryEvent

_JITTER_SHARE: Final = 0.2
"""Part of the delay that chance takes away, so that a hundred deliveries do not come back in one second."""
_MOST_DOUBLINGS: Final = 32
"""Beyond any cap; keeps the power small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryIn:
    """Try again after `delay_s` seconds."""

    delay_s: float
    event: DeliveryEvent = DeliveryEvent.RETRY_LATER


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Wait for somebody to change something."""

    event: DeliveryEvent
    """REFUSE: the destination will never take it as it is; FAIL: it answered with failures too often."""


Decision: TypeAlias = RetryIn | GiveUp


def after_failure(
    *,
    attempts: int,
    refusals: int,
    error: UnreachableError | DeliveryError,
    settings: SenderSettings,
    jitter: float,
) -> Decision:
    """Return what follows a failed attempt.

    Parameters
    ----------
    attempts
        Tries so far, the failed one included.
    refusals
        Of these, tries that the destination answered with a failure status, the last one included.
    error
        `UnreachableError` or a `DeliveryError` without status: no answer came. `RejectedDeliveryError`: never again.
    jitter
        A random number from 0 to 1.
    """
    if isinstance(error, RejectedDeliveryError):
        return GiveUp(event=DeliveryEvent.REFUSE)
    was_answered = isinstance(error, DeliveryError) and error.status is not None
    if was_answered and refusals >= settings.max_refusals:
        return GiveUp(event=DeliveryEvent.FAIL)
    return RetryIn(delay_s=backoff_s(attempts, settings) * (1 - _JITTER_SHARE * jitter))


def backoff_s(attempts: int, settings: SenderSettings) -> float:
    """Return the longest delay after the `attempts`-th failure: doubling from the base up to the cap, in seconds."""
    doublings = min(max(attempts - 1, 0), _MOST_DOUBLINGS)
    return min(settings.retry_max_s, settings.retry_base_s * 2.0**doublings)
