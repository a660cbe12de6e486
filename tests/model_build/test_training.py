"""Training and export, on a network small enough for a test."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dicom_node.clock import ManualClock
from dicom_node.config import read_table
from dicom_node.errors import UsageError
from dicom_node.plugin_api import Manifest
from model_build.data import make_example
from model_build.plan import Data, Log, Optimiser, Patches, Plan, Settle, read_plan

torch = pytest.importorskip("torch", reason="training needs the extra [train]")
onnx = pytest.importorskip("onnx", reason="export needs the extra [train]")
pytest.importorskip("onnxscript", reason="export needs the extra [train]")

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "plugins" / "qa_phantom"
PLAN_FILE = REPOSITORY / "model_build" / "plans" / "qa_phantom.toml"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Return the manifest of the committed plugin."""
    return read_table(PLUGIN / "plugin.toml", Manifest)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Return a training of seconds."""
    return Plan(
        name="tiny",
        plugin=PLUGIN,
        architecture="unet3d_tiny",
        seed=3,
        threads=1,
        data=Data(first_seed=200_000, phantoms=2),
        patches=Patches(edge=24, batch=2, at_objects=0.8, at_distractors=0.1),
        optimiser=Optimiser(steps=35, learning_rate=1e-2, weight_decay=1e-2, power=0.9),
        settle=Settle(calibrate=4, rounds=1, steps=5, learning_rate=1e-3),
        log=Log(every=5, checkpoint_every=20),
    )


@pytest.fixture(scope="module")
def trained(plan: Plan, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted training."""
    from model_build.train import train

    out = tmp_path_factory.mktemp("trained")
    train(plan, manifest.preprocess.step, out, clock=ManualClock())
    return out


def _losses(out: Path) -> list[float]:
    with (out / "log.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_training_lowers_the_loss(trained: Path) -> None:
    """The last rows of the log lie below the first."""
    losses = _losses(trained)
    assert 8 == len(losses)
    assert np.mean(losses[-2:]) < 0.8 * losses[0]


def test_interrupted_training_resumes_to_the_same_weights(
    plan: Plan, manifest: Manifest, trained: Path, tmp_path: Path
) -> None:
    """A run that dies after its checkpoint ends, once resumed, with the weights of one that did not."""
    from model_build.train import Progress, train

    def die(progress: Progress) -> None:
        if progress.stage == "training" and progress.done >= 30:
            raise KeyboardInterrupt

    (tmp_path / "data").symlink_to(trained / "data")
    with pytest.raises(KeyboardInterrupt):
        train(plan, manifest.preprocess.step, tmp_path, clock=ManualClock(), report=die)
    assert not (tmp_path / "weights.pt").exists()
    seen: list[Progress] = []
    train(plan, manifest.preprocess.step, tmp_path, clock=ManualClock(), report=seen.append)
    assert ("training", 25) == (seen[2].stage, seen[2].done)
    expected, actual = (torch.load(out / "weights.pt", weights_only=True) for out in (trained, tmp_path))
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)


def test_export_computes_what_torch_computes(plan: Plan, manifest: Manifest, trained: Path, tmp_path: Path) -> None:
    """The file equals the network to 1e-4 for any batch, holds its weights, and says what it is."""
    import onnxruntime

    from model_build.export import export
    from model_build.train import load_weights

    exported = export(plan.architecture, trained / "weights.pt", manifest, tmp_path / "model.onnx")
    assert exported.max_difference <= 1e-4
    assert ["model.onnx"] == [path.name for path in tmp_path.iterdir()]
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    network = load_weights(plan.architecture, trained / "weights.pt")
    for batch in (1, 3):
        image = torch.rand(batch, 1, *manifest.inference.window)
        with torch.inference_mode():
            expected = network(image).numpy()
        (actual,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(actual, expected, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert ("qa_phantom", manifest.plugin.version) == (metadata["model_id"], metadata["version"])
    assert "no patient data" in metadata["training_data"]


def test_example_is_prepared_by_the_manifest(manifest: Manifest) -> None:
    """Image and target share a grid of 1 mm, the image lies in 0..1, and objects lie where the target is full."""
    example = make_example(200_000, manifest.preprocess.step)
    assert example.image.shape == example.filled.shape
    assert (0.0, 1.0) == (float(example.image.min()), float(example.image.max()))
    assert abs(example.image.shape[0] - 144) <= 3
    for index in np.rint(example.objects).astype(int):
        assert 255 == example.filled[tuple(index)]
    for index in np.rint(example.distractors).astype(int):
        assert 0 == example.filled[tuple(index)]


def test_committed_plan_names_the_committed_plugin() -> None:
    """The plan can be read, and what it builds fits the window."""
    from model_build.architectures import ARCHITECTURES

    plan = read_plan(PLAN_FILE)
    assert PLUGIN == plan.plugin
    assert 0 == plan.patches.edge % ARCHITECTURES[plan.architecture].divisor


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("steps = ", "stepps = "), r"\[optimiser\]: unknown key stepps"),
        (("seed = 2", "sed = 2"), "unknown key sed"),
        (("batch = 3\n", ""), r"\[patches\]: missing key batch"),
        (("name = ", "name "), "plan.toml"),
    ],
)
def test_wrong_key_in_a_plan_is_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    """A misspelt key is named, never dropped."""
    text = PLAN_FILE.read_text(encoding="utf-8")
    assert change[0] in text
    path = tmp_path / "plan.toml"
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        read_plan(path)


def test_unknown_architecture_is_refused(plan: Plan, manifest: Manifest, tmp_path: Path) -> None:
    """The error names those that exist."""
    from model_build.train import train

    with pytest.raises(UsageError, match="unet3d_small"):
        train(dataclasses.replace(plan, architecture="unet4d"), manifest.preprocess.step, tmp_path, clock=ManualClock())


def test_learning_rate_falls_to_zero_in_every_phase(plan: Plan) -> None:
    """First once over the optimiser's steps, then anew in each round of settling."""
    from model_build.train import learning_rate

    rounds = dataclasses.replace(plan, settle=Settle(calibrate=0, rounds=2, steps=5, learning_rate=1e-3))
    rates = [learning_rate(rounds, step) for step in range(rounds.steps)]
    assert 45 == len(rates)
    assert [1e-2, 1e-3, 1e-3] == [rates[0], rates[35], rates[40]]
    for start, stop in ((0, 35), (35, 40), (40, 45)):
        assert sorted(rates[start:stop], reverse=True) == rates[start:stop]
