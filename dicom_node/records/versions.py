"""Which of two versions of an instance counts. Pure.

An instance that comes again under its UID with other content is filed beside the first: bytes are never changed. This
decides which of the two rules and jobs see; `indexing` writes it. Policy and default: `[storage] on_conflict`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

OnConflict: TypeAlias = Literal["replace_if_same_source", "keep_first", "reject"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What the policy looks at."""

    calling_ae: str
    received_at: datetime


def why_kept_back(current: Version, newcomer: Version, on_conflict: OnConflict) -> str | None:
    """Return why `newcomer` does not take the place of `current`; None when it does.

    A corrected re-send by the same AE is the common case and counts; another AE, a PACS that coerces what it forwards
    for instance, changes nothing. With "reject" the listener refuses (0x0111) before anything is filed; what slipped
    through, two associations at once for instance, is kept back here.
    """
    if newcomer.received_at < current.received_at:
        return "a later version is here already"
    if on_conflict != "replace_if_same_source":
        return f'the first version counts (on_conflict = "{on_conflict}")'
    if newcomer.calling_ae != current.calling_ae:
        return "another AE title sent the first version"
    return None
