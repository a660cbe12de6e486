"""Measurements of data that others made and measured: by the command, through our own SEG, and from contours."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_node.admin.inspection import measure_mask
from dicom_node.findings import Finding, Findings, Measurements
from dicom_node.imaging import Grid, Volume, crop_mask, measure
from dicom_node.imaging.mask import outline
from dicom_node.imaging.quantities import values
from dicom_node.reading import find_files, group_series, load_volume, read_headers, read_masks, read_nifti, read_regions
from dicom_node.reading.synthetic import write_series
from dicom_node.report import build_results, encode
from tests import peers
from tests.unit import report_case as case
from tests.unit.imaging_case import make_volume

PATIENTS = ("STS_008", "STS_025")
MODALITIES = ("CT", "MR_T1", "PET")
VOLUME_TOLERANCE = {"CT": 0.03, "MR_T1": 0.03, "PET": 0.05}


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A series of the shared data and its volume."""

    files: tuple[Path, ...]
    volume: Volume


@cache
def series_of(folder: Path) -> Series:
    (series,) = [one for one in group_series(find_files(folder))[0] if one.images]
    files = tuple(image.path for image in series.images)
    return Series(files=files, volume=load_volume(files))


def published(shared_data: Path, patient: str, modality: str) -> dict[str, tuple[float, float, float]]:
    """Return median, smallest and largest value of up to nine teams by IBSI's name of the feature."""
    with (shared_data / "ibsi_sts" / "ibsi_sts_published.csv").open() as file:
        return {
            row["tag"]: (float(row["median"]), float(row["min"]), float(row["max"]))
            for row in csv.DictReader(file)
            if (row["id"], row["modality"]) == (patient, modality)
        }


IBSI_PHANTOM: dict[str, tuple[float, float, Callable[[Measurements], Any]]] = {
    "RNU0 volume (mesh)": (556, 4, lambda m: 1000 * m.volume_mesh_ml),
    "YEKZ volume (voxels)": (592, 4, lambda m: 1000 * m.volume_ml),
    "C0JK surface": (388, 3, lambda m: m.surface_mm2),
    "2PR5 surface to volume": (0.698, 0.004, lambda m: m.surface_mm2 / m.volume_mesh_ml / 1000),
    "QCFX sphericity": (0.843, 0.005, lambda m: m.sphericity),
    "25C7 asphericity": (0.186, 0.001, lambda m: m.asphericity),
    "L0JK 3D diameter": (13.1, 0.1, lambda m: m.diameter_3d_mm),
    "TDIC major axis": (11.4, 0.1, lambda m: m.major_axis_mm),
    "P9VJ minor axis": (9.31, 0.06, lambda m: m.minor_axis_mm),
    "7J51 least axis": (8.54, 0.05, lambda m: m.least_axis_mm),
    "Q3CK elongation": (0.816, 0.001, lambda m: m.elongation),
    "N17B flatness": (0.749, 0.001, lambda m: m.flatness),
    "R3ER volume density, convex hull": (0.961, 0.005, lambda m: m.solidity),
    "7T7F area density, convex hull": (1.03, 0.01, lambda m: m.border_irregularity),
    "Q4LE mean": (2.15, 0.005, lambda m: m.mean),
    "ECT3 variance": (3.05, 0.005, lambda m: m.variance),
    "Y12H median": (1, 0, lambda m: m.median),
    "1GSF minimum": (1, 0, lambda m: m.minimum),
    "84IY maximum": (6, 0, lambda m: m.maximum),
    "QG58 10th percentile": (1, 0, lambda m: m.percentiles[1]),
    "8DWT 90th percentile": (4, 0, lambda m: m.percentiles[4]),
    "SALO interquartile range": (3, 0, lambda m: m.percentiles[3] - m.percentiles[2]),
}
"""Consensus values of the IBSI reference manual (arXiv:1612.07003v11) with their tolerances."""


@pytest.mark.data
@pytest.mark.parametrize("feature", IBSI_PHANTOM)
def test_ibsi_digital_phantom(shared_data: Path, feature: str) -> None:
    """Every feature of the phantom that we measure has the consensus value."""
    value, tolerance, of = IBSI_PHANTOM[feature]
    assert of(_phantom(shared_data)) == pytest.approx(value, abs=tolerance + 1e-9)


