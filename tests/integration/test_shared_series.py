"""Real data of many scanners: every series is read, or refused with the right reason."""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.errors import GeometryError, RefusedInputError, UndecodableError
from dicom_node.imaging.geometry import Grid, shear_degrees
from dicom_node.imaging.stacks import ReadPolicy, StackPreference
from dicom_node.imaging.volume import Volume
from dicom_node.reading import (
    describe,
    find_files,
    group_series,
    load_volume,
    read_masks,
    read_nifti,
    read_nrrd,
    write_nifti,
)
from dicom_node.reading.decode import decode_instance
from dicom_node.reading.header import read_header

pytestmark = pytest.mark.data

CT_3_SLICE = "dcmqi/data/segmentations/ct-3slice"


@cache
def volume_of(folder: Path) -> Volume:
    """Return the volume of all images below a folder, which are of one series."""
    series, _ = group_series(find_files(folder))
    return load_volume([image.path for one in series for image in one.images])


@pytest.mark.parametrize(
    ("folder", "shape", "spacing_mm"),
    [
        ("dcm_qa_xa30_T1_enhanced", (96, 128, 128), (2.0, 2.0, 2.0)),
        ("dcm_qa_enh/Siemens", (6, 64, 64), (2.4, 3.375, 3.375)),
        ("dcm_qa_toshiba", (12, 64, 64), (3.0, 3.0, 3.0)),
        (CT_3_SLICE, (3, 512, 512), (1.0, 0.8105, 0.8105)),
        ("dcmqi/data/segmentations/23x38x3/multiframe", (3, 38, 23), (2.5, 0.7, 0.7)),
        ("dicom2nifti/failing/gantrytilting", (4, 512, 512), (5.0, 0.418, 0.418)),
        ("dicom2nifti/failing/slicecount", (2, 256, 256), (1.0, 1.0, 1.0)),
        ("dicom2nifti/generic/anatomical/002_non_isotropic", (4, 28, 64), (0.5, 4.0, 6.4)),
        ("dicom2nifti/hitachi/anatomical/001_implicit", (4, 64, 64), (4.0, 2.344, 2.344)),
        ("dicom2nifti/hyperfine", (8, 138, 112), (5.0, 1.61, 1.59)),
        ("dicom2nifti/philips/anatomical", (4, 240, 240), (0.6, 1.042, 1.042)),
        ("dicom2nifti/philips_enhanced", (8, 256, 256), (1.2, 1.0, 1.0)),
        ("dicom2nifti/siemens_multiframe", (8, 256, 256), (0.9, 0.9375, 0.9375)),
        ("ibsi_digital_phantom/dicom_deprecated/image", (4, 4, 5), (1.0, 1.0, 1.0)),
        ("ibsi_sts/dicom/STS_008/CT/image", (51, 137, 141), (3.27, 0.977, 0.977)),
        ("ibsi_sts/dicom/STS_008/PET/image", (51, 29, 30), (3.27, 4.688, 4.688)),
        ("totalsegmentator_ct/example_ct_dicom", (20, 512, 512), (2.0, 0.977, 0.977)),
    ],
)
def test_series_of_many_vendors_are_read(
    shared_data: Path, folder: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> None:
    """Shape and spacing are those of the positions, classic and enhanced."""
    volume = volume_of(shared_data / folder)
    assert shape == volume.array.shape
    assert spacing_mm == pytest.approx(volume.grid.spacing_mm, abs=2e-3)


@pytest.mark.parametrize(
    ("path", "error", "reason"),
    [
        ("dicom2nifti/failing/sliceincrement", GeometryError, "a slice is missing .*10.000 mm apart instead of 5.000"),
        ("dicom2nifti/ge/anatomical/001_single_slice", GeometryError, "a single slice"),
        ("dicom2nifti/generic/rgb", UndecodableError, "colour"),
        ("dcm_qa_uih", GeometryError, "no full geometry"),
        ("nibabel/0.dcm", GeometryError, "mosaics"),
        ("pydicom-data/emri_small.dcm", GeometryError, "10 frames in one instance without a position"),
        ("pydicom-data/parametric_map_float.dcm", GeometryError, "a single slice"),
        ("pydicom-data/emri_small_jpeg_2k_lossless_too_short.dcm", RefusedInputError, ""),
        ("pydicom-test_files/test_files/MR_truncated.dcm", RefusedInputError, ""),
        ("pydicom-test_files/test_files/dicomdirtests/98892003/MR700", GeometryError, "7 orientations.*single slices"),
        ("pydicom-test_files/test_files/dicomdirtests/TINY_ALPHA/PT000000", UndecodableError, "no pixel data"),
        ("highdicom/dx_image.dcm", GeometryError, r"a digital radiograph \(DX\): a projection"),
        ("misc/ultrasounds", GeometryError, "an ultrasound image"),
        ("misc/mg", GeometryError, r"a mammogram \(MG\): a projection"),
        ("pydicom-test_files/test_files/examples_ybr_color.dcm", GeometryError, "an ultrasound cine of 30 frames"),
        ("pydicom-test_files/test_files/rtdose.dcm", GeometryError, "a radiotherapy dose"),
    ],
)
def test_what_makes_no_volume_is_refused_for_its_own_reason(
    shared_data: Path, path: str, error: type[RefusedInputError], reason: str
) -> None:
    """The reason names the property that stands in the way."""
    with pytest.raises(error) as refused:
        load_volume(find_files(shared_data / path))
    assert re.search(reason, refused.value.reason)


def test_several_frames_of_a_truncated_file_are_refused(shared_data: Path) -> None:
    """A file shorter than its pixel data says so, whatever it shows."""
    with pytest.raises(UndecodableError, match="pixel data is shorter than Rows x Columns x Frames"):
        decode_instance(read_header(shared_data / "pydicom-test_files/test_files/MR_truncated.dcm"))


def test_a_copy_among_scattered_slices_is_left_out_and_the_gaps_refused(shared_data: Path, tmp_path: Path) -> None:
    """Eleven slices of a CT, one of them twice: the copy is no reason, the distances are."""
    with zipfile.ZipFile(shared_data / "misc/dupe-positions.zip") as archive:
        archive.extractall(tmp_path)
    series, _ = group_series(find_files(tmp_path))
    reasons = []
    for one in series:
        with pytest.raises(GeometryError) as refused:
            load_volume([image.path for image in one.images])
        reasons.append(refused.value.reason)
    assert reasons
    assert all(re.search(r"^1 image is a copy of others .*; slices lie at irregular distances", one) for one in reasons)


def test_the_magnitude_of_a_complex_image_is_read(shared_data: Path) -> None:
    """32 frames of magnitude and 32 of the real part in one enhanced object."""
    volume = volume_of(shared_data / "dcm_qa_enh/Philips")
    assert (32, 64, 64) == volume.array.shape
    assert "read ComplexImageComponent MAGNITUDE, 32 slices" in volume.notes[0]


@pytest.mark.parametrize("name", ["canon_enhanced/enh/10000.dcm.gz", "nibabel/philips_mprage.dcm.gz"])
def test_large_enhanced_files_are_read_or_their_stacks_named(shared_data: Path, tmp_path: Path, name: str) -> None:
    """520 frames of a diffusion series are 13 stacks, of which b = 0 is read; 176 frames of a T1 are a volume."""
    path = tmp_path / "enhanced.dcm"
    path.write_bytes(gzip.decompress((shared_data / name).read_bytes()))
    if name.startswith("canon"):
        assert 520 == len(describe(path).frames)
        volume = load_volume([path])
        assert (40, 80, 80) == volume.array.shape
        assert "13 stacks (DiffusionBValue 0 s/mm2, 40 slices" in volume.notes[0]
        weighted = ReadPolicy(preferences=(StackPreference(keyword="DiffusionBValue", equals="1500"),))
        assert "read DiffusionBValue 1500 s/mm2" in load_volume([path], policy=weighted).notes[0]
    else:
        assert (176, 256, 256) == load_volume([path]).array.shape


def test_datalad_t1_is_placed_by_its_positions(shared_data: Path, tmp_path: Path) -> None:
    """192 oblique slices of 1.333 mm whose header says 0.667 mm: read by position, the contradiction noted."""
    with tarfile.open(shared_data / "datalad_t1/t1_every_second_slice.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    volume = load_volume([image.path for image in group_series(find_files(tmp_path))[0][0].images])
    assert (192, 384, 274) == volume.array.shape
    assert 1.333 == pytest.approx(volume.grid.spacing_mm[0], abs=1e-3)
    assert any("SpacingBetweenSlices says 0.66" in note for note in volume.notes)
    assert any("SliceThickness says 0.66" in note for note in volume.notes)
    mask, affine = read_nifti(shared_data / "datalad_t1/mindgrab_reference_mask.nii.gz")
    assert volume.array.shape == mask.shape[::-1]  # the file's axes are slice, row, column
    np.testing.assert_allclose(volume.grid.affine_lps[:, [2, 1, 0, 3]], affine, rtol=0, atol=1e-3)
    masks = read_masks(shared_data / "datalad_t1/mindgrab_reference_mask.nii.gz", volume.grid)
    assert 1937.7 == pytest.approx(masks[1].sum() * volume.grid.voxel_volume_mm3 / 1000, rel=1e-3)


def test_ge_tilt_is_read_sheared(shared_data: Path, tmp_path: Path) -> None:
    """A gantry tilted by 18.5 degrees: the grid keeps the shear and a note says so; two slice distances are refused."""
    with tarfile.open(shared_data / "dcm_qa_ct_GE_tilt/ge_ct_tilt18.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    paths = find_files(tmp_path)
    with pytest.raises(GeometryError, match=r"\(1 of 1\.140, 13 of 4\.220, 13 of 7\.380 mm\): .*AcquisitionNumber"):
        load_volume(paths)
    for half, spacing_mm in ((paths[:14], 4.22), (paths[14:], 7.38)):
        volume = load_volume(half)
        assert (14, 512, 512) == volume.array.shape
        assert 18.5 == pytest.approx(shear_degrees(volume.grid), abs=0.1)
        assert spacing_mm == pytest.approx(volume.grid.spacing_mm[0], abs=1e-4)
        assert any("gantry tilt" in note for note in volume.notes)
        assert not any("SliceThickness" in note for note in volume.notes)
    write_nifti(volume, tmp_path / "volume.nii.gz")
    _, affine = read_nifti(tmp_path / "volume.nii.gz")
    np.testing.assert_allclose(affine, volume.grid.affine_lps, rtol=0, atol=1e-3)


def test_lossless_syntaxes_of_one_image_are_equal(shared_data: Path) -> None:
    """JPEG 2000, JPEG lossless, JPEG-LS and RLE of one series decode to the same values."""
    first, *others = (
        volume_of(shared_data / f"dicom2nifti/generic/{name}/001").array
        for name in ("compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle", "compressed")
    )
    assert first.std() > 1
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_encodings_of_one_enhanced_mr_are_equal(shared_data: Path) -> None:
    """Native, big endian, RLE, JPEG 2000 and JPEG-LS of ten frames decode to the same values."""
    first, *others = (
        decode_instance(read_header(shared_data / f"pydicom-data/emri_small{suffix}.dcm"))
        for suffix in ("", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless")
    )
    assert (10, 64, 64) == first.shape
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_fragmented_frames_are_equal_however_they_are_packed(shared_data: Path) -> None:
    """With and without offset table, in one fragment or many: the same two frames."""
    folder = shared_data / "misc/encapsulated/multi-frame"
    lossless = [path for path in sorted(folder.glob("CT0012.*")) if not re.search(r"baseline|\.81\.", path.name)]
    first, *others = (decode_instance(read_header(path)) for path in lossless)
    assert 7 == len(lossless)
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(
    ("seg", "truth", "n_voxels"),
    [
        ("liver.dcm", ("liver_seg.nrrd",), {1: 107098}),
        (
            "partial_overlaps.dcm",
            ("partial_overlaps-1.nrrd", "partial_overlaps-2.nrrd", "partial_overlaps-3.nrrd"),
            {1: 9602, 2: 11888, 3: 10743, 4: 6693, 5: 4713},
        ),
    ],
)
def test_segmentations_of_dcmqi_equal_their_label_maps(
    shared_data: Path, seg: str, truth: tuple[str, ...], n_voxels: dict[int, int]
) -> None:
    """A SEG and the label maps it was made from are the same voxels on the CT's grid."""
    folder = shared_data / "dcmqi/data/segmentations"
    volume = volume_of(shared_data / CT_3_SLICE)
    masks = read_masks(folder / seg, volume.grid, volume.frames)
    assert n_voxels == {number: int(mask.sum()) for number, mask in masks.items()}
    for name in truth:
        for label, mask in read_masks(folder / name, volume.grid).items():
            np.testing.assert_array_equal(mask, masks[label])


@pytest.mark.parametrize("name", ["noppv", "ppv5"])
def test_sparse_label_map_segmentations_are_read(shared_data: Path, name: str) -> None:
    """A LABELMAP SEG that leaves out frames has the voxels of its label map, with and without a padding value."""
    folder = shared_data / "dcmqi/data/segmentations"
    volume = volume_of(folder / "24x38x3/image")
    masks = read_masks(folder / f"sparse-labelmap-{name}.dcm", volume.grid, volume.frames)
    truth = read_masks(folder / f"sparse_labelmap_{name}_seg.nrrd", volume.grid)
    assert {1: 630} == {label: int(mask.sum()) for label, mask in masks.items()}
    np.testing.assert_array_equal(truth[1], masks[1])


@pytest.mark.parametrize(
    ("label", "volume_ml", "mean_hu"),
    [(5, 699.4, 89.3), (1, 249.2, 79.6)],
)
def test_organs_lie_where_their_hounsfield_units_are(
    shared_data: Path, label: int, volume_ml: float, mean_hu: float
) -> None:
    """A wrong flip would give -74.7 HU for the liver: the mean inside a mask tests orientation."""
    volume = volume_of(shared_data / "totalsegmentator_ct/example_ct_dicom")
    mask = read_masks(shared_data / "totalsegmentator_ct/example_seg_dicom.nii.gz", volume.grid)[label]
    assert volume_ml == pytest.approx(mask.sum() * volume.grid.voxel_volume_mm3 / 1000, rel=1e-3)
    assert mean_hu == pytest.approx(float(volume.array[mask].mean()), abs=0.1)


@pytest.mark.parametrize(
    ("folder", "truth"),
    [
        (CT_3_SLICE, "dcmqi/data/segmentations/liver_seg.nrrd"),
        ("totalsegmentator_ct/example_ct_dicom", "totalsegmentator_ct/example_seg_dicom.nii.gz"),
        ("ibsi_sts/dicom/STS_008/CT/image", "ibsi_sts/nifti/STS_008/CT_mask.nii.gz"),
        ("ibsi_sts/dicom/STS_025/PET/image", "ibsi_sts/nifti/STS_025/PET_mask.nii.gz"),
    ],
)
def test_voxels_lie_where_files_of_other_makers_say(shared_data: Path, folder: str, truth: str) -> None:
    """The eight corners of the volume are those of the NIfTI or NRRD on its grid, in whichever order its axes are."""
    grid = volume_of(shared_data / folder).grid
    path = shared_data / truth
    array, affine = (read_nrrd if path.suffix == ".nrrd" else read_nifti)(path)
    other = Grid(shape=(array.shape[0], array.shape[1], array.shape[2]), affine_lps=affine)

    def corners(one: Grid) -> NDArray[np.float64]:
        z, y, x = one.shape
        return one.to_world(np.array([(i, j, k) for i in (0, x - 1) for j in (0, y - 1) for k in (0, z - 1)], float))

    ours, theirs = (np.array(sorted(np.round(corners(one), 2).tolist())) for one in (grid, other))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("patient", ["STS_008", "STS_025"])
@pytest.mark.parametrize("modality", ["CT", "MR_T1", "PET"])
def test_affines_equal_the_masks_of_other_teams(shared_data: Path, patient: str, modality: str) -> None:
    """A NIfTI mask that others made on the native grid lies exactly on our grid."""
    volume = volume_of(shared_data / f"ibsi_sts/dicom/{patient}/{modality}/image")
    path = shared_data / f"ibsi_sts/nifti/{patient}/{modality}_mask.nii.gz"
    mask = read_masks(path, volume.grid)[1]
    assert volume.array.shape == mask.shape
    assert int(np.count_nonzero(np.asanyarray(nibabel.load(path).dataobj))) == int(mask.sum())  # type: ignore[attr-defined]
