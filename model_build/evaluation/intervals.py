"""Bootstrap intervals: how far a figure may lie off because just these patients were looked at. Pure.

Resampled are *units*, patients or studies, never single findings or voxels: what lies in one patient is alike, and an
interval that forgets it is too narrow. Percentile bootstrap (Efron & Tibshirani 1993, chapter 13). Where every unit
agrees (a recall of 1.0 of twenty) resampling knows nothing of what it has not seen; proportions are therefore widened
to Wilson's interval (1927), which does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figure", "bootstrap", "proportion", "wilson"]

Statistic: TypeAlias = Callable[[NDArray[np.intp]], float]
"""Indices of the units that were drawn, with repeats -> the figure; nan where it is not defined."""

REPEATS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its interval; all None where it is not defined (no positive, no pair)."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Units that it comes from."""

    def as_json(self) -> dict[str, float | int | None]:
        """Return the figure for --json."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def __str__(self) -> str:
        """Return the figure for a table: value and interval."""
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def bootstrap(
    statistic: Statistic, n_units: int, *, repeats: int = REPEATS, level: float = LEVEL, seed: int = 0
) -> Figure:
    """Return the statistic of all units with its percentile interval.

    Repeats in which the statistic is nan are left out; if fewer than half remain, there is no interval.
    """
    if n_units == 0:
        return Figure(value=None, low=None, high=None, n=0)
    value = float(statistic(np.arange(n_units)))
    if math.isnan(value):
        return Figure(value=None, low=None, high=None, n=n_units)
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(n_units, size=n_units)) for _ in range(repeats)], dtype=np.float64)
    draws = draws[~np.isnan(draws)]
    if len(draws) < repeats / 2:
        return Figure(value=value, low=None, high=None, n=n_units)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Figure(value=value, low=float(low), high=float(high), n=n_units)


def wilson(successes: float, trials: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion; (0, 1) of no trial."""
    if trials <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def proportion(
    successes: NDArray[np.float64], trials: NDArray[np.float64], *, repeats: int = REPEATS, seed: int = 0
) -> Figure:
    """Return the sum of successes over the sum of trials, both (units,), with the wider of both intervals.

    `n` is the number of trials.
    """

    def share(drawn: NDArray[np.intp]) -> float:
        total = float(trials[drawn].sum())
        return float(successes[drawn].sum()) / total if total else math.nan

    figure = bootstrap(share, len(trials), repeats=repeats, seed=seed)
    if figure.value is None:
        return Figure(value=None, low=None, high=None, n=0)
    low, high = wilson(float(successes.sum()), float(trials.sum()))
    return Figure(
        value=figure.value,
        low=min(low, figure.low if figure.low is not None else low),
        high=max(high, figure.high if figure.high is not None else high),
        n=int(trials.sum()),
    )
