"""A scanner sends a study, and a real PACS holds valid SEG and SR in that very study."""

from __future__ import annotations

import subprocess

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from dicom_node.reading import find_files, load_volume, read_masks


def _fetched(pacs, study_uid, folder):
    """Return the SEG and the SR of a study as files from the PACS; there is exactly one of each."""
    files = {}
    for modality in ("SEG", "SR"):
        (instance,) = pacs.objects(study_uid, modality)
        files[modality] = pacs.fetch(instance, folder / f"{modality.lower()}.dcm")
    return files


def _numbers(item, concept):
    """Return the values of every NUM below an SR item whose concept has this code."""
    found = []
    for child in item.get("ContentSequence", []):
        if child.ValueType == "NUM" and child.ConceptNameCodeSequence[0].CodeValue == concept:
            found.append(float(child.MeasuredValueSequence[0].NumericValue))
        found += _numbers(child, concept)
    return found


def _volume_by_pixel_measures(seg):
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    rows, columns = map(float, measures.PixelSpacing)
    voxel_ml = rows * columns * float(measures.SpacingBetweenSlices) / 1000
    return int(np.unpackbits(np.frombuffer(seg.PixelData, np.uint8)).sum()) * voxel_ml


def _sr_volumes_ml(sr):
    return _numbers(sr, "118565006")  # SCT, Volume


def test_phantom_goes_in_and_seg_and_sr_come_back(
    orthanc, site, storescu, phantom, dciodvfy, pixelmed_sr_errors, tmp_path
):
    """Every object of a phantom arrives in the PACS as segment and measurement group, in the study that was sent."""
    pacs = orthanc()
    study = phantom(3001)
    node = site(pacs=pacs)
    node.start()
    storescu(study.folder, node.port)
    (job,) = node.wait_for_jobs(1)
    assert ("done", None) == (job["state"], job["reason"])
    files = _fetched(pacs, study.uid, tmp_path)
    assert [] == dciodvfy(files["SEG"]) + dciodvfy(files["SR"])
    assert [] == pixelmed_sr_errors(files["SR"])
    volume = load_volume(find_files(study.folder))
    masks = read_masks(files["SEG"], volume.grid, volume.frames)
    assert len(study.truth) == len(masks)
    ours_ml = sorted(mask.sum() * volume.grid.voxel_volume_mm3 / 1000 for mask in masks.values())
    np.testing.assert_allclose(sorted(_sr_volumes_ml(pydicom.dcmread(files["SR"]))), ours_ml, rtol=1e-3)


@pytest.mark.data
@pytest.mark.timeout(900)  # a network of a whole head on two cores
def test_real_t1_comes_back_as_the_reference_brain(
    orthanc, site, storescu, real_t1, shared_data, dciodvfy, dcmqi_segimage2itkimage, tmp_path
):
    """The brain of a real T1 equals the reference mask, by positions, by Pixel Measures and as dcmqi reads it."""
    pacs = orthanc()
    node = site(pacs=pacs, plugins=("brain_mask",))
    node.install("brain_mask", shared_data / "models")
    node.start()
    storescu(real_t1.folder, node.port)
    (job,) = node.wait_for_jobs(1, timeout_s=800)
    assert ("done", None) == (job["state"], job["reason"])
    files = _fetched(pacs, real_t1.uid, tmp_path)
    assert [] == dciodvfy(files["SEG"]) + dciodvfy(files["SR"])

    volume = load_volume(find_files(real_t1.folder))
    (mask,) = read_masks(files["SEG"], volume.grid, volume.frames).values()
    reference = np.asanyarray(nibabel.load(shared_data / "datalad_t1" / "mindgrab_reference_mask.nii.gz").dataobj) > 0
    assert 2 * (mask & reference).sum() / (mask.sum() + reference.sum()) >= 0.98
    by_positions_ml = mask.sum() * volume.grid.voxel_volume_mm3 / 1000
    seg = pydicom.dcmread(files["SEG"])
    assert pytest.approx(1938, rel=0.02) == by_positions_ml
    assert pytest.approx(1938, rel=0.02) == _volume_by_pixel_measures(seg)
    assert [pytest.approx(by_positions_ml, rel=1e-3)] == _sr_volumes_ml(pydicom.dcmread(files["SR"]))

    (read_by_dcmqi,) = dcmqi_segimage2itkimage(files["SEG"], tmp_path / "dcmqi")
    _assert_same_voxels(read_by_dcmqi, mask, volume.grid.affine_lps)


def _assert_same_voxels(nrrd_file, mask, affine_lps):
    """Every voxel that dcmqi set is ours and lies where ours lies, to 1e-3 mm; and the other way round."""
    theirs, header = nrrd.read(str(nrrd_file))
    assert "left-posterior-superior" == header["space"]
    their_affine = np.eye(4)
    their_affine[:3, :3] = np.array(header["space directions"], float).T
    their_affine[:3, 3] = header["space origin"]
    set_voxels = np.argwhere(theirs > 0)
    assert int(mask.sum()) == len(set_voxels)
    on_ours = (np.linalg.inv(affine_lps) @ their_affine @ np.c_[set_voxels, np.ones(len(set_voxels))].T).T[:, :3]
    rounded = np.rint(on_ours).astype(int)
    offset_mm = np.linalg.norm((on_ours - rounded) @ affine_lps[:3, :3].T, axis=1)
    assert offset_mm.max() < 1e-3
    assert mask[rounded[:, 2], rounded[:, 1], rounded[:, 0]].all()


def test_nothing_found_is_an_explicit_report(orthanc, site, storescu, phantom, dciodvfy, pixelmed_sr_errors, tmp_path):
    """A phantom without objects gives an SR that says so, and no SEG."""
    pacs = orthanc()
    study = phantom(3002, "--empty")
    node = site(pacs=pacs)
    node.start()
    storescu(study.folder, node.port)
    (job,) = node.wait_for_jobs(1)
    assert ("done", "nothing_found") == (job["state"], job["outcome"])
    assert [] == pacs.objects(study.uid, "SEG")
    (report,) = pacs.objects(study.uid, "SR")
    sr = pacs.fetch(report, tmp_path / "sr.dcm")
    assert [] == dciodvfy(sr) + pixelmed_sr_errors(sr)
    text = subprocess.run(["dsrdump", sr], capture_output=True, text=True, check=True).stdout
    assert "Absent" in text
