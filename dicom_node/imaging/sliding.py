"""Windows over an array that is too large for a network, and their answers blended into one.

Between `preprocess` and the engine, which is handed in as a callable. Windows overlap; where several answer, the mean
weighted by the distance from each window's centre holds, because a network knows least at the edge of what it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import RefusedInputError

_SIGMA = 0.125
"""Width of the Gaussian as a fraction of the window, as in nnU-Net (Isensee et al. 2021, Nature Methods 18)."""

_SMALLEST_WEIGHT = 1e-3
"""Of the centre's: a corner voxel that one window alone sees must not be divided by almost nothing."""


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
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    window: tuple[int, int, int],
    overlap: float,
    blend: Literal["constant", "gaussian"],
    batch: int = 1,
    max_windows: int,
) -> NDArray[np.float32]:
    """Return the blended answer of a network to an array, float32, (K, A0, A1, A2).

    Parameters
    ----------
    array
        (C, A0, A1, A2). An axis shorter than the window is padded at its end with the channel's least value; the
        answer is cropped back.
    run
        The network: (N, C, *window) -> (N, K, *window), N up to `batch`. Its answers are averaged as they are, so it
        should give probabilities.

    Raises
    ------
    RefusedInputError
        The array needs more than `max_windows` windows.
    """
    padded = _at_least(array, window)
    shape = padded.shape[1:]
    starts = [window_starts(size, edge, overlap) for size, edge in zip(shape, window, strict=True)]
    n_windows = int(np.prod([len(along) for along in starts]))
    if n_windows > max_windows:
        raise RefusedInputError(
            f"the image needs {n_windows} windows, the plugin allows {max_windows}; it covers too large a field"
        )
    weights = blend_weights(window, blend)
    total: NDArray[np.float32] | None = None
    weight_sum = np.zeros(shape, dtype=np.float32)
    boxes = (tuple(slice(at, at + edge) for at, edge in zip(start, window, strict=True)) for start in product(*starts))
    for group in _groups(boxes, batch):
        answers = run(np.stack([padded[(slice(None), *box)] for box in group]))
        if total is None:
            total = np.zeros((answers.shape[1], *shape), dtype=np.float32)
        for box, answer in zip(group, answers, strict=True):
            total[(slice(None), *box)] += answer * weights
            weight_sum[box] += weights
    assert total is not None  # product() of three non-empty tuples is not empty
    total /= weight_sum
    return total[:, : array.shape[1], : array.shape[2], : array.shape[3]]


def _at_least(array: NDArray[np.float32], window: Sequence[int]) -> NDArray[np.float32]:
    ends = [(0, max(0, edge - size)) for size, edge in zip(array.shape[1:], window, strict=True)]
    if not any(end for _, end in ends):
        return array
    return np.stack([np.pad(channel, ends, constant_values=channel.min()) for channel in array])


def _groups(boxes: Iterator[tuple[slice, ...]], size: int) -> Iterator[list[tuple[slice, ...]]]:
    while group := list(islice(boxes, size)):
        yield group
