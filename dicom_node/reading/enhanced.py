"""Headers -> frames: the geometry and the marks of each image plane, classic and enhanced alike.

A classic instance is one frame; an enhanced or legacy converted one tells of each frame in its functional groups, where
the per-frame group wins over the shared one. What sets frames apart at one position (echo, b-value, phase, part of a
complex image) goes into `Frame.stack`, so that several stacks in one series are seen and named.

Sources: DICOM PS3.3 C.7.6.16 (Multi-frame Functional Groups), C.7.6.16.2.2 (Frame Content), C.7.6.17 (Dimension
Organization), C.7.6.2 (Image Plane), C.8.13 (Enhanced MR), C.8.15 (Enhanced CT).
"""

from __future__ import annotations

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from dicom_node.reading.header import VALUE_ERRORS, Attributes, floats, integer, items, text
from dicom_node.reading.kinds import NUCLEAR_MEDICINE
from dicom_node.reading.nuclear import nuclear_frames
from dicom_node.study import Frame

_CLASSIC_MARKS = (
    "ImageType",
    "AcquisitionNumber",
    "AcquisitionTime",
    "EchoNumbers",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "DiffusionBValue",
    "ConvolutionKernel",
    "KVP",
)
_GROUP_MARKS = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "FrameAcquisitionNumber"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("MRDiffusionSequence", "DiffusionDirectionality"),
    ("MRModifierSequence", "InversionTimes"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    ("CTImageFrameTypeSequence", "FrameType"),
    ("PETFrameTypeSequence", "FrameType"),
    ("CTReconstructionSequence", "ConvolutionKernel"),
    ("CTXRayDetailsSequence", "KVP"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
)
_PLACE_KEYWORDS = frozenset(
    {"InStackPositionNumber", "ImagePositionPatient", "ImageOrientationPatient", "PlanePositionSequence"}
)
"""Dimensions that say where a frame is, not which stack it belongs to."""


def functional_groups(dataset: Attributes, keyword: str) -> list[Dataset | None]:
    """Return, for each frame, the item of a functional group: its own one, else the shared one, else None."""
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), None)
    return [_group(own, shared, keyword) for own in items(dataset, "PerFrameFunctionalGroupsSequence")]


def frames_of(dataset: Attributes) -> tuple[Frame, ...]:
    """Return the frames of an instance, in frame order; none when not every frame has a full geometry."""
    n_frames = integer(dataset, "NumberOfFrames") or 1
    if "PerFrameFunctionalGroupsSequence" in dataset or "SharedFunctionalGroupsSequence" in dataset:
        return _enhanced_frames(dataset, n_frames)
    if text(dataset, "SOPClassUID") == NUCLEAR_MEDICINE:
        return nuclear_frames(dataset)
    if n_frames != 1:
        return ()
    marks = tuple((keyword, value) for keyword in _CLASSIC_MARKS if (value := text(dataset, keyword)))
    frame = _frame(dataset, 1, dataset, dataset, dataset, marks)
    return () if frame is None else (frame,)


def _enhanced_frames(dataset: Attributes, n_frames: int) -> tuple[Frame, ...]:
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != n_frames:
        return ()
    shared = next(iter(items(dataset, "SharedFunctionalGroupsSequence")), None)
    dimensions = _dimensions(dataset)
    frames = []
    for number, own in enumerate(per_frame, 1):
        position = _group(own, shared, "PlanePositionSequence")
        orientation = _group(own, shared, "PlaneOrientationSequence")
        measures = _group(own, shared, "PixelMeasuresSequence")
        if position is None or orientation is None or measures is None:
            return ()
        marks = _group_marks(own, shared, dimensions)
        frame = _frame(dataset, number, position, orientation, measures, marks)
        if frame is None:
            return ()
        frames.append(frame)
    return tuple(frames)


def _frame(
    dataset: Attributes,
    number: int,
    position: Attributes,
    orientation: Attributes,
    measures: Attributes,
    marks: tuple[tuple[str, str], ...],
) -> Frame | None:
    """Return a frame from the data sets that hold its position, orientation and spacing; None when one is missing."""
    position_mm = floats(position, "ImagePositionPatient", 3)
    cosines = floats(orientation, "ImageOrientationPatient", 6)
    spacing_mm = floats(measures, "PixelSpacing", 2)
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if position_mm is None or cosines is None or spacing_mm is None or not rows or not columns:
        return None
    x, y, z = position_mm
    x_row, y_row, z_row, x_column, y_column, z_column = cosines
    return Frame(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        frame_number=number,
        position_mm=(x, y, z),
        orientation=(x_row, y_row, z_row, x_column, y_column, z_column),
        pixel_spacing_mm=(spacing_mm[0], spacing_mm[1]),
        rows=rows,
        columns=columns,
        frame_of_reference_uid=text(dataset, "FrameOfReferenceUID") or None,
        stack=tuple(sorted(marks)),
    )


def _group(own: Dataset | None, shared: Dataset | None, keyword: str) -> Dataset | None:
    found = items(own, keyword) or items(shared, keyword)
    return found[0] if found else None


def _group_marks(own: Dataset, shared: Dataset | None, dimensions: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    marks: dict[str, str] = {}
    for sequence, keyword in _GROUP_MARKS:
        group = _group(own, shared, sequence)
        if group is not None and (value := text(group, keyword)):
            marks[keyword] = value
    diffusion = _group(own, shared, "MRDiffusionSequence")
    for direction in items(diffusion, "DiffusionGradientDirectionSequence"):
        marks["DiffusionGradientOrientation"] = text(direction, "DiffusionGradientOrientation")
    content = _group(own, shared, "FrameContentSequence")
    indices = text(content, "DimensionIndexValues").split("\\") if content is not None else []
    for name, index in zip(dimensions, indices, strict=False):
        if name not in _PLACE_KEYWORDS:
            marks.setdefault(name, index)
    return tuple(marks.items())


def _dimensions(dataset: Attributes) -> tuple[str, ...]:
    """Return the attribute that each dimension index points to: its keyword, or its tag when it is private."""
    names = []
    for item in items(dataset, "DimensionIndexSequence"):
        try:
            tag = item.DimensionIndexPointer
            names.append(keyword_for_tag(tag) or str(tag))
        except VALUE_ERRORS:
            names.append("")
    return tuple(names)
