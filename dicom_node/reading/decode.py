"""Pixels -> numbers: stored values of each frame, and the modality LUT that gives them their unit.

Uncompressed values come straight from the file, whatever their byte order; encapsulated frames go through `codecs`.
Floating point pixel data are values already. Sizes are checked before anything is decoded. Values are never windowed,
inverted or clipped; padding stays among them (`padding`). Colour is read where it is asked for (`colour`).

Sources: DICOM PS3.5 8 and Annex A (pixel data encodings), 7.3 (byte order), PS3.3 C.7.6.3 (Image Pixel), C.7.6.24
(Floating Point Image Pixel), C.11.1 (Modality LUT), C.7.6.16.2.9 (Pixel Value Transformation).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicom_node.codecs import ENCAPSULATED, FrameForm, Stored, decode_frame
from dicom_node.codecs.frame import native_values
from dicom_node.codecs.helper import read_extents
from dicom_node.errors import UndecodableError
from dicom_node.reading.encapsulation import Extents, frame_extents
from dicom_node.reading.enhanced import functional_groups
from dicom_node.reading.header import (
    UNDEFINED_LENGTH,
    VALUE_ERRORS,
    Attributes,
    Header,
    floats,
    inflated,
    integer,
    items,
    text,
)

__all__ = [
    "MAX_VOXELS",
    "NATIVE",
    "ModalityLut",
    "PixelLayout",
    "Stored",
    "check_decodable",
    "decode_instance",
    "encapsulated_frames",
    "frame_form",
    "frame_name",
    "modality_luts",
    "pixel_layout",
    "stored_frames",
]

MAX_VOXELS = 1 << 30
"""Of one volume or instance: 4 GiB as float32. A hospital's largest CT has a quarter of it."""

MAX_EXPANSION = 1000
"""Times that compressed pixels above `_HARMLESS_BYTES` may grow; those of images grow two to a hundred times."""
_HARMLESS_BYTES = 1 << 26

NATIVE = frozenset(
    {ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian}
)
"""Transfer syntaxes whose pixels are not encapsulated."""

