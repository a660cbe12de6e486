"""What the plausibility gate can measure of an image and of a mask: numbers with a physical meaning, no judgement.

Between `preprocess` and `plausibility`, which holds these numbers against the bounds of a manifest. Everything is seen
through a `View`: the prepared image along the patient's axes in voxels of about 2 mm, so that neither the scanner's
resolution nor the order of its slices changes a number, and a volume costs about a second.

Detail is what remains between two Gaussians (Marr and Hildreth 1980): folded cortex and bone have much of it in every
part of a head, a phantom has it at a few edges only, and noise has more below that scale than in it.

It never reads a header: who lies about the content lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations, product
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import Finding
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.mask import union
from dicom_node.imaging.preprocess import Prepared, interpolate

_VIEW_MM = 2.0
"""Edge of a voxel of the view: finer than the cortex (2.5 mm), coarse enough for a second's work."""
_FINE_MM, _DETAIL_MM, _BROAD_MM = 2.0, 6.0, 18.0
"""Standard deviations of the Gaussians: detail lies between the first two, form between the last two."""
_INSIDE_MM = 8.0
"""How far within the surface of the body the inside begins: skin and its fat lie above."""
_DETAILED = 0.04
"""From this share of the mean on, a deviation from the surroundings is detail: above what noise leaves of itself."""
_RIM_MM, _CORE_MM = (1.0, 5.0), (8.0, 20.0)
"""Depths within a mask that `mask_core_contrast` compares: of a brain, cortex with its fluid and white matter."""
Plane: TypeAlias = tuple[float, float, float]
"""A mirror plane near the middle: two angles in degrees and an offset in mm."""
_MIRROR_POINTS = 6000
_MIRROR_ANGLES_DEG = tuple(range(-20, 21, 5))
_MIRROR_OFFSETS_MM = tuple(range(-16, 17, 4))
_MIRROR_OVERLAP = 0.6
"""Share of the points that must fall inside again, or a mirror plane says nothing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """A prepared image seen coarsely. Arrays have the axes (towards S, towards P, towards L)."""

    values: NDArray[np.float32]
    """In the unit of the prepared image."""
    grid: Grid
    """Of `values`."""
    body: NDArray[np.bool_]
    """The largest connected part above the manifest's threshold, its holes filled."""
    inside: NDArray[np.bool_]
    """The body without its outermost 8 mm."""
    grain: NDArray[np.float32]
    """What is finer than 2 mm."""
    detail: NDArray[np.float32]
    """What lies between 2 and 6 mm."""
    form: NDArray[np.float32]
    """What lies between 6 and 18 mm."""


@dataclass(frozen=True, eq=False, kw_only=True)
class MaskView:
    """All findings together as seen in a view."""

    array: NDArray[np.bool_]
    """On the view's grid."""
    sphericity: float
    """Of the largest finding."""


