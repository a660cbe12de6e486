"""The process that infers: kept warm, held to its limits, and no danger to the one that started it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dicom_node.clock import SystemClock
from dicom_node.engines import Setting, load_engine
from dicom_node.engines.verdicts import Verdict, Verdicts, write_verdicts
from dicom_node.errors import ChildDiedError, GeometryError, LimitExceededError, ModelMismatchError, PluginError
from dicom_node.infer import InferenceChild, Plugin, Request, Slots, read_plugin
from dicom_node.reading.synthetic import write_series
from tests import peers

FREE = ["N", 1, "D", "H", "W"]

MANIFEST = """
schema_version = 1
[plugin]
id = "tiny"
version = "1.0.0"
name = "tiny"
intended_use = "tests"
task = "segmentation"
demonstrator = true
[[input_series]]
role = "ct"
min_slices = 2
missing_slices = 1
match = [{{ keyword = "Modality", equals = "CT" }}]
[[input]]
tensor = "image"
roles = ["ct"]
[preprocess]
spec_version = 1
[[preprocess.step]]
kind = "normalise"
method = "linear"
low = 0.0
high = 1.0
clip = false
[inference]
mode = "whole"
[[output]]
tensor = "logits"
role = "logits"
activation = "sigmoid"
exclusive = false
classes = ["Bright"]
[postprocess]
threshold = 0.5
[[segment]]
label = "Bright"
category = {{ value = "260787004", scheme = "SCT", meaning = "Physical object" }}
type = {{ value = "706342009", scheme = "SCT", meaning = "Phantom" }}
colour = [255, 0, 0]
[[model]]
file = "1/model.onnx"
sha256 = "{sha256}"
source = "made by the test"
licence = "Apache-2.0"
[runtime]
threads = 1
[limits]
time_s = {time_s}
ram_mb = {ram_mb}
max_voxels = 1_000_000
[plausibility]
total_volume_ml = [0.0, 1000.0]
max_findings = 10
"""


def _above(threshold: float) -> bytes:
    """Return a network whose logit is the image minus a threshold."""
    limit = helper.make_tensor("limit", TensorProto.FLOAT, [1], [threshold])
    return _model([helper.make_node("Sub", ["image", "limit"], ["logits"])], [limit])


def _endless() -> bytes:
    """Return a network that adds zero two thousand million times before it answers."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    times = helper.make_tensor("times", TensorProto.INT64, [], [2_000_000_000])
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return _model([helper.make_node("Loop", ["times", "true", "image"], ["logits"], body=body)], [times, true])


def _model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, FREE)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, FREE)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., Plugin]:
    """Return the maker of plugins: `plugin(model bytes, time_s=, ram_mb=)`."""

    def make(model: bytes, *, time_s: float = 60.0, ram_mb: int = 4096) -> Plugin:
        folder = tmp_path / "plugins" / "tiny"
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(model)
        text = MANIFEST.format(sha256=hashlib.sha256(model).hexdigest(), time_s=time_s, ram_mb=ram_mb)
        (folder / "plugin.toml").write_text(text, encoding="utf-8")
        return read_plugin(folder, tmp_path / "models")

    return make


