"""A volume: numbers on a grid, and which frame each slice came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dicom_node.imaging.geometry import Grid
from dicom_node.study import Frame


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume:
    """A stack of slices, sorted along the normal, in the units of the modality (HU for CT).

    `array` is float32, axes (Z, Y, X), after the modality LUT, padding included; the volume owns it and nobody
    writes into it. `frames[z]` is the frame that slice z came from, so results can point at it; one that is
    `interpolated` came from its neighbours, and no result may point there.
    """

    array: NDArray[np.float32]
    grid: Grid
    frames: tuple[Frame, ...]
    modality: str
    notes: tuple[str, ...] = field(default=())
    """What was noticed and accepted, in words, for example that a header contradicts the positions."""

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"array {self.array.shape} is not on a grid of {self.grid.shape}")
        if len(self.frames) != self.grid.shape[0]:
            raise ValueError(f"{len(self.frames)} frames for {self.grid.shape[0]} slices")

    @property
    def interpolated(self) -> tuple[int, ...]:
        """Return the slices that no image shows."""
        return tuple(z for z, frame in enumerate(self.frames) if frame.interpolated)
