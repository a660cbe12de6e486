"""Label maps, contours, layers and structure sets become the masks that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.findings import Mask
from dicom_node.imaging.regions import from_contours, split_labels
from dicom_node.reading import read_masks, read_nrrd, read_regions
from dicom_node.reading.placement import place
from tests.unit.imaging_case import make_grid, make_volume, rotation_about
from tests.unit.test_reading_masks import AFFINE, FRAMES, GRID, LABELS, segmentation

Polygon = NDArray[np.float64]


@pytest.mark.parametrize(
    ("dtype", "labels"),
    [(dtype, (1, 2)) for dtype in ("u1", "<i2", ">i2", "<i8")]
    + [("u1", (3, 200)), (">i2", (-5, 2)), ("<i8", (-5, 100_000)), ("<u4", (7, 4_000_000_000))],
)
def test_labels_are_split(dtype: str, labels: tuple[int, int]) -> None:
    """Each label has its voxels at their place, cropped, whatever the numbers and the bytes."""
    array = np.zeros((4, 5, 6), dtype=dtype)
    array[1:3, 2, 1:4], array[3, 4, 5] = labels
    masks = split_labels(array)
    assert sorted(labels) == sorted(masks)
    assert ((1, 2, 1), (2, 1, 3)) == (masks[labels[0]].offset, masks[labels[0]].array.shape)
    for label, mask in masks.items():
        np.testing.assert_array_equal(array == label, mask.on_grid(array.shape))


def _box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _on(mask: Mask | None, shape: tuple[int, int, int] = (1, 10, 10)) -> NDArray[np.bool_]:
    return np.zeros(shape, dtype=bool) if mask is None else mask.on_grid(shape)


def test_a_box_marks_the_centres_within() -> None:
    """Half-open: the left and the upper edge belong to it, the right and the lower do not."""
    expected = np.zeros((1, 10, 10), dtype=bool)
    expected[0, 2:5, 1:4] = True
    np.testing.assert_array_equal(expected, _on(from_contours({0: [_box(1, 2, 4, 5)]})))
    np.testing.assert_array_equal(expected, _on(from_contours({0: [_box(0.5, 1.5, 3.5, 4.5)[::-1]]})))
    assert from_contours({0: [_box(1.1, 1.1, 1.9, 1.9)]}) is None


def test_a_contour_within_another_is_a_hole() -> None:
    """Even-odd: hole, and an island in the hole; a keyhole says the same with one contour."""
    rings = [_box(0.5, 0.5, 8.5, 8.5), _box(2.5, 2.5, 6.5, 6.5), _box(3.5, 3.5, 5.5, 5.5)]
    expected = np.zeros((1, 10, 10), dtype=bool)
    expected[0, 1:9, 1:9], expected[0, 3:7, 3:7], expected[0, 4:6, 4:6] = True, False, True
    np.testing.assert_array_equal(expected, _on(from_contours({0: rings})))
    keyhole = np.concatenate([rings[0], rings[0][:1], rings[1], rings[1][:1]])
    expected[0, 4:6, 4:6] = False
    np.testing.assert_array_equal(expected, _on(from_contours({0: [keyhole]})))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-1, 9), st.floats(-1, 9)), min_size=3, max_size=9).map(np.array),
        min_size=1,
        max_size=3,
    )
)
def test_filling_agrees_with_counting_crossings(polygons: list[Polygon]) -> None:
    """For any polygons, self-crossing ones too: a ray from each centre crosses an odd number of edges."""
    mask = from_contours({0: polygons})
    shape = (1, 14, 14)
    if mask is not None:  # into a frame of two voxels all round
        mask = Mask(offset=(0, mask.offset[1] + 2, mask.offset[2] + 2), array=mask.array)
    filled = _on(mask, shape)
    expected = np.zeros(shape, dtype=bool)
    for row in range(-2, 12):
        for column in range(-2, 12):
            crossings = 0
            for polygon in polygons:
                for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                    if min(y0, y1) <= row < max(y0, y1):
                        upper, lower = sorted([(y0, x0), (y1, x1)])
                        at = upper[1] + (row - upper[0]) / (lower[0] - upper[0]) * (lower[1] - upper[1])
                        crossings += at <= column
            expected[0, row + 2, column + 2] = crossings % 2
    np.testing.assert_array_equal(expected, filled)


def _layered(path: Path, layers: NDArray[Any], **header: object) -> Path:
    """Write layers (L, Z, Y, X) as Slicer does: the list axis first."""
    directions = np.vstack([np.full(3, np.nan), AFFINE[:3, :3].T])
    space = {"space": "left-posterior-superior", "space directions": directions, "space origin": AFFINE[:3, 3]}
    kinds = {"kinds": ["list", "domain", "domain", "domain"]}
    nrrd.write(str(path), layers.transpose(0, 3, 2, 1), space | kinds | header)
    return path


def test_layers_of_slicer_may_overlap(tmp_path: Path) -> None:
    """Two layers, the label 1 in both: three segments with their names, the second 1 numbered after the others."""
    second = np.zeros_like(LABELS)
    second[1:3, 2, 3] = 1
    names = {
        **{"Segment0_LabelValue": "1", "Segment0_Layer": "0", "Segment0_Name": "Liver"},
        **{"Segment1_LabelValue": "2", "Segment1_Layer": "0", "Segment1_Name": "Spleen"},
        **{"Segment2_LabelValue": "1", "Segment2_Layer": "1", "Segment2_Name": "Lesion"},
    }
    path = _layered(tmp_path / "a.seg.nrrd", np.stack([LABELS, second]), **names)
    regions = read_regions(path, GRID)
    assert [(1, "Liver"), (2, "Spleen"), (3, "Lesion")] == [(one.label, one.name) for one in regions]
    for region, expected in zip(regions, (LABELS == 1, LABELS == 2, second == 1), strict=True):
        assert region.mask is not None
        np.testing.assert_array_equal(expected, region.mask.on_grid(GRID.shape))
    with pytest.raises(GeometryError, match="2 layers"):
        read_nrrd(path)


def test_one_layer_is_a_label_map(tmp_path: Path) -> None:
    """A list axis of one layer is read as if it were not there."""
    path = _layered(tmp_path / "a.seg.nrrd", LABELS[None])
    np.testing.assert_array_equal(LABELS == 2, read_masks(path, GRID)[2])
    np.testing.assert_array_equal(LABELS, read_nrrd(path)[0])


def test_segments_have_their_names(tmp_path: Path) -> None:
    """Segment Label of a SEG; a segment without a voxel has no mask."""
    regions = read_regions(segmentation(tmp_path / "seg.dcm", [(1, 1, LABELS[1] > 0)]), GRID, FRAMES)
    assert [(1, "x", False), (2, "x", True), (3, "x", True)] == [(r.label, r.name, r.mask is None) for r in regions]


def test_a_hundred_segments_cost_no_hundred_volumes(tmp_path: Path) -> None:
    """Each region is as large as what it marks."""
    array = np.zeros((40, 64, 64), dtype=np.uint8)
    for label in range(1, 101):
        array[label % 40, label % 60 : label % 60 + 3, label % 61] = label
    grid = make_grid(array.shape)
    header = {"space": "LPS", "space directions": grid.affine_lps[:3, :3].T, "space origin": grid.affine_lps[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), array.transpose(2, 1, 0), header)
    regions = read_regions(tmp_path / "a.nrrd", grid)
    assert 100 == len(regions)
    assert sum(region.mask.array.size for region in regions if region.mask is not None) < array.size


def structure_set(path: Path, structures: dict[str, list[tuple[str, Any]]], *, frame_of_reference: str = "1.3") -> Path:
    """Write an RT Structure Set of named lists of (geometric type, points (n, 3) in LPS mm)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, "1.2.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, "1.2.4", "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), 1):
        roi, sequence = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = str(number), name, frame_of_reference
        sequence.ReferencedROINumber, sequence.ContourSequence = str(number), []
        for kind, points in contours:
            contour = Dataset()
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = str(len(points))
            contour.ContourData = [f"{value:.6f}" for value in np.ravel(points)]
            sequence.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(sequence)
    dataset.save_as(path)
    return path


