"""Stacks that are still arriving: gaps, promised numbers, and what is neither whole nor lacking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dicom_node.routing import stack_of
from tests.unit.rules_case import header

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
SAGITTAL = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]


def planes(places: Sequence[float], orientation: Sequence[float] = AXIAL) -> list[list[list[float]]]:
    """Return axial planes at these heights."""
    return [[[0.0, 0.0, float(z)], list(orientation)] for z in places]


@pytest.mark.parametrize(
    ("places", "n_missing", "is_regular"),
    [
        (range(10), 0, True),
        (range(9, -1, -1), 0, True),
        ([0, 1, 2, 4, 5], 1, False),
        ([0, 1, 2, 6, 7], 3, False),
        ([0, 2.5, 5.004, 7.5], 0, True),  # rounding of positions
        ([0, 1, 2.4, 3, 4.7], 0, False),  # no lattice: nobody knows what is missing
        ([*range(5), *range(5)], 0, True),  # two echoes
        ([*range(5), *range(3)], 2, False),  # the second echo is still coming
        ([3], 0, False),
        ([], 0, False),
    ],
)
def test_gaps_are_seen(places: Sequence[float], n_missing: int, is_regular: bool) -> None:
    """Regular stacks are whole, gaps are counted, and what is irregular by nature is not judged."""
    stack = stack_of(planes(places), len(list(places)), header(Modality="MR"))
    assert (n_missing, is_regular) == (stack.n_missing, stack.is_regular)


def test_localizer_is_neither_whole_nor_lacking() -> None:
    """Several orientations are no stack."""
    stack = stack_of([*planes(range(3)), *planes(range(3), SAGITTAL)], 6, header(Modality="MR"))
    assert (False, 0) == (stack.is_regular, stack.n_missing)


def test_every_other_slice_is_half_a_stack() -> None:
    """An interleaved series sends odd slices first; the scanner says how far apart they are."""
    stack = stack_of(planes(range(0, 20, 2)), 10, header(Modality="MR", SpacingBetweenSlices=1))
    assert (False, 9) == (stack.is_regular, stack.n_missing)


def test_slices_far_apart_are_not_vouched_for() -> None:
    """HRCT leaves gaps on purpose: nothing is said to be missing, and nothing to be whole."""
    stack = stack_of(planes(range(0, 100, 10)), 10, header(Modality="CT", SliceThickness=1))
    assert (False, 0) == (stack.is_regular, stack.n_missing)


def ge(n: int) -> dict[str, Any]:
    """Return a header in which GE's scanner says how many images the series has."""
    private = {"00250010": {"vr": "LO", "Value": ["GEMS_SERS_01"]}, "00251007": {"vr": "SL", "Value": [n]}}
    return header(Modality="CT") | private


@pytest.mark.parametrize(
    ("head", "places", "claimed"),
    [
        (header(ImagesInAcquisition=12), range(10), 12),
        (header(NumberOfSlices=10), range(10), 10),
        (header(NumberOfSlices=10), [*range(10), *range(10)], 20),
        (ge(40), range(10), 40),
        (ge(40), range(41), None),  # of something else
        (ge(0), range(10), None),
        (header(ImagesInAcquisition=12), [], None),  # without positions nobody knows what is counted
        (header(), range(10), None),
    ],
)
def test_scanners_number_is_what_fits(head: dict[str, Any], places: Sequence[float], claimed: int | None) -> None:
    """A number below what is here is not of this series."""
    stack = stack_of(planes(places), len(list(places)), head)
    assert claimed == stack.n_claimed
    assert stack.is_claim_met == (claimed == len(list(places)))


def test_private_number_needs_its_creator() -> None:
    """(0025,1007) of another vendor means something else."""
    head = ge(12) | {"00250010": {"vr": "LO", "Value": ["SOMEBODY"]}}
    assert stack_of(planes(range(10)), 10, head).n_claimed is None
