"""One encapsulated frame -> its stored values: what decodes which transfer syntax, and which bits of it are the value.

Every codec has a permissive licence: openjpeg (JPEG 2000 and HTJ2K), CharLS (JPEG-LS), a decoder of RLE in Rust, gdcm
and pillow by way of pydicom (the other JPEGs); pylibjpeg-libjpeg (GPL-3) is never used even where it is installed.
Uncompressed and deflated frames are unpacked here. Before a codec is called, the size that the codestream announces is
compared with that of the header: decoders make room for what the codestream says.

Codecs are imported when they are asked for, so that a helper loads what it needs and no more.

Sources: DICOM PS3.5 8.1.1 (pixel cells), 8.2 (compressed), A.4 (encapsulated syntaxes), PS3.3 C.7.6.3.1.2 (Photometric
Interpretation).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.codecs.codestream import announced
from dicom_node.errors import UndecodableError

Stored: TypeAlias = NDArray[Any]
"""Integers (Y, X), or (Y, X, 3) of colour, as they are stored; unused bits taken out."""

CODEC_ERRORS: Final = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What codecs raise on frames that are broken; caught only around calls into them."""

JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS: Final = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL: Final = "1.2.840.10008.1.2.4.202"
HTJ2K: Final = "1.2.840.10008.1.2.4.203"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"
ENCAPSULATED_UNCOMPRESSED: Final = "1.2.840.10008.1.2.1.98"
DEFLATED_FRAMES: Final = "1.2.840.10008.1.2.8.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameForm:
    """What the header says of a frame: the Image Pixel module, checked, and the transfer syntax."""

    transfer_syntax_uid: str
    rows: int
    columns: int
    samples: int
    """Values of a pixel: 1, or 3 of colour."""
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric_interpretation: str
    planar_configuration: int = 0
    """1: all red values stand before all green ones."""

    @property
    def n_values(self) -> int:
        """Return how many values a decoded frame has."""
        return self.rows * self.columns * self.samples

    @property
    def n_bits(self) -> int:
        """Return the length of the uncompressed frame; two pixels of YBR_FULL_422 share their colour."""
        values = self.rows * self.columns * 2 if self.is_subsampled else self.n_values
        return values * self.bits_allocated

    @property
    def n_bytes(self) -> int:
        """Return the length of the uncompressed frame, rounded up."""
        return -(-self.n_bits // 8)

    @property
    def is_subsampled(self) -> bool:
        """Return whether uncompressed values of colour stand for two pixels each."""
        return self.photometric_interpretation == "YBR_FULL_422" and self.samples > 1


def decode_frame(frame: bytes, form: FrameForm) -> Stored:
    """Return the stored values of an encapsulated frame: (Y, X), or (Y, X, 3) in RGB, whatever colours it was kept in.

    Parameters
    ----------
    frame
        Its fragments, joined.

    Raises
    ------
    UndecodableError
        When the frame is damaged, of a variant that is not read, or announces another size than `form`.
    """
    codec = _CODECS.get(form.transfer_syntax_uid)
    if codec is None:
        raise UndecodableError(f"cannot be decoded here ({form.transfer_syntax_uid})")
    _check_announced(frame, form)
    try:
        return codec(frame, form)
    except CODEC_ERRORS as error:
        raise UndecodableError(
            f"cannot be decoded; it is damaged or of a variant that is not read ({type(error).__name__})"
        ) from error


def _check_announced(frame: bytes, form: FrameForm) -> None:
    said = announced(frame)
    if said is None:
        return
    if said.rows and (said.rows, said.columns) != (form.rows, form.columns):  # 0 rows: told at the end (DNL)
        raise UndecodableError(
            f"is {said.rows} x {said.columns} in its codestream and {form.rows} x {form.columns} in the header"
        )
    if said.components != form.samples:
        raise UndecodableError(
            f"has {said.components} components in its codestream and {form.samples} samples a pixel in the header"
        )


def native_values(raw: bytes | bytearray | memoryview, form: FrameForm, *, byte_order: str = "<") -> Stored:
    """Return the stored values of an uncompressed frame, (Y, X) or (Y, X, 3) in RGB.

    Single bits are packed from the lowest of each byte on (PS3.5 8.1.1); the first of `raw` is that of the frame.
    """
    if form.bits_allocated == 1:
        bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=form.n_values, bitorder="little")
        return bits.reshape(form.rows, form.columns)
    kind = f"{byte_order}{'i' if form.signed else 'u'}{form.bits_allocated // 8}"
    values = np.frombuffer(raw, dtype=kind)
    values = _with_bits(values, form.bits_stored, form.high_bit)
    if form.is_subsampled:
        values = _each_pixel_its_colour(values)
    return in_rgb(_shaped(values, form, by_plane=form.planar_configuration == 1 and not form.is_subsampled), form)


