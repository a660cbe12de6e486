from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.errors import GeometryError, NotApplicableError, RefusedInputError, UndecodableError
from dicom_node.imaging.stacks import ReadPolicy, StackPreference
from dicom_node.reading import describe, find_files, group_series, load_volume, read_headers
from dicom_node.reading.decode import decode_instance
from dicom_node.reading.header import read_header
from dicom_node.reading.synthetic import write_series
from dicom_node.study import EQUIPMENT_MANUFACTURER

ROOT = "1.2.826.0.1.3680043.10.511"
OBLIQUE = np.array(
    [[0.8, 0.06, -0.3, -40.0], [-0.08, 0.6, 0.2, 12.0], [0.1, -0.05, 1.9, 700.0], [0, 0, 0, 1]], dtype=float
)
OBLIQUE[:3, 1] -= OBLIQUE[:3, 0] * (OBLIQUE[:3, 0] @ OBLIQUE[:3, 1]) / (OBLIQUE[:3, 0] @ OBLIQUE[:3, 0])
"""Rows and columns at a right angle, the step sheared."""
ARRAY = np.random.default_rng(7).integers(-1000, 2000, (5, 12, 10)).astype(np.float32)
LARGE = np.random.default_rng(8).integers(-1000, 2000, (3, 48, 64)).astype(np.float32)
"""Large enough for the resolution levels of JPEG 2000."""

