"""Cases from folders, parts without leaks, the card, and augmentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from dicom_node.errors import GeometryError, UsageError
from dicom_node.reading import write_nifti
from dicom_node.reading.synthetic import write_series
from model_build.cli import app
from model_build.data.augment import Augmentation, augment
from model_build.data.card import data_card, survey
from model_build.data.cases import ClassLabel, MaskLabel, find_cases
from model_build.data.split import Item, leaks, slice_digests, split
from model_build.data.structures import contour_masks
from model_build.volumes import volume_from_array

AFFINE = np.array([[1.0, 0, 0, -10], [0, 1.5, 0, -20], [0, 0, 2.0, 30], [0, 0, 0, 1]])


def _image(seed: int, shape: tuple[int, int, int] = (4, 12, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 500, shape).astype(np.float32)


def _series(folder: Path, seed: int, patient: str, *, array: np.ndarray | None = None, **headers: object) -> str:
    uid = f"2.25.{seed}"
    write_series(
        folder,
        _image(seed) if array is None else array,
        AFFINE,
        headers={"PatientID": patient, **headers},
        study_instance_uid=f"{uid}.1",
        series_instance_uid=f"{uid}.2",
        frame_of_reference_uid=f"{uid}.3",
        uid_root=uid,
    )
    return f"{uid}.2"


def test_classes_come_from_folders_or_from_a_table(tmp_path: Path) -> None:
    """Both ways name the same cases; a row that names nothing is told, and so is an image that no row names."""
    first = _series(tmp_path / "sick" / "a", 1, "P1")
    second = _series(tmp_path / "well" / "b", 2, "P2")
    cases, problems = find_cases(tmp_path, folder_classes=True)
    assert {first: ClassLabel(name="sick"), second: ClassLabel(name="well")} == {c.id: c.label for c in cases}
    assert [] == problems
    table = tmp_path / "labels.csv"
    table.write_text("patient_id,label\nP1,sick\nP9,well\n", encoding="utf-8")
    cases, problems = find_cases(tmp_path, classes=table)
    assert [ClassLabel(name="sick"), None] == [case.label for case in cases]
    assert [("labels.csv:3", "names no image that is here")] == [(each.what, each.reason) for each in problems]
    table.write_text("name,label\nP1,sick\n", encoding="utf-8")
    with pytest.raises(UsageError, match="needs a column label and one of"):
        find_cases(tmp_path, classes=table)


def test_nifti_pairs_are_found_by_folder_and_by_name(tmp_path: Path) -> None:
    """`labels/NAME`, nnU-Net's channel suffix and `NAME_seg` all work; a label map alone is told."""
    volume = volume_from_array(_image(1), AFFINE, modality="")
    mask = volume_from_array((_image(1) > 300).astype(np.float32), AFFINE, modality="")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    write_nifti(volume, tmp_path / "images" / "one_0000.nii.gz")
    write_nifti(mask, tmp_path / "labels" / "one.nii.gz")
    write_nifti(volume, tmp_path / "two.nii")
    write_nifti(mask, tmp_path / "two_seg.nii")
    write_nifti(mask, tmp_path / "three_mask.nii")
    cases, problems = find_cases(tmp_path)
    assert ["images/one_0000.nii.gz", "two.nii"] == [case.id for case in cases]
    assert ["three_mask.nii"] == [each.what for each in problems]
    for case in cases:
        loaded = case.load()
        np.testing.assert_array_equal(volume.array, loaded.array)
        np.testing.assert_allclose(volume.grid.affine_lps, loaded.grid.affine_lps, atol=1e-5)
        np.testing.assert_array_equal(volume.array > 300, case.masks(loaded)["1"])


def test_left_handed_array_becomes_a_right_handed_volume() -> None:
    """The slices are turned over with the affine: every voxel keeps its place in the patient."""
    affine = AFFINE @ np.diag([1.0, 1.0, -1.0, 1.0])
    array = _image(3)
    volume = volume_from_array(array, affine, modality="CT")
    assert np.linalg.det(volume.grid.affine_lps) > 0
    for z, y, x in ((0, 0, 0), (3, 5, 7)):
        place = volume.grid.to_voxel(np.array([(affine @ (x, y, z, 1))[:3]]))[0]
        assert array[z, y, x] == volume.array[tuple(np.rint(place[::-1]).astype(int))]


def _structure(*contours: list[tuple[float, float, float]]) -> Dataset:
    header, names, region = Dataset(), Dataset(), Dataset()
    names.ROINumber, names.ROIName = 3, "Lesion"
    region.ReferencedROINumber = 3
    region.ContourSequence = []
    for points in contours:
        item = Dataset()
        item.ContourGeometricType = "CLOSED_PLANAR"
        item.ContourData = [value for point in points for value in point]
        region.ContourSequence.append(item)
    header.StructureSetROISequence, header.ROIContourSequence = [names], [region]
    return header


