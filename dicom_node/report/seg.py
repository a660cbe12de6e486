"""Findings -> one Segmentation object: BINARY, one segment a finding, on the grid of the source images.

highdicom builds it from stand-ins: one single-frame header a slice, made of the `Frame` of that slice. So the geometry
is that of the positions, not of the header hints (a series with every second slice removed still says its old Slice
Thickness); classic and enhanced sources, and enhanced ones with more frames than were used, take the same way. The
references to the real images are put in afterwards.

Sources: DICOM PS3.3 A.51 (Segmentation IOD), C.8.20 (Segmentation modules), C.7.6.16.2.1 (Pixel Measures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DSfloat

from dicom_node.errors import ResultError
from dicom_node.findings import Finding, Findings
from dicom_node.imaging.geometry import Affine
from dicom_node.plugin_api import Manifest, Segment
from dicom_node.report import codes
from dicom_node.report.provenance import (
    CONTENT_QUALIFICATION,
    MODEL_NAME,
    SERIES_NUMBERS,
    ResultIdentity,
    algorithm_parameters,
    series_description,
    stamp,
)
from dicom_node.report.source import SourceInstance, Sources
from dicom_node.study import EQUIPMENT_MANUFACTURER, Frame

_SOURCE_IMAGE = Code("121322", "DCM", "Source Image for Image Processing Operation")
"""CID 7202 Source Image Purposes of Reference."""

_CONTENT_CREATOR = "Node^DICOM"
"""A person name needs its caret, else dciodvfy takes it for the old style."""


def build_seg(findings: Findings, manifest: Manifest, sources: Sources, identity: ResultIdentity) -> Dataset:
    """Return the Segmentation of all findings, Explicit VR Little Endian, frames only where a mask has voxels.

    A slice that was interpolated has no frame: there is no image on which anybody could see it.

    Raises
    ------
    ResultError
        When there is no finding, no frame of reference, or the findings are not numbered 1, 2, 3 ...
    """
    found = _in_order(findings)
    window = _slices_with_voxels(found)
    shown = [z for z in window if not findings.frames[z].interpolated]
    stacked = _stacked(found, window, findings.shape)
    ds = hd.seg.Segmentation(
        source_images=[_stand_in(findings, sources, z) for z in shown],
        pixel_array=stacked if len(shown) == len(window) else stacked[[z - window.start for z in shown]],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=list(_descriptions(found, findings, manifest, identity)),
        series_instance_uid=identity.series_instance_uid("seg"),
        series_number=SERIES_NUMBERS["seg"],
        sop_instance_uid=identity.sop_instance_uid("seg"),
        instance_number=1,
        manufacturer=EQUIPMENT_MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=identity.node_version,
        device_serial_number=identity.device_serial_number,
        content_label="SEGMENTATION",
        content_description=manifest.plugin.name,
        content_creator_name=_CONTENT_CREATOR,
        content_qualification=CONTENT_QUALIFICATION,
        series_description=series_description(manifest, "seg"),
    )
    _measure_by_positions(ds, findings)
    _refer_to_sources(ds, findings, sources)
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = identity.dimension_organization_uid
    stamp(ds, sources.header, findings, identity)
    return ds


def slice_distance_mm(affine_lps: Affine) -> float:
    """Return the distance of neighbouring slices along their normal in mm: shorter than the step of a tilted stack."""
    along_row, down_column, step = affine_lps[:3, :3].T
    normal = np.cross(along_row, down_column)
    return float(abs(normal @ step) / np.linalg.norm(normal))


def _in_order(findings: Findings) -> tuple[Finding, ...]:
    found = tuple(sorted(findings.findings, key=lambda finding: finding.number))
    if not found:
        raise ResultError("an empty result has no SEG: its SR states the absence")
    if [finding.number for finding in found] != list(range(1, len(found) + 1)):
        raise ResultError("findings are numbered 1, 2, 3 ... because a BINARY SEG numbers its segments so")
    if findings.frames[0].frame_of_reference_uid is None:
        raise ResultError("the source images have no Frame of Reference, which a SEG needs")
    return found


def _slices_with_voxels(found: Iterable[Finding]) -> range:
    """Return the slices from the first to the last that any mask touches: the rest costs memory for nothing."""
    first = min(finding.mask.offset[0] for finding in found)
    return range(first, max(finding.mask.offset[0] + finding.mask.array.shape[0] for finding in found))


def _stacked(found: Sequence[Finding], window: range, shape: tuple[int, int, int]) -> NDArray[np.unsignedinteger]:
    """Return a label map (Z, Y, X) of the window, or, where masks overlap, a stack (Z, Y, X, segment) of 0 and 1.

    The stack costs a byte a voxel and segment, so it is the exception.
    """
    dtype: type[np.unsignedinteger] = np.uint8 if len(found) < 256 else np.uint16
    labels = np.zeros((len(window), *shape[1:]), dtype=dtype)
    for finding in found:
        region = labels[_region(finding, window)]
        if region[finding.mask.array].any():
            return _overlapping(found, window, shape)
        region[finding.mask.array] = finding.number
    return labels


def _overlapping(found: Sequence[Finding], window: range, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    stack = np.zeros((len(found), len(window), *shape[1:]), dtype=np.uint8)
    for finding in found:
        stack[finding.number - 1][_region(finding, window)] = finding.mask.array
    # highdicom wants the segment last; in memory each stays whole, which is what it then reads.
    return np.moveaxis(stack, 0, -1)


def _region(finding: Finding, window: range) -> tuple[slice, slice, slice]:
    z, y, x = finding.mask.offset
    depth, height, width = finding.mask.array.shape
    return slice(z - window.start, z - window.start + depth), slice(y, y + height), slice(x, x + width)


def _stand_in(findings: Findings, sources: Sources, z: int) -> Dataset:
    """Return the header of slice `z` as a single-frame image; its SOP Instance UID is the slice's index plus one."""
    frame = findings.frames[z]
    ds = sources.nameless_header()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, _stand_in_uid(z), "2.25.1"
    ds.FrameOfReferenceUID = frame.frame_of_reference_uid
    ds.Rows, ds.Columns = frame.rows, frame.columns
    ds.ImagePositionPatient = [_decimal(value) for value in frame.position_mm]
    # One orientation for all: the last digits of real series differ from slice to slice.
    ds.ImageOrientationPatient = [_decimal(value) for value in findings.frames[0].orientation]
    ds.PixelSpacing = [_decimal(value) for value in findings.frames[0].pixel_spacing_mm]
    ds.SliceThickness = _decimal(slice_distance_mm(findings.affine_lps))
    return ds


