"""Labels that are no masks: contours of an RTSTRUCT become masks, measured groups of an SR become values. Pure.

Headers come from `reading.read_headers`; nothing is opened here.

Sources: DICOM PS3.3 C.8.8.6 (ROI Contour), C.8.8.5 (Structure Set); PS3.16 TID 1410, 1411, 1419 (measured groups).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from dicom_node.errors import GeometryError
from dicom_node.imaging.volume import Volume

__all__ = ["contour_masks", "measured_groups", "referenced_series"]

_OFF_PLANE = 0.25
"""How far, in slices, a contour may lie from the slice that it belongs to."""


def referenced_series(header: Any) -> set[str]:
    """Return every Series Instance UID that a SEG, RTSTRUCT or SR names anywhere but as its own."""
    found = {str(element.value) for element in header.iterall() if element.keyword == "SeriesInstanceUID"}
    return found - {str(header.get("SeriesInstanceUID", ""))}


def contour_masks(header: Any, volume: Volume) -> dict[str, NDArray[np.bool_]]:
    """Return a mask (Z, Y, X) for each region with closed planar contours, by its name.

    A voxel belongs to a region when its centre lies inside an odd number of the slice's contours: a contour within
    another is a hole, as planning systems write them.

    Raises
    ------
    GeometryError
        A contour does not lie in a slice of the volume.
    """
    names = {int(each.ROINumber): str(each.get("ROIName", "")) for each in header.get("StructureSetROISequence", ())}
    masks: dict[str, NDArray[np.bool_]] = {}
    for region in header.get("ROIContourSequence", ()):
        number = int(region.ReferencedROINumber)
        contours = [each for each in region.get("ContourSequence", ()) if each.ContourGeometricType == "CLOSED_PLANAR"]
        if not contours:
            continue
        mask = masks.setdefault(names.get(number) or str(number), np.zeros(volume.grid.shape, dtype=bool))
        for contour in contours:
            points = volume.grid.to_voxel(np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3))
            z = int(np.rint(points[:, 2].mean()))
            off = float(np.abs(points[:, 2] - z).max())
            if off > _OFF_PLANE or not 0 <= z < volume.grid.shape[0]:
                raise GeometryError(f"a contour of {names.get(number)!r} lies in no slice of the image ({off:.2f} off)")
            mask[z] ^= polygon2mask(volume.grid.shape[1:], points[:, 1::-1])
    return masks


def measured_groups(header: Any) -> list[dict[str, object]]:
    """Return finding, tracking identifier and measurements {name: [value, unit]} of each measured group of an SR."""
    groups = []
    for item in _containers(header):
        if _concept(item) != "125007":  # DCM "Measurement Group"
            continue
        group: dict[str, object] = {}
        numbers: dict[str, list[object]] = {}
        for child in item.get("ContentSequence", ()):
            if _concept(child) == "112039":  # DCM "Tracking Identifier"
                group["tracking_identifier"] = str(child.get("TextValue", ""))
            elif _concept(child) == "121071":  # DCM "Finding"
                group["finding"] = str(child.ConceptCodeSequence[0].CodeMeaning)
            elif child.get("ValueType") == "NUM" and child.get("MeasuredValueSequence"):
                value = child.MeasuredValueSequence[0]
                unit = str(value.MeasurementUnitsCodeSequence[0].CodeValue)
                numbers[str(child.ConceptNameCodeSequence[0].CodeMeaning)] = [float(value.NumericValue), unit]
        groups.append(group | {"measurements": numbers})
    return groups


def _containers(item: Any) -> list[Any]:
    found = []
    for child in item.get("ContentSequence", ()):
        if child.get("ValueType") == "CONTAINER":
            found += [child, *_containers(child)]
    return found


def _concept(item: Any) -> str:
    names = item.get("ConceptNameCodeSequence", ())
    return str(names[0].get("CodeValue", "")) if names else ""
