"""TensorRT and TensorRT-RTX on a card: `make test-gpu`. Numbers against the reference, graphs, the cache, the batch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dicom_node.engines import REFERENCE, Engine, Setting, ShapeRange, load_engine
from dicom_node.engines.probe import probe_gpu
from dicom_node.engines.serving import ServingEngine
from dicom_node.errors import UnsupportedModelError

pytestmark = [pytest.mark.gpu, pytest.mark.long]

MODEL = (Path(__file__).parents[2] / "plugins" / "qa_phantom" / "1" / "model.onnx").read_bytes()
WINDOWS = ShapeRange(tensor="image", least=(1, 1, 64, 64, 64), usual=(4, 1, 64, 64, 64), most=(4, 1, 64, 64, 64))


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Return each adapter on the first card; skip where there is no card or no library."""
    try:
        probe_gpu(0)
    except UnsupportedModelError as error:
        pytest.skip(str(error))
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return load_engine(request.param, MODEL, Setting(profile=(WINDOWS,), cache=tmp_path))


def test_card_agrees_with_the_reference(engine: Engine) -> None:
    """Five windows in padded batches of four, three times (plain, recorded, launched): labels as on the CPU."""
    images = np.random.default_rng(1).random((5, 1, 64, 64, 64), dtype=np.float32)
    exact = load_engine(REFERENCE, MODEL, Setting()).run({"image": images})["logits"]
    serving = ServingEngine(engine, None, batch=4, pads=True)
    for _ in range(3):
        found = serving.run({"image": images})["logits"]
        assert float(np.abs(found - exact).max()) < 1e-3 * float(np.abs(exact).max())
        assert np.count_nonzero((found > 0) != (exact > 0)) <= 1e-4 * exact.size
    assert () == serving.take_events()
    serving.close()


def test_second_load_takes_the_engine_from_the_cache(engine: Engine, tmp_path: Path) -> None:
    """Nothing is built twice for one card; the memory that is said is what a run needs at least."""
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.engine")}
    name = engine.fingerprint.split()[0]
    again = load_engine(name, MODEL, Setting(profile=(WINDOWS,), cache=tmp_path))
    assert kept == {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.engine")}
    assert again.fingerprint == engine.fingerprint
    assert again.memory_bytes({"image": (4, 1, 64, 64, 64)}) > 2 * 4 * 4 * 64**3
    again.warm_up()
