"""A small study with findings whose truth is known: what the tests of dicom_node.report build results from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.findings import Finding, Findings, Line, Mask, Measurements, Provenance
from dicom_node.plugin_api import Manifest
from dicom_node.reading.synthetic import write_series
from dicom_node.report import ResultIdentity
from dicom_node.study import Frame

ROOT = "2.25.1234567890"

MANIFEST = Manifest.model_validate(
    {
        "schema_version": 1,
        "plugin": {
            "id": "spheres",
            "version": "1.2.3",
            "name": "Test spheres",
            "intended_use": "Commissioning of this test suite.",
            "task": "segmentation",
            "demonstrator": True,
        },
        "input_series": [{"role": "image"}],
        "input": [{"tensor": "x", "roles": ["image"]}],
        "preprocess": {"spec_version": 1, "step": []},
        "inference": {"mode": "whole"},
        "output": [
            {
                "tensor": "y",
                "role": "logits",
                "activation": "softmax",
                "exclusive": True,
                "classes": ["background", "sphere", "brain"],
            }
        ],
        "segment": [
            {
                "label": "sphere",
                "category": {"value": "260787004", "scheme": "SCT", "meaning": "Physical object"},
                "type": {"value": "260787004", "scheme": "SCT", "meaning": "Physical object"},
                "colour": [230, 60, 20],
            },
            {
                "label": "brain",
                "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
                "type": {"value": "12738006", "scheme": "SCT", "meaning": "Brain"},
                "anatomy": {"value": "12738006", "scheme": "SCT", "meaning": "Brain"},
                "colour": [20, 200, 90],
            },
        ],
        "model": [{"file": "1/model.onnx", "sha256": "a" * 64, "source": "here", "licence": "MIT"}],
        "limits": {"time_s": 60, "ram_mb": 1000},
    }
)

IDENTITY = ResultIdentity(
    root_uid=f"{ROOT}.9",
    device_uid=f"{ROOT}.8",
    created_at=datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC),
    input_digest="d" * 64,
    node_version="0.1.0",
    device_serial_number="node-1",
)

PROVENANCE = Provenance(
    plugin="spheres",
    plugin_version="1.2.3",
    model_sha256="a" * 64,
    spec_sha256="b" * 64,
    engine="onnxruntime 1.31.1 CPU fp32",
    duration_s=1.5,
)


def affine(*, kind: str = "straight") -> NDArray[np.float64]:
    """Return the affine of a straight, an oblique or a tilted (sheared) stack with spacing 0.7, 0.9 and 2.1 mm."""
    matrix = np.diag([0.7, 0.9, 2.1, 1.0])
    matrix[:3, 3] = (-31.5, 12.25, -104.0)
    if kind == "oblique":
        a, b = np.deg2rad(23.0), np.deg2rad(-37.0)
        turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
        turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
        matrix[:3, :3] = turn_z @ turn_x @ matrix[:3, :3]
    elif kind == "tilted":
        matrix[1, 2] = 0.6
    return matrix


def frames_of(headers: Sequence[Dataset]) -> tuple[Frame, ...]:
    """Return the frames of classic or enhanced headers, sorted along the normal."""
    frames = []
    for ds in headers:
        if "PerFrameFunctionalGroupsSequence" in ds:
            shared = ds.SharedFunctionalGroupsSequence[0]
            orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
            spacing = shared.PixelMeasuresSequence[0].PixelSpacing
            positions = [g.PlanePositionSequence[0].ImagePositionPatient for g in ds.PerFrameFunctionalGroupsSequence]
        else:
            orientation, spacing, positions = ds.ImageOrientationPatient, ds.PixelSpacing, [ds.ImagePositionPatient]
        for number, position in enumerate(positions, 1):
            frames.append(
                Frame(
                    sop_instance_uid=str(ds.SOPInstanceUID),
                    frame_number=number,
                    position_mm=tuple(float(v) for v in position),
                    orientation=tuple(float(v) for v in orientation),
                    pixel_spacing_mm=tuple(float(v) for v in spacing),
                    rows=ds.Rows,
                    columns=ds.Columns,
                    frame_of_reference_uid=str(ds.FrameOfReferenceUID) if "FrameOfReferenceUID" in ds else None,
                )
            )
    normal = np.cross(frames[0].orientation[:3], frames[0].orientation[3:])
    return tuple(sorted(frames, key=lambda frame: float(np.dot(normal, frame.position_mm))))


def finding_of(number: int, label: str, full: NDArray[np.bool_], affine_lps: NDArray[np.float64]) -> Finding:
    """Return the finding of a mask (Z, Y, X), its outline a rectangle on its middle slice."""
    index = np.argwhere(full)
    low, high = index.min(axis=0), index.max(axis=0) + 1
    cropped = full[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    centroid = affine_lps[:3, :3] @ index.mean(axis=0)[::-1] + affine_lps[:3, 3]
    z = int((low[0] + high[0] - 1) // 2)
    x0, y0, x1, y1 = low[2] - 0.5, low[1] - 0.5, high[2] - 0.5, high[1] - 0.5
    return Finding(
        number=number,
        label=label,
        mask=Mask(offset=(int(low[0]), int(low[1]), int(low[2])), array=cropped),
        measurements=Measurements(
            n_voxels=len(index),
            volume_ml=len(index) * float(abs(np.linalg.det(affine_lps[:3, :3]))) / 1000,
            volume_mesh_ml=None,
            diameter_3d_mm=9.5,
            diameter_long=Line(slice_index=z, start=(x0, y0), end=(x1, y1), length_mm=8.25),
            diameter_short=Line(slice_index=z, start=(x0, y1), end=(x1, y0), length_mm=7.75),
            surface_mm2=101.5,
            sphericity=0.875,
            mean=41.5,
            sd=3.25,
            minimum=30.0,
            maximum=55.0,
            median=41.0,
            intensity_unit="[hnsf'U]",
            centroid_lps_mm=tuple(float(v) for v in centroid),
            slice_range=(int(low[0]), int(high[0]) - 1),
        ),
        contour=((x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)),
        probability=0.9,
    )


def findings_of(
    masks: Sequence[tuple[str, NDArray[np.bool_]]], headers: Sequence[Dataset], affine_lps: NDArray[np.float64]
) -> Findings:
    """Return the findings of (label, mask) pairs on the grid of the headers; none: nothing found."""
    found = tuple(finding_of(number, label, mask, affine_lps) for number, (label, mask) in enumerate(masks, 1))
    return Findings(
        outcome="result" if found else "nothing_found",
        reason=None,
        findings=found,
        frames=frames_of(headers),
        affine_lps=affine_lps,
        provenance=PROVENANCE,
    )


def ball(
    centre_zyx: tuple[float, float, float], radius: float, shape: tuple[int, int, int] = (9, 20, 27)
) -> NDArray[np.bool_]:
    """Return a ball in voxel coordinates."""
    distance = np.indices(shape) - np.reshape(centre_zyx, (3, 1, 1, 1))
    return np.asarray((distance**2).sum(axis=0) <= radius**2)


def headers_of(
    folder: Path,
    affine_lps: NDArray[np.float64],
    *,
    shape: tuple[int, int, int] = (9, 20, 27),
    order: Sequence[int] | None = None,
    enhanced: bool = False,
    modality: str = "CT",
    headers: Mapping[str, object] | None = None,
) -> list[Dataset]:
    """Return the headers of a synthetic series, read back from its files."""
    paths = write_series(
        folder,
        np.zeros(shape),
        affine_lps,
        modality=modality,
        headers=headers or {},
        study_instance_uid=f"{ROOT}.1",
        series_instance_uid=f"{ROOT}.2",
        frame_of_reference_uid=f"{ROOT}.3",
        uid_root=ROOT,
        order=order,
        enhanced=enhanced,
    )
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
