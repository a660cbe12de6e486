"""Claims on pixels: every encoding of one image gives the same values, and whatever lies is refused by name."""

from __future__ import annotations

import resource
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.codecs import ENCAPSULATED, FrameForm, decode_frame
from dicom_node.codecs.pool import DecoderPool, FrameRequest
from dicom_node.errors import UndecodableError
from dicom_node.reading import decoding
from dicom_node.reading.colour import luminance, rgb_frames
from dicom_node.reading.decode import (
    ModalityLut,
    check_decodable,
    decode_instance,
    encapsulated_frames,
    frame_form,
    modality_luts,
    pixel_layout,
    stored_frames,
)
from dicom_node.reading.decoding import decode_into, pixel_notes
from dicom_node.reading.header import Header, read_header
from dicom_node.reading.padding import PixelPadding, padding_of
from tests.integration.receiving import dicom_file, encode_data_set

PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
UNCOMPRESSED_FRAMES = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
GREY = np.random.default_rng(1).integers(-1024, 3000, (3, 40, 36)).astype("<i2")
COLOUR = np.random.default_rng(2).integers(0, 256, (2, 40, 36, 3)).astype("u1")


def instance(frames: NDArray[Any], **changes: object) -> Dataset:
    """Return an uncompressed instance whose frames are `frames` (Z, Y, X) or (Z, Y, X, 3); attributes override."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.SamplesPerPixel = frames.shape[3] if frames.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    bits = 8 * frames.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PixelRepresentation = int(frames.dtype.kind == "i")
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    raw = frames.tobytes()
    ds.PixelData = raw + bytes(len(raw) % 2)
    ds["PixelData"].VR = "OB" if bits == 8 else "OW"
    return ds


def saved(ds: Dataset, path: Path) -> Header:
    """Write the instance as it is, and return its header."""
    syntax = ds.file_meta.TransferSyntaxUID
    encoding = syntax if syntax in PLAIN else ExplicitVRLittleEndian
    list(ds.iterall())
    return read_header(dicom_file(path, encode_data_set(ds, encoding), syntax=syntax))


def encapsulated(ds: Dataset, syntax: str, frames: Sequence[bytes], **options: Any) -> Dataset:
    """Return the instance with these encoded frames."""
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(list(frames), **options)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def deflated(frame: bytes) -> bytes:
    """Return a frame as a raw deflate stream of even length."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = packer.compress(frame) + packer.flush()
    return packed + bytes(len(packed) % 2)


def grey_values(header: Header) -> NDArray[np.float32]:
    return decode_instance(header)


@pytest.mark.parametrize("syntax", [UNCOMPRESSED_FRAMES, DEFLATED_FRAMES])
def test_frames_that_are_only_wrapped_are_unwrapped(tmp_path: Path, syntax: str) -> None:
    """Encapsulated uncompressed and deflated frames hold the values of the plain ones (PS3.5 A.4.11, A.4.13)."""
    wrap = deflated if syntax == DEFLATED_FRAMES else bytes
    ds = encapsulated(instance(GREY), syntax, [wrap(frame.tobytes()) for frame in GREY])
    np.testing.assert_array_equal(GREY, grey_values(saved(ds, tmp_path / "x")))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("kind", ["<i2", "<u2", "u1"])
def test_lossless_frames_keep_sign_and_width(tmp_path: Path, syntax: str, kind: str) -> None:
    """Signed and unsigned, eight and sixteen bits, come out as they went in."""
    limits = np.iinfo(kind)
    low = 0 if syntax == JPEGLSLossless and kind == "<i2" else limits.min  # its encoder takes no sign
    frames = np.random.default_rng(3).integers(low, limits.max, (2, 40, 36), endpoint=True).astype(kind)
    ds = instance(frames)
    if kind == "<i2" and syntax == JPEGLSLossless:
        ds.PixelRepresentation = 0
    plugin = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}.get(syntax, "pyjpegls")
    ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    if kind == "<i2":
        ds.PixelRepresentation = 1
    np.testing.assert_array_equal(frames, grey_values(saved(ds, tmp_path / "x")))


