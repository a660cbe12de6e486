"""How a sender sends: learned from the series that it sent before, bounded, and explained in words.

Pure. Some scanners give a series in one association and release it; some gateways cut it up, open one association per
image, or never release at all. Nothing here is set by hand and nothing is remembered elsewhere: a habit is a summary of
the latest series of an AE title in the records, so deleting them is forgetting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dicom_node.study import MOST_PAUSE_S, ArrivalEnd

LATEST: Final = 50
"""Series of an AE title that its habit is made of."""
ENOUGH: Final = 5
"""Series from which on a habit counts as one."""
_MARGIN: Final = 1.5
"""Of a learned pause: the next one may be longer."""
_MOST_OF: Final = 0.95
"""The part of a sender's series that a learned value covers; the rest may be accidents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSeries:
    """How one series came, as far as habits are concerned."""

    n_runs: int
    """Times that an association turned to it: parts that it came in, and rounds when series were shuffled."""
    longest_pause_s: float
    """Between two of its images, at most MOST_PAUSE_S."""
    end: ArrivalEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class Habit:
    """What was learned of one AE title."""

    n_series: int = 0
    cuts: bool = False
    """It brings series in parts, or several series at a time."""
    cut_pause_s: float = 0.0
    """Longest pause in a series that came in parts; 0: it does not cut them."""
    pause_s: float = 0.0
    """Longest pause in a series that came in one go."""
    releases: bool = False
    """It releases its associations behind a series."""
    aborts: bool = False
    """It ends them by aborting; then an abort means nothing."""

    @property
    def is_steady(self) -> bool:
        """Whether it has brought each series in one go: when it turns away from one, that is done."""
        return self.n_series >= ENOUGH and not self.cuts

    @property
    def has_released(self) -> bool:
        """Whether it releases when it is done, so that silence on an open association says that it is not."""
        return self.n_series >= ENOUGH and self.releases

    @property
    def quiet_s(self) -> float:
        """How long the sender may be silent between the parts of a series; 0 when nothing is known."""
        return min(MOST_PAUSE_S, _MARGIN * self.cut_pause_s)

    @property
    def idle_s(self) -> float:
        """How long it may be silent within an association."""
        return min(MOST_PAUSE_S, _MARGIN * self.pause_s)


def habit_of(series: Sequence[PastSeries]) -> Habit:
    """Return the habit that these series, the latest of one AE title, show."""
    latest = series[:LATEST]
    n = len(latest)
    if not n:
        return Habit()
    cut = [one.longest_pause_s for one in latest if one.n_runs > 1]
    uncut = [one.longest_pause_s for one in latest if one.n_runs == 1]
    return Habit(
        n_series=n,
        cuts=len(cut) > (1 - _MOST_OF) * n,
        cut_pause_s=_covering([*cut, *([0.0] * (n - len(cut)))]),
        pause_s=_covering(uncut),
        releases=_share(latest, "released") >= _MOST_OF,
        aborts=_share(latest, "aborted") >= 0.5,
    )


def _share(series: Sequence[PastSeries], end: ArrivalEnd) -> float:
    return sum(one.end == end for one in series) / len(series)


def _covering(pauses: Sequence[float]) -> float:
    """Return the pause that all but one in twenty keep to."""
    if not pauses:
        return 0.0
    ordered = sorted(pauses)
    return ordered[math.ceil(_MOST_OF * len(ordered)) - 1]
