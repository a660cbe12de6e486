"""Making engines and comparing them with the reference on golden cases, through `predict`, the code that serves.

A golden case is a series that lies beside the plugin (reference/*.dcm) or is named by whoever compares. What was found
is kept where the node looks for it (`engines.verdicts`); an engine that fails is not served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dicom_node.clock import Clock
from dicom_node.config import read_table
from dicom_node.engines import REFERENCE, Engine, Setting, load_engine, load_model
from dicom_node.engines.compare import MAX_LABEL_DISAGREEMENT, Difference, Outputs, Recorder, difference, logit_of
from dicom_node.engines.verdicts import FILE, Verdict, Verdicts, read_verdicts, write_verdicts
from dicom_node.errors import UsageError
from dicom_node.findings import Findings
from dicom_node.imaging.volume import Volume
from dicom_node.plugin_api import Manifest
from dicom_node.predict import predict
from dicom_node.reading import find_files, group_series, load_volume

__all__ = ["as_json", "compare", "findings_apart", "golden_cases", "keep", "make_engine", "open_model", "use_engine"]

_CENTRE_MM, _VOLUME = 0.1, 0.01
"""How far findings may lie apart and still be the same: those of the reference case (model_build.publish)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginModel:
    """A plugin's manifest, its verified model and its folder in data_dir/models."""

    manifest: Manifest
    model: bytes
    home: Path

    @property
    def verdicts_path(self) -> Path:
        """Return where verdicts are kept."""
        return self.home / FILE


def open_model(plugin: Path, models: Path) -> PluginModel:
    """Return the plugin in the folder, its model where the node would take it from.

    Raises
    ------
    ConfigError
        plugin.toml is wrong.
    PluginError, ModelMismatchError
        The model is missing or another one.
    """
    manifest = read_table(plugin / "plugin.toml", Manifest)
    declared = manifest.model[0]
    home = models / plugin.resolve().name
    path = (home if declared.installed else plugin) / declared.file
    return PluginModel(manifest=manifest, model=load_model(path, declared.sha256), home=home)


def golden_cases(plugin: Path, paths: Sequence[Path]) -> tuple[Volume, ...]:
    """Return the volume of each case: a folder or a file each; without any, the plugin's reference images.

    Raises
    ------
    UsageError
        There is none, or a folder does not hold exactly one series.
    """
    chosen = list(paths) or sorted((plugin / "reference").glob("*.dcm"))
    if not chosen:
        raise UsageError(f"{plugin.name} has no reference image; name a series with --case")
    return tuple(load_volume(_series_of(path)) for path in chosen)


def _series_of(path: Path) -> tuple[Path, ...]:
    """Return the images of the one series at `path`; what is no DICOM file (a licence, a list) is left out."""
    series, _ = group_series(find_files(path))
    if len(series) != 1:
        raise UsageError(f"{path.name} holds {len(series)} series; a case is one")
    return tuple(image.path for image in series[0].images)


def make_engine(opened: PluginModel, name: str, *, threads: int) -> Engine:
    """Return the engine, built for the plugin's shapes; what was built before comes from the cache.

    Raises
    ------
    UsageError
        The manifest does not name it.
    UnsupportedModelError
        It cannot run this model here.
    """
    if name not in opened.manifest.runtime.engines:
        raise UsageError(
            f"{opened.manifest.plugin.id} may be served by {', '.join(opened.manifest.runtime.engines)}, not by {name}"
        )
    setting = Setting(threads=threads, profile=opened.manifest.shape_ranges(), cache=opened.home / "engines")
    return load_engine(name, opened.model, setting)


def compare(
    opened: PluginModel, name: str, cases: Sequence[Volume], *, clock: Clock, threads: int = 0, rounds: int = 3
) -> Verdict:
    """Return how one engine does beside the reference on the cases, and whether it may serve.

    Each runs `rounds` times over all cases, in turns; the fastest counts.

    Raises
    ------
    UnsupportedModelError
        The engine cannot run this model here.
    """
    if name == REFERENCE:
        raise UsageError(f"{REFERENCE} is the reference; it is compared with nothing")
    reference = load_engine(REFERENCE, opened.model, Setting(threads=threads))
    engine = make_engine(opened, name, threads=threads)
    manifest = opened.manifest
    first: dict[str, list[Findings]] = {}
    seconds: dict[str, list[float]] = {REFERENCE: [], name: []}
    found = Difference(relative_error=0.0, n_positions=0, n_other_label=0)
    for runtime in (reference, engine):
        runtime.warm_up()
    for turn in range(rounds):
        recorders = {REFERENCE: Recorder(reference, clock), name: Recorder(engine, clock)}
        order = [REFERENCE, name] if turn % 2 == 0 else [name, REFERENCE]
        for volume in cases:
            answers = {one: _answer(volume, manifest, recorders[one], clock) for one in order}
            if turn == 0:
                outputs = [recorders[one].take_outputs() for one in (REFERENCE, name)]
                found = found.with_case(_difference(manifest, *outputs))
                for one, answer in answers.items():
                    first.setdefault(one, []).append(answer)
            for recorder in recorders.values():
                recorder.take_outputs()
        for one, recorder in recorders.items():
            seconds[one].append(recorder.seconds)
    apart = [
        f"case {number}: {words}"
        for number, (exact, other) in enumerate(zip(first[REFERENCE], first[name], strict=True), 1)
        if (words := findings_apart(exact, other)) is not None
    ]
    reasons = _failures(found, manifest) + apart
    return Verdict(
        engine=name,
        fingerprint=engine.fingerprint,
        model_sha256=manifest.model[0].sha256,
        spec_sha256=manifest.spec_sha256(),
        passed=not reasons,
        reasons=tuple(reasons),
        relative_error=found.relative_error,
        label_disagreement=found.label_disagreement,
        same_findings=not apart,
        seconds=min(seconds[name]),
        reference_seconds=min(seconds[REFERENCE]),
        n_cases=len(cases),
        compared_at=clock.now().isoformat(),
    )


