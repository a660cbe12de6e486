"""Frames of many files -> one float32 array: who decodes what, in which order, side by side.

Sources: none; a matter of speed. What a frame's values are is told by `decode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.reading.decode import ModalityLut, PixelLayout, modality_luts, stored_frames
from dicom_node.reading.header import Header


def decode_into(
    array: NDArray[np.float32],
    headers: Sequence[Header],
    layouts: Sequence[PixelLayout],
    slices: Sequence[int],
    *,
    workers: int,
) -> None:
    """Decode all frames of the files into their slices of `array` (Z, Y, X), in the unit of the modality.

    Parameters
    ----------
    slices
        Which slice each frame becomes, file after file in the order of `headers`, frame after frame; negative: none,
        and the frame is not decoded.
    workers
        Threads that decode.

    Raises
    ------
    UndecodableError
        When a frame cannot be decoded.
    """
    tasks = _tasks(headers, layouts, slices)
    if workers > 1:
        with ThreadPoolExecutor(max_workers=workers) as pool:
            list(pool.map(lambda task: task.run(array), tasks))
    else:
        for task in tasks:
            task.run(array)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Task:
    """One file, and the slice that each of its frames becomes."""

    header: Header
    layout: PixelLayout
    luts: list[ModalityLut]
    slices: Sequence[int]

    def run(self, array: NDArray[np.float32]) -> None:
        """Decode the file's frames into their slices of `array` (Z, Y, X)."""
        wanted = [index for index, z in enumerate(self.slices) if z >= 0]
        frames = stored_frames(self.header, self.layout, wanted)
        for stored, index in zip(frames, wanted, strict=True):
            self.luts[index].apply(stored, array[self.slices[index]])


def _tasks(headers: Sequence[Header], layouts: Sequence[PixelLayout], slices: Sequence[int]) -> list[_Task]:
    tasks, start = [], 0
    for header, layout in zip(headers, layouts, strict=True):
        luts = modality_luts(header.dataset, layout.n_frames)
        part = slices[start : start + layout.n_frames]
        tasks.append(_Task(header=header, layout=layout, luts=luts, slices=part))
        start += layout.n_frames
    return tasks