def _with_bits(values: Stored, bits_stored: int, high_bit: int) -> Stored:
    """Return values with the unused bits above and below taken out and the sign extended (PS3.5 8.1.1)."""
    width = 8 * values.dtype.itemsize
    if bits_stored >= width:
        return values
    native = values.astype(values.dtype.newbyteorder("="))
    native <<= width - 1 - high_bit
    native >>= width - bits_stored
    return native


def _shaped(values: Stored, form: FrameForm, *, by_plane: bool) -> Stored:
    """Return flat values as (Y, X) or (Y, X, samples)."""
    if form.samples == 1:
        return values.reshape(form.rows, form.columns)
    if by_plane:
        return np.moveaxis(values.reshape(form.samples, form.rows, form.columns), 0, -1)
    return values.reshape(form.rows, form.columns, form.samples)


def _each_pixel_its_colour(values: Stored) -> Stored:
    """Return Y1 Y2 Cb Cr ... as Y1 Cb Cr Y2 Cb Cr ... (PS3.3 C.7.6.3.1.2)."""
    pairs = values.reshape(-1, 4)
    return pairs[:, [0, 2, 3, 1, 2, 3]].reshape(-1)


def in_rgb(values: Stored, form: FrameForm) -> Stored:
    """Return colours kept as luminance and two differences as RGB; others as they are (PS3.3 C.7.6.3.1.2)."""
    if form.samples != 3 or not form.photometric_interpretation.startswith("YBR_FULL"):
        return values
    top = (1 << form.bits_stored) - 1
    y, blue, red = (values[..., i].astype(np.float32) for i in range(3))
    blue -= (top + 1) / 2
    red -= (top + 1) / 2
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, top), dtype=values.dtype)


def _from_container(raw: bytes | bytearray, form: FrameForm, precision: int, *, by_plane: bool = False) -> Stored:
    """Return values whose decoder filled the narrowest container that holds their precision.

    JPEG-LS knows no sign, and what JPEG 2000 says of it may contradict the header: the header's Pixel Representation
    decides, for the bits that the codestream has.
    """
    itemsize = 1 if precision <= 8 else 2 if precision <= 16 else 4
    if len(raw) != form.n_values * itemsize:
        raise UndecodableError(f"decodes to {len(raw)} of {form.n_values * itemsize} bytes")
    values = np.frombuffer(raw, dtype=f"<{'i' if form.signed else 'u'}{itemsize}")
    return _shaped(_with_bits(values, precision, precision - 1), form, by_plane=by_plane)


def _precision(frame: bytes, form: FrameForm) -> int:
    said = announced(frame)
    return form.bits_stored if said is None else said.precision


def _by_openjpeg(frame: bytes, form: FrameForm) -> Stored:
    from openjpeg.utils import decode_pixel_data

    raw = bytes(decode_pixel_data(frame, version=2))  # YBR_RCT and YBR_ICT come out as RGB
    return in_rgb(_from_container(raw, form, _precision(frame, form)), form)


def _by_charls(frame: bytes, form: FrameForm) -> Stored:
    import jpeg_ls

    raw, said = jpeg_ls.decode_pixel_data(frame)
    by_plane = form.samples > 1 and said["interleave_mode"] == 0
    return in_rgb(_from_container(raw, form, said["bits_per_sample"], by_plane=by_plane), form)


def _by_rle(frame: bytes, form: FrameForm) -> Stored:
    from rle.rle import decode_frame as decode_segments

    if form.bits_allocated == 1:
        return native_values(decode_segments(frame, form.n_bytes, 8, "<"), form)
    raw = decode_segments(frame, form.rows * form.columns, form.bits_allocated, "<")
    values = np.frombuffer(raw, dtype=f"<{'i' if form.signed else 'u'}{form.bits_allocated // 8}")
    values = _with_bits(values, form.bits_stored, form.high_bit)
    return in_rgb(_shaped(values, form, by_plane=True), form)


