"""Every figure against hand-computed truths, a second way of computing it, and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu
from skimage.metrics import hausdorff_distance

from model_build.evaluation import classification as cl
from model_build.evaluation.detection import Detection, StudyResult, Target, froc, froc_figures, match, recall_of
from model_build.evaluation.intervals import bootstrap, proportion, wilson
from model_build.evaluation.overlap import (
    bland_altman,
    dice,
    hausdorff_95_mm,
    surface_dice,
    surface_distances_mm,
)

TRUTH = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
ANSWER = np.array([0, 0, 1, 2, 1, 1, 0, 2, 2, 2])
SPACING = (2.5, 0.7, 0.7)


def test_confusion_matrix_has_the_truth_in_rows() -> None:
    """Ten answers, counted by hand."""
    matrix = cl.confusion_matrix(TRUTH, ANSWER, 3)
    assert [[2, 1, 1], [1, 2, 0], [0, 0, 3]] == matrix.tolist()
    assert 0.7 == cl.accuracy(matrix)


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (cl.recall, (2 / 4, 2 / 3, 3 / 3)),
        (cl.precision, (2 / 3, 2 / 3, 3 / 4)),
        (cl.specificity, (5 / 6, 6 / 7, 6 / 7)),
        (cl.f1, (4 / 7, 4 / 6, 6 / 7)),
    ],
)
def test_figures_of_each_class_by_hand(figure: object, expected: tuple[float, ...]) -> None:
    """From the matrix above, on paper."""
    matrix = cl.confusion_matrix(TRUTH, ANSWER, 3)
    assert pytest.approx(expected) == tuple(figure(matrix, k) for k in range(3))  # type: ignore[operator]


def test_class_that_nobody_has_is_neither_found_nor_missed() -> None:
    """Its recall is nan, not 0; its specificity is judged by the others."""
    matrix = cl.confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3)
    assert math.isnan(cl.recall(matrix, 1))
    assert (0.0, 0.5) == (cl.precision(matrix, 1), cl.specificity(matrix, 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40))
def test_auc_is_the_mann_whitney_statistic_and_the_area_under_the_curve(pairs: list[tuple[bool, int]]) -> None:
    """Ties included: scipy's U over n m, and the trapezoids under our own ROC curve."""
    positive, score = np.array([p for p, _ in pairs]), np.array([s for _, s in pairs], dtype=float)
    actual = cl.auc(positive, score)
    if positive.all() or not positive.any():
        assert math.isnan(actual)
        return
    u = mannwhitneyu(score[positive], score[~positive]).statistic
    assert pytest.approx(u / (positive.sum() * (~positive).sum())) == actual
    false_rate, true_rate, _ = cl.roc_curve(positive, score)
    assert pytest.approx(np.trapezoid(true_rate, false_rate)) == actual
    assert pytest.approx(1 - actual) == cl.auc(positive, -score)


def test_calibration_error_by_hand() -> None:
    """Two bins: 0.25 said of which half are true (4 cases), 0.95 said of which all are true (1 case)."""
    positive = np.array([True, True, False, False, True])
    probability = np.array([0.25, 0.25, 0.25, 0.25, 0.95])
    assert pytest.approx((4 * 0.25 + 1 * 0.05) / 5) == cl.calibration_error(positive, probability)
    bins = cl.reliability(positive, probability)
    assert ([4, 1], [0.5, 1.0]) == (bins.count.tolist(), bins.frequency.tolist())
    with pytest.raises(ValueError, match="between 0 and 1"):
        cl.reliability(positive, probability + 1)


def test_who_says_what_is_true_is_calibrated() -> None:
    """Probabilities that come true as often as said leave an error of the order of the sampling alone."""
    rng = np.random.default_rng(1)
    probability = rng.random(20_000)
    assert cl.calibration_error(rng.random(20_000) < probability, probability) < 0.015
    assert cl.calibration_error(rng.random(20_000) < probability**3, probability) > 0.15


def test_threshold_is_chosen_from_both_kinds() -> None:
    """Youden's best cut, or the highest cut that keeps the recall; one kind alone is refused."""
    positive = np.array([True, True, True, False, False, False])
    score = np.array([0.9, 0.8, 0.15, 0.5, 0.2, 0.1])
    assert 0.8 == cl.choose_threshold(positive, score)
    assert 0.15 == cl.choose_threshold(positive, score, least_recall=0.9)
    with pytest.raises(ValueError, match="one kind is missing"):
        cl.choose_threshold(positive[:3], score[:3])


