"""The coded concepts of our reports, each named once: what is measured, in which unit, of which kind.

Codes come from DICOM (DCM), SNOMED CT (SCT), LOINC (LN), IBSI and UCUM by way of pydicom's dictionary of PS3.16; the
codes of segments come from a plugin's manifest. Nothing here builds an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node import plugin_api
from dicom_node.findings import Measurements

ABSENT = Code("272519000", "SCT", "Absent")
"""CID 240 Present-Absent."""

COMMENT = Code("121106", "DCM", "Comment")

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""TID 1500, row 12."""

ALGORITHM_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
"""CID 7162 Surface Processing Algorithm Families."""

MILLILITRE = Code("mL", "UCUM", "milliliter")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
SQUARE_MILLIMETRE = Code("mm2", "UCUM", "square millimeter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
NO_UNITS = Code("1", "UCUM", "no units")

VOLUME = Code("118565006", "SCT", "Volume")
"""Voxels counted: the volume that equals the SEG's."""

_DIAMETER_3D = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
_VOLUME_OF_MESH = Code("RNU0", "IBSI", "Volume of Mesh")
_SURFACE = Code("C0JK", "IBSI", "Surface Area of Mesh")
_SPHERICITY = Code("QCFX", "IBSI", "Sphericity")

_PROCEDURES: Mapping[str, Code] = MappingProxyType(
    {
        "CT": Code("25045-6", "LN", "CT unspecified body region"),
        "MR": Code("25056-3", "LN", "MRI unspecified body region"),
        "NM": Code("49118-3", "LN", "NM unspecified body region"),
        "PT": Code("44136-0", "LN", "PET unspecified body region"),
    }
)
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


_UNITS: Mapping[str, Code] = MappingProxyType({HOUNSFIELD.value: HOUNSFIELD, NO_UNITS.value: NO_UNITS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number of a measurement group: TID 300."""

    name: Code
    value: float
    unit: Code
    derivation: Code | None = None
    """CID 7464: how many values became one."""


def procedure_reported(modality: str) -> Code:
    """Return the procedure of CID 100 for a modality; PixelMed takes no code from outside that group."""
    return _PROCEDURES.get(modality, _ANY_PROCEDURE)


def concept(code: plugin_api.Code) -> Code:
    """Return a code of the manifest in the words of pydicom."""
    return Code(code.value, code.scheme, code.meaning)


def quantities(measurements: Measurements) -> Iterator[Quantity]:
    """Yield every measurement that is defined, coded and in its unit, the ones read first coming first."""
    return (quantity for quantity in _all_quantities(measurements) if isfinite(quantity.value))


def _all_quantities(measurements: Measurements) -> Iterator[Quantity]:
    yield Quantity(name=VOLUME, value=measurements.volume_ml, unit=MILLILITRE)
    yield Quantity(name=codes.SCT.LongAxis, value=measurements.diameter_long.length_mm, unit=MILLIMETRE)
    if measurements.diameter_short is not None:
        yield Quantity(name=codes.SCT.ShortAxis, value=measurements.diameter_short.length_mm, unit=MILLIMETRE)
    yield from _intensities(measurements)
    for name, value, unit in (
        (_DIAMETER_3D, measurements.diameter_3d_mm, MILLIMETRE),
        (_VOLUME_OF_MESH, measurements.volume_mesh_ml, MILLILITRE),
        (_SURFACE, measurements.surface_mm2, SQUARE_MILLIMETRE),
        (_SPHERICITY, measurements.sphericity, NO_UNITS),
    ):
        if value is not None:
            yield Quantity(name=name, value=value, unit=unit)


def _intensities(measurements: Measurements) -> Iterator[Quantity]:
    unit = _UNITS.get(measurements.intensity_unit) or Code(measurements.intensity_unit, "UCUM", "unit of the modality")
    is_ct = unit == HOUNSFIELD
    name = codes.DCM.AttenuationCoefficient if is_ct else codes.DCM.MRSignalIntensity
    for value, derivation in (
        (measurements.mean, codes.SCT.Mean),
        (measurements.sd, codes.SCT.StandardDeviation),
        (measurements.minimum, codes.SCT.Minimum),
        (measurements.maximum, codes.SCT.Maximum),
        (measurements.median, codes.SCT.Median),
    ):
        yield Quantity(name=name, value=value, unit=unit, derivation=derivation)
