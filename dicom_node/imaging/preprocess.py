"""From a source volume to the array that a network reads, and back: the ordered steps of `steps`, carried out.

Between the volume and `sliding` or the engine on the way in; between the probability and `mask` on the way out. Every
step keeps the affine of what it made, so the way back needs two grids and nothing else: a network's voxel is found on
the source by millimetres, never by the name of a plane or by undoing flips one by one. A prepared array has three
axes in any direction; its grid follows the one convention of `geometry` (the last array axis is "x").

Affines are float64, voxels float32. Interpolation runs slab by slab, so it costs one slab beside its result. It
never reads a file and never changes the volume that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.errors import RefusedInputError
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.steps import (
    Clip,
    CropForeground,
    Denoise,
    Enhance,
    Fit,
    GreyFromColour,
    Normalise,
    Orient,
    Pad,
    Resample,
    Step,
)
from dicom_node.imaging.volume import Volume

Box: TypeAlias = tuple[slice, slice, slice]
"""Start and stop along the three array axes, step 1."""

_DIRECTIONS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Letter -> (axis of LPS, sign): PS3.3 C.7.6.2.1.1."""

_SHRINK_NEEDS_SMOOTHING = 1.5
"""Below this factor linear interpolation itself reads nearly every voxel."""

_NO_CONTRAST = 1e-7
"""Relative: less than float32 can tell apart."""

_SLAB_VOXELS = 4_000_000
"""Voxels interpolated at a time: about 100 MB with scipy's temporary arrays."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """What a network reads: a float32 array of three axes, and its grid in patient space (LPS, mm)."""

    array: NDArray[np.float32]
    grid: Grid


def prepare(volume: Volume, steps: Sequence[Step]) -> Prepared:
    """Return the volume after the steps, in their order.

    Raises
    ------
    RefusedInputError
        The array is constant where a step divides by its range.
    """
    prepared = Prepared(array=volume.array, grid=volume.grid)
    for step in steps:
        prepared = _STEPS[type(step)](prepared, step)
    return Prepared(array=np.ascontiguousarray(prepared.array, dtype=np.float32), grid=prepared.grid)


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box that covers an array of `shape`."""
    z, y, x = (slice(0, size) for size in shape)
    return z, y, x


def box_on(target: Grid, grid: Grid, low: Sequence[float], high: Sequence[float]) -> Box:
    """Return the smallest box of `target` that holds every voxel centre between two corners on `grid`.

    `low` and `high` are array coordinates on `grid`, both inclusive; they need not be whole.
    """
    corners = np.array(list(product(*zip(low, high, strict=True))), dtype=np.float64)[:, ::-1]
    voxels = target.to_voxel(grid.to_world(corners))[:, ::-1]
    # A hair outwards: a centre that lies exactly on the edge must not be lost to rounding.
    first = np.ceil(voxels.min(axis=0) - 1e-6).astype(int)
    last = np.floor(voxels.max(axis=0) + 1e-6).astype(int)
    z, y, x = (
        slice(int(np.clip(start, 0, size)), int(np.clip(stop + 1, 0, size)))
        for start, stop, size in zip(first, last, target.shape, strict=True)
    )
    return z, y, x