def _by_pydicom(frame: bytes, form: FrameForm) -> Stored:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(form.transfer_syntax_uid)
    options: Any = {
        "number_of_frames": 1,
        "rows": form.rows,
        "columns": form.columns,
        "samples_per_pixel": form.samples,
        "photometric_interpretation": form.photometric_interpretation,
        "planar_configuration": form.planar_configuration,
        "bits_allocated": form.bits_allocated,
        "bits_stored": form.bits_stored,
        "pixel_representation": int(form.signed),
        "pixel_keyword": "PixelData",
    }
    failures = []
    for plugin in _PLUGINS[form.transfer_syntax_uid]:
        try:
            values, _ = decoder.as_array(encapsulate([frame], has_bot=False), decoding_plugin=plugin, **options)
        except CODEC_ERRORS as error:
            failures.append(f"{plugin}: {type(error).__name__}")
        else:
            return values
    raise ValueError("; ".join(failures))


def _by_gdcm_or_pydicom(frame: bytes, form: FrameForm) -> Stored:
    """Decode JPEG Extended: of 12 bits by gdcm itself, which pydicom does not trust with it; compared with dcmtk's."""
    return _by_pydicom(frame, form) if _precision(frame, form) <= 8 else _by_gdcm(frame, form)


def _by_gdcm(frame: bytes, form: FrameForm) -> Stored:
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    pixels = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    pixels.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((form.columns, form.rows, 1))
    image.SetDataElement(pixels)
    colours = gdcm.PhotometricInterpretation.GetPIType(form.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(colours))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(form.transfer_syntax_uid)))
    bits = _precision(frame, form)
    image.SetPixelFormat(gdcm.PixelFormat(form.samples, form.bits_allocated, bits, bits - 1, int(form.signed)))
    raw = image.GetBuffer().encode("utf-8", "surrogateescape")  # bytes that it takes for text
    return in_rgb(_from_container(raw, form, bits), form)


def _inflated(frame: bytes, form: FrameForm) -> Stored:
    raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, form.n_bytes + 1)
    return _uncompressed(raw, form)


def _uncompressed(frame: bytes, form: FrameForm) -> Stored:
    if len(frame) < form.n_bytes:
        raise UndecodableError(f"has {len(frame)} of {form.n_bytes} bytes")
    return native_values(memoryview(frame)[: form.n_bytes], form)


_PLUGINS: Final = MappingProxyType(
    {
        JPEG_BASELINE: ("gdcm", "pillow"),
        JPEG_EXTENDED: ("gdcm", "pillow"),
        JPEG_LOSSLESS: ("gdcm",),
        JPEG_LOSSLESS_SV1: ("gdcm",),
    }
)
"""pydicom's decoding plugins by transfer syntax, first choice first."""

_CODECS: Final[Mapping[str, Callable[[bytes, FrameForm], Stored]]] = MappingProxyType(
    {
        JPEG_BASELINE: _by_pydicom,
        JPEG_EXTENDED: _by_gdcm_or_pydicom,
        JPEG_LOSSLESS: _by_pydicom,
        JPEG_LOSSLESS_SV1: _by_pydicom,
        JPEG_LS_LOSSLESS: _by_charls,
        JPEG_LS_NEAR_LOSSLESS: _by_charls,
        JPEG_2000_LOSSLESS: _by_openjpeg,
        JPEG_2000: _by_openjpeg,
        HTJ2K_LOSSLESS: _by_openjpeg,
        HTJ2K_LOSSLESS_RPCL: _by_openjpeg,
        HTJ2K: _by_openjpeg,
        RLE_LOSSLESS: _by_rle,
        ENCAPSULATED_UNCOMPRESSED: _uncompressed,
        DEFLATED_FRAMES: _inflated,
    }
)

ENCAPSULATED: Final = frozenset(_CODECS)
"""Encapsulated transfer syntaxes that are decoded here."""

SLOW: Final = ENCAPSULATED - {RLE_LOSSLESS, ENCAPSULATED_UNCOMPRESSED, DEFLATED_FRAMES}
"""Those whose codecs hold the interpreter lock for milliseconds a frame: processes help, threads do not."""
