"""OpenVINO on the CPU: often faster than the reference, and held to the reference's arithmetic.

Left alone, OpenVINO computes in bfloat16 on a processor that has it; results would then depend on the machine. The
precision is therefore always said, and stands in the fingerprint. Threads are never pinned to cores: two children that
each pin theirs would sit on the same ones.

The package reports each import to its makers (openvino.tools.ovc sends an event through `openvino_telemetry`, and
leaves a client id in the home folder). A node in a hospital sends nothing home: the telemetry is made unfindable before
the import, and the package then falls back on its own empty stand-in (openvino/tools/ovc/telemetry_utils.py).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.engines.base import Setting, Signature, TensorSpec, estimated_bytes, zeros_for
from dicom_node.engines.onnx_file import first_kernel_width
from dicom_node.errors import EngineError, OutOfMemoryError, UnsupportedModelError

# None in sys.modules: the import of that name fails (Python reference, "The module cache").
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402  (after the line above)

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""Our spelling -> OpenVINO's INFERENCE_PRECISION_HINT."""

_FAULTS: tuple[type[Exception], ...] = (MemoryError, RuntimeError, TypeError, ValueError)
"""What OpenVINO's binding raises (its own errors are RuntimeError)."""


class OpenVinoEngine:
    """An ONNX model on OpenVINO's CPU plugin."""

    def __init__(self, compiled: Any, *, precision: str, model_bytes: int, width: int) -> None:
        """Take a compiled model that `load` made."""
        self._request: Any = compiled.create_infer_request()
        self._precision = precision
        self._model_bytes = model_bytes
        self._width = width
        self._signature = Signature(inputs=_specs(compiled.inputs), outputs=_specs(compiled.outputs))

    @classmethod
    def load(cls, model: bytes, setting: Setting) -> OpenVinoEngine:
        """Return an engine for the model in these bytes, their digest verified.

        Raises
        ------
        PluginError
            The bytes are no ONNX model, or its weights lie outside of it.
        UnsupportedModelError
            OpenVINO lacks an operator, a version or the precision.
        """
        width = first_kernel_width(model)
        if setting.precision not in _PRECISIONS:
            raise UnsupportedModelError(f"OpenVINO offers {', '.join(_PRECISIONS)}, not {setting.precision}")
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[setting.precision],
            "INFERENCE_NUM_THREADS": setting.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        if not setting.threads:
            del options["INFERENCE_NUM_THREADS"]
        try:
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(model=model), "CPU", options)
            return cls(compiled, precision=setting.precision, model_bytes=len(model), width=width)
        except _FAULTS as error:
            raise UnsupportedModelError(f"OpenVINO cannot run this model: {_words(error)}") from error

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        return self._signature

    @property
    def fingerprint(self) -> str:
        """Return runtime, version, device and precision."""
        return f"openvino {openvino.__version__.split('-')[0]} CPU {self._precision}"

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return roughly the memory of a run: the model, its inputs and outputs, and the tensors at full resolution."""
        return estimated_bytes(self._signature, shapes, model_bytes=self._model_bytes, width=self._width)

    def warm_up(self) -> None:
        """Run once on zeros: one sample, 32 along each axis that is dynamic."""
        self.run(zeros_for(self._signature))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name (see `Engine.run`)."""
        if self._request is None:
            raise EngineError("the engine was closed")
        _check_inputs(self._signature, inputs)
        try:
            # The input is read before `infer` returns; the output is the request's own memory, so it is copied.
            outputs = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        except _FAULTS as error:
            text = _words(error)
            if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate" in text:
                raise OutOfMemoryError(f"too little memory for this input: {text}") from error
            raise EngineError(f"OpenVINO failed: {text}") from error
        return {spec.name: outputs[spec.name] for spec in self._signature.outputs}

    def close(self) -> None:
        """Give the memory back."""
        self._request = None


def _check_inputs(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse what the model does not declare: OpenVINO would convert another type in silence."""
    wanted = {spec.name: spec for spec in signature.inputs}
    if set(wanted) != set(inputs):
        raise EngineError(f"the model takes {', '.join(sorted(wanted))}; it was given {', '.join(sorted(inputs))}")
    for name, array in inputs.items():
        spec = wanted[name]
        fits = len(array.shape) == len(spec.shape) and all(
            size is None or size == has for size, has in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or str(array.dtype) != spec.dtype:
            raise EngineError(f"the model takes {spec}; it was given {array.dtype} {list(array.shape)}")


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=port.get_any_name(),
            dtype=np.dtype(port.get_element_type().to_dtype()).name,
            shape=tuple(
                None if dimension.is_dynamic else dimension.get_length() for dimension in port.get_partial_shape()
            ),
        )
        for port in ports
    )


def _words(error: Exception) -> str:
    """Return the last lines of OpenVINO's message: those before name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return "; ".join((told or lines)[-3:])
