"""The coded concepts of our reports, each named once: what is measured, in which unit, of which kind.

What is measured, with its codes and units, stands in `imaging.quantities`; the codes of segments come from a plugin's
manifest. Nothing here builds an object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType

from pydicom.sr.coding import Code

from dicom_node import plugin_api
from dicom_node.findings import Measurements
from dicom_node.imaging.quantities import DEFINITIONS, UNITS, Concept, intensity_concept

ABSENT = Code("272519000", "SCT", "Absent")
"""CID 240 Present-Absent."""

COMMENT = Code("121106", "DCM", "Comment")

QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""TID 1500, row 12."""

ALGORITHM_FAMILY = Code("123110", "DCM", "Artificial Intelligence")
"""CID 7162 Surface Processing Algorithm Families."""

VOLUME = Code("118565006", "SCT", "Volume")
"""Voxels counted: the volume that equals the SEG's."""

_PROCEDURES: Mapping[str, Code] = MappingProxyType(
    {
        "CT": Code("25045-6", "LN", "CT unspecified body region"),
        "MR": Code("25056-3", "LN", "MRI unspecified body region"),
        "NM": Code("49118-3", "LN", "NM unspecified body region"),
        "PT": Code("44136-0", "LN", "PET unspecified body region"),
    }
)
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


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
    """Yield what is reported of the measurements, when it is defined and coded, the ones read first coming first."""
    intensity = intensity_concept(measurements.intensity_unit)
    for one in DEFINITIONS:
        value = one.value(measurements) if one.reported else None
        name = intensity if one.is_intensity else one.concept
        if value is None or not isfinite(value) or name is None:
            continue
        yield Quantity(
            name=_code(name),
            value=value,
            unit=_unit(one.unit_of(measurements)),
            derivation=_code(one.concept) if one.is_intensity and one.concept else None,
        )


def _code(concept: Concept) -> Code:
    return Code(concept.value, concept.scheme, concept.meaning)


def _unit(ucum: str) -> Code:
    return Code(ucum, "UCUM", UNITS.get(ucum, ucum))
