"""Masks -> regions on an image's grid: DICOM SEG, RT Structure Set, NIfTI and NRRD label maps.

A mask is placed by what it says of its own geometry, never by the order of its frames or axes: whole voxels are
permuted and flipped, nothing is interpolated, and a mask that does not fall on the image's voxels is refused. Regions
may overlap; each is kept cropped to what it holds, so a hundred of them cost no hundred volumes.

Sources: DICOM PS3.3 A.51 (Segmentation), C.8.20 (Segmentation modules: Segmentation Type, Segment Number, Maximum
Fractional Value), C.7.6.16.2 (functional groups); Slicer's .seg.nrrd (Segment<i>_LabelValue, _Layer, _Name).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.findings import Mask
from dicom_node.imaging.geometry import Affine, Grid
from dicom_node.imaging.mask import crop_mask, union
from dicom_node.imaging.regions import split_labels
from dicom_node.reading.decode import Stored, check_decodable, pixel_layout, stored_frames
from dicom_node.reading.enhanced import frames_of, functional_groups
from dicom_node.reading.header import Header, integer, items, quiet, read_header, text
from dicom_node.reading.nifti import Layer, read_nifti, read_nrrd_layers
from dicom_node.reading.placement import place
from dicom_node.reading.rtstruct import is_structure_set, read_structures
from dicom_node.study import Frame

_FRACTION = 0.5
"""Of Maximum Fractional Value: above it a voxel belongs to the segment."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """One label, segment or structure of a mask file, on the image's grid."""

    label: int
    """Segment Number, ROI Number or the value in the label map."""
    name: str
    """What the file calls it; empty where it gives no name."""
    mask: Mask | None
    """None: nothing is marked."""


