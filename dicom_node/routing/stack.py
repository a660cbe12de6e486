"""Is anything missing from a stack of slices? What positions and headers say of a series that is still arriving.

Pure. Positions show gaps; a number that the scanner wrote shows a truncated end. Neither is a must: a series without
positions has no gap, and one whose header promises nothing has plausible ends. What is irregular by nature (localizers,
radial stacks, variable distances) is said to be neither whole nor lacking.

Sources: DICOM PS3.3 C.7.6.2.1.1 (positions), C.7.6.1 (Images in Acquisition), C.8.9.4 (Number of Slices); private
numbers as dcm4che and dcm2niix know them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dicom_node.config.schema import Condition
from dicom_node.routing.attributes import text_of, values_in
from dicom_node.study import DicomJson

SAME_POSITION_MM: Final = 1e-3
_SAME_NORMAL_COSINE: Final = 1 - 1e-4
_OFF_LATTICE: Final = 0.1
"""Of a slice distance: steps may be off a whole multiple by so much."""
_SPARSE: Final = 1.5
"""Slices this many times further apart than the scanner says are not all here: half of an interleaved series, say."""

_IMAGES: Final = (
    Condition(keyword="ImagesInAcquisition", exists=True),
    Condition(tag="(0025,xx07)", private_creator="GEMS_SERS_01", exists=True),  # GE: images in series
)
_POSITIONS: Final = (
    Condition(keyword="NumberOfSlices", exists=True),
    Condition(tag="(0021,xx4f)", private_creator="GEMS_RELA_01", exists=True),  # GE: locations in acquisition
    Condition(tag="(2001,xx18)", private_creator="Philips Imaging DD 001", exists=True),  # Philips: number of slices
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What a series' positions and header say of its being whole."""

    n_images: int
    n_positions: int
    """Different positions along the normal; 0 without geometry."""
    is_regular: bool
    """One orientation, equal distances, each position equally often: nothing is missing in between."""
    n_missing: int
    """Slices that a regular stack would have in between, at least."""
    n_claimed: int | None = None
    """How many images the scanner says that there are; None when it says nothing that fits."""

    @property
    def is_claim_met(self) -> bool:
        """Whether there are as many images as the scanner says, regularly placed."""
        return self.n_claimed is not None and self.n_images == self.n_claimed and self.is_regular

    @property
    def n_short(self) -> int:
        """How many images fewer there are than the scanner says."""
        return 0 if self.n_claimed is None else max(0, self.n_claimed - self.n_images)


def stack_of(planes: Sequence[Sequence[Sequence[float]]], n_images: int, header: DicomJson) -> Stack:
    """Return what `planes`, [position, orientation] of each frame in LPS mm, and the series' header say."""
    places = _along_normal(planes)
    counts = Counter(places)
    often = max(counts.values(), default=0)
    missing = sum(often - count for count in counts.values())
    steps = [after - before for before, after in pairwise(sorted(counts))]
    step, in_gaps, is_even = _spacing(steps)
    missing += in_gaps * often
    if step and is_even and not in_gaps:
        missing += _between(step, len(steps), header) * often
    is_whole_set = bool(steps) and len(places) == len(planes)
    claimed = _claimed(header, n_images, len(counts)) if is_whole_set else None
    return Stack(
        n_images=n_images,
        n_positions=len(counts),
        is_regular=is_whole_set and is_even and not missing and not _is_sparse(step, header),
        n_missing=missing if is_even and is_whole_set else 0,
        n_claimed=claimed,
    )


def _along_normal(planes: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Return the position of each plane along the normal of the first one; those of other orientations are left out."""
    if not planes:
        return []
    normal = _normal(planes[0][1])
    along = [
        sum(a * b for a, b in zip(position, normal, strict=True))
        for position, orientation in planes
        if abs(sum(a * b for a, b in zip(_normal(orientation), normal, strict=True))) >= _SAME_NORMAL_COSINE
    ]
    merged: list[float] = []
    for place in sorted(along):
        merged.append(merged[-1] if merged and place - merged[-1] <= SAME_POSITION_MM else place)
    return merged


def _normal(orientation: Sequence[float]) -> tuple[float, float, float]:
    ax, ay, az, bx, by, bz = orientation
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


def _spacing(steps: Sequence[float]) -> tuple[float, int, bool]:
    """Return the step, how many slices are missing in gaps, and whether all steps are multiples of it."""
    if not steps:
        return 0.0, 0, False
    step = sorted(steps)[len(steps) // 10]
    multiples = [round(one / step) for one in steps]
    is_even = all(
        multiple >= 1 and abs(one - multiple * step) <= max(_OFF_LATTICE * step * multiple, 0.05)
        for one, multiple in zip(steps, multiples, strict=True)
    )
    return step, sum(multiple - 1 for multiple in multiples) if is_even else 0, is_even


def _between(step: float, n_steps: int, header: DicomJson) -> int:
    """Return how many slices are missing when a regular stack is a multiple of what the scanner says apart."""
    claimed = _number(text_of("SpacingBetweenSlices", header))
    multiple = round(step / claimed) if claimed else 1
    is_multiple = multiple >= 2 and claimed is not None and abs(step - multiple * claimed) <= _OFF_LATTICE * claimed
    return (multiple - 1) * n_steps if is_multiple else 0


def _is_sparse(step: float, header: DicomJson) -> bool:
    thickness = _number(text_of("SliceThickness", header))
    return bool(thickness) and step > _SPARSE * abs(thickness or 0)


def _claimed(header: DicomJson, n_images: int, n_positions: int) -> int | None:
    """Return the number of images that the header promises: its own, or that of positions times images at each.

    A number below what is here already is of something else (one acquisition of several, a volume of many).
    """
    numbers = [_number(value) for one in _IMAGES for value in values_in(one, header)[:1]]
    each = n_images / n_positions if n_positions else 0
    numbers += [
        number * each for one in _POSITIONS for value in values_in(one, header)[:1] if (number := _number(value))
    ]
    fitting = [round(number) for number in numbers if number and number >= n_images]
    return min(fitting) if fitting else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else abs(float(text))
    except ValueError:
        return None