def _ball(centre: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip((14, 40, 40), SPACING, strict=True)), indexing="ij")
    return (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius_mm**2


def test_boxes_agree_as_computed_by_hand() -> None:
    """Two 4 x 4 x 4 boxes, one voxel apart along x: Dice 3/4, and the surface's farthest voxel is one voxel away."""
    first = np.zeros((8, 8, 8), dtype=bool)
    first[2:6, 2:6, 2:6] = True
    second = np.roll(first, 1, axis=2)
    assert 0.75 == dice(first, second)
    assert pytest.approx(0.7) == hausdorff_95_mm(first, second, SPACING)
    assert 1.0 == surface_dice(first, second, SPACING, 0.7)
    # Of 56 surface voxels each those of the shared sides (x 3 to 5) have distance 0: 3 x 12 on the rings, plus the
    # inner 2 x 2 of none of the end faces.
    assert pytest.approx(36 / 56) == surface_dice(first, second, SPACING, 0.1)


@settings(max_examples=25, deadline=None)
@given(
    centres=st.tuples(*[st.tuples(st.floats(12, 22), st.floats(9, 18), st.floats(9, 18))] * 2),
    radii=st.tuples(st.floats(3, 8), st.floats(3, 8)),
)
def test_surface_distances_equal_those_by_brute_force(
    centres: tuple[tuple[float, float, float], ...], radii: tuple[float, float]
) -> None:
    """Every pair of surface voxels compared; the largest distance is scikit-image's Hausdorff distance of them."""
    masks = [_ball(centre, radius) for centre, radius in zip(centres, radii, strict=True)]
    points = []
    for mask in masks:
        padded = np.pad(mask, 1)
        inner = np.all([np.roll(padded, shift, axis) for axis in range(3) for shift in (-1, 1)], axis=0)
        points.append((np.argwhere(padded & ~inner) - 1) * SPACING)
    distances = cdist(points[0], points[1])
    there, back = surface_distances_mm(masks[0], masks[1], SPACING)
    np.testing.assert_allclose(np.sort(there), np.sort(distances.min(axis=1)), atol=1e-9)
    np.testing.assert_allclose(np.sort(back), np.sort(distances.min(axis=0)), atol=1e-9)
    expected = max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))
    assert pytest.approx(expected) == hausdorff_95_mm(masks[0], masks[1], SPACING)
    unit = [np.zeros((14, 40, 40), dtype=bool) for _ in range(2)]
    for image, where in zip(unit, points, strict=True):
        image[tuple(np.rint(where / SPACING).astype(int).T)] = True
    largest = max(np.max(d) for d in surface_distances_mm(masks[0], masks[1], (1.0, 1.0, 1.0)))
    assert pytest.approx(hausdorff_distance(unit[0], unit[1])) == largest
    near = np.concatenate([distances.min(axis=1), distances.min(axis=0)]) <= 1.0
    assert pytest.approx(near.mean()) == surface_dice(masks[0], masks[1], SPACING, 1.0)
    assert dice(masks[0], masks[1]) == dice(masks[1], masks[0])


def test_empty_masks_have_no_distance() -> None:
    """Both empty: not defined; one empty: the worst answer."""
    empty, ball = np.zeros((14, 40, 40), dtype=bool), _ball((16, 14, 14), 5)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(hausdorff_95_mm(empty, empty, SPACING))
    assert (0.0, math.inf, 0.0) == (
        dice(empty, ball),
        hausdorff_95_mm(empty, ball, SPACING),
        surface_dice(ball, empty, SPACING, 1.0),
    )


def test_bland_altman_by_hand() -> None:
    """Differences 1, 2, 3: bias 2, sd 1; as shares of 10, 20, 10: 0.1, 0.1, 0.3."""
    measured, true = np.array([11.0, 22.0, 13.0]), np.array([10.0, 20.0, 10.0])
    agreement = bland_altman(measured, true)
    assert (2.0, 1.0, 3) == (agreement.bias, agreement.sd, agreement.n)
    assert pytest.approx((0.04, 3.96)) == (agreement.low, agreement.high)
    assert pytest.approx(0.5 / 3) == bland_altman(measured, true, relative=True).bias
    with pytest.raises(ValueError, match="not above 0"):
        bland_altman(measured, np.array([1.0, 0.0, 1.0]), relative=True)


def _target(x: float, diameter: float = 8.0, *, kind: str = "free", counts: bool = True) -> Target:
    return Target(centre_lps_mm=(x, 0, 0), diameter_mm=diameter, volume_ml=0.3, kind=kind, counts=counts)


def _found(x: float, confidence: float, volume: float = 0.3) -> Detection:
    return Detection(centre_lps_mm=(x, 0, 0), volume_ml=volume, confidence=confidence)