@pytest.mark.parametrize("name", ["one fragment", "offsets", "extended", "by codestreams", "wrong offsets"])
def test_fragments_become_frames(tmp_path: Path, name: str) -> None:
    """With and without offset table, in one fragment or three, with a table that points nowhere: the same frames."""
    ds = instance(GREY)
    ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    frames = [frame + bytes(len(frame) % 2) for frame in generate_frames(ds.PixelData, number_of_frames=3)]
    if name == "extended":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        ds["PixelData"].is_undefined_length = True
    else:
        fragments = 1 if name in ("one fragment", "wrong offsets") else 3
        has_table = name in ("offsets", "wrong offsets")
        encapsulated(ds, JPEG2000Lossless, frames, fragments_per_frame=fragments, has_bot=has_table)
    if name == "wrong offsets":
        ds.PixelData = ds.PixelData[:12] + struct.pack("<I", 7) + ds.PixelData[16:]
    np.testing.assert_array_equal(GREY, grey_values(saved(ds, tmp_path / "x")))


@pytest.mark.parametrize("is_extended", [False, True])
def test_offset_tables_tell_frames_apart_that_begin_alike(tmp_path: Path, is_extended: bool) -> None:
    """RLE has no mark at its beginning: of two fragments a frame only the table knows, basic or extended."""
    ds = instance(GREY)
    ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    frames = list(generate_frames(ds.PixelData, number_of_frames=3))
    encapsulated(ds, RLELossless, frames, fragments_per_frame=2, has_bot=True)
    if is_extended:
        offsets = struct.unpack("<3I", ds.PixelData[8:20])
        ds.ExtendedOffsetTable = struct.pack("<3Q", *offsets)
        ds.ExtendedOffsetTableLengths = struct.pack("<3Q", *map(len, frames))
        ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + ds.PixelData[20:]
    np.testing.assert_array_equal(GREY, grey_values(saved(ds, tmp_path / "x")))


def test_fragments_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    """Six fragments of RLE, no table, three frames: nobody knows."""
    ds = encapsulated(instance(GREY), RLELossless, [bytes(100)] * 3, fragments_per_frame=2, has_bot=False)
    with pytest.raises(UndecodableError, match="6 fragments of pixel data cannot be told apart as 3 frames"):
        grey_values(saved(ds, tmp_path / "x"))


@pytest.mark.parametrize("cut", [0, 4, 30])
def test_fragments_beyond_the_file_are_refused(tmp_path: Path, cut: int) -> None:
    """A file that ends within its frames is refused; one that lacks only the delimiter is read."""
    ds = encapsulated(instance(GREY), UNCOMPRESSED_FRAMES, [frame.tobytes() for frame in GREY], has_bot=False)
    saved(ds, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[: len(whole) - 8 - cut])
    if cut:
        with pytest.raises(UndecodableError, match="truncated"):
            grey_values(read_header(tmp_path / "x"))
    else:
        np.testing.assert_array_equal(GREY, grey_values(read_header(tmp_path / "x")))


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.10008.1.2.4.92", r"JPEG 2000 Part 2 .*1\.2\.840\.10008\.1\.2\.4\.92"),
        ("1.2.840.10008.1.2.4.110", r"JPEG XL Lossless \(1\.2\.840\.10008\.1\.2\.4\.110"),
        ("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.826.0.1.3680043.9.9", r"1\.2\.826\.0\.1\.3680043\.9\.9 cannot be decoded"),
    ],
)
def test_a_syntax_that_nothing_decodes_is_refused_by_name(tmp_path: Path, syntax: str, reason: str) -> None:
    """Before anything is read of the pixels."""
    header = saved(encapsulated(instance(GREY), syntax, [bytes(8)] * 3), tmp_path / "x")
    with pytest.raises(UndecodableError, match=reason):
        check_decodable(header, pixel_layout(header))
    with pytest.raises(UndecodableError, match=reason):
        grey_values(header)


@pytest.mark.parametrize("syntax", sorted(ENCAPSULATED))
def test_noise_is_refused_in_every_syntax(tmp_path: Path, syntax: str) -> None:
    """A frame of noise is refused with its number and the syntax's name, whatever the codec says of it."""
    noise = np.random.default_rng(4).bytes(600)
    header = saved(encapsulated(instance(GREY), syntax, [noise] * 3), tmp_path / "x")
    with pytest.raises(UndecodableError, match=f"frame 1 in .*{syntax}"):
        grey_values(header)


@pytest.mark.parametrize("syntax", sorted(ENCAPSULATED))
def test_a_header_that_claims_gigabytes_costs_no_memory(tmp_path: Path, syntax: str) -> None:
    """Rows x Columns x Frames beyond what so few bytes can hold, in every syntax."""
    ds = encapsulated(instance(GREY), syntax, [bytes(600)] * 3)
    ds.Rows = ds.Columns = 23000
    ds.NumberOfFrames = 1
    header = saved(ds, tmp_path / "x")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UndecodableError, match=r"compressed pixel data of \d+ bytes cannot be \d+ bytes of image"):
        grey_values(header)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 1 << 16


