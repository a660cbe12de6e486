"""The gate: reasons, in words, why an image or a result is not believed. Pure; the bounds come from the manifest.

Three times on the way through `predict`: the source before anything is computed, the prepared image before the network
runs (cheap, so most of what is no patient ends here), the findings before they leave. Each check stands for itself and
all are made, so a reason names everything that speaks against an image. A reason is read by an administrator and a
radiologist: it gives the number that was measured, the bound that it broke, and what the bound stands for.

A check either withholds the result or flags it: a flagged one leaves with a note in its report. What a check measures
stands in `appearance`; the numbers of training are computed by `model-build statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from dicom_node.findings import Finding
from dicom_node.imaging.appearance import MEASURES, ImageMeasure, MaskMeasure, View, mask_view_of, percentiles_of
from dicom_node.imaging.geometry import Grid, slice_distance_mm
from dicom_node.imaging.volume import Volume

Action: TypeAlias = Literal["withhold", "flag"]

_SAMPLE = 200_000
"""Voxels looked at for distinct values; spread evenly over the volume."""


class Check(Protocol):
    """What the gate reads of one [[plausibility.check]]."""

    @property
    def measure(self) -> str:
        """Return the name in `appearance.MEASURES`."""
        ...

    @property
    def low(self) -> float | None:
        """Return the least plausible value."""
        ...

    @property
    def high(self) -> float | None:
        """Return the largest plausible value."""
        ...

    @property
    def action(self) -> Action:
        """Return what happens outside."""
        ...

    @property
    def because(self) -> str:
        """Return what the bound stands for, in words."""
        ...


class Statistics(Protocol):
    """What the gate reads of [plausibility.statistics]."""

    @property
    def percentiles(self) -> tuple[float, ...]:
        """Return which percentiles of the body are compared, 0 to 100."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Return their means over the training images, over the median of each."""
        ...

    @property
    def sd(self) -> tuple[float, ...]:
        """Return their standard deviations."""
        ...

    @property
    def max_distance(self) -> float:
        """Return the largest plausible distance, in standard deviations."""
        ...

    @property
    def action(self) -> Action:
        """Return what happens beyond."""
        ...


