"""Claims on file names: whatever comes from the wire, it never becomes a path."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filereader import read_file_meta_info

from dicom_node import ids
from dicom_node.errors import UndecodableError
from dicom_node.filing import InstanceMeta
from dicom_node.filing.layout import digest_in, is_uid, version_path
from dicom_node.filing.meta import HEAD_BYTES, decoded, encoded, group_length

DIGEST = hashlib.sha256(b"pixels").hexdigest()


@given(st.text())
def test_no_uid_leaves_the_store(uid: str) -> None:
    """Any text at all as a UID gives a relative path of two short folders and one hexadecimal name."""
    path = version_path(uid, DIGEST)
    assert not path.is_absolute()
    assert [2, 2, 40 + 1 + 64 + 4] == [len(part) for part in path.parts]
    assert set("".join(path.parts)) <= set("0123456789abcdef-.dcm")


@given(st.text(), st.text())
def test_versions_of_different_instances_have_different_paths(one: str, other: str) -> None:
    """Two UIDs share a path only when they are the same."""
    assert (one == other) == (version_path(one, DIGEST) == version_path(other, DIGEST))


def test_a_path_tells_its_digest() -> None:
    """The sweep reads the digest from the name, and takes foreign names for nothing."""
    assert DIGEST == digest_in(version_path("1.2.3", DIGEST).name)
    assert digest_in("IM0001.dcm") is None
    assert digest_in(version_path("1.2.3", DIGEST).name + ".part") is None


def test_layout_is_what_existing_stores_have() -> None:
    """The path of a version never changes between releases: files on disk are found again."""
    name = "c47f5b18b8a430e698b9fe15e51f6119984e7833"
    assert PurePosixPath(name[:2], name[2:4], f"{name}-{DIGEST}.dcm") == version_path("1.2.3", DIGEST)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", DIGEST.upper(), DIGEST[:-1], DIGEST + "\n"])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    """Only 64 lower-case hexadecimal digits make a file name."""
    with pytest.raises(ValueError, match="64 lower-case"):
        version_path("1.2.3", digest)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.840.10008.1.1", True),
        ("1.02.3", True),  # a leading zero is wrong but seen
        ("1" * 64, True),
        ("1" * 65, False),
        ("", False),
        (".1.2", False),
        ("1.2.3\n", False),  # a pattern that ends in $ would take it
        ("../../x", False),
        ("1.2.3/4", False),
        ("1.2.a", False),
        ("١.٢", False),  # digits, but not ours
    ],
)
def test_form_of_a_uid(text: str, expected: bool) -> None:
    """A UID is 1 to 64 digits and full stops, all of it."""
    assert expected == is_uid(text)


META = InstanceMeta(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
    sop_instance_uid="1.2.3.45",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    calling_ae="CT1",
    called_ae="NODE",
    association=None,
)


def test_file_meta_is_read_by_others(tmp_path: Path) -> None:
    """pydicom reads what we build by hand, value by value, and finds the data set where group 2 ends."""
    path = tmp_path / "x.dcm"
    path.write_bytes(encoded(META) + struct.pack("<HH2sH", 0x0010, 0x0020, b"LO", 2) + b"7 ")
    meta = read_file_meta_info(path)
    assert (META.sop_class_uid, META.sop_instance_uid) == (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
    )
    assert META.transfer_syntax_uid == meta.TransferSyntaxUID
    assert (ids.IMPLEMENTATION_CLASS_UID, ids.IMPLEMENTATION_VERSION_NAME) == (
        meta.ImplementationClassUID,
        meta.ImplementationVersionName,
    )
    assert ("CT1", "CT1", "NODE") == (
        meta.SourceApplicationEntityTitle,
        meta.SendingApplicationEntityTitle,
        meta.ReceivingApplicationEntityTitle,
    )
    assert "7" == dcmread(path).PatientID


def test_file_meta_length_is_exact() -> None:
    """(0002,0000) counts the bytes after itself, and the preamble is 128 zeros."""
    file = encoded(META)
    assert bytes(128) + b"DICM" == file[:132]
    assert len(file) == HEAD_BYTES + group_length(file)
    assert 0 == len(file) % 2


def test_file_meta_is_read_back() -> None:
    """What the sweep reads is what was written."""
    values = decoded(encoded(META)[HEAD_BYTES:])
    assert ["1.2.840.10008.5.1.4.1.1.4", "1.2.3.45", "1.2.840.10008.1.2.1"] == [values[n] for n in (2, 3, 0x10)]
    assert ["CT1", "NODE"] == [values[0x17], values[0x18]]


@pytest.mark.parametrize(
    "file",
    [
        b"",
        bytes(200),
        encoded(META)[:140],
        encoded(META)[:140] + b"\xff\xff\xff\xff",
    ],
)
def test_damaged_head_is_named(file: bytes) -> None:
    """A file without group 2, or with an absurd one, is an error of ours and not of struct."""
    with pytest.raises(UndecodableError):
        group_length(file)


@given(st.binary(max_size=200))
def test_damaged_group_never_surprises(group: bytes) -> None:
    """Any bytes as group 2 give values or the one error."""
    with suppress(UndecodableError):
        decoded(group)


@given(st.integers(min_value=0, max_value=len(encoded(META)) - HEAD_BYTES - 1))
def test_cut_group_is_noticed_or_shorter(length: int) -> None:
    """A group that is cut short gives fewer values or the one error, never more."""
    group = encoded(META)[HEAD_BYTES:]
    with suppress(UndecodableError):
        assert len(decoded(group[:length])) < len(decoded(group))
