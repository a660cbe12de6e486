"""Files of a CT series -> float32 volume: ours beside SimpleITK, highdicom and a plain loop over pydicom.

    python benchmarks/load.py [--quick] [--slices N] [--rounds N] [--only uncompressed j2k]

A series of 300 slices of 512 x 512 is written once, uncompressed and in JPEG 2000 lossless; its noise makes a slice as
hard to decode as one of a scanner (150 kB), its header is as long as one. Each run is a new process that has imported
what it needs, in rounds whose order turns; files lie in the page cache. What is timed goes from file names to a float32
array in Hounsfield units, sorted; the sums of all arrays must agree.

    ours         `dicom_node.reading.load_volume` with its defaults
    simpleitk    ImageSeriesReader with the names that GDCM sorted beforehand, float32
    highdicom    `get_volume_from_series` of data sets read by pydicom
    pydicom      dcmread, rescale, sort by position

CPU time is that of the process and its children; what keeps others from the processors shows in wall time alone.
Memory is the sum of the largest resident sizes of the process and its children, imports included, over the volume's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from benchmarks.measure import Report, Target, interleaved, paired_ratios, spread
from benchmarks.processes import peak_mb
from dicom_node.reading.synthetic import write_series

SCRATCH: Final = Path(__file__).resolve().parents[1] / "var"
SIZE: Final = 512
ROOT: Final = "1.2.826.0.1.3680043.10.511.77"
PRIVATE_ELEMENTS: Final = 120
"""Beside the writer's own sixty: a scanner's slice has 150 to 250."""
NOISE_HU: Final = 9.0
LOOK_S: Final = 0.01
"""How often memory is looked at."""
TARGETS: Final[Mapping[tuple[str, str], float]] = MappingProxyType(
    {
        ("uncompressed", "simpleitk"): 1.8,
        ("uncompressed", "highdicom"): 3.0,
        ("j2k", "simpleitk"): 1.8,
        ("j2k", "highdicom"): 1.8,
    }
)
"""Their time over ours, at least."""
MEMORY_AT_MOST: Final = 2.2
"""Of ours, in volumes."""


def make_series(folder: Path, n_slices: int) -> dict[str, Path]:
    """Write the series uncompressed and in JPEG 2000 lossless; return the folders."""
    plain, packed = folder / "uncompressed", folder / "j2k"
    affine = np.diag([0.8, 0.8, 1.0, 1.0])
    affine[:3, 3] = (-200, -200, -500)
    paths = write_series(
        plain,
        _body(n_slices),
        affine,
        study_instance_uid=f"{ROOT}.1",
        series_instance_uid=f"{ROOT}.2",
        frame_of_reference_uid=f"{ROOT}.3",
        uid_root=ROOT,
    )
    packed.mkdir()
    for path in paths:
        ds = dcmread(path)
        ds.private_block(0x0019, "BENCHMARK", create=True)
        for number in range(PRIVATE_ELEMENTS):
            ds.add_new(0x00191001 + number, "DS" if number % 2 else "LO", "1.25" if number % 2 else "some words")
        ds.save_as(path)
        ds.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
        ds.save_as(packed / path.name)
    return {"uncompressed": plain, "j2k": packed}


def _body(n_slices: int) -> NDArray[np.float32]:
    """Return a body of soft tissue with a spine and two lungs in air, in the noise of a thin slice, in HU."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    out = np.full((n_slices, SIZE, SIZE), -1000, dtype=np.float32)
    for z in range(n_slices):
        width = 0.85 + 0.05 * np.sin(z / 40)
        body = (x / width) ** 2 + (y / 0.6) ** 2 < 1
        out[z][body] = 40
        for centre in (-0.38, 0.38):
            out[z][((x - centre) / 0.25) ** 2 + (y / 0.38) ** 2 < 1] = -820
        out[z][(x / 0.08) ** 2 + ((y - 0.38) / 0.08) ** 2 < 1] = 350
        noise = random.normal(0, NOISE_HU, (SIZE, SIZE)).astype(np.float32)
        out[z] += np.where(body, noise, noise / 4)
    return np.clip(np.rint(out), -1024, 3000)


def _ours(paths: Sequence[Path]) -> Callable[[], NDArray[np.float32]]:
    from dicom_node.reading import load_volume

    return lambda: load_volume(paths).array


def _simpleitk(paths: Sequence[Path]) -> Callable[[], NDArray[np.float32]]:
    import SimpleITK

    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
    reader = SimpleITK.ImageSeriesReader()
    kept = []  # the array is a view of the image

    def load() -> NDArray[np.float32]:
        reader.SetFileNames(names)
        reader.SetOutputPixelType(SimpleITK.sitkFloat32)
        kept.append(reader.Execute())
        return np.asarray(SimpleITK.GetArrayViewFromImage(kept[-1]))

    return load