class Bounds(Protocol):
    """What the gate reads of [plausibility]; None: not bounded."""

    @property
    def min_distinct_values(self) -> int | None:
        """Return how many different values the source must hold."""
        ...

    @property
    def total_volume_ml(self) -> tuple[float, float] | None:
        """Return the least and largest volume of all findings together."""
        ...

    @property
    def min_findings(self) -> int:
        """Return the least number of findings."""
        ...

    @property
    def max_findings(self) -> int | None:
        """Return the largest number of findings."""
        ...

    @property
    def source_extent_mm(self) -> tuple[float, float] | None:
        """Return the shortest and longest extent of the source volume along its slice axis."""
        ...

    @property
    def source_mean(self) -> tuple[float, float] | None:
        """Return the least and largest mean of the prepared array."""
        ...

    @property
    def refuse_touching_border(self) -> bool:
        """Return whether a mask must not touch the border of the volume."""
        ...

    @property
    def check(self) -> Sequence[Check]:
        """Return the checks of appearance."""
        ...

    @property
    def statistics(self) -> Statistics | None:
        """Return the statistics of training."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """One thing that speaks against an image or a result."""

    reason: str
    action: Action = "withhold"


def withheld_because(doubts: Iterable[Doubt]) -> str | None:
    """Return the reasons that withhold, joined; None when none does."""
    return "; ".join(doubt.reason for doubt in doubts if doubt.action == "withhold") or None


def flags(doubts: Iterable[Doubt]) -> tuple[str, ...]:
    """Return the notes that go with a result which is delivered in spite of doubts."""
    return tuple(f"flagged: {doubt.reason}" for doubt in doubts if doubt.action == "flag")


def doubts_about_source(bounds: Bounds, volume: Volume) -> tuple[Doubt, ...]:
    """Return what speaks against the images as they came, before anything is made of them."""
    doubts: list[Doubt | None] = []
    if (least := bounds.min_distinct_values) is not None:
        step = max(1, volume.array.size // _SAMPLE)
        n_values = len(np.unique(volume.array.reshape(-1)[::step]))
        if n_values < least:
            reason = (
                f"the images hold {n_values} different values; at least {least} are plausible: noise alone has more"
            )
            doubts.append(Doubt(reason=reason))
    extent = volume.grid.shape[0] * slice_distance_mm(volume.grid)
    doubts.append(_outside("the images cover", extent, bounds.source_extent_mm, "mm across their slices"))
    return _kept(doubts)


def doubts_about_input(bounds: Bounds, prepared_mean: float, view: View | None) -> tuple[Doubt, ...]:
    """Return what speaks against the prepared image; `view` is there when the manifest says what the body is."""
    mean = _outside("the prepared image has a mean of", prepared_mean, bounds.source_mean, "", digits=3)
    doubts: list[Doubt | None] = [mean]
    if view is not None:
        for check in bounds.check:
            measure = MEASURES[check.measure]
            if isinstance(measure, ImageMeasure):
                doubts.append(_broken(check, measure, measure.of(view)))
        if bounds.statistics is not None:
            doubts.append(_far(bounds.statistics, view))
    return _kept(doubts)


def doubts_about_result(
    bounds: Bounds, findings: Sequence[Finding], source: Grid, view: View | None
) -> tuple[Doubt, ...]:
    """Return what speaks against the findings. Nothing found is plausible where no least number is declared."""
    if len(findings) < bounds.min_findings:
        return (Doubt(reason=f"there are {len(findings)} findings; at least {bounds.min_findings} are plausible"),)
    if not findings:
        return ()
    doubts: list[Doubt | None] = []
    if bounds.max_findings is not None and len(findings) > bounds.max_findings:
        doubts.append(Doubt(reason=f"there are {len(findings)} findings; at most {bounds.max_findings} are plausible"))
    total_ml = sum(finding.measurements.volume_ml for finding in findings)
    doubts.append(_outside("the findings have a volume of", total_ml, bounds.total_volume_ml, "ml"))
    if bounds.refuse_touching_border:
        doubts.append(_cut(findings, source.shape))
    checks = [(check, MEASURES[check.measure]) for check in bounds.check]
    if view is not None and any(isinstance(measure, MaskMeasure) for _, measure in checks):
        mask = mask_view_of(tuple(findings), source, view)
        for check, measure in checks:
            if isinstance(measure, MaskMeasure):
                doubts.append(_broken(check, measure, measure.of(view, mask)))
    return _kept(doubts)


def distance_in_sds(statistics: Statistics, view: View) -> float:
    """Return how far the intensities lie from those of training: root mean square of all, in standard deviations."""
    return float(np.sqrt(np.mean(_deviations(statistics, view) ** 2)))


def _deviations(statistics: Statistics, view: View) -> np.ndarray:
    found = percentiles_of(view, statistics.percentiles)
    return np.asarray((found - statistics.mean) / statistics.sd)


def _far(statistics: Statistics, view: View) -> Doubt | None:
    distance = distance_in_sds(statistics, view)
    if distance <= statistics.max_distance:
        return None
    if math.isnan(distance):
        return Doubt(reason="there is no body whose intensities could be compared", action=statistics.action)
    worst = int(np.argmax(np.abs(_deviations(statistics, view))))
    percentile = statistics.percentiles[worst]
    value = float(percentiles_of(view, (percentile,))[0])
    return Doubt(
        reason=(
            f"the intensities lie {distance:.1f} standard deviations from those of training (percentile "
            f"{percentile:g} of the body is {value:.2f} of its median, in training {statistics.mean[worst]:.2f} +- "
            f"{statistics.sd[worst]:.2f}); at most {statistics.max_distance:g} are plausible"
        ),
        action=statistics.action,
    )


def _broken(check: Check, measure: ImageMeasure | MaskMeasure, value: float) -> Doubt | None:
    """Return the doubt of a check; what cannot be measured, as where there is no body, is never plausible."""
    low = -math.inf if check.low is None else check.low
    high = math.inf if check.high is None else check.high
    if low <= value <= high:
        return None
    unit = f" {measure.unit}" if measure.unit else ""
    if math.isnan(value):
        return Doubt(reason=f"{measure.words} not measurable; {check.because}", action=check.action)
    if check.low is None:
        interval = f"at most {high:g}{unit}"
    elif check.high is None:
        interval = f"at least {low:g}{unit}"
    else:
        interval = f"{low:g} to {high:g}{unit}"
    shown = f"{value:.0f}" if measure.unit else f"{value:.2f}"
    return Doubt(reason=f"{measure.words} {shown}{unit}; {interval} is plausible: {check.because}", action=check.action)


def _outside(
    what: str, value: float, interval: tuple[float, float] | None, unit: str, *, digits: int = 1
) -> Doubt | None:
    # The ends belong to the interval, whatever the rounding.
    hair = 1e-9 * abs(value)
    if interval is None or interval[0] - hair <= value <= interval[1] + hair:
        return None
    low, high = interval
    words = f" {unit}" if unit else ""
    return Doubt(reason=f"{what} {value:.{digits}f}{words}; {low:g} to {high:g}{words} is plausible")


def _cut(findings: Sequence[Finding], shape: tuple[int, int, int]) -> Doubt | None:
    for finding in findings:
        if side := _border(finding, shape):
            return Doubt(reason=f"{finding.tracking_identifier} touches {side}, so part of it may be missing")
    return None


def _border(finding: Finding, shape: tuple[int, int, int]) -> str | None:
    """Return which border the mask touches, in words."""
    (first, top, left), held = finding.mask.offset, finding.mask.array.shape
    if first == 0:
        return "the first slice"
    if first + held[0] == shape[0]:
        return "the last slice"
    if top == 0 or left == 0 or top + held[1] == shape[1] or left + held[2] == shape[2]:
        return "the edge of the field of view"
    return None


def _kept(doubts: Iterable[Doubt | None]) -> tuple[Doubt, ...]:
    return tuple(doubt for doubt in doubts if doubt is not None)
