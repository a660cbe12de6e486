"""Figures of a classifier: confusion matrix and what follows from it, AUC, calibration, threshold. Pure.

Rows of a confusion matrix are the truth, columns the answer. A figure whose denominator is empty is nan, not 0: a class
that nobody has was neither found nor missed.

Sources: AUC as the Mann-Whitney statistic with ties counted half (Hanley & McNeil 1982); expected calibration error
over bins of equal width (Guo et al. 2017); Youden's index (1950).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Reliability",
    "accuracy",
    "auc",
    "calibration_error",
    "choose_threshold",
    "confusion_matrix",
    "f1",
    "precision",
    "recall",
    "reliability",
    "roc_curve",
    "specificity",
]

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def confusion_matrix(truth: NDArray[np.integer], answer: NDArray[np.integer], n_classes: int) -> Counts:
    """Return (n_classes, n_classes) counts: [true class, answered class]."""
    if len(truth) != len(answer):
        raise ValueError(f"{len(truth)} truths for {len(answer)} answers")
    return np.bincount(
        np.asarray(truth, dtype=np.int64) * n_classes + np.asarray(answer, dtype=np.int64), minlength=n_classes**2
    ).reshape(n_classes, n_classes)


def accuracy(matrix: Counts) -> float:
    """Return the share of right answers."""
    return _ratio(np.trace(matrix), matrix.sum())


def recall(matrix: Counts, of_class: int) -> float:
    """Return the share of a class that was answered as such (sensitivity)."""
    return _ratio(matrix[of_class, of_class], matrix[of_class].sum())


def precision(matrix: Counts, of_class: int) -> float:
    """Return the share of the answers of a class that were right (positive predictive value)."""
    return _ratio(matrix[of_class, of_class], matrix[:, of_class].sum())


def specificity(matrix: Counts, of_class: int) -> float:
    """Return the share of all others that were not answered as this class."""
    others = matrix.sum() - matrix[of_class].sum()
    wrong = matrix[:, of_class].sum() - matrix[of_class, of_class]
    return _ratio(others - wrong, others)


def f1(matrix: Counts, of_class: int) -> float:
    """Return the harmonic mean of recall and precision: 2 TP / (2 TP + FP + FN)."""
    hit = matrix[of_class, of_class]
    return _ratio(2 * hit, matrix[of_class].sum() + matrix[:, of_class].sum())


def auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return the chance that a positive scores higher than a negative; nan when one of them is missing."""
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[place]
    return float((rank[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def roc_curve(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats, Floats]:
    """Return false positive rate, true positive rate and the thresholds, score >= threshold, from none to all."""
    positive, score = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=-np.inf))
    hits = np.cumsum(positive[order])[ends]
    false = ends + 1 - hits
    thresholds = np.concatenate([[np.inf], score[order][ends]])
    rates = [np.concatenate([[0.0], counts / max(int(counts[-1]), 1)]) for counts in (false, hits)]
    return rates[0], rates[1], thresholds


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """Said and true frequency by bin; bins without a case are left out."""

    confidence: Floats
    """Mean of what was said."""
    frequency: Floats
    """What was true."""
    count: Counts


def reliability(positive: NDArray[np.bool_], probability: Floats, n_bins: int = 10) -> Reliability:
    """Return what was said beside what was true, in bins of equal width over 0..1; 1.0 is in the last one."""
    probability = np.asarray(probability, dtype=np.float64)
    if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError("probabilities lie between 0 and 1")
    place = np.minimum((probability * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(place, minlength=n_bins)
    used = count > 0
    said = np.bincount(place, weights=probability, minlength=n_bins)[used] / count[used]
    true = np.bincount(place, weights=np.asarray(positive, dtype=np.float64), minlength=n_bins)[used] / count[used]
    return Reliability(confidence=said, frequency=true, count=count[used])


def calibration_error(positive: NDArray[np.bool_], probability: Floats, n_bins: int = 10) -> float:
    """Return the expected calibration error: the mean gap between said and true, weighted by the bins' counts."""
    bins = reliability(positive, probability, n_bins)
    if not bins.count.sum():
        return float("nan")
    return float((np.abs(bins.confidence - bins.frequency) * bins.count).sum() / bins.count.sum())


def choose_threshold(positive: NDArray[np.bool_], score: Floats, *, least_recall: float | None = None) -> float:
    """Return the threshold (score >= threshold is positive) to use from now on; call it on validation cases only.

    Parameters
    ----------
    least_recall
        The highest threshold whose recall is at least this; None: the one with the largest recall + specificity.

    Raises
    ------
    ValueError
        Positives or negatives are missing: nothing can be chosen from one kind alone.
    """
    if len(set(np.asarray(positive, dtype=bool).tolist())) < 2:
        raise ValueError("a threshold is chosen from positives and negatives; one kind is missing")
    false_rate, true_rate, thresholds = roc_curve(positive, score)
    if least_recall is not None:
        return float(thresholds[int(np.argmax(true_rate >= least_recall))])
    best = int(np.argmax((true_rate - false_rate)[1:])) + 1
    return float(thresholds[best])


def _ratio(part: np.integer | int, whole: np.integer | int) -> float:
    return float(part) / float(whole) if whole else float("nan")
