"""Arrays in, arrays out, on one runtime."""

from dicom_node.engines.base import Engine, Setting, ShapeRange, Signature, TensorSpec
from dicom_node.engines.onnxruntime import OnnxRuntimeEngine, load_model
from dicom_node.engines.registry import LOADERS, REFERENCE, load_engine

__all__ = [
    "LOADERS",
    "REFERENCE",
    "Engine",
    "OnnxRuntimeEngine",
    "Setting",
    "ShapeRange",
    "Signature",
    "TensorSpec",
    "load_engine",
    "load_model",
]