def _square(low: float, high: float, z: float) -> list[tuple[float, float, float]]:
    """Of voxel indices; -10, -20 and 30 is the corner of the grid, 1, 1.5 and 2 mm its steps."""
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return [(x - 10, 1.5 * y - 20, z) for x, y in corners]


def test_contour_becomes_the_voxels_inside_and_a_hole_is_left_out() -> None:
    """Voxels 2 to 7 without 4 and 5 of the second slice; the ROI's name is the label."""
    volume = volume_from_array(_image(1), AFFINE, modality="CT")
    masks = contour_masks(_structure(_square(1.5, 7.5, 32.0), _square(3.5, 5.5, 32.0)), volume)
    expected = np.zeros((4, 12, 10), dtype=bool)
    expected[1, 2:8, 2:8] = True
    expected[1, 4:6, 4:6] = False
    np.testing.assert_array_equal(expected, masks["Lesion"])


@pytest.mark.parametrize("z", [31.0, 60.0])
def test_contour_between_or_beyond_slices_is_refused(z: float) -> None:
    """It belongs to another image."""
    with pytest.raises(GeometryError, match="lies in no slice"):
        contour_masks(_structure(_square(1.5, 7.5, z)), volume_from_array(_image(1), AFFINE, modality="CT"))


@pytest.mark.data
def test_foreign_segmentation_finds_its_images(shared_data: Path) -> None:
    """dcmqi's SEG of three CT slices refers to their series; its mask has the voxels of the NRRD beside it."""
    from dicom_node.reading import read_masks

    folder = shared_data / "dcmqi" / "data" / "segmentations" / "24x38x3"
    cases, _ = find_cases(folder)
    (case,) = [each for each in cases if each.facts.modality == "CT" and len(each.images) == 3]
    assert isinstance(case.label, MaskLabel)
    volume = case.load()
    (expected,) = read_masks(folder / "nrrd" / "label.nrrd", volume.grid).values()
    np.testing.assert_array_equal(expected, next(iter(case.masks(volume).values())))


def _items(n_patients: int, per_patient: int, classes: int = 1) -> list[Item]:
    return [
        Item(
            id=f"c{p}.{k}", patient=f"p{p}", study=f"s{p}.{k}", content=frozenset([f"d{p}.{k}"]), group=str(p % classes)
        )
        for p in range(n_patients)
        for k in range(per_patient)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3))
def test_split_never_leaks(n: int, per_patient: int, seed: int, classes: int) -> None:
    """Every case is in one part, no patient in two, whatever the numbers, and order does not matter."""
    items = _items(n, per_patient, classes)
    parts = split(items, seed=seed)
    assert [] == leaks(items, parts.parts)
    assert sorted(item.id for item in items) == sorted(case for cases in parts.parts.values() for case in cases)
    assert parts == split(items[::-1], seed=seed)


def test_split_keeps_shares_and_classes() -> None:
    """100 patients of two classes: 70, 15, 15, give or take two, and each part half and half; seeds differ."""
    items = _items(100, 1, 2)
    parts = split(items, seed=1)
    groups = {item.id: item.group for item in items}
    for part, expected in (("train", 70), ("validation", 15), ("test", 15)):
        assert abs(len(parts.parts[part]) - expected) <= 2
        assert abs(sum(groups[case] == "0" for case in parts.parts[part]) - expected / 2) <= 1.5
    assert parts.parts != split(items, seed=2).parts


def test_copies_stay_together_whatever_they_are_called() -> None:
    """Cases that share a slice are one group, through a chain too."""
    items = [
        Item(id=str(k), patient=f"p{k}", study=f"s{k}", content=frozenset([f"d{k}", f"d{k + 1}"])) for k in range(30)
    ]
    parts = split(items, seed=3)
    assert [30] == [len(cases) for cases in parts.parts.values() if cases]


@pytest.mark.parametrize("tie", ["patient", "study", "content"])
def test_leak_is_found_and_named(tie: str) -> None:
    """Two cases that share a patient, a study or a slice lie in two parts; a case may also lie in none, or in two."""
    values = {"patient": ("p1", "p2"), "study": ("s1", "s2"), "content": (frozenset("a"), frozenset("b"))}
    values[tie] = (values[tie][0],) * 2
    items = [Item(id=str(k), **{name: pair[k] for name, pair in values.items()}) for k in range(2)]  # type: ignore[arg-type]
    (found,) = leaks(items, {"train": ["0"], "test": ["1"]})
    assert {"patient": "one patient", "study": "one study", "content": "equal slices"}[tie] in found
    assert any("no part" in each for each in leaks(items, {"train": ["0"]}))
    assert any("train" in each and "test" in each for each in leaks(items, {"train": ["0", "1"], "test": ["1"]}))


def test_empty_slices_tie_nothing() -> None:
    """Air above the head is equal in all heads; one differing pixel makes another slice."""
    array = np.zeros((3, 4, 4), dtype=np.float32)
    array[1, 2, 2] = 1
    assert 1 == len(slice_digests(array))
    other = array.copy()
    other[1, 0, 0] = 1
    assert not slice_digests(array) & slice_digests(other)


