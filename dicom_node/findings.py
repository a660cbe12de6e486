"""What a plugin says about a study: findings with masks, measurements and places, on the grid of the source images.

Pure values: made by `predict`, read by `report`, the demo and the commands; a finding crosses from the inferring
child process to the worker as it stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.study import Frame

Outcome: TypeAlias = Literal["result", "nothing_found", "withheld"]
"""`withheld`: the plausibility gate kept the result back. An input that must not be read is an error instead."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Mask:
    """A binary mask, cropped to its bounding box so that many may overlap without costing a volume each.

    `array` is bool, axes (Z, Y, X); `offset` is the index (z, y, x) of its first voxel in the full grid.
    """

    offset: tuple[int, int, int]
    array: NDArray[np.bool_]

    @property
    def n_voxels(self) -> int:
        """Return the number of voxels set."""
        return int(np.count_nonzero(self.array))

    def on_grid(self, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        """Return the mask on the full grid, a new bool array of `shape` (Z, Y, X)."""
        full = np.zeros(shape, dtype=bool)
        window = tuple(slice(start, start + size) for start, size in zip(self.offset, self.array.shape, strict=True))
        full[window] = self.array
        return full


def on_images(mask: Mask, frames: Sequence[Frame]) -> Mask:
    """Return the part of a mask that images show: empty on every slice that was interpolated.

    `frames` are those of the full grid, slice 0 first. The mask itself when no slice of it was interpolated.
    """
    first = mask.offset[0]
    invented = [z for z in range(len(mask.array)) if frames[first + z].interpolated]
    if not invented:
        return mask
    array = mask.array.copy()
    array[invented] = False
    return Mask(offset=mask.offset, array=array)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A diameter on one slice, in pixel coordinates (column, row) of its frame, voxel centres being whole numbers."""

    slice_index: int
    start: tuple[float, float]
    end: tuple[float, float]
    length_mm: float


PERCENTILES = (5, 10, 25, 75, 90, 95)
"""Which percentiles of the intensities are measured; the 50th is the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Every measurement of one finding; units, codes and sources stand in imaging/quantities.py. None: not defined."""

    n_voxels: int
    volume_ml: float
    """Voxels counted: n x voxel volume."""
    volume_mesh_ml: float | None
    diameter_3d_mm: float
    diameter_long: Line
    """Longest in-plane diameter over all slices."""
    diameter_short: Line | None
    """Longest perpendicular to it on the same slice."""
    surface_mm2: float | None
    sphericity: float | None
    mean: float
    sd: float
    minimum: float
    maximum: float
    median: float
    intensity_unit: str
    """UCUM: "[hnsf'U]" for CT, "{SUVbw}g/ml" or the stored unit for PET, "1" where the numbers are arbitrary."""
    centroid_lps_mm: tuple[float, float, float]
    slice_range: tuple[int, int]
    """First and last slice, both inclusive."""
    major_axis_mm: float | None = None
    minor_axis_mm: float | None = None
    least_axis_mm: float | None = None
    elongation: float | None = None
    """Minor by major axis: 1 is round."""
    flatness: float | None = None
    """Least by major axis: 0 is a plane."""
    border_irregularity: float | None = None
    """Surface by that of the convex hull: 1 for what is convex and smooth, more the rougher the border."""
    solidity: float | None = None
    """Volume by that of the convex hull."""
    percentiles: tuple[float, ...] = ()
    """At `PERCENTILES`, in their order; empty when they were not measured."""

    @property
    def variance(self) -> float:
        """Return the square of `sd`, in the square of the intensities' unit."""
        return self.sd**2

    @property
    def asphericity(self) -> float | None:
        """Return how much more surface it has than a sphere of its volume, as a fraction."""
        return None if not self.sphericity else 1 / self.sphericity - 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Finding:
    """One thing found: its place, its shape, its numbers."""

    number: int
    """1-based within the result; also its segment number in the SEG."""
    label: str
    """Label of a [[segment]] of the manifest."""
    mask: Mask
    measurements: Measurements
    contour: tuple[tuple[float, float], ...]
    """Closed outline, pixel coordinates (column, row), on the slice of the longest diameter; last point = first."""
    probability: float | None = None
    """Mean of the model's probability inside the mask, 0 to 1."""

    @property
    def tracking_identifier(self) -> str:
        """Return the name by which radiologists and the SEG call it."""
        return f"{self.label} {self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What made the findings: enough to make them again."""

    plugin: str
    plugin_version: str
    model_sha256: str
    spec_sha256: str
    engine: str
    """Fingerprint of the engine that ran, for example "onnxruntime 1.31.1 CPU fp32"."""
    duration_s: float
    """Inference alone."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Findings:
    """The whole answer of one plugin about one input."""

    outcome: Outcome
    reason: str | None
    """Why withheld; None otherwise."""
    findings: tuple[Finding, ...]
    frames: tuple[Frame, ...]
    """Frame of each slice of the source grid, slice 0 first: masks index into it."""
    affine_lps: NDArray[np.float64]
    """4x4, voxel (x, y, z) of the source grid -> LPS mm, from positions."""
    provenance: Provenance
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (Z, Y, X) of the source grid."""
        return len(self.frames), self.frames[0].rows, self.frames[0].columns
