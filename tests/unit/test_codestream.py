"""Claims on compressed frames that lie about their size: told by their first bytes, refused before room is made."""

from __future__ import annotations

import resource
import struct
from io import BytesIO
from pathlib import Path

import jpeg_ls
import numpy as np
import pytest
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from dicom_node.codecs.codestream import announced
from dicom_node.errors import UndecodableError
from dicom_node.reading.decode import decode_instance
from dicom_node.reading.header import read_header

HUGE = 23_000
"""Rows and columns: a gigabyte of 16 bits, and still fewer pixels than a volume may have."""
EMPTY_RLE = struct.pack("<16I", 2, 64, 80, *[0] * 13) + b"\x81\x00" * 10


def jpeg(values: NDArray[np.uint16]) -> bytes:
    """Return an 8-bit JPEG."""
    file = BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def jpeg_2000(values: NDArray[np.uint16]) -> bytes:
    """Return a JPEG 2000 codestream."""
    return bytes(encode_array(values))


def jpeg_ls_frame(values: NDArray[np.uint16]) -> bytes:
    """Return a JPEG-LS codestream."""
    return bytes(jpeg_ls.encode(values))


def with_size(frame: bytes, rows: int, columns: int) -> bytes:
    """Return the frame with other numbers where it announces its size."""
    said = bytearray(frame)
    for marker, layout, offset in ((b"\xff\xf7", ">HH", 5), (b"\xff\xc0", ">HH", 5), (b"\xff\x51", ">II", 6)):
        if (at := said.find(marker)) >= 0:
            sizes = (columns, rows) if layout == ">II" else (rows, columns)
            struct.pack_into(layout, said, at + offset, *sizes)
            if layout == ">II":
                struct.pack_into(layout, said, at + 22, *sizes)  # XTsiz, YTsiz: one tile
    return bytes(said)


def written(path: Path, frame: bytes, syntax: str, *, size: int = 64, n_frames: int = 1, bits: int = 16) -> Path:
    """Write an instance whose header says `size` rows and columns."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.4"
    ds.Rows = ds.Columns = size
    ds.NumberOfFrames = n_frames
    ds.BitsAllocated = ds.BitsStored = bits
    ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = bits - 1, 0, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = encapsulate([frame] * n_frames)
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)
    return path


def size_of(frame: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that a frame announces."""
    said = announced(frame)
    return None if said is None else (said.rows, said.columns)


VALUES = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 200
ENCODERS = {JPEGBaseline8Bit: jpeg, JPEG2000Lossless: jpeg_2000, JPEGLSLossless: jpeg_ls_frame}


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_frame_tells_its_size(syntax: str) -> None:
    """Rows and columns as they were encoded, and as they were falsified."""
    frame = ENCODERS[syntax](VALUES)
    assert (48, 64) == size_of(frame)
    assert (1000, 2000) == size_of(with_size(frame, 1000, 2000))
    assert (48, 64) == size_of(b"\xff\xd8\xff\xff" + frame[3:] if frame[1] == 0xD8 else bytes(80) + frame)


@pytest.mark.parametrize("frame", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00", b"\xff\xd8\x00\x00\x00\x00", EMPTY_RLE])
def test_what_tells_no_size_is_left_to_its_decoder(frame: bytes) -> None:
    """RLE has none, and what is cut short before it has none either."""
    assert size_of(frame) is None


@pytest.mark.parametrize("syntax", ENCODERS)
def test_a_frame_cut_anywhere_raises_nothing(syntax: str) -> None:
    """None, or the size, once its bytes are there."""
    frame = ENCODERS[syntax](VALUES)
    assert {None, (48, 64)} == {size_of(frame[:length]) for length in range(len(frame))}


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_frame_of_another_size_than_its_header_costs_no_memory(tmp_path: Path, syntax: str) -> None:
    """64 x 64 in the header and a gigabyte in the codestream: refused by both sizes in words."""
    frame = with_size(ENCODERS[syntax](np.zeros((64, 64), np.uint16)), HUGE, HUGE)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UndecodableError, match="in its codestream and 64 x 64 in the header"):
        decode_instance(read_header(written(tmp_path / "x.dcm", frame, syntax)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 1 << 16


@pytest.mark.parametrize(("size", "n_frames"), [(HUGE, 1), (5000, 20)])
def test_a_header_beyond_its_pixels_costs_no_memory(tmp_path: Path, size: int, n_frames: int) -> None:
    """Some hundred bytes that claim to be a gigabyte: refused in words."""
    path = written(tmp_path / "x.dcm", EMPTY_RLE, RLELossless, size=size, n_frames=n_frames)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UndecodableError, match=r"compressed pixel data of \d+ bytes cannot be \d+ bytes of image"):
        decode_instance(read_header(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 1 << 16


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_blank_frame_is_an_image(tmp_path: Path, syntax: str) -> None:
    """4096 x 4096 without content is a few hundred bytes, and decodes."""
    frame = ENCODERS[syntax](np.zeros((4096, 4096), np.uint16))
    assert 5000 > len(frame)
    assert not decode_instance(read_header(written(tmp_path / "x.dcm", frame, syntax, size=4096))).any()
