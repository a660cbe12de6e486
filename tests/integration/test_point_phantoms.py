"""Points from DICOM through network and SEG, read by a foreign reader: within half a voxel, in every orientation."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.clock import ManualClock
from dicom_node.predict import predict
from dicom_node.reading import load_volume, read_headers, read_nrrd
from dicom_node.reading.synthetic import write_series
from dicom_node.report import build_results, encode
from tests import peers
from tests.unit import report_case as case
from tests.unit.imaging_case import Ramp, make_manifest, rotation_about

SHAPE = (12, 15, 18)
POINTS = ((2, 4, 5), (8, 11, 4), (5, 3, 13))
"""Array indices (z, y, x) as written, without symmetry."""
SPACING = (1.1, 0.9, 1.6)
"""(x, y, z)."""
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
"""Which axis of the patient each axis (x, y, z) of the images follows, and which way: 48, stacked up or down."""


def _affine(order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float64]:
    affine = np.eye(4)
    turned = rotation_about(np.array([1.0, -2.0, 0.5]), 0.1)
    affine[:3, :3] = turned @ np.eye(3)[:, order] @ np.diag(np.multiply(signs, SPACING))
    affine[:3, 3] = (12.5, -40.0, 103.25)
    return affine


def _found_by_dcmqi(folder: Path, affine: NDArray[np.float64], axes: str) -> list[NDArray[np.float64]]:
    """Return the centre in LPS mm of each segment, written by us and read by dcmqi."""
    array = np.zeros(SHAPE)
    array[tuple(np.transpose(POINTS))] = 100.0
    paths = write_series(
        folder / "ct",
        array,
        affine,
        study_instance_uid=f"{case.ROOT}.1",
        series_instance_uid=f"{case.ROOT}.2",
        frame_of_reference_uid=f"{case.ROOT}.3",
        uid_root=case.ROOT,
        order=(5, 0, 11, 3, 1, 2, 4, 10, 9, 8, 7, 6),
    )
    steps: list[dict[str, Any]] = [
        {"kind": "orient", "axes": axes},
        {"kind": "resample", "spacing_mm": [0.75, 0.7, 0.8], "align": "patient"},
        {"kind": "normalise", "method": "linear", "low": 0.0, "high": 20.0},
    ]
    manifest = make_manifest(preprocess={"spec_version": 1, "step": steps}, postprocess={"split": True})
    findings = predict({"ct": load_volume(paths)}, manifest, Ramp(), clock=ManualClock())
    (seg,) = (
        built for built in build_results(findings, manifest, read_headers(paths), case.IDENTITY) if built.kind == "seg"
    )
    (folder / "seg.dcm").write_bytes(encode(seg.dataset))
    centres = []
    for path in peers.segimage2itkimage(folder / "seg.dcm", folder / "nrrd"):
        mask, theirs = read_nrrd(path)
        centres.append(theirs[:3, :3] @ np.argwhere(mask > 0).mean(axis=0)[::-1] + theirs[:3, 3])
    return centres


def _holds(folder: Path, order: tuple[int, ...], signs: tuple[int, ...], axes: str) -> None:
    affine = _affine(order, signs)
    centres = np.array(_found_by_dcmqi(folder, affine, axes))
    assert len(centres) == len(POINTS)
    for point in POINTS:
        truth = affine[:3, :3] @ np.array(point[::-1]) + affine[:3, 3]
        nearest = centres[np.linalg.norm(centres - truth, axis=1).argmin()]
        # In voxels of the source, along its own axes; positions are written with 16 characters (PS3.5 6.2).
        assert np.abs(np.linalg.solve(affine[:3, :3], nearest - truth)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_points_land_in_their_place(order: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path) -> None:
    """A few orientations of the images, axial, sagittal and coronal, stacked either way."""
    peers.require_peer("dcmqi")
    _holds(tmp_path, order, signs, "SPL")


@pytest.mark.long
@pytest.mark.parametrize("axes", ["SPL", "LIA", "ARS"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_points_land_in_their_place_in_every_orientation(
    order: tuple[int, ...], signs: tuple[int, ...], axes: str, tmp_path: Path
) -> None:
    """All 48 orientations of the images, for networks that see them in different orders."""
    peers.require_peer("dcmqi")
    _holds(tmp_path, order, signs, axes)
