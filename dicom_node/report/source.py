"""The header sanitiser: what real scanners send, made into what a new object may carry.

A result inherits patient and study from its source images. Real headers lack attributes that must be there, and hold
values that no data set may hold; building on them fails late and obscurely. `clean_header` makes a new, small data set
of the inherited attributes and repairs each by its value representation; whatever is not in the table is not inherited.
The source is never changed, and patient and study identity are carried over as they stand.

Sources: DICOM PS3.3 C.7.1.1 (Patient), C.7.2.1 (General Study), C.7.2.2 (Patient Study); PS3.5 6.2 (value
representations). The cases were seen in real data; each is a row of the table in the tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.errors import ResultError
from dicom_node.study import Frame

_SEXES: Mapping[str, str] = MappingProxyType(
    {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "W": "F", "O": "O", "OTHER": "O"}
)
_CONTROL = dict.fromkeys([*range(0x20), 0x7F])


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInstance:
    """One source object, as a result refers to it."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    is_multiframe: bool
    """References to it name the frame."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sources:
    """The images that were judged: one cleaned header for all, and whom to refer to."""

    header: Dataset
    """Of the instance of slice 0, see `clean_header`."""
    instances: Mapping[str, SourceInstance]
    """By SOP Instance UID, in the order of the slices."""

    def nameless_header(self) -> Dataset:
        """Return a copy of the header with an empty name, for highdicom, which quotes unusual names in its warnings.

        Patient data must not reach logs; `provenance.stamp` puts the name into the built object.
        """
        ds = Dataset()
        ds.update(self.header)
        del ds.PatientName  # the element is shared with the header: setting it would empty both
        ds.PatientName = ""
        return ds

    def of(self, frame: Frame) -> SourceInstance:
        """Return the instance that a frame belongs to."""
        return self.instances[frame.sop_instance_uid]


def match_sources(frames: Sequence[Frame], headers: Sequence[Dataset]) -> Sources:
    """Return the sources of the frames, in slice order, whatever the order of the headers.

    Parameters
    ----------
    frames
        Frame of each slice, slice 0 first; interpolated ones have no source.
    headers
        Data sets without pixels; those that no frame names are left out.

    Raises
    ------
    ResultError
        When a frame's instance is not among the headers, or the headers come from more than one study.
    """
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    used = dict.fromkeys(frame.sop_instance_uid for frame in frames if not frame.interpolated)
    absent = [uid for uid in used if uid not in by_uid]
    if absent:
        raise ResultError(f"{len(absent)} of {len(used)} source images have no header, the first is {absent[0]}")
    studies = {str(by_uid[uid].StudyInstanceUID) for uid in used}
    if len(studies) != 1:
        raise ResultError(f"the source images come from {len(studies)} studies; a result belongs to one")
    return Sources(
        header=clean_header(by_uid[next(iter(used))]),
        instances={
            uid: SourceInstance(
                sop_class_uid=str(by_uid[uid].SOPClassUID),
                sop_instance_uid=uid,
                series_instance_uid=str(by_uid[uid].SeriesInstanceUID),
                is_multiframe="NumberOfFrames" in by_uid[uid],
            )
            for uid in used
        },
    )


def clean_header(header: Dataset) -> Dataset:
    """Return a new data set with what results inherit: type 2 attributes present, every value legal, text in UTF-8.

    Parameters
    ----------
    header
        Of any source image; never changed.
    """
    clean = Dataset()
    clean.SpecificCharacterSet = "ISO_IR 192"
    for keyword, rule in _RULES.items():
        text = _text_of(header, keyword)
        value = rule.repair(text) if text else ""
        if value or rule.required:
            setattr(clean, keyword, value)
    if clean.get("PatientIdentityRemoved") != "YES":
        clean.pop("DeidentificationMethod", None)
    elif not clean.get("DeidentificationMethod"):
        clean.DeidentificationMethod = "As the source images state"
    return clean


def _text_of(header: Dataset, keyword: str) -> str:
    """Return the decoded text of an attribute; "" where it is absent, empty or not even readable."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, LookupError, OverflowError):
        return ""
    if value is None:
        return ""
    values = value if isinstance(value, MultiValue | list) else [value]
    return "\\".join(str(part) for part in values)


