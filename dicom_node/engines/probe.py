"""`python -m dicom_node.engines.probe N`: is there a CUDA device, and what is it? One line of JSON, in a process apart.

A TensorRT runtime that is made without a working driver ends its process with SIGSEGV; so nobody makes one before this
child, which touches nothing but the CUDA runtime, has come back with an answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicom_node.errors import UnsupportedModelError

_TIMEOUT_S: Final = 120.0
"""The first call into a driver may load its module and wake the card."""
_DRIVER: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A graphics card as the cache's key and the fingerprint name it."""

    name: str
    compute_capability: str
    """"8.9"."""
    driver: str
    """Version of the kernel module, and of CUDA that it offers."""
    memory_bytes: int


def probe_gpu(device: int) -> Gpu:
    """Return the card of this number, asked for in a child process.

    Raises
    ------
    UnsupportedModelError
        There is none, its driver is missing or too old, or the child crashed: in words.
    """
    command = [sys.executable, "-m", "dicom_node.engines.probe", str(device)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnsupportedModelError(f"the CUDA driver did not answer within {_TIMEOUT_S:g} s") from error
    try:
        told = json.loads(child.stdout)
    except ValueError:
        told = {"reason": f"the CUDA driver ended the process that asked for it (exit status {child.returncode})"}
    if "reason" in told:
        raise UnsupportedModelError(f"no CUDA device {device}: {told['reason']}")
    return Gpu(**told)


def _ask(device: int) -> dict[str, object]:
    try:
        from cuda.bindings import runtime as cudart
    except ImportError as error:
        return {"reason": f"cuda-bindings is not installed ({error})"}
    try:
        status, count = cudart.cudaGetDeviceCount()
    except RuntimeError as error:
        return {"reason": f"the CUDA libraries are not found ({error})"}
    if status != cudart.cudaError_t.cudaSuccess:
        return {"reason": f"{status.name}: is the NVIDIA driver installed and new enough?"}
    if not 0 <= device < count:
        return {"reason": f"there are {count}"}
    status, properties = cudart.cudaGetDeviceProperties(device)
    if status != cudart.cudaError_t.cudaSuccess:
        return {"reason": status.name}
    _, offered = cudart.cudaDriverGetVersion()
    return {
        "name": _text(properties.name),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": f"{_module_version()} CUDA {offered // 1000}.{offered % 1000 // 10}",
        "memory_bytes": int(properties.totalGlobalMem),
    }


def _module_version() -> str:
    """Return the version of the kernel's NVIDIA module; "unknown" where it does not say."""
    try:
        words = _DRIVER.read_text(encoding="ascii").splitlines()[0].split()
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")


def _text(name: Any) -> str:
    """Return a C string as text."""
    return (name.split(b"\0")[0].decode() if isinstance(name, bytes) else str(name)).strip()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_ask(int(sys.argv[1]))))
