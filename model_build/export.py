"""Export: weights become one ONNX file whose own metadata say what it wants and gives. Needs torch and onnx.

The window is fixed and the batch is free, which is what the node's window mode asks for. The file holds its weights
itself: external data is refused by the node (path traversal, CVE-2024-27318 and later).
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from dicom_node.engines import OnnxRuntimeEngine
from dicom_node.plugin_api import Manifest
from model_build.train import load_weights

__all__ = ["Exported", "export"]

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference of a logit between torch and ONNX Runtime that is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An ONNX file and how near it is to the weights it was made of."""

    path: Path
    size_bytes: int
    max_difference: float
    """Of a logit, on normal noise."""


def export(architecture: str, weights: Path, manifest: Manifest, path: Path) -> Exported:
    """Write the network as ONNX and compare it with torch.

    Raises
    ------
    ValueError
        The file computes something else than the network.
    """
    if manifest.inference.window is None:
        raise ValueError("the manifest has no window: only window mode is exported")
    network = load_weights(architecture, weights)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand((2, 1, *manifest.inference.window), generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # torch's own exporter uses what torch itself calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[manifest.input[0].tensor],
            output_names=[manifest.output[0].tensor],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ValueError("torch gave no ONNX program")
    model = program.model_proto
    onnx.helper.set_model_props(model, _metadata(architecture, weights, manifest))
    onnx.checker.check_model(model, full_check=True)
    for node in model.graph.node:  # the exporter writes stack traces there, with the paths of this machine
        del node.metadata_props[:]
    onnx.save_model(model, path, save_as_external_data=False)
    with torch.inference_mode():
        expected = network(example).numpy()
    engine = OnnxRuntimeEngine.load(path.read_bytes(), threads=0)
    actual = engine.run({manifest.input[0].tensor: example.numpy()})[manifest.output[0].tensor]
    difference = float(np.abs(actual - expected).max())
    if difference > TOLERANCE:
        raise ValueError(f"{path.name} differs from the network by {difference:.1e}, more than {TOLERANCE:.0e}")
    return Exported(path=path, size_bytes=path.stat().st_size, max_difference=difference)


def _metadata(architecture: str, weights: Path, manifest: Manifest) -> dict[str, str]:
    """Return what the file says about itself (ONNX metadata_props: text only)."""
    steps = [{name: getattr(step, name) for name in step.__slots__} for step in manifest.preprocess.step]
    return {
        "model_id": manifest.plugin.id,
        "version": manifest.plugin.version,
        "intended_use": manifest.plugin.intended_use,
        "architecture": architecture,
        "training_data": "generated phantoms only; no patient data",
        "preprocess": json.dumps(steps),
        "classes": json.dumps(manifest.output[0].classes),
        "licence": manifest.model[0].licence,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