def test_a_deflated_frame_grows_no_further_than_its_header(tmp_path: Path) -> None:
    """256 MB of zeros in a frame of 3 kB: what is beyond Rows x Columns is never inflated."""
    bomb = deflated(bytes(1 << 28))
    header = saved(encapsulated(instance(GREY[:1]), DEFLATED_FRAMES, [bomb]), tmp_path / "x")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not grey_values(header).any()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 1 << 15


def test_a_deflated_file_does_not_grow_without_end(tmp_path: Path) -> None:
    """A data set of 300 kB that would inflate to 300 MB is refused before it is held."""
    ds = instance(GREY)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = saved(ds, tmp_path / "x").path
    content = path.read_bytes()
    np.testing.assert_array_equal(GREY, grey_values(read_header(path)))
    group_length = struct.unpack("<I", content[140:144])[0]
    bomb = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    path.write_bytes(content[: 144 + group_length] + bomb.compress(bytes(300 << 20)) + bomb.flush())
    with pytest.raises(UndecodableError, match="deflated data set of .* grows beyond"):
        read_header(path)


def test_a_codestream_with_more_components_than_its_header_is_refused(tmp_path: Path) -> None:
    """JPEG 2000 can claim 16384 components of the right size: refused before room is made."""
    ds = instance(COLOUR[:1])
    ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    with pytest.raises(UndecodableError, match="has 3 components in its codestream and 1 samples a pixel"):
        grey_values(saved(ds, tmp_path / "x"))


def test_encapsulated_pixels_under_a_plain_syntax_are_refused(tmp_path: Path) -> None:
    """Items are no values."""
    ds = encapsulated(instance(GREY), UNCOMPRESSED_FRAMES, [frame.tobytes() for frame in GREY])
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = saved(ds, tmp_path / "x").path
    with pytest.raises(UndecodableError, match="encapsulated, although the transfer syntax says uncompressed"):
        grey_values(read_header(path))


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("size", [(4, 6), (3, 3)])
def test_bytes_in_big_endian_words_are_swapped_back(tmp_path: Path, vr: str, size: tuple[int, int]) -> None:
    """8-bit values as OW stand in swapped pairs in Big Endian, frames of odd length included (PS3.5 7.3)."""
    frames = np.random.default_rng(5).integers(0, 255, (3, *size)).astype("u1")
    raw = frames.tobytes() + bytes(frames.size % 2)
    ds = instance(frames)
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = np.frombuffer(raw, "u2").byteswap().tobytes() if vr == "OW" else raw
    ds["PixelData"].VR = vr
    np.testing.assert_array_equal(frames, grey_values(saved(ds, tmp_path / "x")))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, DEFLATED_FRAMES])
def test_single_bits_are_unpacked(tmp_path: Path, syntax: str) -> None:
    """Frames of 15 bits follow each other bit by bit; each encapsulated one begins with a byte (PS3.5 8.1.1)."""
    bits = np.random.default_rng(6).integers(0, 2, (4, 3, 5)).astype("u1")
    ds = instance(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    if syntax == DEFLATED_FRAMES:
        encapsulated(ds, syntax, [deflated(np.packbits(frame, bitorder="little").tobytes()) for frame in bits])
    else:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = np.packbits(bits, bitorder="little").tobytes()
        ds["PixelData"].VR = "OB"
    header = saved(ds, tmp_path / "x")
    np.testing.assert_array_equal(bits, np.stack(list(stored_frames(header, pixel_layout(header), range(4)))))
    np.testing.assert_array_equal(bits, grey_values(header))


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_floating_point_pixels_are_values(tmp_path: Path, keyword: str, kind: str, syntax: str) -> None:
    """Parametric maps are read as they are; a value that is no number is refused."""
    values = np.linspace(-2.5, 1e6, 120).reshape(2, 6, 10).astype(kind)
    ds = instance(GREY[:2, :6, :10])
    del ds.PixelData, ds.PixelRepresentation, ds.BitsStored, ds.HighBit
    ds.BitsAllocated = 8 * values.dtype.itemsize
    ds.file_meta.TransferSyntaxUID = syntax
    setattr(ds, keyword, values.tobytes())
    np.testing.assert_array_equal(values.astype(np.float32), grey_values(saved(ds, tmp_path / "x")))
    values[1, 2, 3] = np.nan
    setattr(ds, keyword, values.tobytes())
    with pytest.raises(UndecodableError, match="no numbers"):
        grey_values(saved(ds, tmp_path / "y"))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("planar", [0, 1])
def test_colour_comes_out_by_pixel(tmp_path: Path, syntax: str, planar: int) -> None:
    """Colour by plane or by pixel, packed or not, is the same RGB; unasked it is refused."""
    ds = instance(COLOUR)
    if syntax != ExplicitVRLittleEndian:
        plugin = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}.get(syntax, "pyjpegls")
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    elif planar:
        ds.PixelData = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 1)).tobytes()
    ds.PlanarConfiguration = planar
    header = saved(ds, tmp_path / "x")
    layout = pixel_layout(header, colour=True)
    np.testing.assert_array_equal(COLOUR, np.stack(list(rgb_frames(header, layout, range(2)))))
    with pytest.raises(UndecodableError, match=r"only grey values make a volume.*\((RGB|YBR_RCT|YBR_FULL), 3 samples"):
        pixel_layout(header)


