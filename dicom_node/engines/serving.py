"""The engine that serves: a chosen one, with the reference behind it.

Runs are cut into batches that the chosen engine is made for; too little memory halves the batch, and when one sample is
too much, or the device is lost, the reference takes over for the rest of this engine's life. What happened is kept in
words for the job (`events`); the fingerprint is that of the engine that ran last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.engines.base import Engine, Signature
from dicom_node.errors import DeviceLostError, EngineError, OutOfMemoryError


class ServingEngine:
    """One engine, and the reference for when it cannot."""

    def __init__(
        self, chosen: Engine, reference: Callable[[], Engine] | None, *, batch: int | None = None, pads: bool = False
    ) -> None:
        """Take what shall serve.

        Parameters
        ----------
        reference
            Makes the engine that takes over; called once, when it is needed. None: `chosen` is the reference.
        batch
            Samples of one run at most; None: as many as come.
        pads
            True: a last, smaller batch is filled up with zeros, so that every run has the shape of the first.
        """
        self._engine = chosen
        self._reference = reference
        self._has_fallen_back = False
        self._batch = batch
        self._pads = pads
        self._events: list[str] = []

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        return self._engine.signature

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the engine that serves now."""
        return self._engine.fingerprint

    @property
    def has_fallen_back(self) -> bool:
        """Return whether the reference has taken over."""
        return self._has_fallen_back

    def take_events(self) -> tuple[str, ...]:
        """Return what happened since it was asked last, in words."""
        events, self._events = tuple(self._events), []
        return events

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the serving engine's estimate."""
        return self._engine.memory_bytes(shapes)

    def warm_up(self) -> None:
        """Run once on a small input."""
        self._engine.warm_up()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name (see `Engine.run`)."""
        n_samples = min((len(array) for array in inputs.values()), default=0)
        parts: list[dict[str, NDArray[np.float32]]] = []
        done = 0
        while done < n_samples or not parts:
            size = max(1, min(self._batch or n_samples, n_samples - done))
            part = {name: array[done : done + size] for name, array in inputs.items()} if n_samples else dict(inputs)
            try:
                parts.append(self._run_part(part, size))
            except OutOfMemoryError as error:
                self._give_way(size, error)
                continue
            except DeviceLostError as error:
                self._fall_back(error)
                continue
            done += size
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()

    def _run_part(self, part: dict[str, NDArray[Any]], size: int) -> dict[str, NDArray[np.float32]]:
        missing = (self._batch or size) - size
        if not (self._pads and missing):
            return self._engine.run(part)
        filled = {
            name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
            for name, array in part.items()
        }
        return {name: output[:size] for name, output in self._engine.run(filled).items()}

    def _give_way(self, size: int, error: OutOfMemoryError) -> None:
        """Halve the batch, or hand over when it cannot be halved."""
        ran = (self._batch or size) if self._pads else size
        if ran == 1:
            self._fall_back(error)
            return
        self._batch = ran // 2
        self._events.append(
            f"{self.fingerprint}: too little memory for {ran} samples at once, {self._batch} from here on"
        )

    def _fall_back(self, error: OutOfMemoryError | DeviceLostError) -> None:
        """Let the reference serve from here on.

        Raises
        ------
        OutOfMemoryError, DeviceLostError
            The reference serves already.
        """
        if self._reference is None:
            raise error
        lost, self._engine, self._reference = self._engine, self._reference(), None
        self._batch, self._pads, self._has_fallen_back = None, False, True
        self._events.append(f"{lost.fingerprint} could not go on ({error}); {self.fingerprint} took over")
        with contextlib.suppress(EngineError):
            # A device that is lost takes nothing back either.
            lost.close()
