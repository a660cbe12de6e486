"""Which of two versions of an instance counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.records.versions import OnConflict, Version, why_kept_back

START = datetime(2026, 1, 1, tzinfo=UTC)


def version(calling_ae: str = "CT1", *, at_s: float = 0) -> Version:
    """Return a version that came after so many seconds."""
    return Version(calling_ae=calling_ae, received_at=START + timedelta(seconds=at_s))


@pytest.mark.parametrize(
    ("on_conflict", "newcomer", "reason"),
    [
        ("replace_if_same_source", version(at_s=1), None),
        ("replace_if_same_source", version(at_s=0), None),
        ("replace_if_same_source", version("PACS", at_s=1), "another AE title"),
        ("replace_if_same_source", version(at_s=-1), "a later version"),
        ("keep_first", version(at_s=1), "the first version counts"),
        ("keep_first", version("PACS", at_s=1), "the first version counts"),
        ("keep_first", version(at_s=-1), "a later version"),
        ("reject", version(at_s=1), "the first version counts"),
    ],
)
def test_policy_says_which_version_counts(on_conflict: OnConflict, newcomer: Version, reason: str | None) -> None:
    """The table of policies; None: the newcomer takes the place of the version of CT1 at 0 s."""
    why = why_kept_back(version(), newcomer, on_conflict)
    assert (reason is None) == (why is None)
    assert (reason or "") in (why or "")