Write = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return the writer of a small oblique CT series in `tmp_path`; keywords override."""

    def write(**changes: Any) -> list[Path]:
        arguments: dict[str, Any] = {
            "study_instance_uid": f"{ROOT}.1",
            "series_instance_uid": f"{ROOT}.2",
            "frame_of_reference_uid": f"{ROOT}.3",
            "uid_root": ROOT,
        } | changes
        array = arguments.pop("array", ARRAY)
        affine = arguments.pop("affine", OBLIQUE)
        folder = arguments.pop("folder", tmp_path / "series")
        return write_series(folder, array, affine, **arguments)

    return write


def edit(path: Path, change: Callable[[Dataset], object]) -> Path:
    """Change a file in place."""
    dataset = dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (3, 0, 4, 1, 2)])
def test_a_written_series_comes_back(write: Write, enhanced: bool, modality: str, order: tuple[int, ...]) -> None:
    """Values and affine survive writing and reading, in any order of files or frames, classic and enhanced."""
    volume = load_volume(write(enhanced=enhanced, modality=modality, order=order))
    np.testing.assert_array_equal(ARRAY, volume.array)
    np.testing.assert_allclose(volume.grid.affine_lps, OBLIQUE, rtol=0, atol=1e-5)
    assert modality == volume.modality
    assert np.float32 == volume.array.dtype
    for z, frame in enumerate(volume.frames):
        np.testing.assert_allclose(frame.position_mm, OBLIQUE[:3, 3] + z * OBLIQUE[:3, 2], atol=1e-6)


def test_each_slice_knows_its_frame(write: Write) -> None:
    """`frames[z]` names the instance that slice z was read from."""
    paths = write(order=(3, 0, 4, 1, 2))
    volume = load_volume(paths)
    for z, frame in enumerate(volume.frames):
        path = next(path for path in paths if dcmread(path).SOPInstanceUID == frame.sop_instance_uid)
        np.testing.assert_array_equal(volume.array[z], load_volume_slice(path))


def load_volume_slice(path: Path) -> np.ndarray[Any, Any]:
    """Return the values of a one-frame file by another way: pydicom and the rescale."""
    dataset = dcmread(path)
    return np.asarray(dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept), np.float32)


def test_enhanced_frames_are_numbered(write: Write) -> None:
    """Frames of one enhanced object keep their frame number while they are sorted by position."""
    volume = load_volume(write(enhanced=True, order=(3, 0, 4, 1, 2)))
    assert [2, 4, 5, 1, 3] == [frame.frame_number for frame in volume.frames]


def test_workers_give_the_same_volume(write: Write) -> None:
    """Decoding in threads changes nothing."""
    paths = write(order=(3, 0, 4, 1, 2))
    np.testing.assert_array_equal(load_volume(paths).array, load_volume(paths, workers=3).array)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), enhanced=st.booleans())
def test_the_order_of_files_never_matters(write: Write, order: list[int], enhanced: bool) -> None:
    """Whatever the order in which slices were written, the volume is the same."""
    volume = load_volume(write(order=order, enhanced=enhanced))
    np.testing.assert_array_equal(ARRAY, volume.array)


def _set(**values: object) -> Callable[[Dataset], object]:
    return lambda dataset: [setattr(dataset, keyword, value) for keyword, value in values.items()]


def _compress(syntax: str) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.compress(syntax, generate_instance_uid=False)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("enhanced", [False, True])
def test_lossless_syntaxes_give_the_same_values(write: Write, syntax: str, enhanced: bool) -> None:
    """Signed values come out of each codec as they went in."""
    paths = write(array=LARGE, enhanced=enhanced, rescale_intercept=0.0)
    for path in paths:
        edit(path, _compress(syntax))
    np.testing.assert_array_equal(LARGE, load_volume(paths).array)


@pytest.mark.parametrize(
    ("syntax", "order"),
    [(ImplicitVRLittleEndian, "<"), (ExplicitVRBigEndian, ">"), (DeflatedExplicitVRLittleEndian, "<")],
    ids=["implicit", "big endian", "deflated"],
)
@pytest.mark.parametrize("enhanced", [False, True])
def test_uncompressed_syntaxes_give_the_same_values(write: Write, syntax: str, order: str, enhanced: bool) -> None:
    """Byte order, implicit VR and deflation make no difference."""
    paths = write(enhanced=enhanced)
    for path in paths:
        dataset = dcmread(path)
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(f"{order}i2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        list(dataset.iterall())  # parsed values are written in the new byte order, raw ones would not be
        dcmwrite(path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=order == "<")
    np.testing.assert_array_equal(ARRAY, load_volume(paths).array)


@pytest.mark.parametrize(
    ("signed", "bits_stored", "high_bit", "raw", "value"),
    [
        (0, 12, 11, 0xF123, 0x123),  # overlay bits above
        (1, 12, 11, 0x0800, -2048),  # the sign stands in bit 11
        (1, 12, 11, 0xF800, -2048),
        (1, 12, 15, 0x8001, -2048),  # stored in the upper bits
        (0, 16, 15, 0xFFFF, 65535),
        (1, 16, 15, 0xFFFF, -1),
    ],
)
def test_unused_bits_do_not_count(
    write: Write, signed: int, bits_stored: int, high_bit: int, raw: int, value: int
) -> None:
    """Only Bits Stored below High Bit make the value; the sign is extended from them (PS3.5 8.1.1)."""
    header = _set(PixelRepresentation=signed, BitsStored=bits_stored, HighBit=high_bit, RescaleIntercept=0)
    paths = write()
    for path in paths:
        edit(path, header)
        edit(path, _set(PixelData=np.full(120, raw, "<u2").tobytes()))
    assert {value} == set(np.unique(load_volume(paths).array).tolist())


def test_rescale_of_each_slice_is_its_own(write: Write) -> None:
    """PET scales every slice by itself."""
    paths = write(array=np.ones((3, 4, 4)), rescale_intercept=0.0)
    for number, path in enumerate(paths, 1):
        edit(path, _set(RescaleSlope=number, RescaleIntercept=10))
    assert [11.0, 12.0, 13.0] == load_volume(paths).array[:, 0, 0].tolist()


def test_a_frame_s_own_group_wins_over_the_shared_one(write: Write) -> None:
    """Each frame of an enhanced object may have its own rescale; the shared one is for frames without."""

    def rescale_second(dataset: Dataset) -> None:
        own = Dataset()
        own.RescaleSlope, own.RescaleIntercept = 2, 5
        dataset.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence = [own]

    path = edit(write(array=np.ones((3, 4, 4)), rescale_intercept=0.0, enhanced=True)[0], rescale_second)
    assert [1.0, 7.0, 1.0] == load_volume([path]).array[:, 0, 0].tolist()


def test_functional_groups_that_miss_frames_are_refused(write: Write) -> None:
    """Fewer groups than frames: no frame is guessed at."""
    path = edit(write(enhanced=True)[0], lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop())
    assert () == describe(path).frames
    with pytest.raises(GeometryError, match="functional groups describe 4 of 5 frames"):
        load_volume([path])


def test_modality_lut_table_is_applied(write: Write) -> None:
    """A Modality LUT Sequence maps stored values, and those outside its range to its ends (PS3.3 C.11.1.1.1)."""
    table = Dataset()
    table.add_new("LUTDescriptor", "SS", [3, -1, 16])
    table.add_new("LUTData", "US", [100, 200, 300])
    paths = write(array=np.array([-5, -1, 0, 1, 9, 0]).reshape(1, 2, 3).repeat(2, 0), rescale_intercept=0.0)
    for path in paths:
        edit(path, _set(ModalityLUTSequence=[table]))
    assert [100.0, 100.0, 200.0, 300.0, 300.0, 200.0] == load_volume(paths).array[0].ravel().tolist()


def test_float32_keeps_wide_values_with_their_intercept(write: Write) -> None:
    """32-bit values are rescaled in double precision before they become float32."""
    paths = write(array=np.zeros((2, 1, 2)))
    for path in paths:
        edit(path, _set(BitsAllocated=32, BitsStored=32, HighBit=31, RescaleSlope=1, RescaleIntercept=-(2**30)))
        edit(path, _set(PixelData=np.array([2**30 + 1, 2**30 + 3], "<i4").tobytes()))
    assert [1.0, 3.0] == load_volume(paths).array[0, 0].tolist()


def test_monochrome1_is_kept_and_noted(write: Write) -> None:
    """MONOCHROME1 says how to show values, not what they are."""
    paths = [edit(path, _set(PhotometricInterpretation="MONOCHROME1")) for path in write()]
    volume = load_volume(paths)
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert any("MONOCHROME1" in note for note in volume.notes)


def test_a_header_that_contradicts_the_positions_is_noted_and_not_believed(write: Write) -> None:
    """The spacing is that of the positions whatever Slice Thickness and Spacing Between Slices say."""
    volume = load_volume(write(headers={"SliceThickness": 0.7, "SpacingBetweenSlices": 0.7}))
    assert np.linalg.norm(OBLIQUE[:3, 2]) == pytest.approx(volume.grid.spacing_mm[0], abs=1e-6)
    assert any(note.startswith("SpacingBetweenSlices says 0.7 mm, but the positions are") for note in volume.notes)
    assert any(note.startswith("SliceThickness says 0.7 mm") for note in volume.notes)


def test_an_honest_header_makes_no_note(write: Write) -> None:
    """A right-angled stack whose header agrees with its positions is read without a remark."""
    volume = load_volume(write(affine=np.diag([0.8, 0.8, 2.0, 1.0]), headers={"SpacingBetweenSlices": 2.0}))
    assert () == volume.notes


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (_set(Rows=6), UndecodableError, None),
        (_set(Rows=65535, Columns=65535), UndecodableError, "more than"),
        (_set(Rows=13), GeometryError, "different sizes"),
        (_set(NumberOfFrames=2), GeometryError, "2 frames in one instance without a position"),
        (_set(NumberOfFrames=0), UndecodableError, "12 x 10 x 0"),
        (_set(BitsAllocated=12), UndecodableError, "Bits Allocated 12"),
        (_set(BitsStored=17), UndecodableError, "Bits Stored 17"),
        (_set(PhotometricInterpretation="RGB", SamplesPerPixel=3), UndecodableError, r"colour.*\(RGB, 3 samples"),
        (_set(PhotometricInterpretation="PALETTE COLOR"), UndecodableError, "colour"),
        (_set(RescaleSlope=0), UndecodableError, "Rescale Slope is zero"),
        (_set(ImagePositionPatient=None), GeometryError, "no full geometry"),
        (_set(ImageOrientationPatient=[1, 0, 0]), GeometryError, "no full geometry"),
        (_set(PixelSpacing=None), GeometryError, "no full geometry"),
        (_set(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), GeometryError, "different orientations"),
        (_set(FrameOfReferenceUID=f"{ROOT}.9"), GeometryError, "Frames of Reference"),
        (_set(ImagePositionPatient=[-40, 12, 700]), GeometryError, "doubled|missing"),
        (_set(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), GeometryError, "mosaic"),
        (lambda dataset: dataset.__delitem__("PixelData"), UndecodableError, "no pixel data"),
    ],
)
def test_one_bad_slice_refuses_the_volume(
    write: Write, change: Callable[[Dataset], object], error: type[RefusedInputError], reason: str | None
) -> None:
    """Whatever is wrong with one slice is said in words, and nothing crashes."""
    paths = write()
    edit(paths[2], change)
    with pytest.raises(RefusedInputError if reason is None else error, match=reason):
        load_volume(paths)


@pytest.mark.parametrize("enhanced", [False, True])
def test_truncated_pixel_data_are_refused(write: Write, enhanced: bool) -> None:
    """A file that ends within its pixels is no image with a black rest."""
    paths = write(enhanced=enhanced)
    paths[-1].write_bytes(paths[-1].read_bytes()[:-20])
    with pytest.raises(UndecodableError, match=r"pixel data is shorter than Rows x Columns x Frames: \d+ of \d+ bytes"):
        load_volume(paths)


def test_a_missing_slice_is_refused(write: Write) -> None:
    """The reason says where the slice is missing."""
    paths = write()
    with pytest.raises(GeometryError, match=r"a slice is missing .*between slice 2 at .* and slice 3 at"):
        load_volume([path for number, path in enumerate(paths) if number != 2])


def test_two_phases_in_one_series_are_read_as_the_first(write: Write, tmp_path: Path) -> None:
    """Of two stacks at the same positions one is read; the note names both, and a plugin may want the other one."""
    second = write(headers={"AcquisitionNumber": 2}, array=ARRAY + 1)
    first = write(headers={"AcquisitionNumber": 1}, folder=tmp_path / "first", uid_root=f"{ROOT}.77")
    volume = load_volume([*second, *first])
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert (
        "several stacks are mixed in one series: 2 stacks (AcquisitionNumber 1, 5 slices; AcquisitionNumber 2, 5 "
        "slices): read AcquisitionNumber 1, 5 slices (most slices, then the first)"
    ) == volume.notes[0]
    last = ReadPolicy(preferences=(StackPreference(keyword="AcquisitionNumber", prefer="largest"),))
    np.testing.assert_array_equal(ARRAY + 1, load_volume([*second, *first], policy=last).array)
    with pytest.raises(GeometryError, match="one stack only"):
        load_volume([*second, *first], policy=ReadPolicy(stacks="refuse"))


def test_echoes_of_one_enhanced_object_are_split(write: Write) -> None:
    """Frames of the other echo are not decoded; those of the first keep their values and their frame numbers."""

    def two_echoes(dataset: Dataset) -> None:
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            echo = Dataset()
            echo.EffectiveEchoTime = (9.8, 4.9)[number % 2]
            groups.MREchoSequence = [echo]

    twice = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    path = edit(write(modality="MR", enhanced=True, order=twice)[0], two_echoes)
    dataset = dcmread(path)
    pixels = dataset.pixel_array.copy()
    pixels[0::2] = 77
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path)
    volume = load_volume([path])
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert [2, 4, 6, 8, 10] == [frame.frame_number for frame in volume.frames]
    assert "read EffectiveEchoTime 4.9 ms, 5 slices" in volume.notes[0]


def test_a_localizer_in_the_series_is_left_out(write: Write, tmp_path: Path) -> None:
    """Its images stand in another plane; the note says so."""
    sagittal = np.array([[0, 0, 4.0, 0], [0.8, 0, 0, 0], [0, -0.8, 0, 700.0], [0, 0, 0, 1]])
    scout = write(affine=sagittal, array=ARRAY[:2], folder=tmp_path / "scout", uid_root=f"{ROOT}.77")
    volume = load_volume([*scout, *write()])
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert "images of different orientations and Pixel Spacing are mixed in one series: 2 kinds" in volume.notes[0]


def test_an_image_of_another_size_at_the_end_refuses_the_volume(write: Write, tmp_path: Path) -> None:
    """The series would end a slice too early, and nobody would see it."""
    paths = write()
    large = write(array=np.zeros((5, 24, 20)), folder=tmp_path / "large")
    with pytest.raises(GeometryError, match=r"different sizes .*pieces of one volume"):
        load_volume([*paths[:-1], large[-1]])


def test_copies_under_other_uids_are_one_image(write: Write, tmp_path: Path) -> None:
    """A series that was sent twice under new SOP Instance UIDs is read once; with other pixels it is refused."""
    again = write(folder=tmp_path / "again", uid_root=f"{ROOT}.77")
    paths = write()
    volume = load_volume([*paths, *again[1:3]])
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert ("2 images are copies of others (same place, same pixels) and left out",) == volume.notes[:1]
    edit(again[1], lambda dataset: setattr(dataset, "PixelData", bytes(240)))
    with pytest.raises(GeometryError, match=r"slices are doubled .*nothing in their headers tells"):
        load_volume([*paths, *again[1:3]])


def test_a_missing_slice_is_interpolated_where_the_policy_allows(write: Write) -> None:
    """Half-way between its neighbours, on the whole grid, with a frame that names no image, and a note."""
    paths = [path for number, path in enumerate(write()) if number != 2]
    volume = load_volume(paths, policy=ReadPolicy(missing_slices=1))
    np.testing.assert_allclose(volume.grid.affine_lps, OBLIQUE, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ARRAY[[0, 1, 3, 4]], volume.array[[0, 1, 3, 4]])
    np.testing.assert_allclose((ARRAY[1] + ARRAY[3]) / 2, volume.array[2], atol=1e-3)
    assert (2,) == volume.interpolated
    assert ("", 0) == (volume.frames[2].sop_instance_uid, volume.frames[2].frame_number)
    np.testing.assert_allclose(volume.frames[2].position_mm, OBLIQUE[:3, 3] + 2 * OBLIQUE[:3, 2], atol=1e-5)
    assert any(note.startswith("slice 3 of 5 is missing and interpolated") for note in volume.notes)


def test_two_missing_slices_in_a_row_are_interpolated_by_distance(write: Write) -> None:
    """A third and two thirds of the way; one more than the policy allows is refused."""
    paths = [path for number, path in enumerate(write()) if number not in (1, 2)]
    volume = load_volume(paths, policy=ReadPolicy(missing_slices=2))
    np.testing.assert_allclose((2 * ARRAY[0] + ARRAY[3]) / 3, volume.array[1], atol=1e-3)
    np.testing.assert_allclose((ARRAY[0] + 2 * ARRAY[3]) / 3, volume.array[2], atol=1e-3)
    with pytest.raises(GeometryError, match="2 slices are missing"):
        load_volume(paths, policy=ReadPolicy(missing_slices=1))


def test_a_single_slice_is_shown_and_feeds_no_network(write: Write) -> None:
    """Its depth is a hint of the header and named as such; without the hint there is none."""
    path = write(headers={"SliceThickness": 5.0})[1]
    with pytest.raises(GeometryError, match="a single slice does not make a volume"):
        load_volume([path])
    volume = load_volume([path], policy=ReadPolicy(min_slices=1))
    np.testing.assert_array_equal(ARRAY[1:2], volume.array)
    assert 5.0 == pytest.approx(volume.grid.spacing_mm[0])
    np.testing.assert_allclose(volume.grid.affine_lps[:3, 3], OBLIQUE[:3, 3] + OBLIQUE[:3, 2], atol=1e-6)
    assert ("a single slice: that it reaches 5 mm is what SliceThickness says, a hint",) == volume.notes
    edit(path, _set(SliceThickness=None))
    with pytest.raises(GeometryError, match="a single slice without Slice Thickness"):
        load_volume([path], policy=ReadPolicy(min_slices=1))


def test_the_stack_that_is_read_has_the_slices_that_the_plugin_needs(write: Write) -> None:
    """Routing counts all images of a series; the stack that is read may be a part of them."""
    with pytest.raises(NotApplicableError, match="the stack has 5 slices; at least 6 are needed"):
        load_volume(write(), policy=ReadPolicy(min_slices=6))


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_image_without_pixels_at_the_end_refuses_the_series(write: Write, at: int, modality: str) -> None:
    """It still belongs to the series' images, so the volume does not become a slice shorter in silence."""
    paths = write(modality=modality)
    edit(paths[at], lambda dataset: dataset.__delitem__("PixelData"))
    (series,), _ = group_series(paths)
    assert 5 == len(series.images)
    with pytest.raises(UndecodableError, match="no pixel data"):
        load_volume([image.path for image in series.images])


