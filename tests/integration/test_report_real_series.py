"""SEG and SR of real series: what scanners send goes through reading, measuring and reporting to the validators."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_node.findings import Finding, Findings
from dicom_node.imaging.mask import crop_mask, outline
from dicom_node.imaging.measure import measure
from dicom_node.imaging.volume import Volume
from dicom_node.reading import group_series, load_volume, read_headers, read_masks
from dicom_node.report import build_results, encode
from tests import peers
from tests.unit import report_case as case

SERIES = {
    "MR of every second slice": "datalad_t1/t1_every_second_slice.tar.xz",
    "CT with a tilted gantry": "dcm_qa_ct_GE_tilt/ge_ct_tilt18.tar.xz",
    "enhanced MR of Siemens": "dcm_qa_xa30_T1_enhanced",
}


def files_of(source: Path, to: Path) -> list[Path]:
    """Return the files of the largest image series at a path or in an archive."""
    if source.suffix == ".xz":
        with tarfile.open(source) as archive:
            archive.extractall(to, filter="data")
        source = to
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    series, _ = group_series(paths)
    chosen = max(series, key=lambda one: sum(image.n_frames for image in one.descriptions))
    paths = [image.path for image in chosen.images]
    # The tilted head scan holds two stacks of unlike spacing; the one of the base of the skull is marked ADD.
    added = [path for path in paths if "ADD" in pydicom.dcmread(path, specific_tags=["ImageType"]).ImageType]
    return added or paths


def findings_in(volume: Volume, mask: NDArray[np.bool_]) -> Findings:
    """Return one finding of a mask, measured as `predict` does."""
    cropped = crop_mask(mask)
    assert cropped is not None
    measurements = measure(cropped, volume)
    finding = Finding(
        number=1,
        label="brain",
        mask=cropped,
        measurements=measurements,
        contour=outline(cropped, measurements.diameter_long.slice_index),
    )
    return Findings(
        outcome="result",
        reason=None,
        findings=(finding,),
        frames=volume.frames,
        affine_lps=volume.grid.affine_lps,
        provenance=case.PROVENANCE,
    )


def written(findings: Findings, files: list[Path], to: Path) -> dict[str, Path]:
    built = build_results(findings, case.MANIFEST, read_headers(files), case.IDENTITY)
    paths = {}
    for result in built:
        paths[result.kind] = to / f"{result.kind}.dcm"
        paths[result.kind].write_bytes(encode(result.dataset))
    return paths


@pytest.mark.data
@pytest.mark.parametrize("name", SERIES)
def test_a_real_series_gives_valid_objects_on_its_own_grid(name: str, shared_data: Path, tmp_path: Path) -> None:
    """dciodvfy finds no error, and the mask read back from the file is the mask that went in."""
    files = files_of(shared_data / SERIES[name], tmp_path / "source")
    volume = load_volume(files)
    mask = np.zeros(volume.grid.shape, dtype=bool)
    z, y, x = (size // 3 for size in mask.shape)
    mask[z : 2 * z + 1, y : y + 9, x : x + 5] = True

    paths = written(findings_in(volume, mask), files, tmp_path)

    for path in paths.values():
        assert [] == peers.dciodvfy(path)
    assert np.array_equal(mask, read_masks(paths["seg"], volume.grid, volume.frames)[1])


@pytest.mark.data
def test_a_series_that_lies_about_its_thickness_keeps_its_volume(shared_data: Path, tmp_path: Path) -> None:
    """The headers of this T1 say 0.667 mm, its positions 1.333 mm: the brain has 1938 ml, not half of it."""
    files = files_of(shared_data / SERIES["MR of every second slice"], tmp_path / "source")
    volume = load_volume(files)
    (mask,) = read_masks(shared_data / "datalad_t1/mindgrab_reference_mask.nii.gz", volume.grid).values()

    seg = pydicom.dcmread(written(findings_in(volume, mask), files, tmp_path)["seg"])

    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    voxel_mm3 = measures.PixelSpacing[0] * measures.PixelSpacing[1] * measures.SpacingBetweenSlices
    assert 1937.7 == pytest.approx(int(seg.pixel_array.sum(dtype=np.int64)) * voxel_mm3 / 1000, abs=0.5)
    assert 1.3333 == pytest.approx(measures.SliceThickness, abs=1e-3)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 2, 2)])
def test_the_smallest_findings_have_an_outline(size: tuple[int, int, int], tmp_path: Path) -> None:
    """One voxel is a finding like any other: its outline closes and its report is built."""
    affine = case.affine(kind="oblique")
    headers = case.headers_of(tmp_path, affine)
    volume = load_volume(sorted(tmp_path.glob("*.dcm")))
    mask = np.zeros(volume.grid.shape, dtype=bool)
    mask[tuple(slice(3, 3 + extent) for extent in size)] = True

    built = build_results(findings_in(volume, mask), case.MANIFEST, headers, case.IDENTITY)

    assert ["sr", "seg"] == [result.kind for result in built]
