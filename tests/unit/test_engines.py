"""The engine: verified bytes, declared tensors, and faults under our names. Models are made here, of a few nodes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dicom_node.engines import Engine, OnnxRuntimeEngine, Setting, ShapeRange, TensorSpec, load_engine, load_model
from dicom_node.errors import (
    EngineError,
    ModelMismatchError,
    NotFoundError,
    OutOfMemoryError,
    PluginError,
    UnsupportedModelError,
)

FREE = ["N", 1, "D", "H", "W"]


def _model(*nodes: onnx.NodeProto, initializers: list[onnx.TensorProto] | None = None, **tensors: Any) -> bytes:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", tensors.get("dtype", TensorProto.FLOAT), tensors.get("shape", FREE))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, tensors.get("out", ["N", "K", "D", "H", "W"]))],
        initializers or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def _load(name: str, model: bytes) -> Engine:
    """Return the engine on one thread; skip where it is not installed."""
    if find_spec(name) is None:
        pytest.skip(f"the engine {name} is not installed")
    return load_engine(name, model, Setting(threads=1))


ON_THE_CPU = pytest.mark.parametrize("name", ["onnxruntime", "openvino"])


@pytest.fixture(scope="module")
def doubling() -> bytes:
    """Return a model that adds its input to itself."""
    return _model(helper.make_node("Add", ["image", "image"], ["logits"]))


def test_only_the_declared_bytes_are_loaded(tmp_path: Path) -> None:
    """The digest decides; a mismatch names the file and both digests."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert load_model(path, digest) == b"weights"
    with pytest.raises(ModelMismatchError) as refusal:
        load_model(path, "0" * 64)
    for word in ("model.onnx", digest, "0" * 64):
        assert word in str(refusal.value)


def test_missing_model_is_a_broken_plugin(tmp_path: Path) -> None:
    """A file that is not there is the plugin's defect, by its name and without the machine's path."""
    with pytest.raises(PluginError, match=r"^the model file model\.onnx cannot be read"):
        load_model(tmp_path / "model.onnx", "0" * 64)


@ON_THE_CPU
def test_engine_runs_and_names_itself(doubling: bytes, name: str) -> None:
    """Arrays in, arrays out by name; the fingerprint says runtime, version, device, precision."""
    engine = _load(name, doubling)
    engine.warm_up()
    image = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    assert np.array_equal(engine.run({"image": image})["logits"], 2 * image)
    assert re.fullmatch(rf"{name} \d+\.\d+\.\d+ CPU fp32", engine.fingerprint)
    assert engine.signature.inputs == (TensorSpec(name="image", dtype="float32", shape=(None, 1, None, None, None)),)
    assert str(engine.signature.inputs[0]) == "image float32 [?, 1, ?, ?, ?]"


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": np.zeros((1, 2, 3, 3, 3), np.float32)},
        {"image": np.zeros((3, 3), np.float32)},
        {"image": np.zeros((1, 1, 3, 3, 3), np.float64)},
        {"picture": np.zeros((1, 1, 3, 3, 3), np.float32)},
        {},
    ],
)
@ON_THE_CPU
def test_wrong_input_is_an_engine_error(doubling: bytes, inputs: dict[str, Any], name: str) -> None:
    """Whatever the runtime makes of it, we raise EngineError."""
    with pytest.raises(EngineError):
        _load(name, doubling).run(inputs)


@ON_THE_CPU
def test_closed_engine_runs_no_more(doubling: bytes, name: str) -> None:
    """After close there is an error of ours, not a crash."""
    engine = _load(name, doubling)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"image": np.zeros((1, 1, 2, 2, 2), np.float32)})


@pytest.mark.parametrize("data", [b"", b"not a model", b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x07graph"])
@ON_THE_CPU
def test_no_model_is_a_broken_plugin(data: bytes, name: str) -> None:
    """Bytes that are no ONNX model are refused, never a crash of the parser."""
    with pytest.raises((PluginError, UnsupportedModelError)):
        _load(name, data)


def test_truncated_model_is_refused(doubling: bytes) -> None:
    """Every truncation of a model is refused with an error of ours."""
    for size in range(0, len(doubling) - 1, 7):
        with pytest.raises((PluginError, UnsupportedModelError)):
            OnnxRuntimeEngine.load(doubling[:size], threads=1)


@ON_THE_CPU
def test_unknown_operator_is_unsupported(name: str) -> None:
    """A custom operator needs native code of a stranger: no runtime here has it, and its name is said."""
    model = _model(helper.make_node("Frobnicate", ["image"], ["logits"], domain="x.y"))
    with pytest.raises(UnsupportedModelError, match="Frobnicate"):
        _load(name, model)


def _external(name: str) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    return tensor


@ON_THE_CPU
def test_external_weights_are_refused(name: str) -> None:
    """Weights in another file are refused before the runtime follows the path, wherever in the graph they hide."""
    outer = _model(helper.make_node("Add", ["image", "w"], ["logits"]), initializers=[_external("w")])
    constant = _model(
        helper.make_node("Constant", [], ["w"], value=_external("w")),
        helper.make_node("Add", ["image", "w"], ["logits"]),
    )
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, [1])])
    branch.initializer.append(_external("w"))
    inner = _model(helper.make_node("If", ["c"], ["logits"], then_branch=branch, else_branch=branch))
    for model in (outer, constant, inner):
        with pytest.raises(PluginError, match="one ONNX file"):
            _load(name, model)


