"""The gate: what it lets through, what it keeps back, and the words it uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from dicom_node.findings import Finding, Mask
from dicom_node.imaging import Grid, Prepared, crop_mask, measure
from dicom_node.imaging.appearance import MEASURES, ImageMeasure, View, view_of
from dicom_node.imaging.plausibility import (
    doubts_about_input,
    doubts_about_result,
    doubts_about_source,
    flags,
    withheld_because,
)
from dicom_node.plugin_api import Plausibility
from tests.unit.imaging_case import make_grid, make_volume

SHAPE = (10, 12, 14)


def _finding(offset: tuple[int, int, int] = (4, 4, 4), size: int = 2, number: int = 1) -> Finding:
    grid = make_grid(SHAPE, (10.0, 10.0, 10.0))
    mask = Mask(offset=offset, array=np.ones((size, size, size), dtype=bool))
    measurements = measure(mask, make_volume(np.zeros(SHAPE), grid))
    return Finding(number=number, label="Object", mask=mask, measurements=measurements, contour=())


@pytest.mark.parametrize(
    ("bounds", "findings", "reason"),
    [
        ({}, [_finding()], None),
        ({"total_volume_ml": (5, 20)}, [_finding()], None),
        ({"total_volume_ml": (8, 8)}, [_finding()], None),
        (
            {"total_volume_ml": (9, 20)},
            [_finding()],
            "the findings have a volume of 8.0 ml; 9 to 20 ml is plausible",
        ),
        (
            {"total_volume_ml": (5, 15)},
            [_finding(), _finding((7, 7, 7), number=2)],
            "the findings have a volume of 16.0 ml; 5 to 15 ml is plausible",
        ),
        ({"total_volume_ml": (9, 20), "max_findings": 1, "refuse_touching_border": True}, [], None),
        (
            {"max_findings": 1},
            [_finding(), _finding((7, 7, 7), number=2)],
            "there are 2 findings; at most 1 are plausible",
        ),
        ({"max_findings": 2}, [_finding(), _finding((7, 7, 7), number=2)], None),
        ({"refuse_touching_border": True}, [_finding()], None),
        (
            {"refuse_touching_border": True},
            [_finding((0, 4, 4))],
            "Object 1 touches the first slice, so part of it may be missing",
        ),
        (
            {"refuse_touching_border": True},
            [_finding(), _finding((8, 4, 4), number=2)],
            "Object 2 touches the last slice, so part of it may be missing",
        ),
        (
            {"refuse_touching_border": True},
            [_finding((4, 4, 12))],
            "Object 1 touches the edge of the field of view, so part of it may be missing",
        ),
        ({"refuse_touching_border": False}, [_finding((0, 0, 0))], None),
        ({"min_findings": 1}, [], "there are 0 findings; at least 1 are plausible"),
        ({"min_findings": 1}, [_finding()], None),
        (
            {"total_volume_ml": (9, 20), "refuse_touching_border": True},
            [_finding((0, 4, 4))],
            "the findings have a volume of 8.0 ml; 9 to 20 ml is plausible; "
            "Object 1 touches the first slice, so part of it may be missing",
        ),
    ],
)
def test_result_is_judged(bounds: dict[str, Any], findings: list[Finding], reason: str | None) -> None:
    """Bounds include their ends, nothing found is never implausible, and a reason gives both numbers."""
    doubts = doubts_about_result(Plausibility(**bounds), findings, make_grid(SHAPE), None)
    assert reason == withheld_because(doubts)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({}, None),
        ({"source_extent_mm": (50, 200)}, None),
        (
            {"source_extent_mm": (120, 200)},
            "the images cover 100.0 mm across their slices; 120 to 200 mm across their slices is plausible",
        ),
        ({"min_distinct_values": 3}, None),
        (
            {"min_distinct_values": 4},
            "the images hold 3 different values; at least 4 are plausible: noise alone has more",
        ),
    ],
)
def test_source_is_judged(bounds: dict[str, Any], reason: str | None) -> None:
    """Extent and number of values, before anything is computed."""
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3
    volume = make_volume(array, make_grid(SHAPE, (1.0, 1.0, 10.0)))
    assert reason == withheld_because(doubts_about_source(Plausibility(**bounds), volume))


@pytest.mark.parametrize(
    ("bounds", "mean", "reason"),
    [
        ({}, 9e9, None),
        ({"source_mean": (0.1, 0.3)}, 0.2, None),
        ({"source_mean": (0.1, 0.3)}, 0.45, "the prepared image has a mean of 0.450; 0.1 to 0.3 is plausible"),
    ],
)
def test_mean_of_the_input_is_judged(bounds: dict[str, Any], mean: float, reason: str | None) -> None:
    """The mean against that of training."""
    assert reason == withheld_because(doubts_about_input(Plausibility(**bounds), mean, None))


def test_extent_of_a_tilted_stack_is_along_its_normal() -> None:
    """A sheared stack is not longer for its tilt."""
    volume = make_volume(np.zeros((10, 8, 8)), make_grid((10, 8, 8), (1.0, 1.0, 10.0), shear=1.0))
    assert doubts_about_source(Plausibility(source_extent_mm=(99.9, 100.1)), volume) == ()


def _block() -> View:
    """Return the view of a block of 60 x 40 x 30 mm (S, P, L), half of it twice as bright."""
    array = np.zeros((80, 60, 50), dtype=np.float32)
    array[10:70, 10:50, 10:40] = 1.0
    array[10:40, 10:50, 10:40] = 2.0
    return view_of(Prepared(array=array, grid=make_grid(array.shape)), 0.5)


def _check(**values: Any) -> dict[str, Any]:
    return {"body_above": 0.5, "check": [{"because": "a block is so", **values}]}


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"measure": "body_head_feet_mm", "low": 59, "high": 61}, None),
        ({"measure": "body_front_back_mm", "low": 40, "high": 40}, None),
        ({"measure": "body_left_right_mm", "low": 29, "high": 31}, None),
        (
            {"measure": "body_head_feet_mm", "low": 70, "high": 90},
            "from head to feet the body measures 60 mm; 70 to 90 mm is plausible: a block is so",
        ),
        (
            {"measure": "body_volume_ml", "high": 70},
            "the body has a volume of 72 ml; at most 70 ml is plausible: a block is so",
        ),
        (
            {"measure": "body_box_fill", "high": 0.9},
            "the share of its box that the body fills is 1.00; at most 0.9 is plausible: a block is so",
        ),
        ({"measure": "mask_head_feet_mm", "low": 999}, None),  # measured after the network
    ],
)
def test_image_is_judged_by_each_check(check: dict[str, Any], reason: str | None) -> None:
    """A reason has the number, the bound and what the bound stands for; bounds include their ends."""
    array = np.zeros((80, 60, 50), dtype=np.float32)
    array[10:70, 10:50, 10:40] = 1.0
    view = view_of(Prepared(array=array, grid=make_grid(array.shape)), 0.5)
    assert reason == withheld_because(doubts_about_input(Plausibility(**_check(**check)), 0.0, view))


def _measured(array: np.ndarray, name: str) -> float:
    measure_of = MEASURES[name]
    assert isinstance(measure_of, ImageMeasure)
    return measure_of.of(view_of(Prepared(array=array.astype(np.float32), grid=make_grid(array.shape)), 0.5))


def test_detail_and_grain_tell_anatomy_from_plain_and_from_noise() -> None:
    """Folds of 12 mm are detail, a plain block has next to none, and noise is finer than detail."""
    rng = np.random.default_rng(0)
    places = np.indices((120, 100, 80))
    block = np.zeros((120, 100, 80))
    block[4:-4, 4:-4, 4:-4] = 1.0
    folds = block * (1 + 0.5 * np.sin(2 * np.pi * places / 24.0).prod(axis=0))
    assert _measured(block, "detail_share") < 0.3
    assert _measured(folds, "detail_share") > 0.4
    assert _measured(folds, "grain") < 1.2
    assert _measured(block * (1 + 0.5 * rng.standard_normal(block.shape)), "grain") > 2.5


def test_a_mirror_image_is_found_when_the_head_is_turned() -> None:
    """Left and right agree in a body that is symmetrical about its own tilted plane, and do not in another."""
    rng = np.random.default_rng(1)
    half = ndimage.gaussian_filter(rng.standard_normal((90, 90, 45)), 3) * 100 + 3
    other = ndimage.gaussian_filter(rng.standard_normal((90, 90, 45)), 3) * 100 + 3
    alike, unlike = np.concatenate([half, half[..., ::-1]], axis=2), np.concatenate([half, other], axis=2)
    ball = ((np.indices(alike.shape) - 44.5) ** 2).sum(axis=0) < 40**2
    turned = ndimage.rotate(alike, 12, axes=(1, 2), reshape=False, order=1)
    assert _measured(np.clip(alike, 0.6, None) * ball, "mirror_detail") > 0.9
    assert _measured(np.clip(turned, 0.6, None) * ball, "mirror_detail") > 0.7
    assert _measured(np.clip(unlike, 0.6, None) * ball, "mirror_detail") < 0.4


def test_what_is_flagged_is_delivered_with_a_note() -> None:
    """A check may only warn: no reason to withhold, but a note that says it."""
    check = _check(measure="body_volume_ml", high=70, action="flag")
    doubts = doubts_about_input(Plausibility(**check), 0.0, _block())
    assert withheld_because(doubts) is None
    assert flags(doubts) == ("flagged: the body has a volume of 72 ml; at most 70 ml is plausible: a block is so",)


def test_what_cannot_be_measured_is_not_plausible() -> None:
    """An image without a body passes no check and no comparison."""
    array = np.zeros((40, 40, 40), dtype=np.float32)
    view = view_of(Prepared(array=array, grid=make_grid(array.shape)), 0.5)
    bounds = Plausibility(**_check(measure="detail_share", low=0.0), statistics=STATISTICS)  # type: ignore[arg-type]
    reason = withheld_because(doubts_about_input(bounds, 0.0, view)) or ""
    assert "not measurable; a block is so" in reason
    assert "there is no body whose intensities could be compared" in reason


def test_intensities_far_from_training_are_named() -> None:
    """The distance is the root mean square over the percentiles, and the worst of them stands in the reason."""
    bounds = Plausibility(body_above=0.5, statistics=STATISTICS)  # type: ignore[arg-type]
    # Half of the block is 1, half 2: over the median of 1.5, percentiles 10 and 90 are 0.67 and 1.33.
    assert doubts_about_input(bounds, 0.0, _block()) == ()
    far = Plausibility(body_above=0.5, statistics=STATISTICS | {"mean": [0.667, 0.333]})  # type: ignore[arg-type]
    reason = withheld_because(doubts_about_input(far, 0.0, _block()))
    assert reason == (
        "the intensities lie 7.1 standard deviations from those of training (percentile 90 of the body is 1.33 of its "
        "median, in training 0.33 +- 0.10); at most 3 are plausible"
    )


STATISTICS: dict[str, Any] = {"percentiles": [10, 90], "mean": [0.667, 1.333], "sd": [0.1, 0.1], "max_distance": 3}


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        ({"measure": "mask_head_feet_mm", "low": 19, "high": 21}, None),
        (
            {"measure": "mask_crown_distance_mm", "low": 40},
            "the top of the mask lies below that of the body by 20 mm; at least 40 mm is plausible: a block is so",
        ),
        (
            {"measure": "mask_share_of_body", "high": 0.1},
            "the mask's share of the body is 0.11; at most 0.1 is plausible: a block is so",
        ),
        (
            {"measure": "mask_face_ahead_mm", "low": 5},
            "the tissue below the centre of the mask lies in front of it by 0 mm; at least 5 mm is plausible: "
            "a block is so",
        ),
        (
            {"measure": "mask_core_contrast", "high": -0.1},
            "the core of the mask is brighter than its rim by the fraction 0.00; at most -0.1 is plausible: "
            "a block is so",
        ),
    ],
)
def test_mask_is_judged_by_each_check(check: dict[str, Any], reason: str | None) -> None:
    """A cube of 20 mm in a block of 60 x 40 x 30 mm, 20 mm below its top, in patient axes wherever the array points."""
    array = np.zeros((80, 60, 50), dtype=np.float32)
    array[10:70, 10:50, 10:40] = 1.0
    mask = np.zeros(array.shape, dtype=bool)
    mask[30:50, 20:40, 10:30] = True
    grid = make_grid(array.shape)
    # The same turned: the first array axis runs towards the feet, rows and columns are swapped.
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (0, 1, 0), (1, 0, 0), (0, 0, -1)
    affine[:3, 3] = grid.to_world(np.array([0.0, 0.0, 79.0]))
    turned = Grid(shape=(80, 50, 60), affine_lps=affine)
    for each, image, where in (
        (grid, array, mask),
        (turned, array[::-1].transpose(0, 2, 1), mask[::-1].transpose(0, 2, 1)),
    ):
        view = view_of(Prepared(array=np.ascontiguousarray(image), grid=each), 0.5)
        cropped = crop_mask(np.ascontiguousarray(where))
        assert cropped is not None
        measured = measure(cropped, make_volume(image, each))
        finding = Finding(number=1, label="Cube", mask=cropped, measurements=measured, contour=(), probability=0.8)
        doubts = doubts_about_result(Plausibility(**_check(**check)), [finding], each, view)
        assert reason == withheld_because(doubts)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"body_above": 0.5}, "only then"),
        ({"check": [{"measure": "grain", "low": 1, "because": "x"}]}, "body_above"),
        ({"body_above": 0.5, "check": [{"measure": "grains", "low": 1, "because": "x"}]}, "no measure 'grains'"),
        ({"body_above": 0.5, "check": [{"measure": "grain", "because": "x"}]}, "needs `low`, `high` or both"),
        (
            {"body_above": 0.5, "check": [{"measure": "grain", "low": 2, "high": 1, "because": "x"}]},
            "low is above high",
        ),
        ({"body_above": 0.5, "check": [{"measure": "grain", "low": 1, "because": "x"}] * 2}, "checked once"),
        ({"body_above": 0.5, "statistics": STATISTICS | {"sd": [1.0]}}, "one number each"),
    ],
)
def test_what_bounds_nothing_is_refused_by_name(table: dict[str, Any], words: str) -> None:
    """A manifest whose gate would not do what it says is refused."""
    with pytest.raises(ValueError, match=words):
        Plausibility(**table)