def test_luminance_and_differences_become_rgb(tmp_path: Path) -> None:
    """YBR_FULL and YBR_FULL_422 are turned by the matrix of PS3.3 C.7.6.3.1.2, as another library does."""
    ybr = np.random.default_rng(7).integers(0, 256, (1, 8, 6, 3)).astype("u1")
    header = saved(instance(ybr, PhotometricInterpretation="YBR_FULL"), tmp_path / "x")
    (rgb,) = rgb_frames(header, pixel_layout(header, colour=True), [0])
    expected = convert_color_space(ybr[0], "YBR_FULL", "RGB")
    assert np.abs(rgb.astype(int) - expected).max() <= 1
    ybr[:, :, 1::2, 1:] = ybr[:, :, ::2, 1:]  # neighbours share their colour
    pairs = np.concatenate([ybr[:, :, ::2, :1], ybr[:, :, 1::2, :1], ybr[:, :, ::2, 1:]], axis=-1)
    ds = instance(ybr, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = pairs.tobytes()
    header = saved(ds, tmp_path / "y")
    (rgb,) = rgb_frames(header, pixel_layout(header, colour=True), [0])
    assert np.abs(rgb.astype(int) - convert_color_space(ybr[0], "YBR_FULL", "RGB")).max() <= 1


@pytest.mark.parametrize("segmented", [False, True])
def test_a_palette_gives_each_index_its_colour(tmp_path: Path, segmented: bool) -> None:
    """Plain tables, and tables of segments: discrete and linear ones (PS3.3 C.7.9.2)."""
    indices = np.array([[[0, 1, 2, 3, 4, 9]]], dtype="u1")
    table = np.array([10, 20, 30, 40, 50], dtype="<u2")
    ds = instance(indices, PhotometricInterpretation="PALETTE COLOR")
    for factor, name in enumerate(("Red", "Green", "Blue"), 1):
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [5, 0, 16])
        values = table * factor
        if segmented:
            parts = np.array([0, 1, values[0], 1, 4, values[4]], dtype="<u2")
            setattr(ds, f"Segmented{name}PaletteColorLookupTableData", parts.tobytes())
        else:
            setattr(ds, f"{name}PaletteColorLookupTableData", values.tobytes())
    header = saved(ds, tmp_path / "x")
    (rgb,) = rgb_frames(header, pixel_layout(header, colour=True), [0])
    expected = [[10, 20, 30], [20, 40, 60], [30, 60, 90], [40, 80, 120], [50, 100, 150], [50, 100, 150]]
    assert expected == rgb[0].tolist()
    del ds.BluePaletteColorLookupTableDescriptor
    del ds[f"{'Segmented' if segmented else ''}BluePaletteColorLookupTableData"]
    broken = saved(ds, tmp_path / "y")
    with pytest.raises(UndecodableError, match="palette"):
        list(rgb_frames(broken, pixel_layout(broken, colour=True), [0]))


