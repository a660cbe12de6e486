"""Files -> headers: what stands before the pixels, and where the pixels begin.

The first step of reading: one pass over the elements up to the pixel data, which stay on the disk. Large values are
left there too. Nothing here decodes a pixel or trusts a length; whatever cannot be parsed is refused in words.

Sources: DICOM PS3.10 7 (file format, file meta information), PS3.5 7 (data elements), PS3.18 F.2 (DICOM JSON model).
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_node.errors import UndecodableError
from dicom_node.study import DicomJson

# Headers of real scanners break the rules of their VRs all the time; we check what we use. The library would put the
# offending value, which may be the patient's, into warnings and into its log; its switches are process-wide.
config.settings.reading_validation_mode = config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

PARSE_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,  # RecursionError and NotImplementedError too
    StopIteration,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the codecs raise on files that are broken; caught only around calls into them."""
VALUE_ERRORS = (*PARSE_ERRORS, OSError)
"""The same where a value is parsed when it is asked for: pydicom reports the end of its bytes as OSError."""

UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_KEYWORDS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
"""By tag."""
_NEW_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.204": "JPIP HTJ2K Referenced",
    "1.2.840.10008.1.2.4.205": "JPIP HTJ2K Referenced Deflate",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
"""Names of PS3.6 Annex A that the library's dictionary lacks."""
_PER_FRAME_GROUPS = 0x52009230
DEFER_BYTES = 1 << 16
"""Values above this are left in the file until they are asked for."""
KEPT_BYTES = 4096
"""Values above this are bulk data (tables, overlays, vendors' blobs): no rule asks for them."""
_HASH_BLOCK = 1 << 20
_META_BYTES = 4096
"""More than the file meta information of nearly every file."""
_DEFLATED_UID = DeflatedExplicitVRLittleEndian.encode()
_INFLATED_ALWAYS_BYTES, _INFLATED_BYTES, _INFLATED_TIMES = 1 << 26, 1 << 30, 100
"""A deflated data set may grow to 64 MiB, and beyond to a hundred times its size, up to 1 GiB: as on receiving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelElement:
    """Where the pixel data of a file stand."""

    keyword: str
    """PixelData, FloatPixelData or DoubleFloatPixelData."""
    value_offset: int
    """Of the first byte of the value in the file; in a deflated one, in what `inflated` gives of it."""
    length: int
    """As declared; `UNDEFINED_LENGTH` when encapsulated."""
    vr: str | None
    """None in implicit VR."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Header:
    """All that stands before the pixels of one file."""

    path: Path
    attributes: Attributes
    """What asks little of many files takes: their elements as they were found, parsed when they are asked for."""
    transfer_syntax_uid: str
    pixels: PixelElement | None

    @cached_property
    def dataset(self) -> Dataset:
        """Parse all of it: with file meta information, without pixel data; large values are read when asked for.

        Raises
        ------
        UndecodableError
            When it cannot be parsed.
        OSError
            When the file cannot be read.
        """
        return self.attributes if isinstance(self.attributes, Dataset) else _by_library(self.path)[0]

    @property
    def is_big_endian(self) -> bool:
        """Return whether numbers stand with their high byte first."""
        return self.transfer_syntax_uid == ExplicitVRBigEndian

    @property
    def transfer_syntax_name(self) -> str:
        """Return the name of the transfer syntax with its UID: what a reason shows."""
        name = _NEW_SYNTAXES.get(self.transfer_syntax_uid) or UID(self.transfer_syntax_uid).name
        return name if name == self.transfer_syntax_uid else f"{name} ({self.transfer_syntax_uid})"


