"""The way back to the source grid: as if every class were interpolated everywhere, in little memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.imaging import Grid
from dicom_node.imaging.inverse import ClassMask, class_masks
from dicom_node.imaging.preprocess import interpolate, whole_box
from dicom_node.imaging.sliding import Region, slide
from tests.unit.imaging_case import make_grid, rotations

MEMORY_CASE = Path(__file__).parent / "inverse_memory_case.py"


def everywhere(probability: NDArray[np.float32], prepared: Grid, source: Grid) -> NDArray[np.float32]:
    """Return every class interpolated at every voxel of the source: the plain way, which costs K volumes."""
    box = whole_box(source.shape)
    return np.stack([interpolate(each, prepared, source, order=1, outside=0.0, box=box) for each in probability])


def whole(probability: NDArray[np.float32]) -> list[Region]:
    return [Region(start=(0, 0, 0), values=probability)]


def in_windows(probability: NDArray[np.float32], window: int) -> Iterator[Region]:
    """Return the same probability as `slide` hands it out."""
    return slide(
        probability, lambda batch: batch, window=(window,) * 3, overlap=0.25, blend="gaussian", max_windows=100_000
    )


def some_probability(n_classes: int, shape: Sequence[int], *, smooth: bool, seed: int = 5) -> NDArray[np.float32]:
    """Return probabilities (K, ...) that sum to one: bodies with soft edges, or noise, where every class may win."""
    rng = np.random.default_rng(seed)
    if not smooth:
        logits = rng.normal(scale=2.0, size=(n_classes, *shape))
    else:
        axes = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
        centres = rng.uniform(0, 1, size=(n_classes, 3)) * np.array(shape)
        logits = np.stack([-np.linalg.norm(axes - centre, axis=-1) for centre in centres])
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), dtype=np.float32)


def _on_grid(found: Sequence[ClassMask], shape: tuple[int, int, int]) -> dict[int, NDArray[np.bool_]]:
    return {one.channel: one.mask.on_grid(shape) for one in found}


@settings(max_examples=25, deadline=None)
@given(
    rotation=rotations(),
    spacing=st.tuples(*[st.floats(0.5, 2.5)] * 3),
    shear=st.floats(-0.4, 0.4),
    smooth=st.booleans(),
    window=st.sampled_from([0, 9, 16]),
)
def test_the_winner_is_that_of_interpolating_every_class(
    rotation: NDArray[np.float64], spacing: tuple[float, float, float], shear: float, smooth: bool, window: int
) -> None:
    """Blocks, regions and left-out classes change nothing: interpolate, then argmax, voxel by voxel."""
    prepared, source = make_grid((37, 34, 20)), make_grid((14, 15, 16), spacing, rotation=rotation, shear=shear)
    probability = some_probability(6, prepared.shape, smooth=smooth)
    regions = in_windows(probability, window) if window else whole(probability)

    found = list(class_masks(regions, prepared, source, channels=[1, 2, 3, 4, 5], exclusive=True, threshold=0.5))

    every = everywhere(probability, prepared, source)
    ranked = np.sort(every, axis=0)
    decided = ranked[-1] - ranked[-2] > 1e-5  # closer ones are rounding's to decide
    winner = np.where(every.max(axis=0) > 0, every.argmax(axis=0), -1)
    masks = _on_grid(found, source.shape)
    for channel in range(1, 6):
        mask = masks.get(channel, np.zeros(source.shape, dtype=bool))
        assert np.array_equal((winner == channel) & decided, mask & decided)
    for one in found:
        box = tuple(slice(at, at + size) for at, size in zip(one.mask.offset, one.mask.array.shape, strict=True))
        expected = every[one.channel][box][one.mask.array]
        assert one.probability[one.mask.array] == pytest.approx(expected, abs=1e-5)
        assert one.mean_inside(one.mask) == pytest.approx(float(expected.mean()), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(rotation=rotations(), spacing=st.tuples(*[st.floats(0.5, 2.5)] * 3), window=st.sampled_from([0, 9, 16]))
def test_classes_may_overlap(rotation: NDArray[np.float64], spacing: tuple[float, float, float], window: int) -> None:
    """Each class that reaches the threshold is set, whatever the others say."""
    prepared, source = make_grid((37, 34, 20)), make_grid((14, 15, 16), spacing, rotation=rotation)
    probability = np.sqrt(some_probability(4, prepared.shape, smooth=True))
    regions = in_windows(probability, window) if window else whole(probability)

    found = list(class_masks(regions, prepared, source, channels=[0, 2, 3], exclusive=False, threshold=0.4))

    every = everywhere(probability, prepared, source)
    masks = _on_grid(found, source.shape)
    for channel in (0, 2, 3):
        clear = np.abs(every[channel] - 0.4) > 1e-5
        mask = masks.get(channel, np.zeros(source.shape, dtype=bool))
        assert np.array_equal((every[channel] >= 0.4) & clear, mask & clear)
    assert 1 not in masks


def test_much_finer_and_much_coarser_sources_are_covered() -> None:
    """A source voxel is decided upon once, whether a block holds thousands of them or none."""
    prepared = make_grid((40, 40, 40))
    probability = some_probability(3, prepared.shape, smooth=True)
    for shape, spacing in (((5, 6, 7), 7.0), ((130, 120, 110), 0.31)):
        source = make_grid(shape, (spacing,) * 3)
        found = class_masks(whole(probability), prepared, source, channels=[0, 1, 2], exclusive=True, threshold=0.5)
        total = sum(mask.astype(int) for mask in _on_grid(list(found), source.shape).values())
        seen = everywhere(probability, prepared, source).max(axis=0) > 0
        assert np.array_equal(seen.astype(int), total)


def test_filled_holes_do_not_count_for_the_probability() -> None:
    """The mean is that of the voxels that the network gave to the class."""
    grid = make_grid((9, 9, 9))
    probability = np.zeros((1, 9, 9, 9), dtype=np.float32)
    probability[0, 2:7, 2:7, 2:7] = 0.8
    probability[0, 4, 4, 4] = 0.0
    (found,) = class_masks(whole(probability), grid, grid, channels=[0], exclusive=False, threshold=0.5)
    full = type(found.mask)(offset=found.mask.offset, array=np.ones_like(found.mask.array))
    assert found.mask.n_voxels == 124
    assert found.mean_inside(full) == pytest.approx(0.8)


def _peak_mb(*arguments: Any) -> tuple[float, int]:
    """Return the peak resident memory in MB of a process of its own, and how many classes it found."""
    command = [sys.executable, str(MEMORY_CASE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, n_found = done.stdout.split()
    return float(megabytes), int(n_found)


def test_memory_hardly_grows_with_the_classes() -> None:
    """Ten times the classes cost what the windows at work cost, not the answer: 184 MB more if that were held."""
    few, n_few = _peak_mb(80, 10, 16)
    many, n_many = _peak_mb(80, 100, 16)
    assert (n_few, n_many) == (9, 99)
    assert many - few < 80


@pytest.mark.long
@pytest.mark.timeout(900)
def test_105_classes_on_300_voxels_cubed_come_back_in_less_than_2_gb() -> None:
    """An answer of 11.3 GB never exists: the whole process stays below 2 GB."""
    megabytes, n_found = _peak_mb(300, 105, 64)
    assert n_found == 104
    assert megabytes < 2000