def _as_tomosynthesis(dataset: Dataset) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.13.1.3"
    dataset.Modality = "MG"


def test_breast_tomosynthesis_is_read_by_its_functional_groups(write: Write) -> None:
    """Its frames are slices with a place in the patient, other than the projections they were made of."""
    volume = load_volume([edit(write(enhanced=True)[0], _as_tomosynthesis)])
    np.testing.assert_array_equal(ARRAY, volume.array)
    assert "MG" == volume.modality


def test_an_unreadable_syntax_is_refused_by_name(write: Write) -> None:
    """A video syntax is not decoded, and the reason names it."""
    paths = write()
    for path in paths:
        edit(path, _compress(RLELossless))
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.save_as(path)
    with pytest.raises(UndecodableError, match="MPEG2 Main Profile"):
        load_volume(paths)


def test_damaged_compressed_pixels_are_refused_by_name(write: Write) -> None:
    """A codestream of noise is refused with the syntax's name."""
    paths = write(array=LARGE)
    for path in paths:
        edit(path, _compress(JPEG2000Lossless))
    content = bytearray(paths[1].read_bytes())
    start = content.index(b"\xff\x4f\xff\x51") + 4
    content[start : start + 40] = bytes(40)
    paths[1].write_bytes(content)
    with pytest.raises(UndecodableError, match=r"JPEG 2000 Image Compression \(Lossless Only\)"):
        load_volume(paths)


