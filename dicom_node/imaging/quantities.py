"""What is measured of a mask: one row a measurement, with its unit, its code and the source of its definition.

`measure` makes the numbers, the report writes those marked `reported`, `dicom-node measure` shows them all, and
docs/measurements.md is this table. Nothing is named, coded or given a unit anywhere else.

Sources: IBSI, the reference manual of the Image Biomarker Standardisation Initiative (arXiv:1612.07003, version 11;
Zwanenburg et al. 2020, Radiology 295), whose codes identify the definition; RECIST 1.1 (Eisenhauer et al. 2009, Eur J
Cancer 45); DICOM PS3.16 CID 218, 7464, 7469, 7470, 7477 (the codes), CID 82 to 85 (UCUM units).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dicom_node.findings import PERCENTILES, Measurements

INTENSITY = "intensity"
"""Unit of a row: that in which the volume's intensities are measured."""
INTENSITY_SQUARED = "intensity squared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A coded term."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One measurement."""

    key: str
    """Of `measure --json`."""
    name: str
    """For people."""
    unit: str
    """UCUM, or `INTENSITY`, `INTENSITY_SQUARED`."""
    concept: Concept | None
    """What is measured; of intensities the unit decides it (`intensity_concept`), and here stands the derivation."""
    definition: str
    source: str
    """Who defined it, with the code by which they call it."""
    value: Callable[[Measurements], float | None]
    reported: bool = False
    """It stands in the structured report: what a radiologist reads. All others are in JSON."""

    @property
    def is_intensity(self) -> bool:
        """Return whether it is a statistic of the voxels' values."""
        return self.unit in (INTENSITY, INTENSITY_SQUARED)

    def unit_of(self, measured: Measurements) -> str:
        """Return the UCUM unit of its value."""
        if self.unit == INTENSITY_SQUARED:
            unit = measured.intensity_unit
            return unit if unit == "1" else f"({unit})2"
        return measured.intensity_unit if self.unit == INTENSITY else self.unit


UNITS: Mapping[str, str] = MappingProxyType(
    {
        "mL": "milliliter",
        "mm": "millimeter",
        "mm2": "square millimeter",
        "1": "no units",
        "[hnsf'U]": "Hounsfield unit",
        "Bq/ml": "Becquerels/milliliter",
        "{counts}": "Counts",
        "{counts}/s": "Counts per second",
        "{propcounts}": "Proportional to counts",
        "{propcounts}/s": "Proportional to counts per second",
        "{SUVbw}g/ml": "Standardized Uptake Value body weight",
        "{SUVlbm}g/ml": "Standardized Uptake Value lean body mass",
        "{SUVibw}g/ml": "Standardized Uptake Value ideal body weight",
        "{SUVbsa}cm2/ml": "Standardized Uptake Value body surface area",
    }
)
"""UCUM -> meaning."""

_ACTIVITY = Concept(value="110821", scheme="DCM", meaning="Nuclear Medicine Tomographic Activity")
_INTENSITY_CONCEPTS: Mapping[str, Concept] = MappingProxyType(
    {
        "[hnsf'U]": Concept(value="112031", scheme="DCM", meaning="Attenuation Coefficient"),
        "1": Concept(value="110852", scheme="DCM", meaning="MR signal intensity"),
        "{SUVbw}g/ml": Concept(value="126401", scheme="DCM", meaning="SUVbw"),
        "{SUVlbm}g/ml": Concept(value="126402", scheme="DCM", meaning="SUVlbm"),
        "{SUVbsa}cm2/ml": Concept(value="126403", scheme="DCM", meaning="SUVbsa"),
        "{SUVibw}g/ml": Concept(value="126404", scheme="DCM", meaning="SUVibw"),
        "Bq/ml": _ACTIVITY,
        "{counts}": _ACTIVITY,
        "{counts}/s": _ACTIVITY,
        "{propcounts}": _ACTIVITY,
        "{propcounts}/s": _ACTIVITY,
    }
)


