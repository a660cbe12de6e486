"""Claims on transcoding: the same object, the same values, in a syntax that every receiver takes."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.errors import UndecodableError
from dicom_node.reading.transcode import transcode
from tests.integration.receiving import EXPLICIT, dicom_file, encode_data_set

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
MPEG4 = "1.2.840.10008.1.2.4.102"


def grey(dtype: str = "<i2", *, n_frames: int = 2) -> NDArray[Any]:
    """Return frames (Z, Y, X) whose sizes are odd and whose values need all bits."""
    limits = np.iinfo(dtype)
    values = np.random.default_rng(3).integers(limits.min, limits.max, (n_frames, 33, 37), endpoint=True)
    return values.astype(dtype)


def image(pixels: NDArray[Any], photometric: str = "MONOCHROME2") -> FileDataset:
    """Return an uncompressed object with nested sequences, odd texts and private elements."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
    ds.PatientName, ds.StudyDescription = "Müller^Jörg", "Schädel"
    item = Dataset()
    item.ReferencedSOPInstanceUID, item.CodeValue = "1.2.3.99", "T-1"
    ds.SourceImageSequence = [item]
    ds.private_block(0x0029, "HOUSE", create=True).add_new(0x01, "OF", struct.pack("<2f", 1.5, -2.25))
    ds.add_new(0x00280106, "SS" if pixels.dtype.kind == "i" else "US", 0)  # Smallest Image Pixel Value
    colour = pixels.ndim == 4
    ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape[:3]
    ds.SamplesPerPixel = 3 if colour else 1
    if colour:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + bytes(pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def compress(ds: FileDataset, syntax: UID, **options: object) -> None:
    """Compress in place, by an encoder that does not end the process on small images, as gdcm's RLE does."""
    plugin = {RLELossless: "pydicom", JPEG2000Lossless: "pylibjpeg"}.get(syntax, "pyjpegls")
    ds.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False, **options)


