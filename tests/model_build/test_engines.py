"""Comparing engines with the reference, on the plugins that are shipped: what passes, what fails, who serves."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_node.clock import SystemClock
from dicom_node.engines import LOADERS, Setting
from dicom_node.engines.onnxruntime import OnnxRuntimeEngine
from dicom_node.engines.verdicts import candidates, read_verdicts
from dicom_node.errors import UsageError
from model_build import engines
from model_build.cli import app

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
QA_PHANTOM = PLUGINS / "qa_phantom"
NEEDS_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="the engine openvino is not installed")


class Shifted:
    """The reference, whose logits are moved by a constant: the wrong engine of these tests."""

    def __init__(self, engine: OnnxRuntimeEngine, shift: float) -> None:
        self._engine = engine
        self._shift = shift

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, inputs: Any) -> dict[str, Any]:
        return {name: array + np.float32(self._shift) for name, array in self._engine.run(inputs).items()}


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let "openvino" be an engine that is wrong by so much."""

    def put(shift: float) -> None:
        def load(model: bytes, setting: Setting) -> Any:
            return Shifted(OnnxRuntimeEngine.load(model, threads=setting.threads), shift)

        monkeypatch.setattr("dicom_node.engines.registry.LOADERS", {**LOADERS, "openvino": load})

    return put


def _compare(models: Path, plugin: Path = QA_PHANTOM, cases: tuple[Path, ...] = ()) -> Any:
    opened = engines.open_model(plugin, models)
    volumes = engines.golden_cases(plugin, cases)
    verdict = engines.compare(opened, "openvino", volumes, clock=SystemClock(), threads=1, rounds=1)
    engines.keep(opened, verdict)
    return opened, verdict


@NEEDS_OPENVINO
def test_openvino_equals_the_reference_on_the_phantom(tmp_path: Path) -> None:
    """Same findings, labels within 1e-4, and the verdict lies where the node looks for it."""
    opened, verdict = _compare(tmp_path)
    assert ((), True, True, 1) == (verdict.reasons, verdict.passed, verdict.same_findings, verdict.n_cases)
    assert verdict.label_disagreement <= 1e-4
    assert verdict.relative_error < 1e-4
    assert verdict == read_verdicts(tmp_path / "qa_phantom" / "engines.json").engines["openvino"]
    assert opened.manifest.spec_sha256() == verdict.spec_sha256


@pytest.mark.data
@pytest.mark.long
@NEEDS_OPENVINO
def test_openvino_equals_the_reference_on_a_head(tmp_path: Path, shared_data: Path) -> None:
    """brain_mask on 192 slices of a head: the whole volume in one run."""
    models = tmp_path / "models"
    (models / "brain_mask").mkdir(parents=True)
    shutil.copy(shared_data / "models" / "mindgrab.onnx", models / "brain_mask")
    shutil.unpack_archive(shared_data / "datalad_t1" / "t1_every_second_slice.tar.xz", tmp_path / "head")
    _, verdict = _compare(models, PLUGINS / "brain_mask", (tmp_path / "head",))
    assert ((), True) == (verdict.reasons, verdict.same_findings)
    assert verdict.label_disagreement <= 1e-4


@pytest.mark.parametrize(
    ("shift", "reasons"), [(0.1, ["relative error"]), (2.0, ["relative error", "of the labels differ", "case 1: "])]
)
def test_engine_that_differs_may_not_serve(tmp_path: Path, shifted: Any, shift: float, reasons: list[str]) -> None:
    """Each of the three judgements bites; a failed engine is no candidate, however fast."""
    shifted(shift)
    opened, verdict = _compare(tmp_path)
    assert not verdict.passed
    for words in reasons:
        assert any(words in each for each in verdict.reasons)
    known = read_verdicts(opened.verdicts_path)
    allowed = opened.manifest.runtime.engines
    digests = {"model_sha256": verdict.model_sha256, "spec_sha256": verdict.spec_sha256}
    assert () == candidates(known, allowed, **digests)
    with pytest.raises(UsageError, match="has not passed"):
        engines.use_engine(opened, "openvino")


def test_commands_compare_choose_and_go_back(tmp_path: Path, shifted: Any) -> None:
    """JSON with stable keys; exit status 1 for an engine that may not serve; `--use` names one and gives it back."""
    shifted(0.0)
    common = ["--plugin", str(QA_PHANTOM), "--models", str(tmp_path)]
    done = CliRunner().invoke(app, ["compare", *common, "--engine", "openvino", "--rounds", "1", "--json"])
    assert 0 == done.exit_code
    told = json.loads(done.stdout)
    assert {"engine", "fingerprint", "passed", "reasons", "relative_error", "label_disagreement", "speed_up"} <= set(
        told
    )
    verdicts = tmp_path / "qa_phantom" / "engines.json"
    for name, kept in (("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("fastest", None)):
        done = CliRunner().invoke(app, ["engine", *common, "--use", name, "--json"])
        assert (0, {"plugin": "qa_phantom", "use": name}) == (done.exit_code, json.loads(done.stdout))
        assert kept == read_verdicts(verdicts).use
    done = CliRunner().invoke(app, ["engine", *common, "--engine", "openvino", "--json"])
    assert ["logits float32 [?, 1, 64, 64, 64]"] == json.loads(done.stdout)["outputs"]


def test_plugin_without_a_reference_image_needs_a_case() -> None:
    """Nothing is compared on nothing."""
    with pytest.raises(UsageError, match="--case"):
        engines.golden_cases(PLUGINS / "brain_mask", ())


def test_engine_that_is_the_reference_or_ruled_out_is_refused(tmp_path: Path) -> None:
    """The reference is compared with nothing."""
    opened = engines.open_model(QA_PHANTOM, tmp_path)
    with pytest.raises(UsageError, match="reference"):
        engines.compare(opened, "onnxruntime", (), clock=SystemClock())


def test_case_is_one_series_whatever_lies_beside_it(tmp_path: Path) -> None:
    """A licence in the folder is left out; a folder of no series is refused by its name."""
    folder = tmp_path / "case"
    folder.mkdir()
    (folder / "LICENSE").write_text("free")
    with pytest.raises(UsageError, match="case holds 0 series"):
        engines.golden_cases(QA_PHANTOM, (folder,))
    shutil.copy(QA_PHANTOM / "reference" / "input.dcm", folder)
    (volume,) = engines.golden_cases(QA_PHANTOM, (folder,))
    assert (56, 88, 88) == volume.grid.shape
