"""Device memory, pinned host memory, one stream and graphs, by NVIDIA's own bindings of the CUDA runtime.

The module `cuda.bindings.runtime` is handed in. Each call is checked: too little memory is OutOfMemoryError; errors
after which a CUDA context answers no more (CUDA Runtime API, "Data types used by CUDA Runtime", cudaError) are
DeviceLostError. tests/unit/test_tensorrt_api.py compares each name with the real bindings.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import DeviceLostError, EngineError, OutOfMemoryError

_OUT_OF_MEMORY: Final = frozenset({"cudaErrorMemoryAllocation"})
_LOST: Final = frozenset(
    {
        "cudaErrorIllegalAddress",
        "cudaErrorLaunchTimeout",
        "cudaErrorAssert",
        "cudaErrorHardwareStackError",
        "cudaErrorIllegalInstruction",
        "cudaErrorMisalignedAddress",
        "cudaErrorInvalidAddressSpace",
        "cudaErrorInvalidPc",
        "cudaErrorLaunchFailure",
        "cudaErrorECCUncorrectable",
        "cudaErrorNvlinkUncorrectable",
        "cudaErrorDevicesUnavailable",
        "cudaErrorContained",
        "cudaErrorUnknown",
    }
)


class Buffer:
    """One tensor in pinned host memory and in device memory, of the same size."""

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        self.nbytes = max(1, int(np.prod(shape)) * dtype.itemsize)
        self.device = int(cuda.call("cudaMalloc", self.nbytes))
        try:
            self._host = int(cuda.call("cudaHostAlloc", self.nbytes, cuda.cudart.cudaHostAllocDefault))
        except EngineError:
            cuda.call("cudaFree", self.device)
            raise
        memory = memoryview((ctypes.c_uint8 * self.nbytes).from_address(self._host))
        self.host: NDArray[Any] = np.frombuffer(memory, dtype=dtype, count=int(np.prod(shape))).reshape(shape)
        """The pinned memory as an array: valid until `free`."""

    def upload(self) -> None:
        """Begin to copy host to device, in the stream."""
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda.call("cudaMemcpyAsync", self.device, self._host, self.nbytes, kind, self._cuda.stream)

    def download(self) -> None:
        """Begin to copy device to host, in the stream."""
        kind = self._cuda.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda.call("cudaMemcpyAsync", self._host, self.device, self.nbytes, kind, self._cuda.stream)

    def free(self) -> None:
        """Give both memories back."""
        self._cuda.call("cudaFree", self.device)
        self._cuda.call("cudaFreeHost", self._host)


class Cuda:
    """One device with one stream."""

    def __init__(self, cudart: Any, device: int) -> None:
        """Choose the device and make a stream; `probe_gpu` has found it."""
        self.cudart = cudart
        self.call("cudaSetDevice", device)
        self.stream = self.call("cudaStreamCreate")

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what a function of the runtime gives beside its status.

        Raises
        ------
        OutOfMemoryError
            The device, or the pinned memory of the host, is used up.
        DeviceLostError
            The context answers no more.
        EngineError
            Any other status.
        """
        status, *values = getattr(self.cudart, name)(*arguments)
        if status == self.cudart.cudaError_t.cudaSuccess:
            return values[0] if values else None
        if status.name in _OUT_OF_MEMORY:
            # The status stays behind and would be the next call's answer.
            self.cudart.cudaGetLastError()
            raise OutOfMemoryError(f"{name}: {status.name}")
        raise (DeviceLostError if status.name in _LOST else EngineError)(f"{name}: {status.name}")

    def free_bytes(self) -> int:
        """Return how much device memory is free now."""
        status, free, _ = self.cudart.cudaMemGetInfo()
        return int(free) if status == self.cudart.cudaError_t.cudaSuccess else 0

    def wait(self) -> None:
        """Wait until all that was begun is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def begin_capture(self) -> None:
        """Record what comes into the stream instead of doing it."""
        mode = self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)

    def end_capture(self) -> Any:
        """Return what was recorded as a graph that can be launched."""
        graph = self.call("cudaStreamEndCapture", self.stream)
        launchable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return launchable

    def launch(self, graph: Any) -> None:
        """Begin a recorded graph."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def destroy_graph(self, graph: Any) -> None:
        """Give a graph back."""
        self.call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Give the stream back."""
        self.call("cudaStreamDestroy", self.stream)
