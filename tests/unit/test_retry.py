"""Claims on retries: a silent destination is tried for ever, an answering one is believed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config.schema import SenderSettings
from dicom_node.deliver import GiveUp, RetryIn, after_failure
from dicom_node.deliver.retry import backoff_s
from dicom_node.errors import DeliveryError, RejectedDeliveryError, TransientDeliveryError, UnreachableError
from dicom_node.lifecycle import DeliveryEvent

SETTINGS = SenderSettings(retry_base_s=5, retry_max_s=600, max_refusals=3)


def decide(error: UnreachableError | DeliveryError, *, attempts: int = 1, refusals: int = 0) -> RetryIn | GiveUp:
    """Ask the policy without chance."""
    return after_failure(attempts=attempts, refusals=refusals, error=error, settings=SETTINGS, jitter=0.0)


@pytest.mark.parametrize(
    ("error", "attempts", "refusals", "expected"),
    [
        (UnreachableError(), 1, 0, RetryIn(delay_s=5)),
        (UnreachableError(), 2, 0, RetryIn(delay_s=10)),
        (UnreachableError(), 8, 0, RetryIn(delay_s=600)),
        (UnreachableError(), 100_000, 2, RetryIn(delay_s=600)),
        (TransientDeliveryError("no response"), 100_000, 2, RetryIn(delay_s=600)),
        (TransientDeliveryError("full", status=0xA700), 1, 1, RetryIn(delay_s=5)),
        (TransientDeliveryError("full", status=0xA700), 9, 2, RetryIn(delay_s=600)),
        (TransientDeliveryError("full", status=0xA700), 3, 3, GiveUp(event=DeliveryEvent.FAIL)),
        (RejectedDeliveryError("class", status=0x0122), 1, 1, GiveUp(event=DeliveryEvent.REFUSE)),
        (RejectedDeliveryError("context"), 1, 0, GiveUp(event=DeliveryEvent.REFUSE)),
    ],
)
def test_what_follows_a_failure(
    error: UnreachableError | DeliveryError, attempts: int, refusals: int, expected: RetryIn | GiveUp
) -> None:
    """Transport errors return for ever under the cap; refusals end after max_refusals; for good ends at once."""
    assert expected == decide(error, attempts=attempts, refusals=refusals)


def test_a_silence_after_refusals_is_no_refusal() -> None:
    """A destination that refused often and then went away is tried again: it may come back repaired."""
    assert isinstance(decide(UnreachableError(), attempts=9, refusals=9), RetryIn)


@given(attempts=st.integers(min_value=1, max_value=10**9), jitter=st.floats(min_value=0, max_value=1))
def test_delay_stays_between_base_and_cap(attempts: int, jitter: float) -> None:
    """Whatever chance says, the delay is positive, at least four fifths of the base and never above the cap."""
    decision = after_failure(attempts=attempts, refusals=0, error=UnreachableError(), settings=SETTINGS, jitter=jitter)
    assert isinstance(decision, RetryIn)
    assert 0.8 * SETTINGS.retry_base_s <= decision.delay_s <= SETTINGS.retry_max_s


@given(st.integers(min_value=1, max_value=200))
def test_delay_never_falls(attempts: int) -> None:
    """A later failure waits at least as long as an earlier one."""
    assert backoff_s(attempts, SETTINGS) <= backoff_s(attempts + 1, SETTINGS)
