"""DICOM keywords for rules: which exist, their tag, and which carry patient data.

The data dictionary is pydicom's, imported when the first keyword is asked for: most commands ask for none. Rules in
config.toml and plugin.toml may also ask for two things that no header holds: the AE titles of the association.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

AE_TITLE_KEYWORDS: Final = ("CallingAETitle", "CalledAETitle")
"""Answered from the association that brought the series, not from its header."""

_HARMLESS_PATIENT_KEYWORDS: Final = frozenset({"PatientSex", "PatientAge", "PatientSize", "PatientWeight"})
_IDENTIFYING_KEYWORDS: Final = frozenset(
    {
        "AccessionNumber",
        "AdmissionID",
        "FillerOrderNumberImagingServiceRequest",
        "ImageComments",
        "IssuerOfAdmissionID",
        "PlacerOrderNumberImagingServiceRequest",
        "RequestedProcedureComments",
        "RequestedProcedureID",
        "ServiceEpisodeID",
        "StudyComments",
        "StudyID",
    }
)
"""Outside group 0010, and not of the value representation PN: names a patient, a visit or an order."""


def is_keyword(keyword: str) -> bool:
    """Return whether a condition may name this keyword."""
    from pydicom.datadict import keyword_dict

    return keyword in AE_TITLE_KEYWORDS or keyword in keyword_dict


def nearest_keyword(keyword: str) -> str | None:
    """Return the keyword that was probably meant, None when nothing is near."""
    from pydicom.datadict import keyword_dict

    by_lower_case = {known.lower(): known for known in (*keyword_dict, *AE_TITLE_KEYWORDS)}
    near = get_close_matches(keyword.lower(), by_lower_case, n=1, cutoff=0.7)
    return by_lower_case[near[0]] if near else None


def tag_of(keyword: str) -> str:
    """Return the tag of a keyword as the DICOM JSON model writes it: eight upper-case hexadecimal digits."""
    from pydicom.datadict import keyword_dict

    return f"{keyword_dict[keyword]:08X}"


def representation(keyword: str) -> str | None:
    """Return the value representation of a keyword, such as "DS"; None where the dictionary leaves a choice."""
    if keyword in AE_TITLE_KEYWORDS:
        return "AE"
    from pydicom.datadict import dictionary_VR, keyword_dict

    vr = str(dictionary_VR(keyword_dict[keyword]))
    return vr if len(vr) == 2 else None


def is_single_valued(keyword: str) -> bool:
    """Return whether the attribute has one value only."""
    if keyword in AE_TITLE_KEYWORDS:
        return True
    from pydicom.datadict import dictionary_VM, keyword_dict

    return dictionary_VM(keyword_dict[keyword]) == "1"


def identifies_patient(keyword: str) -> bool:
    """Return whether values of this keyword may name a patient, a visit or a person and are never written down."""
    if keyword in AE_TITLE_KEYWORDS or keyword in _HARMLESS_PATIENT_KEYWORDS:
        return False
    from pydicom.datadict import dictionary_VR, keyword_dict

    tag = keyword_dict[keyword]
    return tag >> 16 == 0x0010 or keyword in _IDENTIFYING_KEYWORDS or dictionary_VR(tag) == "PN"
