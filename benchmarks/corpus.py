"""Corpora of synthetic objects: how many of which size, written once into a scratch folder.

The project's writer of synthetic DICOM makes one object of each kind; its copies differ in their SOP Instance UID
alone, patched in place by a UID of the same length (`Template`). So 500 CT slices are written in a second, and a sender
can make as many new objects as it likes without encoding anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Literal

import numpy as np
from pydicom import dcmread

from dicom_node.ids import derived_uid
from dicom_node.reading.synthetic import Headers, write_series

__all__ = ["KINDS", "Corpus", "Kind", "Template", "make_corpus", "make_template"]

EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_SERIAL_DIGITS = 12
_PREAMBLE_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of object: what it is and how large."""

    name: str
    modality: Literal["CT", "MR"]
    shape: tuple[int, int, int]
    """(Z, Y, X) of one object; Z > 1 makes one enhanced multi-frame object."""
    count: int
    """Objects of a full measurement."""
    quick_count: int
    """Objects of a quick one."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(name="ct", modality="CT", shape=(1, 512, 512), count=500, quick_count=100),
            Kind(name="mr", modality="MR", shape=(1, 256, 256), count=1000, quick_count=200),
            Kind(name="tiny", modality="MR", shape=(1, 46, 45), count=2000, quick_count=400),
            Kind(name="multiframe", modality="CT", shape=(200, 512, 512), count=1, quick_count=1),
        )
    }
)
"""0.526 MB, 0.13 MB, 5 kB and 105 MB each."""


class Template:
    """The bytes of one object, from which new ones are made by another SOP Instance UID of the same length.

    Parameters
    ----------
    content
        A whole Part 10 file.
    sop_instance_uid
        The UID that is replaced wherever it stands.
    sop_class_uid
        What the object is.
    """

    def __init__(self, content: bytes, *, sop_instance_uid: str, sop_class_uid: str) -> None:
        self.sop_class_uid = sop_class_uid
        self._content = content
        self._uid = sop_instance_uid
        self._offsets = tuple(_occurrences(content, sop_instance_uid.encode("ascii")))
        if len(sop_instance_uid) <= _SERIAL_DIGITS + len("2.25.") or not self._offsets:
            raise ValueError("the object has no SOP Instance UID with room for a serial number")

    @property
    def data_set_offset(self) -> int:
        """Where the data set begins, after preamble and file meta information (PS3.10 7.1)."""
        head = _PREAMBLE_BYTES + 4
        # (0002,0000) UL, 4 bytes: the length of what follows it in group 0002.
        return head + 12 + int.from_bytes(self._content[head + 8 : head + 12], "little")

    def uid(self, serial: int) -> str:
        """Return the SOP Instance UID of copy number `serial`."""
        return f"{self._uid[:-_SERIAL_DIGITS]}{serial:0{_SERIAL_DIGITS}d}"

    def patch(self, content: bytearray, serial: int) -> None:
        """Give a copy of the file (`bytearray(template.content)`) the UID of copy number `serial`, in place."""
        uid = self.uid(serial).encode("ascii")
        for offset in self._offsets:
            content[offset : offset + len(uid)] = uid

    @property
    def content(self) -> bytes:
        """The whole file."""
        return self._content


def _occurrences(content: bytes, wanted: bytes) -> Iterator[int]:
    at = content.find(wanted)
    while at >= 0:
        yield at
        at = content.find(wanted, at + 1)


def make_template(kind: Kind, *, seed: str = "benchmark", headers: Headers = MappingProxyType({})) -> Template:
    """Return an object of a kind; `seed` decides its UIDs, so that two corpora share none."""
    root = derived_uid("2.25.1", f"{seed}/{kind.name}")
    values = np.arange(np.prod(kind.shape[1:])).reshape(kind.shape[1:]) % 1999 - 1000
    if kind.modality == "MR":
        values = values + 1000
    with TemporaryDirectory() as folder:
        (path,) = write_series(
            Path(folder),
            np.broadcast_to(values.astype(np.int16), kind.shape),
            np.eye(4),
            modality=kind.modality,
            headers=headers,
            study_instance_uid=derived_uid(root, "study"),
            series_instance_uid=derived_uid(root, "series"),
            frame_of_reference_uid=derived_uid(root, "frame of reference"),
            uid_root=root,
            enhanced=kind.shape[0] > 1,
        )
        return read_template(path)


def read_template(path: Path) -> Template:
    """Return a template of a file that the project's writer wrote."""
    meta = dcmread(path, specific_tags=[], stop_before_pixels=True).file_meta
    return Template(
        path.read_bytes(),
        sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
        sop_class_uid=str(meta.MediaStorageSOPClassUID),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Files of one kind in a folder."""

    name: str
    files: tuple[Path, ...]
    sop_class_uid: str
    data_set_bytes: int
    """Of all objects together, without preamble and file meta information, which a receiver writes anew."""

    def shares(self, count: int) -> list[list[Path]]:
        """Return the files dealt out to `count` senders in turn; a sender without files is left out."""
        return [share for share in (list(self.files[first::count]) for first in range(count)) if share]


def make_corpus(kind: Kind, folder: Path, *, count: int | None = None, seed: str = "benchmark") -> Corpus:
    """Write `count` objects (default: a full measurement's) into a new folder below `folder`.

    The files have just been written, so that senders read them from memory.
    """
    template = make_template(kind, seed=seed)
    number = kind.count if count is None else count
    home = folder / f"{kind.name}-{hashlib.sha256(seed.encode()).hexdigest()[:6]}"
    home.mkdir(parents=True)
    content = bytearray(template.content)
    files = []
    for serial in range(number):
        template.patch(content, serial)
        path = home / f"{serial:06d}.dcm"
        path.write_bytes(content)
        files.append(path)
    return Corpus(
        name=kind.name,
        files=tuple(files),
        sop_class_uid=template.sop_class_uid,
        data_set_bytes=number * (len(template.content) - template.data_set_offset),
    )
