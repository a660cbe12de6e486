"""The order of calls on a card, against a CUDA whose device is host memory and a TensorRT whose engine adds one.

Shows what the bindings' names cannot: copies go through the stream, graphs replay the copies, memory is given back on
every way out. Numbers and speed of a real card are `make test-gpu`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dicom_node.engines.cuda import Cuda
from dicom_node.engines.tensorrt import TensorRtEngine
from dicom_node.errors import DeviceLostError, EngineError, OutOfMemoryError, UnsupportedModelError


class Status(Enum):
    cudaSuccess = 0  # noqa: N815 (NVIDIA's names)
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


class HostCuda:
    """The CUDA runtime over host memory: what goes into the stream is done when it is waited for."""

    cudaError_t = Status  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaHostAllocDefault = 0  # noqa: N815

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.queue: list[Callable[[], None]] = []
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs = 0
        self.launches = 0
        self.most = 1 << 30
        self.broken = False

    def _allocate(self, size: int) -> tuple[Status, int | None]:
        if sum(map(len, self.held.values())) + size > self.most:
            return Status.cudaErrorMemoryAllocation, None
        memory = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(memory)
        self.held[address] = memory
        return Status.cudaSuccess, address

    def _free(self, address: int) -> tuple[Status]:
        del self.held[address]
        return (Status.cudaSuccess,)

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.queue if self.capturing is None else self.capturing).append(work)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Status]:  # noqa: N802
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:  # noqa: N802
        if self.broken:
            return (Status.cudaErrorIllegalAddress,)
        queue, self.queue = self.queue, []
        for work in queue:
            work()
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:  # noqa: N802
        self.capturing = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, Any]:  # noqa: N802
        captured, self.capturing = self.capturing, None
        return Status.cudaSuccess, captured

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Status, Any]:  # noqa: N802
        self.graphs += 1
        return Status.cudaSuccess, list(graph)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Status]:  # noqa: N802
        self.launches += 1
        self.queue.extend(graph)
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Status]:  # noqa: N802
        self.graphs -= 1
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaSetDevice(self, device: int) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaStreamCreate(self) -> tuple[Status, int]:  # noqa: N802
        return Status.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaGetLastError(self) -> tuple[Status]:  # noqa: N802
        return (Status.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Status, int | None]:  # noqa: N802
        return self._allocate(size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Status, int | None]:  # noqa: N802
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[Status]:  # noqa: N802
        return self._free(address)

    def cudaFreeHost(self, address: int) -> tuple[Status]:  # noqa: N802
        return self._free(address)


class Context:
    """An execution context whose network adds one to `x` (N, 4), N at most 8, and calls it `y`."""

    def __init__(self, cuda: HostCuda) -> None:
        self.cuda = cuda
        self.shape = (1, 4)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 8

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        addresses, size = dict(self.addresses), int(np.prod(self.shape))

        def add_one() -> None:
            x, y = ((ctypes.c_float * size).from_address(addresses[name]) for name in ("x", "y"))
            np.frombuffer(y, np.float32)[:] = np.frombuffer(x, np.float32) + 1

        self.cuda.enqueue(add_one)
        return True


def _library(cuda: HostCuda, *, refuses: bool = False) -> Any:
    """Return the part of TensorRT that runs engines."""
    tensors = {"x": 0, "y": 1}
    engine = SimpleNamespace(
        num_io_tensors=2,
        device_memory_size_v2=1000,
        create_execution_context=lambda: Context(cuda),
        get_tensor_name=lambda index: list(tensors)[index],
        get_tensor_dtype=lambda *_: np.float32,
        get_tensor_shape=lambda *_: (-1, 4),
        get_tensor_mode=lambda name: tensors[name],
        get_tensor_profile_shape=lambda *_: [(1, 4), (4, 4), (8, 4)],
    )

    class Listener:
        ERROR, INTERNAL_ERROR = 1, 0

    return SimpleNamespace(
        ILogger=Listener,
        TensorIOMode=SimpleNamespace(INPUT=0),
        nptype=lambda dtype: dtype,
        Runtime=lambda *_: SimpleNamespace(deserialize_cuda_engine=lambda *_: None if refuses else engine),
    )


@pytest.fixture
def cuda() -> HostCuda:
    """Return an empty device."""
    return HostCuda()


@pytest.fixture
def engine(cuda: HostCuda) -> TensorRtEngine:
    """Return an engine on it."""
    return TensorRtEngine(_library(cuda), b"plan", Cuda(cuda, 0), words="tensorrt 11 card fp32")


def _x(n_samples: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((n_samples, 4), dtype=np.float32)


def test_runs_answer_and_the_third_is_a_graph(engine: TensorRtEngine, cuda: HostCuda) -> None:
    """First run: plain. Second: recorded and launched. Third: launched. Each with its own input, each answer a copy."""
    answers = [engine.run({"x": _x(3, seed)})["y"] for seed in range(3)]
    for seed, answer in enumerate(answers):
        assert np.array_equal(_x(3, seed) + 1, answer)
    assert (1, 2) == (cuda.graphs, cuda.launches)


def test_another_shape_takes_other_buffers(engine: TensorRtEngine, cuda: HostCuda) -> None:
    """The buffers of the shape before, and its graph, are given back first."""
    for _ in range(2):
        engine.run({"x": _x(3)})
    held = sum(map(len, cuda.held.values()))
    assert np.array_equal(_x(6) + 1, engine.run({"x": _x(6)})["y"])
    assert (2 * held, 0) == (sum(map(len, cuda.held.values())), cuda.graphs)
    engine.close()
    assert {} == cuda.held
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": _x(3)})


def test_too_little_memory_leaves_nothing_behind(engine: TensorRtEngine, cuda: HostCuda) -> None:
    """An allocation that fails half-way gives the rest back, and a smaller run goes on."""
    for most in range(0, 4 * 6 * 16, 16):
        cuda.most = most
        with pytest.raises(OutOfMemoryError):
            engine.run({"x": _x(6)})
        assert {} == cuda.held
    cuda.most = 4 * 3 * 16
    assert np.array_equal(_x(3) + 1, engine.run({"x": _x(3)})["y"])


def test_lost_device_is_told_from_a_failed_run(engine: TensorRtEngine, cuda: HostCuda) -> None:
    """An illegal address ends the context: DeviceLostError."""
    cuda.broken = True
    with pytest.raises(DeviceLostError, match="cudaErrorIllegalAddress"):
        engine.run({"x": _x(3)})


def test_shape_outside_the_profile_is_an_error(engine: TensorRtEngine) -> None:
    """Nine samples where eight are the most; other names and types are refused before the card sees them."""
    with pytest.raises(EngineError, match="cannot have the shape"):
        engine.run({"x": _x(9)})
    with pytest.raises(EngineError, match="takes x"):
        engine.run({"z": _x(1)})
    with pytest.raises(EngineError, match="float64"):
        engine.run({"x": _x(1).astype(np.float64)})


def test_plan_that_the_library_refuses_is_unsupported(cuda: HostCuda) -> None:
    """A damaged or foreign plan gives an error of ours."""
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        TensorRtEngine(_library(cuda, refuses=True), b"plan", Cuda(cuda, 0), words="")


def test_warm_up_and_memory_stay_within_the_profile(engine: TensorRtEngine, cuda: HostCuda) -> None:
    """One sample warms up; the estimate is activations, inputs and outputs."""
    engine.warm_up()
    assert 1000 + 2 * 4 * 4 * 5 == engine.memory_bytes({"x": (5, 4)})
    assert {} == cuda.held
