"""A slice that no image shows: it counts in volumes, and no result points at it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.clock import ManualClock
from dicom_node.errors import ResultError
from dicom_node.findings import Findings, Mask, on_images
from dicom_node.imaging import Volume, crop_mask, measure
from dicom_node.predict import predict
from dicom_node.report import build_results
from dicom_node.report.check import check_seg
from dicom_node.study import Frame
from tests.unit import report_case as case
from tests.unit.imaging_case import Ramp, blob, make_grid, make_manifest, make_volume

LOST = 4
"""The slice without an image, in the middle of the balls."""


def without_image(frames: tuple[Frame, ...], *lost: int) -> tuple[Frame, ...]:
    """Return the frames as `reading` makes them where images are missing."""
    return tuple(
        replace(frame, sop_instance_uid="", frame_number=0, interpolated=True) if z in lost else frame
        for z, frame in enumerate(frames)
    )


def volume_with_gap(array: NDArray[np.float32], *lost: int) -> Volume:
    """Return a volume on a grid of the array's shape whose slices `lost` were interpolated."""
    grid = make_grid((array.shape[0], array.shape[1], array.shape[2]))
    whole = make_volume(array, grid)
    return replace(whole, frames=without_image(whole.frames, *lost), notes=("slice 5 of 9 is missing",))


@pytest.fixture(params=["straight", "tilted"])
def affine(request: pytest.FixtureRequest) -> NDArray[np.float64]:
    """Return a straight and a tilted stack."""
    return case.affine(kind=request.param)


@pytest.fixture
def headers(tmp_path: Path, affine: NDArray[np.float64]) -> list[Dataset]:
    """Return the headers of nine slices but the lost one."""
    every = case.headers_of(tmp_path, affine)
    return [header for z, header in enumerate(every) if z != LOST]


@pytest.fixture
def findings(tmp_path: Path, affine: NDArray[np.float64]) -> Findings:
    """Return two overlapping balls through the lost slice, their diameters on the slice before it."""
    masks = [("sphere", case.ball((4, 8, 9), 3)), ("brain", case.ball((5, 9, 10), 3.5))]
    whole = case.findings_of(masks, case.headers_of(tmp_path / "whole", affine), affine)
    moved = tuple(
        replace(
            one,
            measurements=replace(
                one.measurements, diameter_long=replace(one.measurements.diameter_long, slice_index=LOST - 1)
            ),
        )
        for one in whole.findings
    )
    return replace(whole, frames=without_image(whole.frames, LOST), findings=moved, notes=("slice 5 is missing",))


def references(ds: Dataset) -> Iterator[str]:
    """Yield every instance that an object refers to."""
    for element in ds.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            yield str(element.value)


@pytest.mark.parametrize("n_findings", [1, 2])
def test_results_refer_to_images_that_exist(findings: Findings, headers: list[Dataset], n_findings: int) -> None:
    """SEG and SR name no instance but those that were sent, with one finding and with findings that overlap."""
    kept = replace(findings, findings=findings.findings[:n_findings])
    for built in build_results(kept, case.MANIFEST, headers, case.IDENTITY):
        named = set(references(built.dataset))
        assert named
        assert named <= {str(header.SOPInstanceUID) for header in headers}


def test_the_segmentation_has_every_slice_but_the_lost_one(
    findings: Findings, headers: list[Dataset], affine: NDArray[np.float64]
) -> None:
    """Each frame lies where an image does; together they have the voxels of the mask on real slices."""
    (built,) = build_results(findings, case.MANIFEST, headers, case.IDENTITY, kinds=("seg",))
    ds = built.dataset
    heights = [float(groups.PlanePositionSequence[0].ImagePositionPatient[2]) for groups in ds[0x52009230].value]
    lost = affine[2, 3] + LOST * affine[2, 2]
    assert min(abs(height - lost) for height in heights) > 1
    whole = [int(one.mask.n_voxels) for one in findings.findings]
    shown = [on_images(one.mask, findings.frames).n_voxels for one in findings.findings]
    assert all(some < every for some, every in zip(shown, whole, strict=True))
    packed = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
    assert sum(shown) == int(packed[: ds.NumberOfFrames * ds.Rows * ds.Columns].sum())


def test_the_check_knows_what_is_left_out_and_nothing_else(findings: Findings, headers: list[Dataset]) -> None:
    """A segmentation that lost a slice which does exist is refused."""
    (built,) = build_results(findings, case.MANIFEST, headers, case.IDENTITY, kinds=("seg",))
    check_seg(built.dataset, findings)
    with pytest.raises(ResultError, match="voxels, its finding"):
        check_seg(built.dataset, replace(findings, frames=without_image(findings.frames, LOST, LOST + 1)))


def test_the_report_says_that_a_slice_is_missing(findings: Findings, headers: list[Dataset]) -> None:
    """Notes of the volume stand among the comments of the report."""
    (built,) = build_results(findings, case.MANIFEST, headers, case.IDENTITY, kinds=("sr",))
    texts = [str(element.value) for element in built.dataset.iterall() if element.keyword == "TextValue"]
    assert "slice 5 is missing" in texts


def test_diameters_lie_on_images(affine: NDArray[np.float64]) -> None:
    """The widest slice was interpolated: the diameter is that of the next one, the volume that of all."""
    ball = case.ball((4, 10, 10), 4, (9, 20, 20))
    mask = crop_mask(ball)
    assert mask is not None
    array = np.zeros(ball.shape, np.float32)
    whole, gap = measure(mask, volume_with_gap(array)), measure(mask, volume_with_gap(array, 4))
    assert 4 == whole.diameter_long.slice_index
    assert gap.diameter_long.slice_index in (3, 5)
    assert gap.diameter_long.length_mm < whole.diameter_long.length_mm
    assert whole.volume_ml == gap.volume_ml
    assert whole.diameter_3d_mm == gap.diameter_3d_mm


def test_a_mask_that_no_image_shows_has_no_measurements() -> None:
    """There is no slice to measure it on."""
    mask = Mask(offset=(4, 1, 1), array=np.ones((1, 3, 3), dtype=bool))
    with pytest.raises(ValueError, match="no image shows"):
        measure(mask, volume_with_gap(np.zeros((9, 6, 6), np.float32), 4))


def test_what_no_image_shows_is_no_finding() -> None:
    """A body on interpolated slices alone is invented; one beside it that images show is found."""
    grid = make_grid((30, 64, 64))
    array = np.maximum(blob(grid, (13.0, -7.0, 30.0), 8.0), blob(grid, (-11.0, -5.0, 33.0), 4.0))
    shown = predict({"ct": make_volume(array, grid)}, make_manifest(), Ramp(), clock=ManualClock())
    small = shown.findings[1].mask
    lost = range(small.offset[0], small.offset[0] + small.array.shape[0])
    assert len(shown.findings[0].mask.array) > len(lost)
    volume = volume_with_gap(array, *lost)
    answer = predict({"ct": replace(volume, grid=grid)}, make_manifest(), Ramp(), clock=ManualClock())
    assert [1] == [finding.number for finding in answer.findings]
    assert shown.findings[0].mask.n_voxels == answer.findings[0].mask.n_voxels
    assert answer.findings[0].measurements.diameter_long.slice_index not in lost
    assert ("slice 5 of 9 is missing",) == answer.notes