def test_card_counts_and_names_no_patient(tmp_path: Path) -> None:
    """Classes, scanners, a copy under another name, an unreadable series; never the patient's identifier."""
    for seed in range(6):
        _series(tmp_path / "ab"[seed % 2] / str(seed), seed + 1, f"SECRET{seed}", ManufacturerModelName=f"M{seed % 2}")
    _series(tmp_path / "a" / "copy", 77, "SECRET-OTHER", array=_image(1))
    _series(tmp_path / "a" / "one", 78, "SECRET8", array=_image(78, (1, 12, 10)))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["data", str(tmp_path), "--folder-classes", "--json", "--out", str(out)])
    card = json.loads(done.stdout)
    assert (1, 7, 7) == (done.exit_code, card["cases"], card["patients"])
    assert {"a": 4, "b": 3} == {name: each["cases"] for name, each in card["labels"].items()}
    assert {"Synthetic M0": 3, "Synthetic M1": 3, "Synthetic Synthetic": 1} == card["scanners"]
    assert [["2.25.1.2", "2.25.77.2", "4"]] == card["duplicates"]
    assert ["2.25.78.2"] == [each["what"] for each in card["problems"]]
    assert [] == card["split"]["leaks"]
    assert [2.0, 1.5, 1.0] == card["spacing_mm"]["median"]
    parts = json.loads((out / "split.json").read_text(encoding="utf-8"))["parts"]
    assert 1 == sum({"2.25.1.2", "2.25.77.2"} <= set(cases) for cases in parts.values())
    for path in out.iterdir():
        assert "SECRET" not in path.read_text(encoding="utf-8")
    assert "2.25.78.2" in (out / "card.md").read_text(encoding="utf-8")


def test_case_without_a_label_belongs_to_no_part(tmp_path: Path) -> None:
    """It is counted and told."""
    _series(tmp_path, 1, "P1")
    surveys, problems = survey(find_cases(tmp_path)[0])
    assert 1 == data_card(surveys, problems, None)["cases"]
    assert ["has no label; it is counted and belongs to no part"] == [each.reason for each in problems]


def _ball() -> tuple[np.ndarray, np.ndarray]:
    z, y, x = np.meshgrid(*(np.arange(n) - n / 2 + 0.5 for n in (20, 32, 32)), indexing="ij")
    label = ((2 * z) ** 2 + (y - 3) ** 2 + x**2 < 64).astype(np.uint8)
    return label.astype(np.float32) * 2 - 1, label


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_label_moves_with_its_image(seed: int) -> None:
    """Turned, mirrored, scaled and cut, the label still lies where the image is bright; the seed decides."""
    image, label = _ball()
    how = Augmentation(flip_axes=(0, 1, 2), rotate_degrees=25, scale=(0.85, 1.2), crop=(16, 28, 28))
    moved, there = augment(np.random.default_rng(seed), image, label, how, spacing_mm=(2.0, 1.0, 1.0))
    assert there is not None
    assert (16, 28, 28) == moved.shape == there.shape
    assert {0, 1} >= set(np.unique(there).tolist())
    assert np.mean((moved > 0) == (there == 1)) > 0.985
    again, _ = augment(np.random.default_rng(seed), image, label, how, spacing_mm=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(moved, again)


def test_scale_is_in_mm_and_turning_keeps_the_volume() -> None:
    """Twice as large is eight times the volume; an anisotropic ball stays a ball when it is turned."""
    image, label = _ball()
    rng = np.random.default_rng(1)
    half, there = augment(rng, image, label, Augmentation(scale=(0.5, 0.5)))
    assert there is not None
    assert pytest.approx(1 / 8, rel=0.15) == there.sum() / label.sum()
    for seed in range(8):
        _, turned = augment(
            np.random.default_rng(seed), image, label, Augmentation(rotate_degrees=90), spacing_mm=(2.0, 1.0, 1.0)
        )
        assert turned is not None
        assert pytest.approx(float(label.sum()), rel=0.12) == float(turned.sum())
    assert half.shape == image.shape


def test_intensities_change_and_the_label_does_not() -> None:
    """Nothing asked, nothing changed; gain, shift, gamma and noise within what was asked."""
    image, label = _ball()
    same, there = augment(np.random.default_rng(0), image, label, Augmentation())
    np.testing.assert_array_equal(image, same)
    np.testing.assert_array_equal(label, there)
    other, there = augment(
        np.random.default_rng(0), image, label, Augmentation(shift=0.1, gain=(0.9, 1.1), gamma=(0.7, 1.4), noise=0.05)
    )
    assert 0 < np.abs(other - image).max() < 0.1 + 0.1 + 0.3
    np.testing.assert_array_equal(label, there)
    with pytest.raises(ValueError, match="a label"):
        augment(np.random.default_rng(0), image, label[1:], Augmentation())
    with pytest.raises(ValueError, match="cannot be cut out"):
        augment(np.random.default_rng(0), image, label, Augmentation(crop=(40, 8, 8)))