class Attributes(Protocol):
    """What has values by keyword: a data set, or what of it `head` found."""

    def get(self, key: str, /) -> Any:
        """Return a value, None when it is absent."""

    def __contains__(self, key: Any, /) -> bool:
        """Return whether there is such an attribute."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's remarks about odd files, which may quote patients, from being shown or raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(path: Path) -> Header:
    """Return the header of a DICOM file.

    Raises
    ------
    UndecodableError
        When the file is no DICOM file, has no transfer syntax or cannot be parsed.
    OSError
        When the file cannot be opened or read.
    """
    from dicom_node.reading.head import head_of  # which reads values as this module tells it to

    with path.open("rb", buffering=0) as file:
        head = head_of(file.fileno())
    if head is not None:
        syntax, pixels = head.transfer_syntax_uid, head.pixels
        return Header(path=path, attributes=head, transfer_syntax_uid=syntax, pixels=pixels)
    dataset, syntax, pixels = _by_library(path)
    return Header(path=path, attributes=dataset, transfer_syntax_uid=syntax, pixels=pixels)


def _by_library(path: Path) -> tuple[Dataset, str, PixelElement | None]:
    with path.open("rb") as file:
        return parse(file, defer_bytes=DEFER_BYTES)


def parse(file: BinaryIO, *, defer_bytes: int | None = None) -> tuple[Dataset, str, PixelElement | None]:
    """Return data set, transfer syntax and pixels of a DICOM file; longer values than `defer_bytes` stay in the file.

    Raises
    ------
    UndecodableError
        When the file is no DICOM file, has no transfer syntax or cannot be parsed.
    OSError
        When the file cannot be read.
    """
    file, is_deflated = _without_deflation(file)
    seen: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in PIXEL_KEYWORDS:
            seen.append((int(tag), vr, length))
            return True
        return False

    with quiet():
        try:
            dataset = read_partial(file, stop_when=at_pixels, defer_size=defer_bytes)
            transfer_syntax_uid = str(dataset.file_meta.get("TransferSyntaxUID", "") or "")
        except InvalidDicomError as error:
            raise UndecodableError("not a DICOM file: the prefix DICM is missing") from error
        except PARSE_ERRORS as error:
            raise UndecodableError(f"the header cannot be parsed ({type(error).__name__})") from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise UndecodableError("the header cannot be parsed (it ends early)") from error
    if not transfer_syntax_uid:
        raise UndecodableError("the file meta information names no transfer syntax")
    if is_deflated:
        transfer_syntax_uid = DeflatedExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pixels = None
    if seen:
        tag, vr, length = seen[0]
        # The value begins after 8 bytes, or 12 in explicit VR with a 32-bit length (PS3.5 7.1).
        offset = file.tell() + (8 if vr is None else 12)
        pixels = PixelElement(keyword=PIXEL_KEYWORDS[tag], value_offset=offset, length=length, vr=vr)
    return dataset, transfer_syntax_uid, pixels


def _without_deflation(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """Return the file, inflated if it is deflated, and whether it was: the library would inflate whatever comes."""
    beginning = file.read(_META_BYTES)
    file.seek(0)
    if _DEFLATED_UID not in beginning:
        return file, False
    content = inflated(file)
    return (file, False) if content is None else (BytesIO(content), True)


def inflated(file: BinaryIO) -> bytes | None:
    """Return the content of a deflated file as it would be in Explicit VR Little Endian; None when it is not deflated.

    Raises
    ------
    UndecodableError
        When it cannot be inflated, or grows beyond what an image of its size can be.
    OSError
        When the file cannot be read.
    """
    offset = _data_set_offset(file)
    file.seek(0)
    meta, body = file.read(offset), file.read()
    if _DEFLATED_UID not in meta:
        return None
    limit = max(_INFLATED_ALWAYS_BYTES, min(_INFLATED_BYTES, len(body) * _INFLATED_TIMES))
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, limit + 1)
    except zlib.error as error:
        raise UndecodableError("the deflated data set cannot be inflated; the file is damaged") from error
    if len(content) > limit:
        raise UndecodableError(f"the deflated data set of {len(body)} bytes grows beyond {limit} bytes")
    explicit = ExplicitVRLittleEndian.encode().ljust(len(_DEFLATED_UID), b"\0")
    return meta.replace(_DEFLATED_UID, explicit) + content


def text(dataset: Attributes, keyword: str, default: str = "") -> str:
    """Return an attribute as text without surrounding blanks, values joined by a backslash; `default` when absent."""
    try:
        value = dataset.get(keyword)
    except VALUE_ERRORS:
        return default
    if value is None:
        return default
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return str(value).strip() or default
    return "\\".join(str(part).strip() for part in value) or default


def floats(dataset: Attributes, keyword: str, n: int) -> tuple[float, ...] | None:
    """Return the `n` finite numbers of an attribute; None when it is absent, unreadable or has another multiplicity."""
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return None
        numbers = (
            tuple(float(part) for part in value)
            if hasattr(value, "__iter__") and not isinstance(value, str)
            else (float(value),)
        )
    except VALUE_ERRORS:
        return None
    return numbers if len(numbers) == n and all(math.isfinite(number) for number in numbers) else None


def integer(dataset: Attributes, keyword: str) -> int | None:
    """Return an attribute as a whole number; None when it is absent or is none."""
    try:
        value = dataset.get(keyword)
        return None if value is None or value == "" else int(value)
    except VALUE_ERRORS:
        return None


def items(dataset: Attributes | None, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none when it is absent or unreadable."""
    if dataset is None or keyword not in dataset:  # a quick look: most frames lack most functional groups
        return []
    try:
        value = dataset.get(keyword)
        return list(value) if value is not None else []
    except VALUE_ERRORS:
        return []


