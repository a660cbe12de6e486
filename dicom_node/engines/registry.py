"""The engines by name: each is imported where it is asked for, so that a node carries only what it serves with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from dicom_node.engines.base import Engine, Setting
from dicom_node.engines.onnxruntime import OnnxRuntimeEngine
from dicom_node.errors import NotFoundError, UnsupportedModelError

REFERENCE: Final = "onnxruntime"
"""What every other engine is compared with, and what serves when no other can."""


def load_engine(name: str, model: bytes, setting: Setting) -> Engine:
    """Return the engine of that name for the model in these bytes, their digest verified (`load_model`).

    Raises
    ------
    NotFoundError
        No engine has that name.
    PluginError
        The bytes are no ONNX model, or its weights lie outside of it.
    UnsupportedModelError
        The engine is not installed, has no device here, or cannot run this model at this precision.
    OutOfMemoryError
        The device has too little memory for it.
    """
    if name not in LOADERS:
        raise NotFoundError(f"no engine is called {name!r}; there are {', '.join(LOADERS)}")
    try:
        return LOADERS[name](model, setting)
    except ImportError as error:
        extra = name.replace("_", "-")
        raise UnsupportedModelError(
            f"the engine {name} cannot be loaded: {error}; install dicom-node with the extra [{extra}]"
        ) from error


def _onnxruntime(model: bytes, setting: Setting) -> Engine:
    if setting.precision != "fp32":
        raise UnsupportedModelError(f"the reference computes in fp32, not in {setting.precision}")
    return OnnxRuntimeEngine.load(model, threads=setting.threads)


def _openvino(model: bytes, setting: Setting) -> Engine:
    from dicom_node.engines.openvino import OpenVinoEngine

    return OpenVinoEngine.load(model, setting)


def _tensorrt(model: bytes, setting: Setting) -> Engine:
    import tensorrt

    from dicom_node.engines.tensorrt import TensorRtEngine

    return TensorRtEngine.load(model, setting, trt=tensorrt, name="tensorrt")


def _tensorrt_rtx(model: bytes, setting: Setting) -> Engine:
    import tensorrt_rtx

    from dicom_node.engines.tensorrt import TensorRtEngine

    return TensorRtEngine.load(model, setting, trt=tensorrt_rtx, name="tensorrt_rtx")


LOADERS: Mapping[str, Callable[[bytes, Setting], Engine]] = MappingProxyType(
    {
        "onnxruntime": _onnxruntime,
        "openvino": _openvino,
        "tensorrt": _tensorrt,
        "tensorrt_rtx": _tensorrt_rtx,
    }
)
"""Name in plugin.toml -> what makes the engine."""
