"""Files -> the same object in a plain transfer syntax, for a peer that takes no other. The SOP Instance UID stays.

Nothing is lost on the way: pixels that were compressed without loss come out bit by bit, and what a lossy compression
did before stays told (Lossy Image Compression and its ratio are kept, or the former added). The attributes of the Image
Pixel module follow what was decoded: colours that JPEG or JPEG 2000 kept as YBR come out as RGB, which every reader
shows; RLE and JPEG-LS keep the colour space in which they were made. Pixels of another byte order are turned, in words
of their VR.

What cannot be decoded is refused. Decoders are those of `decode`; memory is that of the decoded object.

Sources: DICOM PS3.5 8.1 (pixel data), 8.2 (compressed), A.1, A.2 and A.3 (encodings), 7.3 (byte order), PS3.3 C.7.6.3
(Image Pixel module), C.7.6.1.1.5 (lossy image compression).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import decompress
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_node.errors import UndecodableError
from dicom_node.reading.decode import MAX_VOXELS, NATIVE
from dicom_node.reading.header import PARSE_ERRORS, integer, quiet, text

_ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
_COLOURS_WERE_CONVERTED: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit})
"""The encoder turned RGB into YBR to save bytes; few readers take YBR from uncompressed pixels."""
_LOSSY_METHODS: Final = {
    JPEGBaseline8Bit: "ISO_10918_1",
    JPEGExtended12Bit: "ISO_10918_1",
    JPEGLSNearLossless: "ISO_14495_1",
}
"""Transfer syntaxes that lose something, and the term for it (PS3.3 C.7.6.1.1.5.1). JPEG 2000 may have lost nothing."""
_PLUGINS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        JPEGBaseline8Bit: ("gdcm", "pillow"),
        JPEGExtended12Bit: ("gdcm", "pillow"),
        JPEGLossless: ("gdcm",),
        JPEGLosslessSV1: ("gdcm",),
        JPEGLSLossless: ("pyjpegls", "gdcm"),
        JPEGLSNearLossless: ("pyjpegls", "gdcm"),
        JPEG2000Lossless: ("pylibjpeg", "gdcm"),
        JPEG2000: ("pylibjpeg", "gdcm"),
        HTJ2KLossless: ("pylibjpeg",),
        HTJ2KLosslessRPCL: ("pylibjpeg",),
        HTJ2K: ("pylibjpeg",),
        RLELossless: ("pylibjpeg", "pydicom"),
    }
)
"""pydicom's decoding plugins by transfer syntax, first choice first; each has a permissive licence."""
_WORD_BYTES: Final = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
"""VRs whose values pydicom leaves as bytes, and how long their words are (PS3.5 6.2)."""


def transcode(path: Path, transfer_syntax_uid: str, *, to: BinaryIO) -> None:
    """Write the data set of a file in another transfer syntax, without file meta information.

    Parameters
    ----------
    transfer_syntax_uid
        Explicit or Implicit VR Little Endian.

    Raises
    ------
    UndecodableError
        When the file cannot be read or its pixels cannot be decoded; the reason names the transfer syntax.
    OSError
        When the file is not there, or `to` takes nothing.
    """
    if transfer_syntax_uid not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        raise ValueError(f"{UID(transfer_syntax_uid).name} is no plain transfer syntax")
    with quiet():
        try:
            dataset = dcmread(path)
            syntax = UID(dataset.file_meta.TransferSyntaxUID)
            _make_plain(dataset, syntax)
            target = DicomFileLike(to)
            target.is_implicit_VR = transfer_syntax_uid == ImplicitVRLittleEndian
            target.is_little_endian = True
            write_dataset(target, dataset)
        except PARSE_ERRORS as error:
            raise UndecodableError(f"the object cannot be encoded anew ({type(error).__name__})") from error


def _make_plain(dataset: FileDataset, syntax: UID) -> None:
    """Replace values that only this transfer syntax can hold."""
    if syntax == ExplicitVRBigEndian:
        _turn_words(dataset)
    elif syntax not in NATIVE and "PixelData" in dataset:
        _check_size(dataset)
        if syntax == _ENCAPSULATED_UNCOMPRESSED:
            _unwrap(dataset)
        else:
            _decode(dataset, syntax)
        _check_pixels(dataset, syntax)
        if syntax in _LOSSY_METHODS and not text(dataset, "LossyImageCompression"):
            # The transfer syntax said it so far; from now on nothing else would.
            dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", _LOSSY_METHODS[syntax]


def _usable_plugins(syntax: UID) -> tuple[str, ...]:
    """Return the plugins that may decode a transfer syntax and are installed, first choice first."""
    allowed = _PLUGINS.get(syntax, ())
    available = get_decoder(syntax).available_plugins if allowed else ()
    usable = tuple(plugin for plugin in allowed if plugin in available)
    if not usable:
        words = syntax.name if syntax.name == syntax else f"{syntax.name} ({syntax})"
        raise UndecodableError(f"the transfer syntax {words} cannot be decoded here; send the images uncompressed")
    return usable


def _decode(dataset: FileDataset, syntax: UID) -> None:
    """Decode all frames by the first plugin that can."""
    failures = []
    for plugin in _usable_plugins(syntax):
        try:
            decompress(
                dataset,
                as_rgb=syntax in _COLOURS_WERE_CONVERTED,
                generate_instance_uid=False,
                decoding_plugin=plugin,
            )
        except PARSE_ERRORS as error:
            failures.append(f"{plugin}: {type(error).__name__}")
        else:
            return
    raise UndecodableError(f"pixel data in {syntax.name} cannot be decoded ({'; '.join(failures)})")


def _unwrap(dataset: Dataset) -> None:
    """Take uncompressed frames out of their fragments (PS3.5 A.4.11)."""
    frames = generate_frames(dataset.PixelData, number_of_frames=integer(dataset, "NumberOfFrames") or 1)
    pixels = b"".join(frames)
    wide = (integer(dataset, "BitsAllocated") or 0) > 8
    dataset["PixelData"] = DataElement(0x7FE00010, "OW" if wide else "OB", pixels + bytes(len(pixels) % 2))


def _check_size(dataset: Dataset) -> None:
    """Refuse absurd sizes before memory is asked for."""
    if _n_values(dataset) > MAX_VOXELS:
        raise UndecodableError(f"{_n_values(dataset)} pixel values are more than the {MAX_VOXELS} that are decoded")


def _check_pixels(dataset: Dataset, syntax: UID) -> None:
    """Refuse what a decoder gave when it is not what the header says: a wrong image is worse than none."""
    expected = math.ceil(_n_values(dataset) * (integer(dataset, "BitsAllocated") or 0) / 8)
    if len(dataset.PixelData) != expected + expected % 2:
        raise UndecodableError(f"pixel data in {syntax.name} decode to {len(dataset.PixelData)} of {expected} bytes")


def _n_values(dataset: Dataset) -> int:
    sizes = [integer(dataset, keyword) or 0 for keyword in ("Rows", "Columns")]
    frames, samples = (integer(dataset, keyword) or 1 for keyword in ("NumberOfFrames", "SamplesPerPixel"))
    return math.prod([*sizes, frames, samples])


def _turn_words(dataset: Dataset) -> None:
    """Turn the byte order of values that pydicom leaves as bytes; numbers it turns on its own (PS3.5 7.3)."""
    for element in dataset.iterall():
        word = _WORD_BYTES.get(element.VR)
        if word is not None and isinstance(element.value, bytes) and len(element.value) % word == 0:
            element.value = np.frombuffer(element.value, dtype=f">u{word}").astype(f"<u{word}").tobytes()
