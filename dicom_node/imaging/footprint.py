"""How much memory a job will take, from shapes alone: asked before anything large is made. Pure arithmetic.

Beside `preprocess`, `sliding` and `inverse`, whose arrays it counts. Not counted: the process itself (about 200 MB with
its libraries), and what measuring single findings takes, which depends on what is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.preprocess import oriented_grid, padded_shape, right_angled
from dicom_node.imaging.steps import CropForeground, Enhance, Fit, Orient, Pad, Resample, Step

Shape: TypeAlias = tuple[int, int, int]

_READING = 9
"""Bytes a voxel of the source while it is read: twice the float32 volume and a little."""
_PREPARING = 16
"""Bytes a voxel of the larger of a step's input and result: both, and copies that are smoothed or sorted."""
_EQUALISING = 64
"""The same for contrast-limited equalisation of a whole volume, which scikit-image does in float64 (measured)."""
_RETURNING = 6
"""Bytes a voxel of the source on the way back: a label and the winner's probability."""
_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What the steps will make of a grid."""

    preparing_bytes: int
    """At the peak of all steps, the source volume not counted."""
    shape: Shape | None
    """Of the prepared array; None when that depends on the values (`crop_foreground`)."""


def planned(grid: Grid, steps: Sequence[Step]) -> Planned:
    """Return how large the arrays become that `prepare` makes of a volume on `grid`."""
    peak, is_known = 0, True
    for step in steps:
        before = math.prod(grid.shape)
        if isinstance(step, Orient):
            grid = oriented_grid(grid, step.axes)
        elif isinstance(step, Resample):
            grid = right_angled(grid, step.spacing_mm, align=step.align)
        elif isinstance(step, Fit):
            grid, is_known = Grid(shape=step.shape, affine_lps=grid.affine_lps), True
        elif isinstance(step, Pad):
            grid = Grid(shape=padded_shape(grid.shape, step), affine_lps=grid.affine_lps)
        elif isinstance(step, CropForeground):
            is_known = False
        costly = isinstance(step, Enhance) and (step.method, step.scope) == ("clahe", "volume")
        peak = max(peak, (_EQUALISING if costly else _PREPARING) * max(before, math.prod(grid.shape)))
    return Planned(preparing_bytes=peak, shape=grid.shape if is_known else None)


def peak_bytes(
    source: Shape, *, preparing_bytes: int, prepared: Shape | None, n_classes: int, held_voxels: int, network_bytes: int
) -> int:
    """Return about how many bytes a job takes at its peak.

    Parameters
    ----------
    prepared
        Shape of the array that the network reads; None: not known yet, so that inferring is left out.
    held_voxels
        Of each class at once (`sliding.held_voxels`, or the whole array).
    network_bytes
        Of one run (`Engine.memory_bytes`); 0 where the model is not loaded.
    """
    n_source = math.prod(source)
    preparing = _FLOAT * n_source + preparing_bytes
    n_prepared = math.prod(prepared) if prepared else 0
    inferring = (_FLOAT + _RETURNING) * n_source + _FLOAT * n_prepared
    # One class more: the sum of the windows' weights.
    inferring += network_bytes + _FLOAT * (n_classes + 1) * held_voxels
    return max(_READING * n_source, preparing, inferring if prepared else 0)
