"""Nodules: what a plugin, or the baseline, finds in chest phantoms that it never saw, with intervals.

Every phantom is written as DICOM and read back; a plugin answers through `predict`, as it does when it serves. A result
that the gate withholds counts as nothing found, and is counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.clock import Clock
from dicom_node.imaging.volume import Volume
from dicom_node.predict import predict
from dicom_node.reading import load_volume
from model_build.evaluation.baseline import find_by_threshold
from model_build.evaluation.detection import Detection, StudyResult, Target, froc, froc_figures, match, recall_of
from model_build.evaluation.intervals import Figure, bootstrap
from model_build.evaluation.overlap import bland_altman
from model_build.evaluation.qa import open_plugin
from model_build.phantoms.chest import ChestPhantom, make_chest, write_chest
from model_build.phantoms.frozen import fingerprint

__all__ = ["SIZES_MM", "Finder", "NoduleEvaluation", "baseline_finder", "evaluate_nodules", "plugin_finder"]

SIZES_MM: Mapping[str, tuple[float, float]] = {"4-6": (0.0, 6.0), "6-10": (6.0, 10.0), "> 10": (10.0, np.inf)}
KINDS = tuple(f"{texture}/{place}" for texture in ("solid", "part_solid") for place in ("free", "pleural", "vessel"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found in one study."""

    detections: tuple[Detection, ...]
    withheld: bool = False


Finder: TypeAlias = Callable[[Volume], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class NoduleEvaluation:
    """All studies of one generator, and what they come to."""

    shifted: bool
    studies: tuple[StudyResult, ...]
    n_withheld: int
    seconds_per_study: float

    def as_json(self) -> dict[str, object]:
        """Return every figure with its interval: lengths in mm, volumes in ml, errors as shares."""
        curve = froc(self.studies)
        false = np.array([study.n_false for study in self.studies], dtype=np.float64)
        return {
            "generator": {"kind": "chest", "shifted": self.shifted, "sha256": fingerprint("chest")},
            "studies": len(self.studies),
            "nodule_free": sum(all(each.target is None for each in study.matches) for study in self.studies),
            "withheld": self.n_withheld,
            "recall": recall_of(self.studies).as_json(),
            "recall_above_6_mm": recall_of(self.studies, low_mm=6).as_json(),
            "recall_by_size_mm": {
                name: recall_of(self.studies, low_mm=low, high_mm=high).as_json()
                for name, (low, high) in SIZES_MM.items()
            },
            "recall_by_kind": {kind: recall_of(self.studies, kind=kind).as_json() for kind in KINDS},
            "false_positives_per_study": bootstrap(lambda drawn: float(false[drawn].mean()), len(false)).as_json(),
            "froc": {rate: figure.as_json() for rate, figure in froc_figures(self.studies).items()},
            "froc_curve": {
                "confidence": curve.confidence.tolist(),
                "false_per_study": curve.false_per_study.tolist(),
                "recall": curve.recall.tolist(),
            },
            "volume_error_by_size_mm": {
                name: {key: value.as_json() for key, value in self.volume_errors(low, high).items()}
                for name, (low, high) in SIZES_MM.items()
            },
            "volume_agreement": self._agreement(),
            "volumes_ml": [[true, found] for true, found in self._volumes()],
            "seconds_per_study": round(self.seconds_per_study, 2),
        }

    def volume_errors(self, low_mm: float, high_mm: float) -> dict[str, Figure]:
        """Return the median absolute error and the mean error (bias) of hits of these sizes, as shares of the truth."""
        per_study = [
            [
                each.volume_error
                for each in study.matches
                if each.volume_error is not None and each.target and low_mm < each.target.diameter_mm <= high_mm
            ]
            for study in self.studies
        ]

        def over(statistic: Callable[[NDArray[np.float64]], float]) -> Figure:
            def drawn(rows: NDArray[np.intp]) -> float:
                values = np.array([error for row in rows for error in per_study[row]], dtype=np.float64)
                return statistic(values) if len(values) else float("nan")

            return bootstrap(drawn, len(per_study))

        return {
            "median_absolute": over(lambda values: float(np.median(np.abs(values)))),
            "bias": over(lambda values: float(values.mean())),
        }

    def _volumes(self) -> list[tuple[float, float]]:
        return [
            (each.target.volume_ml, each.detection.volume_ml)
            for study in self.studies
            for each in study.matches
            if each.target is not None and each.detection is not None
        ]

    def _agreement(self) -> dict[str, float | int] | None:
        pairs = np.array(self._volumes(), dtype=np.float64).reshape(-1, 2)
        if len(pairs) < 2:
            return None
        found = bland_altman(pairs[:, 1], pairs[:, 0], relative=True)
        return {"bias": found.bias, "sd": found.sd, "low": found.low, "high": found.high, "n": found.n}


def targets_of(phantom: ChestPhantom) -> list[Target]:
    """Return the nodules as what must be found."""
    return [
        Target(
            centre_lps_mm=each.centre_lps_mm,
            diameter_mm=each.diameter_mm,
            volume_ml=each.volume_ml,
            kind=each.kind,
        )
        for each in phantom.nodules
    ]


def plugin_finder(plugin: Path, *, clock: Clock, threads: int = 0) -> Finder:
    """Return what the plugin in the folder finds, through `predict`."""
    manifest, engine = open_plugin(plugin, threads=threads)

    def find(volume: Volume) -> Answer:
        findings = predict({manifest.input_series[0].role: volume}, manifest, engine, clock=clock)
        return Answer(
            detections=tuple(
                Detection(
                    centre_lps_mm=each.measurements.centroid_lps_mm,
                    volume_ml=each.measurements.volume_ml,
                    confidence=1.0 if each.probability is None else each.probability,
                )
                for each in findings.findings
            )
            if findings.outcome != "withheld"
            else (),
            withheld=findings.outcome == "withheld",
        )

    return find


def baseline_finder(volume: Volume) -> Answer:
    """Return what threshold and sphericity find."""
    return Answer(detections=tuple(find_by_threshold(volume)))


def evaluate_nodules(
    find: Finder,
    seeds: Iterable[int],
    empty_seeds: Iterable[int] = (),
    *,
    clock: Clock,
    shifted: bool = False,
    report: Callable[[StudyResult], None] = lambda _study: None,
) -> NoduleEvaluation:
    """Return what is found in the chests of these seeds, and in nodule-free ones."""
    studies, seconds, n_withheld = [], 0.0, 0
    wanted: Sequence[tuple[int, bool]] = [(s, False) for s in seeds] + [(s, True) for s in empty_seeds]
    for seed, empty in wanted:
        phantom = make_chest(seed, shifted=shifted, empty=empty)
        with tempfile.TemporaryDirectory() as folder:
            files = write_chest(
                phantom, Path(folder), uid_root=f"2.25.{seed + 1}", acquired_at=datetime(2026, 1, 1, tzinfo=UTC)
            )
            volume = load_volume(files.instances)
        started = clock.monotonic()
        answer = find(volume)
        seconds += clock.monotonic() - started
        n_withheld += answer.withheld
        result = StudyResult(study=str(seed), matches=match(targets_of(phantom), answer.detections))
        studies.append(result)
        report(result)
    return NoduleEvaluation(
        shifted=shifted,
        studies=tuple(studies),
        n_withheld=n_withheld,
        seconds_per_study=seconds / max(1, len(studies)),
    )