def test_grey_from_colour_is_the_luminance_of_bt_601(tmp_path: Path) -> None:
    """Red, green and blue weigh 0.299, 0.587 and 0.114; a grey stays what it is; the note says so."""
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [77, 77, 77]]], dtype="u1")
    np.testing.assert_allclose([[76.245, 149.685, 29.07, 77.0]], luminance(colours), rtol=1e-6)
    header = saved(instance(colours[None]), tmp_path / "x")
    layout = pixel_layout(header, colour=True)
    out = np.empty((1, 1, 4), dtype=np.float32)
    decode_into(out, [header], [layout], [0], workers=1)
    np.testing.assert_array_equal(luminance(colours), out[0])
    assert any("grey from colour" in note for note in pixel_notes(header, layout))


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [
        ({"PixelPaddingValue": -2000}, -2000, -2000),
        ({"PixelPaddingValue": 63536}, -2000, -2000),  # written with the VR of the other sign
        ({"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500}, -2000, -1500),
        ({"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -2000}, -2000, -1500),
    ],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_padding_is_known_and_kept(
    tmp_path: Path, changes: dict[str, int], low: float, high: float, syntax: str
) -> None:
    """The values stay; what stands for nothing is told, in the unit of the modality, in the note and to who asks."""
    ds = instance(GREY, RescaleSlope=2, RescaleIntercept=-24)
    for keyword, value in changes.items():
        ds.add_new(keyword, "US" if value > 32767 else "SS", value)
    ds.file_meta.TransferSyntaxUID = syntax
    header = saved(ds, tmp_path / "x")
    layout = pixel_layout(header)
    padding = padding_of(header.attributes, layout)
    assert PixelPadding(low=low, high=high) == padding
    assert (2 * low - 24, 2 * high - 24) == padding.range(modality_luts(header.attributes, 3)[0])
    assert any(note.startswith(f"pixel padding: {2 * low - 24:g}") for note in pixel_notes(header, layout))
    np.testing.assert_array_equal(GREY * 2.0 - 24, grey_values(header))


def test_an_image_without_padding_says_nothing_of_it(tmp_path: Path) -> None:
    """No attribute, no note."""
    header = saved(instance(GREY), tmp_path / "x")
    assert padding_of(header.attributes, pixel_layout(header)) is None
    assert () == pixel_notes(header, pixel_layout(header))


def test_padding_behind_a_table_is_what_the_table_makes_of_it() -> None:
    """A falling table turns the ends round."""
    table = np.array([50, 40, 30, 20], dtype=np.float32)
    assert (30.0, 50.0) == PixelPadding(low=-5, high=2).range(ModalityLut(table=table))


@pytest.mark.parametrize("keyword", ["RescaleSlope", "RescaleIntercept"])
def test_a_rescale_that_is_no_number_is_refused(tmp_path: Path, keyword: str) -> None:
    """Ignoring it would shift a CT by a thousand units."""
    ds = instance(GREY)
    ds.add_new(keyword, "LO", "-1024 HU")
    header = saved(ds, tmp_path / "x")
    with pytest.raises(UndecodableError, match=f"{keyword} is no number"):
        grey_values(header)


@pytest.mark.parametrize(("first", "signed"), [(65534, 1), (-2, 1), (-2, 0), (65534, 0)])
def test_the_first_value_of_a_table_has_the_sign_of_the_pixels(tmp_path: Path, first: int, signed: int) -> None:
    """A descriptor written with the VR of the other sign begins at the same stored value."""
    stored = np.array([[[-2, -1, 0]]]).astype("<i2" if signed else "<u2")
    if not signed:
        stored = np.array([[[65534, 65535, 0]]], dtype="<u2")
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [3, first, 16])
    item.add_new("LUTData", "US", [100, 200, 300])
    header = saved(instance(stored, ModalityLUTSequence=[item]), tmp_path / "x")
    expected = [100.0, 200.0, 300.0 if signed else 100.0]
    assert expected == grey_values(header).ravel().tolist()


def test_entries_of_eight_bits_may_be_packed(tmp_path: Path) -> None:
    """A table of 8-bit entries in bytes is no table of half as many words."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 0, 8])
    item.add_new("LUTData", "OW", bytes([10, 20, 30, 40]))
    stored = np.array([[[0, 1, 2, 3]]], dtype="<u2")
    header = saved(instance(stored, ModalityLUTSequence=[item]), tmp_path / "x")
    assert [10.0, 20.0, 30.0, 40.0] == grey_values(header).ravel().tolist()


# ---------------------------------------------------------------- helpers


@pytest.fixture
def packed(tmp_path: Path) -> list[Header]:
    """Return six instances of two frames in JPEG 2000 and JPEG-LS, whose values tell them apart."""
    headers = []
    for number in range(6):
        ds = instance((GREY[:2] % 500 + number * 100).astype("<u2"), RescaleIntercept=-24, RescaleSlope=1)
        syntax = JPEG2000Lossless if number % 2 else JPEGLSLossless
        plugin = "pylibjpeg" if number % 2 else "pyjpegls"
        ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        headers.append(saved(ds, tmp_path / f"{number}"))
    return headers


def in_order(headers: Sequence[Header], workers: int) -> NDArray[np.float32]:
    """Return the frames of all headers, the last first."""
    out = np.full((2 * len(headers), 40, 36), np.nan, dtype=np.float32)
    slices = list(reversed(range(len(out))))
    decode_into(out, headers, [pixel_layout(header) for header in headers], slices, workers=workers)
    return out


def test_helpers_put_each_frame_into_its_place(packed: list[Header], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes give what this thread gives, frame by frame."""
    expected = in_order(packed, 1)
    assert np.isfinite(expected).all()
    monkeypatch.setattr(decoding, "_WORTH_HELPERS", 0)
    np.testing.assert_array_equal(expected, in_order(packed, 3))


def test_a_bad_frame_ends_the_helpers_with_its_name(packed: list[Header], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is that of the frame, and nobody is left waiting."""
    path = packed[3].path
    content = path.read_bytes()
    monkeypatch.setattr(decoding, "_WORTH_HELPERS", 0)
    path.write_bytes(content.replace(b"\xff\x4f\xff\x51", b"\x00\x00\x00\x00"))
    with pytest.raises(UndecodableError, match=r"frame [12] in JPEG 2000 .* cannot be decoded; .* \(ValueError\)"):
        in_order(packed, 2)


def test_a_helper_that_dies_is_told(packed: list[Header]) -> None:
    """A codec that breaks down takes its helper along, not us."""
    header = packed[1]
    layout = pixel_layout(header)
    request = FrameRequest(
        path=header.path,
        extents=encapsulated_frames(header, layout)[0],
        form=frame_form(header, layout),
        deliver=bytes,
        name="frame 1",
    )
    with DecoderPool(1) as pool:
        pool.run([request])
        for helper in pool._helpers:
            helper.kill()
            helper.wait()
        with pytest.raises(UndecodableError, match="the process that decodes ended"):
            pool.run([request])


def test_many_fragments_do_not_block_a_helper(tmp_path: Path) -> None:
    """Requests and values that are both longer than a pipe holds: neither side waits for the other for ever."""
    ds = instance(np.zeros((1, 1024, 1024), "<u2"))
    frame = np.random.default_rng(8).integers(0, 9, (1024, 1024)).astype("<u2").tobytes()
    encapsulated(ds, UNCOMPRESSED_FRAMES, [frame], fragments_per_frame=80_000, has_bot=False)
    header = saved(ds, tmp_path / "x")
    layout = pixel_layout(header)
    extents = encapsulated_frames(header, layout)[0]
    assert 80_000 == len(extents)
    seen: list[bytes] = []
    request = FrameRequest(
        path=header.path,
        extents=extents,
        form=frame_form(header, layout),
        deliver=lambda values: seen.append(values.tobytes()),
        name="frame 1",
    )
    with DecoderPool(1) as pool:
        pool.run([request] * 3)
    assert [frame] * 3 == seen


def test_a_form_tells_how_long_a_frame_is() -> None:
    """Two pixels of YBR_FULL_422 take four bytes; single bits are rounded up."""
    grey = FrameForm(
        transfer_syntax_uid=RLELossless,
        rows=3,
        columns=4,
        samples=1,
        bits_allocated=16,
        bits_stored=12,
        high_bit=11,
        signed=False,
        photometric_interpretation="MONOCHROME2",
    )
    assert 24 == grey.n_bytes
    changed: list[tuple[dict[str, Any], int]] = [
        ({"bits_allocated": 1}, 2),
        ({"samples": 3, "bits_allocated": 8, "photometric_interpretation": "RGB"}, 36),
        ({"samples": 3, "bits_allocated": 8, "photometric_interpretation": "YBR_FULL_422"}, 24),
    ]
    for changes, n_bytes in changed:
        assert n_bytes == replace(grey, **changes).n_bytes


def test_a_syntax_that_no_codec_has_is_refused() -> None:
    """Whoever forgot to ask before gets the same answer."""
    form = FrameForm(
        transfer_syntax_uid="1.2.3",
        rows=1,
        columns=1,
        samples=1,
        bits_allocated=8,
        bits_stored=8,
        high_bit=7,
        signed=False,
        photometric_interpretation="MONOCHROME2",
    )
    with pytest.raises(UndecodableError, match=r"cannot be decoded here \(1\.2\.3\)"):
        decode_frame(b"\0", form)
