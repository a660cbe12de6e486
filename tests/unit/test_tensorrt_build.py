"""TensorRT without a card: TensorRT-RTX parses and builds for a card that is not here, and says why it cannot."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from dicom_node.engines import Setting, ShapeRange
from dicom_node.engines.probe import Gpu, probe_gpu
from dicom_node.engines.tensorrt import plan_of
from dicom_node.engines.tensorrt_build import build
from dicom_node.errors import DicomNodeError, PluginError, UnsupportedModelError

QA_PHANTOM = Path(__file__).parents[2] / "plugins" / "qa_phantom" / "1" / "model.onnx"
WINDOWS = ShapeRange(tensor="image", least=(1, 1, 64, 64, 64), usual=(2, 1, 64, 64, 64), most=(2, 1, 64, 64, 64))
CARD = "SM89"


@pytest.fixture(scope="module")
def rtx() -> Any:
    """Return the module of TensorRT-RTX; with CI=true it must be there."""
    if find_spec("tensorrt_rtx") is None:
        reason = "tensorrt_rtx is not installed (the extra [tensorrt-rtx])"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    import tensorrt_rtx

    return tensorrt_rtx


def _frobnicating() -> bytes:
    node = helper.make_node("Frobnicate", ["image"], ["logits"], domain="x.y", name="the_node")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8])
    graph = helper.make_graph([node], "g", [image], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return bytes(model.SerializeToString())


def test_shipped_network_becomes_an_engine(rtx: Any) -> None:
    """The phantom's network parses and builds for its windows; RTX keeps no timing cache."""
    engine, timing = build(rtx, QA_PHANTOM.read_bytes(), [WINDOWS], capability=CARD)
    assert engine.startswith(b"vtrt")
    assert len(engine) > len(QA_PHANTOM.read_bytes()) // 2
    assert b"" == timing


def test_engine_is_built_once_and_then_found(rtx: Any, tmp_path: Path) -> None:
    """The same model, shapes and card take the engine from the cache, byte for byte; another card builds its own."""
    card = Gpu(name="NVIDIA L4", compute_capability="8.9", driver="580.95 CUDA 13.0", memory_bytes=1 << 34)

    def plan(model: bytes, gpu: Gpu) -> bytes:
        setting = Setting(profile=(WINDOWS,), cache=tmp_path / "engines")
        return plan_of(model, setting, gpu, trt=rtx, name="tensorrt_rtx", capability=CARD)

    model = QA_PHANTOM.read_bytes()
    first = plan(model, card)
    (engine,) = (tmp_path / "engines").glob("*.engine")
    written = engine.stat().st_mtime_ns
    assert first == plan(model, card) == engine.read_bytes()
    assert written == engine.stat().st_mtime_ns
    plan(model, replace(card, driver="590.10 CUDA 13.1"))
    assert 2 == len(list((tmp_path / "engines").glob("*.engine")))


def test_machine_without_a_card_says_so_before_any_library_is_touched() -> None:
    """The probe runs in a child and answers in words; loading stops there instead of ending the process."""
    with pytest.raises(UnsupportedModelError, match="no CUDA device 99"):
        probe_gpu(99)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mindgrab", "model5_gw_ae", "model18cls"])
def test_brain_networks_become_engines(rtx: Any, shared_data: Path, name: str) -> None:
    """Networks that take a whole head build for heads of every size."""
    head = ShapeRange(tensor="input", least=(1, 1, 64, 64, 64), usual=(1, 1, 176, 176, 224), most=(1, 1, 256, 256, 256))
    engine, _ = build(rtx, (shared_data / "models" / f"{name}.onnx").read_bytes(), [head], capability=CARD)
    assert engine.startswith(b"vtrt")


def test_unknown_operator_is_named(rtx: Any) -> None:
    """The node and its operator stand in the error: an author must find them."""
    with pytest.raises(UnsupportedModelError, match=r"node 'the_node' \(operator Frobnicate\)"):
        build(rtx, _frobnicating(), [], capability=CARD)


@pytest.mark.parametrize("cut", [0, 5, 40, 1000])
def test_garbage_is_no_model(rtx: Any, cut: int) -> None:
    """Nothing, a text, noise, a part of a model: a broken plugin, not a crash of the parser."""
    for garbage in (b"hello"[:cut], b"\xff" * cut, QA_PHANTOM.read_bytes()[:cut]):
        with pytest.raises(PluginError, match="no ONNX model"):
            build(rtx, garbage, [WINDOWS], capability=CARD)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ([], r"input image \[\?, 1, 64, 64, 64\] has dynamic axes and no shapes"),
        ([ShapeRange(tensor="image", least=(1, 1, 64, 64), usual=(1, 1, 64, 64), most=(1, 1, 64, 64))], "cannot have"),
        (
            [ShapeRange(tensor="image", least=(1, 1, 32, 64, 64), usual=(1, 1, 64, 64, 64), most=(1, 1, 64, 64, 64))],
            "cannot have",
        ),
        ([WINDOWS, ShapeRange(tensor="mask", least=(1,), usual=(1,), most=(1,))], "mask, which the model does not"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(rtx: Any, ranges: list[ShapeRange], words: str) -> None:
    """A missing range, one of another rank or for a fixed axis, one of an unknown input: each by its tensor."""
    with pytest.raises(UnsupportedModelError, match=words):
        build(rtx, QA_PHANTOM.read_bytes(), ranges, capability=CARD)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capability": "SM90"}, "not for 'SM90'"),
        ({"precision": "fp16", "capability": CARD}, "takes the precision from"),
    ],
)
def test_target_and_precision_that_are_not_offered_are_refused(rtx: Any, options: dict[str, str], words: str) -> None:
    """Cards that TensorRT-RTX does not list, and precisions that the model itself must carry."""
    with pytest.raises(UnsupportedModelError, match=words):
        build(rtx, QA_PHANTOM.read_bytes(), [WINDOWS], **options)


def test_model_that_the_checker_accepts_but_no_card_can_run_is_refused(rtx: Any) -> None:
    """A valid ONNX file with an output type that the builder lacks: an error of ours, whichever step refuses."""
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"x"])
    node = helper.make_node("Constant", [], ["logits"], value=text)
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("logits", TensorProto.STRING, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    with pytest.raises(DicomNodeError):
        build(rtx, model.SerializeToString(), [], capability=CARD)
