"""What our windows cost above the bare ONNX Runtime session on the same windows, and what each engine takes.

    python benchmarks/infer.py [--quick] [--rounds N] [--threads N] [--gpu]

The model is the QA phantom's, the image noise on its grid: time does not depend on what is in it. The bare session gets
the very windows that ours gets, one after the other, cut before the clock starts and answers thrown away: what is left
is what cutting, activation, blending and checks cost. Rounds take turns, so that the ratio is one of pairs. With --gpu
the engines of a graphics card take part; MONAI's sliding window does where MONAI and torch are installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from benchmarks.measure import Report, Target, interleaved, paired_ratios, spread
from dicom_node.config import read_table
from dicom_node.engines import REFERENCE, Engine, Setting, load_engine, load_model
from dicom_node.errors import DicomNodeError
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.preprocess import Prepared
from dicom_node.imaging.sliding import window_starts
from dicom_node.plugin_api import Manifest
from dicom_node.predict import run_model

PLUGIN: Final = Path(__file__).resolve().parents[1] / "plugins" / "qa_phantom"
OVERHEAD: Final = 1.10
"""Our windows as a part of the bare session, at most."""
SHAPE: Final = (160, 160, 160)
QUICK_SHAPE: Final = (112, 112, 112)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the report, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller image and three rounds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpu", action="store_true", help="the engines of a graphics card too")
    options = parser.parse_args(arguments)
    shape, rounds = (QUICK_SHAPE if options.quick else SHAPE), options.rounds or (3 if options.quick else 7)
    manifest = read_table(PLUGIN / "plugin.toml", Manifest)
    model = load_model(PLUGIN / manifest.model[0].file, manifest.model[0].sha256)
    prepared = Prepared(
        array=np.random.default_rng(1).random(shape, dtype=np.float32), grid=Grid(shape=shape, affine_lps=np.eye(4))
    )
    report = Report(benchmark="infer")
    contenders: dict[str, Callable[[], object]] = {"bare session": _bare(model, manifest, prepared, options.threads)}
    absent = []
    for name in (REFERENCE, "openvino", *(("tensorrt", "tensorrt_rtx") if options.gpu else ())):
        try:
            setting = Setting(threads=options.threads, profile=manifest.shape_ranges())
            engine = load_engine(name, model, setting)
        except DicomNodeError as error:
            absent.append(f"{name}: {error}")
            continue
        contenders[name] = _ours(engine, manifest, prepared)
    if find_spec("monai") is None or find_spec("torch") is None:
        absent.append("MONAI's sliding window: MONAI is not installed")
    else:
        contenders["MONAI"] = _monai(model, manifest, prepared, options.threads)
    seconds = _measure(contenders, rounds)
    overhead = spread([1 / ratio for ratio in paired_ratios(seconds[REFERENCE], seconds["bare session"])])
    report.add_table(
        f"{shape[0]} voxels along each axis, {options.threads} threads, {rounds} rounds",
        ("who", "seconds", "of the bare session"),
        [
            (name, str(spread(times)), spread(np.divide(times, seconds["bare session"]).tolist()).median)
            for name, times in seconds.items()
        ],
    )
    if absent:
        report.add_table("Not measured", ("why",), [(words,) for words in absent])
    report.figures.update({f"{name.replace(' ', '_')}_s": spread(times).median for name, times in seconds.items()})
    report.targets.append(Target(name="our windows / bare session", value=overhead.median, at_most=OVERHEAD))
    if "MONAI" in seconds:
        slower = spread(paired_ratios(seconds[REFERENCE], seconds["MONAI"])).median
        report.targets.append(Target(name="MONAI / our windows", value=slower, at_least=1.0))
    return report.finish()


def _measure(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round of each; the first run of each is not counted."""
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _, name in interleaved(list(contenders), rounds):
        started = time.perf_counter()
        contenders[name]()
        seconds[name].append(time.perf_counter() - started)
    return seconds


def _ours(engine: Engine, manifest: Manifest, prepared: Prepared) -> Callable[[], object]:
    return lambda: run_model(prepared, manifest, engine)


def _bare(model: bytes, manifest: Manifest, prepared: Prepared, threads: int) -> Callable[[], object]:
    """Return the session alone, over the windows that ours takes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    window, tensor = manifest.inference.window, manifest.input[0].tensor
    assert window is not None
    starts = [
        window_starts(size, edge, manifest.inference.overlap)
        for size, edge in zip(prepared.array.shape, window, strict=True)
    ]
    windows = [
        np.ascontiguousarray(prepared.array[z : z + window[0], y : y + window[1], x : x + window[2]])[None, None]
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]

    def run() -> None:
        for each in windows:
            session.run(None, {tensor: each})

    return run


def _monai(model: bytes, manifest: Manifest, prepared: Prepared, threads: int) -> Callable[[], object]:
    """Return MONAI's sliding window over the same model."""
    import torch
    from monai.inferers import sliding_window_inference

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    tensor = manifest.input[0].tensor

    def network(windows: Any) -> Any:
        return torch.sigmoid(torch.from_numpy(session.run(None, {tensor: windows.numpy()})[0]))

    image = torch.from_numpy(prepared.array[None, None])
    inference = manifest.inference
    return lambda: sliding_window_inference(
        image, inference.window, inference.batch, network, overlap=inference.overlap, mode=inference.blend
    )


if __name__ == "__main__":
    sys.exit(main())
