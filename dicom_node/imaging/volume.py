"""A volume: numbers on a grid, and which frame each slice came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dicom_node.imaging.geometry import Grid
from dicom_node.study import Frame

HOUNSFIELD = "[hnsf'U]"
NO_UNIT = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """In which unit the numbers of a volume are measured: `array` x `factor` is in `unit`.

    The array itself stays in the unit of the modality's LUT, so that what a network was trained on is what it gets.
    """

    unit: str
    """UCUM, such as "[hnsf'U]" or "{SUVbw}g/ml"; "1" where the numbers are arbitrary."""
    factor: float = 1.0


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
    intensity: Intensity | None = None
    """How to measure its numbers; None: Hounsfield units for CT, arbitrary ones for everything else."""

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"array {self.array.shape} is not on a grid of {self.grid.shape}")
        if len(self.frames) != self.grid.shape[0]:
            raise ValueError(f"{len(self.frames)} frames for {self.grid.shape[0]} slices")

    @property
    def interpolated(self) -> tuple[int, ...]:
        """Return the slices that no image shows."""
        return tuple(z for z, frame in enumerate(self.frames) if frame.interpolated)

    @property
    def measured_in(self) -> Intensity:
        """Return the unit in which intensities are measured, and the factor to it."""
        return self.intensity or Intensity(unit=HOUNSFIELD if self.modality == "CT" else NO_UNIT)
