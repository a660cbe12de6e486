"""What every engine is: named arrays in, named arrays out, and what it says about itself.

Below `predict`, above one runtime. An engine knows no image, no grid and no manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        EngineError
            The runtime failed, or an input is not what the model declares.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine is not used again."""
        ...
