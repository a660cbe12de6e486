"""Headers of one series -> the unit of its numbers, and for PET the factor to SUV; or why there is none.

A factor is a promise: where a value that it needs is missing, contradictory or implausible, there is none, the numbers
are measured in the unit that is stored, and the reason is said. Nothing is guessed from what is usual.

SUVbw = activity concentration x body weight / activity administered, both activities as of one time. DecayCorrection
START refers the images to the start of the scan, so the dose is decayed until then; ADMIN refers them to the
administration, so it is taken as it is; NONE cannot be used. The start of the scan is Series Date and Time, unless an
acquisition began before it: then the series was made afterwards, and GE's private time of the scan counts, or the
earliest acquisition.

Sources: DICOM PS3.3 C.8.9.1 (PET Series: Units, SUV Type, Decay Correction), C.8.9.2 (PET Isotope), C.8.2.1 (CT Image:
Rescale Type); QIBA FDG-PET/CT profile 1.13 appendix G (vendor-neutral pseudo-code for SUV, Philips' and GE's private
attributes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from dicom_node.imaging.volume import HOUNSFIELD, NO_UNIT, Intensity
from dicom_node.reading.enhanced import functional_groups
from dicom_node.reading.header import VALUE_ERRORS, floats, items, quiet, text

SUV_BW = "{SUVbw}g/ml"
_STORED_UNITS = {
    "BQML": "Bq/ml",
    "CNTS": "{counts}",
    "CPS": "{counts}/s",
    "PROPCNTS": "{propcounts}",
    "PROPCPS": "{propcounts}/s",
    "GML": "g/ml",
    "CM2ML": "cm2/ml",
    "PCNT": "%",
    "MGMINML": "mg/min/ml",
    "UMOLMINML": "umol/min/ml",
    "MLMING": "ml/min/g",
    "MLG": "ml/g",
    "1CM": "/cm",
    "UMOLML": "umol/ml",
    "MLMINML": "ml/min/ml",
    "MLML": "ml/ml",
    "STDDEV": "{stddev}",
    "NONE": NO_UNIT,
}
"""Units (0054,1001) -> UCUM (PS3.16 CID 84)."""
_SUV_TYPES = {
    ("GML", "BW"): SUV_BW,
    ("GML", ""): SUV_BW,  # "if absent, and Units is GML, the type is BW" (PS3.3 C.8.9.1)
    ("GML", "LBM"): "{SUVlbm}g/ml",
    ("GML", "IBW"): "{SUVibw}g/ml",
    ("CM2ML", "BSA"): "{SUVbsa}cm2/ml",
    ("CM2ML", ""): "{SUVbsa}cm2/ml",
}
"""(Units, SUV Type) of images that are SUV as stored."""

_WEIGHT_KG = (0.3, 500.0)
_DOSE_BQ = (1e5, 1e11)
"""0.1 MBq (a phantom) to 100 GBq; a dose in MBq, as some consoles write it, lies far below."""
_HALF_LIFE_S = (60.0, 1e7)
"""Rubidium-82 has 76 s, zirconium-89 282,000 s."""
_MOST_HALF_LIVES = 10
"""After these a thousandth is left: nobody images that, so a clock or a date is wrong."""
_DAY = timedelta(days=1)

Parsed = TypeVar("Parsed")


class _NoSuvError(Exception):
    """Why there is no SUV, in words."""


def intensity_of(datasets: Sequence[Dataset]) -> tuple[Intensity, tuple[str, ...]]:
    """Return in which unit the numbers of one series are measured, and what a reader must know of it.

    Parameters
    ----------
    datasets
        Headers of all instances of one series; none is changed.
    """
    with quiet():
        modality = text(datasets[0], "Modality")
        if modality == "CT":
            return _of_ct(datasets[0])
        if modality == "PT":
            return _of_pet(datasets)
        return Intensity(unit=NO_UNIT), ()


def _of_ct(dataset: Dataset) -> tuple[Intensity, tuple[str, ...]]:
    """Return Hounsfield units, unless Rescale Type says that it is something else (dual energy, unspecified)."""
    transformations = functional_groups(dataset, "PixelValueTransformationSequence")
    holder = next((item for item in transformations if item is not None), dataset)
    kind = text(holder, "RescaleType")
    if kind in ("", "HU"):
        return Intensity(unit=HOUNSFIELD), ()
    return Intensity(unit="{" + kind + "}"), (f"the numbers are no Hounsfield units: Rescale Type is {kind}",)


def _of_pet(datasets: Sequence[Dataset]) -> tuple[Intensity, tuple[str, ...]]:
    units = text(datasets[0], "Units")
    stored = _STORED_UNITS.get(units, NO_UNIT)
    try:
        if len({text(dataset, "Units") for dataset in datasets}) > 1:
            stored = NO_UNIT
            raise _NoSuvError("Units differ within the series")
        return _suv(datasets, units), ()
    except _NoSuvError as error:
        named = f"values are measured in {stored}" if stored != NO_UNIT else "values are measured as stored"
        return Intensity(unit=stored), (f"no SUV: {error}; {named}",)


def _suv(datasets: Sequence[Dataset], units: str) -> Intensity:
    """Return the unit and factor of SUV.

    Raises
    ------
    _NoSuvError
        With the reason.
    """
    corrections = _same(datasets, "CorrectedImage").split("\\")
    if units in ("GML", "CM2ML"):
        # The scanner says that it is SUV; only what it says against that is heard.
        if corrections != [""]:
            _check_corrected(corrections)
        kind = _same(datasets, "SUVType")
        if (units, kind) not in _SUV_TYPES:
            raise _NoSuvError(f"SUV Type {kind or 'missing'} with Units {units} is not known")
        return Intensity(unit=_SUV_TYPES[units, kind])
    if units not in ("BQML", "CNTS"):
        raise _NoSuvError(f"Units is {units}" if units else "Units is missing")
    _check_corrected(corrections)
    if units == "BQML":
        return Intensity(unit=SUV_BW, factor=_per_becquerel(datasets))
    # "Philips PET Private Group": SUV Scale Factor, or Activity Concentration Scale Factor (QIBA).
    if to_suv := _private(datasets, "Philips PET Private Group", 0x7053, 0x00):
        return Intensity(unit=SUV_BW, factor=to_suv)
    if to_bqml := _private(datasets, "Philips PET Private Group", 0x7053, 0x09):
        return Intensity(unit=SUV_BW, factor=to_bqml * _per_becquerel(datasets))
    raise _NoSuvError("Units is CNTS, and no private attribute of Philips gives a scale factor")


def _check_corrected(corrections: Sequence[str]) -> None:
    for code, name in (("ATTN", "attenuation"), ("DECY", "decay")):
        if code not in corrections:
            raise _NoSuvError(f"the images are not corrected for {name} (Corrected Image lacks {code})")


def _per_becquerel(datasets: Sequence[Dataset]) -> float:
    """Return SUVbw for one Bq/ml."""
    weight_kg = _number(datasets, datasets, "PatientWeight", "Patient's Weight", "kg", _WEIGHT_KG)
    given = [items(dataset, "RadiopharmaceuticalInformationSequence") for dataset in datasets]
    if any(len(sequence) != 1 for sequence in given):
        n_given = max(len(sequence) for sequence in given)
        raise _NoSuvError(
            f"{n_given} radiopharmaceuticals were given" if n_given > 1 else "no radiopharmaceutical is described"
        )
    tracers = [sequence[0] for sequence in given]
    dose_bq = _number(datasets, tracers, "RadionuclideTotalDose", "Radionuclide Total Dose", "Bq", _DOSE_BQ)
    correction = _same(datasets, "DecayCorrection")
    if correction == "ADMIN":
        return 1000 * weight_kg / dose_bq
    if correction != "START":
        raise _NoSuvError(f"Decay Correction is {correction or 'missing'}")
    half_life_s = _number(datasets, tracers, "RadionuclideHalfLife", "Radionuclide Half Life", "s", _HALF_LIFE_S)
    elapsed_s = _elapsed(datasets, tracers, half_life_s).total_seconds()
    return float(1000 * weight_kg / (dose_bq * 2 ** (-elapsed_s / half_life_s)))


def _elapsed(datasets: Sequence[Dataset], tracers: Sequence[Dataset], half_life_s: float) -> timedelta:
    """Return the time from the administration to the time to which the images are corrected."""
    scan = _scan_start(datasets)
    longest = timedelta(seconds=_MOST_HALF_LIVES * half_life_s)
    if started := _same(tracers, "RadiopharmaceuticalStartDateTime"):
        elapsed = scan - _date_time(started, datasets[0])
    elif started := _same(tracers, "RadiopharmaceuticalStartTime"):
        elapsed = scan - _joined(scan.strftime("%Y%m%d"), started)
        if elapsed < timedelta(0):
            elapsed += _DAY  # given before midnight, scanned after it
        if elapsed + _DAY <= longest:
            raise _NoSuvError(
                "the day of the administration is not known (Radiopharmaceutical Start DateTime is missing), and the "
                "half life leaves it open"
            )
    else:
        raise _NoSuvError("the time of the administration is missing (Radiopharmaceutical Start DateTime or Time)")
    if elapsed < timedelta(0):
        raise _NoSuvError("the radiopharmaceutical was given after the scan, says its start date and time")
    if elapsed > longest:
        hours, half_lives = elapsed.total_seconds() / 3600, elapsed.total_seconds() / half_life_s
        raise _NoSuvError(f"{hours:.1f} h from administration to scan are implausible ({half_lives:.0f} half lives)")
    return elapsed


def _scan_start(datasets: Sequence[Dataset]) -> datetime:
    """Return the time to which DecayCorrection START refers."""
    acquired = []
    for dataset in datasets:
        date = text(dataset, "AcquisitionDate") or text(dataset, "SeriesDate")
        time = text(dataset, "AcquisitionTime")
        if not date or not time:
            raise _NoSuvError("Acquisition Date or Time is missing")
        acquired.append(_joined(date, time))
    series_date, series_time = _same(datasets, "SeriesDate"), _same(datasets, "SeriesTime")
    if series_date and series_time and (series := _joined(series_date, series_time)) <= min(acquired):
        return series
    scanned = [_private_text(dataset, "GEMS_PETD_01", 0x0009, 0x0D) for dataset in datasets]
    if any(scanned):
        if len(set(scanned)) > 1:
            raise _NoSuvError("GE's date and time of the scan differ within the series")
        return _date_time(scanned[0], datasets[0])
    return min(acquired)


def _joined(date: str, time: str) -> datetime:
    """Return a date and a time of the same clock."""
    day, moment = _parsed(DA, date.replace(".", "")), _parsed(TM, time.replace(":", ""))
    return datetime.combine(day, moment, tzinfo=UTC)  # the scanner's clock: only differences count


def _date_time(value: str, dataset: Dataset) -> datetime:
    """Return a DT on the scanner's clock; an offset in it is turned into that of the other times, when it is known."""
    parsed = _parsed(DT, value)
    offset = parsed.utcoffset()
    clock = text(dataset, "TimezoneOffsetFromUTC")
    local = datetime.combine(parsed.date(), parsed.time(), tzinfo=UTC)
    if offset is None or not clock:
        return local
    own = _parsed(DT, "20000101000000" + clock).utcoffset()
    return local - offset + (own or timedelta(0))


