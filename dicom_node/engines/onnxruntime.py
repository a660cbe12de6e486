"""ONNX Runtime on the CPU: the reference that every other engine is compared with.

A session is built from bytes whose digest was verified, never from a path: what was checked is what runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from dicom_node.engines.base import Signature, TensorSpec, estimated_bytes, zeros_for
from dicom_node.engines.onnx_file import first_kernel_width
from dicom_node.errors import (
    EngineError,
    ModelMismatchError,
    OutOfMemoryError,
    PluginError,
    UnsupportedModelError,
)

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
"""ONNX Runtime's spelling -> numpy's; what is not listed keeps ONNX Runtime's."""

_FAULTS: tuple[type[Exception], ...] = (
    faults.EPFail,
    faults.Fail,
    faults.InvalidArgument,
    faults.InvalidGraph,
    faults.InvalidProtobuf,
    faults.NotImplemented,
    faults.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises: its own classes share no base but Exception."""

_SEVERITY_FATAL = 4
"""What ONNX Runtime would print, it also raises."""


def load_model(path: Path, sha256: str) -> bytes:
    """Return the bytes of a model file whose SHA-256 is the declared one.

    Raises
    ------
    PluginError
        The file cannot be read.
    ModelMismatchError
        The digest is another one; both are named.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise PluginError(f"the model file {path.name} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(model).hexdigest()
    if found != sha256.lower():
        raise ModelMismatchError(f"{path.name} has sha256 {found}, the manifest declares {sha256}; install it again")
    return model


class OnnxRuntimeEngine:
    """An ONNX model on ONNX Runtime's CPU provider, float32."""

    def __init__(self, session: Any, *, model_bytes: int, width: int) -> None:
        """Take a session that `load` made; `width` is the number of channels of its first convolution."""
        self._session: Any = session
        self._model_bytes = model_bytes
        self._width = width
        self._run_options = onnxruntime.RunOptions()
        # The arena would keep the peak of the largest study for as long as the child lives; but without one a large
        # 3D run takes twice the time, in page faults.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._signature = Signature(inputs=_specs(session.get_inputs()), outputs=_specs(session.get_outputs()))

    @classmethod
    def load(cls, model: bytes, *, threads: int) -> OnnxRuntimeEngine:
        """Return an engine for the model in these bytes.

        Parameters
        ----------
        model
            A single-file ONNX model, its digest verified (`load_model`).
        threads
            0: as many as the machine has cores.

        Raises
        ------
        PluginError
            The bytes are no ONNX model, or its weights lie outside of it.
        UnsupportedModelError
            The runtime lacks an operator or a version that the model needs.
        """
        width = first_kernel_width(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _SEVERITY_FATAL
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except _FAULTS as error:
            raise _translated(error, loading=True) from error
        return cls(session, model_bytes=len(model), width=width)

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        return self._signature

    @property
    def fingerprint(self) -> str:
        """Return runtime, version, device and precision."""
        return f"onnxruntime {onnxruntime.__version__} CPU fp32"

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return roughly the memory of a run: the model, its inputs and outputs, and the tensors at full resolution."""
        return estimated_bytes(self._signature, shapes, model_bytes=self._model_bytes, width=self._width)

    def warm_up(self) -> None:
        """Run once on zeros: one sample, 32 along each axis that is dynamic."""
        self.run(zeros_for(self._signature))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name (see `Engine.run`)."""
        if self._session is None:
            raise EngineError("the engine was closed")
        names = [spec.name for spec in self._signature.outputs]
        try:
            outputs = self._session.run(names, dict(inputs), self._run_options)
        except _FAULTS as error:
            raise _translated(error, loading=False) from error
        return dict(zip(names, outputs, strict=True))

    def close(self) -> None:
        """Give the memory back."""
        self._session = None


def _specs(arguments: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=argument.name,
            dtype=_DTYPES.get(argument.type, argument.type),
            shape=tuple(size if isinstance(size, int) else None for size in argument.shape),
        )
        for argument in arguments
    )


def _translated(error: Exception, *, loading: bool) -> EngineError:
    """Return our error for one of ONNX Runtime's."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return OutOfMemoryError(f"too little memory for this input: {text}")
    if loading:
        return UnsupportedModelError(f"ONNX Runtime cannot run this model: {text}")
    return EngineError(f"ONNX Runtime failed: {text}")
