"""Findings -> checked DICOM objects: the one way from what a plugin says to what a PACS gets.

Pure: no file, no clock, no random value. The same arguments give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from dicom_node.errors import ResultError
from dicom_node.findings import Findings
from dicom_node.plugin_api import Manifest
from dicom_node.report.check import check_identity, check_seg, check_sr
from dicom_node.report.provenance import Kind, ResultIdentity
from dicom_node.report.source import match_sources


@dataclass(frozen=True, eq=False, kw_only=True)
class BuiltResult:
    """One object, built and checked, not yet filed."""

    kind: Kind
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    dataset: Dataset
    """With file meta information; `encode` makes the file of it."""


def build_results(
    findings: Findings,
    manifest: Manifest,
    sources: Sequence[Dataset],
    identity: ResultIdentity,
    *,
    kinds: Sequence[Kind] = ("sr", "seg"),
) -> tuple[BuiltResult, ...]:
    """Return the objects of the asked kinds that this result has, in the order of `kinds`.

    "Nothing found" has an SR that says so and no SEG; images without a Frame of Reference have no SEG.

    Parameters
    ----------
    findings
        Outcome "result" or "nothing_found"; of a withheld result nothing leaves.
    sources
        Headers without pixels of the images that were judged, one an instance, in any order; never changed.

    Raises
    ------
    ResultError
        When the result was withheld, or an object contradicts its sources, its findings or itself.
    """
    # highdicom takes half a second to load, and the receiver and the sender never build a result.
    from dicom_node.report.seg import build_seg
    from dicom_node.report.sr import build_sr

    if findings.outcome == "withheld":
        raise ResultError(f"the result was withheld, nothing of it leaves: {findings.reason}")
    matched = match_sources(findings.frames, sources)
    read = [source for source in sources if str(source.SOPInstanceUID) in matched.instances]
    has_seg = bool(findings.findings) and findings.frames[0].frame_of_reference_uid is not None
    built = []
    for kind in kinds:
        if kind == "seg" and not has_seg:
            continue
        if kind == "seg":
            ds = build_seg(findings, manifest, matched, identity)
            check_seg(ds, findings)
        else:
            ds = build_sr(findings, manifest, matched, identity)
            check_sr(ds, findings)
        check_identity(ds, read)
        built.append(
            BuiltResult(
                kind=kind,
                sop_class_uid=str(ds.SOPClassUID),
                sop_instance_uid=str(ds.SOPInstanceUID),
                series_instance_uid=str(ds.SeriesInstanceUID),
                dataset=ds,
            )
        )
    return tuple(built)


def encode(dataset: Dataset) -> bytes:
    """Return the whole DICOM file (PS3.10): preamble, file meta information and data set, Explicit VR Little Endian."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