def test_each_target_takes_its_surest_finding() -> None:
    """A second finding on a target that has one is no false positive; one that reaches nothing is."""
    matches = match([_target(0), _target(50)], [_found(3, 0.4), _found(1, 0.9, 0.33), _found(30, 0.8)])
    assert [(True, True), (True, False), (False, True)] == [
        (each.target is not None, each.detection is not None) for each in matches
    ]
    assert (1.0, 0.9) == (matches[0].distance_mm, matches[0].detection.confidence)  # type: ignore[union-attr]
    assert pytest.approx(0.1) == matches[0].volume_error


@pytest.mark.parametrize(
    ("diameter", "distance", "hit"), [(8, 3.9, True), (8, 4.1, False), (4, 2.9, True), (4, 3.1, False)]
)
def test_reach_is_the_radius_or_three_millimetres(diameter: float, distance: float, hit: bool) -> None:
    """A finding beyond the reach is both a miss and a false positive."""
    matches = match([_target(0, diameter)], [_found(distance, 0.5)])
    assert hit == (len(matches) == 1)


def test_what_does_not_count_is_forgiven_either_way() -> None:
    """Found or not, a target that does not count gives no row."""
    assert () == match([_target(0, counts=False)], [_found(0, 0.5)])
    assert () == match([_target(0, counts=False)], [])


def _studies() -> list[StudyResult]:
    first = match([_target(0, 5), _target(50, 12, kind="pleural")], [_found(0, 0.9), _found(50, 0.3), _found(99, 0.5)])
    second = match([_target(0, 7)], [_found(77, 0.7)])
    return [StudyResult(study="a", matches=first), StudyResult(study="b", matches=second)]


def test_froc_by_hand() -> None:
    """Confidences 0.9 hit, 0.7 false, 0.5 false, 0.3 hit; three targets, two studies."""
    curve = froc(_studies())
    assert [0.9, 0.7, 0.5, 0.3] == curve.confidence.tolist()
    assert [0.0, 0.5, 1.0, 1.0] == curve.false_per_study.tolist()
    assert pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3]) == curve.recall.tolist()
    assert (pytest.approx(1 / 3), pytest.approx(2 / 3)) == (curve.recall_at(0.5), curve.recall_at(1.0))
    assert (0.7, 0.3) == (curve.threshold_at(0.5), curve.threshold_at(8))
    assert (
        pytest.approx((3 * 1 / 3 + 4 * 2 / 3) / 7) == curve.score == froc_figures(_studies(), repeats=20)["score"].value
    )


def test_recall_is_told_by_size_and_kind() -> None:
    """low < diameter <= high; a kind that is not there has no figure."""
    studies = _studies()
    assert [pytest.approx(2 / 3), 1.0, 0.0, 1.0, None] == [
        recall_of(studies).value,
        recall_of(studies, high_mm=6).value,
        recall_of(studies, low_mm=6, high_mm=10).value,
        recall_of(studies, kind="pleural").value,
        recall_of(studies, kind="vessel").value,
    ]


def test_wilson_interval_of_the_textbook() -> None:
    """Twenty of twenty: 0.839 to 1 (Newcombe 1998, table I); 81 of 263: 0.2553 to 0.3662."""
    assert pytest.approx((0.8389, 1.0), abs=1e-4) == wilson(20, 20)
    assert pytest.approx((0.2553, 0.3662), abs=1e-4) == wilson(81, 263)


def test_perfect_proportion_has_no_perfect_interval() -> None:
    """Twenty of twenty leaves doubt; a figure of nothing is none."""
    figure = proportion(np.ones(20), np.ones(20))
    assert (1.0, 20) == (figure.value, figure.n)
    assert figure.low is not None
    assert figure.low < 0.85
    assert proportion(np.zeros(3), np.zeros(3)).value is None


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    """95 % of normal means lie within 1.96 sd / sqrt(n); the same seed gives the same interval."""
    values = np.random.default_rng(3).normal(size=400)
    figure = bootstrap(lambda drawn: float(values[drawn].mean()), 400)
    half = 1.96 * values.std() / 20
    assert figure.value == pytest.approx(values.mean())
    assert pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half) == (figure.low, figure.high)
    assert figure == bootstrap(lambda drawn: float(values[drawn].mean()), 400)


def test_interval_is_of_units_and_not_of_what_lies_in_them() -> None:
    """Ten findings each in ten studies that are all right or all wrong: far wider than a hundred coins."""
    hits = np.array([10.0, 0.0] * 5)
    clustered = proportion(hits, np.full(10, 10.0))
    coins = wilson(50, 100)
    assert clustered.high - clustered.low > 2 * (coins[1] - coins[0])  # type: ignore[operator]
