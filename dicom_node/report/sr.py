"""Findings -> one Comprehensive 3D SR, TID 1500: a group with an outline for every finding, or an explicit "absent".

Every group is TID 1410 with a closed outline (SCOORD) on the slice of the longest diameter, because a viewer blanks a
report that has one group without. So volumes stand beside the outline of one slice and bear the same tracking UID as
the segment. A result without findings has no group at all; it says for each segment of the manifest that it is absent.

Sources: DICOM PS3.16 TID 1500, 1410, 300, 1004, 4019, CID 100, 218, 7021; PS3.3 A.35.13, C.18.6 (spatial coordinates).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dictionary
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import ResultError
from dicom_node.findings import Finding, Findings
from dicom_node.plugin_api import Manifest
from dicom_node.report import codes
from dicom_node.report.provenance import (
    CONTENT_QUALIFICATION,
    MODEL_NAME,
    SERIES_NUMBERS,
    Predecessor,
    ResultIdentity,
    algorithm_parameters,
    series_description,
    stamp,
    statements,
)
from dicom_node.report.source import Sources
from dicom_node.study import EQUIPMENT_MANUFACTURER

_LANGUAGE = hd.sr.CodedConcept("en-US", "RFC5646", "English (United States)")
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS


def build_sr(findings: Findings, manifest: Manifest, sources: Sources, identity: ResultIdentity) -> Dataset:
    """Return the report, Explicit VR Little Endian: COMPLETE, UNVERIFIED, PRELIMINARY.

    Raises
    ------
    ResultError
        When a finding has no outline, or a label that the manifest does not know.
    """
    ds = hd.sr.Comprehensive3DSR(
        evidence=_evidence(sources),
        content=_report(findings, manifest, sources, identity)[0],
        series_instance_uid=identity.series_instance_uid("sr"),
        series_number=SERIES_NUMBERS["sr"],
        sop_instance_uid=identity.sop_instance_uid("sr"),
        instance_number=1,
        manufacturer=EQUIPMENT_MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=identity.node_version,
        device_serial_number=identity.device_serial_number,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_qualification=CONTENT_QUALIFICATION,
        series_description=series_description(manifest, "sr"),
    )
    stamp(ds, sources.header, findings, identity)
    if identity.predecessors:
        ds.PredecessorDocumentsSequence = [_predecessors(ds.StudyInstanceUID, identity.predecessors)]
    return ds


def _predecessors(study_instance_uid: str, predecessors: Sequence[Predecessor]) -> Dataset:
    """Return the item of Predecessor Documents Sequence for our study (PS3.3 C.17.2, Table C.17-3)."""
    item = Dataset()
    item.StudyInstanceUID = study_instance_uid
    item.ReferencedSeriesSequence = []
    for series_uid in dict.fromkeys(one.series_instance_uid for one in predecessors):
        series = Dataset()
        series.SeriesInstanceUID = series_uid
        series.ReferencedSOPSequence = []
        for one in predecessors:
            if one.series_instance_uid == series_uid:
                reference = Dataset()
                reference.ReferencedSOPClassUID = one.sop_class_uid
                reference.ReferencedSOPInstanceUID = one.sop_instance_uid
                series.ReferencedSOPSequence.append(reference)
        item.ReferencedSeriesSequence.append(series)
    return item


def _evidence(sources: Sources) -> list[Dataset]:
    """Return what highdicom needs of every source image: its names, and patient and study of the cleaned header."""
    evidence = []
    for instance in sources.instances.values():
        ds = sources.nameless_header()
        ds.SOPClassUID, ds.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
        ds.SeriesInstanceUID = instance.series_instance_uid
        evidence.append(ds)
    return evidence


def _report(
    findings: Findings, manifest: Manifest, sources: Sources, identity: ResultIdentity
) -> hd.sr.ContentSequence:
    """Return the root container, TID 1500."""
    root = hd.sr.ContainerContentItem(name=dictionary.DCM.ImagingMeasurementReport, template_id="1500")
    content = hd.sr.ContentSequence()
    content.extend(hd.sr.LanguageOfContentItemAndDescendants(_LANGUAGE))
    content.extend(_observer(identity))
    content.append(
        hd.sr.CodeContentItem(
            name=dictionary.DCM.ProcedureReported,
            value=codes.procedure_reported(sources.header.Modality),
            relationship_type=hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    if findings.findings:
        groups = hd.sr.ContainerContentItem(name=dictionary.DCM.ImagingMeasurements, relationship_type=_CONTAINS)
        groups.ContentSequence = hd.sr.ContentSequence()
        for finding in findings.findings:
            groups.ContentSequence.extend(_group(finding, findings, manifest, sources, identity))
        content.append(groups)
    content.append(_evaluations(findings, manifest, identity))
    root.ContentSequence = content
    return hd.sr.ContentSequence([root], is_root=True)


def _observer(identity: ResultIdentity) -> hd.sr.ObserverContext:
    """Return TID 1004: a device observed, and which."""
    return hd.sr.ObserverContext(
        observer_type=dictionary.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=identity.device_uid,
            name=MODEL_NAME,
            manufacturer_name=EQUIPMENT_MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=identity.device_serial_number,
        ),
    )


def _evaluations(findings: Findings, manifest: Manifest, identity: ResultIdentity) -> hd.sr.ContainerContentItem:
    """Return TID 1500 row 12: what is absent, and what a reader must know of this result."""
    container = hd.sr.ContainerContentItem(name=codes.QUALITATIVE_EVALUATIONS, relationship_type=_CONTAINS)
    container.ContentSequence = hd.sr.ContentSequence()
    said = list(statements(findings, manifest, identity))
    if not findings.findings:
        for segment in manifest.segment:
            container.ContentSequence.append(
                hd.sr.CodeContentItem(name=codes.concept(segment.type), value=codes.ABSENT, relationship_type=_CONTAINS)
            )
        said.insert(0, f"Nothing found by {manifest.plugin.name}.")
    for text in said:
        container.ContentSequence.append(
            hd.sr.TextContentItem(name=codes.COMMENT, value=text, relationship_type=_CONTAINS)
        )
    return container


def _group(
    finding: Finding, findings: Findings, manifest: Manifest, sources: Sources, identity: ResultIdentity
) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """Return TID 1410 of one finding."""
    segment = next((segment for segment in manifest.segment if segment.label == finding.label), None)
    if segment is None:
        raise ResultError(f"the manifest has no [[segment]] with the label {finding.label!r}")
    return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=identity.tracking_uid(finding.number), identifier=finding.tracking_identifier
        ),
        referenced_region=_outline(finding, findings, sources),
        finding_category=codes.concept(segment.category),
        finding_type=codes.concept(segment.type),
        finding_sites=[hd.sr.FindingSite(codes.concept(segment.anatomy))] if segment.anatomy else None,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=manifest.plugin.name,
            version=findings.provenance.plugin_version,
            parameters=[f"{name} {value}" for name, value in algorithm_parameters(findings, identity).items()],
            family=codes.ALGORITHM_FAMILY,
        ),
        measurements=list(_measurements(finding)),
    )


def _measurements(finding: Finding) -> Iterator[hd.sr.Measurement]:
    for quantity in codes.quantities(finding.measurements):
        yield hd.sr.Measurement(
            name=quantity.name, value=quantity.value, unit=quantity.unit, derivation=quantity.derivation
        )


def _outline(finding: Finding, findings: Findings, sources: Sources) -> hd.sr.ImageRegion:
    """Return the closed outline on its slice, pointing at the image, and the frame of an enhanced one."""
    frame = findings.frames[finding.measurements.diameter_long.slice_index]
    instance = sources.of(frame)
    return hd.sr.ImageRegion(
        graphic_type=hd.sr.GraphicTypeValues.POLYLINE,
        graphic_data=image_coordinates(finding.contour, rows=frame.rows, columns=frame.columns),
        source_image=hd.sr.SourceImageForRegion(
            referenced_sop_class_uid=instance.sop_class_uid,
            referenced_sop_instance_uid=instance.sop_instance_uid,
            referenced_frame_numbers=[frame.frame_number] if instance.is_multiframe else None,
        ),
    )


def image_coordinates(contour: Sequence[tuple[float, float]], *, rows: int, columns: int) -> NDArray[np.float32]:
    """Return Graphic Data, shape (n, 2), (column, row), of an outline whose whole numbers are voxel centres.

    Spatial coordinates count from the outer corner of the first pixel, whose centre is (0.5, 0.5), to (columns, rows)
    (DICOM PS3.3 C.18.6.1.2); what a contour reaches beyond the image is cut to its edge.

    Raises
    ------
    ResultError
        When there are too few points for an outline, or it is not closed.
    """
    points = np.asarray(contour, dtype=np.float64)
    if len(points) < 4 or not np.array_equal(points[0], points[-1]):
        raise ResultError("a finding needs a closed outline of at least three corners")
    return np.clip(points + 0.5, 0.0, (columns, rows)).astype(np.float32)
