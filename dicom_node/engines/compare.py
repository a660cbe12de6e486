"""Is an engine the model that it was made from? A comparison with the reference is a value: figures, limits, verdict.

Pure arithmetic over what two engines gave for the same inputs; whoever runs the cases (`model_build.engines`) brings
the outputs here. The findings are compared by those who know findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.clock import Clock
from dicom_node.engines.base import Engine, Signature

Outputs: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Of one run, by name."""

MAX_LABEL_DISAGREEMENT: Final = 1e-4
"""Part of all positions; a surface voxel whose value lies at the threshold may fall to either side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far one engine's outputs are from another's."""

    relative_error: float
    """max |found - exact| / max |exact|, over all runs of all outputs; infinite where a value is not finite."""
    n_positions: int
    n_other_label: int

    @property
    def label_disagreement(self) -> float:
        """Return the part of the positions with another label, 0 to 1."""
        return self.n_other_label / self.n_positions if self.n_positions else 0.0

    def with_case(self, other: Difference) -> Difference:
        """Return the difference over both: the worse error, all positions."""
        return Difference(
            relative_error=max(self.relative_error, other.relative_error),
            n_positions=self.n_positions + other.n_positions,
            n_other_label=self.n_other_label + other.n_other_label,
        )


class Recorder:
    """An engine that keeps what it gave and how long it took; otherwise the engine that it wraps."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._outputs: list[Outputs] = []
        self.seconds = 0.0

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        return self._engine.signature

    @property
    def fingerprint(self) -> str:
        """Return the wrapped engine's fingerprint."""
        return self._engine.fingerprint

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the wrapped engine's estimate."""
        return self._engine.memory_bytes(shapes)

    def warm_up(self) -> None:
        """Run once, unrecorded."""
        self._engine.warm_up()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name, and keep it."""
        started = self._clock.monotonic()
        outputs = self._engine.run(inputs)
        self.seconds += self._clock.monotonic() - started
        self._outputs.append(outputs)
        return outputs

    def take_outputs(self) -> list[Outputs]:
        """Return what was kept since it was asked last, in order of the runs, and forget it."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()


def difference(
    exact: Iterable[Outputs],
    found: Iterable[Outputs],
    *,
    label_tensor: str,
    cut: float | None,
) -> Difference:
    """Return how far `found` is from `exact`, run by run.

    Parameters
    ----------
    label_tensor
        The output whose channels (axis 1) are the classes.
    cut
        Value above which a class is given, in the tensor's own numbers; None: the largest channel wins.

    Raises
    ------
    ValueError
        The two did not run equally often, or an output is of another shape.
    """
    worst: dict[str, float] = {}
    scale: dict[str, float] = {}
    n_positions = n_other = 0
    for ours, theirs in zip(exact, found, strict=True):
        for name, array in ours.items():
            other = theirs[name]
            if array.shape != other.shape:
                raise ValueError(f"output {name!r} has the shape {other.shape}, the reference {array.shape}")
            apart = float(np.abs(other.astype(np.float64) - array).max(initial=0.0))
            worst[name] = max(worst.get(name, 0.0), apart if np.isfinite(apart) else np.inf)
            scale[name] = max(scale.get(name, 0.0), float(np.abs(array).max(initial=0.0)))
        labels, others = (_labels(outputs[label_tensor], cut) for outputs in (ours, theirs))
        n_positions += labels.size
        n_other += int(np.count_nonzero(labels != others))
    relative = max((worst[name] / (scale[name] or 1.0) for name in worst), default=0.0)
    return Difference(relative_error=relative, n_positions=n_positions, n_other_label=n_other)


def logit_of(probability: float) -> float:
    """Return the logit whose sigmoid is the probability, which lies between 0 and 1."""
    return float(np.log(probability) - np.log1p(-probability))


def _labels(output: NDArray[np.float32], cut: float | None) -> NDArray[Any]:
    return np.asarray(output.argmax(axis=1)) if cut is None else np.asarray(output >= cut)
