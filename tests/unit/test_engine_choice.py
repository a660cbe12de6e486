"""Which engine serves: verdicts that hold, the fastest first, the reference behind; what happens when one cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.config import read_table
from dicom_node.engines import Signature, TensorSpec
from dicom_node.engines.compare import difference, logit_of
from dicom_node.engines.registry import LOADERS, REFERENCE
from dicom_node.engines.serving import ServingEngine
from dicom_node.engines.verdicts import Verdict, Verdicts, candidates, read_verdicts, write_verdicts
from dicom_node.errors import ConfigError, DeviceLostError, EngineError, OutOfMemoryError, PluginError
from dicom_node.infer.slots import threads_per_slot
from dicom_node.plugin_api import Manifest, Runtime

FAST = Verdict(
    engine="openvino",
    fingerprint="openvino 1 CPU fp32",
    model_sha256="a" * 64,
    spec_sha256="b" * 64,
    passed=True,
    reasons=(),
    relative_error=1e-6,
    label_disagreement=0.0,
    same_findings=True,
    seconds=1.0,
    reference_seconds=2.0,
    n_cases=1,
    compared_at="2026-11-20T12:00:00+00:00",
)
FASTER = replace(FAST, engine="tensorrt", seconds=0.1)
ALL = tuple(LOADERS)
PLUGINS = Path(__file__).parents[2] / "plugins"


def _names(*verdicts: Verdict, use: str | None = None, allowed: tuple[str, ...] = ALL) -> list[str]:
    known = Verdicts(engines={verdict.engine: verdict for verdict in verdicts}, use=use)
    return [v.engine for v in candidates(known, allowed, model_sha256="a" * 64, spec_sha256="b" * 64)]


def test_manifest_and_registry_know_the_same_engines() -> None:
    """Names in plugin.toml are those that can be loaded; without a word, all of them, the reference first."""
    assert Runtime().engines == ALL
    assert ALL[0] == REFERENCE


@pytest.mark.parametrize("engines", [(), ("openvino",), ("onnxruntime", "onnxruntime"), ("onnxruntime", "magic")])
def test_manifest_keeps_the_reference(engines: tuple[str, ...]) -> None:
    """Engines are known, named once, and the one that serves when no other can is among them."""
    with pytest.raises(ValueError, match="engines"):
        Runtime(engines=engines)  # type: ignore[arg-type]


def _manifest(folder: Path, plugin: str, line: str = "") -> Manifest:
    """Return a shipped manifest with one more line in its [[input]]."""
    text = (PLUGINS / plugin / "plugin.toml").read_text(encoding="utf-8")
    (folder / "plugin.toml").write_text(text.replace("[[input]]\n", f"[[input]]\n{line}\n", 1), encoding="utf-8")
    return read_table(folder / "plugin.toml", Manifest)


def test_windows_say_their_shape_and_a_whole_volume_must(tmp_path: Path) -> None:
    """A window is built for one sample up to a batch; a whole volume for `shape`, which changes no spec."""
    (windows,) = _manifest(tmp_path, "qa_phantom").shape_ranges()
    assert ("image", (1, 1, 64, 64, 64), True) == (windows.tensor, windows.least, windows.is_fixed)
    whole = _manifest(tmp_path, "brain_mask")
    assert () == whole.shape_ranges()
    line = "shape = { min = [1, 1, 64, 64, 64], opt = [1, 1, 176, 176, 224], max = [1, 1, 256, 256, 256] }"
    shaped = _manifest(tmp_path, "brain_mask", line)
    (heads,) = shaped.shape_ranges()
    assert ((1, 1, 176, 176, 224), False) == (heads.usual, heads.is_fixed)
    assert whole.spec_sha256() == shaped.spec_sha256()
    with pytest.raises(ConfigError, match="min <= opt <= max"):
        _manifest(tmp_path, "brain_mask", line.replace("min = [1, 1, 64", "min = [1, 1, 640"))


def test_fastest_that_passed_serves() -> None:
    """The order is by speed against the reference in the same comparison."""
    assert ["tensorrt", "openvino"] == _names(FAST, FASTER)


@pytest.mark.parametrize(
    "change",
    [{"passed": False}, {"model_sha256": "c" * 64}, {"spec_sha256": "c" * 64}, {"seconds": 2.5}, {"seconds": 2.0}],
)
def test_engine_without_a_valid_and_better_verdict_does_not_serve(change: dict[str, Any]) -> None:
    """Failed, of another model or spec, or no faster: the reference serves."""
    assert ["openvino"] == _names(FAST)
    assert [] == _names(replace(FAST, **change))


def test_engine_that_the_manifest_does_not_name_does_not_serve() -> None:
    """The author of a plugin may rule engines out."""
    assert [] == _names(FAST, allowed=(REFERENCE,))


def test_choice_by_name_wins_and_the_reference_is_the_way_back() -> None:
    """A chosen engine serves even if slower, but never one that failed."""
    slow = replace(FAST, seconds=3.0)
    assert ["openvino"] == _names(slow, FASTER, use="openvino")
    assert [] == _names(FAST, FASTER, use=REFERENCE)
    assert [] == _names(replace(FAST, passed=False), FASTER, use="openvino")


def test_verdicts_are_kept(tmp_path: Path) -> None:
    """What is written is read; no file means no verdicts; a damaged one is refused by its name."""
    path = tmp_path / "plugin" / "engines.json"
    assert Verdicts() == read_verdicts(path)
    kept = Verdicts(use="openvino").with_verdict(replace(FAST, passed=False, reasons=("a", "b")))
    write_verdicts(path, kept)
    assert kept == read_verdicts(path)
    for damage in ("{", "[]", '{"version": 2}', '{"version": 1, "use": null, "engines": {"x": {"y": 1}}}'):
        path.write_text(damage)
        with pytest.raises(PluginError, match=r"engines\.json"):
            read_verdicts(path)


class Limited:
    """An engine that doubles, takes so many samples at once, and may lose its device."""

    def __init__(self, most: int, fault: type[EngineError] = OutOfMemoryError) -> None:
        self.most = most
        self.fault = fault
        self.ran: list[int] = []
        self.closed = False

    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 1)),), outputs=())

    @property
    def fingerprint(self) -> str:
        return f"limited {self.most}"

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 0

    def warm_up(self) -> None:
        pass

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        n_samples = len(inputs["x"])
        if n_samples > self.most:
            raise self.fault(f"{n_samples} are too many")
        self.ran.append(n_samples)
        return {"y": inputs["x"] * 2}

    def close(self) -> None:
        self.closed = True
        if self.fault is DeviceLostError:
            raise DeviceLostError("what is lost takes nothing back")


X = np.arange(7, dtype=np.float32).reshape(7, 1)


@pytest.mark.parametrize(
    ("most", "pads", "ran"), [(8, False, [4, 3]), (8, True, [4, 4]), (2, False, [2, 2, 2, 1]), (2, True, [2, 2, 2, 2])]
)
def test_runs_are_cut_into_batches(most: int, pads: bool, ran: list[int]) -> None:
    """Batches of four; too little memory halves them for good; a padded batch is cut back to what was asked."""
    engine = Limited(most)
    serving = ServingEngine(engine, lambda: Limited(99), batch=4, pads=pads)
    assert np.array_equal(2 * X, serving.run({"x": X})["y"])
    assert ran == engine.ran
    events = serving.take_events()
    assert ([] if most == 8 else ["limited 2: too little memory for 4 samples at once, 2 from here on"]) == list(events)
    assert () == serving.take_events()


@pytest.mark.parametrize("fault", [OutOfMemoryError, DeviceLostError])
def test_reference_takes_over(fault: type[EngineError]) -> None:
    """One sample that is too much, or a lost device: the rest, and what failed, runs on the reference; it is said."""
    lost, reference = Limited(0, fault), Limited(99)
    serving = ServingEngine(lost, lambda: reference, batch=4, pads=True)
    assert np.array_equal(2 * X, serving.run({"x": X})["y"])
    assert ([7], True, True) == (reference.ran, lost.closed, serving.has_fallen_back)
    assert serving.fingerprint == "limited 99"
    assert "limited 99 took over" in serving.take_events()[-1]


@pytest.mark.parametrize("fault", [OutOfMemoryError, DeviceLostError])
def test_reference_that_cannot_is_an_error(fault: type[EngineError]) -> None:
    """Behind the reference there is nobody: no endless retry."""
    for serving in (ServingEngine(Limited(0, fault), None), ServingEngine(Limited(0), lambda: Limited(0, fault))):
        with pytest.raises(fault):
            serving.run({"x": X[:1]})


def test_other_errors_go_through() -> None:
    """A wrong input is the caller's matter; no engine is changed for it."""
    serving = ServingEngine(Limited(0, EngineError), lambda: Limited(99))
    with pytest.raises(EngineError, match="too many"):
        serving.run({"x": X})
    assert not serving.has_fallen_back