OBLIQUE = make_grid((6, 12, 14), (0.7, 0.9, 2.1), rotation=rotation_about(np.array([1.0, 2.0, 3.0]), 0.8), shear=0.2)


def _points(polygon: Polygon, place: float) -> NDArray[np.float64]:
    return OBLIQUE.to_world(np.column_stack([polygon, np.full(len(polygon), place)]))


def test_contours_are_filled_on_oblique_sheared_grids(tmp_path: Path) -> None:
    """Patient space to voxels: a box with a hole on two slices, a copy of a contour, a point, and a name."""
    outer, hole = _box(1.5, 1.5, 10.5, 8.5), _box(3.5, 3.5, 6.5, 6.5)
    closed = [("CLOSED_PLANAR", _points(polygon, place)) for place in (1, 2) for polygon in (outer, hole, outer)]
    structures = {"Liver": closed, "Isocentre": [("POINT", _points(outer[:1], 1))]}
    frames = make_volume(np.zeros(OBLIQUE.shape), OBLIQUE).frames
    path = structure_set(tmp_path / "rs.dcm", structures, frame_of_reference="2.25.9")
    (region,) = read_regions(path, OBLIQUE, frames)
    expected = np.zeros(OBLIQUE.shape, dtype=bool)
    expected[1:3, 2:9, 2:11], expected[1:3, 4:7, 4:7] = True, False
    assert (1, "Liver") == (region.label, region.name)
    assert region.mask is not None
    np.testing.assert_array_equal(expected, region.mask.on_grid(OBLIQUE.shape))