_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Bits of a value; Bits Stored and the like are absent there (C.7.6.24)."""
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = {
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_RCT": 3,
    "YBR_ICT": 3,
    "PALETTE COLOR": 1,
}
"""Photometric Interpretation of colour -> samples of a pixel."""

Read: TypeAlias = Callable[[int, int], bytes | memoryview]
"""Of pixel data: offset, length -> bytes."""


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
    samples: int = 1
    planar_configuration: int = 0
    is_float: bool = False

    @property
    def is_colour(self) -> bool:
        """Return whether values are colours, or stand for some."""
        return self.photometric_interpretation in _COLOURS


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
        elif stored.dtype.kind == "f":
            _apply_to_floats(stored, self.slope, self.intercept, out)
        elif stored.dtype.itemsize > 2:  # float32 cannot hold the stored values before the intercept is added
            out[...] = stored.astype(np.float64) * self.slope + self.intercept
        else:
            if self.slope == 1:
                np.add(stored, np.float32(self.intercept), out=out)
                return
            np.multiply(stored, np.float32(self.slope), out=out)
            if self.intercept:
                np.add(out, np.float32(self.intercept), out=out)


def _apply_to_floats(stored: Stored, slope: float, intercept: float, out: NDArray[np.float32]) -> None:
    if not np.isfinite(stored).all():
        raise UndecodableError("floating point pixel data hold values that are no numbers (NaN or infinite)")
    out[...] = stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept


def pixel_layout(header: Header, *, colour: bool = False) -> PixelLayout:
    """Return how an instance's values are laid out.

    Parameters
    ----------
    colour
        Whether colour is taken too; what it becomes is the caller's matter (`colour`).

    Raises
    ------
    UndecodableError
        When there are no pixel data, or they are in colour unasked, of an unknown layout or absurdly many.
    """
    attributes = header.attributes
    if header.pixels is None:
        raise UndecodableError("the file holds no pixel data")
    float_bits = _FLOATS.get(header.pixels.keyword)
    photometric = text(attributes, "PhotometricInterpretation")
    samples = integer(attributes, "SamplesPerPixel") or 1
    _check_colours(photometric, samples, colour=colour)
    n_frames = integer(attributes, "NumberOfFrames")
    allocated, stored = integer(attributes, "BitsAllocated") or 0, integer(attributes, "BitsStored") or 0
    high_bit = integer(attributes, "HighBit")
    if float_bits is not None:
        allocated, stored, high_bit = float_bits, float_bits, float_bits - 1
    layout = PixelLayout(
        rows=integer(attributes, "Rows") or 0,
        columns=integer(attributes, "Columns") or 0,
        n_frames=1 if n_frames is None else n_frames,
        bits_allocated=allocated,
        bits_stored=stored or allocated,
        high_bit=(stored or allocated) - 1 if high_bit is None else high_bit,
        signed=bool(integer(attributes, "PixelRepresentation")),
        photometric_interpretation=photometric,
        samples=samples,
        planar_configuration=integer(attributes, "PlanarConfiguration") or 0,
        is_float=float_bits is not None,
    )
    _check_layout(layout)
    if photometric == "YBR_FULL_422" and layout.columns % 2 and header.transfer_syntax_uid in NATIVE:
        raise UndecodableError(f"YBR_FULL_422 with {layout.columns} columns: two neighbours share their colour")
    return layout


def _check_colours(photometric: str, samples: int, *, colour: bool) -> None:
    if photometric in _GREY and samples == 1:
        return
    kind = f"{photometric or 'Photometric Interpretation missing'}, {samples} samples a pixel"
    if not colour:
        raise UndecodableError(f"only grey values make a volume; this image is in colour or unknown ({kind})")
    if _COLOURS.get(photometric) != samples:
        raise UndecodableError(f"the image is in colours that are not read ({kind})")


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
    allowed = (8, 16) if layout.samples > 1 else (1, 8, 16, 32)
    if layout.bits_allocated not in allowed and not layout.is_float:
        words = " and ".join(", ".join(map(str, allowed)).rsplit(", ", 1))
        raise UndecodableError(f"Bits Allocated {layout.bits_allocated} is not read ({words} are)")
    if not layout.bits_stored <= layout.high_bit + 1 <= layout.bits_allocated:
        raise UndecodableError(
            f"Bits Stored {layout.bits_stored} with High Bit {layout.high_bit} do not fit Bits Allocated "
            f"{layout.bits_allocated}"
        )


def frame_form(header: Header, layout: PixelLayout) -> FrameForm:
    """Return what a codec must know of the frames of an instance."""
    return FrameForm(
        transfer_syntax_uid=str(header.transfer_syntax_uid),
        rows=layout.rows,
        columns=layout.columns,
        samples=layout.samples,
        bits_allocated=layout.bits_allocated,
        bits_stored=layout.bits_stored,
        high_bit=layout.high_bit,
        signed=layout.signed,
        photometric_interpretation=layout.photometric_interpretation,
        planar_configuration=layout.planar_configuration,
    )


def frame_name(header: Header, index: int) -> str:
    """Return what a reason calls a frame, by its 0-based index."""
    return f"frame {index + 1} in {header.transfer_syntax_name}"


def check_decodable(header: Header, layout: PixelLayout) -> None:
    """Refuse pixels that cannot be decoded, without decoding them.

    Raises
    ------
    UndecodableError
        When nothing here decodes the transfer syntax, or pixel data are shorter than the image can be.
    """
    assert header.pixels is not None
    n_bits = frame_form(header, layout).n_bits * layout.n_frames
    if header.transfer_syntax_uid not in NATIVE:
        _check_encapsulated(header, -(-n_bits // 8))
    elif header.pixels.length == UNDEFINED_LENGTH:
        raise UndecodableError("the pixel data are encapsulated, although the transfer syntax says uncompressed")
    elif header.transfer_syntax_uid != DeflatedExplicitVRLittleEndian:
        on_disk = header.path.stat().st_size - header.pixels.value_offset
        _check_length(-(-n_bits // 8), min(on_disk, header.pixels.length))


def _check_encapsulated(header: Header, n_bytes: int) -> None:
    """Refuse what nothing decodes, and a few bytes that claim to be gigabytes: decoders make room for them first."""
    if header.transfer_syntax_uid not in ENCAPSULATED:
        raise UndecodableError(
            f"the transfer syntax {header.transfer_syntax_name} cannot be decoded here; send the images uncompressed"
        )
    on_disk = header.path.stat().st_size
    if n_bytes > max(_HARMLESS_BYTES, on_disk * MAX_EXPANSION):
        raise UndecodableError(
            f"compressed pixel data of {on_disk} bytes cannot be {n_bytes} bytes of image; the file is truncated or "
            "its Rows, Columns or Number of Frames are wrong"
        )


def _check_length(needed: int, n_bytes: int) -> None:
    if n_bytes < needed:
        raise UndecodableError(
            f"pixel data is shorter than Rows x Columns x Frames: {max(n_bytes, 0)} of {needed} bytes; the file is "
            "truncated"
        )


def stored_frames(
    header: Header, layout: PixelLayout, indices: Iterable[int], *, buffer: bytearray | None = None
) -> Iterator[Stored]:
    """Yield the stored values (Y, X), or RGB (Y, X, 3), of frames by their 0-based indices, unused bits taken out.

    Parameters
    ----------
    buffer
        Where uncompressed frames are read into, one over the other, instead of new memory: use each before the next.

    Raises
    ------
    UndecodableError
        When the pixels cannot be decoded; the reason names the transfer syntax.
    """
    if header.transfer_syntax_uid in NATIVE:
        yield from _native_frames(header, layout, indices, buffer)
        return
    form = frame_form(header, layout)
    extents = encapsulated_frames(header, layout)
    for index in indices:
        try:
            yield decode_frame(read_extents(header.path, extents[index]), form)
        except UndecodableError as error:
            raise UndecodableError(f"{frame_name(header, index)} {error.reason}") from error


def encapsulated_frames(header: Header, layout: PixelLayout) -> list[Extents]:
    """Return where in the file each frame of encapsulated pixel data lies.

    Raises
    ------
    UndecodableError
        When nothing decodes the transfer syntax, or the fragments do not make the frames.
    """
    assert header.pixels is not None
    _check_encapsulated(header, frame_form(header, layout).n_bytes * layout.n_frames)
    table = header.attributes.get("ExtendedOffsetTable")
    return frame_extents(
        header.path,
        header.pixels.value_offset,
        layout.n_frames,
        extended=table if isinstance(table, bytes) else None,
    )


def _native_frames(
    header: Header, layout: PixelLayout, indices: Iterable[int], buffer: bytearray | None
) -> Iterator[Stored]:
    assert header.pixels is not None
    form = frame_form(header, layout)
    order = ">" if header.is_big_endian else "<"
    turned = header.is_big_endian and layout.bits_allocated == 8 and header.pixels.vr == "OW"
    with _pixels_of(header, -(-form.n_bits * layout.n_frames // 8), buffer) as read:
        for index in indices:
            start, n_bits = index * form.n_bits, form.n_bits
            if layout.is_float:
                values = np.frombuffer(read(start // 8, n_bits // 8), f"{order}f{layout.bits_allocated // 8}")
                yield values.reshape(layout.rows, layout.columns)
            elif layout.bits_allocated == 1:  # frames follow each other bit by bit
                raw = np.frombuffer(read(start // 8, -(-(start % 8 + n_bits) // 8)), np.uint8)
                bits = np.unpackbits(raw, bitorder="little")[start % 8 : start % 8 + n_bits]
                yield bits.reshape(layout.rows, layout.columns)
            elif turned:  # 8-bit values in words are swapped in pairs (PS3.5 7.3)
                first = start // 8
                pairs = np.frombuffer(read(first & ~1, -(-(n_bits // 8 + first % 2) // 2) * 2), np.uint16).byteswap()
                yield native_values(pairs.tobytes()[first % 2 :][: n_bits // 8], form)
            else:
                yield native_values(read(start // 8, n_bits // 8), form, byte_order=order)


@contextmanager
def _pixels_of(header: Header, needed: int, buffer: bytearray | None) -> Iterator[Read]:
    """Give the reader of an instance's pixel data, which are at least `needed` bytes long."""
    assert header.pixels is not None
    begin = header.pixels.value_offset
    with header.path.open("rb", buffering=0) as file:
        if header.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
            content = memoryview(inflated(file) or b"")
            _check_length(needed, min(len(content) - begin, header.pixels.length))
            yield lambda offset, length: content[begin + offset : begin + offset + length]
            return
        _check_length(needed, min(os.fstat(file.fileno()).st_size - begin, header.pixels.length))

        def read(offset: int, length: int) -> memoryview:
            room = bytearray(length) if buffer is None else buffer
            if len(room) < length:
                room.extend(bytes(length - len(room)))
            into = memoryview(room)[:length]
            _check_length(length, os.preadv(file.fileno(), [into], begin + offset))
            return into

        yield read


