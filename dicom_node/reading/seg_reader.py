"""Masks -> bool arrays on an image's grid: DICOM SEG, NIfTI and NRRD label maps.

A mask is placed by what it says of its own geometry, never by the order of its frames or axes: whole voxels are
permuted and flipped, nothing is interpolated, and a mask that does not fall on the image's voxels is refused.

Sources: DICOM PS3.3 A.51 (Segmentation), C.8.20 (Segmentation modules: Segmentation Type, Segment Number, Maximum
Fractional Value), C.7.6.16.2 (functional groups).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.imaging.geometry import Affine, Grid
from dicom_node.reading.decode import stored_array
from dicom_node.reading.enhanced import frames_of, functional_groups
from dicom_node.reading.header import Header, integer, items, quiet, read_header, text
from dicom_node.reading.nifti import read_nifti, read_nrrd
from dicom_node.study import Frame

_GRID_TOLERANCE_VOXELS = 0.05
"""How far a corner voxel of a mask may lie from a voxel of the image."""
_FRACTION = 0.5
"""Of Maximum Fractional Value: above it a voxel belongs to the segment."""


def read_masks(path: Path, grid: Grid, frames: tuple[Frame, ...] | None = None) -> dict[int, NDArray[np.bool_]]:
    """Return the masks of a file on the image's grid, by label or segment number, each bool (Z, Y, X).

    Parameters
    ----------
    path
        DICOM SEG (BINARY, FRACTIONAL cut at half, LABELMAP), NIfTI (.nii, .nii.gz) or NRRD.
    grid
        The grid of the image.
    frames
        The frames of the image's slices, when known: a SEG must then be in their Frame of Reference.

    Raises
    ------
    GeometryError
        When the mask does not lie on voxels of the grid.
    UndecodableError
        When the file cannot be read or is no mask.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _from_label_map(*read_nifti(path), grid, path.name)
    if name.endswith((".nrrd", ".nhdr")):
        return _from_label_map(*read_nrrd(path), grid, path.name)
    return _from_segmentation(read_header(path), grid, frames)


def _from_label_map(labels: NDArray[Any], affine_lps: Affine, grid: Grid, name: str) -> dict[int, NDArray[np.bool_]]:
    whole = np.rint(labels)
    if not np.array_equal(whole, labels):
        raise UndecodableError(f"{name} holds fractions; a label map of whole numbers is needed")
    on_grid = _on_grid(whole.astype(np.int64), affine_lps, grid, name)
    return {int(label): on_grid == label for label in np.unique(on_grid) if label != 0}


def _on_grid(array: NDArray[Any], affine_lps: Affine, grid: Grid, name: str) -> NDArray[Any]:
    """Return `array` (Z, Y, X) with its axes permuted, flipped and padded with 0 so that it lies on `grid`."""
    to_image = np.linalg.inv(grid.affine_lps) @ affine_lps
    whole = np.rint(to_image)
    corners = np.array([[x, y, z, 1] for x in (0, array.shape[2] - 1) for y in (0, array.shape[1] - 1)
                        for z in (0, array.shape[0] - 1)])  # fmt: skip
    off = np.abs(corners @ (to_image - whole).T).max()
    if off > _GRID_TOLERANCE_VOXELS or not _is_axis_permutation(whole[:3, :3]):
        raise GeometryError(f"{name} is not on the image's grid: its voxels lie up to {off:.2f} voxels off")
    source_of = np.abs(whole[:3, :3]).argmax(axis=1)  # for image axis x, y, z: the mask axis along it
    turned = array.transpose(2, 1, 0).transpose(*source_of)
    start = whole[:3, 3].astype(int)
    for axis, source in enumerate(source_of):
        if whole[axis, source] < 0:
            turned = np.flip(turned, axis)
            start[axis] -= turned.shape[axis] - 1
    return _paste(turned.transpose(2, 1, 0), tuple(int(i) for i in start[::-1]), grid.shape, name)


def _is_axis_permutation(matrix: NDArray[np.float64]) -> bool:
    magnitude = np.abs(matrix)
    return bool(np.all(magnitude.sum(axis=0) == 1) and np.all(magnitude.sum(axis=1) == 1) and magnitude.max() == 1)


