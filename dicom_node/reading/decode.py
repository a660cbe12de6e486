"""Pixels -> numbers: stored values of each frame, and the modality LUT that gives them their unit.

Uncompressed little and big endian values come straight from the file; every other transfer syntax goes through
pydicom's decoders, each by a named plugin with a permissive licence (pylibjpeg-libjpeg, GPL-3, is never used even where
it is installed). Sizes are checked before anything is decoded. Values are never windowed, inverted or clipped.

Sources: DICOM PS3.5 8 and Annex A (pixel data encodings), PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT),
C.7.6.16.2.9 (Pixel Value Transformation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
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
from dicom_node.reading.codestream import announced_size
from dicom_node.reading.enhanced import functional_groups
from dicom_node.reading.header import PARSE_ERRORS, VALUE_ERRORS, Header, floats, integer, items, quiet, text

Stored: TypeAlias = NDArray[Any]
"""Integers (Y, X) as they are stored, unused bits taken out."""

MAX_VOXELS = 1 << 30
"""Of one volume or instance: 4 GiB as float32. A hospital's largest CT has a quarter of it."""

MAX_EXPANSION = 1000
"""Times that compressed pixels above `_HARMLESS_BYTES` may grow; those of images grow two to a hundred times."""
_HARMLESS_BYTES = 1 << 26

NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
"""Transfer syntaxes whose pixels are not encapsulated."""
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
"""pydicom's decoding plugins by transfer syntax, first choice first: what decodes what, and under which licence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How the stored values of an instance are laid out: the Image Pixel module, checked."""

    rows: int
    columns: int
    n_frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric_interpretation: str

    @property
    def frame_bytes(self) -> int:
        """Return the length of one uncompressed frame."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ModalityLut:
    """From stored values to the unit of the modality: ``slope * stored + intercept``, or a table."""

    slope: float = 1.0
    intercept: float = 0.0
    table: NDArray[np.float32] | None = None
    first_stored: int = 0
    """The stored value that the first entry of the table stands for."""

    def apply(self, stored: Stored, out: NDArray[np.float32]) -> None:
        """Write the values of `stored` (Y, X) into `out`, float32 of the same shape."""
        if self.table is not None:
            index = np.clip(stored.astype(np.int64) - self.first_stored, 0, len(self.table) - 1)
            out[...] = self.table[index]
        elif stored.dtype.itemsize > 2:  # float32 cannot hold the stored values before the intercept is added
            out[...] = stored.astype(np.float64) * self.slope + self.intercept
        else:
            np.multiply(stored, np.float32(self.slope), out=out, casting="unsafe")
            if self.intercept:
                np.add(out, np.float32(self.intercept), out=out)


def pixel_layout(header: Header) -> PixelLayout:
    """Return how an instance's grey values are laid out.

    Raises
    ------
    UndecodableError
        When there are no pixel data, or they are in colour, floating point, of an unknown layout or absurdly many.
    """
    dataset = header.dataset
    if header.pixels is None:
        raise UndecodableError("the file holds no pixel data")
    if header.pixels.keyword != "PixelData":
        raise UndecodableError("floating point pixel data (a parametric map) are not read as an image")
    photometric = text(dataset, "PhotometricInterpretation")
    samples = integer(dataset, "SamplesPerPixel") or 1
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        kind = f"{photometric or 'Photometric Interpretation missing'}, {samples} samples a pixel"
        raise UndecodableError(f"only grey values make a volume; this image is in colour or unknown ({kind})")
    n_frames = integer(dataset, "NumberOfFrames")
    allocated, stored = integer(dataset, "BitsAllocated") or 0, integer(dataset, "BitsStored") or 0
    high_bit = integer(dataset, "HighBit")
    layout = PixelLayout(
        rows=integer(dataset, "Rows") or 0,
        columns=integer(dataset, "Columns") or 0,
        n_frames=1 if n_frames is None else n_frames,
        bits_allocated=allocated,
        bits_stored=stored or allocated,
        high_bit=(stored or allocated) - 1 if high_bit is None else high_bit,
        signed=bool(integer(dataset, "PixelRepresentation")),
        photometric_interpretation=photometric,
    )
    _check_layout(layout)
    return layout


def _check_layout(layout: PixelLayout) -> None:
    """Refuse what no image has, before memory is asked for."""
    if min(layout.rows, layout.columns, layout.n_frames) < 1:
        raise UndecodableError(
            f"Rows x Columns x Number of Frames is {layout.rows} x {layout.columns} x {layout.n_frames}"
        )
    if layout.rows * layout.columns * layout.n_frames > MAX_VOXELS:
        raise UndecodableError(
            f"{layout.rows} x {layout.columns} x {layout.n_frames} pixels are more than the {MAX_VOXELS} that are read"
        )
    if layout.bits_allocated not in (8, 16, 32):
        raise UndecodableError(f"Bits Allocated {layout.bits_allocated} is not read (8, 16 and 32 are)")
    if not layout.bits_stored <= layout.high_bit + 1 <= layout.bits_allocated:
        raise UndecodableError(
            f"Bits Stored {layout.bits_stored} with High Bit {layout.high_bit} do not fit Bits Allocated "
            f"{layout.bits_allocated}"
        )


def check_decodable(header: Header, layout: PixelLayout) -> None:
    """Refuse pixels that cannot be decoded, without decoding them.

    Raises
    ------
    UndecodableError
        When nothing here decodes the transfer syntax, or pixel data are shorter than the image can be.
    """
    if header.transfer_syntax_uid not in NATIVE:
        usable_plugins(header.transfer_syntax_uid)
        _check_expansion(header, layout.frame_bytes * layout.n_frames)
    elif header.pixels is not None and header.pixels.value_offset is not None:
        on_disk = header.path.stat().st_size - header.pixels.value_offset
        _check_length(layout, min(on_disk, header.pixels.length))


def _check_length(layout: PixelLayout, n_bytes: int) -> None:
    needed = layout.frame_bytes * layout.n_frames
    if n_bytes < needed:
        raise UndecodableError(
            f"pixel data is shorter than Rows x Columns x Frames: {max(n_bytes, 0)} of {needed} bytes; the file is "
            "truncated"
        )


def _check_expansion(header: Header, n_bytes: int) -> None:
    """Refuse a few compressed bytes that claim to be gigabytes: decoders make room for them first."""
    on_disk = header.path.stat().st_size
    if n_bytes > max(_HARMLESS_BYTES, on_disk * MAX_EXPANSION):
        raise UndecodableError(
            f"compressed pixel data of {on_disk} bytes cannot be {n_bytes} bytes of image; the file is truncated or "
            "its Rows, Columns or Number of Frames are wrong"
        )


def stored_frames(header: Header, layout: PixelLayout, indices: Iterable[int]) -> Iterator[Stored]:
    """Yield the stored values (Y, X) of the frames with these 0-based indices, unused bits taken out.

    Raises
    ------
    UndecodableError
        When the pixels cannot be decoded; the reason names the transfer syntax.
    """
    if header.transfer_syntax_uid in NATIVE:
        yield from _native_frames(header, layout, indices)
    else:
        yield from _decoded_frames(header, layout, indices)


def _native_frames(header: Header, layout: PixelLayout, indices: Iterable[int]) -> Iterator[Stored]:
    assert header.pixels is not None
    kind = f"{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}"
    big_endian = header.transfer_syntax_uid == ExplicitVRBigEndian
    dtype = np.dtype((">" if big_endian else "<") + kind)
    if header.pixels.value_offset is None or (big_endian and layout.bits_allocated == 8):
        # Deflated values are nowhere in the file; 8-bit values in big endian words are swapped in pairs (PS3.5 7.3).
        yield from _decoded_frames(header, layout, indices)
        return
    check_decodable(header, layout)
    with header.path.open("rb") as file:
        for index in indices:
            file.seek(header.pixels.value_offset + index * layout.frame_bytes)
            values = np.frombuffer(file.read(layout.frame_bytes), dtype=dtype)
            yield _without_unused_bits(values.reshape(layout.rows, layout.columns), layout)


def _without_unused_bits(values: Stored, layout: PixelLayout) -> Stored:
    """Return values with unused bits above and below taken out and the sign extended (PS3.5 8.1.1)."""
    if layout.bits_stored == layout.bits_allocated:
        return values
    native = values.astype(values.dtype.newbyteorder("="))
    native <<= layout.bits_allocated - 1 - layout.high_bit
    native >>= layout.bits_allocated - layout.bits_stored
    return native


def usable_plugins(transfer_syntax_uid: str) -> tuple[str, ...]:
    """Return the plugins that may decode a transfer syntax and are installed, first choice first.

    Raises
    ------
    UndecodableError
        When there is none.
    """
    allowed = _PLUGINS.get(transfer_syntax_uid, ())
    available = get_decoder(UID(transfer_syntax_uid)).available_plugins if allowed else ()
    usable = tuple(plugin for plugin in allowed if plugin in available)
    if not usable:
        name = UID(transfer_syntax_uid).name
        words = name if name == transfer_syntax_uid else f"{name} ({transfer_syntax_uid})"
        raise UndecodableError(f"the transfer syntax {words} cannot be decoded here; send the images uncompressed")
    return usable


def _decoded_frames(header: Header, layout: PixelLayout, indices: Iterable[int]) -> Iterator[Stored]:
    native = header.transfer_syntax_uid in NATIVE
    plugins = ("",) if native else usable_plugins(header.transfer_syntax_uid)
    with quiet():
        try:
            dataset = dcmread(header.path)
            if native:
                _check_length(layout, len(dataset.PixelData))
            else:
                _check_codestreams(dataset, layout)
        except PARSE_ERRORS as error:
            raise UndecodableError(f"the pixel data cannot be read ({type(error).__name__})") from error
        for index in indices:
            yield _decode(header, layout, dataset, index, plugins)


def _check_codestreams(dataset: Dataset, layout: PixelLayout) -> None:
    """Refuse frames that announce another size than the header does."""
    frames = generate_frames(dataset.PixelData, number_of_frames=layout.n_frames)
    for number, frame in enumerate(frames, 1):
        rows, columns = announced_size(frame) or (layout.rows, layout.columns)
        if (rows, columns) != (layout.rows, layout.columns) and rows:  # 0 rows: told at the end (DNL)
            raise UndecodableError(
                f"frame {number} is {rows} x {columns} in its codestream and {layout.rows} x {layout.columns} in the "
                "header"
            )


def _decode(header: Header, layout: PixelLayout, dataset: Dataset, index: int, plugins: tuple[str, ...]) -> Stored:
    """Return one frame from the first plugin that can decode it."""
    failures = []
    for plugin in plugins:
        try:
            decoder = get_decoder(UID(header.transfer_syntax_uid))
            values, _ = decoder.as_array(dataset, index=index, raw=True, decoding_plugin=plugin)
        except PARSE_ERRORS as error:
            failures.append(f"{plugin}: {type(error).__name__}" if plugin else type(error).__name__)
            continue
        if values.shape == (layout.rows, layout.columns):
            return values
        failures.append(f"{plugin}: {values.shape} instead of {(layout.rows, layout.columns)}")
    raise UndecodableError(
        f"frame {index + 1} in {header.transfer_syntax_name} cannot be decoded; the pixel data are damaged or of a "
        f"variant that is not read ({'; '.join(failures)})"
    )


def stored_array(header: Header) -> Stored:
    """Return the stored values of any one-sample instance as pydicom unpacks them, (frames, Y, X): for segmentations.

    Raises
    ------
    UndecodableError
        When the pixels cannot be decoded or are absurdly many; the reason names the transfer syntax.
    """
    sizes = [integer(header.dataset, keyword) or 0 for keyword in ("Rows", "Columns")]
    n_frames = integer(header.dataset, "NumberOfFrames") or 1
    if sizes[0] * sizes[1] * n_frames > MAX_VOXELS:
        raise UndecodableError(
            f"{n_frames} frames of {sizes[0]} x {sizes[1]} are more than the {MAX_VOXELS} that are read"
        )
    plugin = "" if header.transfer_syntax_uid in NATIVE else usable_plugins(header.transfer_syntax_uid)[0]
    if plugin:
        _check_expansion(header, sizes[0] * sizes[1] * n_frames)
    with quiet():
        try:
            decoder = get_decoder(UID(header.transfer_syntax_uid))
            values, _ = decoder.as_array(dcmread(header.path), raw=True, decoding_plugin=plugin)
        except PARSE_ERRORS as error:
            raise UndecodableError(
                f"pixel data in {header.transfer_syntax_name} cannot be decoded ({type(error).__name__})"
            ) from error
    return np.asarray(values).reshape(-1, *values.shape[-2:])


def modality_luts(dataset: Dataset, n_frames: int) -> list[ModalityLut]:
    """Return the modality LUT of each frame; Real World Value Mappings are another matter and are not applied.

    Raises
    ------
    UndecodableError
        When a slope is zero or a table is broken.
    """
    groups = functional_groups(dataset, "PixelValueTransformationSequence")
    if len(groups) == n_frames and any(group is not None for group in groups):
        return [_lut(group if group is not None else dataset) for group in groups]
    return [_lut(dataset)] * n_frames


def _lut(dataset: Dataset) -> ModalityLut:
    tables = items(dataset, "ModalityLUTSequence")
    if tables:
        return _table(tables[0])
    slope = floats(dataset, "RescaleSlope", 1)
    intercept = floats(dataset, "RescaleIntercept", 1)
    if slope is not None and slope[0] == 0:
        raise UndecodableError("Rescale Slope is zero: all values would be the same")
    return ModalityLut(slope=1.0 if slope is None else slope[0], intercept=0.0 if intercept is None else intercept[0])


def _table(item: Dataset) -> ModalityLut:
    """Return a Modality LUT Sequence's item: entries, first stored value mapped, bits (C.11.1.1)."""
    descriptor = floats(item, "LUTDescriptor", 3)
    try:
        data = item.get("LUTData")
        raw = np.frombuffer(data, dtype="<u2") if isinstance(data, bytes) else np.atleast_1d(np.array(data, np.uint16))
    except VALUE_ERRORS as error:
        raise UndecodableError("the Modality LUT has no readable table") from error
    if descriptor is None or raw.size < (int(descriptor[0]) or 1 << 16):
        raise UndecodableError("the Modality LUT is shorter than its descriptor says")
    n_entries = int(descriptor[0]) or 1 << 16  # 0 means 65536
    return ModalityLut(table=raw[:n_entries].astype(np.float32), first_stored=int(descriptor[1]))


def decode_instance(header: Header) -> NDArray[np.float32]:
    """Return all frames of an instance after the modality LUT, float32 (frames, Y, X), in frame order.

    Raises
    ------
    UndecodableError
        When the pixels cannot be decoded.
    """
    layout = pixel_layout(header)
    check_decodable(header, layout)
    luts = modality_luts(header.dataset, layout.n_frames)
    out = np.empty((layout.n_frames, layout.rows, layout.columns), dtype=np.float32)
    for index, stored in enumerate(stored_frames(header, layout, range(layout.n_frames))):
        luts[index].apply(stored, out[index])
    return out
