"""Evaluation: what a published plugin finds in phantoms that it never saw, beside the truth. No torch.

The whole way is walked as a node walks it: the phantom is written as DICOM, read back, and given to `predict`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dicom_node.clock import Clock
from dicom_node.config import read_table
from dicom_node.engines import OnnxRuntimeEngine, load_model
from dicom_node.findings import Findings
from dicom_node.plugin_api import Manifest
from dicom_node.predict import predict
from dicom_node.reading import load_volume
from model_build.phantoms import Orientation, Phantom, PhantomObject, make_phantom, write_study

__all__ = ["TARGETS", "Evaluation", "Pair", "Targets", "evaluate", "open_plugin", "pair_up", "predict_phantom"]

NEAR_MM = 6.0
"""A finding whose centre lies farther from an object's than this is not that object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What must hold over all seeds together."""

    missed: int = 0
    false_positives: int = 0
    centre_error_mm: float = 1.0
    volume_error_median: float = 0.03
    volume_error_p90: float = 0.08
    volume_error_max: float = 0.15


TARGETS = Targets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An object and the finding that is it, a missed object (no `found_ml`), or a false one (no `true_ml`)."""

    seed: int
    object_number: int | None
    kind: str | None
    smallest_diameter_mm: float | None
    hu: float | None
    true_ml: float | None
    found_ml: float | None
    centre_error_mm: float | None

    @property
    def volume_error(self) -> float | None:
        """Return (found - true) / true."""
        if self.true_ml is None or self.found_ml is None:
            return None
        return self.found_ml / self.true_ml - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All pairs of all seeds, and what they come to."""

    pairs: tuple[Pair, ...]
    n_seeds: int
    seconds_per_study: float

    def figures(self) -> dict[str, float | int | None]:
        """Return recall, false positives, centre errors (mm) and absolute volume errors (fractions); None: no pair."""
        matched = [pair for pair in self.pairs if pair.volume_error is not None]
        objects = [pair for pair in self.pairs if pair.true_ml is not None]
        errors = [abs(pair.volume_error) for pair in matched if pair.volume_error is not None]
        centres = [pair.centre_error_mm for pair in matched if pair.centre_error_mm is not None]
        return {
            "seeds": self.n_seeds,
            "objects": len(objects),
            "found": len(matched),
            "recall": len(matched) / len(objects) if objects else None,
            "false_positives": len(self.pairs) - len(objects),
            "centre_error_median_mm": _quantile(centres, 0.5),
            "centre_error_max_mm": _quantile(centres, 1.0),
            "volume_error_median": _quantile(errors, 0.5),
            "volume_error_p90": _quantile(errors, 0.9),
            "volume_error_max": _quantile(errors, 1.0),
            "volume_bias_mean": float(np.mean([pair.volume_error for pair in matched])) if matched else None,
            "seconds_per_study": round(self.seconds_per_study, 2),
        }

    def failures(self, targets: Targets = TARGETS) -> list[str]:
        """Return which targets do not hold, in words; empty when all do."""
        figures = self.figures()
        limits = {
            "false_positives": targets.false_positives,
            "centre_error_max_mm": targets.centre_error_mm,
            "volume_error_median": targets.volume_error_median,
            "volume_error_p90": targets.volume_error_p90,
            "volume_error_max": targets.volume_error_max,
        }
        failures = [
            f"{name} is {value:.4g}, not at most {limit:g}"
            for name, limit in limits.items()
            if (value := figures[name]) is not None and value > limit
        ]
        missed = [pair for pair in self.pairs if pair.found_ml is None]
        if len(missed) > targets.missed:
            failures.append(f"{len(missed)} objects missed")
        return failures

    def as_json(self) -> dict[str, object]:
        """Return figures, targets and every pair, for --json: lengths in mm, volumes in ml."""
        return {
            "figures": self.figures(),
            "targets": asdict(TARGETS),
            "failures": self.failures(),
            "holds": not self.failures(),
            "pairs": [asdict(pair) | {"volume_error": pair.volume_error} for pair in self.pairs],
        }