def _paste(array: NDArray[Any], start: tuple[int, ...], shape: tuple[int, int, int], name: str) -> NDArray[Any]:
    """Return an array of `shape` with `array` at index `start`; what hangs over must be empty."""
    if all(first == 0 for first in start) and array.shape == shape:
        return array
    out = np.zeros(shape, dtype=array.dtype)
    inside = tuple(
        slice(max(0, -first), max(0, min(size, whole - first)))
        for first, size, whole in zip(start, array.shape, shape, strict=True)
    )
    kept = array[inside]
    if np.count_nonzero(kept) != np.count_nonzero(array):
        raise GeometryError(f"{name} marks voxels outside the image")
    target = tuple(
        slice(first + part.start, first + part.start + size)
        for first, part, size in zip(start, inside, kept.shape, strict=True)
    )
    out[target] = kept
    return out


def _from_segmentation(header: Header, grid: Grid, frames: tuple[Frame, ...] | None) -> dict[int, NDArray[np.bool_]]:
    with quiet():
        dataset = header.dataset
        kind = text(dataset, "SegmentationType")
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise UndecodableError(f"{header.path.name} is no segmentation (Segmentation Type is {kind or 'missing'})")
        planes = frames_of(dataset)
        if not planes:
            raise GeometryError(f"{header.path.name} does not say where its frames lie")
        _check_frame_of_reference(planes, frames, header.path.name)
        pixels = stored_array(header)
        if pixels.shape != (len(planes), planes[0].rows, planes[0].columns):
            raise UndecodableError(f"{header.path.name} has pixels of shape {pixels.shape} for {len(planes)} frames")
        if kind == "LABELMAP":
            return _label_map_frames(dataset, planes, pixels, grid)
        return _segment_frames(dataset, planes, pixels, grid, kind)


def _check_frame_of_reference(planes: tuple[Frame, ...], frames: tuple[Frame, ...] | None, name: str) -> None:
    if frames is None:
        return
    ours, theirs = frames[0].frame_of_reference_uid, planes[0].frame_of_reference_uid
    if ours and theirs and ours != theirs:
        raise GeometryError(f"{name} is in another Frame of Reference than the image")


def _segment_frames(
    dataset: Dataset, planes: tuple[Frame, ...], pixels: NDArray[Any], grid: Grid, kind: str
) -> dict[int, NDArray[np.bool_]]:
    """Return the masks of a SEG whose frames each belong to one segment."""
    above = _FRACTION * (integer(dataset, "MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 0
    masks = {
        number: np.zeros(grid.shape, dtype=bool)
        for item in items(dataset, "SegmentSequence")
        if (number := integer(item, "SegmentNumber")) is not None
    }
    groups = functional_groups(dataset, "SegmentIdentificationSequence")
    for plane, frame, group in zip(planes, pixels, groups, strict=True):
        number = None if group is None else integer(group, "ReferencedSegmentNumber")
        if number not in masks:
            raise UndecodableError(f"frame {plane.frame_number} names segment {number}, which is not described")
        masks[number] |= _plane_on_grid(frame > above, plane, grid)
    return masks


def _label_map_frames(
    dataset: Dataset, planes: tuple[Frame, ...], pixels: NDArray[Any], grid: Grid
) -> dict[int, NDArray[np.bool_]]:
    """Return the masks of a label map SEG; the value of Pixel Padding Value, or 0, is the background."""
    background = integer(dataset, "PixelPaddingValue") or 0
    labels = np.zeros(grid.shape, dtype=np.int64)
    for plane, frame in zip(planes, pixels, strict=True):
        labels += _plane_on_grid(np.where(frame == background, 0, frame.astype(np.int64)), plane, grid)
    return {int(label): labels == label for label in np.unique(labels) if label != 0}


def _plane_on_grid(values: NDArray[Any], plane: Frame, grid: Grid) -> NDArray[Any]:
    """Return one frame's values on the grid (Z, Y, X), placed by its position and orientation."""
    cosines = np.array(plane.orientation).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = cosines[0] * plane.pixel_spacing_mm[1]
    affine[:3, 1] = cosines[1] * plane.pixel_spacing_mm[0]
    affine[:3, 3] = plane.position_mm
    # The third axis of one plane carries no voxels: the step of the grid that lies across it makes it regular.
    steps = grid.affine_lps[:3, :3]
    normal = np.cross(cosines[0], cosines[1])
    affine[:3, 2] = steps[:, int(np.abs(normal @ steps / np.linalg.norm(steps, axis=0)).argmax())]
    return _on_grid(values[None], affine, grid, f"frame {plane.frame_number} of the segmentation")
