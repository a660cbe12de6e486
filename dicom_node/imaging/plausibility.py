"""The gate: reasons, in words, why an input or a result is not believed. Pure; the bounds come from the manifest.

Last before a result leaves `predict`. A reason is read by an administrator and a radiologist, so it gives the number
that was measured and the bound that it broke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dicom_node.findings import Finding
from dicom_node.imaging.geometry import Grid, slice_distance_mm


class Bounds(Protocol):
    """What the gate reads of [plausibility]; None: not bounded."""

    @property
    def total_volume_ml(self) -> tuple[float, float] | None:
        """Return the least and largest volume of all findings together."""
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


def implausible_input(bounds: Bounds, source: Grid, prepared_mean: float) -> str | None:
    """Return why this input is not judged, None when nothing speaks against it."""
    extent = source.shape[0] * slice_distance_mm(source)
    return _outside("the images cover", extent, bounds.source_extent_mm, "mm across their slices") or _outside(
        "the prepared image has a mean of", prepared_mean, bounds.source_mean, "", digits=3
    )


def implausible_result(bounds: Bounds, findings: Sequence[Finding], shape: tuple[int, int, int]) -> str | None:
    """Return why these findings are withheld, None when they are plausible; nothing found always is.

    `shape` is (Z, Y, X) of the source grid.
    """
    if not findings:
        return None
    if bounds.max_findings is not None and len(findings) > bounds.max_findings:
        return f"there are {len(findings)} findings; at most {bounds.max_findings} are plausible"
    total_ml = sum(finding.measurements.volume_ml for finding in findings)
    if reason := _outside("the findings have a volume of", total_ml, bounds.total_volume_ml, "ml"):
        return reason
    if bounds.refuse_touching_border:
        for finding in findings:
            if side := _border(finding, shape):
                return f"{finding.tracking_identifier} touches {side}, so part of it may be missing"
    return None


def _outside(
    what: str, value: float, interval: tuple[float, float] | None, unit: str, *, digits: int = 1
) -> str | None:
    # The ends belong to the interval, whatever the rounding.
    hair = 1e-9 * abs(value)
    if interval is None or interval[0] - hair <= value <= interval[1] + hair:
        return None
    low, high = interval
    words = f" {unit}" if unit else ""
    return f"{what} {value:.{digits}f}{words}; {low:g} to {high:g}{words} is plausible"


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
