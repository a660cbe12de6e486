"""The way back: probabilities on the prepared grid become masks on the source grid, exactly and in little memory.

Between `sliding` (or a network that saw the whole array at once) and `mask`. Probabilities are interpolated linearly at
every voxel centre of the source, and only then decided upon: the largest wins (exclusive classes), or each class that
reaches the threshold is set (masks may overlap). Interpolating decisions instead would shift every surface.

Memory. Regions of the answer come one by one and are walked in small blocks; a voxel of the source belongs to the one
block between whose voxel centres it lies, so it is decided upon once. For exclusive classes a label and the winner's
probability are kept for each voxel of the source, however many classes there are; for the others only what was found.
Beyond the outermost voxel centres the edge value holds as far as the outer faces of the voxels; beyond those there is
nothing.

Time. An interpolated value is a convex combination of its neighbours. So a class whose largest value in a block lies
below the smallest value of another class there cannot win in it; nor can one that lies below an equal share among the
few large classes of what the small ones leave over. Mostly one or two classes of a hundred are left to interpolate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.findings import Mask
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.mask import crop_mask
from dicom_node.imaging.preprocess import Box, box_on, index_map
from dicom_node.imaging.sliding import Region

_BLOCK = 32
"""Cells along the edge of a block: small enough that few classes meet in it, large enough to be worth a call."""

_AT_ONCE = 500_000
"""Voxels of the source that are interpolated at a time: 12 MB of coordinates."""

_HAIR = 1e-6
"""Voxels, as `preprocess.interpolate`: a centre on the outer face lies inside, whatever the rounding."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMask:
    """Where one class is on the source grid, and how sure the network is of it there."""

    channel: int
    mask: Mask
    probability: NDArray[np.float32]
    """On the box of the mask; outside the mask it may be that of another class."""

    def mean_inside(self, part: Mask) -> float:
        """Return the mean probability over the voxels of `part` that the network itself gave to the class.

        `part` lies within the box of the mask; holes that were filled afterwards do not count.
        """
        start = np.subtract(part.offset, self.mask.offset)
        box = tuple(slice(at, at + size) for at, size in zip(start, part.array.shape, strict=True))
        inside = self.probability[box][part.array & self.mask.array[box]]
        return float(np.clip(inside.mean(dtype=np.float64), 0.0, 1.0)) if inside.size else 0.0


def class_masks(
    regions: Iterable[Region],
    prepared: Grid,
    source: Grid,
    *,
    channels: Sequence[int],
    exclusive: bool,
    threshold: float,
) -> Iterator[ClassMask]:
    """Yield the mask of every class that is found, in the order of the channels.

    Parameters
    ----------
    regions
        The whole answer on the grid `prepared`, values 0 to 1; each is read once and may be forgotten by its maker.
    channels
        Those that make masks; the others (the background) only compete.
    exclusive
        True: the class with the largest value wins, the first of equals; nobody wins where all are 0. False:
        `threshold` for each class.
    """
    found: _Winners | _Overlapping
    found = _Winners(source.shape, channels) if exclusive else _Overlapping(channels, threshold)
    matrix, offset = index_map(prepared, source)

    def bring_back(region: Region) -> None:
        for block in _blocks(region, prepared.shape):
            candidates = found.candidates(block.values)
            if not candidates:
                continue
            for box in _slabs(box_on(source, prepared, block.low, block.high)):
                own, places = _places(box, matrix, offset, block)
                if own.any():
                    found.add(box, own, places, block.values, candidates)

    for region in regions:
        bring_back(region)
        del region  # masks are made when no array of all classes is left
    yield from found.masks()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Block:
    """Cells between voxel centres: [low, high) along each array axis of the prepared grid."""

    values: NDArray[np.float32]
    """(K, ...): the voxels around the cells."""
    start: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def _blocks(region: Region, shape: Sequence[int]) -> Iterator[_Block]:
    """Yield the cells of a region in blocks; at the ends of the array the outer half of a voxel belongs to them."""
    along_axes = []
    for start, held, size in zip(region.start, region.values.shape[1:], shape, strict=True):
        last = start + held - 1
        along = []
        # A single layer has no cells (the next region has it too), unless it is all there is.
        for at in range(start, last if size > 1 else start + 1, _BLOCK):
            stop = min(at + _BLOCK, last)
            low = -0.5 - _HAIR if at == 0 else float(at)
            high = size - 0.5 + _HAIR if stop == size - 1 else float(stop)
            along.append((at, stop, low, high))
        along_axes.append(along)
    for parts in product(*along_axes):
        starts = zip(parts, region.start, strict=True)
        box = tuple(slice(at - start, stop + 1 - start) for (at, stop, _, _), start in starts)
        yield _Block(
            values=region.values[(slice(None), *box)],
            start=tuple(at for at, _, _, _ in parts),
            low=tuple(low for _, _, low, _ in parts),
            high=tuple(high for _, _, _, high in parts),
        )


