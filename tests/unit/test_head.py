"""Heads of instances: the quick walk, and the library that reads what is written strangely, must say the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.errors import UndecodableError
from dicom_node.reading import describe, describe_bytes, find_files
from dicom_node.reading.description import HeaderOnDemand
from dicom_node.reading.enhanced import frames_of
from dicom_node.reading.head import Head, OddHeadError, find_head
from dicom_node.reading.header import floats, header_json, integer, items, parse, quiet, text
from dicom_node.reading.synthetic import write_series

ROOT = "1.2.826.0.1.3680043.10.511"
ARRAY = np.zeros((2, 4, 4), dtype=np.float32)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "Manufacturer", "ConvolutionKernel"),
    *("ImageType", "AcquisitionTime", "AcquisitionNumber", "EchoTime", "KVP", "DiffusionBValue", "PatientName"),
)
NUMBERS = {"Rows": 1, "PixelSpacing": 2, "ImagePositionPatient": 3, "EchoTime": 1, "DiffusionBValue": 1, "KVP": 1}


def instance(
    folder: Path, *, enhanced: bool = False, syntax: str = ExplicitVRLittleEndian, change: object = None
) -> bytes:
    """Return the file of a synthetic instance, changed and in a transfer syntax."""
    path = write_series(
        folder, ARRAY, AFFINE, study_instance_uid=f"{ROOT}.1", series_instance_uid=f"{ROOT}.2",
        frame_of_reference_uid=f"{ROOT}.3", uid_root=ROOT, enhanced=enhanced,
    )[0]  # fmt: skip
    dataset = dcmread(path)
    if callable(change):
        change(dataset)
    dataset.file_meta.TransferSyntaxUID = syntax
    list(dataset.iterall())  # parsed values are written in the new byte order, raw ones would not be
    buffer = BytesIO()
    is_implicit, is_little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    dcmwrite(buffer, dataset, implicit_vr=is_implicit, little_endian=is_little)
    return buffer.getvalue()


def raw(keyword: str, value: bytes, vr: bytes) -> Callable[[bytes], bytes]:
    """Return what puts other bytes under another VR in the place of an attribute's element."""

    def change(content: bytes) -> bytes:
        dataset = dcmread(BytesIO(content), stop_before_pixels=True)
        element = dataset.get_item(keyword)
        tag = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little")
        start = content.index(tag + element.VR.encode())
        length = len(value).to_bytes(2, "little") if vr != b"UN" else bytes(2) + len(value).to_bytes(4, "little")
        return content[:start] + tag + vr + length + value + content[start + 8 + element.length :]

    return change