def saved(ds: FileDataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write the object as it is into a file of this transfer syntax."""
    encoding = syntax if syntax in (*PLAIN, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian) else EXPLICIT
    return dicom_file(path, encode_data_set(ds, encoding), syntax=syntax)


def transcoded(path: Path, syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """Return the object that comes out, read by pydicom in the syntax that it should have."""
    out = BytesIO()
    transcode(path, syntax, to=out)
    assert (syntax == ExplicitVRLittleEndian) == (out.getvalue()[4:6] == b"CS")  # pydicom would read either way
    out.seek(0)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    ds = dcmread(out, force=True)
    assert isinstance(ds, FileDataset)
    ds.file_meta = meta
    return ds


def header(ds: Dataset) -> dict[int, object]:
    """Return what stands beside the pixels, by tag; of private elements, whose VR an implicit encoding loses, bytes."""
    return {
        int(element.tag): element.value if element.tag.is_private else element.to_json_dict(None, 1 << 20)
        for element in ds
        if element.tag not in (0x7FE00010, 0x00290010)
    }


@pytest.mark.parametrize("to", PLAIN, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        *((syntax, dtype) for syntax in (RLELossless, JPEG2000Lossless) for dtype in ("<i2", "<u2", "u1")),
        *((JPEGLSLossless, dtype) for dtype in ("<u2", "u1")),  # of signed values pydicom encodes none
    ],
)
def test_lossless_pixels_come_out_bit_by_bit(tmp_path: Path, syntax: UID, dtype: str, to: UID) -> None:
    """Every value and every other attribute is what it was, the UID included."""
    original = image(grey(dtype))
    compressed = image(grey(dtype))
    compress(compressed, syntax)
    back = transcoded(saved(compressed, tmp_path / "x", syntax), to)
    assert original.PixelData == back.PixelData
    assert header(original) == header(back)
    assert np.array_equal(grey(dtype), back.pixel_array)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.keyword)
def test_lossless_colours_come_out_bit_by_bit(tmp_path: Path, syntax: UID) -> None:
    """RGB stays RGB, pixel by pixel; RLE keeps its planes apart inside only."""
    pixels = np.random.default_rng(5).integers(0, 255, (2, 33, 37, 3), endpoint=True).astype(np.uint8)
    compressed = image(pixels, "RGB")
    compress(compressed, syntax)
    back = transcoded(saved(compressed, tmp_path / "x", syntax))
    assert ("RGB", 0) == (back.PhotometricInterpretation, back.PlanarConfiguration)
    assert pixels.tobytes() == back.PixelData[: pixels.nbytes]


def test_a_lossless_colour_space_stays(tmp_path: Path) -> None:
    """YBR_FULL in RLE is no work of the encoder: the values are not touched, for rounding loses some."""
    pixels = np.random.default_rng(6).integers(0, 255, (1, 33, 37, 3), endpoint=True).astype(np.uint8)
    compressed = image(pixels, "YBR_FULL")
    compress(compressed, RLELossless)
    back = transcoded(saved(compressed, tmp_path / "x", RLELossless))
    assert "YBR_FULL" == back.PhotometricInterpretation
    assert pixels.tobytes() == back.PixelData[: pixels.nbytes]


def jpeg(tmp_path: Path, **attributes: object) -> tuple[Path, NDArray[Any]]:
    """Write a colour object in JPEG baseline as ultrasound has it; return it and what others decode."""
    ramp = np.linspace(0, 255, 16 * 24).reshape(16, 24)
    pixels = np.stack([ramp, ramp[::-1], np.full_like(ramp, 80)], axis=-1).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    ds = image(pixels[None], "YBR_FULL_422")
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    path = saved(ds, tmp_path / "x", JPEGBaseline8Bit)
    return path, np.asarray(Image.open(stream))


def test_lossy_colours_come_out_as_rgb(tmp_path: Path) -> None:
    """What JPEG made YBR comes out as the RGB that others decode, and the header says so."""
    path, expected = jpeg(tmp_path)
    back = transcoded(path)
    assert ("RGB", 0, 8) == (back.PhotometricInterpretation, back.PlanarConfiguration, back.BitsAllocated)
    decoded = np.frombuffer(back.PixelData, np.uint8).reshape(expected.shape).astype(int)
    assert abs(decoded - expected).max() <= 4  # decoders may round, and smooth colours in their own way
    assert "1.2.3.4" == back.SOPInstanceUID


def test_a_loss_stays_told(tmp_path: Path) -> None:
    """Ratio and method of a lossy compression are kept as they were."""
    path, _pixels = jpeg(tmp_path, LossyImageCompression="01", LossyImageCompressionRatio="9.5")
    back = transcoded(path)
    assert ("01", 9.5) == (back.LossyImageCompression, back.LossyImageCompressionRatio)
    assert "LossyImageCompressionMethod" not in back


def test_a_loss_that_only_the_syntax_told_is_told(tmp_path: Path) -> None:
    """Without its transfer syntax the object would pass for lossless."""
    path, _pixels = jpeg(tmp_path)
    back = transcoded(path)
    assert ("01", "ISO_10918_1") == (back.LossyImageCompression, back.LossyImageCompressionMethod)
    near = image(grey("u1"))
    compress(near, JPEGLSNearLossless, jls_error=2)
    back = transcoded(saved(near, tmp_path / "near", JPEGLSNearLossless))
    assert ("01", "ISO_14495_1") == (back.LossyImageCompression, back.LossyImageCompressionMethod)


@pytest.mark.parametrize("to", PLAIN, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("syntax", [*PLAIN, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.keyword)
def test_another_encoding_changes_no_value(tmp_path: Path, syntax: UID, to: UID) -> None:
    """Explicit, implicit, deflated: texts, sequences, private and pixel values are the same."""
    original = image(grey())
    back = transcoded(saved(image(grey()), tmp_path / "x", syntax), to)
    assert original.PixelData == back.PixelData
    assert header(original) == header(back)


@pytest.mark.parametrize("to", PLAIN, ids=lambda uid: uid.keyword)
def test_big_endian_words_are_turned(tmp_path: Path, to: UID) -> None:
    """Numbers, pixels and private floats have the same values in little endian."""
    big = image(grey())
    big.PixelData = grey().astype(">i2").tobytes()
    big[0x00291001].value = struct.pack(">2f", 1.5, -2.25)
    back = transcoded(saved(big, tmp_path / "x", ExplicitVRBigEndian), to)
    assert np.array_equal(grey(), back.pixel_array)
    assert (33, 37, 0) == (back.Rows, back.Columns, back.SmallestImagePixelValue)
    assert struct.pack("<2f", 1.5, -2.25) == back[0x00291001].value


def test_encapsulated_but_uncompressed_frames_are_joined(tmp_path: Path) -> None:
    """PS3.5 A.4.11: one fragment a frame, nothing to decode."""
    ds = image(grey())
    ds.PixelData = encapsulate([frame.tobytes() + bytes(frame.nbytes % 2) for frame in grey()])
    ds["PixelData"].is_undefined_length = True
    back = transcoded(saved(ds, tmp_path / "x", ENCAPSULATED_UNCOMPRESSED))
    assert np.array_equal(grey(), back.pixel_array)
    assert "OW" == back["PixelData"].VR


def test_what_nothing_decodes_is_refused_by_name(tmp_path: Path) -> None:
    """A film stays what it is, and the reason names its syntax."""
    ds = image(grey("u1"))
    ds.PixelData = encapsulate([b"film"])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(UndecodableError, match="MPEG-4"):
        transcoded(saved(ds, tmp_path / "x", MPEG4))


def test_damaged_frames_are_refused_by_name(tmp_path: Path) -> None:
    """Junk where a frame should be never becomes an image."""
    ds = image(grey("u1", n_frames=1))
    ds.PixelData = encapsulate([b"junk" * 20])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(UndecodableError, match="JPEG 2000"):
        transcoded(saved(ds, tmp_path / "x", JPEG2000Lossless))


def test_too_few_frames_are_refused(tmp_path: Path) -> None:
    """A header that promises more than there is: a wrong image is worse than none."""
    ds = image(grey())
    ds.PixelData = encapsulate([grey()[0].tobytes() + bytes(grey()[0].nbytes % 2)])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(UndecodableError, match="decode to"):
        transcoded(saved(ds, tmp_path / "x", ENCAPSULATED_UNCOMPRESSED))


def test_absurd_sizes_cost_no_memory(tmp_path: Path) -> None:
    """65535 x 65535 pixels are refused before anything is decoded."""
    ds = image(grey("u1"))
    compress(ds, RLELossless)
    ds.Rows = ds.Columns = 65535
    with pytest.raises(UndecodableError, match="more than"):
        transcoded(saved(ds, tmp_path / "x", RLELossless))


def test_an_object_without_pixels_only_changes_its_encoding(tmp_path: Path) -> None:
    """A report in a compressed syntax is odd and harmless."""
    ds = image(grey())
    del ds.PixelData
    back = transcoded(saved(ds, tmp_path / "x", JPEG2000Lossless), ImplicitVRLittleEndian)
    assert "Müller^Jörg" == str(back.PatientName)


def test_only_plain_syntaxes_are_written(tmp_path: Path) -> None:
    """Another target is a mistake of the caller's."""
    with pytest.raises(ValueError, match="RLE"):
        transcode(saved(image(grey()), tmp_path / "x"), RLELossless, to=BytesIO())


def test_what_is_no_dicom_file_is_undecodable(tmp_path: Path) -> None:
    """Junk has a reason, not a stack trace."""
    (tmp_path / "x").write_bytes(b"junk")
    with pytest.raises(UndecodableError):
        transcode(tmp_path / "x", ExplicitVRLittleEndian, to=BytesIO())