def _kept(text: str) -> str:
    """Return identity as it stands: a repaired one would be another patient or study."""
    return text


def _printable(max_length: int) -> Callable[[str], str]:
    def repair(text: str) -> str:
        return text.translate(_CONTROL).strip()[:max_length].rstrip()

    return repair


def _first(repair: Callable[[str], str]) -> Callable[[str], str]:
    def repair_first(text: str) -> str:
        return repair(text.partition("\\")[0])

    return repair_first


def _sex(text: str) -> str:
    """Return M, F or O (PS3.3 C.7.1.1); "" for U and whatever else says that it is not known."""
    return _SEXES.get(text.strip().upper(), "")


def _date(text: str) -> str:
    """Return YYYYMMDD; "" for what is no day, such as 19600000."""
    digits = re.sub(r"[.\-/ ]", "", text)
    try:
        return f"{datetime.strptime(digits, '%Y%m%d'):%Y%m%d}" if len(digits) == 8 else ""  # noqa: DTZ007 - a day only
    except ValueError:
        return ""


def _time(text: str) -> str:
    """Return HHMMSS with its fraction; "" for what is no time."""
    match = re.fullmatch(r"([01]\d|2[0-3])(?::?([0-5]\d)(?::?([0-5]\d|60)(?:\.(\d{1,6})\d*)?)?)?", text.strip())
    if not match:
        return ""
    hour, minute, second, fraction = match.groups()
    return hour + (minute or "") + (second or "") + (f".{fraction}" if fraction else "")


def _age(text: str) -> str:
    """Return nnnD, nnnW, nnnM or nnnY; a bare number is in years."""
    match = re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", text.strip().upper())
    return f"{int(match[1]):03d}{match[2] or 'Y'}" if match else ""


def _decimal(text: str) -> str:
    """Return a positive number of at most 16 characters; "" for anything else."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return f"{number:.6g}" if 0 < number < 1e6 else ""


def _flag(*allowed: str) -> Callable[[str], str]:
    def repair(text: str) -> str:
        return text.strip().upper() if text.strip().upper() in allowed else ""

    return repair


def _offset(text: str) -> str:
    """Return &ZZXX (PS3.3 C.12.1.1.8)."""
    return text.strip() if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", text.strip()) else ""


@dataclass(frozen=True, slots=True)
class _Rule:
    repair: Callable[[str], str]
    required: bool = False
    """Type 2: present, if empty."""


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "StudyInstanceUID": _Rule(_kept),
        "PatientID": _Rule(_kept, required=True),
        "IssuerOfPatientID": _Rule(_printable(64)),
        "PatientName": _Rule(_printable(324), required=True),
        "PatientBirthDate": _Rule(_date, required=True),
        "PatientSex": _Rule(_sex, required=True),
        "PatientAge": _Rule(_age),
        "PatientSize": _Rule(_decimal),
        "PatientWeight": _Rule(_decimal),
        "PatientIdentityRemoved": _Rule(_flag("YES", "NO")),
        "DeidentificationMethod": _Rule(_first(_printable(64))),
        "StudyDate": _Rule(_date, required=True),
        "StudyTime": _Rule(_time, required=True),
        "StudyID": _Rule(_printable(16), required=True),
        "AccessionNumber": _Rule(_printable(16), required=True),
        "ReferringPhysicianName": _Rule(_printable(324), required=True),
        "StudyDescription": _Rule(_first(_printable(64))),
        "TimezoneOffsetFromUTC": _Rule(_offset),
        "Modality": _Rule(_first(_printable(16)), required=True),
        "PositionReferenceIndicator": _Rule(_first(_printable(64)), required=True),
        "Manufacturer": _Rule(_first(_printable(64))),
        "ManufacturerModelName": _Rule(_first(_printable(64))),
        "DeviceSerialNumber": _Rule(_first(_printable(64))),
        "SoftwareVersions": _Rule(_first(_printable(64))),
        "LossyImageCompression": _Rule(_flag("00", "01")),
    }
)
"""What is inherited, and how each is repaired."""