def modality_luts(dataset: Attributes, n_frames: int) -> list[ModalityLut]:
    """Return the modality LUT of each frame; Real World Value Mappings are another matter and are not applied.

    Raises
    ------
    UndecodableError
        When a slope is zero or no number, or a table is broken.
    """
    signed = bool(integer(dataset, "PixelRepresentation"))
    groups = functional_groups(dataset, "PixelValueTransformationSequence")
    if len(groups) == n_frames and any(group is not None for group in groups):
        return [_lut(group if group is not None else dataset, signed=signed) for group in groups]
    return [_lut(dataset, signed=signed)] * n_frames


def _lut(dataset: Attributes, *, signed: bool) -> ModalityLut:
    tables = items(dataset, "ModalityLUTSequence")
    if tables:
        return _table(tables[0], signed=signed)
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if slope == 0:
        raise UndecodableError("Rescale Slope is zero: all values would be the same")
    return ModalityLut(slope=slope, intercept=intercept)


def _number(dataset: Attributes, keyword: str, absent: float) -> float:
    """Return the number of an attribute; a value that is none must not pass for an absent one."""
    found = floats(dataset, keyword, 1)
    if found is None and text(dataset, keyword):
        raise UndecodableError(f"{keyword} is no number: the unit of the values is unknown")
    return absent if found is None else found[0]


