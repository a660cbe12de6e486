"""RT Structure Set -> masks on an image's grid: closed planar contours, filled by the even-odd rule at voxel centres.

Contours are points in patient space; the image's affine turns them into voxels. A contour must lie in a slice of the
image: one between slices, or across them, says nothing about voxels and is refused.

Sources: DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour: Contour Geometric Type, Contour Data in mm).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.findings import Mask
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.regions import from_contours
from dicom_node.reading.header import VALUE_ERRORS, integer, items, text
from dicom_node.study import Frame

_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OFF_SLICE = 0.2
"""Of the distance between slices: how far a point may lie from its slice. Planning systems round to 0.01 mm."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Structure:
    """One region of interest."""

    number: int
    name: str
    mask: Mask | None
    """None: its contours enclose no voxel centre."""


def is_structure_set(dataset: Dataset) -> bool:
    """Return whether it is an RT Structure Set."""
    return text(dataset, "SOPClassUID") == _STORAGE or text(dataset, "Modality") == "RTSTRUCT"


def read_structures(dataset: Dataset, grid: Grid, frames: tuple[Frame, ...] | None, name: str) -> Iterator[Structure]:
    """Yield every region of interest that has a closed contour; points and open lines mark no voxels.

    Raises
    ------
    GeometryError
        When contours lie in another Frame of Reference, between or across the image's slices, or outside the image.
    UndecodableError
        When no region has a closed contour, or contour data cannot be read.
    """
    rois = {integer(item, "ROINumber"): item for item in items(dataset, "StructureSetROISequence")}
    found = False
    for sequence in items(dataset, "ROIContourSequence"):
        number = integer(sequence, "ReferencedROINumber")
        contours = [c for c in items(sequence, "ContourSequence") if text(c, "ContourGeometricType") in _CLOSED]
        if number is None or not contours:
            continue
        found = True
        roi = rois.get(number, Dataset())
        called = text(roi, "ROIName") or f"structure {number}"
        ours = frames[0].frame_of_reference_uid if frames else None
        theirs = text(roi, "ReferencedFrameOfReferenceUID")
        if ours and theirs and ours != theirs:
            raise GeometryError(f"{called} in {name} is in another Frame of Reference than the image")
        mask = from_contours(_by_slice(contours, grid, called))
        yield Structure(number=number, name=text(roi, "ROIName"), mask=_inside(mask, grid, called))
    if not found:
        raise UndecodableError(f"{name} holds no closed contour")


def _by_slice(contours: list[Dataset], grid: Grid, called: str) -> dict[int, list[NDArray[np.float64]]]:
    """Return the corners (column, row) of the contours by the slice in which they lie; copies count once."""
    polygons: dict[int, dict[bytes, NDArray[np.float64]]] = {}
    for contour in contours:
        points = grid.to_voxel(_points(contour, called))
        place = round(float(np.median(points[:, 2])))
        off = float(np.abs(points[:, 2] - place).max())
        if off > _OFF_SLICE:
            raise GeometryError(
                f"a contour of {called} does not lie in a slice of the image: its points lie up to {off:.2f} of the "
                "distance between slices off the nearest one"
            )
        corners = points[:, :2]
        # The same contour twice would cancel itself by the even-odd rule; nobody means that.
        polygons.setdefault(place, {}).setdefault(np.round(corners, 4).tobytes(), corners)
    return {place: list(unlike.values()) for place, unlike in polygons.items()}


def _points(contour: Dataset, called: str) -> NDArray[np.float64]:
    """Return the points (n, 3) of a contour in LPS mm."""
    try:
        points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    except VALUE_ERRORS as error:
        raise UndecodableError(f"Contour Data of {called} cannot be read ({type(error).__name__})") from error
    if not points.size or not np.all(np.isfinite(points)):
        raise UndecodableError(f"Contour Data of {called} is empty or not finite")
    return points


def _inside(mask: Mask | None, grid: Grid, called: str) -> Mask | None:
    if mask is not None:
        ends = np.add(mask.offset, mask.array.shape)
        if min(mask.offset) < 0 or np.any(ends > grid.shape):
            raise GeometryError(f"{called} marks voxels outside the image")
    return mask
