"""Presentation contexts: what the node stores, and in which order it prefers transfer syntaxes.

pynetdicom gives the peer the first syntax of *our* list that it proposed, therefore ours stands in the order in which
we like data: as it was acquired, then compressed without loss, then with loss. A sender that offers several never
hands us lossy data.

Not accepted: JPIP (a URL instead of pixels), SMPTE ST 2110 (a stream), media directories, and objects that belong to no
patient (hanging protocols, implant templates, inventories). Private and unknown classes are stored: a console whose
private object is rejected gives up the whole study.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.pdu_primitives import (
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, build_context

from dicom_node import ids

VERIFICATION: Final = "1.2.840.10008.1.1"
APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
"""PS3.7 A.2.1: the only one there is."""

IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"

UNCOMPRESSED: Final = (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    EXPLICIT_VR_BIG_ENDIAN,
    "1.2.840.10008.1.2.1.98",  # Encapsulated Uncompressed Explicit VR Little Endian
)
LOSSLESS: Final = (
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, Process 14, Selection Value 1
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, Process 14
    "1.2.840.10008.1.2.4.58",  # JPEG Lossless, Process 15 (retired)
    "1.2.840.10008.1.2.4.65",  # JPEG Lossless, Process 28 (retired)
    "1.2.840.10008.1.2.4.66",  # JPEG Lossless, Process 29 (retired)
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 (Lossless Only)
    "1.2.840.10008.1.2.4.92",  # JPEG 2000 Part 2 Multi-component (Lossless Only)
    "1.2.840.10008.1.2.4.201",  # High-Throughput JPEG 2000 (Lossless Only)
    "1.2.840.10008.1.2.4.202",  # High-Throughput JPEG 2000 with RPCL Options (Lossless Only)
    "1.2.840.10008.1.2.4.110",  # JPEG XL Lossless
    "1.2.840.10008.1.2.8.1",  # Deflated Image Frame Compression
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,  # last: it costs a check against bombs
)
LOSSY: Final = (
    "1.2.840.10008.1.2.4.81",  # JPEG-LS Near-Lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.93",  # JPEG 2000 Part 2 Multi-component
    "1.2.840.10008.1.2.4.203",  # High-Throughput JPEG 2000
    "1.2.840.10008.1.2.4.51",  # JPEG Extended (Process 2 and 4)
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    *(f"1.2.840.10008.1.2.4.{process}" for process in (52, 53, 54, 55, 56, 59, 60, 61, 62, 63, 64)),  # JPEG, retired
    "1.2.840.10008.1.2.4.111",  # JPEG XL JPEG Recompression
    "1.2.840.10008.1.2.4.112",  # JPEG XL
    *(f"1.2.840.10008.1.2.4.{video}" for video in (100, 101, 102, 103, 104, 105, 106)),  # MPEG2, MPEG-4
    *(f"1.2.840.10008.1.2.4.{video}.1" for video in (100, 101, 102, 103, 104, 105, 106)),  # the same, fragmentable
    "1.2.840.10008.1.2.4.107",  # HEVC Main Profile
    "1.2.840.10008.1.2.4.108",  # HEVC Main 10 Profile
)
TRANSFER_SYNTAXES: Final = UNCOMPRESSED + LOSSLESS + LOSSY
"""Every transfer syntax in which we store, in the order of our liking."""

_ROOT: Final = "1.2.840.10008."
_OF_PATIENTS: Final = "1.2.840.10008.5.1.4.1.1."
_OF_NO_PATIENT: Final = ("1.2.840.10008.5.1.4.1.1.200.", "1.2.840.10008.5.1.4.1.1.201.")
"""Protocols and inventories (PS3.4 GG): no study, no patient."""

STORAGE_CLASSES: Final = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts) | {
    uid
    for uid, (name, kind, *_) in UID_dictionary.items()
    if kind == "SOP Class" and "Storage" in name and uid.startswith(_OF_PATIENTS) and not uid.startswith(_OF_NO_PATIENT)
}
"""The storage SOP classes with a name, retired ones included."""


def is_storage_class(sop_class_uid: str, *, takes_other_classes: bool = True) -> bool:
    """Return whether instances of this class are filed: named storage classes, and private or unknown ones."""
    return sop_class_uid in STORAGE_CLASSES or (takes_other_classes and not sop_class_uid.startswith(_ROOT))


def acceptable_contexts(
    proposed_abstract_syntaxes: Iterable[str], *, takes_other_classes: bool = True
) -> list[PresentationContext]:
    """Return one context a class, of those that a peer proposed, with the transfer syntaxes that we take, in order.

    Parameters
    ----------
    takes_other_classes
        Whether private and unknown storage classes are among them.
    """
    contexts = []
    for uid in sorted(set(proposed_abstract_syntaxes)):
        if uid == VERIFICATION:
            contexts.append(build_context(uid, [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN]))
        elif is_storage_class(uid, takes_other_classes=takes_other_classes):
            contexts.append(build_context(uid, list(TRANSFER_SYNTAXES)))
    return contexts


def user_information(
    max_pdu: int,
) -> list[MaximumLengthNotification | ImplementationClassUIDNotification | ImplementationVersionNameNotification]:
    """Return who we are and how many bytes we take in one P-DATA-TF: for a request or its answer (PS3.7 D.3.3)."""
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = max_pdu
    implementation.implementation_class_uid = UID(ids.IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = ids.IMPLEMENTATION_VERSION_NAME
    return [length, implementation, version]
