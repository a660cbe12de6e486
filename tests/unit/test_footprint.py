"""Memory is known before it is used: shapes from steps, bytes from shapes, and a refusal in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.admin.inspection import inspect
from dicom_node.clock import ManualClock
from dicom_node.errors import NotApplicableError
from dicom_node.imaging import prepare
from dicom_node.imaging.footprint import planned
from dicom_node.imaging.sliding import held_voxels, slide
from dicom_node.imaging.steps import CropForeground, Fit, Orient, Pad, Resample, Step
from dicom_node.infer import Plugin
from dicom_node.predict import predict
from dicom_node.reading.synthetic import write_series
from tests.unit.imaging_case import Ramp, make_grid, make_manifest, make_volume, rotations


@settings(max_examples=25, deadline=None)
@given(
    rotation=rotations(),
    axes=st.sampled_from(["SPL", "LIA", "RAS"]),
    align=st.sampled_from(["source", "patient"]),
    more=st.sampled_from([(), (Pad(divisor=16),), (Pad(shape=(30, 5, 40)),), (Fit(shape=(9, 10, 11)), Pad(divisor=4))]),
)
def test_shape_is_known_before_the_steps_run(
    rotation: NDArray[np.float64], axes: str, align: Any, more: tuple[Step, ...]
) -> None:
    """What is planned is what comes out."""
    grid = make_grid((7, 12, 15), (1.1, 0.9, 2.0), rotation=rotation, shear=0.2)
    steps = (Orient(axes=axes), Resample(spacing_mm=(1.0, 1.3, 0.8), align=align), *more)
    plan = planned(grid, steps)
    prepared = prepare(make_volume(np.zeros(grid.shape), grid), steps)
    assert plan.shape == prepared.array.shape
    assert plan.preparing_bytes >= 8 * max(prepared.array.size, np.prod(grid.shape))


def test_shape_after_a_crop_is_not_promised() -> None:
    """A crop depends on the image; a fit after it does not."""
    grid, crop = make_grid((7, 12, 15)), CropForeground(above=0.5)
    assert planned(grid, [crop]).shape is None
    assert planned(grid, [crop, Fit(shape=(4, 5, 6))]).shape == (4, 5, 6)


@settings(max_examples=30, deadline=None)
@given(shape=st.tuples(*[st.integers(3, 30)] * 3), overlap=st.floats(0, 0.5), batch=st.integers(1, 3))
def test_windows_hold_no_more_than_declared(shape: tuple[int, int, int], overlap: float, batch: int) -> None:
    """What is alive between two regions stays below what was declared, however the windows lie."""
    alive: list[int] = []

    def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ones_like(windows)

    regions = slide(
        np.zeros((1, *shape), np.float32),
        run,
        window=(6, 8, 7),
        overlap=overlap,
        blend="constant",
        batch=batch,
        max_windows=100_000,
    )
    for region in regions:
        held = regions.gi_frame.f_locals["held"]  # type: ignore[attr-defined]
        alive.append(sum(total.size for total, _ in held.values()) + region.values.size + batch * 6 * 8 * 7)
    assert max(alive) <= held_voxels(shape, (6, 8, 7), overlap, batch)


def _predict(limit_mb: int, engine: Ramp, **tables: Any) -> str:
    grid = make_grid((64, 96, 96))
    manifest = make_manifest(limits={"time_s": 1.0, "ram_mb": limit_mb}, **tables)
    volume = make_volume(np.zeros(grid.shape), grid)
    return predict({"ct": volume}, manifest, engine, clock=ManualClock()).outcome


def test_image_that_would_take_too_much_is_refused_before_the_network_runs() -> None:
    """The reason names what it would take and what it may; with enough of it the same image is read."""
    engine = Ramp()
    with pytest.raises(NotApplicableError, match=r"would take about \d+ MB of memory; the plugin may use 12 MB"):
        _predict(12, engine)
    assert engine.shapes == []
    assert _predict(60, engine) == "nothing_found"


def test_inspect_tells_what_is_too_large(tmp_path: Path) -> None:
    """The same sentence stands in `inspect`, before anybody sends the study; with more memory the plugin takes it."""
    write_series(
        tmp_path / "ct",
        np.zeros((40, 96, 96)),
        np.eye(4),
        study_instance_uid="2.25.1",
        series_instance_uid="2.25.2",
        frame_of_reference_uid="2.25.3",
        uid_root="2.25.4",
    )
    verdicts = []
    for limit_mb in (3, 60):
        manifest = make_manifest(limits={"time_s": 1.0, "ram_mb": limit_mb})
        plugin = Plugin(
            manifest=manifest,
            folder=tmp_path,
            model_path=tmp_path / "model.onnx",
            verdicts_path=tmp_path / "engines.json",
        )
        (entry,) = inspect(tmp_path / "ct", [plugin])
        verdicts.append(entry["plugins"]["ramp"])
    assert [verdict["eligible"] for verdict in verdicts] == [False, True]
    assert re.fullmatch(r"this image would take about \d+ MB of memory; the plugin may use 3 MB", verdicts[0]["reason"])


def test_memory_of_the_network_counts() -> None:
    """The steps alone would fit, but not what the engine says that it takes."""

    class Hungry(Ramp):
        def memory_bytes(self, shapes: Any) -> int:
            assert list(shapes.values()) == [(1, 1, 64, 96, 96)]
            return 1 << 30

    engine = Hungry()
    with pytest.raises(NotApplicableError, match=r"the plugin may use 60 MB"):
        _predict(60, engine)
    assert engine.shapes == []


def test_more_classes_through_windows_take_little_more() -> None:
    """105 classes on 300 voxels cubed: declared below 2 GB through windows of 64, ten and more at once."""
    grid = make_grid((300, 300, 300))
    classes = ["background", *(f"Class {number}" for number in range(104))]
    triple = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
    tables: dict[str, Any] = {
        "output": [{"tensor": "o", "role": "logits", "activation": "softmax", "exclusive": True, "classes": classes}],
        "segment": [{"label": label, "category": triple, "type": triple, "colour": [1, 2, 3]} for label in classes[1:]],
        "postprocess": {},
    }
    windows = make_manifest(inference={"mode": "window", "window": [64, 64, 64]}, **tables)
    assert windows.memory_bytes(grid) < 2e9
    assert make_manifest(**tables).memory_bytes(grid) > 10e9