@cache
def _phantom(shared_data: Path) -> Measurements:
    folder = shared_data / "ibsi_digital_phantom" / "nifti"
    array, affine = read_nifti(folder / "image" / "phantom.nii.gz")
    labels, _ = read_nifti(folder / "mask" / "mask.nii.gz")
    mask = crop_mask(labels > 0)
    assert mask is not None
    return measure(mask, make_volume(array, Grid(shape=array.shape, affine_lps=affine), modality="MR"))


@pytest.mark.data
@pytest.mark.parametrize("patient", PATIENTS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_ibsi_sarcomas(shared_data: Path, patient: str, modality: str) -> None:
    """Volumes within 3 % (PET 5 %), 3D diameters within 6 %, means within the range of the teams, PET in SUVbw.

    The teams resampled to 1 mm first; our masks are on the native grid.
    """
    image = shared_data / "ibsi_sts" / "dicom" / patient / modality / "image"
    mask = shared_data / "ibsi_sts" / "nifti" / patient / f"{modality}_mask.nii.gz"
    (found,) = measure_mask(mask, image)
    truth = published(shared_data, patient, modality)
    tolerance = VOLUME_TOLERANCE[modality]
    assert 1000 * found["volume_ml"] == pytest.approx(truth["morph_vol_approx"][0], rel=tolerance)
    assert 1000 * found["volume_mesh_ml"] == pytest.approx(truth["morph_volume"][0], rel=tolerance)
    assert found["diameter_3d_mm"] == pytest.approx(truth["morph_diam"][0], rel=0.06)
    assert found["major_axis_mm"] == pytest.approx(truth["morph_pca_maj_axis"][0], rel=0.06)
    assert found["surface_mm2"] == pytest.approx(truth["morph_area_mesh"][0], rel=0.06)
    assert truth["stat_mean"][1] <= found["mean"] <= truth["stat_mean"][2]
    assert {"CT": "[hnsf'U]", "MR_T1": "1", "PET": "{SUVbw}g/ml"}[modality] == found["intensity_unit"]


@pytest.mark.data
@pytest.mark.parametrize("patient", PATIENTS)
@pytest.mark.parametrize("modality", MODALITIES)
def test_contours_give_the_voxels_of_another_program(shared_data: Path, patient: str, modality: str) -> None:
    """The RT Structure Set and the NIfTI mask that MIRP made of it mark the same voxels, every one."""
    folder = shared_data / "ibsi_sts" / "dicom" / patient / modality
    volume = series_of(folder / "image").volume
    (region,) = read_regions(folder / "mask" / "RS.dcm", volume.grid, volume.frames)
    nifti = shared_data / "ibsi_sts" / "nifti" / patient / f"{modality}_mask.nii.gz"
    (expected,) = read_masks(nifti, volume.grid).values()
    assert f"GTV_Mass_{modality}" == region.name
    assert region.mask is not None
    np.testing.assert_array_equal(expected, region.mask.on_grid(volume.grid.shape))


ORGANS = {5: (699.4, 89.3), 1: (249.2, 79.6)}
"""Label of TotalSegmentator's example -> volume in ml, mean in HU."""


@pytest.mark.data
def test_liver_and_spleen(shared_data: Path) -> None:
    """Liver 699.4 ml at 89.3 HU, spleen 249.2 ml at 79.6 HU; a wrong flip of the label map gives -75 HU."""
    folder = shared_data / "totalsegmentator_ct"
    measured = measure_mask(folder / "example_seg_dicom.nii.gz", folder / "example_ct_dicom")
    found = {one["label"]: one for one in measured}
    for label, (volume_ml, mean_hu) in ORGANS.items():
        assert found[label]["volume_ml"] == pytest.approx(volume_ml, rel=0.005)
        assert found[label]["mean"] == pytest.approx(mean_hu, rel=0.005)
        assert found[label]["volume_mesh_ml"] == pytest.approx(volume_ml, rel=0.005)


@pytest.mark.data
def test_liver_and_spleen_through_our_segmentation(shared_data: Path, tmp_path: Path) -> None:
    """Written as SEG and read back, by the command: every measurement is the same number.

    The published CT has no SOP Class, so the SEG refers to the same voxels written anew.
    """
    folder = shared_data / "totalsegmentator_ct"
    volume = series_of(folder / "example_ct_dicom").volume
    files = write_series(
        tmp_path / "image",
        volume.array,
        volume.grid.affine_lps,
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        frame_of_reference_uid=volume.frames[0].frame_of_reference_uid or "1.2.3.9",
        uid_root="1.2.3.5",
    )
    regions = read_regions(folder / "example_seg_dicom.nii.gz", volume.grid, volume.frames)
    masks = {region.label: region.mask for region in regions if region.label in ORGANS}
    findings = _findings(masks, load_volume(files))
    built = build_results(findings, case.MANIFEST, read_headers(files), case.IDENTITY)
    (seg,) = [result for result in built if result.kind == "seg"]
    (tmp_path / "seg.dcm").write_bytes(encode(seg.dataset))

    back = measure_mask(tmp_path / "seg.dcm", folder / "example_ct_dicom")

    assert ["brain 1", "brain 2"] == [one["name"] for one in back]
    for one, label, finding in zip(back, sorted(ORGANS), findings.findings, strict=True):
        volume_ml, mean_hu = ORGANS[label]
        assert one["volume_ml"] == pytest.approx(volume_ml, rel=0.005)
        assert one["mean"] == pytest.approx(mean_hu, rel=0.005)
        assert values(finding.measurements) == pytest.approx({key: one[key] for key in values(finding.measurements)})


def _findings(masks: dict[int, Any], volume: Volume) -> Findings:
    """Return a finding of every mask, measured as `predict` does."""
    findings = []
    for number, (_, mask) in enumerate(sorted(masks.items()), 1):
        measured = measure(mask, volume)
        contour = outline(mask, measured.diameter_long.slice_index)
        findings.append(Finding(number=number, label="brain", mask=mask, measurements=measured, contour=contour))
    return Findings(
        outcome="result",
        reason=None,
        findings=tuple(findings),
        frames=volume.frames,
        affine_lps=volume.grid.affine_lps,
        provenance=case.PROVENANCE,
    )


def _report_of_pet(shared_data: Path, to: Path) -> Path:
    """Write the report of IBSI's lesion in a PET."""
    folder = shared_data / "ibsi_sts" / "dicom" / "STS_025" / "PET"
    series = series_of(folder / "image")
    (region,) = read_regions(folder / "mask" / "RS.dcm", series.volume.grid, series.volume.frames)
    findings = _findings({1: region.mask}, series.volume)
    built = build_results(findings, case.MANIFEST, read_headers(series.files), case.IDENTITY)
    (report,) = [result.dataset for result in built if result.kind == "sr"]
    to.write_bytes(encode(report))
    return to


@pytest.mark.data
def test_report_of_a_pet_is_in_suv(shared_data: Path, tmp_path: Path) -> None:
    """The report names SUVbw with its unit, the mean is the published one, and dciodvfy finds no error."""
    path = _report_of_pet(shared_data, tmp_path / "sr.dcm")
    numbers = [item for item in _items(pydicom.dcmread(path)) if item.ValueType == "NUM"]
    suv = [item for item in numbers if item.ConceptNameCodeSequence[0].CodeValue == "126401"]
    assert 5 == len(suv)
    assert {"{SUVbw}g/ml"} == {n.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue for n in suv}
    assert 2.957 == pytest.approx(float(suv[0].MeasuredValueSequence[0].NumericValue), abs=0.01)
    assert [] == peers.dciodvfy(path)


@pytest.mark.data
@pytest.mark.long
def test_templates_of_a_report_in_suv_hold(
    shared_data: Path, tmp_path: Path, pixelmed_sr_errors: Callable[[Path], list[str]]
) -> None:
    """PixelMed finds no error in TID 1500 with SUVbw."""
    assert [] == pixelmed_sr_errors(_report_of_pet(shared_data, tmp_path / "sr.dcm"))


def _items(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    found = []
    for item in dataset.get("ContentSequence", []):
        found += [item, *_items(item)]
    return found


@pytest.mark.data
def test_volume_of_a_published_report(shared_data: Path, tmp_path: Path) -> None:
    """dcmqi's example: 795 voxels of its SEG are the 33.5824 ml of its report, on an image of the same grid."""
    path = shared_data / "dcmqi" / "data" / "sr-example" / "seg.dcm"
    report = pydicom.dcmread(path.with_name("sr.dcm"))
    (volume_ml,) = [
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in _items(report)
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    positions = sorted(
        (groups.PlanePositionSequence[0].ImagePositionPatient for groups in seg.PerFrameFunctionalGroupsSequence),
        key=lambda position: position[2],
    )
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = cosines[:3] * spacing[1], cosines[3:] * spacing[0]
    affine[:3, 2] = np.subtract(positions[1], positions[0])
    affine[:3, 3] = positions[0]
    write_series(
        tmp_path / "image",
        np.full((len(positions), seg.Rows, seg.Columns), 7, dtype=np.int16),
        affine,
        headers={"Modality": "PT"},
        modality="MR",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        frame_of_reference_uid=seg.FrameOfReferenceUID,
        uid_root="1.2.3.5",
    )

    (found,) = measure_mask(path, tmp_path / "image")

    assert (795, "Neoplasm, Primary") == (found["n_voxels"], found["name"])
    assert found["volume_ml"] == pytest.approx(volume_ml, abs=5e-5)
    assert found["volume_ml"] == pytest.approx(33.5824, abs=5e-5)
    # An image that says nothing of its unit gets no SUV, and the reason.
    assert ("1", 7.0) == (found["intensity_unit"], found["mean"])
    assert any(note.startswith("no SUV: Units is missing") for note in found["notes"])


@pytest.mark.data
def test_segments_of_dcmqi_are_those_of_its_nrrd(shared_data: Path) -> None:
    """Overlapping segments and label maps: the SEG has the voxels of the NRRD files that it was made from."""
    folder = shared_data / "dcmqi" / "data" / "segmentations"
    volume = series_of(folder / "ct-3slice").volume
    regions = read_regions(folder / "partial_overlaps.dcm", volume.grid, volume.frames)
    from_nrrd = [read_masks(folder / f"partial_overlaps-{number}.nrrd", volume.grid) for number in (1, 2, 3)]
    expected = [mask for masks in from_nrrd for _, mask in sorted(masks.items())]
    found = [region.mask.on_grid(volume.grid.shape) for region in regions if region.mask is not None]
    counts = sorted(int(mask.sum()) for mask in expected)
    assert counts == sorted(int(mask.sum()) for mask in found)
    for mask in found:
        assert any(np.array_equal(mask, other) for other in expected)
    assert len(found) > 1
    assert any((a & b).any() for n, a in enumerate(found) for b in found[:n])


@pytest.mark.data
@pytest.mark.parametrize("name", ["sparse-labelmap-noppv.dcm", "sparse-labelmap-ppv5.dcm"])
def test_label_maps_of_dcmqi_are_those_of_their_nrrd(shared_data: Path, name: str) -> None:
    """630 voxels, with and without a Pixel Padding Value that is not 0."""
    folder = shared_data / "dcmqi" / "data" / "segmentations"
    volume = series_of(folder / "24x38x3" / "image").volume
    nrrd = folder / name.replace("-", "_").replace(".dcm", "_seg.nrrd")
    expected, found = (read_masks(path, volume.grid, volume.frames) for path in (nrrd, folder / name))
    padding = 5 if "ppv5" in name else 0  # a label in the NRRD, the background of the SEG
    assert sorted(set(expected) - {padding}) == sorted(found)
    for label, mask in found.items():
        np.testing.assert_array_equal(expected[label], mask)
    assert 630 == sum(mask.sum() for mask in found.values())


@pytest.mark.data
def test_the_mask_of_another_image_is_refused_with_what_differs(shared_data: Path) -> None:
    """A PET mask on the CT of the same patient: spacing and origin are named."""
    volume = series_of(shared_data / "ibsi_sts" / "dicom" / "STS_008" / "CT" / "image").volume
    with pytest.raises(Exception, match=r"not on the image's grid: spacing: .* 4.6\d+ x .*; origin: "):
        read_regions(shared_data / "ibsi_sts" / "nifti" / "STS_008" / "PET_mask.nii.gz", volume.grid)


@pytest.mark.data
def test_suv_of_activity_equals_suv_as_stored(shared_data: Path) -> None:
    """The same PET told in Bq/ml: by dose and weight of its own header, its SUV comes out as the scanner's."""
    series = series_of(shared_data / "ibsi_sts" / "dicom" / "STS_025" / "PET" / "image")
    headers = read_headers(series.files)
    tracer = headers[0].RadiopharmaceuticalInformationSequence[0]
    to_bqml = float(tracer.RadionuclideTotalDose) / (1000 * float(headers[0].PatientWeight))
    for header in headers:
        header.Units = "BQML"  # Decay Correction is ADMIN: the dose as it was given
        del header.SUVType
    from dicom_node.reading.intensity import intensity_of

    intensity, notes = intensity_of(headers)
    assert ((), "{SUVbw}g/ml") == (notes, intensity.unit)
    activity = replace(series.volume, array=series.volume.array * np.float32(to_bqml), intensity=intensity)
    mask = crop_mask(series.volume.array > 2.0)
    assert mask is not None
    assert measure(mask, activity).mean == pytest.approx(measure(mask, series.volume).mean, rel=1e-6)
