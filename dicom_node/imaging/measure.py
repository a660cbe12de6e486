"""The measurements of a mask, in millimetres of patient space.

After `mask`, before `report`. Shapes go through the affine, so an oblique, tilted or anisotropic stack measures as any
other. Units, codes and sources stand in `quantities`, one row a measurement; here stands how each is made.

* **Surface**: marching cubes at 0.5 of the binary mask (scikit-image), which passes half-way between voxel centres
  inside and outside. Mesh volume, surface, sphericity and the 3D diameter are this mesh's. It is built slab by slab:
  volume and area of the slabs add up, so memory follows the slab and not the mask.
* **Convex hull** (Qhull by scipy): of the mesh's vertices. Those lie half-way between voxels of which one is inside,
  and only the outermost of a row or column can be corners of the hull; so it is found from slices, without the mesh.
* **In-plane diameters**: of the outline of every slice, which is the mesh's cut through the slice's voxel centres;
  one voxel is one voxel wide. An outline through centres measures a sphere one voxel too small, one through outer
  corners up to 1.4 voxels too large. scikit-image's Feret diameters know no pixel spacing and name no end points,
  hence our own.
* In-plane diameters lie on a slice that an image shows, never on an interpolated one; all else counts every slice.
* **Principal axes**: of the voxel centres (IBSI), four times the root of the eigenvalues of their covariance (divisor
  n - 1, with which IBSI's consensus values of its phantom come out). scikit-image's axes come from an ellipse of a
  two-dimensional or isotropic image, hence our own.
* **Border irregularity**: surface by the surface of the convex hull. Sphericity and what derives from it
  (compactness, asphericity, surface by volume) also fall when a smooth lesion is long or flat; this does not, so
  together with elongation and flatness it tells a rough border from a long shape. Steps of the voxels count as
  roughness: a large ball has 1.05, so values compare between masks of like voxels. What is bent as a whole,
  like a banana, can have less surface than its hull: then solidity tells.
* **Intensities**: of the voxels of the mask, times the volume's factor (SUV); `sd` is the population's (divisor n),
  percentiles interpolate linearly between ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from dicom_node.findings import PERCENTILES, Line, Mask, Measurements, on_images
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.volume import Volume

_CHUNK = 512
"""Points compared with all others at a time: a few MB."""
_SLAB_VOXELS = 4_000_000
"""Of the mask's box that are meshed at a time: the mesh of such a slab takes some hundred MB at worst."""
_SAME_VARIANCE = 1e-12
"""Part of the largest variance below which another one is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mesh:
    area_mm2: float
    volume_mm3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hull:
    diameter_mm: float
    area_mm2: float
    volume_mm3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    n_voxels: int
    mean: NDArray[np.float64]
    """(x, y, z), in voxels of the whole grid."""
    covariance: NDArray[np.float64]
    """3x3, (x, y, z), in voxels squared, divisor n - 1; zero for one voxel."""


def measure(mask: Mask, volume: Volume) -> Measurements:
    """Return every measurement of a mask on the volume's grid.

    Raises
    ------
    ValueError
        The mask is empty, or lies on interpolated slices alone.
    """
    shown = on_images(mask, volume.frames)
    if not shown.array.any():
        raise ValueError("an empty mask, or one that no image shows, has no measurements")
    grid, intensity = volume.grid, volume.measured_in
    moments = _moments(mask)
    mesh = _mesh(mask, grid)
    long, short = _diameters(shown, grid)
    hull = _hull(_corners(mask), grid)
    major, minor, least = _axes(moments, grid)
    window = tuple(slice(at, at + size) for at, size in zip(mask.offset, mask.array.shape, strict=True))
    values = volume.array[window][mask.array]
    *percentiles, median = np.percentile(values, [*PERCENTILES, 50]) * intensity.factor
    x, y, z = grid.to_world(moments.mean)
    held = np.flatnonzero(mask.array.any(axis=(1, 2))) + mask.offset[0]
    return Measurements(
        n_voxels=moments.n_voxels,
        volume_ml=moments.n_voxels * grid.voxel_volume_mm3 / 1000,
        volume_mesh_ml=mesh.volume_mm3 / 1000,
        diameter_3d_mm=hull.diameter_mm,
        diameter_long=long,
        diameter_short=short,
        surface_mm2=mesh.area_mm2,
        sphericity=float((36 * np.pi * mesh.volume_mm3**2) ** (1 / 3) / mesh.area_mm2),
        major_axis_mm=major,
        minor_axis_mm=minor,
        least_axis_mm=least,
        elongation=minor / major if major > 0 else None,
        flatness=least / major if major > 0 else None,
        border_irregularity=mesh.area_mm2 / hull.area_mm2,
        solidity=mesh.volume_mm3 / hull.volume_mm3,
        mean=float(values.mean(dtype=np.float64)) * intensity.factor,
        sd=float(values.std(dtype=np.float64)) * intensity.factor,
        minimum=float(values.min()) * intensity.factor,
        maximum=float(values.max()) * intensity.factor,
        median=float(median),
        percentiles=tuple(float(value) for value in percentiles),
        intensity_unit=intensity.unit,
        centroid_lps_mm=(float(x), float(y), float(z)),
        slice_range=(int(held[0]), int(held[-1])),
    )


def _moments(mask: Mask) -> _Moments:
    """Return number, mean and covariance of the voxels, slice by slice: no list of all voxels is made."""
    corner = np.array(mask.offset[::-1], dtype=np.float64)
    middle = (np.array(mask.array.shape[::-1]) - 1) / 2  # about it the sums of squares keep their digits
    count, first, second = 0, np.zeros(3), np.zeros((3, 3))
    for z, plane in enumerate(mask.array):
        rows, columns = np.nonzero(plane)
        if not rows.size:
            continue
        points = np.stack([columns - middle[0], rows - middle[1], np.full(rows.size, z - middle[2])])
        count += rows.size
        first += points.sum(axis=1)
        second += points @ points.T
    mean = first / count
    return _Moments(
        n_voxels=count,
        mean=mean + middle + corner,
        covariance=(second - count * np.outer(mean, mean)) / max(count - 1, 1),
    )


def _axes(moments: _Moments, grid: Grid) -> tuple[float, float, float]:
    """Return the lengths in mm of major, minor and least axis."""
    to_mm = grid.affine_lps[:3, :3]
    variances = np.linalg.eigvalsh(to_mm @ moments.covariance @ to_mm.T)[::-1]
    variances = np.where(variances > _SAME_VARIANCE * variances[0], variances, 0.0)
    major, minor, least = 4 * np.sqrt(np.maximum(variances, 0.0))
    return float(major), float(minor), float(least)


def _mesh(mask: Mask, grid: Grid) -> _Mesh:
    """Return area and enclosed volume of the surface mesh."""
    from skimage.measure import marching_cubes  # a second to load; only a finding needs it

    n_slices, rows, columns = mask.array.shape
    step = max(1, _SLAB_VOXELS // ((rows + 2) * (columns + 2)))
    to_mm = grid.affine_lps[:3, :3].T
    area = volume = 0.0
    # An empty voxel all round closes the mesh. Neighbouring slabs share a slice: a cube lies between two of them.
    for start in range(-1, n_slices, step):
        stop = min(start + step, n_slices)
        held = mask.array[max(start, 0) : stop + 1]
        if not held.any():
            continue
        slab = np.zeros((stop - start + 1, rows + 2, columns + 2), dtype=np.float32)
        first = max(start, 0) - start
        slab[first : first + len(held), 1:-1, 1:-1] = held
        vertices, faces, _, _ = marching_cubes(slab, 0.5)
        # About the mask's own corner: the signed volumes below lose digits far from the origin.
        points = (vertices[:, ::-1] + (0.0, 0.0, start)).astype(np.float64) @ to_mm
        a, b, c = (points[faces[:, corner]] for corner in range(3))
        area += float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
        # Tetrahedra from the origin to every face (divergence theorem).
        volume += float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
    return _Mesh(area_mm2=area, volume_mm3=abs(volume))


def _hull(corners: NDArray[np.float64], grid: Grid) -> _Hull:
    """Return what the convex hull of points (n, 3), voxel coordinates (x, y, z), measures in millimetres."""
    # A hull is the hull under any affine; among voxels Qhull has no thin needles to judge.
    hull = ConvexHull(corners)
    points = corners @ grid.affine_lps[:3, :3].T
    a, b, c = (points[hull.simplices[:, corner]] for corner in range(3))
    return _Hull(
        diameter_mm=_farthest(points[hull.vertices])[0],
        area_mm2=float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2),
        volume_mm3=float(hull.volume) * grid.voxel_volume_mm3,
    )


def _hull_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners of the convex hull, in its order; all points where they lie on a line."""
    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except QhullError:
        return points


