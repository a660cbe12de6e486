"""Components, what is kept of them, and outlines."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.findings import Mask
from dicom_node.imaging import crop_mask
from dicom_node.imaging.mask import components, filled, mean_contrast, outline, union
from tests.unit.imaging_case import make_grid, make_volume


def _mask(array: np.ndarray) -> Mask:
    mask = crop_mask(array.astype(bool))
    assert mask is not None
    return mask


def test_cropped_mask_is_the_same_on_the_grid() -> None:
    """Cropping loses nothing and keeps nothing empty around it."""
    full = np.zeros((7, 8, 9), dtype=bool)
    full[2:4, 3, 5:8] = True
    mask = _mask(full)
    assert mask.offset == (2, 3, 5)
    assert mask.array.shape == (2, 1, 3)
    assert np.array_equal(full, mask.on_grid((7, 8, 9)))


def test_empty_mask_is_none() -> None:
    """Nothing found has no box."""
    assert crop_mask(np.zeros((3, 3, 3), dtype=bool)) is None


@pytest.mark.parametrize(
    ("connectivity", "second", "expected"),
    [
        (6, (1, 0, 0), 1),
        (6, (1, 1, 0), 2),
        (18, (1, 1, 0), 1),
        (18, (1, 1, 1), 2),
        (26, (1, 1, 1), 1),
        (26, (2, 0, 0), 2),
    ],
)
def test_connectivity_counts_neighbours(connectivity: int, second: tuple[int, int, int], expected: int) -> None:
    """6: faces; 18: and edges; 26: and corners."""
    array = np.zeros((3, 3, 3), dtype=bool)
    array[0, 0, 0] = array[second] = True
    assert expected == len(components(_mask(array), connectivity))  # type: ignore[arg-type]


def test_components_come_largest_first_and_without_small_ones() -> None:
    """Order by size; fewer voxels than asked for are no component."""
    array = np.zeros((4, 4, 12), dtype=bool)
    array[0, 0, 0:2] = array[0, 0, 4:9] = array[3, 3, 11] = True
    found = components(_mask(array), 26, min_voxels=2)
    assert [5, 2] == [part.n_voxels for part in found]
    assert [(0, 0, 4), (0, 0, 0)] == [part.offset for part in found]
    assert np.array_equal(union(found).on_grid((4, 4, 12)).sum(), 7)


def test_neighbour_in_the_same_box_is_not_taken_along() -> None:
    """A component inside the bounding box of another stays out of it."""
    array = np.zeros((1, 5, 5), dtype=bool)
    array[0, :, 0] = array[0, 4, :] = True
    array[0, 1, 3] = True
    assert [9, 1] == [part.n_voxels for part in components(_mask(array), 6)]


def test_union_spans_its_parts() -> None:
    """Masks anywhere, overlapping or not, become one on the same grid."""
    parts = (
        Mask(offset=(1, 2, 3), array=np.ones((2, 2, 2), dtype=bool)),
        Mask(offset=(2, 3, 4), array=np.ones((3, 1, 1), dtype=bool)),
    )
    expected = parts[0].on_grid((6, 6, 6)) | parts[1].on_grid((6, 6, 6))
    assert np.array_equal(expected, union(parts).on_grid((6, 6, 6)))


def test_holes_are_filled() -> None:
    """A hollow cube becomes a full one."""
    array = np.ones((5, 5, 5), dtype=bool)
    array[1:4, 1:4, 1:4] = False
    assert filled(_mask(array)).n_voxels == 125


def test_contrast_is_against_the_shell_around() -> None:
    """Mean inside less mean of two voxels around, not of the whole image."""
    grid = make_grid((12, 12, 12))
    values = np.full(grid.shape, -500.0)
    values[2:10, 2:10, 2:10] = 10.0
    # Within two voxels along each axis, but not of the mask: no part of its shell.
    values[3, 3, 3] = values[8, 8, 8] = 9000.0
    values[5:7, 5:7, 5:7] = 60.0
    inside = np.zeros(grid.shape, dtype=bool)
    inside[5:7, 5:7, 5:7] = True
    assert mean_contrast(_mask(inside), make_volume(values, grid)) == pytest.approx(50.0)


def test_contrast_at_the_corner_uses_the_shell_that_there_is() -> None:
    """At the edge of the volume the shell is cut, not wrapped around."""
    grid = make_grid((6, 6, 6))
    values = np.zeros(grid.shape)
    values[0, 0, 0] = 8.0
    values[-1] = 1000.0
    assert mean_contrast(_mask(values == 8.0), make_volume(values, grid)) == pytest.approx(8.0)


def test_outline_is_closed_and_half_way_between_voxels() -> None:
    """(column, row) in the full image, one half beyond the outermost centres, last point = first."""
    full = np.zeros((3, 10, 12), dtype=bool)
    full[1, 4:7, 5:10] = True
    points = outline(_mask(full), 1)
    assert points[0] == points[-1]
    columns, rows = np.array(points).T
    assert (4.5, 9.5, 3.5, 6.5) == (columns.min(), columns.max(), rows.min(), rows.max())
    assert len(points) == 9


def test_outline_at_the_edge_of_the_image_is_closed() -> None:
    """A mask that fills the image has a closed outline too."""
    points = outline(_mask(np.ones((1, 4, 4), dtype=bool)), 0)
    assert points[0] == points[-1]
    assert np.array(points).min() == -0.5


def test_outline_takes_the_largest_part_and_no_hole() -> None:
    """Of two parts on a slice the larger one is drawn, from outside."""
    full = np.zeros((1, 20, 20), dtype=bool)
    full[0, 1:3, 1:3] = True
    full[0, 8:18, 8:18] = True
    full[0, 11:14, 11:14] = False
    columns, rows = np.array(outline(_mask(full), 0)).T
    assert (7.5, 17.5, 7.5, 17.5) == (columns.min(), columns.max(), rows.min(), rows.max())
    assert not np.any((columns > 10) & (columns < 15) & (rows > 10) & (rows < 15))


@pytest.mark.parametrize("slice_index", [-1, 0, 2, 9])
def test_slice_without_mask_has_no_outline(slice_index: int) -> None:
    """Nothing on the slice, nothing drawn."""
    full = np.zeros((3, 4, 4), dtype=bool)
    full[1, 1, 1] = True
    assert outline(_mask(full), slice_index) == ()
