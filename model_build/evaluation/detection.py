"""How well findings match what was to be found: one-to-one matching, recall, false positives, FROC. Pure.

A finding is a hit when its centre lies within a target's reach: the radius of the target, or `NEAR_MM` for small ones
(LUNA16, Setio 2017, takes the radius; below 6 mm that would ask for more than a voxel can say). Each target takes one
finding, the most confident one that reaches it; further findings on a target that has one are neither hits nor false
(LUNA16). A target too small to be counted (`counts` False) is forgiven either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_build.evaluation.intervals import Figure, bootstrap, proportion

__all__ = ["Detection", "Froc", "Match", "StudyResult", "Target", "froc", "match", "recall_of"]

NEAR_MM = 3.0
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a study at which LUNA16 reads the curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What must be found."""

    centre_lps_mm: tuple[float, float, float]
    diameter_mm: float
    volume_ml: float
    kind: str
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What was found."""

    centre_lps_mm: tuple[float, float, float]
    volume_ml: float
    confidence: float
    """Larger is surer; only the order matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A target with the detection that found it, a missed target (no detection), or a false detection (no target)."""

    target: Target | None
    detection: Detection | None
    distance_mm: float | None

    @property
    def volume_error(self) -> float | None:
        """Return (found - true) / true of a hit."""
        if self.target is None or self.detection is None:
            return None
        return self.detection.volume_ml / self.target.volume_ml - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """One study: its matches and what it is called."""

    study: str
    matches: tuple[Match, ...]

    @property
    def n_false(self) -> int:
        """Return the number of false positives."""
        return sum(each.target is None for each in self.matches)


def match(targets: Sequence[Target], detections: Sequence[Detection]) -> tuple[Match, ...]:
    """Return every target, hit or missed, then every false detection.

    The surest detection chooses first and takes the nearest target that it reaches and nobody has.
    """
    free = dict(enumerate(targets))
    hits: dict[int, tuple[Detection, float]] = {}
    false: list[Detection] = []
    for detection in sorted(detections, key=lambda each: -each.confidence):
        distances = {
            number: float(np.linalg.norm(np.subtract(target.centre_lps_mm, detection.centre_lps_mm)))
            for number, target in enumerate(targets)
        }
        reached = [number for number, distance in distances.items() if distance <= reach_mm(targets[number])]
        open_ones = [number for number in reached if number in free]
        if open_ones:
            chosen = min(open_ones, key=lambda number: distances[number])
            hits[chosen] = (detection, distances[chosen])
            del free[chosen]
        elif not reached:
            false.append(detection)
    matches = []
    for number, target in enumerate(targets):
        found = hits.get(number)
        if target.counts:
            matches.append(
                Match(target=target, detection=found[0] if found else None, distance_mm=found[1] if found else None)
            )
    return (*matches, *(Match(target=None, detection=each, distance_mm=None) for each in false))


def reach_mm(target: Target) -> float:
    """Return how far from its centre a detection may lie."""
    return max(target.diameter_mm / 2, NEAR_MM)


def recall_of(
    studies: Sequence[StudyResult], *, kind: str | None = None, low_mm: float = 0.0, high_mm: float = np.inf
) -> Figure:
    """Return the recall of the targets of a kind and of low < diameter <= high, resampled by study."""
    hits, trials = np.zeros(len(studies)), np.zeros(len(studies))
    for row, study in enumerate(studies):
        for each in study.matches:
            target = each.target
            if target and low_mm < target.diameter_mm <= high_mm and kind in (None, target.kind):
                trials[row] += 1
                hits[row] += each.detection is not None
    return proportion(hits, trials)


@dataclass(frozen=True, eq=False, kw_only=True)
class Froc:
    """Recall over false positives a study, one point for each confidence that occurs, from sure to unsure."""

    confidence: NDArray[np.float64]
    false_per_study: NDArray[np.float64]
    recall: NDArray[np.float64]

    def recall_at(self, rate: float) -> float:
        """Return the recall of the last point with at most `rate` false positives a study; 0 when there is none."""
        allowed = self.recall[self.false_per_study <= rate]
        return float(allowed[-1]) if len(allowed) else 0.0

    def threshold_at(self, rate: float) -> float | None:
        """Return the confidence to cut at for at most `rate` false positives a study; None when none does.

        Call it on validation studies only.
        """
        allowed = self.confidence[self.false_per_study <= rate]
        return float(allowed[-1]) if len(allowed) else None

    @property
    def score(self) -> float:
        """Return the mean recall at LUNA16's seven rates."""
        return float(np.mean([self.recall_at(rate) for rate in FROC_RATES]))


def froc(studies: Sequence[StudyResult]) -> Froc:
    """Return the curve; its last point is all that was found."""
    hits, false, n_targets = _confidences(studies)
    return _curve(hits, false, n_targets, len(studies))


def froc_figures(studies: Sequence[StudyResult], *, repeats: int = 300) -> dict[str, Figure]:
    """Return the recall at each of LUNA16's rates and their mean ("score"), resampled by study."""

    def drawn(rate: float | None) -> Figure:
        def statistic(rows: NDArray[np.intp]) -> float:
            curve = froc([studies[row] for row in rows])
            if not len(curve.recall):
                return float("nan")
            return curve.score if rate is None else curve.recall_at(rate)

        return bootstrap(statistic, len(studies), repeats=repeats)

    return {f"{rate:g}": drawn(rate) for rate in FROC_RATES} | {"score": drawn(None)}


def _confidences(studies: Sequence[StudyResult]) -> tuple[list[float], list[float], int]:
    hits: list[float] = []
    false: list[float] = []
    n_targets = 0
    for study in studies:
        for each in study.matches:
            n_targets += each.target is not None
            if each.detection is not None:
                (false if each.target is None else hits).append(each.detection.confidence)
    return hits, false, n_targets


def _curve(hits: list[float], false: list[float], n_targets: int, n_studies: int) -> Froc:
    if not n_targets or not n_studies:
        empty = np.zeros(0)
        return Froc(confidence=empty, false_per_study=empty, recall=empty)
    cuts = np.unique(np.concatenate([hits, false]))[::-1]
    sorted_hits, sorted_false = np.sort(hits), np.sort(false)
    n_hits = len(hits) - np.searchsorted(sorted_hits, cuts, side="left")
    n_false = len(false) - np.searchsorted(sorted_false, cuts, side="left")
    return Froc(confidence=cuts, false_per_study=n_false / n_studies, recall=n_hits / n_targets)