def _slabs(box: Box) -> Iterator[Box]:
    first, *others = box
    height, width = (part.stop - part.start for part in others)
    if height <= 0 or width <= 0:
        return
    step = max(1, _AT_ONCE // (height * width))
    for start in range(first.start, first.stop, step):
        yield slice(start, min(start + step, first.stop)), box[1], box[2]


def _places(
    box: Box, matrix: NDArray[np.float64], offset: NDArray[np.float64], block: _Block
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which voxels of a source box lie in the block, and where: (3, n), from the block's first voxel.

    The coordinates of a voxel are the same numbers whichever block asks, so it lies in exactly one.
    """
    shape = tuple(part.stop - part.start for part in box)
    own: NDArray[np.bool_] = np.ones(shape, dtype=bool)
    coordinates = []
    for axis in range(3):
        place: NDArray[np.float64] = np.zeros((1, 1, 1))
        for along, part in enumerate(box):
            line = matrix[axis, along] * np.arange(part.start, part.stop)
            place = place + line.reshape([-1 if other == along else 1 for other in range(3)])
        place = place + offset[axis]
        own &= (place >= block.low[axis]) & (place < block.high[axis])
        coordinates.append(np.broadcast_to(place, shape))
    return own, np.stack([place[own] - start for place, start in zip(coordinates, block.start, strict=True)])


def _interpolated(values: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float32]:
    result = ndimage.map_coordinates(values, places, output=np.float32, order=1, mode="nearest", prefilter=False)
    return np.asarray(result)


class _Winners:
    """Of exclusive classes: one label and its probability for each voxel of the source."""

    def __init__(self, shape: tuple[int, int, int], channels: Sequence[int]) -> None:
        self._makes_mask = frozenset(channels)
        # The kernel gives memory only for pages that are written to, so empty parts of the image cost nothing.
        self._labels = np.zeros(shape, dtype=np.uint16)
        """Channel + 1; 0: nothing, or a class that makes no mask."""
        self._best = np.zeros(shape, dtype=np.float32)

    def candidates(self, values: NDArray[np.float32]) -> list[int]:
        """Return the channels that may win somewhere among these values; none when no mask can come of it."""
        flat = values.reshape(len(values), -1)
        largest = flat.max(axis=1).astype(np.float64)
        floor = float(flat.min(axis=1).max())
        order = np.argsort(-largest, kind="stable")
        ranked = largest[order]
        # What is left over when the small ones have taken as much as they can, shared equally by the n largest.
        left_over = float(flat.sum(axis=0, dtype=np.float64).min()) - (ranked.sum() - np.cumsum(ranked))
        share = left_over / np.arange(1, len(ranked) + 1)
        beaten = np.flatnonzero(share[:-1] > ranked[1:] + _HAIR)
        n = int(beaten[0]) + 1 if beaten.size else len(ranked)
        winners = sorted(int(channel) for channel in order[:n] if largest[channel] >= floor - _HAIR)
        return winners if any(largest[each] > 0 for each in winners if each in self._makes_mask) else []

    def add(
        self,
        box: Box,
        own: NDArray[np.bool_],
        places: NDArray[np.float64],
        values: NDArray[np.float32],
        candidates: Sequence[int],
    ) -> None:
        """Decide on the voxels `own` of a source box, which lie at `places` among `values`."""
        best = np.zeros(places.shape[1], dtype=np.float32)
        labels = np.zeros(places.shape[1], dtype=np.uint16)
        for channel in candidates:
            value = _interpolated(values[channel], places)
            wins = value > best
            best[wins] = value[wins]
            labels[wins] = channel + 1 if channel in self._makes_mask else 0
        if labels.any():
            self._labels[box][own] = labels
            self._best[box][own] = best

    def masks(self) -> Iterator[ClassMask]:
        """Yield each class that won somewhere."""
        for label, box in enumerate(ndimage.find_objects(self._labels), start=1):
            if box is None:
                continue
            array = self._labels[box] == label
            z, y, x = (part.start for part in box)
            yield ClassMask(
                channel=label - 1,
                mask=Mask(offset=(z, y, x), array=array),
                probability=self._best[box],
            )


class _Overlapping:
    """Of classes that may overlap: the pieces where each reaches the threshold."""

    def __init__(self, channels: Sequence[int], threshold: float) -> None:
        self._channels = tuple(channels)
        self._threshold = threshold
        self._pieces: dict[int, list[tuple[tuple[int, int, int], NDArray[np.float32]]]] = {}
        """Channel -> (index of the first voxel, probability, 0 below the threshold)."""

    def candidates(self, values: NDArray[np.float32]) -> list[int]:
        """Return the channels that reach the threshold among these values."""
        return [channel for channel in self._channels if values[channel].max() >= self._threshold]

    def add(
        self,
        box: Box,
        own: NDArray[np.bool_],
        places: NDArray[np.float64],
        values: NDArray[np.float32],
        candidates: Sequence[int],
    ) -> None:
        """Decide on the voxels `own` of a source box, which lie at `places` among `values`."""
        z, y, x = (part.start for part in box)
        for channel in candidates:
            value = _interpolated(values[channel], places)
            held = np.zeros(own.shape, dtype=np.float32)
            held[own] = np.where(value >= self._threshold, value, 0)
            found = crop_mask(held > 0, (z, y, x))
            if found is not None:
                inner = tuple(
                    slice(at - start, at - start + size)
                    for at, start, size in zip(found.offset, (z, y, x), found.array.shape, strict=True)
                )
                self._pieces.setdefault(channel, []).append((found.offset, held[inner].copy()))

    def masks(self) -> Iterator[ClassMask]:
        """Yield each class that reached the threshold somewhere."""
        for channel in self._channels:
            if channel not in self._pieces:
                continue
            pieces = self._pieces.pop(channel)
            low = np.min([offset for offset, _ in pieces], axis=0)
            high = np.max([np.add(offset, piece.shape) for offset, piece in pieces], axis=0)
            probability = np.zeros(high - low, dtype=np.float32)
            for offset, piece in pieces:
                start = np.subtract(offset, low)
                box = tuple(slice(at, at + size) for at, size in zip(start, piece.shape, strict=True))
                # A voxel has a value in one piece only; elsewhere their boxes may overlap.
                np.maximum(probability[box], piece, out=probability[box])
            z, y, x = (int(at) for at in low)
            yield ClassMask(
                channel=channel, mask=Mask(offset=(z, y, x), array=probability > 0), probability=probability
            )
