"""What an image shows, as one digest: decoded pixels, what they mean, and where they lie.

Two files with the same digest are the same input to any plugin, whatever their compression, their names and dates.
Costs a decode, so it is asked only of an instance that came again with other bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from dicom_node.errors import UndecodableError
from dicom_node.reading.decode import check_decodable, modality_luts, pixel_layout, stored_frames
from dicom_node.reading.enhanced import frames_of
from dicom_node.reading.header import quiet, read_header, text
from dicom_node.study import Frame


def content_digest(path: Path) -> str:
    """Return SHA-256, hexadecimal, of the file's values in the unit of its modality and of the geometry of its frames.

    Raises
    ------
    UndecodableError
        When the file cannot be parsed or decoded, or is in colour.
    OSError
        When it cannot be read.
    """
    header = read_header(path)
    digest = hashlib.sha256()
    with quiet():
        layout = pixel_layout(header)
        check_decodable(header, layout)
        described = [_place(frame) for frame in frames_of(header.attributes)]
        modality = text(header.attributes, "Modality")
        digest.update(json.dumps([modality, layout.photometric_interpretation, described]).encode())
        stored = stored_frames(header, layout, range(layout.n_frames))
        for frame, lut in zip(stored, modality_luts(header.attributes, layout.n_frames), strict=True):
            values = np.empty(frame.shape, dtype=np.float32)
            lut.apply(frame, values)
            digest.update(repr(frame.shape).encode())
            digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def content_or_itself(path: Path, digest: str) -> str:
    """Return the content digest; of what cannot be read a word that equals no other file's, made of its own digest."""
    try:
        return content_digest(path)
    except (UndecodableError, OSError):
        return f"unread:{digest}"


def _place(frame: Frame) -> list[object]:
    return [
        *(frame.position_mm, frame.orientation, frame.pixel_spacing_mm, frame.rows, frame.columns),
        *(frame.frame_of_reference_uid, frame.stack),
    ]