def read_regions(path: Path, grid: Grid, frames: tuple[Frame, ...] | None = None) -> tuple[Region, ...]:
    """Return the regions of a mask file on the image's grid, ordered by label.

    Parameters
    ----------
    path
        DICOM SEG (BINARY, FRACTIONAL cut at half, LABELMAP), RT Structure Set, NIfTI (.nii, .nii.gz) or NRRD, layers of
        .seg.nrrd included.
    grid
        The grid of the image.
    frames
        The frames of the image's slices, when known: a DICOM mask must then be in their Frame of Reference.

    Raises
    ------
    GeometryError
        When the mask does not lie on voxels of the grid; the reason names what differs.
    UndecodableError
        When the file cannot be read or is no mask.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        array, affine_lps = read_nifti(path)
        regions = _from_layers([Layer(array=array, names={})], affine_lps, grid, path.name)
    elif name.endswith((".nrrd", ".nhdr")):
        layers, affine_lps = read_nrrd_layers(path)
        regions = _from_layers(layers, affine_lps, grid, path.name)
    else:
        regions = _from_dicom(read_header(path), grid, frames)
    return tuple(sorted(regions, key=lambda region: region.label))


def read_masks(path: Path, grid: Grid, frames: tuple[Frame, ...] | None = None) -> dict[int, NDArray[np.bool_]]:
    """Return what `read_regions` returns as whole arrays by label, each bool (Z, Y, X); costs a volume a label."""
    return {
        region.label: np.zeros(grid.shape, dtype=bool) if region.mask is None else region.mask.on_grid(grid.shape)
        for region in read_regions(path, grid, frames)
    }


def _from_layers(layers: Sequence[Layer], affine_lps: Affine, grid: Grid, name: str) -> list[Region]:
    """Return the regions of label maps of one geometry; a label that two layers use is numbered after all others."""
    placement = place(affine_lps, _shape(layers[0].array), grid, name)
    regions: list[Region] = []
    repeated: list[Region] = []
    for layer in layers:
        for label, mask in split_labels(_whole_numbers(layer.array, name)).items():
            region = Region(label=label, name=layer.names.get(label, ""), mask=placement.placed(mask))
            (repeated if any(label == other.label for other in regions) else regions).append(region)
    highest = max((region.label for region in regions), default=0)
    return regions + [
        Region(label=highest + number, name=region.name, mask=region.mask) for number, region in enumerate(repeated, 1)
    ]


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    z, y, x = array.shape
    return z, y, x


def _whole_numbers(labels: NDArray[Any], name: str) -> NDArray[Any]:
    if labels.dtype.kind in "iu":
        return labels
    if labels.dtype.kind == "b":
        return labels.astype(np.uint8)
    whole: NDArray[Any] = np.rint(labels)
    if not np.array_equal(whole, labels):
        raise UndecodableError(f"{name} holds fractions; a label map of whole numbers is needed")
    return whole.astype(np.int32 if np.abs(whole).max(initial=0) < 1 << 31 else np.int64)


def _from_dicom(header: Header, grid: Grid, frames: tuple[Frame, ...] | None) -> list[Region]:
    with quiet():
        dataset, name = header.dataset, header.path.name
        if is_structure_set(dataset):
            return [
                Region(label=one.number, name=one.name, mask=one.mask)
                for one in read_structures(dataset, grid, frames, name)
            ]
        kind = text(dataset, "SegmentationType")
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise UndecodableError(f"{name} is no segmentation (Segmentation Type is {kind or 'missing'})")
        planes = frames_of(dataset)
        if not planes:
            raise GeometryError(f"{name} does not say where its frames lie")
        _check_frame_of_reference(planes, frames, name)
        pixels = _frames(header, planes)
        names = {
            number: text(item, "SegmentLabel")
            for item in items(dataset, "SegmentSequence")
            if (number := integer(item, "SegmentNumber")) is not None
        }
        if kind == "LABELMAP":
            masks = _label_map_frames(dataset, planes, pixels, grid)
        else:
            masks = {number: [] for number in names} | _segment_frames(dataset, planes, pixels, grid, kind, set(names))
        return [
            Region(label=label, name=names.get(label, ""), mask=union(pieces) if pieces else None)
            for label, pieces in masks.items()
        ]


def _frames(header: Header, planes: tuple[Frame, ...]) -> Iterable[Stored]:
    """Return the pixels of every frame, one after the other: all of them at once would cost a byte a voxel."""
    layout = pixel_layout(header, colour=True)
    if layout.samples != 1:
        raise UndecodableError(f"{layout.samples} samples a pixel where labels are expected")
    if layout.n_frames != len(planes):
        raise UndecodableError(f"{header.path.name} has pixels of {layout.n_frames} frames and places of {len(planes)}")
    check_decodable(header, layout)
    return stored_frames(header, layout, range(layout.n_frames))


def _check_frame_of_reference(planes: tuple[Frame, ...], frames: tuple[Frame, ...] | None, name: str) -> None:
    if frames is None:
        return
    ours, theirs = frames[0].frame_of_reference_uid, planes[0].frame_of_reference_uid
    if ours and theirs and ours != theirs:
        raise GeometryError(f"{name} is in another Frame of Reference than the image")


def _segment_frames(
    dataset: Dataset, planes: tuple[Frame, ...], pixels: Iterable[Stored], grid: Grid, kind: str, described: set[int]
) -> dict[int, list[Mask]]:
    """Return the masks of the frames of a SEG whose frames each belong to one segment."""
    above = _FRACTION * (integer(dataset, "MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 0
    masks: dict[int, list[Mask]] = {}
    groups = functional_groups(dataset, "SegmentIdentificationSequence")
    for plane, frame, group in zip(planes, pixels, groups, strict=True):
        number = None if group is None else integer(group, "ReferencedSegmentNumber")
        if number is None or number not in described:
            raise UndecodableError(f"frame {plane.frame_number} names segment {number}, which is not described")
        mask = crop_mask((frame > above)[None])
        if mask is not None:
            masks.setdefault(number, []).append(_placed(mask, plane, grid))
    return masks


def _label_map_frames(
    dataset: Dataset, planes: tuple[Frame, ...], pixels: Iterable[Stored], grid: Grid
) -> dict[int, list[Mask]]:
    """Return the masks of a label map SEG; the value of Pixel Padding Value, or 0, is the background."""
    background = integer(dataset, "PixelPaddingValue") or 0
    masks: dict[int, list[Mask]] = {}
    for plane, frame in zip(planes, pixels, strict=True):
        labels = frame if background == 0 else np.where(frame == background, 0, frame)
        for label, mask in split_labels(labels[None]).items():
            masks.setdefault(label, []).append(_placed(mask, plane, grid))
    return masks


def _placed(mask: Mask, plane: Frame, grid: Grid) -> Mask:
    """Return the mask of one frame on the grid, placed by its position and orientation."""
    cosines = np.array(plane.orientation).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = cosines[0] * plane.pixel_spacing_mm[1]
    affine[:3, 1] = cosines[1] * plane.pixel_spacing_mm[0]
    affine[:3, 3] = plane.position_mm
    # The third axis of one plane carries no voxels: the step of the grid that lies across it makes it regular.
    steps = grid.affine_lps[:3, :3]
    normal = np.cross(cosines[0], cosines[1])
    affine[:3, 2] = steps[:, int(np.abs(normal @ steps / np.linalg.norm(steps, axis=0)).argmax())]
    name = f"frame {plane.frame_number} of the segmentation"
    return place(affine, (1, plane.rows, plane.columns), grid, name).placed(mask)
