"""Windows over an array that is too large for a network, and their answers blended into one, region by region.

Between `preprocess` and the engine, which is handed in as a callable. Windows overlap; where several answer, the mean
weighted by the distance from each window's centre holds, because a network knows least at the edge of what it sees.

The blended answer of many classes is larger than any other array of a job (105 classes on 300 voxels cubed: 11 GB), so
it never exists whole. Windows are visited in the order of a raster whose slowest axis is the longest; what no later
window touches is handed out as a `Region` and forgotten. The array is cut at every edge of a window, so each block
is covered by a window altogether or not at all, and a block lives from its first window to its region: of the slowest
axis only the overlap of two rows of windows is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import RefusedInputError

PadMode: TypeAlias = Literal["minimum", "zero", "edge", "reflect"]
"""What lies beyond the end of an array: its least value, 0, its last voxel repeated, or its mirror image."""

Network: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(N, C, *window) -> (N, K, *window)."""

_Block: TypeAlias = tuple[int, ...]
_Held: TypeAlias = dict[_Block, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Block -> sum of the weighted answers (K, ...), sum of the weights (...)."""
_Box: TypeAlias = tuple[slice, slice, slice]

_SIGMA = 0.125
"""Width of the Gaussian as a fraction of the window, as in nnU-Net (Isensee et al. 2021, Nature Methods 18)."""

_SMALLEST_WEIGHT = 1e-3
"""Of the centre's: a corner voxel that one window alone sees must not be divided by almost nothing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """A box of a network's finished answer.

    Neighbouring regions share one layer of voxels, so that each place between voxel centres lies in one region with all
    the voxels that linear interpolation asks for.
    """

    start: tuple[int, int, int]
    """Index of the first voxel."""
    values: NDArray[np.float32]
    """(K, B0, B1, B2)."""


def window_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """Return the starts of windows along one axis: evenly spread, first at 0, last flush with the end.

    `size` is at least `window`; neighbours overlap by at least the fraction `overlap`.
    """
    step = max(1, int(window * (1 - overlap)))
    n_windows = -(-(size - window) // step) + 1
    return tuple(round(place) for place in np.linspace(0, size - window, n_windows))


def blend_weights(window: Sequence[int], blend: Literal["constant", "gaussian"]) -> NDArray[np.float32]:
    """Return the weight of each voxel of a window's answer, float32, above 0."""
    if blend == "constant":
        return np.ones(window, dtype=np.float32)
    weights = np.ones((), dtype=np.float64)
    for size in window:
        distance = (np.arange(size) - (size - 1) / 2) / (_SIGMA * size)
        weights = np.multiply.outer(weights, np.exp(-0.5 * distance**2))
    return np.asarray(np.maximum(weights / weights.max(), _SMALLEST_WEIGHT), dtype=np.float32)


def slide(
    array: NDArray[np.float32],
    run: Network,
    *,
    window: tuple[int, int, int],
    overlap: float,
    blend: Literal["constant", "gaussian"],
    batch: int = 1,
    max_windows: int,
    pad_mode: PadMode = "minimum",
) -> Iterator[Region]:
    """Return the blended answer of a network to an array, in regions that together cover it.

    Parameters
    ----------
    array
        (C, A0, A1, A2). An axis shorter than the window is padded at its end; the answer is cropped back.
    run
        The network: (N, C, *window) -> (N, K, *window), N up to `batch`. Its answers are averaged as they are, so it
        should give probabilities.

    Raises
    ------
    RefusedInputError
        The array needs more than `max_windows` windows. Nothing has run then.
    """
    ends = [max(0, edge - size) for size, edge in zip(array.shape[1:], window, strict=True)]
    padded = pad_at_end(array, ends, pad_mode)
    starts = [window_starts(size, edge, overlap) for size, edge in zip(padded.shape[1:], window, strict=True)]
    n_windows = int(np.prod([len(along) for along in starts]))
    if n_windows > max_windows:
        raise RefusedInputError(
            f"the image needs {n_windows} windows, the plugin allows {max_windows}; it covers too large a field"
        )
    axes = [
        _Axis(along, edge, size, shown)
        for along, edge, size, shown in zip(starts, window, padded.shape[1:], array.shape[1:], strict=True)
    ]
    return _regions(padded, run, axes, blend_weights(window, blend), batch)


def held_voxels(shape: Sequence[int], window: tuple[int, int, int], overlap: float, batch: int = 1) -> int:
    """Return at most how many voxels of each class `slide` holds at once on an array of `shape`, the answers of one run
    of the network included.
    """
    sizes = [max(size, edge) for size, edge in zip(shape, window, strict=True)]
    slow, mid, fast = _slowest_first(sizes)
    starts = [window_starts(size, edge, overlap) for size, edge in zip(sizes, window, strict=True)]
    step = [max(np.diff(along), default=size) for along, size in zip(starts, sizes, strict=True)]
    # What two neighbours share, and the layer that two regions share.
    shared = [edge - min(np.diff(along), default=edge) + 1 for along, edge in zip(starts, window, strict=True)]
    band = min(shared[slow], sizes[slow]) * sizes[mid] * sizes[fast]
    row = window[slow] * min(shared[mid], sizes[mid]) * sizes[fast]
    run = window[slow] * window[mid] * window[fast] * (batch + 1)
    region = (step[slow] + 1) * (step[mid] + 1) * (step[fast] + 1)
    return int(band + row + run + region)


def pad_at_end(array: NDArray[np.float32], ends: Sequence[int], mode: PadMode) -> NDArray[np.float32]:
    """Return (C, A0, A1, A2) with `ends` voxels added after each spatial axis; each channel is padded for itself."""
    if not any(ends):
        return array
    widths = [(0, end) for end in ends]
    if mode in ("edge", "reflect"):
        return np.stack([np.pad(channel, widths, mode=mode) for channel in array])
    return np.stack(
        [np.pad(channel, widths, constant_values=channel.min() if mode == "minimum" else 0) for channel in array]
    )


class _Axis:
    """One axis cut at every edge of a window, and before each start, where regions share a layer."""

    def __init__(self, starts: Sequence[int], window: int, size: int, shown: int) -> None:
        """`shown` of the `size` voxels are handed out."""
        ends = [start + window for start in starts]
        cuts = sorted({0, size, shown, *starts, *ends, *(start - 1 for start in starts[1:])})
        self.starts = starts
        self.pieces = [slice(low, high) for low, high in pairwise(cuts)]
        stops = [*starts[1:], shown]
        self.covered = [self._within(start, min(end, shown)) for start, end in zip(starts, ends, strict=True)]
        self.handed_out = [self._within(max(start - 1, 0), stop) for start, stop in zip(starts, stops, strict=True)]

    def _within(self, low: int, high: int) -> list[int]:
        return [place for place, piece in enumerate(self.pieces) if low <= piece.start and piece.stop <= high]


def _slowest_first(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the axes, longest first: what is held is an overlap along the first and all of the others."""
    slow, mid, fast = sorted(range(3), key=lambda axis: -shape[axis])
    return slow, mid, fast


def _regions(
    padded: NDArray[np.float32], run: Network, axes: Sequence[_Axis], weights: NDArray[np.float32], batch: int
) -> Iterator[Region]:
    order = _slowest_first(padded.shape[1:])
    places = [
        tuple(place[order.index(axis)] for axis in range(3))
        for place in product(*(range(len(axes[axis].starts)) for axis in order))
    ]
    held: _Held = {}
    for group in _groups(iter(places), batch):
        answers = run(np.stack([padded[(slice(None), *_window(axes, place, weights.shape))] for place in group]))
        for place, answer in zip(group, answers, strict=True):
            _add(held, axes, place, answer, weights)
            yield _hand_out(held, axes, place)
        # The next run needs its memory.
        del answers, answer


def _window(axes: Sequence[_Axis], place: Sequence[int], window: Sequence[int]) -> _Box:
    starts = (axis.starts[at] for axis, at in zip(axes, place, strict=True))
    z, y, x = (slice(start, start + edge) for start, edge in zip(starts, window, strict=True))
    return z, y, x


def _add(
    held: _Held,
    axes: Sequence[_Axis],
    place: Sequence[int],
    answer: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> None:
    """Add a window's answer (K, *window) to every block that the window covers."""
    starts = [axis.starts[at] for axis, at in zip(axes, place, strict=True)]
    for block in product(*(axis.covered[at] for axis, at in zip(axes, place, strict=True))):
        pieces = (axis.pieces[at] for axis, at in zip(axes, block, strict=True))
        inside = tuple(slice(p.start - start, p.stop - start) for p, start in zip(pieces, starts, strict=True))
        weighted = answer[(slice(None), *inside)] * weights[inside]
        if block not in held:
            held[block] = weighted, weights[inside].copy()
            continue
        total, weight = held[block]
        total += weighted
        weight += weights[inside]


def _hand_out(held: _Held, axes: Sequence[_Axis], place: Sequence[int]) -> Region:
    """Return the region that became final with a window, and forget the blocks that no later region needs."""
    chosen = [axis.handed_out[at] for axis, at in zip(axes, place, strict=True)]
    starts = [axis.pieces[pieces[0]].start for axis, pieces in zip(axes, chosen, strict=True)]
    stops = [axis.pieces[pieces[-1]].stop for axis, pieces in zip(axes, chosen, strict=True)]
    blocks = list(product(*chosen))
    values = np.empty((len(held[blocks[0]][0]), *np.subtract(stops, starts)), dtype=np.float32)
    for block in blocks:
        box = tuple(axis.pieces[at] for axis, at in zip(axes, block, strict=True))
        to = tuple(slice(part.start - start, part.stop - start) for part, start in zip(box, starts, strict=True))
        np.divide(*held[block], out=values[(slice(None), *to)])
        if all(
            at + 1 == len(axis.starts) or piece not in axis.handed_out[at + 1]
            for axis, at, piece in zip(axes, place, block, strict=True)
        ):
            del held[block]
    z, y, x = starts
    return Region(start=(z, y, x), values=values)


def _groups(places: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while group := list(islice(places, size)):
        yield group