def interpolate(
    array: NDArray[np.float32],
    source: Grid,
    target: Grid,
    *,
    order: Literal[0, 1, 3],
    outside: float,
    box: Box | None = None,
    coarse: tuple[int, Literal[0, 1]] | None = None,
) -> NDArray[np.float32]:
    """Return `array`, which lies on `source`, at the voxel centres of (a box of) `target`, float32.

    Centres beyond the outer faces of the source's voxels become `outside`; between the outermost centres and those
    faces the edge value holds.

    Parameters
    ----------
    coarse
        An axis of the array and the order along it, below `order`: the value of the nearest slice across that axis,
        or a linear mixture of the two nearest.
    """
    box = box or whole_box(target.shape)
    matrix, offset = index_map(source, target)
    offset = offset + matrix @ [part.start for part in box]
    shape = tuple(max(part.stop - part.start, 0) for part in box)
    result = np.empty(shape, dtype=np.float32)
    if order == 3:
        array = ndimage.spline_filter(array, order=3, output=np.float32, mode="mirror")
    step = max(1, _SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        slab = result[start : start + step]
        at = offset + matrix[:, 0] * start
        if coarse is not None:
            _interpolate_coarse(array, matrix, at, slab, order, *coarse)
        else:
            ndimage.affine_transform(
                array,
                np.diagonal(matrix) if _is_diagonal(matrix, shape) else matrix,
                offset=at,
                output_shape=slab.shape,
                output=slab,
                order=order,
                mode="mirror" if order == 3 else "nearest",
                prefilter=False,
            )
        _fill_outside(slab, matrix, at, array.shape, outside)
    return result


def _interpolate_coarse(
    array: NDArray[np.float32],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    slab: NDArray[np.float32],
    order: int,
    axis: int,
    axis_order: Literal[0, 1],
) -> None:
    """Write into `slab` values of whole slices across `axis`: a spline through all voxels goes through each of them."""
    places = np.tensordot(matrix, np.indices(slab.shape, dtype=np.float64), axes=1) + offset[:, None, None, None]
    along = np.clip(places[axis], 0, array.shape[axis] - 1)
    mode = "mirror" if order == 3 else "nearest"

    def at_slice(number: NDArray[np.float64]) -> NDArray[np.float32]:
        places[axis] = number
        result = ndimage.map_coordinates(array, places, output=np.float32, order=order, mode=mode, prefilter=False)
        return np.asarray(result)

    if axis_order == 0:
        slab[...] = at_slice(np.floor(along + 0.5))
        return
    below = np.floor(along)
    slab[...] = at_slice(below)
    share = (along - below).astype(np.float32)
    slab += share * (at_slice(np.minimum(below + 1, array.shape[axis] - 1)) - slab)


def index_map(source: Grid, target: Grid) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return matrix (3, 3) and offset (3,) from an array index of `target` to one of `source`."""
    affine = np.linalg.inv(source.affine_lps) @ target.affine_lps
    # Affines speak (x, y, z), arrays (z, y, x).
    return affine[2::-1, 2::-1], affine[2::-1, 3]


def _is_diagonal(matrix: NDArray[np.float64], shape: Sequence[int]) -> bool:
    """Say whether no entry off the diagonal moves any voxel by a millionth: scipy is far faster then."""
    off_diagonal = matrix - np.diag(np.diagonal(matrix))
    return bool(np.all(np.abs(off_diagonal) * np.asarray(shape) < 1e-6))


def _fill_outside(
    slab: NDArray[np.float32],
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64],
    source_shape: Sequence[int],
    outside: float,
) -> None:
    """Set the voxels of `slab` whose centres lie outside the source's field of view."""
    corners = np.array(list(product(*((0, size - 1) for size in slab.shape)))) @ matrix.T + offset
    for axis, size in enumerate(source_shape):
        low, high = -0.5 - 1e-6, size - 0.5 + 1e-6
        if corners[:, axis].min() >= low and corners[:, axis].max() <= high:
            continue
        place: NDArray[np.float64] = np.full((1, 1, 1), offset[axis])
        for along, extent in enumerate(slab.shape):
            if abs(matrix[axis, along]) * extent > 1e-9:
                line = matrix[axis, along] * np.arange(extent)
                place = place + line.reshape([-1 if other == along else 1 for other in range(3)])
        slab[np.broadcast_to((place < low) | (place > high), slab.shape)] = outside


def _axes(grid: Grid) -> NDArray[np.float64]:
    """Return 3x3: the step in LPS mm along each *array* axis, as columns."""
    return grid.affine_lps[:3, 2::-1]


def _grid(shape: Sequence[int], axes: NDArray[np.float64], origin: NDArray[np.float64]) -> Grid:
    """Return the grid whose array axes step by the columns of `axes` from `origin`."""
    affine = np.eye(4)
    affine[:3, 2::-1] = axes
    affine[:3, 3] = origin
    z, y, x = shape
    return Grid(shape=(z, y, x), affine_lps=affine)


def _moved(grid: Grid, start: Sequence[int], shape: Sequence[int]) -> Grid:
    """Return the grid whose first voxel is voxel `start` (array order, may be negative) of `grid`."""
    axes = _axes(grid)
    return _grid(shape, axes, grid.affine_lps[:3, 3] + axes @ np.asarray(start, dtype=float))


def _orientation(grid: Grid, letters: str) -> tuple[tuple[int, ...], tuple[int, ...], Grid]:
    """Return the order of the axes, those of the new ones that are flipped, and the grid that results."""
    wanted = [_DIRECTIONS[letter] for letter in letters]
    axes = _axes(grid)
    cosines = axes / np.linalg.norm(axes, axis=0)
    order = max(
        permutations(range(3)),
        key=lambda order: sum(abs(cosines[world, axis]) for (world, _), axis in zip(wanted, order, strict=True)),
    )
    shape = [grid.shape[axis] for axis in order]
    axes = axes[:, order]
    origin = grid.affine_lps[:3, 3].copy()
    flipped = tuple(place for place, (world, sign) in enumerate(wanted) if axes[world, place] * sign < 0)
    for place in flipped:
        origin += axes[:, place] * (shape[place] - 1)
        axes[:, place] *= -1
    return order, flipped, _grid(shape, axes, origin)


def oriented_grid(grid: Grid, letters: str) -> Grid:
    """Return the grid after `Orient(axes=letters)`."""
    return _orientation(grid, letters)[2]


def _oriented(prepared: Prepared, step: Orient) -> Prepared:
    order, flipped, grid = _orientation(prepared.grid, step.axes)
    return Prepared(array=np.flip(prepared.array.transpose(order), flipped), grid=grid)


def right_angled(grid: Grid, spacing_mm: Sequence[float], *, align: Literal["source", "patient"] = "source") -> Grid:
    """Return a right-angled grid with `spacing_mm` (array axes) over the field of view of `grid`, about its centre.

    Its axes are the orthonormal ones nearest to those of `grid` (the same ones unless it is sheared), or, with
    "patient", the nearest axes of the patient.
    """
    axes = _axes(grid) / np.linalg.norm(_axes(grid), axis=0)
    if align == "patient":
        nearest = max(permutations(range(3)), key=lambda order: sum(abs(axes[order[k], k]) for k in range(3)))
        directions = np.zeros((3, 3))
        for place, world in enumerate(nearest):
            directions[world, place] = np.sign(axes[world, place]) or 1.0
    else:
        # The orthogonal factor of the polar decomposition is the nearest orthonormal frame (Higham 1986).
        left, _, right = np.linalg.svd(axes)
        directions = left @ right
    faces = np.array(list(product(*((-0.5, size - 0.5) for size in grid.shape))))
    along = grid.to_world(faces[:, ::-1]) @ directions
    low, high = along.min(axis=0), along.max(axis=0)
    spacing = np.asarray(spacing_mm, dtype=float)
    # A hundredth of a voxel: a field that is a whole number of voxels must not grow by one through rounding.
    shape = np.maximum(np.ceil((high - low) / spacing - 0.01), 1).astype(int)
    first = (low + high) / 2 - (shape - 1) / 2 * spacing
    return _grid([int(size) for size in shape], directions * spacing, directions @ first)


def _resampled(prepared: Prepared, step: Resample) -> Prepared:
    target = right_angled(prepared.grid, step.spacing_mm, align=step.align)
    array = prepared.array
    if step.anti_alias:
        array = ndimage.gaussian_filter(array, _smoothing(prepared.grid, target), mode="nearest")
    outside = float(prepared.array.min())
    coarse = _coarse(prepared.grid, step)
    array = interpolate(array, prepared.grid, target, order=step.order, outside=outside, coarse=coarse)
    return Prepared(array=array, grid=target)


def _smoothing(source: Grid, target: Grid) -> NDArray[np.float64]:
    """Return by how many voxels (SD) each array axis of `source` is smoothed before it is read at `target`'s steps."""
    matrix, _ = index_map(source, target)
    # How far one step on the target goes along each axis of the source, whichever way the axes lie.
    factors = np.linalg.norm(matrix, axis=1)
    # (factor - 1) / 2 voxels: scikit-image's choice for `resize`.
    return np.where(factors > _SHRINK_NEEDS_SMOOTHING, (factors - 1) / 2, 0.0)


def _coarse(grid: Grid, step: Resample) -> tuple[int, Literal[0, 1]] | None:
    """Return the array axis along which another order holds, with that order."""
    if step.coarse_order is None:
        return None
    spacing = np.linalg.norm(_axes(grid), axis=0)
    axis = int(spacing.argmax())
    is_coarse = spacing[axis] > step.coarse_ratio * np.delete(spacing, axis).max()
    return (axis, step.coarse_order) if is_coarse else None


def _fitted(prepared: Prepared, step: Fit) -> Prepared:
    start = [(size - wanted) // 2 for size, wanted in zip(prepared.array.shape, step.shape, strict=True)]
    fill = _fill_value(prepared.array, step.value)
    array: NDArray[np.float32] = np.full(step.shape, fill, dtype=np.float32)
    sizes = list(zip(start, prepared.array.shape, step.shape, strict=True))
    read = tuple(slice(max(first, 0), min(first + wanted, size)) for first, size, wanted in sizes)
    write = tuple(slice(max(-first, 0), max(-first, 0) + min(size, wanted)) for first, size, wanted in sizes)
    array[write] = prepared.array[read]
    return Prepared(array=array, grid=_moved(prepared.grid, start, step.shape))


def _cropped(prepared: Prepared, step: CropForeground) -> Prepared:
    foreground = prepared.array > (_otsu(prepared.array) if step.above == "otsu" else step.above)
    if step.opening_voxels:
        foreground = ndimage.binary_opening(foreground, iterations=step.opening_voxels)
    if step.largest_component:
        labels, n_components = ndimage.label(foreground)
        if n_components > 1:
            sizes = np.bincount(labels.ravel())
            sizes[0] = 0
            foreground = labels == int(sizes.argmax())
    found = ndimage.find_objects(foreground.view(np.uint8), max_label=1)
    if not found or found[0] is None:
        return prepared
    margin = step.margin_voxels
    box = tuple(
        slice(max(part.start - margin, 0), min(part.stop + margin, size))
        for part, size in zip(found[0], foreground.shape, strict=True)
    )
    array = prepared.array[box]
    return Prepared(array=array, grid=_moved(prepared.grid, [part.start for part in box], array.shape))


def _otsu(array: NDArray[np.float32]) -> float:
    from skimage.filters import threshold_otsu  # a second to load; few plugins need it

    if array.min() == array.max():
        raise RefusedInputError("the image has the same value everywhere, so it has no foreground")
    return float(threshold_otsu(array))


def _clipped(prepared: Prepared, step: Clip) -> Prepared:
    low, high = step.low, step.high
    if step.by == "percentile":
        values = _within(prepared.array, step.mask_above)
        if values.size == 0:
            raise RefusedInputError(f"no voxel lies above {step.mask_above:g}, so there are no percentiles")
        low, high = np.percentile(values, [low, high])
    return Prepared(array=np.clip(prepared.array, low, high), grid=prepared.grid)


def _normalised(prepared: Prepared, step: Normalise) -> Prepared:
    array = prepared.array
    if step.mask_above is not None and not (array > step.mask_above).any():
        raise RefusedInputError(f"no voxel lies above {step.mask_above:g}, so the intensities cannot be scaled")
    parts = list(array) if step.scope == "slice" else [array]
    scales = [_zero_and_scale(part, step) for part in parts]
    if not any(scale > 0 for _, scale in scales):
        raise RefusedInputError("the image has the same value everywhere, so its intensities cannot be scaled")
    result = np.empty_like(array, dtype=np.float32)
    for part, (zero, scale), to in zip(parts, scales, result if step.scope == "slice" else [result], strict=True):
        if scale > 0:
            np.subtract(part, np.float32(zero), out=to)
            to /= np.float32(scale)
        else:
            to[...] = 0
    if step.clip:
        np.clip(result, 0, 1, out=result)
    if step.scope == "mask" and step.mask_above is not None:
        result[array <= step.mask_above] = 0
    return Prepared(array=result, grid=prepared.grid)


def _within(array: NDArray[np.float32], above: float | None, *, exclude_padding: bool = False) -> NDArray[np.float32]:
    """Return the values that statistics count, perhaps none."""
    if exclude_padding:
        array = array[array > array.min()]
    return array if above is None else array[array > above]


def _zero_and_scale(array: NDArray[np.float32], step: Normalise) -> tuple[float, float]:
    """Return the value that becomes 0 and the difference that becomes 1; a difference of 0 means no contrast."""
    if step.method == "linear" and step.low is not None and step.high is not None:
        return step.low, step.high - step.low
    values = _within(array, step.mask_above, exclude_padding=step.exclude_padding)
    if values.size == 0:
        return 0.0, 0.0
    if step.method == "z_score":
        zero, scale = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    elif step.method == "percentile" and step.low is not None and step.high is not None:
        low, high = np.percentile(values, [step.low, step.high])
        zero, scale = float(low), float(high) - float(low)
    else:
        zero, scale = float(values.min()), float(values.max()) - float(values.min())
    # A rounding error of the mean is no contrast.
    return zero, scale if scale > _NO_CONTRAST * abs(zero) else 0.0


def padded_shape(shape: Sequence[int], step: Pad) -> tuple[int, int, int]:
    """Return the shape of an array after `Pad`."""
    least = (max(size, wanted) for size, wanted in zip(shape, step.shape or shape, strict=True))
    z, y, x = (size + -size % step.divisor for size in least)
    return z, y, x


def _padded(prepared: Prepared, step: Pad) -> Prepared:
    sizes = prepared.array.shape
    added = [size - held for size, held in zip(padded_shape(sizes, step), sizes, strict=True)]
    before = [more // 2 if step.side == "both" else 0 for more in added]
    widths = [(first, more - first) for first, more in zip(before, added, strict=True)]
    if step.value == "edge" or step.value == "reflect":
        array = np.pad(prepared.array, widths, mode=step.value)
    else:
        array = np.pad(prepared.array, widths, constant_values=_fill_value(prepared.array, step.value))
    return Prepared(array=array, grid=_moved(prepared.grid, [-first for first in before], array.shape))


def _denoised(prepared: Prepared, step: Denoise) -> Prepared:
    return Prepared(array=ndimage.median_filter(prepared.array, size=step.size_voxels), grid=prepared.grid)


def _enhanced(prepared: Prepared, step: Enhance) -> Prepared:
    array = prepared.array
    parts = array if step.scope == "slice" else array[np.newaxis]
    result = np.zeros_like(parts, dtype=np.float32)
    has_contrast = False
    for part, to in zip(parts, result, strict=True):
        low, high = float(part.min()), float(part.max())
        if high - low <= _NO_CONTRAST * abs(low):
            continue  # a slice of nothing but air stays 0
        has_contrast = True
        scaled = (part - np.float32(low)) / np.float32(high - low)
        to[...] = scaled**step.gamma if step.method == "gamma" else _equalised(scaled, step)
    if not has_contrast:
        raise RefusedInputError("the image has the same value everywhere, so its contrast cannot be enhanced")
    return Prepared(array=result.reshape(array.shape), grid=prepared.grid)


def _equalised(scaled: NDArray[np.float32], step: Enhance) -> NDArray[np.float64]:
    from skimage.exposure import equalize_adapthist  # a second to load; few plugins need it

    kernel = [max(1, size // step.tiles) for size in scaled.shape]
    return np.asarray(equalize_adapthist(scaled, kernel_size=kernel, clip_limit=step.clip_limit, nbins=256))


def _as_read(prepared: Prepared, _step: GreyFromColour) -> Prepared:
    return prepared


def _fill_value(array: NDArray[np.float32], value: float | str) -> float:
    return float(array.min()) if value == "minimum" else float(value)


_STEPS: dict[type, Callable[[Prepared, Any], Prepared]] = {
    Orient: _oriented,
    Resample: _resampled,
    Fit: _fitted,
    CropForeground: _cropped,
    Clip: _clipped,
    Normalise: _normalised,
    Pad: _padded,
    Denoise: _denoised,
    Enhance: _enhanced,
    GreyFromColour: _as_read,
}
"""Every kind of step and what carries it out."""
