"""SUV by hand: every way in which a header gives a factor, and every way in which it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.imaging import Grid, crop_mask, measure
from dicom_node.imaging.volume import Intensity
from dicom_node.reading.intensity import SUV_BW, intensity_of
from tests.unit.imaging_case import make_volume

F18_S = 6586.2
DOSE_BQ = 3.7e8
WEIGHT_KG = 74.0
AT_ONCE = 1000 * WEIGHT_KG / DOSE_BQ
"""Factor without decay: 2e-4."""


def tracer(**changes: Any) -> Dataset:
    """Return an item of Radiopharmaceutical Information: fluorine-18, given at noon."""
    values = {
        "RadionuclideTotalDose": str(DOSE_BQ),
        "RadionuclideHalfLife": str(F18_S),
        "RadiopharmaceuticalStartTime": "120000",
    }
    return _dataset(values | changes)


def slice_of(**changes: Any) -> Dataset:
    """Return the header of a PET slice, scanned one hour after noon."""
    values = {
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "SeriesDate": "20240310",
        "SeriesTime": "130000",
        "AcquisitionDate": "20240310",
        "AcquisitionTime": "130000.5",
        "PatientWeight": str(WEIGHT_KG),
        "RadiopharmaceuticalInformationSequence": [tracer()],
    }
    return _dataset(values | changes)


def _dataset(values: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    return dataset


def given(**changes: Any) -> dict[str, Any]:
    """Return the change of a slice whose radiopharmaceutical differs."""
    return {"RadiopharmaceuticalInformationSequence": [tracer(**changes)]}


def factor_of(*slices: Dataset) -> float:
    """Return the factor to SUVbw, which must be there."""
    intensity, notes = intensity_of(slices)
    assert (SUV_BW, ()) == (intensity.unit, notes)
    return intensity.factor


def reason_of(*slices: Dataset) -> str:
    """Return why there is no SUV."""
    intensity, (note,) = intensity_of(slices)
    assert (1.0, True) == (intensity.factor, note.startswith("no SUV: "))
    assert not intensity.unit.startswith("{SUV")
    return note


@pytest.mark.parametrize(
    ("changes", "decay_s"),
    [
        ({}, 3600),
        ({"DecayCorrection": "ADMIN"}, 0),
        ({"DecayCorrection": "ADMIN", **given(RadiopharmaceuticalStartTime=None)}, 0),
        # Over midnight: the time alone is later than the scan's.
        ({"SeriesTime": "003000", "AcquisitionTime": "003100", **given(RadiopharmaceuticalStartTime="233000")}, 3600),
        (given(RadiopharmaceuticalStartDateTime="20240310114500.000000"), 4500),
        (given(RadiopharmaceuticalStartDateTime="20240310124500+0100"), 900),
        ({"TimezoneOffsetFromUTC": "+0000", **given(RadiopharmaceuticalStartDateTime="20240310130000+0100")}, 3600),
        # The date and time win over the time, which has no date.
        (given(RadiopharmaceuticalStartDateTime="20240310123000", RadiopharmaceuticalStartTime="090000"), 1800),
        (given(RadionuclideHalfLife="74000", RadiopharmaceuticalStartDateTime="20240309130000"), 86400),
        # The series was made after the acquisition: the acquisition counts.
        ({"SeriesTime": "170000", "SeriesDate": "20240311"}, 3600.5),
        ({"SeriesTime": "13:00:00", "SeriesDate": "2024.03.10"}, 3600),
        ({"AcquisitionDate": None}, 3600),
    ],
)
def test_dose_decays_from_administration_to_scan(changes: dict[str, Any], decay_s: float) -> None:
    """SUVbw = Bq/ml x weight in g / dose left at the time to which the images are corrected."""
    half_life = F18_S if "74000" not in str(changes) else 74000
    assert factor_of(slice_of(**changes)) == pytest.approx(AT_ONCE * 2 ** (decay_s / half_life), rel=1e-9)


@pytest.mark.parametrize("series_time", ["180000", "130700"])
def test_the_earliest_acquisition_of_all_beds_counts(series_time: str) -> None:
    """Beds begin one after the other; the series, made after the first or after all, is corrected to the first."""
    beds = [slice_of(SeriesTime=series_time, AcquisitionTime=time) for time in ("131000", "130500", "132000")]
    assert factor_of(*beds) == pytest.approx(AT_ONCE * 2 ** (3900 / F18_S))


def test_ge_says_when_the_scan_began() -> None:
    """A reformatted series of GE keeps the time of its scan in a private attribute."""
    dataset = slice_of(SeriesTime="180000")
    dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20240310123000.00")
    assert factor_of(dataset) == pytest.approx(AT_ONCE * 2 ** (1800 / F18_S))


@pytest.mark.parametrize(
    ("element", "value", "expected"),
    [(0x00, "0.00042", 0.00042), (0x09, "1.5", 1.5 * AT_ONCE * 2 ** (3600 / F18_S))],
)
def test_counts_of_philips_have_private_factors(element: int, value: str, expected: float) -> None:
    """SUV Scale Factor gives SUV at once, Activity Concentration Scale Factor Bq/ml."""
    dataset = slice_of(Units="CNTS")
    dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(element, "DS", value)
    assert factor_of(dataset) == pytest.approx(expected)


def test_a_private_factor_of_another_vendor_is_not_philips() -> None:
    """The same element in another block says nothing; so does a factor of zero."""
    dataset = slice_of(Units="CNTS")
    dataset.private_block(0x7053, "Somebody", create=True).add_new(0x00, "DS", "0.1")
    assert "no private attribute of Philips" in reason_of(dataset)
    zero = slice_of(Units="CNTS")
    zero.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0")
    assert "values are measured in {counts}" in reason_of(zero)


@pytest.mark.parametrize(
    ("units", "kind", "unit"),
    [
        ("GML", "BW", "{SUVbw}g/ml"),
        ("GML", None, "{SUVbw}g/ml"),
        ("GML", "LBM", "{SUVlbm}g/ml"),
        ("GML", "IBW", "{SUVibw}g/ml"),
        ("CM2ML", "BSA", "{SUVbsa}cm2/ml"),
    ],
)
def test_what_is_stored_as_suv_stays(units: str, kind: str | None, unit: str) -> None:
    """The scanner made it, nothing else is needed, and its kind decides the unit."""
    dataset = slice_of(Units=units, SUVType=kind, PatientWeight=None, CorrectedImage=None)
    assert (Intensity(unit=unit, factor=1.0), ()) == intensity_of([dataset])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PatientWeight": None}, "Patient's Weight is missing"),
        ({"PatientWeight": "0"}, "Patient's Weight of 0 kg is implausible"),
        ({"PatientWeight": "74000"}, "Patient's Weight of 74000 kg is implausible"),
        ({"CorrectedImage": ["DECY"]}, "not corrected for attenuation"),
        ({"CorrectedImage": ["ATTN"]}, "not corrected for decay"),
        ({"CorrectedImage": None}, "not corrected for attenuation"),
        ({"Units": "GML", "CorrectedImage": ["DECY"]}, "not corrected for attenuation"),
        ({"Units": "GML", "SUVType": "XYZ"}, "SUV Type XYZ with Units GML is not known"),
        ({"Units": None}, "Units is missing; values are measured as stored"),
        ({"Units": "PROPCPS"}, "Units is PROPCPS; values are measured in {propcounts}/s"),
        ({"DecayCorrection": "NONE"}, "Decay Correction is NONE; values are measured in Bq/ml"),
        ({"DecayCorrection": None}, "Decay Correction is missing"),
        ({"RadiopharmaceuticalInformationSequence": []}, "no radiopharmaceutical is described"),
        ({"RadiopharmaceuticalInformationSequence": [tracer(), tracer()]}, "2 radiopharmaceuticals were given"),
        (given(RadionuclideTotalDose="370"), "Radionuclide Total Dose of 370 Bq is implausible"),
        (given(RadionuclideTotalDose=None), "Radionuclide Total Dose is missing"),
        (given(RadionuclideHalfLife="109.8"), None),
        (given(RadionuclideHalfLife="1.83"), "Radionuclide Half Life of 1.83 s is implausible"),
        (given(RadiopharmaceuticalStartTime=None), "the time of the administration is missing"),
        (given(RadiopharmaceuticalStartTime="noon"), "a date or time cannot be read"),
        (given(RadiopharmaceuticalStartTime="131000"), "23.8 h from administration to scan are implausible"),
        (given(RadiopharmaceuticalStartDateTime="20240310131000"), "given after the scan"),
        (given(RadiopharmaceuticalStartDateTime="20190310120000"), "h from administration to scan are implausible"),
        (given(RadionuclideHalfLife="45720"), "the day of the administration is not known"),
        ({"AcquisitionTime": None}, "Acquisition Date or Time is missing"),
    ],
)
def test_what_is_missing_or_implausible_gives_no_suv(changes: dict[str, Any], reason: str | None) -> None:
    """A factor is a promise; the reason says what breaks it, and the stored unit is named."""
    if reason is None:  # a half life of 110 s: one hour is more than ten of them
        reason = "h from administration to scan are implausible"
    assert reason in reason_of(slice_of(**changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Units": "CNTS"}, "Units differ within the series"),
        ({"PatientWeight": "70"}, "Patient's Weight differs within the series"),
        ({"DecayCorrection": "ADMIN"}, "DecayCorrection differs within the series"),
        (given(RadionuclideTotalDose="3.6e8"), "Radionuclide Total Dose differs within the series"),
    ],
)
def test_a_series_that_contradicts_itself_gives_no_suv(changes: dict[str, Any], reason: str) -> None:
    """One volume has one factor."""
    assert reason in reason_of(slice_of(), slice_of(**changes))


@pytest.mark.parametrize(
    ("modality", "kind", "unit"),
    [
        ("CT", None, "[hnsf'U]"),
        ("CT", "HU", "[hnsf'U]"),
        ("CT", "Z_EFF", "{Z_EFF}"),
        ("MR", "US", "1"),
        ("NM", None, "1"),
    ],
)
def test_other_modalities(modality: str, kind: str | None, unit: str) -> None:
    """CT is in Hounsfield units unless Rescale Type says otherwise; everything else is arbitrary."""
    intensity, notes = intensity_of([_dataset({"Modality": modality, "RescaleType": kind})])
    assert (unit, unit.startswith("{")) == (intensity.unit, bool(notes))


def test_the_factor_is_applied_when_measuring() -> None:
    """Every statistic is in SUV, and the volume keeps its numbers."""
    grid = Grid(shape=(1, 1, 4), affine_lps=np.eye(4))
    volume = make_volume(np.array([[[1000.0, 2000.0, 3000.0, 6000.0]]]), grid, modality="PT")
    object.__setattr__(volume, "intensity", Intensity(unit=SUV_BW, factor=0.001))
    mask = crop_mask(np.ones((1, 1, 4), dtype=bool))
    assert mask is not None
    found = measure(mask, volume)
    assert (found.mean, found.minimum, found.maximum, found.median) == pytest.approx((3.0, 1.0, 6.0, 2.5))
    assert found.variance == pytest.approx(3.5)
    assert found.percentiles == pytest.approx((1.15, 1.3, 1.75, 3.75, 5.1, 5.55))
    assert (SUV_BW, 6000.0) == (found.intensity_unit, float(volume.array.max()))