def assert_agreement(content: bytes) -> Head | None:
    """Compare what both ways read; return the head that the quick way found, None when it left it to the library."""
    try:
        head = find_head(content, is_whole=True)
    except (OddHeadError, UndecodableError):
        return None
    assert head is not None
    dataset, transfer_syntax_uid, pixels = parse(BytesIO(content))
    assert (transfer_syntax_uid, pixels is not None) == (head.transfer_syntax_uid, head.has_pixels)
    with quiet():
        assert {keyword: text(dataset, keyword) for keyword in KEYWORDS} == {k: text(head, k) for k in KEYWORDS}
        assert {k: floats(dataset, k, n) for k, n in NUMBERS.items()} == {
            k: floats(head, k, n) for k, n in NUMBERS.items()
        }
        assert integer(dataset, "NumberOfFrames") == integer(head, "NumberOfFrames")
        sequence = "ContributingEquipmentSequence"
        assert items(dataset, sequence) == items(head, sequence)
        assert frames_of(dataset) == frames_of(head)
    assert header_json(dataset) == HeaderOnDemand(head.without_bulk())
    return head


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize(
    ("syntax", "is_quick"),
    [
        (ExplicitVRLittleEndian, True),
        (ImplicitVRLittleEndian, True),
        (ExplicitVRBigEndian, False),
        (DeflatedExplicitVRLittleEndian, False),
    ],
)
def test_content_in_memory_is_described_as_a_file_is(
    tmp_path: Path, enhanced: bool, syntax: str, is_quick: bool
) -> None:
    """Bytes, a view of bytes and a file with them give one description, by the quick way and by the library."""
    content = instance(tmp_path / "series", enhanced=enhanced, syntax=syntax)
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    expected = describe(path)
    assert expected == describe_bytes(content)
    assert expected == describe_bytes(memoryview(bytearray(content)))
    assert (2 if enhanced else 1) == len(expected.frames)
    assert is_quick == (assert_agreement(content) is not None)


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("KVP", b"DS", b" 120 "),
        ("KVP", b"DS", b"1.2e2\x00"),
        ("KVP", b"DS", b"120,5 "),
        ("KVP", b"DS", b"+.5\\1e400"),
        ("KVP", b"DS", b"1_0 "),
        ("KVP", b"DS", b""),
        ("KVP", b"UN", b"120 "),
        ("KVP", b"FL", b"1234"),
        ("AcquisitionNumber", b"IS", b"007 "),
        ("AcquisitionNumber", b"IS", b"1.0 "),
        ("AcquisitionNumber", b"IS", b"1\\2 "),
        ("Rows", b"US", b"\x04\x00\x04\x00"),
        ("Rows", b"US", b"\x04"),
        ("Rows", b"SS", b"\xff\xff"),
        ("PatientID", b"LO", b"  A B\x00"),
        ("PatientID", b"LO", b"A\x00B "),
        ("PatientID", b"LO", b"\x1b$B;3ED\x1b(B"),
        ("PatientID", b"LO", b"J\xe9rome"),
        ("PatientID", b"LO", b"\\A\\ "),
        ("ImageType", b"CS", b"ORIGINAL \\ PRIMARY\\"),
        ("AcquisitionTime", b"TM", b"10:11:12"),
    ],
)
@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192", "\\ISO 2022 IR 87"])
def test_values_of_strange_form_are_read_as_the_library_reads_them(
    tmp_path: Path, keyword: str, vr: bytes, value: bytes, character_set: str
) -> None:
    """A decimal comma, a second NUL, another VR or another alphabet: one answer, whoever gives it."""

    def fill(dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = character_set.split("\\")
        dataset.KVP, dataset.AcquisitionNumber, dataset.PatientID, dataset.AcquisitionTime = 1, 1, "P", "10"

    content = raw(keyword, value, vr)(instance(tmp_path, change=fill))
    assert assert_agreement(content) is not None


def _nested(depth: int) -> Callable[[Dataset], None]:
    """Return what adds a sequence in a sequence, all of undefined length."""

    def add(dataset: Dataset) -> None:
        inner = Dataset()
        inner.Manufacturer = "inner"
        for _ in range(depth):
            outer = Dataset()
            outer.ContributingEquipmentSequence = Sequence([inner, Dataset()])
            outer["ContributingEquipmentSequence"].is_undefined_length = True
            inner.is_undefined_length_sequence_item = True
            outer.Manufacturer = "outer"
            inner = outer
        dataset.update(inner)

    return add


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(("depth", "is_quick"), [(1, True), (5, True), (16, True), (40, False)])
def test_sequences_of_undefined_length_are_walked(tmp_path: Path, syntax: str, depth: int, is_quick: bool) -> None:
    """Their end is found by their items; nested beyond reason they are the library's."""
    content = instance(tmp_path, syntax=syntax, change=_nested(depth))
    assert is_quick == (assert_agreement(content) is not None)
    assert 1 == len(describe_bytes(content).frames)


def test_item_that_ends_inside_an_element_is_left_to_the_library(tmp_path: Path) -> None:
    """The library parses items of undefined sequences at once, and may find there what this walk must not pass over."""
    content = instance(tmp_path)
    pixels = content.index(b"\xe0\x7f\x10\x00")
    opening = b"\x29\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0"
    for length, is_odd in ((10, False), (9, True)):
        item = length.to_bytes(4, "little") + b"\x29\x00\x11\x10LO\x02\x00AB"
        changed = content[:pixels] + opening + item + b"\xfe\xff\xdd\xe0" + bytes(4) + content[pixels:]
        with pytest.raises(OddHeadError) if is_odd else nullcontext():
            find_head(changed, is_whole=True)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_beginning_without_pixels_is_too_short_wherever_it_ends(tmp_path: Path, syntax: str) -> None:
    """Inside a value, a header of an element or a sequence: more of the file is asked for, nothing is refused."""
    content = instance(tmp_path, syntax=syntax, change=_nested(2))
    pixels = content.rindex(b"\xe0\x7f\x10\x00")
    assert {None} == {find_head(content[:n], is_whole=False) for n in range(132, pixels + 8)}
    assert find_head(content[: pixels + 12], is_whole=False) is not None


def test_description_holds_no_bulk(tmp_path: Path) -> None:
    """A batch of instances with vendors' blobs, short and long, weighs no more than their other elements."""

    def grow(dataset: Dataset) -> None:
        dataset.add_new(0x00290010, "LO", "VENDOR")
        dataset.add_new(0x00291001, "OB", bytes(300_000))
        dataset.add_new(0x00291002, "OB", bytes(5000))
        dataset.add_new(0x00291003, "UN", bytes(100_000))
        dataset.add_new(0x00291004, "UT", "kept" * 100)

    head = assert_agreement(instance(tmp_path, change=grow))
    assert head is not None
    assert len(head.without_bulk()) < 4000


def test_head_longer_than_the_first_look_is_found(tmp_path: Path) -> None:
    """The beginning is read again, longer, until the pixels are in sight."""
    content = instance(tmp_path / "a", change=lambda dataset: dataset.add_new(0x00291001, "OB", bytes(200_000)))
    assert find_head(content[: 1 << 16], is_whole=False) is None
    path = tmp_path / "file.dcm"
    path.write_bytes(content)
    assert "00280010" in describe(path).header
    assert describe(path) == describe_bytes(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_quick_way_reads_of_damaged_files_the_library_reads_too(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes overwritten or cut anywhere: no answer that the library would not give, so no header that fails late."""
    content = bytearray(
        instance(
            tmp_path,
            enhanced=data.draw(st.booleans()),
            syntax=data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian])),
            change=_nested(2),
        )
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(132, len(content) - 1))
        content[at : at + 4] = data.draw(st.binary(min_size=1, max_size=4))
    assert_agreement(bytes(content[: data.draw(st.integers(132, len(content)))]))


def test_header_that_does_not_parse_is_empty() -> None:
    """It fails for nobody long after the instance was taken."""
    assert {} == HeaderOnDemand(b"no head")


def test_large_header_does_not_wait(tmp_path: Path) -> None:
    """Hundreds of descriptions wait together: a head too large for that becomes JSON at once."""

    def grow(dataset: Dataset) -> None:
        for block in range(100):
            dataset.add_new(0x00291000 + block, "UT", "x" * 4000)

    head = assert_agreement(instance(tmp_path, change=grow))
    assert head is not None
    small, large = HeaderOnDemand(head.without_bulk()[:1000]), HeaderOnDemand(head.without_bulk())
    assert (1000, 0) == (small.waiting_bytes, large.waiting_bytes)


@pytest.mark.data
def test_real_files_are_read_alike_in_either_way(shared_data: Path) -> None:
    """Scanners of many vendors, every syntax and character set; most of them need the library for nothing."""
    files = [path for path in find_files(shared_data) if 132 < path.stat().st_size < 1 << 26]
    whole = [content for path in files if (content := path.read_bytes())[128:132] == b"DICM"]
    quick = [content for content in whole if assert_agreement(content) is not None]
    assert len(quick) > 0.9 * len(whole)