def _stand_in_uid(z: int) -> str:
    return f"2.25.2.{z + 1}"


def _decimal(value: float) -> DSfloat:
    """Return a Decimal String of at most 16 characters (PS3.5 6.2)."""
    return DSfloat(value, auto_format=True)


def _descriptions(
    found: Sequence[Finding], findings: Findings, manifest: Manifest, identity: ResultIdentity
) -> Iterator[hd.seg.SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name=manifest.plugin.name,
        family=codes.ALGORITHM_FAMILY,
        version=findings.provenance.plugin_version,
        parameters=algorithm_parameters(findings, identity),
    )
    segments = {segment.label: segment for segment in manifest.segment}
    times = Counter(finding.label for finding in found)
    for finding in found:
        segment = _segment_of(finding, segments)
        yield hd.seg.SegmentDescription(
            segment_number=finding.number,
            segment_label=finding.label if times[finding.label] == 1 else finding.tracking_identifier,
            segmented_property_category=codes.concept(segment.category),
            segmented_property_type=codes.concept(segment.type),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=identity.tracking_uid(finding.number),
            tracking_id=finding.tracking_identifier,
            anatomic_regions=[codes.concept(segment.anatomy)] if segment.anatomy else None,
            display_color=hd.color.CIELabColor.from_rgb(*segment.colour),
        )


def _segment_of(finding: Finding, segments: dict[str, Segment]) -> Segment:
    try:
        return segments[finding.label]
    except KeyError:
        raise ResultError(f"the manifest has no [[segment]] with the label {finding.label!r}") from None


def _measure_by_positions(ds: Dataset, findings: Findings) -> None:
    """Write Pixel Measures so that voxels times them is the volume by positions, for a tilted stack too."""
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = _decimal(slice_distance_mm(findings.affine_lps))
    measures.SpacingBetweenSlices = measures.SliceThickness


def _refer_to_sources(ds: Dataset, findings: Findings, sources: Sources) -> None:
    """Put the real images in the place of the stand-ins, frame by frame and for the whole object."""
    slices = {_stand_in_uid(z): z for z in range(len(findings.frames))}
    for groups in ds.PerFrameFunctionalGroupsSequence:
        derivation = groups.DerivationImageSequence[0]
        z = slices[derivation.SourceImageSequence[0].ReferencedSOPInstanceUID]
        frame = findings.frames[z]
        derivation.SourceImageSequence = [_source_item(sources.of(frame), frame)]
    ds.SourceImageSequence = [_source_item(instance, None) for instance in sources.instances.values()]
    by_series: dict[str, list[Dataset]] = {}
    for instance in sources.instances.values():
        by_series.setdefault(instance.series_instance_uid, []).append(_reference(instance))
    ds.ReferencedSeriesSequence = [_series_item(uid, items) for uid, items in by_series.items()]


def _reference(instance: SourceInstance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = instance.sop_class_uid
    item.ReferencedSOPInstanceUID = instance.sop_instance_uid
    return item


def _series_item(series_instance_uid: str, references: list[Dataset]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID, item.ReferencedInstanceSequence = series_instance_uid, references
    return item


def _source_item(instance: SourceInstance, frame: Frame | None) -> Dataset:
    item = _reference(instance)
    if frame is not None:
        if instance.is_multiframe:
            item.ReferencedFrameNumber = frame.frame_number
        item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(_SOURCE_IMAGE)]
    return item
