"""One table of what is measured: its codes are those of PS3.16, its document is itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes as dictionary

from dicom_node.findings import PERCENTILES, Measurements
from dicom_node.imaging import Grid, crop_mask, measure
from dicom_node.imaging.quantities import DEFINITIONS, UNITS, Concept, intensity_concept, markdown, values
from dicom_node.report.codes import quantities
from tests.unit.imaging_case import make_volume

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "measurements.md"
NOT_IN_PS316 = {"QG58", "8DWT"}
"""IBSI's own codes of the 10th and 90th percentile; PS3.16 takes up those of the histogram only."""
CONCEPTS = [one.concept for one in DEFINITIONS if one.concept and one.concept.value not in NOT_IN_PS316]


def _measured(unit: str = "[hnsf'U]") -> Measurements:
    mask = crop_mask(np.ones((2, 3, 4), dtype=bool))
    assert mask is not None
    grid = Grid(shape=(2, 3, 4), affine_lps=np.eye(4))
    found = measure(mask, make_volume(np.arange(24.0).reshape(2, 3, 4), grid))
    return replace(found, intensity_unit=unit)


@pytest.mark.parametrize(
    "concept", [*CONCEPTS, *(intensity_concept(unit) for unit in UNITS if intensity_concept(unit))]
)
def test_codes_are_those_of_the_standard(concept: Concept) -> None:
    """Value, scheme and meaning stand in pydicom's dictionary of PS3.16, found by the meaning."""
    scheme = getattr(dictionary, concept.scheme)
    found = [getattr(scheme, keyword) for keyword in scheme.dir()]
    meanings = {code.meaning for code in found if code.value == concept.value}
    assert concept.meaning in meanings


def test_every_row_has_a_key_a_unit_and_a_source_of_its_own() -> None:
    """Keys are unlike; units are UCUM with a meaning, or the image's; each definition says whose it is."""
    keys = [one.key for one in DEFINITIONS]
    assert sorted(set(keys)) == sorted(keys)
    for one in DEFINITIONS:
        assert one.unit in UNITS or one.is_intensity
        assert one.definition
        assert one.source


def test_every_measurement_has_a_value() -> None:
    """A mask of 24 voxels has them all, the percentiles in the order of their names."""
    found = values(_measured())
    assert [] == [key for key, value in found.items() if value is None]
    assert [found[f"p{percent}"] for percent in PERCENTILES] == sorted(found[f"p{p}"] or 0.0 for p in PERCENTILES)


def test_the_document_is_the_table() -> None:
    """docs/measurements.md holds the table as it is generated."""
    assert markdown() in DOCUMENT.read_text()


@pytest.mark.parametrize(
    ("unit", "name", "squared"),
    [
        ("[hnsf'U]", "Attenuation Coefficient", "([hnsf'U])2"),
        ("{SUVbw}g/ml", "SUVbw", "({SUVbw}g/ml)2"),
        ("Bq/ml", "Nuclear Medicine Tomographic Activity", "(Bq/ml)2"),
        ("1", "MR signal intensity", "1"),
    ],
)
def test_intensities_are_named_by_their_unit(unit: str, name: str, squared: str) -> None:
    """What the report calls the mean follows from its unit, and the unit has a meaning."""
    measured = _measured(unit)
    (mean,) = [one for one in quantities(measured) if one.derivation and one.derivation.meaning == "Mean"]
    assert (name, unit, UNITS[unit]) == (mean.name.meaning, mean.unit.value, mean.unit.meaning)
    assert squared == next(one for one in DEFINITIONS if one.key == "variance").unit_of(measured)


def test_intensities_without_a_code_are_not_reported() -> None:
    """A dual energy map has numbers, and no code says what they are."""
    assert [] == [one for one in quantities(_measured("{Z_EFF}")) if one.derivation]
    assert any(one.name.meaning == "Volume" for one in quantities(_measured("{Z_EFF}")))