def _highdicom(paths: Sequence[Path]) -> Callable[[], NDArray[np.float32]]:
    from highdicom import get_volume_from_series

    return lambda: np.asarray(get_volume_from_series([dcmread(path) for path in paths], dtype=np.float32).array)


def _pydicom(paths: Sequence[Path]) -> Callable[[], NDArray[np.float32]]:
    def load() -> NDArray[np.float32]:
        series = sorted((dcmread(path) for path in paths), key=lambda ds: float(ds.ImagePositionPatient[2]))
        out = np.empty((len(series), series[0].Rows, series[0].Columns), dtype=np.float32)
        for z, ds in enumerate(series):
            np.multiply(ds.pixel_array, np.float32(ds.RescaleSlope), out=out[z])
            out[z] += np.float32(ds.RescaleIntercept)
        return out

    return load


READERS: Final[Mapping[str, Callable[[Sequence[Path]], Callable[[], NDArray[np.float32]]]]] = MappingProxyType(
    {"ours": _ours, "simpleitk": _simpleitk, "highdicom": _highdicom, "pydicom": _pydicom}
)


def read_once(name: str, folder: Path) -> dict[str, Any]:
    """Load the series of a folder in this process and return how long it took and what came out."""
    paths = sorted(folder.iterdir())
    for path in paths:
        path.read_bytes()  # the page cache, the same for all
    load = READERS[name](paths)
    started, cpu = time.perf_counter(), _cpu_s()
    array = load()
    seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu
    return {"seconds": seconds, "cpu_s": cpu_s, "shape": list(array.shape), "sum": float(array.sum(dtype=np.float64))}


def _cpu_s() -> float:
    """Return the seconds that this process and its ended children worked."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(name: str, folder: Path) -> dict[str, Any]:
    """Return what `read_once` does in a new process, and its peak memory in MB, children included."""
    command = [sys.executable, str(Path(__file__).resolve()), "--read", name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            time.sleep(LOOK_S)
        said = process.stdout.read() if process.stdout else ""
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return {**json.loads(said.splitlines()[-1]), "peak_mb": peak}


def measure(report: Report, kind: str, folder: Path, names: Sequence[str], rounds: int) -> None:
    """Add times, ratios and memory of one kind of files."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _, name in interleaved(names, rounds):
        runs[name].append(run(name, folder))
    times = {name: [one["seconds"] for one in runs[name]] for name in names}
    shape = runs["ours"][0]["shape"]
    volume_mb = float(np.prod(shape)) * 4 / 1e6
    memory = {name: median(one["peak_mb"] for one in runs[name]) / volume_mb for name in names}
    rows = []
    for name in names:
        ratio = median(paired_ratios(times["ours"], times[name]))
        cpu_s = median(one["cpu_s"] for one in runs[name])
        rows.append((name, spread(times[name]), ratio, cpu_s, memory[name]))
        report.figures[f"{kind}_cpu_s/{name}"] = cpu_s
        report.figures |= {f"{kind}_s/{name}": median(times[name]), f"{kind}_volumes/{name}": memory[name]}
        if (kind, name) in TARGETS:
            limit = TARGETS[kind, name]
            report.targets.append(Target(name=f"{kind}, {name} / ours", value=ratio, at_least=limit))
    columns = ("reader", "s [low-high]", "/ ours", "CPU s", "peak memory, volumes")
    report.add_table(
        f"{kind}: {shape[0]} slices of {shape[1]} x {shape[2]}, {volume_mb:.0f} MB as float32", columns, rows
    )
    report.targets.append(Target(name=f"{kind}, peak memory", value=memory["ours"], at_most=MEMORY_AT_MOST))
    sums = {(tuple(one["shape"]), one["sum"]) for name in names for one in runs[name]}
    report.targets.append(Target(name=f"{kind}, different volumes", value=float(len(sums)), at_most=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--only", nargs="*", choices=("uncompressed", "j2k"), default=("uncompressed", "j2k"))
    parser.add_argument("--readers", nargs="*", choices=tuple(READERS), default=tuple(READERS))
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--read", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        sys.stdout.write(json.dumps(read_once(options.read[0], Path(options.read[1]))) + "\n")
        return 0
    report = Report(benchmark="load")
    options.scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as scratch:
        folders = make_series(Path(scratch), options.slices)
        for kind in options.only:
            sizes = [path.stat().st_size for path in folders[kind].iterdir()]
            report.figures[f"{kind}_kb_a_slice"] = float(np.mean(sizes)) / 1e3
            names = [name for name in READERS if name in {"ours", *options.readers}]
            measure(report, kind, folders[kind], names, options.rounds or (2 if options.quick else 5))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