def test_too_little_memory_is_said_so() -> None:
    """An allocation that cannot succeed is OutOfMemoryError, which may be tried again elsewhere."""
    size = helper.make_tensor("size", TensorProto.INT64, [5], [1, 1 << 12, 1 << 12, 1 << 12, 1 << 8])
    engine = OnnxRuntimeEngine.load(
        _model(helper.make_node("Expand", ["image", "size"], ["logits"]), initializers=[size]), threads=1
    )
    with pytest.raises(OutOfMemoryError):
        engine.run({"image": np.zeros((1, 1, 1, 1, 1), np.float32)})


def test_memory_estimate_grows_with_the_input(doubling: bytes) -> None:
    """Twice the voxels, about twice the memory; never less than the arrays themselves."""
    engine = OnnxRuntimeEngine.load(doubling, threads=1)
    small, large = (engine.memory_bytes({"image": (1, 1, 64, 64, edge)}) for edge in (64, 128))
    assert 1.9 < large / small < 2.1
    assert small > 2 * 4 * 64**3


def test_first_convolution_sets_the_width() -> None:
    """The estimate counts tensors as wide as the first convolution: 32 channels cost more than 8."""

    def estimate(channels: int) -> int:
        weights = helper.make_tensor("w", TensorProto.FLOAT, [channels, 1, 1, 1, 1], [0.5] * channels)
        model = _model(helper.make_node("Conv", ["image", "w"], ["logits"]), initializers=[weights])
        return OnnxRuntimeEngine.load(model, threads=1).memory_bytes({"image": (1, 1, 32, 32, 32)})

    assert estimate(32) > 3 * estimate(8)


def test_engine_that_nobody_knows_is_not_found(doubling: bytes) -> None:
    """A misspelt name says which names there are."""
    with pytest.raises(NotFoundError, match="onnxruntime, openvino"):
        load_engine("openvimo", doubling, Setting())


@ON_THE_CPU
def test_precision_that_an_engine_lacks_is_refused(doubling: bytes, name: str) -> None:
    """No engine computes in another precision than it was asked for without saying so."""
    _load(name, doubling)
    with pytest.raises(UnsupportedModelError, match="fp8"):
        load_engine(name, doubling, Setting(precision="fp8"))


def test_openvino_keeps_to_single_precision() -> None:
    """A sum that bfloat16 cannot hold comes out as in the reference; a lower precision stands in the fingerprint."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [8, 8, 3, 3, 3], list(np.linspace(-1, 1, 8 * 8 * 27)))
    model = _model(
        helper.make_node("Conv", ["image", "w"], ["logits"]), initializers=[weights], shape=["N", 8, 9, 9, 9]
    )
    image = np.random.default_rng(1).random((1, 8, 9, 9, 9), dtype=np.float32)
    exact = _load("onnxruntime", model).run({"image": image})["logits"]
    found = _load("openvino", model).run({"image": image})["logits"]
    assert float(np.abs(found - exact).max()) < 1e-5 * float(np.abs(exact).max())
    assert load_engine("openvino", model, Setting(precision="bf16")).fingerprint.endswith("CPU bf16")


@pytest.mark.parametrize("usual", [(0, 1, 8), (3, 1, 8), (1, 8)])
def test_shapes_out_of_order_make_no_range(usual: tuple[int, ...]) -> None:
    """Least, usual and most are of one length, positive and in order."""
    with pytest.raises(ValueError, match="image"):
        ShapeRange(tensor="image", least=(1, 1, 8), usual=usual, most=(2, 1, 8))


def test_openvino_sends_nothing_home(tmp_path: Path) -> None:
    """Its import would report to its makers and leave a client id in the home folder; ours does neither."""
    if find_spec("openvino") is None:
        pytest.skip("the engine openvino is not installed")
    code = "import sys, threading, dicom_node.engines.openvino; print(threading.active_count())"
    environment = {**os.environ, "HOME": str(tmp_path), "CI": "false"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "1" == found.stdout.strip()
    assert not (tmp_path / "intel").exists()