def view_of(prepared: Prepared, body_above: float) -> View:
    """Return the view of a prepared image; `body_above` is in its unit."""
    values, grid = _coarse(*_along_patient(prepared.array, prepared.grid))
    spacing = grid.spacing_mm
    labels, n_parts = ndimage.label(values > body_above)
    body: NDArray[np.bool_] = np.zeros(values.shape, dtype=bool)
    if n_parts:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        body = ndimage.binary_fill_holes(labels == int(sizes.argmax()))
    # One voxel of air around: a body cut by the field has its surface there.
    depth = ndimage.distance_transform_edt(np.pad(body, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    fine, middle, broad = (
        ndimage.gaussian_filter(values, [sigma / step for step in spacing], mode="nearest")
        for sigma in (_FINE_MM, _DETAIL_MM, _BROAD_MM)
    )
    return View(
        values=values,
        grid=grid,
        body=body,
        inside=depth > _INSIDE_MM,
        grain=values - fine,
        detail=fine - middle,
        form=middle - broad,
    )


def mask_view_of(findings: tuple[Finding, ...], source: Grid, view: View) -> MaskView:
    """Return the findings, whose masks lie on `source`, as seen in the view; there is at least one."""
    mask = union([finding.mask for finding in findings])
    z, y, x = mask.offset
    affine = source.affine_lps.copy()
    affine[:3, 3] += affine[:3, :3] @ (x, y, z)
    cropped = Grid(shape=mask.array.shape, affine_lps=affine)
    array = interpolate(mask.array.astype(np.float32), cropped, view.grid, order=1, outside=0.0) >= 0.5
    largest = max(findings, key=lambda finding: finding.measurements.n_voxels)
    return MaskView(array=array, sphericity=largest.measurements.sphericity or 0.0)


def percentiles_of(view: View, percentiles: tuple[float, ...]) -> NDArray[np.float64]:
    """Return percentiles of the values inside the body over their median; NaN where there is no body."""
    values = view.values[view.body]
    if not values.size or not np.median(values) > 0:
        return np.full(len(percentiles), np.nan)
    return np.asarray(np.percentile(values, percentiles) / np.median(values), dtype=np.float64)


def _along_patient(array: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the array with its axes nearest to S, P, L, and the 3x4 of its axes (columns, array order) and origin."""
    axes = grid.affine_lps[:3, 2::-1]
    cosines = axes / np.linalg.norm(axes, axis=0)
    order = max(permutations(range(3)), key=lambda order: sum(abs(cosines[2 - k, order[k]]) for k in range(3)))
    array, axes, origin = array.transpose(order), axes[:, order].copy(), grid.affine_lps[:3, 3].copy()
    for axis in range(3):
        if axes[2 - axis, axis] < 0:
            origin += axes[:, axis] * (array.shape[axis] - 1)
            axes[:, axis] *= -1
            array = np.flip(array, axis=axis)
    return array, np.column_stack([axes, origin])


def _coarse(array: NDArray[np.float32], affine: NDArray[np.float64]) -> tuple[NDArray[np.float32], Grid]:
    """Return means over blocks of about `_VIEW_MM`; what does not fill a block at an end is left out."""
    axes, origin = affine[:, :3], affine[:, 3]
    steps = np.linalg.norm(axes, axis=0)
    block = [max(1, min(round(_VIEW_MM / step), size)) for step, size in zip(steps, array.shape, strict=True)]
    shape = tuple(size // along for size, along in zip(array.shape, block, strict=True))
    kept = array[tuple(slice(0, size * along) for size, along in zip(shape, block, strict=True))]
    parts = kept.reshape([length for pair in zip(shape, block, strict=True) for length in pair])
    full = np.eye(4)
    full[:3, 2::-1] = axes * block
    full[:3, 3] = origin + axes @ ((np.array(block) - 1) / 2)
    means = parts.mean(axis=(1, 3, 5), dtype=np.float32)
    return np.ascontiguousarray(means), Grid(shape=means.shape, affine_lps=full)


# What is measured of an image


def _extent_mm(where: NDArray[np.bool_], grid: Grid, axis: int) -> float:
    """Return how far `where` reaches along an axis, in mm; 0 when it is empty."""
    held = np.flatnonzero(where.any(axis=tuple(other for other in range(3) if other != axis)))
    return float((held[-1] - held[0] + 1) * grid.spacing_mm[axis]) if held.size else 0.0


def _volume_ml(where: NDArray[np.bool_], grid: Grid) -> float:
    return float(np.count_nonzero(where)) * grid.voxel_volume_mm3 / 1000


def _box_fill(where: NDArray[np.bool_]) -> float:
    """Return the share of its bounding box that is filled: 1 for a box, 0.79 for a cylinder, 0.52 for a ball."""
    boxes = ndimage.find_objects(where.view(np.uint8), max_label=1)
    return float(where[boxes[0]].mean()) if boxes and boxes[0] is not None else float("nan")


def _mean(view: View, where: NDArray[np.bool_]) -> float:
    return float(view.values[where].mean(dtype=np.float64)) if where.any() else float("nan")


def _body_median(view: View) -> float:
    return float(np.median(view.values[view.body])) if view.body.any() else float("nan")


def _detail_share(view: View, where: NDArray[np.bool_]) -> float:
    """Return the share of voxels that differ from their surroundings by more than 4 % of the mean value."""
    return float((np.abs(view.detail[where]) > _DETAILED * abs(_mean(view, where))).mean()) if where.any() else np.nan


def _grain(view: View, where: NDArray[np.bool_]) -> float:
    """Return the strength of what is finer than 2 mm over that of detail: noise has the more the finer."""
    detail = float(np.sqrt(np.mean(view.detail[where].astype(np.float64) ** 2))) if where.any() else 0.0
    return float(np.sqrt(np.mean(view.grain[where].astype(np.float64) ** 2))) / detail if detail else float("nan")


def _mirror_correlation(array: NDArray[np.float32], where: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Return how far the left is the mirror image of the right: the best correlation over planes near the middle."""
    held = np.argwhere(where)
    if len(held) < 100:
        return float("nan")
    step = np.array(spacing)
    middle = held.mean(axis=0) * step
    points = held[:: max(1, len(held) // _MIRROR_POINTS)] * step - middle
    here = array[tuple(held[:: max(1, len(held) // _MIRROR_POINTS)].T)].astype(np.float64)
    limits = np.array(array.shape) - 1

    def score(plane: Plane) -> float:
        roll, yaw, offset = plane
        normal = np.array([np.tan(np.radians(roll)), np.tan(np.radians(yaw)), 1.0])
        normal /= np.linalg.norm(normal)
        there = points - 2 * (points @ normal - offset)[:, np.newaxis] * normal
        index = np.rint((there + middle) / step).astype(np.intp)
        kept = np.all((index >= 0) & (index <= limits), axis=1)
        index = np.minimum(np.maximum(index, 0), limits)
        kept &= where[index[:, 0], index[:, 1], index[:, 2]]
        if np.count_nonzero(kept) < _MIRROR_OVERLAP * len(kept):
            return -1.0
        a, b = here[kept], array[index[kept, 0], index[kept, 1], index[kept, 2]].astype(np.float64)
        a, b = a - a.mean(), b - b.mean()
        size = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / size if size else -1.0

    planes: Iterable[Plane] = product(_MIRROR_ANGLES_DEG, _MIRROR_ANGLES_DEG, _MIRROR_OFFSETS_MM)
    best = max(planes, key=score)
    for angle, shift in ((2.5, 2.0), (1.2, 1.0)):
        roll, yaw, offset = (
            (value - by, value, value + by) for value, by in zip(best, (angle, angle, shift), strict=True)
        )
        planes = product(roll, yaw, offset)
        best = max(planes, key=score)
    return score(best)


# What is measured of a mask


def _crown_distance_mm(view: View, mask: MaskView) -> float:
    """Return how far the top of the mask lies below the top of the body, towards the feet."""
    tops = [np.flatnonzero(where.any(axis=(1, 2))) for where in (view.body, mask.array)]
    if not all(top.size for top in tops):
        return float("nan")
    return float((tops[0][-1] - tops[1][-1]) * view.grid.spacing_mm[0])


def _face_ahead_mm(view: View, mask: MaskView) -> float:
    """Return how far in front of the mask's centre the tissue below that centre and outside of the mask lies."""
    if not mask.array.any():
        return float("nan")
    height, depth, _ = ndimage.center_of_mass(mask.array)
    around = view.body & ~mask.array
    around[round(height) :] = False
    if not around.any():
        return float("nan")
    return float((depth - np.nonzero(around)[1].mean()) * view.grid.spacing_mm[1])


def _core_contrast(view: View, mask: MaskView) -> float:
    """Return the mean of the core of the mask less that of its rim, over the mean of both."""
    depth = ndimage.distance_transform_edt(np.pad(mask.array, 1), sampling=view.grid.spacing_mm)[1:-1, 1:-1, 1:-1]
    rim, core = (_mean(view, (depth > low) & (depth <= high)) for low, high in (_RIM_MM, _CORE_MM))
    return float(2 * (core - rim) / (abs(core) + abs(rim))) if abs(core) + abs(rim) else float("nan")


def _share_of_body(view: View, mask: MaskView) -> float:
    body = np.count_nonzero(view.body)
    return float(np.count_nonzero(mask.array & view.body)) / body if body else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMeasure:
    """Something to be measured of an image before the network runs."""

    words: str
    """Before the number."""
    unit: str
    of: Callable[[View], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskMeasure:
    """Something to be measured of the findings, all together."""

    words: str
    unit: str
    of: Callable[[View, MaskView], float]


Measure: TypeAlias = ImageMeasure | MaskMeasure

MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "body_left_right_mm": ImageMeasure(
            words="from left to right the body measures", unit="mm", of=lambda v: _extent_mm(v.body, v.grid, 2)
        ),
        "body_front_back_mm": ImageMeasure(
            words="from front to back the body measures", unit="mm", of=lambda v: _extent_mm(v.body, v.grid, 1)
        ),
        "body_head_feet_mm": ImageMeasure(
            words="from head to feet the body measures", unit="mm", of=lambda v: _extent_mm(v.body, v.grid, 0)
        ),
        "body_volume_ml": ImageMeasure(
            words="the body has a volume of", unit="ml", of=lambda v: _volume_ml(v.body, v.grid)
        ),
        "body_median": ImageMeasure(
            words="the median of the body, in the unit of the prepared image, is", unit="", of=_body_median
        ),
        "body_box_fill": ImageMeasure(
            words="the share of its box that the body fills is", unit="", of=lambda v: _box_fill(v.body)
        ),
        "detail_share": ImageMeasure(
            words="the share of the inside with detail of 2 to 6 mm is",
            unit="",
            of=lambda v: _detail_share(v, v.inside),
        ),
        "grain": ImageMeasure(
            words="what is finer than 2 mm, over what is coarser, is", unit="", of=lambda v: _grain(v, v.inside)
        ),
        "mirror_detail": ImageMeasure(
            words="left and right correlate in their detail by",
            unit="",
            of=lambda v: _mirror_correlation(v.detail, v.body, v.grid.spacing_mm),
        ),
        "mirror_form": ImageMeasure(
            words="left and right correlate in their form by",
            unit="",
            of=lambda v: _mirror_correlation(v.form, v.body, v.grid.spacing_mm),
        ),
        "mask_left_right_mm": MaskMeasure(
            words="from left to right the mask measures", unit="mm", of=lambda v, m: _extent_mm(m.array, v.grid, 2)
        ),
        "mask_front_back_mm": MaskMeasure(
            words="from front to back the mask measures", unit="mm", of=lambda v, m: _extent_mm(m.array, v.grid, 1)
        ),
        "mask_head_feet_mm": MaskMeasure(
            words="from head to feet the mask measures", unit="mm", of=lambda v, m: _extent_mm(m.array, v.grid, 0)
        ),
        "mask_share_of_body": MaskMeasure(words="the mask's share of the body is", unit="", of=_share_of_body),
        "mask_crown_distance_mm": MaskMeasure(
            words="the top of the mask lies below that of the body by", unit="mm", of=_crown_distance_mm
        ),
        "mask_face_ahead_mm": MaskMeasure(
            words="the tissue below the centre of the mask lies in front of it by", unit="mm", of=_face_ahead_mm
        ),
        "mask_core_contrast": MaskMeasure(
            words="the core of the mask is brighter than its rim by the fraction", unit="", of=_core_contrast
        ),
        "mask_detail_share": MaskMeasure(
            words="the share of the mask with detail of 2 to 6 mm is",
            unit="",
            of=lambda v, m: _detail_share(v, m.array),
        ),
        "mask_mirror_detail": MaskMeasure(
            words="left and right of the mask correlate in their detail by",
            unit="",
            of=lambda v, m: _mirror_correlation(v.detail, m.array, v.grid.spacing_mm),
        ),
        "mask_mirror_form": MaskMeasure(
            words="left and right of the mask correlate in their form by",
            unit="",
            of=lambda v, m: _mirror_correlation(v.form, m.array, v.grid.spacing_mm),
        ),
        "mask_sphericity": MaskMeasure(words="the sphericity of the mask is", unit="", of=lambda _, m: m.sphericity),
    }
)
"""Name in [[plausibility.check]] -> what it is."""