@pytest.fixture
def child() -> Iterator[Callable[[Plugin], InferenceChild]]:
    """Return the starter of children; each is ended with its test."""
    children: list[InferenceChild] = []

    def start(plugin: Plugin) -> InferenceChild:
        children.append(InferenceChild(plugin, threads=1, clock=SystemClock()))
        return children[-1]

    yield start
    for one in children:
        if one.is_alive:
            one.stop()


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Return a CT of 6 slices with a bright box of 4 x 5 x 6 voxels of 1 mm."""
    return _request(tmp_path / "ct")


def _request(folder: Path, **changes: Any) -> Request:
    array = np.zeros((6, 16, 16), np.float32)
    array[1:5, 4:9, 5:11] = 100
    paths = write_series(
        folder,
        array,
        np.eye(4),
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        frame_of_reference_uid="1.2.3.9",
        uid_root="1.2.3.5",
        **changes,
    )
    return Request(paths={"ct": tuple(paths)})


def test_a_warm_child_answers_again(plugin, request_):
    """Two jobs, one process: the engine is loaded once and both answers are the same."""
    slots = Slots(1, clock=SystemClock())
    tiny = plugin(_above(50.0))
    try:
        first = slots.run(tiny, request_)
        (warm,) = slots._idle
        second = slots.run(tiny, request_)
        assert [warm.pid] == [one.pid for one in slots._idle]
    finally:
        slots.close()
    assert ["result", "result"] == [first.outcome, second.outcome]
    assert [120, 120] == [findings.findings[0].measurements.n_voxels for findings in (first, second)]
    assert peers.eventually(lambda: not warm.is_alive)


def test_the_child_reads_by_the_policy_of_its_plugin(plugin, child, request_):
    """A missing slice is interpolated where the plugin allows one, and the answer says so; two are refused."""
    running = child(plugin(_above(50.0)))
    paths = request_.paths["ct"]
    answer = running.run(Request(paths={"ct": (*paths[:3], *paths[4:])}))
    assert ("result", 120) == (answer.outcome, answer.findings[0].measurements.n_voxels)
    assert [3] == [z for z, frame in enumerate(answer.frames) if frame.interpolated]
    assert any(note.startswith("slice 4 of 6 is missing and interpolated") for note in answer.notes)
    with pytest.raises(GeometryError, match="2 slices are missing"):
        running.run(Request(paths={"ct": (*paths[:2], *paths[4:])}))


def test_the_time_limit_ends_the_child(plugin, child, request_):
    """A network that never answers is killed at its plugin's limit, which is not retried."""
    running = child(plugin(_endless(), time_s=3.0))
    with pytest.raises(LimitExceededError, match=r"ran longer than its limit of 3 s") as raised:
        running.run(request_)
    assert (False, False) == (raised.value.retryable, running.is_alive)


def test_the_memory_limit_ends_the_child(plugin, child, request_):
    """More resident memory than the plugin declares: killed, with both numbers."""
    running = child(plugin(_endless(), ram_mb=16))
    with pytest.raises(LimitExceededError, match=r"used \d+ MB of memory, its limit is 16 MB"):
        running.run(request_)
    assert not running.is_alive


def test_a_child_that_is_killed_may_be_tried_again(plugin, child, request_):
    """SIGKILL from outside is an error that names the signal and is retryable."""
    running = child(plugin(_endless()))
    looks = iter(range(100))

    def shoot() -> bool:
        if next(looks) == 2:
            os.kill(running.pid, signal.SIGKILL)
        return True

    with pytest.raises(ChildDiedError, match="SIGKILL") as raised:
        running.run(request_, keep_going=shoot)
    assert (True, False) == (raised.value.retryable, running.is_alive)


def test_a_job_that_is_taken_away_ends_the_child(plugin, child, request_):
    """`keep_going` says no: nobody wants the answer any more."""
    running = child(plugin(_endless()))
    with pytest.raises(ChildDiedError, match="taken away"):
        running.run(request_, keep_going=lambda: False)
    assert not running.is_alive


def test_errors_keep_their_class_and_the_child_its_life(plugin, child, request_, tmp_path):
    """Two missing slices are a GeometryError on this side too, and the next study is answered by the same process."""
    running = child(plugin(_above(50.0)))
    pid = running.pid
    gap = Request(paths={"ct": tuple(path for n, path in enumerate(request_.paths["ct"]) if n not in (2, 3))})
    with pytest.raises(GeometryError):
        running.run(gap)
    assert "result" == running.run(request_).outcome
    assert (True, pid) == (running.is_alive, running.pid)


def test_other_bytes_than_the_declared_ones_are_not_run(plugin, child, request_):
    """The model is hashed where it is loaded."""
    tiny = plugin(_above(50.0))
    tiny.model_path.chmod(0o644)
    tiny.model_path.write_bytes(_above(-1000.0))
    with pytest.raises(PluginError, match="sha256"):
        child(tiny).run(request_)


def test_nothing_found_is_an_answer(plugin, child, request_):
    """Findings without a finding cross the border as well."""
    findings = child(plugin(_above(5000.0))).run(request_)
    assert ("nothing_found", ()) == (findings.outcome, findings.findings)