def _farthest(points: NDArray[np.float64]) -> tuple[float, int, int]:
    """Return the largest distance between two points, and which two."""
    best = (-1.0, 0, 0)
    for start in range(0, len(points), _CHUNK):
        distances = cdist(points[start : start + _CHUNK], points)
        first, second = np.unravel_index(int(distances.argmax()), distances.shape)
        if distances[first, second] > best[0]:
            best = (float(distances[first, second]), start + int(first), int(second))
    return best


def _corners(mask: Mask) -> NDArray[np.float64]:
    """Return points (n, 3), voxel coordinates (x, y, z) in the mask's box, whose convex hull is the surface mesh's."""
    corners = []
    above = np.zeros(mask.array.shape[1:], dtype=bool)
    for place, plane in enumerate(mask.array):
        corners.append(_between(above, plane, place - 0.5))
        above = plane
        if plane.any():
            hull = _hull_points(_outline_points(plane))
            corners.append(np.column_stack([hull, np.full(len(hull), float(place))]))
    corners.append(_between(above, np.zeros_like(above), mask.array.shape[0] - 0.5))
    return np.concatenate(corners)


def _diameters(mask: Mask, grid: Grid) -> tuple[Line, Line | None]:
    """Return the longest in-plane diameter of all slices, and the longest perpendicular to it on its slice."""
    to_mm = _plane_to_mm(grid)
    best: tuple[float, int, int] = (-1.0, 0, 0)
    best_slice, best_hull = 0, np.zeros((0, 2))
    for place, plane in enumerate(mask.array):
        if not plane.any():
            continue
        hull = _hull_points(_outline_points(plane)) @ to_mm.T
        found = _farthest(hull)
        # A hair: the first of equally long ones is taken, whatever the rounding.
        if found[0] > best[0] + 1e-9:
            best, best_slice, best_hull = found, place, hull
    start, end = best_hull[best[1]], best_hull[best[2]]
    corner = np.array([mask.offset[2], mask.offset[1]], dtype=float)
    from_mm = np.linalg.inv(to_mm)

    def line(ends: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Line:
        (x0, y0), (x1, y1) = (from_mm @ point + corner for point in ends)
        return Line(
            slice_index=best_slice + mask.offset[0],
            start=(float(x0), float(y0)),
            end=(float(x1), float(y1)),
            length_mm=float(np.linalg.norm(ends[1] - ends[0])),
        )

    chord = _perpendicular(best_hull, start, end)
    return line((start, end)), None if chord is None else line(chord)


def _plane_to_mm(grid: Grid) -> NDArray[np.float64]:
    """Return 2x2: (column, row) -> millimetres in the plane of a slice, right-angled axes."""
    column, row = grid.affine_lps[:3, 0], grid.affine_lps[:3, 1]
    along = column / np.linalg.norm(column)
    across = row - (row @ along) * along
    across /= np.linalg.norm(across)
    return np.array([[column @ along, row @ along], [column @ across, row @ across]])


def _outline_points(plane: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return, of the points (column, row) half-way out of a slice that is not empty, the outermost ones."""
    rows, first, last = _ends(plane)
    columns, top, bottom = _ends(plane.T)
    beside = np.stack([np.concatenate([first - 0.5, last + 0.5]), np.concatenate([rows, rows])], axis=1)
    below = np.stack([np.concatenate([columns, columns]), np.concatenate([top - 0.5, bottom + 0.5])], axis=1)
    return np.concatenate([beside, below])


def _between(above: NDArray[np.bool_], below: NDArray[np.bool_], place: float) -> NDArray[np.float64]:
    """Return the outermost points (x, y, `place`) where one of two neighbouring slices is inside and the other not."""
    changed = above != below
    if not changed.any():
        return np.zeros((0, 3))
    rows, first, last = _ends(changed)
    points = np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1).astype(np.float64)
    hull = _hull_points(points)
    return np.column_stack([hull, np.full(len(hull), place)])


def _ends(plane: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Return the rows that hold something, and the first and last column that each holds."""
    rows = np.flatnonzero(plane.any(axis=1))
    held = plane[rows]
    return rows, held.argmax(axis=1), held.shape[1] - 1 - held[:, ::-1].argmax(axis=1)


def _perpendicular(
    hull: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the ends of the longest chord of a convex polygon at right angles to the line from start to end."""
    length = np.linalg.norm(end - start)
    if length == 0:
        return None
    along = (end - start) / length
    across = np.array([-along[1], along[0]])
    local = (hull - start) @ np.stack([along, across], axis=1)
    # The width of a convex polygon is concave and linear between its corners, so it is largest at one of them.
    places = np.unique(local[:, 0])
    low = np.full(len(places), np.inf)
    high = np.full(len(places), -np.inf)
    for first, second in zip(local, np.roll(local, -1, axis=0), strict=True):
        (t0, s0), (t1, s1) = sorted((tuple(first), tuple(second)))
        here = (places >= t0) & (places <= t1)
        if t1 > t0:
            crossing = s0 + (places[here] - t0) / (t1 - t0) * (s1 - s0)
            low[here], high[here] = np.minimum(low[here], crossing), np.maximum(high[here], crossing)
        else:
            low[here], high[here] = np.minimum(low[here], s0), np.maximum(high[here], s1)
    widest = int((high - low).argmax())
    foot = start + along * places[widest]
    if not high[widest] > low[widest]:
        return None
    return foot + across * low[widest], foot + across * high[widest]
