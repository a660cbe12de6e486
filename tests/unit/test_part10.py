"""Claims on the first bytes of a file: what it is sent as, and what is no file to be sent."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.dimse.part10 import HEAD_BYTES, FileHead, file_head
from dicom_node.errors import UndecodableError
from tests.integration.receiving import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    MR,
    dicom_file,
    encode_data_set,
    small_data_set,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
LONG_PRIVATE = struct.pack("<HH2sHI", 2, 0x0102, b"OB", 0, 300) + bytes(300)


def file_of(folder: Path, data_set: bytes, *, syntax: str = EXPLICIT) -> bytes:
    """Return a file whose meta information says CT and 1.2.3.4, whatever the data set says."""
    return dicom_file(folder / "x", data_set, syntax=syntax, sop_class_uid=CT).read_bytes()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_the_data_set_says_what_it_is(tmp_path: Path, syntax: str) -> None:
    """File meta information that contradicts its data set is overruled, in every encoding."""
    data_set = encode_data_set(small_data_set("1.2.99"), syntax)
    content = file_of(tmp_path, data_set, syntax=syntax)
    head = file_head(content[:HEAD_BYTES])
    assert (MR, "1.2.99", syntax) == (head.sop_class_uid, head.sop_instance_uid, head.transfer_syntax_uid)
    assert data_set == content[head.data_set_offset :]


def test_meta_information_speaks_where_the_data_set_is_silent(tmp_path: Path) -> None:
    """A data set without SOP UIDs, or that is none, goes under what the file says."""
    ds = small_data_set()
    del ds.SOPClassUID, ds.SOPInstanceUID
    for data_set in (encode_data_set(ds), b"\xff" * 40):
        head = file_head(file_of(tmp_path, data_set))
        assert (CT, "1.2.3.4") == (head.sop_class_uid, head.sop_instance_uid)


def test_a_data_set_may_make_up_for_meta_information(tmp_path: Path) -> None:
    """The class stands in the data set alone: enough to send it."""
    content = file_of(tmp_path, encode_data_set(small_data_set()))
    number = content.index(struct.pack("<HH", 2, 2))
    without = content[:number] + content[number + 8 + 26 :]
    assert MR == file_head(without).sop_class_uid


def test_long_elements_are_stepped_over(tmp_path: Path) -> None:
    """Private information in group 2, whose stated length is not trusted."""
    data_set = encode_data_set(small_data_set())
    content = file_of(tmp_path, data_set)
    cut = len(content) - len(data_set)
    longer = content[:cut] + LONG_PRIVATE + data_set
    assert FileHead(
        sop_class_uid=MR, sop_instance_uid="1.2.3.4", transfer_syntax_uid=EXPLICIT, data_set_offset=cut + 312
    ) == file_head(longer)


@pytest.mark.parametrize("length", [0, 100, 131, 140, 150, 300])
def test_what_is_cut_short_is_undecodable(tmp_path: Path, length: int) -> None:
    """Nothing, half a preamble, half of the meta information."""
    with pytest.raises(UndecodableError):
        file_head(file_of(tmp_path, b"")[:length])


def test_a_file_without_transfer_syntax_is_undecodable() -> None:
    """Nobody could say how to read it."""
    head = bytes(128) + b"DICM" + struct.pack("<HH2sH", 2, 3, b"UI", 8) + b"1.2.3.4\x00"
    with pytest.raises(UndecodableError, match="no transfer syntax"):
        file_head(head + encode_data_set(small_data_set()))


@pytest.mark.parametrize("uid", ["1.2.\xe4", "1." * 33, "1 2", "1\t2"])
@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID"])
def test_what_is_no_uid_is_never_sent(tmp_path: Path, uid: str, keyword: str) -> None:
    """A command set is ASCII, and a UID has 64 characters at most."""
    data_set = encode_data_set(small_data_set())
    old = MR if keyword == "SOPClassUID" else "1.2.3.4"
    longer = uid.encode("latin-1") + bytes(len(uid) % 2)
    element = struct.pack("<HH2sH", 8, 0x16 if keyword == "SOPClassUID" else 0x18, b"UI", len(longer)) + longer
    at = data_set.index(struct.pack("<HH2s", 8, 0x16 if keyword == "SOPClassUID" else 0x18, b"UI"))
    end = at + 8 + len(old) + len(old) % 2
    with pytest.raises(UndecodableError, match="names no SOP"):
        file_head(file_of(tmp_path, data_set[:at] + element + data_set[end:]))


def test_a_letter_in_an_instance_uid_is_for_the_receiver_to_judge(tmp_path: Path) -> None:
    """Anonymizers write hexadecimal digests; the object goes out under its own name."""
    data_set = encode_data_set(small_data_set("1.2.3.4.5.6.7.8.9.10.1234"))
    head = file_head(file_of(tmp_path, data_set.replace(b"1.2.3.4.5.6.7.8.9.10.1234", b"dccc9599087131742838cc11f")))
    assert "dccc9599087131742838cc11f" == head.sop_instance_uid


@settings(max_examples=200)
@given(junk=st.binary(max_size=300))
def test_any_bytes_are_a_file_or_have_a_reason(junk: bytes) -> None:
    """Files come from everywhere."""
    head = None
    with suppress(UndecodableError):
        head = file_head(bytes(128) + b"DICM" + junk)
    assert head is None or head.data_set_offset <= 132 + len(junk)