def test_no_files_are_no_volume() -> None:
    """An empty series is refused, not an index error."""
    with pytest.raises(GeometryError, match="no image"):
        load_volume([])


def test_describe_tells_identity_and_geometry(write: Write) -> None:
    """Identity, patient, frames and a header without pixels come from one pass."""
    path = write(headers={"PatientID": "P1"})[1]
    found = describe(path)
    assert (f"{ROOT}.1", f"{ROOT}.2", "P1") == (found.study_instance_uid, found.series_instance_uid, found.patient_id)
    assert (True, False, 1) == (found.is_image, found.made_by_us, found.n_frames)
    assert (12, 10) == (found.frames[0].rows, found.frames[0].columns)
    assert {"vr": "CS", "Value": ["CT"]} == found.header["00080060"]
    assert "7FE00010" not in found.header
    json.dumps(dict(found.header), allow_nan=False)


def test_describe_keeps_the_first_of_the_frame_groups(write: Write) -> None:
    """The header of an enhanced object does not grow with its frames; its frames are all there."""
    found = describe(write(enhanced=True)[0])
    assert 1 == len(found.header["52009230"]["Value"])
    assert (5, 5) == (found.n_frames, len(found.frames))


def test_bulk_values_stay_out_of_the_header(write: Write) -> None:
    """Long values, NaN and private blobs are no matter of rules."""

    def grow(dataset: Dataset) -> None:
        dataset.add_new(0x00291001, "OB", bytes(200_000))
        dataset.add_new(0x00291002, "OB", bytes(5000))
        dataset.add_new(0x00291003, "OB", bytes(8))
        dataset.add_new(0x00291004, "FD", float("nan"))
        dataset.add_new(0x00291005, "LO", "kept")

    header = describe(edit(write()[0], grow)).header
    assert {"00291003", "00291005"} == {tag for tag in header if tag.startswith("0029")}


