"""What others think of our objects: dciodvfy, PixelMed and dcmtk on every SEG and SR of the table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.reading import read_nrrd
from dicom_node.report import build_results, encode
from tests import peers
from tests.peers.dcmqi import tid1500reader
from tests.peers.require import find_program
from tests.unit import report_case as case
from tests.unit.test_report_source import CRASHES

MASKS = {
    "nothing": [],
    "one": [("brain", case.ball((4, 8, 9), 3))],
    "apart": [("sphere", case.ball((2, 8, 9), 2)), ("brain", case.ball((6, 12, 19), 2.5))],
    "overlapping": [("sphere", case.ball((4, 8, 9), 3)), ("brain", case.ball((5, 9, 10), 3.5))],
}


def written(folder: Path, masks: str, *, kind: str = "oblique", crash: str = "", **source: object) -> dict[str, Path]:
    """Return the files of the results by kind."""
    affine = case.affine(kind=kind)
    headers = case.headers_of(folder / "source", affine, **source)  # type: ignore[arg-type]
    findings = case.findings_of(MASKS[masks], headers, affine)
    for header in headers if crash else []:
        CRASHES[crash](header)
    files = {}
    for result in build_results(findings, case.MANIFEST, headers, case.IDENTITY):
        files[result.kind] = folder / f"{result.kind}.dcm"
        files[result.kind].write_bytes(encode(result.dataset))
    return files


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("kind", ["straight", "oblique", "tilted"])
@pytest.mark.parametrize(("modality", "enhanced"), [("CT", False), ("MR", False), ("CT", True), ("MR", True)])
def test_dciodvfy_finds_no_error(masks: str, kind: str, modality: str, enhanced: bool, tmp_path: Path) -> None:
    """Every object keeps its IOD, from classic and enhanced sources in any geometry."""
    files = written(tmp_path, masks, kind=kind, modality=modality, enhanced=enhanced, order=(3, 1, 0, 2, 8, 7, 6, 5, 4))

    assert {"nothing": {"sr"}}.get(masks, {"sr", "seg"}) == set(files)
    for path in files.values():
        assert [] == peers.dciodvfy(path)


@pytest.mark.parametrize("crash", CRASHES)
def test_dciodvfy_finds_no_error_whatever_the_source_header(crash: str, tmp_path: Path) -> None:
    """The sanitiser leaves nothing in a result that breaks its IOD."""
    for path in written(tmp_path, "apart", crash=crash).values():
        assert [] == peers.dciodvfy(path)


@pytest.mark.parametrize("masks", ["apart", "nothing"])
def test_pixelmed_finds_no_error_in_the_report(masks: str, tmp_path: Path) -> None:
    """The bar of the IHE AIR preparation test: TID 1500 with TID 1410 groups, and the report of an absence."""
    report = written(tmp_path, masks)["sr"]

    assert [] == peers.pixelmed_sr_errors(report)


@pytest.mark.parametrize("masks", ["apart", "nothing"])
def test_dsrdump_reads_the_report(masks: str, tmp_path: Path) -> None:
    """dcmtk parses the whole tree."""
    peers.require_peer("dcmtk")
    program = find_program("dsrdump")
    assert program is not None
    report = written(tmp_path, masks)["sr"]

    done = subprocess.run([program, str(report)], capture_output=True, timeout=60, check=False)

    assert 0 == done.returncode, done.stderr.decode(errors="replace")
    said = done.stdout.decode()
    for expected in ("Absent" if masks == "nothing" else "POLYLINE", "UNVERIFIED", "PRELIMINARY"):
        assert expected in said


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("masks", ["one", "apart", "overlapping"])
def test_dcmqi_reads_the_same_voxels(masks: str, enhanced: bool, tmp_path: Path) -> None:
    """Another library's reader finds every segment's voxels at the place of its mask, to 1e-3 mm."""
    affine = case.affine(kind="oblique")
    seg = written(tmp_path, masks, enhanced=enhanced, order=(3, 1, 0, 2, 8, 7, 6, 5, 4))["seg"]

    files = peers.segimage2itkimage(seg, tmp_path / "nrrd")

    assert len(MASKS[masks]) == len(files)
    for path, (_, mask) in zip(files, MASKS[masks], strict=True):
        array, theirs = read_nrrd(path)
        np.testing.assert_allclose(_places(array > 0, theirs), _places(mask, affine), atol=1e-3)


def _places(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the LPS positions of the voxels, sorted by slice, row and column of either grid."""
    places = np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
    order = np.lexsort((places @ case.affine(kind="oblique")[:3, :3]).round(2).T)
    return np.asarray(places[order])


def test_dcmqi_reads_the_same_measurements(tmp_path: Path) -> None:
    """Another library's reader of TID 1500 finds every group with its volume."""
    report = written(tmp_path, "apart")["sr"]

    read = json.loads(tid1500reader(report, tmp_path / "sr.json").read_text())

    volumes = {
        group["TrackingIdentifier"]: float(item["value"])
        for group in read["Measurements"]
        for item in group["measurementItems"]
        if item["quantity"]["CodeMeaning"] == "Volume"
    }
    voxel_ml = abs(np.linalg.det(case.affine(kind="oblique")[:3, :3])) / 1000
    expected = {f"{label} {n}": mask.sum() * voxel_ml for n, (label, mask) in enumerate(MASKS["apart"], 1)}
    assert pytest.approx(expected) == volumes