def test_difference_counts_labels_and_the_worst_error() -> None:
    """By hand: 4 positions, one other label; the error is relative to the greatest value of the reference."""
    exact = [{"y": np.array([[0.0, -2.0, 4.0, 1.0]], np.float32)}]
    found = [{"y": np.array([[0.0, -2.0, 4.0, -1.0]], np.float32)}]
    apart = difference(exact, found, label_tensor="y", cut=logit_of(0.5))
    assert (0.5, 4, 1) == (apart.relative_error, apart.n_positions, apart.n_other_label)
    winner = difference(exact, found, label_tensor="y", cut=None)
    assert (1, 0) == (winner.n_positions, winner.n_other_label)
    broken = [{"y": np.array([[0.0, -2.0, np.nan, 1.0]], np.float32)}]
    assert np.inf == difference(exact, broken, label_tensor="y", cut=0.5).relative_error
    with pytest.raises(ValueError, match="shape"):
        difference(exact, [{"y": np.zeros((1, 3), np.float32)}], label_tensor="y", cut=0.5)
    with pytest.raises(ValueError, match="shorter"):
        difference(exact, [], label_tensor="y", cut=0.5)


@pytest.mark.parametrize("n_cores", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("n_slots", [1, 2, 3, 5])
@pytest.mark.parametrize("wanted", [0, 1, 4, 64])
def test_slots_never_have_more_threads_than_cores(n_slots: int, wanted: int, n_cores: int) -> None:
    """Slots times threads stay within the cores, unless there are more slots than cores: then one thread each."""
    threads = threads_per_slot(n_slots, wanted, n_cores=n_cores)
    assert threads >= 1
    assert threads * n_slots <= max(n_cores, n_slots)
    assert not wanted or threads <= wanted