def findings_apart(exact: Findings, found: Findings) -> str | None:
    """Return in words what one answer says and the other does not; None: the same findings."""
    if (exact.outcome, exact.reason) != (found.outcome, found.reason):
        return f"{found.outcome} ({found.reason}) instead of {exact.outcome} ({exact.reason})"
    labels, others = ([each.label for each in answer.findings] for answer in (exact, found))
    if labels != others:
        return f"{len(others)} findings instead of {len(labels)}, or in another order"
    for ours, theirs in zip(exact.findings, found.findings, strict=True):
        a, b = ours.measurements, theirs.measurements
        moved_mm = max(abs(x - y) for x, y in zip(a.centroid_lps_mm, b.centroid_lps_mm, strict=True))
        if moved_mm > _CENTRE_MM or abs(b.volume_ml - a.volume_ml) > _VOLUME * a.volume_ml:
            return (
                f"{ours.tracking_identifier}: {b.volume_ml:.4g} ml instead of {a.volume_ml:.4g}, {moved_mm:.2g} mm away"
            )
    return None


def keep(opened: PluginModel, verdict: Verdict) -> Verdicts:
    """Put a verdict where the node looks for it; return all that are there."""
    verdicts = read_verdicts(opened.verdicts_path).with_verdict(verdict)
    write_verdicts(opened.verdicts_path, verdicts)
    return verdicts


def use_engine(opened: PluginModel, name: str) -> Verdicts:
    """Let one engine serve from the next job on; "fastest" gives the choice back to the verdicts.

    Raises
    ------
    UsageError
        The engine has not passed a comparison with this very model and spec.
    """
    verdicts = read_verdicts(opened.verdicts_path)
    if name not in (REFERENCE, "fastest"):
        verdict = verdicts.engines.get(name)
        now = (opened.manifest.model[0].sha256, opened.manifest.spec_sha256())
        if verdict is None or not verdict.passed or (verdict.model_sha256, verdict.spec_sha256) != now:
            raise UsageError(f"{name} has not passed a comparison with this model and spec: run `model-build compare`")
    chosen = Verdicts(engines=verdicts.engines, use=None if name == "fastest" else name)
    write_verdicts(opened.verdicts_path, chosen)
    return chosen


def as_json(verdict: Verdict) -> dict[str, object]:
    """Return a verdict for --json: durations in seconds."""
    return {
        **asdict(verdict),
        "reasons": list(verdict.reasons),
        "speed_up": verdict.reference_seconds / verdict.seconds,
    }


def _answer(volume: Volume, manifest: Manifest, engine: Engine, clock: Clock) -> Findings:
    return predict({manifest.input_series[0].role: volume}, manifest, engine, clock=clock)


def _difference(manifest: Manifest, exact: list[Outputs], found: list[Outputs]) -> Difference:
    """Return how far the outputs of one case lie apart, the labels by the manifest's own rule."""
    output, threshold = manifest.output[0], manifest.postprocess.threshold
    cut = None if output.exclusive else logit_of(threshold) if output.activation == "sigmoid" else threshold
    return difference(exact, found, label_tensor=output.tensor, cut=cut)


def _failures(found: Difference, manifest: Manifest) -> list[str]:
    """Return what speaks against the engine, in words."""
    failures = []
    if found.n_positions == 0:
        failures.append("the network did not run: the gate withheld every case")
    if not found.relative_error <= manifest.runtime.tolerance:
        failures.append(f"relative error {found.relative_error:.2g} is above {manifest.runtime.tolerance:g}")
    if found.label_disagreement > MAX_LABEL_DISAGREEMENT:
        failures.append(f"{found.label_disagreement:.2g} of the labels differ; {MAX_LABEL_DISAGREEMENT:g} may")
    return failures
