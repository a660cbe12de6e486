"""Frames of many files -> one float32 array: who decodes what, side by side.

Uncompressed files are read by threads, each into one buffer of its own, since reading and arithmetic let go of the
interpreter. Most codecs do not: when there is enough to do for them, frames go to helper processes (`codecs.pool`),
and what comes back is put into place here. What a frame's values are is told by `decode` and `colour`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.codecs.frame import SLOW, Stored
from dicom_node.codecs.pool import DecoderPool, FrameRequest
from dicom_node.errors import UndecodableError
from dicom_node.reading.colour import luminance, rgb_frames
from dicom_node.reading.decode import (
    ModalityLut,
    PixelLayout,
    encapsulated_frames,
    frame_form,
    frame_name,
    modality_luts,
    stored_frames,
)
from dicom_node.reading.header import Header, integer, quiet, read_header
from dicom_node.reading.padding import padding_of

_MOST_WORKERS: Final = 4
"""By default: beyond that one image waits for memory, and other jobs want processors too."""
_WORTH_HELPERS: Final = 6 << 20
"""Pixels in slow codecs from which helpers gain more than their start costs: two dozen slices of a CT."""


def default_workers() -> int:
    """Return how many threads or processes decode when nobody says."""
    return min(len(os.sched_getaffinity(0)), _MOST_WORKERS)


def decode_into(
    array: NDArray[np.float32],
    headers: Sequence[Header],
    layouts: Sequence[PixelLayout],
    slices: Sequence[int],
    *,
    workers: int | None = None,
    pool: DecoderPool | None = None,
) -> None:
    """Decode all frames of the files into their slices of `array` (Z, Y, X), in the unit of the modality.

    Colour, where a layout has it, becomes its luminance.

    Parameters
    ----------
    slices
        Which slice each frame becomes, file after file in the order of `headers`, frame after frame; negative: none,
        and the frame is not decoded.
    workers
        Threads or processes that decode; `default_workers` when not given, 1: this thread alone.
    pool
        Helpers that `helpers_for` has started already.

    Raises
    ------
    UndecodableError
        When a frame cannot be decoded.
    """
    tasks = _tasks(headers, layouts, slices)
    workers = default_workers() if workers is None else workers
    slow = [task for task in tasks if task.is_slow]
    with quiet():  # here and not in the threads: filters of warnings are the process's
        if workers > 1 and sum(task.n_pixels for task in slow) >= _WORTH_HELPERS:
            tasks = [task for task in tasks if not task.is_slow]
            _by_helpers(slow, array, workers, pool)
        if workers > 1 and len(tasks) > 1:
            with ThreadPoolExecutor(max_workers=workers) as threads:
                shares = [threads.submit(_run_all, tasks[first::workers], array) for first in range(workers)]
                for share in shares:
                    share.result()
        else:
            _run_all(tasks, array)


@contextmanager
def helpers_for(paths: Sequence[Path], *, workers: int | None = None) -> Iterator[DecoderPool | None]:
    """Give helpers that start while headers are still read, if the first file says that they will be wanted.

    Yields
    ------
    DecoderPool or None
        For `decode_into`; the helpers end with the block.
    """
    workers = default_workers() if workers is None else workers
    if workers > 1 and _are_slow(paths):
        with DecoderPool(workers) as pool:
            yield pool
    else:
        yield None


def _are_slow(paths: Sequence[Path]) -> bool:
    if not paths:
        return False
    try:
        first = read_header(paths[0])
    except (UndecodableError, OSError):  # told when it is read with the others
        return False
    if first.transfer_syntax_uid not in SLOW:
        return False
    numbers = [integer(first.attributes, keyword) or 1 for keyword in ("Rows", "Columns", "NumberOfFrames")]
    return prod(numbers) * len(paths) >= _WORTH_HELPERS


def pixel_notes(header: Header, layout: PixelLayout) -> tuple[str, ...]:
    """Return in words what of the pixels of a series' first image a reader of its values should know."""
    notes = []
    if layout.photometric_interpretation == "MONOCHROME1":
        notes.append("MONOCHROME1: values are kept as stored, so high values are shown dark")
    if layout.is_colour:
        kind = layout.photometric_interpretation
        notes.append(f"grey from colour: values are the luminance (ITU-R BT.601) of {kind}")
    padding = padding_of(header.attributes, layout)
    if padding is not None:
        low, high = padding.range(modality_luts(header.attributes, layout.n_frames)[0])
        words = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        notes.append(f"pixel padding: {words} stands for no measurement; the values are kept")
    return tuple(notes)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class _Task:
    """One file, and the slice that each of its frames becomes."""

    header: Header
    layout: PixelLayout
    luts: list[ModalityLut]
    slices: Sequence[int]

    @property
    def is_slow(self) -> bool:
        """Return whether its codec is worth a process: grey frames of a slow syntax."""
        return self.header.transfer_syntax_uid in SLOW and not self.layout.is_colour

    @property
    def n_pixels(self) -> int:
        """Return how much there is to do."""
        return self.layout.rows * self.layout.columns * sum(z >= 0 for z in self.slices)

    def run(self, array: NDArray[np.float32], buffer: bytearray) -> None:
        """Decode the file's frames into their slices of `array` (Z, Y, X)."""
        wanted = [index for index, z in enumerate(self.slices) if z >= 0]
        if self.layout.is_colour:
            for rgb, index in zip(rgb_frames(self.header, self.layout, wanted), wanted, strict=True):
                array[self.slices[index]] = luminance(rgb)
            return
        frames = stored_frames(self.header, self.layout, wanted, buffer=buffer)
        for stored, index in zip(frames, wanted, strict=True):
            self.luts[index].apply(stored, array[self.slices[index]])

    def requests(self, array: NDArray[np.float32]) -> list[FrameRequest]:
        """Return what helpers are asked for."""
        form = frame_form(self.header, self.layout)
        places = zip(encapsulated_frames(self.header, self.layout), self.luts, self.slices, strict=True)
        return [
            FrameRequest(
                path=self.header.path,
                extents=extents,
                form=form,
                deliver=partial(_put, lut, array[z]),
                name=frame_name(self.header, index),
            )
            for index, (extents, lut, z) in enumerate(places)
            if z >= 0
        ]


def _put(lut: ModalityLut, out: NDArray[np.float32], stored: Stored) -> None:
    lut.apply(stored, out)


def _run_all(tasks: Sequence[_Task], array: NDArray[np.float32]) -> None:
    buffer = bytearray()
    for task in tasks:
        task.run(array, buffer)


def _by_helpers(tasks: Sequence[_Task], array: NDArray[np.float32], workers: int, started: DecoderPool | None) -> None:
    with nullcontext(started) if started is not None else DecoderPool(workers) as pool:
        pool.run([request for task in tasks for request in task.requests(array)])


def _tasks(headers: Sequence[Header], layouts: Sequence[PixelLayout], slices: Sequence[int]) -> list[_Task]:
    tasks, start = [], 0
    for header, layout in zip(headers, layouts, strict=True):
        luts = modality_luts(header.attributes, layout.n_frames)
        part = slices[start : start + layout.n_frames]
        if len(part) != layout.n_frames:
            raise UndecodableError(f"{layout.n_frames} frames for {len(part)} slices")
        tasks.append(_Task(header=header, layout=layout, luts=luts, slices=part))
        start += layout.n_frames
    return tasks
