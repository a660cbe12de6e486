"""TensorRT and TensorRT-RTX: one adapter, the library's module handed in.

Loading asks a child process for the card first (`probe_gpu`), then takes the engine from the cache or builds it. One
execution context, one stream, one set of buffers: one engine serves one slot. Runs of one shape are recorded as a CUDA
graph the second time they come. Nothing here could be run where it was written: names are held against the real
bindings (tests/unit/test_tensorrt_api.py), the order of calls against a CUDA in host memory (test_tensorrt_run.py), and
`make test-gpu` runs the real thing where there is a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.engines.base import Setting, Signature, TensorSpec, zeros_for
from dicom_node.engines.cache import CacheKey, EngineCache
from dicom_node.engines.cuda import Buffer, Cuda
from dicom_node.engines.onnx_file import first_kernel_width
from dicom_node.engines.probe import Gpu, probe_gpu
from dicom_node.engines.tensorrt_build import build, flags_of, make_logger, model_digest
from dicom_node.errors import EngineError, OutOfMemoryError, UnsupportedModelError

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(slots=True)
class _Prepared:
    """The buffers of one set of input shapes, and the graph once it was recorded."""

    shapes: Shapes
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]
    runs: int = 0
    graph: Any = None


class TensorRtEngine:
    """An ONNX model as a TensorRT engine on one card."""

    def __init__(self, trt: Any, plan: bytes, cuda: Cuda, *, words: str) -> None:
        """Take a plan that this node built for this card.

        Raises
        ------
        UnsupportedModelError
            The library does not take the plan.
        OutOfMemoryError
            The card has too little memory for it.
        """
        self._logger, self._journal = make_logger(trt)
        self._cuda = cuda
        self._words = words
        runtime = trt.Runtime(self._logger)
        cuda_engine = runtime.deserialize_cuda_engine(plan)
        if cuda_engine is None:
            raise self._fault("the engine cannot be loaded", UnsupportedModelError)
        context = cuda_engine.create_execution_context()
        if context is None:
            raise self._fault("the engine has no room to run", OutOfMemoryError)
        # The runtime must outlive what it made.
        self._runtime, self._cuda_engine, self._context = runtime, cuda_engine, context
        self._capturable = getattr(context, "is_stream_capturable", None)
        self._prepared: _Prepared | None = None
        self._signature = _signature(trt, cuda_engine)

    @classmethod
    def load(cls, model: bytes, setting: Setting, *, trt: Any, name: str) -> TensorRtEngine:
        """Return an engine for the model in these bytes, their digest verified: from the cache, or built.

        Raises
        ------
        PluginError
            The bytes are no ONNX model, or its weights lie outside of it.
        UnsupportedModelError
            There is no card, or TensorRT cannot run this model.
        OutOfMemoryError
            The card has too little memory.
        """
        first_kernel_width(model)
        gpu = probe_gpu(setting.device)
        # Only now: without a driver a TensorRT object may end the process.
        from cuda.bindings import runtime as cudart

        cuda = Cuda(cudart, setting.device)
        plan = plan_of(model, setting, gpu, trt=trt, name=name)
        words = f"{name} {trt.__version__} {gpu.name} (sm {gpu.compute_capability}, {gpu.driver}) {setting.precision}"
        return cls(trt, plan, cuda, words=words)

    @property
    def signature(self) -> Signature:
        """Return the tensors that the model declares."""
        return self._signature

    @property
    def fingerprint(self) -> str:
        """Return library, version, card, driver and precision."""
        return self._words

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return the device memory of a run with these shapes: activations, inputs and outputs."""
        for name, shape in shapes.items():
            self._set_shape(name, shape)
        held = sum(int(np.prod(shape)) * 4 for shape in shapes.values())
        held += sum(
            int(np.prod(tuple(self._context.get_tensor_shape(spec.name)))) * np.dtype(spec.dtype).itemsize
            for spec in self._signature.outputs
        )
        self._release()
        return held + int(self._cuda_engine.device_memory_size_v2)

    def warm_up(self) -> None:
        """Run once on zeros: one sample, 32 along each axis that is dynamic, within the profile."""
        inputs = zeros_for(self._signature)
        for name, array in inputs.items():
            least, _, most = (tuple(shape) for shape in self._cuda_engine.get_tensor_profile_shape(name, 0))
            shape = tuple(min(max(size, a), b) for size, a, b in zip(array.shape, least, most, strict=True))
            inputs[name] = np.zeros(shape, array.dtype)
        self.run(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name (see `Engine.run`)."""
        if self._context is None:
            raise EngineError("the engine was closed")
        prepared = self._prepare(inputs)
        for name, array in inputs.items():
            np.copyto(prepared.inputs[name].host, array, casting="no")
        if prepared.graph is not None:
            self._cuda.launch(prepared.graph)
        elif prepared.runs and self._may_capture():
            # The first run of a shape may allocate, which a graph may not: the second one is recorded.
            self._cuda.begin_capture()
            try:
                self._enqueue(prepared)
            finally:
                # A stream that is left in capture takes nothing more.
                graph = self._cuda.end_capture()
            prepared.graph = graph
            self._cuda.launch(prepared.graph)
        else:
            self._enqueue(prepared)
        self._cuda.wait()
        prepared.runs += 1
        return {name: buffer.host.astype(np.float32, copy=True) for name, buffer in prepared.outputs.items()}

    def close(self) -> None:
        """Give the memory of the card back."""
        if self._context is None:
            return
        self._release()
        self._context = self._cuda_engine = self._runtime = None
        self._cuda.close()

    def _enqueue(self, prepared: _Prepared) -> None:
        for buffer in prepared.inputs.values():
            buffer.upload()
        context = self._context
        if not context.execute_async_v3(int(self._cuda.stream)):
            raise self._fault("the run could not begin", EngineError)
        for buffer in prepared.outputs.values():
            buffer.download()

    def _may_capture(self) -> bool:
        """Return whether the library lets this context be recorded; TensorRT proper always does."""
        return self._capturable is None or bool(self._capturable(int(self._cuda.stream)))

    def _prepare(self, inputs: Mapping[str, NDArray[Any]]) -> _Prepared:
        """Return buffers for inputs of these shapes: those of the run before, or new ones."""
        _check_names(self._signature, inputs)
        shapes: Shapes = tuple(sorted((name, array.shape) for name, array in inputs.items()))
        if self._prepared is not None and self._prepared.shapes == shapes:
            return self._prepared
        self._release()
        for name, shape in shapes:
            self._set_shape(name, shape)
        prepared = _Prepared(shapes=shapes, inputs={}, outputs={})
        # Kept before it is complete: what an allocation that fails leaves behind is released with it.
        self._prepared = prepared
        try:
            for spec in (*self._signature.inputs, *self._signature.outputs):
                shape = tuple(self._context.get_tensor_shape(spec.name))
                buffer = Buffer(self._cuda, shape, np.dtype(spec.dtype))
                (prepared.inputs if spec in self._signature.inputs else prepared.outputs)[spec.name] = buffer
                self._context.set_tensor_address(spec.name, buffer.device)
        except EngineError:
            self._release()
            raise
        return prepared

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        context = self._context
        if not context.set_input_shape(name, shape):
            raise self._fault(f"input {name!r} cannot have the shape {list(shape)}", EngineError)

    def _release(self) -> None:
        """Give graph and buffers back."""
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            return
        if prepared.graph is not None:
            self._cuda.destroy_graph(prepared.graph)
        for buffer in (*prepared.inputs.values(), *prepared.outputs.values()):
            buffer.free()

    def _fault(self, what: str, kind: type[EngineError]) -> EngineError:
        """Return an error with what the library said; too little memory is always called so."""
        words = self._journal.words()
        if "out of memory" in words.lower() or "OutOfMemory" in words:
            kind = OutOfMemoryError
        return kind(f"TensorRT: {what}: {words}")


def plan_of(model: bytes, setting: Setting, gpu: Gpu, *, trt: Any, name: str, capability: str | None = None) -> bytes:
    """Return the serialised engine for this card: from the cache if this node built it, else built and kept."""
    cache = EngineCache(setting.cache)
    key = CacheKey(
        model_sha256=model_digest(model),
        profile=setting.profile,
        precision=setting.precision,
        flags=flags_of(setting.precision, capability),
        builder=f"{name} {trt.__version__}",
        driver=gpu.driver,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
    )
    plan = cache.get(key)
    if plan is not None:
        return plan
    timing_key = CacheKey(
        model_sha256="",
        profile=(),
        precision="timing cache",
        flags={},
        builder=key.builder,
        driver=key.driver,
        gpu=key.gpu,
        compute_capability=key.compute_capability,
    )
    plan, timing = build(
        trt,
        model,
        setting.profile,
        precision=setting.precision,
        timing_cache=cache.get(timing_key) or b"",
        capability=capability,
    )
    cache.put(key, plan)
    if timing:
        cache.put(timing_key, timing)
    return plan


def _signature(trt: Any, cuda_engine: Any) -> Signature:
    """Return the tensors of an engine: its own shapes, dynamic axes open."""
    specs: dict[bool, list[TensorSpec]] = {True: [], False: []}
    for index in range(cuda_engine.num_io_tensors):
        name = cuda_engine.get_tensor_name(index)
        spec = TensorSpec(
            name=name,
            dtype=np.dtype(trt.nptype(cuda_engine.get_tensor_dtype(name))).name,
            shape=tuple(None if size < 0 else int(size) for size in cuda_engine.get_tensor_shape(name)),
        )
        specs[cuda_engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(spec)
    return Signature(inputs=tuple(specs[True]), outputs=tuple(specs[False]))


def _check_names(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> None:
    wanted = {spec.name: spec for spec in signature.inputs}
    if set(wanted) != set(inputs):
        raise EngineError(f"the model takes {', '.join(sorted(wanted))}; it was given {', '.join(sorted(inputs))}")
    for name, array in inputs.items():
        if str(array.dtype) != wanted[name].dtype or array.ndim != len(wanted[name].shape):
            raise EngineError(f"the model takes {wanted[name]}; it was given {array.dtype} {list(array.shape)}")
