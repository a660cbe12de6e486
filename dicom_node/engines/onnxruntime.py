"""ONNX Runtime on the CPU: the reference that every other engine is compared with.

A session is built from bytes whose digest was verified, never from a path: what was checked is what runs. A model is
one file: weights outside it ("external data") would be read from wherever the model says, by a path that a stranger
wrote (CVE-2022-25882, CVE-2024-27318), so such a model is refused before the runtime sees it.

The node does not carry the `onnx` package for that one question; the few fields are read from the protocol buffer
here (field numbers: onnx/onnx.proto, IR version 3 and later).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as faults

from dicom_node.engines.base import Signature, TensorSpec
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

_WARM_UP_EDGE = 32
"""Voxels along a dynamic spatial axis in a warm-up run."""

_LIVE_TENSORS = 4
"""Tensors as wide as the first convolution's output that live at once: its input, its output, a skip connection and
the runtime's working copy; measured on mindgrab and on a U-Net."""

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
        try:
            tensors = list(_tensors(model))
        except (IndexError, ValueError) as error:
            raise PluginError("the model file is no ONNX model") from error
        if any(is_external for _, is_external in tensors):
            raise PluginError("the model keeps its weights in another file; a model is one ONNX file")
        kernels = [dims for dims, _ in tensors if len(dims) >= 3]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _SEVERITY_FATAL
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except _FAULTS as error:
            raise _translated(error, loading=True) from error
        return cls(session, model_bytes=len(model), width=kernels[0][0] if kernels else 1)

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
        inputs = sum(int(np.prod(shape)) for shape in shapes.values())
        positions = max((int(np.prod(shape)) // shape[1] for shape in shapes.values() if len(shape) > 1), default=0)
        outputs = sum(spec.shape[1] or 1 for spec in self._signature.outputs if len(spec.shape) > 1) * positions
        return 4 * (inputs + outputs + _LIVE_TENSORS * self._width * positions) + 2 * self._model_bytes

    def warm_up(self) -> None:
        """Run once on zeros: one sample, 32 along each axis that is dynamic."""
        self.run(
            {
                spec.name: np.zeros(
                    [size or (1 if axis == 0 else _WARM_UP_EDGE) for axis, size in enumerate(spec.shape)],
                    dtype=np.float32,
                )
                for spec in self._signature.inputs
            }
        )

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


_MESSAGES: dict[tuple[str, int], str] = {
    ("model", 7): "graph",
    ("model", 25): "function",
    ("function", 7): "node",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse",
    ("sparse", 1): "tensor",
    ("sparse", 2): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse",
    ("attribute", 23): "sparse",
}
"""(message, field number) -> message: every way from a ModelProto that runs down to a TensorProto."""

_TENSOR_DIMS, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 13, 14


def _tensors(data: bytes) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Yield (dimensions, has external data) of every tensor that a serialised ModelProto holds.

    Raises
    ------
    IndexError, ValueError
        The bytes are no protocol buffer.
    """
    waiting = [("model", memoryview(data))]
    while waiting:
        kind, body = waiting.pop()
        fields = list(_fields(body))
        if kind == "tensor":
            yield (
                _dims(fields),
                any(
                    number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value == 1)
                    for number, value in fields
                ),
            )
            continue
        children = [
            (_MESSAGES[kind, number], value)
            for number, value in fields
            if (kind, number) in _MESSAGES and isinstance(value, memoryview)
        ]
        waiting.extend(reversed(children))


def _dims(fields: list[tuple[int, int | memoryview]]) -> tuple[int, ...]:
    """Return the dimensions of a TensorProto, packed or not."""
    dims: list[int] = []
    for number, value in fields:
        if number != _TENSOR_DIMS:
            continue
        if isinstance(value, int):
            dims.append(value)
            continue
        at = 0
        while at < len(value):
            size, at = _varint(value, at)
            dims.append(size)
    return tuple(dims)


def _fields(body: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message: an integer, or the bytes of a field with a length."""
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        number, wire = key >> 3, key & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(body, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = body[at : at + size], at + size
        elif wire == 2:
            size, at = _varint(body, at)
            value, at = body[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(body):
            raise ValueError("a field is longer than its message")
        yield number, value


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    """Return a base-128 integer and where the next field begins."""
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
