"""Windows over an array: everywhere covered, blended to what the network says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.errors import RefusedInputError
from dicom_node.imaging.sliding import Region, blend_weights, slide, window_starts


def whole(regions: Iterable[Region], shape: Sequence[int]) -> NDArray[np.float32]:
    """Return the regions put together, (K, A0, A1, A2); what no region brings stays not-a-number."""
    answer: NDArray[np.float32] | None = None
    for region in regions:
        if answer is None:
            answer = np.full((len(region.values), *shape), np.nan, dtype=np.float32)
        box = tuple(slice(at, at + size) for at, size in zip(region.start, region.values.shape[1:], strict=True))
        seen = answer[(slice(None), *box)]
        again = ~np.isnan(seen)
        assert seen[again] == pytest.approx(region.values[again])  # neighbours agree on the layer that they share
        answer[(slice(None), *box)] = region.values
    assert answer is not None
    return answer


@given(size=st.integers(1, 300), window=st.integers(1, 96), overlap=st.floats(0, 0.9))
def test_windows_cover_an_axis(size: int, window: int, overlap: float) -> None:
    """First flush with the start, last with the end, neighbours overlapping as asked."""
    size = max(size, window)
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - window
    steps = np.diff(starts)
    assert np.all(steps >= 0)
    assert np.all(steps <= max(1, int(window * (1 - overlap))))


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_weights_are_symmetric_and_above_zero(blend: Any) -> None:
    """No voxel of a window is without a say, and none is favoured for its side."""
    weights = blend_weights((6, 7, 8), blend)
    assert weights.shape == (6, 7, 8)
    assert weights.min() >= 1e-3
    assert weights.max() == 1
    assert weights == pytest.approx(weights[::-1, ::-1, ::-1])


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(*[st.integers(3, 21)] * 3),
    overlap=st.floats(0, 0.7),
    blend=st.sampled_from(["constant", "gaussian"]),
    batch=st.integers(1, 5),
)
def test_blending_sums_to_one(shape: tuple[int, int, int], overlap: float, blend: Any, batch: int) -> None:
    """A network that answers voxel by voxel gives the same through windows as at once: the weights sum to one."""
    array = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    batches: list[int] = []

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        batches.append(len(windows))
        assert windows.shape[1:] == (1, 8, 6, 7)
        return np.concatenate([windows, 2 * windows], axis=1)

    regions = slide(array, run, window=(8, 6, 7), overlap=overlap, blend=blend, batch=batch, max_windows=10_000)
    answer = whole(regions, shape)
    assert answer.shape == (2, *shape)
    assert answer == pytest.approx(np.concatenate([array, 2 * array]), abs=1e-5)
    assert max(batches) <= batch


def test_small_array_is_padded_with_its_minimum() -> None:
    """An array smaller than the window is not repeated or stretched: beside it lies its darkest value."""
    seen: list[NDArray[np.float32]] = []

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(windows)
        return windows

    array = np.full((1, 2, 3, 4), 5.0, dtype=np.float32)
    array[0, 0, 0, 0] = -3.0
    regions = slide(array, run, window=(4, 4, 4), overlap=0.5, blend="constant", max_windows=1)
    answer = whole(regions, (2, 3, 4))
    assert np.array_equal(array, answer)
    assert seen[0][0, 0, 2:].max() == -3.0


def test_the_middle_of_a_window_counts_most() -> None:
    """Where two windows disagree, the one whose centre is nearer prevails."""
    calls = iter([0.0, 1.0])

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full_like(windows, next(calls))

    regions = slide(
        np.zeros((1, 8, 8, 12), np.float32), run, window=(8, 8, 8), overlap=0.5, blend="gaussian", max_windows=2
    )
    answer = whole(regions, (8, 8, 12))
    line = answer[0, 4, 4]
    assert np.all(np.diff(line) >= 0)
    assert line[4] < 0.1 < 0.9 < line[7]


def test_too_many_windows_are_refused() -> None:
    """A field of view that would run for hours is refused before the first window."""
    with pytest.raises(RefusedInputError, match="needs 27 windows, the plugin allows 26"):
        slide(
            np.zeros((1, 12, 12, 12), np.float32),
            lambda _windows: pytest.fail("it ran"),
            window=(4, 4, 4),
            overlap=0.0,
            blend="constant",
            max_windows=26,
        )