@pytest.mark.parametrize(
    ("kind", "polygon", "place", "error", "reason"),
    [
        ("CLOSED_PLANAR", _box(1, 1, 5, 5), 1.5, GeometryError, "does not lie in a slice of the image: .* 0.50 of"),
        ("CLOSED_PLANAR", _box(1, 1, 5, 5), 6, GeometryError, "Liver marks voxels outside the image"),
        ("CLOSED_PLANAR", _box(-3, 1, 5, 5), 1, GeometryError, "Liver marks voxels outside the image"),
        ("POINT", _box(1, 1, 5, 5)[:1], 1, UndecodableError, "no closed contour"),
    ],
)
def test_contours_that_say_nothing_about_voxels_are_refused(
    tmp_path: Path, kind: str, polygon: Polygon, place: float, error: type[Exception], reason: str
) -> None:
    """Between slices, outside the image, or no contour at all."""
    path = structure_set(tmp_path / "rs.dcm", {"Liver": [(kind, _points(polygon, place))]})
    with pytest.raises(error, match=reason):
        read_regions(path, OBLIQUE)


def test_contours_across_slices_are_refused(tmp_path: Path) -> None:
    """A sagittal contour on an axial image."""
    points = OBLIQUE.to_world(np.array([(3.0, 2, 0), (3, 8, 0), (3, 8, 4), (3, 2, 4)]))
    path = structure_set(tmp_path / "rs.dcm", {"Liver": [("CLOSED_PLANAR", points)]})
    with pytest.raises(GeometryError, match="does not lie in a slice"):
        read_regions(path, OBLIQUE)


def test_structures_of_another_frame_of_reference_are_refused(tmp_path: Path) -> None:
    """The same numbers in another patient space are another place."""
    path = structure_set(tmp_path / "rs.dcm", {"Liver": [("CLOSED_PLANAR", _points(_box(1, 1, 5, 5), 1))]})
    frames = make_volume(np.zeros(OBLIQUE.shape), OBLIQUE).frames
    with pytest.raises(GeometryError, match="another Frame of Reference"):
        read_regions(path, OBLIQUE, frames)


@pytest.mark.parametrize("affine", [AFFINE @ np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan)])
def test_an_affine_without_volume_is_refused(affine: NDArray[np.float64]) -> None:
    """Where nothing can lie, nothing is placed."""
    with pytest.raises(GeometryError, match="affine without volume"):
        place(affine, GRID.shape, GRID, "mask")
