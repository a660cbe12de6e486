"""What every engine is: named arrays in, named arrays out, and what it says about itself.

Below `predict`, above one runtime. An engine knows no image, no grid and no manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor that a model declares."""

    name: str
    dtype: str
    """As numpy spells it: "float32"."""
    shape: tuple[int | None, ...]
    """None: dynamic."""

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The tensors that a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeRange:
    """The shapes that one input may have: what a builder prepares for (a TensorRT optimisation profile)."""

    tensor: str
    least: tuple[int, ...]
    usual: tuple[int, ...]
    """What is made fastest."""
    most: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        if not len(self.least) == len(self.usual) == len(self.most):
            raise ValueError(f"input {self.tensor!r}: least, usual and most have different numbers of axes")
        if not all(0 < a <= b <= c for a, b, c in zip(self.least, self.usual, self.most, strict=True)):
            raise ValueError(f"input {self.tensor!r}: each axis needs 0 < least <= usual <= most")

    @property
    def is_fixed(self) -> bool:
        """Return whether only the number of samples may vary."""
        return self.least[1:] == self.most[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a model is made ready: on what, how precisely, for which shapes."""

    threads: int = 0
    """Of a CPU engine; 0: as many as the machine has cores."""
    precision: str = "fp32"
    """In which the network is computed; an engine refuses what it does not offer."""
    device: int = 0
    """Number of the graphics card, of an engine that runs on one."""
    profile: tuple[ShapeRange, ...] = ()
    """One for each input with dynamic axes; CPU engines need none."""
    cache: Path | None = None
    """Folder of built engines; None: built anew each time."""


class Engine(Protocol):
    """A model made ready for one runtime. Its faults are EngineError and the classes below it."""

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return runtime, version, device and precision, for example "onnxruntime 1.31.1 CPU fp32"."""
        ...

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return roughly how much memory a run with inputs of these shapes takes, the model included."""
        ...

    def warm_up(self) -> None:
        """Run once on a small input, so that the first patient does not pay for it."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name.

        Raises
        ------
        OutOfMemoryError
            The run needs more than there is.
        DeviceLostError
            The device answers no more; this engine runs no more either.
        EngineError
            The runtime failed, or an input is not what the model declares.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine is not used again."""
        ...


_WARM_UP_EDGE = 32
"""Voxels along a dynamic spatial axis in a warm-up run."""

_LIVE_TENSORS = 4
"""Tensors as wide as the first convolution's output that live at once: its input, its output, a skip connection and
the runtime's working copy; measured on mindgrab and on a U-Net."""


def zeros_for(signature: Signature) -> dict[str, NDArray[np.float32]]:
    """Return an input of zeros: one sample, 32 along each axis that is dynamic."""
    return {
        spec.name: np.zeros(
            [size or (1 if axis == 0 else _WARM_UP_EDGE) for axis, size in enumerate(spec.shape)], dtype=np.float32
        )
        for spec in signature.inputs
    }


def estimated_bytes(
    signature: Signature, shapes: Mapping[str, tuple[int, ...]], *, model_bytes: int, width: int
) -> int:
    """Return roughly the memory of a run on a CPU: the model, its inputs and outputs, the tensors at full resolution.

    Parameters
    ----------
    width
        Channels of the first convolution.
    """
    inputs = sum(int(np.prod(shape)) for shape in shapes.values())
    positions = max((int(np.prod(shape)) // shape[1] for shape in shapes.values() if len(shape) > 1), default=0)
    outputs = sum(spec.shape[1] or 1 for spec in signature.outputs if len(spec.shape) > 1) * positions
    return 4 * (inputs + outputs + _LIVE_TENSORS * width * positions) + 2 * model_bytes