def open_plugin(folder: Path, *, threads: int = 0) -> tuple[Manifest, OnnxRuntimeEngine]:
    """Return the manifest of a plugin and its engine; the model must have the declared digest."""
    manifest = read_table(folder / "plugin.toml", Manifest)
    model = manifest.model[0]
    return manifest, OnnxRuntimeEngine.load(load_model(folder / model.file, model.sha256), threads=threads)


def predict_phantom(phantom: Phantom, manifest: Manifest, engine: OnnxRuntimeEngine, *, clock: Clock) -> Findings:
    """Return what the plugin finds in the phantom, which goes through DICOM files on its way."""
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(
            phantom,
            Path(folder),
            uid_root=f"2.25.{phantom.seed + 1}",
            acquired_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        volume = load_volume(
            study.instances,
            policy=manifest.input_series[0].policy,
            grey_from_colour=manifest.preprocess.takes_colour,
        )
    return predict({manifest.input_series[0].role: volume}, manifest, engine, clock=clock)


def pair_up(seed: int, objects: Sequence[PhantomObject], findings: Findings) -> list[Pair]:
    """Return every object with the finding nearest to it, nearest pairs first, then every finding left over."""
    rest = {finding.number: finding.measurements for finding in findings.findings}
    distances = sorted(
        (float(np.linalg.norm(np.subtract(each.centre_lps_mm, found.centroid_lps_mm))), each.number, number)
        for each in objects
        for number, found in rest.items()
    )
    chosen: dict[int, tuple[float, int]] = {}
    for distance, object_number, number in distances:
        if distance <= NEAR_MM and object_number not in chosen and number in rest:
            chosen[object_number] = (distance, number)
            del rest[number]
    volumes = {finding.number: finding.measurements.volume_ml for finding in findings.findings}
    pairs = []
    for each in objects:
        match = chosen.get(each.number)
        pairs.append(
            Pair(
                seed=seed,
                object_number=each.number,
                kind=each.kind,
                smallest_diameter_mm=each.smallest_diameter_mm,
                hu=each.hu,
                true_ml=each.volume_ml,
                found_ml=volumes[match[1]] if match else None,
                centre_error_mm=match[0] if match else None,
            )
        )
    return pairs + [_false(seed, volumes[number]) for number in rest]


def evaluate(
    plugin: Path,
    seeds: Iterable[int],
    *,
    clock: Clock,
    orientation: Orientation = "oblique",
    threads: int = 0,
    report: Callable[[int, list[Pair]], None] = lambda _seed, _pairs: None,
) -> Evaluation:
    """Return what the plugin in the folder finds in the phantoms of these seeds.

    A result that the plausibility gate withheld counts as nothing found.
    """
    manifest, engine = open_plugin(plugin, threads=threads)
    pairs: list[Pair] = []
    n_seeds, seconds = 0, 0.0
    for seed in seeds:
        phantom = make_phantom(seed, orientation=orientation)
        started = clock.monotonic()
        findings = predict_phantom(phantom, manifest, engine, clock=clock)
        seconds += clock.monotonic() - started
        n_seeds += 1
        pairs += (found := pair_up(seed, phantom.objects, findings))
        report(seed, found)
    return Evaluation(pairs=tuple(pairs), n_seeds=n_seeds, seconds_per_study=seconds / max(1, n_seeds))


def _false(seed: int, found_ml: float) -> Pair:
    """Return a finding that is no object."""
    return Pair(
        seed=seed,
        object_number=None,
        kind=None,
        smallest_diameter_mm=None,
        hu=None,
        true_ml=None,
        found_ml=found_ml,
        centre_error_mm=None,
    )


def _quantile(values: Sequence[float], fraction: float) -> float | None:
    """Return a quantile, or None of nothing."""
    return float(np.quantile(values, fraction)) if values else None
