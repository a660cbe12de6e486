from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.volume import Volume
from dicom_node.reading import read_masks, read_nifti, read_nrrd, write_nifti
from dicom_node.study import Frame
from tests.unit.imaging_case import rotation_about

AFFINE = np.array([[0.8, 0.0, 0.1, -40.0], [0.0, 0.6, -0.4, 12.0], [0.0, 0.0, 1.9, 700.0], [0, 0, 0, 1]], dtype=float)
GRID = Grid(shape=(4, 6, 5), affine_lps=AFFINE)
LABELS = np.zeros((4, 6, 5), dtype=np.int16)
LABELS[1, 2, 3] = 1
LABELS[1:3, 0:2, 0] = 2
"""No symmetry: each flip and each permutation of axes shows."""
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
FRAMES = tuple(
    Frame(
        sop_instance_uid=f"1.2.{z}",
        frame_number=1,
        position_mm=tuple(float(value) for value in AFFINE[:3, 3] + z * AFFINE[:3, 2]),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(0.6, 0.8),
        rows=6,
        columns=5,
        frame_of_reference_uid="1.3",
    )
    for z in range(4)
)


def item(**values: object) -> Dataset:
    """Return a data set with these attributes."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def segmentation(path: Path, frames: list[tuple[int, int, NDArray[Any]]], **header: object) -> Path:
    """Write a SEG of (slice, segment number, values (Y, X)) frames; bits are packed when binary."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SegmentationStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    pixels = np.stack([values for *_, values in frames])
    binary = header.get("SegmentationType", "BINARY") == "BINARY"
    bits = 1 if binary else 8
    content = np.packbits(pixels.ravel(), bitorder="little").tobytes() if binary else pixels.astype("u1").tobytes()
    attributes: dict[str, object] = {
        "SOPClassUID": SegmentationStorage,
        "SOPInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.3",
        "Modality": "SEG",
        "SegmentationType": "BINARY",
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "NumberOfFrames": len(frames),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "SegmentSequence": [item(SegmentNumber=number, SegmentLabel="x") for number in (1, 2, 3)],
        "SharedFunctionalGroupsSequence": [
            item(
                PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
                PixelMeasuresSequence=[item(PixelSpacing=[0.6, 0.8])],
            )
        ],
        "PerFrameFunctionalGroupsSequence": [
            item(
                PlanePositionSequence=[item(ImagePositionPatient=list(FRAMES[z].position_mm))],
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
            )
            for z, number, _ in frames
        ],
        "PixelData": content + b"\0" * (len(content) % 2),
    }
    for keyword, value in (attributes | header).items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def write_label_map(path: Path, array_xyz: NDArray[Any], affine_lps: NDArray[np.float64]) -> Path:
    """Write an array (x, y, z) as NIfTI or NRRD, by the ending."""
    if path.suffix == ".nrrd":
        header = {"space": "left-posterior-superior", "space directions": affine_lps[:3, :3].T}
        nrrd.write(str(path), array_xyz, header | {"space origin": affine_lps[:3, 3]})
    else:
        image: Any = nibabel.Nifti1Image(array_xyz, RAS @ affine_lps, dtype=array_xyz.dtype)
        nibabel.save(image, path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_label_maps_land_in_any_orientation(
    tmp_path: Path, ending: str, flips: tuple[bool, ...], axes: tuple[int, ...]
) -> None:
    """However a tool permuted and flipped the axes, each voxel comes back to its own place."""
    array, affine = LABELS.transpose(2, 1, 0), AFFINE.copy()
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    affine[:3, :3] = affine[:3, list(axes)]
    path = write_label_map(tmp_path / f"mask{ending}", array.transpose(axes), affine)
    masks = read_masks(path, GRID)
    assert {1, 2} == set(masks)
    for label, mask in masks.items():
        np.testing.assert_array_equal(LABELS == label, mask)


def test_a_cropped_mask_is_padded(tmp_path: Path) -> None:
    """A mask on a part of the grid is placed by its origin."""
    affine = AFFINE.copy()
    affine[:3, 3] = GRID.to_world(np.array([0.0, 0.0, 1.0]))
    path = write_label_map(tmp_path / "mask.nii", LABELS[1:3].transpose(2, 1, 0), affine)
    np.testing.assert_array_equal(LABELS == 2, read_masks(path, GRID)[2])


def _moved(x_mm: float) -> NDArray[np.float64]:
    affine = AFFINE.copy()
    affine[0, 3] += x_mm
    return affine


def _turned(degrees: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_about(np.array([0.0, 0.0, 1.0]), np.radians(degrees))
    return matrix


@pytest.mark.parametrize(
    ("affine", "reason"),
    [
        (
            _moved(0.4),
            "grid: origin: it lies 0.40 mm beside a voxel of the image .-0.50, .0.00, .0.00 voxels in x, y, z",
        ),
        (
            AFFINE @ np.diag([2, 1, 1, 1]),
            "grid: spacing: its voxels are 1.6 x 0.6 x 1.9442 mm apart, the image's 0.8 x",
        ),
        (AFFINE @ np.diag([1.05, 1, 1, 1]), "grid: spacing: its voxels are 0.84 x 0.6 x 1.9442 mm apart"),
        (AFFINE @ np.diag([1, 1, 0.5, 1]), "grid: spacing: its voxels are 0.8 x 0.6 x 0.97211 mm apart"),
        (AFFINE @ _turned(4.0), "grid: directions: its axes are turned by"),
        (_moved(0.4) @ _turned(4.0) @ np.diag([2, 1, 1, 1]), "directions: .* degrees; spacing: .*; origin: .* 0.40 mm"),
        (_moved(4 * 0.8), "marks voxels outside the image"),
        (_moved(-4 * 0.8), "marks voxels outside the image"),
    ],
)
def test_a_mask_off_the_grid_is_refused(tmp_path: Path, affine: NDArray[np.float64], reason: str) -> None:
    """Nothing is resampled in silence, and no voxel is lost."""
    path = write_label_map(tmp_path / "mask.nii", LABELS.transpose(2, 1, 0), affine)
    with pytest.raises(GeometryError, match=reason):
        read_masks(path, GRID)


def test_fractions_are_no_label_map(tmp_path: Path) -> None:
    """Probabilities are refused instead of being cut somewhere."""
    path = write_label_map(tmp_path / "mask.nii", np.full((5, 6, 4), 0.3, np.float32), AFFINE)
    with pytest.raises(UndecodableError, match="fractions"):
        read_masks(path, GRID)


def test_binary_segments_are_placed_by_position(tmp_path: Path) -> None:
    """Frames in any order, overlapping segments, and a segment without a frame, which is an empty mask."""
    first, second = LABELS[1] > 0, LABELS[2] > 0
    path = segmentation(tmp_path / "seg.dcm", [(2, 2, second), (1, 1, first), (1, 2, first)])
    masks = read_masks(path, GRID, FRAMES)
    expected = np.zeros((3, *GRID.shape), dtype=bool)
    expected[0, 1], expected[1, 1], expected[1, 2] = first, first, second
    assert [1, 2, 3] == sorted(masks)
    for number, mask in masks.items():
        np.testing.assert_array_equal(expected[number - 1], mask)


def test_a_turned_segmentation_is_turned_back(tmp_path: Path) -> None:
    """A SEG whose rows run the other way is placed by its orientation."""
    path = segmentation(tmp_path / "seg.dcm", [(1, 1, np.fliplr(LABELS[1] > 0))])
    dataset = dcmread(path)
    shared, own = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
    own.PlanePositionSequence[0].ImagePositionPatient = GRID.to_world(np.array([4.0, 0.0, 1.0])).tolist()
    dataset.save_as(path)
    np.testing.assert_array_equal(LABELS[1] > 0, read_masks(path, GRID)[1][1])


def test_fractional_segments_are_cut_at_half(tmp_path: Path) -> None:
    """A voxel belongs to the segment above half of Maximum Fractional Value."""
    values = np.zeros((6, 5))
    values[0, :4] = (50, 100, 101, 200)
    path = segmentation(
        tmp_path / "seg.dcm", [(0, 1, values)], SegmentationType="FRACTIONAL", MaximumFractionalValue=200
    )
    assert [False, False, True, True, False] == read_masks(path, GRID)[1][0, 0].tolist()


def test_label_map_segments_are_read(tmp_path: Path) -> None:
    """A LABELMAP SEG gives a mask for each value but the background."""
    frames = [(z, 0, np.where(LABELS[z] == 0, 9, LABELS[z])) for z in range(4)]
    path = segmentation(tmp_path / "seg.dcm", frames, SegmentationType="LABELMAP", PixelPaddingValue=9)
    masks = read_masks(path, GRID)
    assert {1, 2} == set(masks)
    np.testing.assert_array_equal(LABELS == 2, masks[2])


@pytest.mark.parametrize(
    ("header", "error", "reason"),
    [
        ({"FrameOfReferenceUID": "1.4"}, GeometryError, "another Frame of Reference"),
        ({"SegmentationType": None}, UndecodableError, "no segmentation"),
        ({"SharedFunctionalGroupsSequence": []}, GeometryError, "does not say where"),
        ({"SegmentSequence": []}, UndecodableError, "names segment 1, which is not described"),
        ({"PixelData": b""}, UndecodableError, "pixel data is shorter"),
    ],
)
def test_a_bad_segmentation_is_refused(
    tmp_path: Path, header: dict[str, object], error: type[Exception], reason: str
) -> None:
    """What a SEG lacks is said in words."""
    path = segmentation(tmp_path / "seg.dcm", [(1, 1, LABELS[1] > 0)], **header)
    with pytest.raises(error, match=reason):
        read_masks(path, GRID, FRAMES)


def test_write_nifti_comes_back(tmp_path: Path) -> None:
    """Array and LPS affine of a sheared volume survive NIfTI, and another reader sees RAS."""
    array = np.random.default_rng(3).normal(size=GRID.shape).astype(np.float32)
    path = tmp_path / "volume.nii.gz"
    write_nifti(Volume(array=array, grid=GRID, frames=FRAMES, modality="MR"), path)
    read, affine = read_nifti(path)
    np.testing.assert_array_equal(array, read)
    np.testing.assert_allclose(affine, AFFINE, rtol=0, atol=1e-4)  # NIfTI keeps float32
    image: Any = nibabel.load(path)
    np.testing.assert_allclose(image.affine, RAS @ AFFINE, rtol=0, atol=1e-4)
    assert "mm" == image.header.get_xyzt_units()[0]


@pytest.mark.parametrize(
    "space", ["right-anterior-superior", "RAS", "left-posterior-superior", "LPS", "left-anterior-superior"]
)
def test_nrrd_spaces_are_told_apart(tmp_path: Path, space: str) -> None:
    """The space named in the header decides the signs, whatever its spelling."""
    signs = {"r": -1, "l": 1, "a": -1, "p": 1, "s": 1}
    initials = [word[0].lower() for word in (space.split("-") if "-" in space else space)]
    to_space = np.diag([*(signs[initial] for initial in initials), 1])
    stored = to_space @ AFFINE
    header = {"space": space, "space directions": stored[:3, :3].T, "space origin": stored[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), LABELS.transpose(2, 1, 0), header)
    array, affine = read_nrrd(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(LABELS, array)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({}, "no three axes with directions"),
        ({"space": "scanner-xyz", "space directions": np.eye(3), "space origin": np.zeros(3)}, "named patient space"),
    ],
)
def test_nrrd_without_a_patient_space_is_refused(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    """Voxels whose place is not known are not guessed at."""
    nrrd.write(str(tmp_path / "a.nrrd"), LABELS, header)
    with pytest.raises(GeometryError, match=reason):
        read_nrrd(tmp_path / "a.nrrd")


@pytest.mark.parametrize("read", [read_nifti, read_nrrd], ids=["NIfTI", "NRRD"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd"])
@pytest.mark.parametrize("content", [b"", b"hello", b"NRRD0005\ntype: int\n", bytes(400)])
def test_broken_files_are_refused(tmp_path: Path, read: Callable[[Path], object], name: str, content: bytes) -> None:
    """Any bytes give a reason and no other error."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UndecodableError, match="cannot be read as"):
        read(tmp_path / name)


def test_nifti_without_an_affine_is_refused(tmp_path: Path) -> None:
    """Neither sform nor qform: where the voxels lie is not known."""
    image: Any = nibabel.Nifti1Image(LABELS, None)
    nibabel.save(image, tmp_path / "a.nii")
    with pytest.raises(GeometryError, match="neither sform nor qform"):
        read_nifti(tmp_path / "a.nii")