def _parsed(kind: Callable[[str], Parsed | None], value: str) -> Parsed:
    try:
        parsed = kind(value)
    except VALUE_ERRORS:
        parsed = None
    if parsed is None:
        raise _NoSuvError("a date or time cannot be read")
    return parsed


def _same(datasets: Sequence[Dataset], keyword: str) -> str:
    """Return an attribute that all share.

    Raises
    ------
    _NoSuvError
        When they do not.
    """
    found = {text(dataset, keyword) for dataset in datasets}
    if len(found) > 1:
        raise _NoSuvError(f"{keyword} differs within the series")
    return found.pop()


def _number(
    series: Sequence[Dataset],
    holders: Sequence[Dataset],
    keyword: str,
    name: str,
    unit: str,
    bounds: tuple[float, float],
) -> float:
    """Return a number that all instances share and that is plausible."""
    found = {floats(holder, keyword, 1) for holder in holders}
    if len(found) > 1:
        raise _NoSuvError(f"{name} differs within the series of {len(series)} instances")
    value = found.pop()
    if value is None:
        raise _NoSuvError(f"{name} is missing")
    if not bounds[0] <= value[0] <= bounds[1]:
        raise _NoSuvError(f"{name} of {value[0]:g} {unit} is implausible")
    return value[0]


def _private(datasets: Sequence[Dataset], creator: str, group: int, element: int) -> float:
    """Return a private number that all share and that is positive; 0 when there is none."""
    found = set(_private_numbers(datasets, creator, group, element))
    if len(found) > 1:
        raise _NoSuvError(f"the private scale factor ({group:04X},xx{element:02X}) differs within the series")
    value = found.pop()
    return value if value > 0 else 0.0


def _private_numbers(datasets: Sequence[Dataset], creator: str, group: int, element: int) -> Iterator[float]:
    for dataset in datasets:
        try:
            yield float(_private_text(dataset, creator, group, element) or 0)
        except ValueError:
            yield 0.0


def _private_text(dataset: Dataset, creator: str, group: int, element: int) -> str:
    try:
        value = dataset.private_block(group, creator)[element].value
    except VALUE_ERRORS:
        return ""
    if isinstance(value, bytes):  # Implicit VR, and the dictionary does not know it
        value = value.decode("ascii", errors="replace").rstrip("\0")
    return str(value).strip()
