"""Our own checks on the very data sets, before anything leaves: validators check form, these check truth.

They read what was written (positions, pixel measures, packed bits, numbers of the report), never what was meant.
The idea of computing a centroid twice, through voxels and through the written object, came from published front-to-back
swaps in which every header looked right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import ResultError
from dicom_node.findings import Finding, Findings, Mask, on_images
from dicom_node.report import codes

MAX_CENTROID_OFFSET_VOXELS = 0.5
MAX_VOLUME_DEVIATION = 1e-3
"""Of volume by Pixel Measures, by positions and in the report; Decimal Strings round far below it."""


def check_identity(ds: Dataset, sources: Sequence[Dataset]) -> None:
    """Raise unless the object is in the study and of the patient of its sources and refers to none but them.

    Raises
    ------
    ResultError
        With what contradicts.
    """
    for keyword in ("StudyInstanceUID", "PatientID"):
        theirs = {str(source.get(keyword) or "").strip() for source in sources}
        ours = str(ds.get(keyword) or "").strip()
        if theirs != {ours}:
            raise ResultError(f"{keyword} of the result is not that of its source images")
    known = {str(source.SOPInstanceUID) for source in sources}
    strangers = sorted(set(_references(ds)) - known)
    if strangers:
        raise ResultError(f"the result refers to {len(strangers)} instances that were not read, such as {strangers[0]}")


def check_seg(ds: Dataset, findings: Findings) -> None:
    """Raise unless every segment, read back, has the voxels, the place and the volume of its finding.

    Raises
    ------
    ResultError
        With the segment and both numbers.
    """
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel_mm3 = float(measures.PixelSpacing[0] * measures.PixelSpacing[1] * measures.SpacingBetweenSlices)
    to_voxel = np.linalg.inv(findings.affine_lps[:3, :3])
    counts, sums = _moments(ds)
    if set(counts) != {finding.number for finding in findings.findings}:
        raise ResultError(f"segments {sorted(counts)} do not match the {len(findings.findings)} findings")
    for finding in findings.findings:
        n_voxels, shown = counts[finding.number], on_images(finding.mask, findings.frames)
        if n_voxels != shown.n_voxels or finding.mask.n_voxels != finding.measurements.n_voxels:
            raise ResultError(f"segment {finding.number} has {n_voxels} voxels, its finding {shown.n_voxels}")
        # What lies on interpolated slices is measured and not encoded, so the centroid of the rest is compared.
        is_whole = n_voxels == finding.mask.n_voxels
        centroid = finding.measurements.centroid_lps_mm if is_whole else _centroid(shown, findings)
        away = to_voxel @ (sums[finding.number] / n_voxels - centroid)
        if np.abs(away).max() > MAX_CENTROID_OFFSET_VOXELS:
            raise ResultError(f"segment {finding.number} lies {np.abs(away).max():.1f} voxels from its finding")
        _check_volume(finding, findings, n_voxels * voxel_mm3 / 1000, "by Pixel Measures", n_voxels)


def check_sr(ds: Dataset, findings: Findings) -> None:
    """Raise unless the report has one group a finding, with its tracking identifier and its volume.

    Raises
    ------
    ResultError
        With the finding and both numbers.
    """
    volumes = dict(_reported_volumes(ds))
    if set(volumes) != {finding.tracking_identifier for finding in findings.findings}:
        raise ResultError(f"the report has {len(volumes)} groups for {len(findings.findings)} findings")
    for finding in findings.findings:
        _check_volume(finding, findings, volumes[finding.tracking_identifier], "in the report", finding.mask.n_voxels)


def _centroid(mask: Mask, findings: Findings) -> NDArray[np.float64]:
    z, y, x = np.argwhere(mask.array).mean(axis=0) + mask.offset
    return np.asarray(findings.affine_lps[:3, :3] @ (x, y, z) + findings.affine_lps[:3, 3])


def _check_volume(finding: Finding, findings: Findings, volume_ml: float, where: str, n_voxels: int) -> None:
    """Compare with the voxels of the mask and the affine, which both come from the pixels and positions alone."""
    expected = n_voxels * float(abs(np.linalg.det(findings.affine_lps[:3, :3]))) / 1000
    if abs(volume_ml - expected) > MAX_VOLUME_DEVIATION * expected:
        raise ResultError(f"{finding.tracking_identifier}: {volume_ml:.4f} ml {where}, {expected:.4f} ml by positions")


def _references(ds: Dataset) -> Iterator[str]:
    """Yield every Referenced SOP Instance UID at any depth, but of the reports that this one replaces."""
    for element in ds:
        if element.keyword == "PredecessorDocumentsSequence":
            continue
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _references(item)


def _moments(ds: Dataset) -> tuple[dict[int, int], dict[int, NDArray[np.float64]]]:
    """Return for every segment the number of its voxels and the sum of their LPS positions in mm."""
    shared = ds.SharedFunctionalGroupsSequence[0]
    spacing = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, dtype=np.float64)
    cosines = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=np.float64)
    along_row, down_column = cosines[:3] * spacing[1], cosines[3:] * spacing[0]
    counts: dict[int, int] = {}
    sums: dict[int, NDArray[np.float64]] = {}
    for groups, frame in zip(ds.PerFrameFunctionalGroupsSequence, _frames(ds), strict=True):
        # A single segment is named once for all frames.
        owner = groups if "SegmentIdentificationSequence" in groups else shared
        number = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        origin = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=np.float64)
        in_row, in_column = frame.sum(axis=1, dtype=np.int64), frame.sum(axis=0, dtype=np.int64)
        n_voxels = int(in_row.sum())
        column_sum, row_sum = in_column @ np.arange(ds.Columns), in_row @ np.arange(ds.Rows)
        counts[number] = counts.get(number, 0) + n_voxels
        total = n_voxels * origin + column_sum * along_row + row_sum * down_column
        sums[number] = sums.get(number, np.zeros(3)) + total
    return counts, sums


def _frames(ds: Dataset) -> Iterator[NDArray[np.uint8]]:
    """Yield each frame (Y, X) of a bit-packed object; frames follow each other without padding (PS3.5 8.1.1)."""
    packed = np.frombuffer(ds.PixelData, dtype=np.uint8)
    size = ds.Rows * ds.Columns
    for index in range(int(ds.NumberOfFrames)):
        first, last = index * size, (index + 1) * size
        bits = np.unpackbits(packed[first // 8 : (last + 7) // 8], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(ds.Rows, ds.Columns)


def _reported_volumes(ds: Dataset) -> Iterator[tuple[str, float]]:
    """Yield tracking identifier and volume in ml of every measurement group."""
    for container in ds.ContentSequence:
        if container.ConceptNameCodeSequence[0].CodeValue != "126010":  # Imaging Measurements
            continue
        for group in container.ContentSequence:
            by_concept = {item.ConceptNameCodeSequence[0].CodeValue: item for item in group.ContentSequence}
            volume = by_concept[codes.VOLUME.value].MeasuredValueSequence[0]
            yield str(by_concept["112039"].TextValue), float(volume.NumericValue)  # Tracking Identifier