@pytest.mark.parametrize(
    ("sop_class_uid", "is_image"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", True),  # CT
        ("1.2.840.10008.5.1.4.1.1.66.4", False),  # SEG
        ("1.2.840.10008.5.1.4.1.1.66.7", False),  # label map SEG
        ("1.2.840.10008.5.1.4.1.1.30", False),  # parametric map
        ("1.2.840.10008.5.1.4.1.1.11.1", False),  # presentation state
        ("1.2.840.10008.5.1.4.1.1.88.34", False),  # SR
        ("1.2.840.10008.5.1.4.1.1.481.2", False),  # dose
        ("1.2.840.10008.5.1.4.1.1.481.1", True),  # RT image
        ("1.2.840.10008.5.1.4.1.1.128", True),  # PET
    ],
)
def test_what_counts_as_an_image(write: Write, sop_class_uid: str, is_image: bool) -> None:
    """Derived objects with pixels are no source of a volume."""
    path = edit(write()[0], _set(SOPClassUID=sop_class_uid))
    assert is_image == describe(path).is_image


@pytest.mark.parametrize("where", ["Manufacturer", "ContributingEquipmentSequence"])
def test_our_own_objects_are_known_again(write: Write, where: str) -> None:
    """Our equipment as manufacturer or contributor marks an object as ours."""
    equipment = Dataset()
    equipment.Manufacturer = EQUIPMENT_MANUFACTURER
    value: object = EQUIPMENT_MANUFACTURER if where == "Manufacturer" else [equipment]
    assert describe(edit(write()[0], _set(**{where: value}))).made_by_us


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_an_instance_without_identity_is_refused(write: Write, keyword: str) -> None:
    """The missing UID is named."""
    path = edit(write()[0], _set(**{keyword: ""}))
    name = keyword.replace("InstanceUID", " Instance UID").replace("ClassUID", " Class UID")
    with pytest.raises(UndecodableError, match=f"has no {name}"):
        describe(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a DICOM file"),
        (b"hello", "not a DICOM file"),
        (bytes(128) + b"DICM", "no transfer syntax"),
        (bytes(128) + b"DICM" + bytes(range(256)) * 8, "cannot be parsed|no transfer syntax|has no"),
    ],
)
def test_what_is_no_dicom_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """Any bytes at all give a reason and no other error."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UndecodableError, match=reason):
        describe(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes overwritten or cut anywhere give a volume or a refusal."""
    folder = tmp_path / "fuzz"
    paths = write_series(
        folder, ARRAY[:2], OBLIQUE, study_instance_uid=f"{ROOT}.1", series_instance_uid=f"{ROOT}.2",
        frame_of_reference_uid=f"{ROOT}.3", uid_root=ROOT, enhanced=data.draw(st.booleans()),
    )  # fmt: skip
    content = bytearray(paths[0].read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(132, len(content) - 1))
        content[at : at + 4] = data.draw(st.binary(min_size=1, max_size=4))
    paths[0].write_bytes(content[: data.draw(st.integers(100, len(content)))])
    with suppress(RefusedInputError):
        describe(paths[0])
    with suppress(RefusedInputError):
        load_volume(paths)


