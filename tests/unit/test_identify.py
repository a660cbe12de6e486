"""Claims on the look into a data set before its sender gets an answer: right, cheap and not to be surprised."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.dimse.identify import Identity, identify, sop_uids
from dicom_node.errors import RefusedInputError, UndecodableError
from tests.integration.receiving import BIG, DEFLATED, EXPLICIT, IMPLICIT, MR, encode_data_set, small_data_set

EXPECTED = Identity(
    sop_class_uid=MR, sop_instance_uid="1.2.3.4", study_instance_uid="1.2.3", series_instance_uid="1.2.3.1"
)
SEQUENCE = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def nested(depth: int) -> bytes:
    """Return `depth` sequences, one in the other."""
    return (SEQUENCE + ITEM) * depth + (ITEM_END + SEQUENCE_END) * depth


@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, "1.2.840.10008.1.2.4.90"])
def test_identity_in_every_encoding(syntax: str, undefined_lengths: bool) -> None:
    """Implicit, explicit, big endian and deflated, with sequences of either kind of length."""
    data_set = encode_data_set(
        small_data_set(),
        syntax if syntax in {IMPLICIT, BIG, DEFLATED} else EXPLICIT,
        undefined_lengths=undefined_lengths,
    )
    assert EXPECTED == identify(memoryview(data_set), syntax)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_the_first_bytes_tell_class_and_instance(syntax: str) -> None:
    """A sender needs no more than the beginning of a file, deflated or not."""
    beginning = encode_data_set(small_data_set(n_pixels=50_000), syntax)[:200]
    assert (MR, "1.2.3.4") == sop_uids(memoryview(beginning), syntax)


def test_what_the_first_bytes_lack_is_empty() -> None:
    """No SOP Class UID, no SOP Instance UID: "" says so, and the caller decides."""
    ds = small_data_set()
    del ds.SOPClassUID
    assert ("", "1.2.3.4") == sop_uids(memoryview(encode_data_set(ds)), EXPLICIT)
    del ds.SOPInstanceUID
    assert ("", "") == sop_uids(memoryview(encode_data_set(ds)), EXPLICIT)


@pytest.mark.parametrize("syntax", [EXPLICIT, DEFLATED])
def test_first_bytes_that_are_no_data_set_are_undecodable(syntax: str) -> None:
    """Junk is told from a data set without these UIDs."""
    with pytest.raises(UndecodableError):
        sop_uids(memoryview(b"\xff" * 40), syntax)


def test_unknown_vr_holds_implicit_items() -> None:
    """UN of undefined length is a sequence in implicit VR (PS3.5 6.2.2)."""
    inner = struct.pack("<HHI", 0x0009, 0x1001, 4) + b"ABCD"
    private = struct.pack("<HH2sHI", 0x0009, 0x1000, b"UN", 0, 0xFFFFFFFF) + ITEM + inner + ITEM_END + SEQUENCE_END
    plain = encode_data_set(small_data_set())
    cut = plain.index(struct.pack("<HH2s", 0x0010, 0x0020, b"LO"))
    assert EXPECTED == identify(memoryview(plain[:cut] + private + plain[cut:]), EXPLICIT)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, ""])
def test_missing_uid_is_named(keyword: str, value: str | None) -> None:
    """Absent or empty: the reason says which."""
    ds = small_data_set()
    if value is None:
        del ds[keyword]
    else:
        ds[keyword].value = value
    with pytest.raises(RefusedInputError, match="is missing"):
        identify(memoryview(encode_data_set(ds)), EXPLICIT)


@pytest.mark.parametrize(
    "data_set",
    [
        encode_data_set(small_data_set(), IMPLICIT),
        encode_data_set(small_data_set())[:30],
        b"\x08\x00\x16\x00UI\xff\xff1.2",
        b"garbage that is no data set at all",
        b"\x08\x00",
        SEQUENCE + struct.pack("<HHI", 0x0008, 0x0016, 0),
        SEQUENCE + ITEM,
    ],
)
def test_what_is_no_data_set_is_undecodable(data_set: bytes) -> None:
    """Another encoding, a cut, junk: one error, with a reason."""
    with pytest.raises(UndecodableError):
        identify(memoryview(data_set), EXPLICIT)


def test_sequences_nested_too_deep_are_refused() -> None:
    """5,000 levels break recursive readers; here they cost nothing and are refused."""
    assert EXPECTED == identify(memoryview(_with_head(nested(20))), EXPLICIT)
    with pytest.raises(UndecodableError, match="nested too deep"):
        identify(memoryview(_with_head(nested(5000))), EXPLICIT)


def _with_head(sequences: bytes) -> bytes:
    """Put sequences into group 0008 of a plain data set."""
    plain = encode_data_set(small_data_set())
    cut = plain.index(struct.pack("<HH", 0x0008, 0x1110))
    return plain[:cut] + sequences + plain[cut:]


def test_a_deflate_bomb_is_refused() -> None:
    """Half a megabyte that grows to half a gigabyte is refused before it is read."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    bomb = b"".join(deflater.compress(zeros) for _ in range(200)) + deflater.flush()
    with pytest.raises(UndecodableError, match="beyond all measure"):
        identify(memoryview(bomb), DEFLATED)


def test_what_is_not_deflated_is_named() -> None:
    """Plain bytes in the deflated syntax are undecodable."""
    with pytest.raises(UndecodableError):
        identify(memoryview(b"\xff" * 100), DEFLATED)


@settings(max_examples=300)
@given(st.binary(max_size=300), st.sampled_from([IMPLICIT, EXPLICIT, BIG, DEFLATED]))
def test_any_bytes_give_an_identity_or_a_reason(data_set: bytes, syntax: str) -> None:
    """Nothing that arrives raises anything else."""
    with suppress(RefusedInputError):
        identify(memoryview(data_set), syntax)


@settings(max_examples=300)
@given(st.data())
def test_a_flipped_byte_never_surprises(data: st.DataObject) -> None:
    """A real data set with one byte changed gives an identity or a reason."""
    bytes_ = bytearray(encode_data_set(small_data_set(n_pixels=4)))
    bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RefusedInputError):
        identify(memoryview(bytes_), EXPLICIT)