def _verdict(plugin: Plugin, **changes: Any) -> Verdict:
    """Return a verdict by which OpenVINO serves this plugin."""
    verdict = Verdict(
        engine="openvino",
        fingerprint="",
        model_sha256=plugin.model_sha256,
        spec_sha256=plugin.manifest.spec_sha256(),
        passed=True,
        reasons=(),
        relative_error=0.0,
        label_disagreement=0.0,
        same_findings=True,
        seconds=1.0,
        reference_seconds=2.0,
        n_cases=1,
        compared_at="2026-11-20T12:00:00+00:00",
    )
    return replace(verdict, **changes)


@pytest.mark.skipif(find_spec("openvino") is None, reason="the engine openvino is not installed")
def test_verdicts_choose_the_engine_from_the_next_job_on(plugin, child, request_):
    """No verdict: the reference. Passed: the engine. Another fingerprint, a damaged file, a roll-back: the reference.

    The same warm child throughout; what stood in the way is a note of the result.
    """
    tiny = plugin(_above(50.0))
    running = child(tiny)

    def serves() -> tuple[str, tuple[str, ...]]:
        findings = running.run(request_)
        assert [120] == [one.measurements.n_voxels for one in findings.findings]
        return findings.provenance.engine.split()[0], findings.notes

    engine = load_engine("openvino", tiny.model_path.read_bytes(), Setting(threads=1)).fingerprint
    assert ("onnxruntime", ()) == serves()
    write_verdicts(tiny.verdicts_path, Verdicts().with_verdict(_verdict(tiny, fingerprint=engine)))
    assert ("openvino", ()) == serves()
    write_verdicts(tiny.verdicts_path, Verdicts(use="onnxruntime").with_verdict(_verdict(tiny, fingerprint=engine)))
    assert ("onnxruntime", ()) == serves()
    write_verdicts(tiny.verdicts_path, Verdicts().with_verdict(_verdict(tiny, fingerprint="openvino 1 CPU fp32")))
    for _ in range(2):
        engine, (note,) = serves()
        assert engine == "onnxruntime"
        assert "openvino 1 CPU fp32 was compared" in note
    tiny.verdicts_path.write_text("{")
    engine, (note,) = serves()
    assert engine == "onnxruntime"
    assert "engines.json cannot be read" in note


def test_card_that_is_not_there_is_noted_and_the_reference_serves(plugin, child, request_):
    """A verdict for a graphics card that is gone, or whose library is: the job goes on and says so."""
    tiny = plugin(_above(50.0))
    gone = replace(_verdict(tiny), engine="tensorrt", fingerprint="tensorrt 11 card fp32")
    write_verdicts(tiny.verdicts_path, Verdicts().with_verdict(gone))
    findings = child(tiny).run(request_)
    assert findings.provenance.engine.startswith("onnxruntime")
    assert findings.notes[-1].startswith("tensorrt was passed over: ")


def test_changed_byte_in_model_or_spec_is_refused_by_name(plugin, child, request_):
    """The child compares both with what was declared and published, before anything runs."""
    tiny = plugin(_above(50.0))
    reference = tiny.folder / "reference"
    reference.mkdir()
    (reference / "case.json").write_text(json.dumps({"spec_sha256": tiny.manifest.spec_sha256()}))
    assert "result" == child(tiny).run(request_).outcome
    assert tiny.defect() is None
    manifest = tiny.folder / "plugin.toml"
    manifest.write_text(manifest.read_text().replace("threshold = 0.5", "threshold = 0.6"))
    changed = read_plugin(tiny.folder, tiny.verdicts_path.parents[1])
    with pytest.raises(ModelMismatchError, match=r"plugin\.toml of tiny describes the spec"):
        child(changed).run(request_)
    assert "of tiny describes the spec" in (changed.defect() or "")
    model = bytearray(tiny.model_path.read_bytes())
    model[-1] ^= 1
    tiny.model_path.write_bytes(model)
    with pytest.raises(ModelMismatchError, match=r"model\.onnx has sha256"):
        child(tiny).run(request_)