def test_sequences_nested_without_end_are_refused(tmp_path: Path, write: Write) -> None:
    """Sequences nested deeper than the interpreter's stack are a refusal, not a crash."""
    path = write()[0]
    opening = b"\x29\x00\x10\x10SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")] + opening * 5000)
    with pytest.raises(UndecodableError, match="cannot be parsed"):
        describe(path)


def test_find_files_goes_down_and_leaves_out_what_is_no_instance(tmp_path: Path) -> None:
    """Folders are walked in order; DICOMDIR and hidden files are none of ours."""
    for name in ("b/2", "b/1", "a", "DICOMDIR", ".hidden", ".git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [tmp_path / "a", tmp_path / "b/1", tmp_path / "b/2"] == find_files(tmp_path)
    assert [tmp_path / "a"] == find_files(tmp_path / "a")


def test_group_series_sorts_a_folder(write: Write, tmp_path: Path) -> None:
    """Two series, a copy and a stray file: two series, the copy not counted as an image, the stray with its reason."""
    paths = write()
    write(folder=tmp_path / "other", series_instance_uid=f"{ROOT}.4", modality="MR", array=ARRAY[:2])
    shutil.copy(paths[0], tmp_path / "copy.dcm")
    (tmp_path / "notes.txt").write_text("hello")
    series, unreadable = group_series(find_files(tmp_path))
    assert [("CT", 6, 5), ("MR", 2, 2)] == [(s.modality, s.n_instances, len(s.images)) for s in series]
    assert [("notes.txt", "not a DICOM file: the prefix DICM is missing")] == [
        (file.path.name, file.reason) for file in unreadable
    ]
    assert (5, 12, 10) == load_volume([image.path for image in series[0].images]).array.shape


def test_the_digest_is_that_of_the_data_set_alone(write: Write) -> None:
    """Whatever stands in the file meta information, the digest is SHA-256 of the bytes behind it."""
    path = write()[0]
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")  # behind the group's length, which stands at 140
    digest = hashlib.sha256(content[start:]).hexdigest()
    dataset = dcmread(path)
    dataset.file_meta.SourceApplicationEntityTitle = "SCANNER"
    for change in (lambda: None, lambda: dataset.save_as(path)):
        change()
        assert digest == group_series([path])[0][0].images[0].digest
    assert path.read_bytes() != content


def test_series_without_uids_are_one_a_folder(write: Write, tmp_path: Path) -> None:
    """Anonymised files can still be looked at; results could not refer to them, and a note says so."""
    for path in write():
        edit(path, _set(StudyInstanceUID=None, SeriesInstanceUID=None, SOPInstanceUID=None))
    series, unreadable = group_series(find_files(tmp_path))
    assert ([5], []) == ([len(one.images) for one in series], unreadable)
    assert any("no SOP Instance UID" in note for note in load_volume([i.path for i in series[0].images]).notes)


def test_read_headers_keeps_the_order_and_leaves_out_pixels(write: Write) -> None:
    """Headers come in the order asked for, with file meta information."""
    paths = write()[::-1]
    headers = read_headers(paths)
    assert [5, 4, 3, 2, 1] == [header.InstanceNumber for header in headers]
    assert not any("PixelData" in header for header in headers)
    assert {"1.2.840.10008.1.2.1"} == {str(header.file_meta.TransferSyntaxUID) for header in headers}


def test_decode_instance_gives_frames_in_their_own_order(write: Write) -> None:
    """Without a grid, frames stay as they stand in the file."""
    path = write(enhanced=True, order=(3, 0, 4, 1, 2))[0]
    np.testing.assert_array_equal(ARRAY[[3, 0, 4, 1, 2]], decode_instance(read_header(path)))