def header_json(dataset: Dataset) -> DicomJson:
    """Return a data set in the DICOM JSON model: no bulk data, of Per-frame Functional Groups the first item only.

    Values that cannot be parsed are left out.
    """
    with quiet():
        return _dataset_json(dataset)


def _dataset_json(dataset: Dataset) -> dict[str, dict[str, Any]]:
    out = {}
    for tag in sorted(dataset.keys()):
        if tag not in PIXEL_KEYWORDS and (element := _element_json(dataset, tag)) is not None:
            out[f"{int(tag):08X}"] = element
    return out


def _element_json(dataset: Dataset, tag: BaseTag) -> dict[str, Any] | None:
    try:
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and DEFER_BYTES < raw.length < UNDEFINED_LENGTH and raw.VR != "SQ":
            return None
        element = dataset[tag]
        if element.VR == "SQ":
            kept = list(element.value)[: 1 if tag == _PER_FRAME_GROUPS else None]
            return {"vr": "SQ", "Value": [_dataset_json(item) for item in kept]} if kept else {"vr": "SQ"}
        if isinstance(element.value, bytes | str) and len(element.value) > KEPT_BYTES:
            return None
        if isinstance(element.value, list) and len(element.value) > KEPT_BYTES // 8:
            return None
        if element.VR in ("FL", "FD", "DS") and not _all_finite(element.value):
            return None  # JSON knows no NaN
        return dict(element.to_json_dict(None, KEPT_BYTES))
    except VALUE_ERRORS:
        return None


def _all_finite(value: Any) -> bool:
    values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    return all(math.isfinite(float(number)) for number in values if number not in (None, ""))


def data_set_digest(path: Path) -> str:
    """Return SHA-256, hexadecimal, of the data set part of a file: what follows the file meta information.

    Raises
    ------
    UndecodableError
        When the file is no DICOM file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(_data_set_offset(file))
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _data_set_offset(file: BinaryIO) -> int:
    """Return where the data set begins: past group 0002, which is in Explicit VR Little Endian (PS3.10 7.1)."""
    if file.read(132)[128:] != b"DICM":
        raise UndecodableError("not a DICOM file: the prefix DICM is missing")
    while True:
        offset = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            return offset
        length = int.from_bytes(head[6:8], "little")
        if head[4:6] in (b"OB", b"UN", b"OW", b"UT", b"SQ"):
            length = int.from_bytes(file.read(4), "little")
        file.seek(length, 1)
