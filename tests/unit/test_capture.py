"""Overlay pictures: which slices, which outlines, which window."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dicom_node.admin.pictures import Drawn, draw_outlines, window_of
from dicom_node.findings import Mask
from dicom_node.report.capture import SCALE, Outline, overlay_png
from tests.unit.imaging_case import make_grid, make_volume

RED, GREEN = (255, 0, 0), (0, 255, 0)


def _volume(shape=(12, 30, 40), spacing=(1.0, 1.0, 1.0)):
    return make_volume(np.zeros(shape, np.float32), make_grid(shape, spacing))


def _box(offset, size=(4, 6, 6)):
    return Mask(offset=offset, array=np.ones(size, dtype=bool))


def _colours(png):
    return {colour for _, colour in Image.open(png).getcolors(1 << 20)}


def test_a_picture_shows_every_finding_that_crosses_its_slice(tmp_path):
    """The slice of one finding also outlines its neighbour; findings elsewhere are not on it."""
    drawn = [
        Drawn(number=1, mask=_box((2, 5, 5)), slice_index=3, colour=RED),
        Drawn(number=2, mask=_box((3, 15, 25)), slice_index=6, colour=GREEN),
    ]
    third, sixth = draw_outlines(_volume(), drawn, tmp_path)
    assert ["overlay_slice_004.png", "overlay_slice_007.png"] == [third.name, sixth.name]
    assert {RED, GREEN} <= _colours(third)
    assert RED not in _colours(sixth)
    assert GREEN in _colours(sixth)


def test_findings_on_one_slice_share_its_picture(tmp_path):
    """One file a slice."""
    drawn = [Drawn(number=n, mask=_box((2, 5, 5 + 8 * n)), slice_index=3) for n in (1, 2)]
    assert 1 == len(draw_outlines(_volume(), drawn, tmp_path))


def test_nothing_found_makes_no_picture(tmp_path):
    """Nothing to show, nothing written."""
    assert [] == draw_outlines(_volume(), [], tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_the_window_suits_the_findings_and_not_the_rest():
    """Metal or air far from the findings does not make them flat."""
    volume = _volume()
    volume.array[5:9, 10:16, 10:16] = 100
    volume.array[0] = -1000
    volume.array[:, :, 39] = 30000
    low, high = window_of(volume, [_box((5, 10, 10))])
    assert (0, 100) == (low, high)
    assert (-1000, 30000) == window_of(volume, [])


def test_pixels_that_are_not_square_are_shown_true():
    """Rows that lie twice as far apart as columns make a picture twice as high."""
    picture = Image.open(io.BytesIO(overlay_png(np.zeros((10, 20), np.float32), [], window=(0, 1), aspect=2.0)))
    assert (20 * SCALE, 20 * SCALE) == picture.size


@pytest.mark.parametrize("columns", [(2.0, 6.0), (33.0, 38.0)], ids=["left", "right"])
def test_the_number_stays_inside_the_picture(columns):
    """Right of the outline, or left of it where the picture ends: the number's colour is found beside the outline."""
    left, right = columns
    points = ((left, 10.0), (right, 10.0), (right, 20.0), (left, 20.0), (left, 10.0))
    outline = Outline(points=points, colour=RED, text="12")
    png = overlay_png(np.zeros((30, 40), np.float32), [outline], window=(0, 1))
    _, xs = np.nonzero((np.asarray(Image.open(io.BytesIO(png))) == RED).all(axis=-1))
    beside = (xs < (left - 0.5) * SCALE) | (xs > (right + 1.5) * SCALE)
    assert beside.sum() > 20


def test_an_outline_of_nothing_is_not_drawn():
    """A finding that does not cross the slice leaves no mark."""
    png = overlay_png(np.zeros((8, 8), np.float32), [Outline(points=(), colour=RED, text="1")], window=(0, 1))
    assert {(0, 0, 0)} == _colours(io.BytesIO(png))