def intensity_concept(unit: str) -> Concept | None:
    """Return what intensities in a unit measure (CID 7469); None: no code says it."""
    return _INTENSITY_CONCEPTS.get(unit)


def _sct(value: str, meaning: str) -> Concept:
    return Concept(value=value, scheme="SCT", meaning=meaning)


def _ibsi(value: str, meaning: str) -> Concept:
    return Concept(value=value, scheme="IBSI", meaning=meaning)


_PERCENTILE_CODES = {10: _ibsi("QG58", "10th intensity percentile"), 90: _ibsi("8DWT", "90th intensity percentile")}
"""IBSI names these two alone."""


def _percentile(index: int, percent: int) -> Definition:
    concept = _PERCENTILE_CODES.get(percent)
    return Definition(
        key=f"p{percent}",
        name=f"{percent}th percentile",
        unit=INTENSITY,
        concept=concept,
        definition=f"{percent} % of the values are not larger, linear between ranks",
        source=f"IBSI {concept.value}" if concept else "as IBSI QG58",
        value=lambda m: m.percentiles[index] if m.percentiles else None,
    )


DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        key="volume_ml",
        name="Volume",
        unit="mL",
        concept=_sct("118565006", "Volume"),
        definition="number of voxels times the volume of one",
        source="IBSI YEKZ",
        value=lambda m: m.volume_ml,
        reported=True,
    ),
    Definition(
        key="diameter_long_mm",
        name="Long axis",
        unit="mm",
        concept=_sct("103339001", "Long axis"),
        definition="longest distance between two points of the outline on any one slice",
        source="RECIST 1.1",
        value=lambda m: m.diameter_long.length_mm,
        reported=True,
    ),
    Definition(
        key="diameter_short_mm",
        name="Short axis",
        unit="mm",
        concept=_sct("103340004", "Short axis"),
        definition="longest chord of the outline's convex hull at right angles to the long axis, on its slice",
        source="RECIST 1.1",
        value=lambda m: m.diameter_short.length_mm if m.diameter_short else None,
        reported=True,
    ),
    Definition(
        key="mean",
        name="Mean",
        unit=INTENSITY,
        concept=_sct("373098007", "Mean"),
        definition="mean of the values",
        source="IBSI Q4LE",
        value=lambda m: m.mean,
        reported=True,
    ),
    Definition(
        key="sd",
        name="Standard deviation",
        unit=INTENSITY,
        concept=_sct("386136009", "Standard Deviation"),
        definition="root of the variance",
        source="IBSI ECT3, its root",
        value=lambda m: m.sd,
        reported=True,
    ),
    Definition(
        key="min",
        name="Minimum",
        unit=INTENSITY,
        concept=_sct("255605001", "Minimum"),
        definition="smallest value",
        source="IBSI 1GSF",
        value=lambda m: m.minimum,
        reported=True,
    ),
    Definition(
        key="max",
        name="Maximum",
        unit=INTENSITY,
        concept=_sct("56851009", "Maximum"),
        definition="largest value",
        source="IBSI 84IY",
        value=lambda m: m.maximum,
        reported=True,
    ),
    Definition(
        key="median",
        name="Median",
        unit=INTENSITY,
        concept=_sct("373099004", "Median"),
        definition="50th percentile",
        source="IBSI Y12H",
        value=lambda m: m.median,
        reported=True,
    ),
    Definition(
        key="diameter_3d_mm",
        name="3D diameter",
        unit="mm",
        concept=_ibsi("L0JK", "Maximum 3D Diameter of a Mesh"),
        definition="longest distance between two vertices of the surface mesh",
        source="IBSI L0JK",
        value=lambda m: m.diameter_3d_mm,
        reported=True,
    ),
    Definition(
        key="volume_mesh_ml",
        name="Volume of the mesh",
        unit="mL",
        concept=_ibsi("RNU0", "Volume of Mesh"),
        definition="volume inside the surface mesh",
        source="IBSI RNU0",
        value=lambda m: m.volume_mesh_ml,
        reported=True,
    ),
    Definition(
        key="surface_mm2",
        name="Surface",
        unit="mm2",
        concept=_ibsi("C0JK", "Surface Area of Mesh"),
        definition="area of the surface mesh",
        source="IBSI C0JK",
        value=lambda m: m.surface_mm2,
        reported=True,
    ),
    Definition(
        key="sphericity",
        name="Sphericity",
        unit="1",
        concept=_ibsi("QCFX", "Sphericity"),
        definition="surface of the sphere of the mesh's volume, by the surface; 1 is a sphere",
        source="IBSI QCFX",
        value=lambda m: m.sphericity,
        reported=True,
    ),
    Definition(
        key="asphericity",
        name="Asphericity",
        unit="1",
        concept=_ibsi("25C7", "Asphericity"),
        definition="1 / sphericity - 1; 0 is a sphere",
        source="IBSI 25C7",
        value=lambda m: m.asphericity,
    ),
    Definition(
        key="elongation",
        name="Elongation",
        unit="1",
        concept=_ibsi("Q3CK", "Elongation"),
        definition="minor by major axis; 1 is round, 0 is a line",
        source="IBSI Q3CK",
        value=lambda m: m.elongation,
    ),
    Definition(
        key="flatness",
        name="Flatness",
        unit="1",
        concept=_ibsi("N17B", "Flatness"),
        definition="least by major axis; 0 is a plane",
        source="IBSI N17B",
        value=lambda m: m.flatness,
    ),
    Definition(
        key="border_irregularity",
        name="Border irregularity",
        unit="1",
        concept=_ibsi("7T7F", "Area Density in Convex Hull"),
        definition="surface by the surface of the convex hull; 1 is convex, more is rough, less is bent and smooth",
        source="IBSI 7T7F",
        value=lambda m: m.border_irregularity,
    ),
    Definition(
        key="solidity",
        name="Solidity",
        unit="1",
        concept=_ibsi("R3ER", "Volume Density in Convex Hull"),
        definition="volume of the mesh by that of its convex hull; less than 1 the deeper the notches",
        source="IBSI R3ER",
        value=lambda m: m.solidity,
    ),
    Definition(
        key="major_axis_mm",
        name="Major axis",
        unit="mm",
        concept=_ibsi("TDIC", "Major Axis in 3D Length"),
        definition="4 times the root of the largest eigenvalue of the voxel centres' covariance",
        source="IBSI TDIC",
        value=lambda m: m.major_axis_mm,
    ),
    Definition(
        key="minor_axis_mm",
        name="Minor axis",
        unit="mm",
        concept=_ibsi("P9VJ", "Minor Axis in 3D Length"),
        definition="the same of the second eigenvalue",
        source="IBSI P9VJ",
        value=lambda m: m.minor_axis_mm,
    ),
    Definition(
        key="least_axis_mm",
        name="Least axis",
        unit="mm",
        concept=_ibsi("7J51", "Least Axis in 3D Length"),
        definition="the same of the smallest eigenvalue",
        source="IBSI 7J51",
        value=lambda m: m.least_axis_mm,
    ),
    Definition(
        key="variance",
        name="Variance",
        unit=INTENSITY_SQUARED,
        concept=Concept(value="C1711260", scheme="UMLS", meaning="Variance"),
        definition="mean square distance from the mean, divisor n",
        source="IBSI ECT3",
        value=lambda m: m.variance,
    ),
    *(_percentile(index, percent) for index, percent in enumerate(PERCENTILES)),
)
"""Every measurement, those read first coming first."""


def values(measured: Measurements) -> dict[str, float | None]:
    """Return every measurement by its key."""
    return {one.key: one.value(measured) for one in DEFINITIONS}


def markdown() -> str:
    """Return the table as docs/measurements.md has it."""
    titles = ("key", "measurement", "unit", "code", "definition", "source", "in the report")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for one in DEFINITIONS:
        code = "-" if one.concept is None else f"{one.concept.value} {one.concept.scheme} {one.concept.meaning}"
        row = (f"`{one.key}`", one.name, one.unit, code, one.definition, one.source, "yes" if one.reported else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
