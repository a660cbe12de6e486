"""Claims on presentation contexts: which are accepted, and in which syntax."""

from __future__ import annotations

import pytest
from pydicom.uid import UID
from pynetdicom.presentation import build_context, negotiate_as_acceptor

from dicom_node.dimse import TRANSFER_SYNTAXES, acceptable_contexts, is_storage_class
from dicom_node.dimse.contexts import LOSSLESS, LOSSY, STORAGE_CLASSES, UNCOMPRESSED

MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT, BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE, J2K_LOSSLESS, J2K, JPEG = (
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.50",
)


@pytest.mark.parametrize(
    ("proposed", "expected"),
    [
        ([JPEG, IMPLICIT], IMPLICIT),
        ([IMPLICIT, EXPLICIT], EXPLICIT),
        ([J2K, J2K_LOSSLESS], J2K_LOSSLESS),
        ([JPEG, J2K, RLE], RLE),
        ([JPEG], JPEG),
        ([BIG, J2K_LOSSLESS], BIG),
    ],
)
def test_the_least_harmful_syntax_is_taken(proposed: list[str], expected: str) -> None:
    """Of several proposed syntaxes the one is taken that comes first in ours: uncompressed, lossless, lossy."""
    proposal = build_context(MR, proposed)
    proposal.context_id = 1
    (context,), _roles = negotiate_as_acceptor([proposal], acceptable_contexts([MR]))
    assert (0, expected) == (context.result, context.transfer_syntax[0])


@pytest.mark.parametrize(
    "syntax",
    [
        "1.2.840.10008.1.2.4.94",  # JPIP Referenced
        "1.2.840.10008.1.2.4.95",
        "1.2.840.10008.1.2.4.204",
        "1.2.840.10008.1.2.4.205",
        "1.2.840.10008.1.2.7.1",  # SMPTE ST 2110
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
    ],
)
def test_syntaxes_without_pixels_are_not_accepted(syntax: str) -> None:
    """A URL or a live stream is nothing that can be stored."""
    assert syntax not in TRANSFER_SYNTAXES


def test_every_syntax_is_one_and_stands_once() -> None:
    """The tables hold transfer syntaxes of the standard, without repeats."""
    assert len(TRANSFER_SYNTAXES) == len(set(TRANSFER_SYNTAXES))
    assert [] == [uid for uid in TRANSFER_SYNTAXES if not UID(uid).is_transfer_syntax]
    assert TRANSFER_SYNTAXES == UNCOMPRESSED + LOSSLESS + LOSSY


@pytest.mark.parametrize(
    ("sop_class", "expected"),
    [
        (MR, True),
        ("1.2.840.10008.5.1.4.1.1.66.4", True),  # Segmentation
        ("1.2.840.10008.5.1.4.1.1.66.7", True),  # Label Map Segmentation
        ("1.2.840.10008.5.1.4.1.1.6", True),  # Ultrasound, retired
        ("1.3.12.2.1107.5.9.1", True),  # Siemens CSA, private
        ("1.3.46.670589.11.0.0.12.2", True),  # Philips, private
        ("1.2.840.10008.1.3.10", False),  # Media Storage Directory
        ("1.2.840.10008.1.20.1", False),  # Storage Commitment
        ("1.2.840.10008.5.1.4.38.1", False),  # Hanging Protocol
        ("1.2.840.10008.5.1.4.1.1.200.1", False),  # CT Defined Procedure Protocol
        ("1.2.840.10008.5.1.4.1.2.2.1", False),  # Study Root Find
        ("1.2.840.10008.3.1.2.3.3", False),  # MPPS
    ],
)
def test_what_is_a_storage_class(sop_class: str, expected: bool) -> None:
    """Objects of patients are stored, private ones too; other services of the standard are not."""
    assert expected == is_storage_class(sop_class)


def test_all_named_storage_classes_are_there() -> None:
    """Nothing of what pynetdicom and pydicom call storage of patients' objects is left out."""
    assert 180 < len(STORAGE_CLASSES)


def test_only_what_is_proposed_is_offered() -> None:
    """An association carries its own few contexts, one a class, without copies of 170."""
    contexts = acceptable_contexts([MR, MR, "1.2.840.10008.1.1", "1.2.840.10008.3.1.2.3.3"])
    assert ["1.2.840.10008.1.1", MR] == [context.abstract_syntax for context in contexts]
