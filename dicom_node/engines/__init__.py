"""Arrays in, arrays out, on one runtime."""

from dicom_node.engines.base import Engine, Signature, TensorSpec
from dicom_node.engines.onnxruntime import OnnxRuntimeEngine, load_model

__all__ = ["Engine", "OnnxRuntimeEngine", "Signature", "TensorSpec", "load_model"]