def _table(item: Attributes, *, signed: bool) -> ModalityLut:
    """Return a Modality LUT Sequence's item: entries, first stored value mapped, bits (C.11.1.1)."""
    descriptor = floats(item, "LUTDescriptor", 3)
    try:
        raw = _entries(item.get("LUTData"), 0 if descriptor is None else int(descriptor[2]), descriptor)
    except VALUE_ERRORS as error:
        raise UndecodableError("the Modality LUT has no readable table") from error
    n_entries = 0 if descriptor is None else int(descriptor[0]) & 0xFFFF or 1 << 16  # 0 means 65536
    if descriptor is None or raw.size < n_entries:
        raise UndecodableError("the Modality LUT is shorter than its descriptor says")
    first = int(descriptor[1])
    if signed and first >= 1 << 15:  # written as US
        first -= 1 << 16
    elif not signed and first < 0:  # written as SS
        first += 1 << 16
    return ModalityLut(table=raw[:n_entries].astype(np.float32), first_stored=first)


def _entries(data: object, bits: int, descriptor: Sequence[float] | None) -> NDArray[np.uint16]:
    """Return the entries of a table: words, or bytes where it says 8 bits and has no more room."""
    if not isinstance(data, bytes):
        return np.atleast_1d(np.array(data).astype(np.uint16))
    n_entries = 0 if descriptor is None else int(descriptor[0]) & 0xFFFF or 1 << 16
    if bits == 8 and len(data) < 2 * n_entries:
        return np.frombuffer(data, np.uint8).astype(np.uint16)
    return np.frombuffer(data, dtype="<u2")


def decode_instance(header: Header) -> NDArray[np.float32]:
    """Return all frames of an instance after the modality LUT, float32 (frames, Y, X), in frame order.

    Raises
    ------
    UndecodableError
        When the pixels cannot be decoded.
    """
    layout = pixel_layout(header)
    check_decodable(header, layout)
    luts = modality_luts(header.attributes, layout.n_frames)
    out = np.empty((layout.n_frames, layout.rows, layout.columns), dtype=np.float32)
    for index, stored in enumerate(stored_frames(header, layout, range(layout.n_frames))):
        luts[index].apply(stored, out[index])
    return out
