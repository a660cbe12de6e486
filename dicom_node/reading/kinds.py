"""What an object is when it is no stack of slices, by its SOP class: named in refusals, and measured as far as it says.

Projections, ultrasound, photographs and radiotherapy are refused by their own name, whatever geometry they carry: a
spacing at the detector is no place in the patient. `plane_note` says what their pixels measure.

Sources: DICOM PS3.4 B.5 (storage SOP classes), PS3.3 10.7.1.3, C.8.5.5 (US regions), C.8.6.2 (secondary capture).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pydicom.uid import UID

from dicom_node.imaging.projection import PlaneSpacing, projection_spacing, scanned_spacing
from dicom_node.reading.header import Attributes, floats, integer, items, text

_ROOT = "1.2.840.10008.5.1.4.1.1."
NUCLEAR_MEDICINE = f"{_ROOT}20"

_PROJECTIONS: Mapping[str, str] = MappingProxyType(
    {
        "1": "a computed radiograph (CR)",
        "1.1": "a digital radiograph (DX)",
        "1.1.1": "a digital radiograph (DX)",
        "1.2": "a mammogram (MG)",
        "1.2.1": "a mammogram (MG)",
        "1.3": "an intra-oral radiograph (IO)",
        "1.3.1": "an intra-oral radiograph (IO)",
        "12.1": "an angiogram (XA)",
        "12.1.1": "an angiogram (XA)",
        "12.2": "a fluoroscopy (RF)",
        "12.2.1": "a fluoroscopy (RF)",
        "12.3": "a biplane angiogram (XA)",
        "13.1.4": "a breast projection of tomosynthesis (MG)",
        "13.1.5": "a breast projection of tomosynthesis (MG)",
        "481.1": "a radiotherapy image (RTIMAGE)",
    }
)
_ULTRASOUND = frozenset({"3", "3.1", "6", "6.1"})
_OTHERS: Mapping[str, str] = MappingProxyType(
    {
        "6.2": "an enhanced ultrasound volume, which lies in a space of its own (Volume Frame of Reference)",
        "77.1.6": "a whole slide image of microscopy, which is no volume of a patient",
        "481.2": "a radiotherapy dose, which is no image of a patient",
    }
)
_LATER_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "66.7": "Label Map Segmentation",
    }
)
"""Names that the library does not know yet."""
_PHOTOGRAPHS = ("77.1.", "77.2")
_CAPTURES = ("7",)


def refused_kind(dataset: Attributes) -> str | None:
    """Return why an object of this SOP class is never a stack of slices, in words; None when it may be one."""
    suffix = _suffix(dataset)
    if suffix in _PROJECTIONS:
        n_frames = integer(dataset, "NumberOfFrames") or 1
        follow = f" of {n_frames} frames, which follow in time" if n_frames > 1 else ""
        return f"{_PROJECTIONS[suffix]}{follow}: a projection, no slice of a volume"
    if suffix in _ULTRASOUND:
        if (n_frames := integer(dataset, "NumberOfFrames") or 1) > 1:
            return f"an ultrasound cine of {n_frames} frames, which follow in time and make no volume"
        return "an ultrasound image, whose place in the patient is not known"
    if suffix in _OTHERS:
        return _OTHERS[suffix]
    if suffix.startswith(_PHOTOGRAPHS):
        return "a photograph or microscopy (visible light), no slice of a volume"
    return None


def class_name(sop_class_uid: str) -> str:
    """Return what a SOP class is called: "RT Structure Set"; its UID when it is private."""
    suffix = sop_class_uid.removeprefix(_ROOT)
    name = _LATER_CLASSES.get(suffix) or (UID(sop_class_uid).name if sop_class_uid else "no SOP class")
    return name.removesuffix(" Storage")


def plane_note(dataset: Attributes) -> str | None:
    """Return what the pixels of a two-dimensional image measure, in words; None where it may be a slice."""
    suffix = _suffix(dataset)
    if suffix in _PROJECTIONS:
        found = _projection(dataset)
        return found.in_words() if found else "nothing says how large the pixels are"
    if suffix in _ULTRASOUND:
        return _ultrasound(dataset)
    if suffix.split(".")[0] in _CAPTURES:
        found = scanned_spacing(_pair(dataset, "NominalScannedPixelSpacing"), _pair(dataset, "PixelSpacing"))
        return found.in_words() if found else "nothing says how large the pixels are"
    return None


def _projection(dataset: Attributes) -> PlaneSpacing | None:
    magnification = floats(dataset, "EstimatedRadiographicMagnificationFactor", 1)
    return projection_spacing(
        _pair(dataset, "PixelSpacing"),
        _pair(dataset, "ImagerPixelSpacing"),
        calibration=text(dataset, "PixelSpacingCalibrationType"),
        magnification=magnification[0] if magnification else None,
    )


def _ultrasound(dataset: Attributes) -> str:
    """Return the spacing of each calibrated region; only centimetres (3) are lengths (PS3.3 C.8.5.5.1.15)."""
    regions = items(dataset, "SequenceOfUltrasoundRegions")
    found = []
    for region in regions:
        units = (integer(region, "PhysicalUnitsXDirection"), integer(region, "PhysicalUnitsYDirection"))
        x, y = floats(region, "PhysicalDeltaX", 1), floats(region, "PhysicalDeltaY", 1)
        if units == (3, 3) and x and y:
            found.append(f"{abs(y[0]) * 10:.4g} x {abs(x[0]) * 10:.4g} mm")
    if found:
        several = f" in {len(found)} of {len(regions)} regions" if len(regions) > 1 else ""
        return f"pixels are {', '.join(dict.fromkeys(found))} in the plane of the beam (region calibration{several})"
    return "nothing says how large the pixels are"


def _pair(dataset: Attributes, keyword: str) -> tuple[float, float] | None:
    found = floats(dataset, keyword, 2)
    return (found[0], found[1]) if found is not None and min(found) > 0 else None


def _suffix(dataset: Attributes) -> str:
    uid = text(dataset, "SOPClassUID")
    return uid.removeprefix(_ROOT) if uid.startswith(_ROOT) else ""
