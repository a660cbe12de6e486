"""The gate: what it lets through, what it keeps back, and the words it uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dicom_node.findings import Finding, Mask
from dicom_node.imaging import measure
from dicom_node.imaging.plausibility import implausible_input, implausible_result
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
    ],
)
def test_result_is_judged(bounds: dict[str, Any], findings: list[Finding], reason: str | None) -> None:
    """Bounds include their ends, nothing found is never implausible, and a reason gives both numbers."""
    assert reason == implausible_result(Plausibility(**bounds), findings, SHAPE)


@pytest.mark.parametrize(
    ("bounds", "mean", "reason"),
    [
        ({}, 9e9, None),
        ({"source_extent_mm": (50, 200)}, 0.0, None),
        (
            {"source_extent_mm": (120, 200)},
            0.0,
            "the images cover 100.0 mm across their slices; 120 to 200 mm across their slices is plausible",
        ),
        ({"source_mean": (0.1, 0.3)}, 0.2, None),
        ({"source_mean": (0.1, 0.3)}, 0.45, "the prepared image has a mean of 0.450; 0.1 to 0.3 is plausible"),
    ],
)
def test_input_is_judged(bounds: dict[str, Any], mean: float, reason: str | None) -> None:
    """Extent and mean against what the network was trained on."""
    assert reason == implausible_input(Plausibility(**bounds), make_grid(SHAPE, (1.0, 1.0, 10.0)), mean)


def test_extent_of_a_tilted_stack_is_along_its_normal() -> None:
    """A sheared stack is not longer for its tilt."""
    grid = make_grid((10, 8, 8), (1.0, 1.0, 10.0), shear=1.0)
    assert implausible_input(Plausibility(source_extent_mm=(99.9, 100.1)), grid, 0.0) is None
