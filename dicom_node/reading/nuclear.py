"""Nuclear medicine: frames of a reconstructed tomogram from the one item that says where they lie.

An NM image is many frames told apart by vectors. Only RECON TOMO is a stack of slices in the patient, and only where
one detector item gives position and orientation, Slice Vector counts each slice once, and Spacing Between Slices gives
distance and direction. Everything else is refused by name.

Sources: DICOM PS3.3 C.8.4.8 (NM Multi-frame, vectors), C.8.4.11 (NM Detector), C.8.4.15 (NM Reconstruction: a positive
spacing stacks slices behind the first along row x column, a negative one in front of it).
"""

from __future__ import annotations

import numpy as np

from dicom_node.reading.header import Attributes, floats, integer, items, text
from dicom_node.study import Frame


def nuclear_frames(dataset: Attributes) -> tuple[Frame, ...]:
    """Return the frames of a reconstructed tomogram, in frame order; none when it is no such, or ambiguous."""
    if image_type(dataset) != "RECON TOMO":
        return ()
    detectors = items(dataset, "DetectorInformationSequence")
    n_frames = integer(dataset, "NumberOfFrames") or 1
    places = floats(dataset, "SliceVector", n_frames) or tuple(float(k) for k in range(1, n_frames + 1))
    between = floats(dataset, "SpacingBetweenSlices", 1)
    spacing_mm = floats(dataset, "PixelSpacing", 2)
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if len(detectors) != 1 or not between or between[0] == 0 or spacing_mm is None or not rows or not columns:
        return ()
    origin = floats(detectors[0], "ImagePositionPatient", 3)
    cosines = floats(detectors[0], "ImageOrientationPatient", 6)
    if origin is None or cosines is None or sorted(places) != [float(k) for k in range(1, n_frames + 1)]:
        return ()
    normal = np.cross(cosines[:3], cosines[3:])
    x_row, y_row, z_row, x_column, y_column, z_column = cosines
    frames = []
    for number, place in enumerate(places, 1):
        x, y, z = (float(value) for value in np.array(origin) + (place - 1) * between[0] * normal)
        frames.append(
            Frame(
                sop_instance_uid=text(dataset, "SOPInstanceUID"),
                frame_number=number,
                position_mm=(x, y, z),
                orientation=(x_row, y_row, z_row, x_column, y_column, z_column),
                pixel_spacing_mm=(spacing_mm[0], spacing_mm[1]),
                rows=rows,
                columns=columns,
                frame_of_reference_uid=text(dataset, "FrameOfReferenceUID") or None,
            )
        )
    return tuple(frames)


def image_type(dataset: Attributes) -> str:
    """Return what kind of NM image it is: value 3 of Image Type (PS3.3 C.8.4.9.1.1)."""
    values = text(dataset, "ImageType").split("\\")
    return values[2] if len(values) > 2 else ""
