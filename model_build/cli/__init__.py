"""`model-build`: the commands that make and judge models. torch and onnx are imported by those that need them."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table

from dicom_node.clock import SystemClock
from dicom_node.config import data_dir, find_config, load_config, read_table
from dicom_node.errors import DicomNodeError, UsageError
from dicom_node.ids import new_uid
from dicom_node.plugin_api import Manifest
from model_build.cli.data import data
from model_build.cli.nodules import evaluate_nodules
from model_build.phantoms import make_phantom, write_study
from model_build.plan import read_plan

if TYPE_CHECKING:
    from dicom_node.engines.verdicts import Verdict
    from model_build.evaluation import Pair

__all__ = ["app", "main"]

app = typer.Typer(
    help="Make, train, export and judge models for the node.", no_args_is_help=True, pretty_exceptions_enable=False
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
ModelsOption = Annotated[
    Path | None, typer.Option("--models", help="Folder of installed weights and verdicts; default: the node's own.")
]
PluginOption = Annotated[Path, typer.Option("--plugin", help="Folder of the plugin.", file_okay=False, exists=True)]


app.command()(data)
app.command("evaluate-nodules")(evaluate_nodules)


class OrientationName(StrEnum):
    """How cylinder and slices lie."""

    axial = "axial"
    oblique = "oblique"


class PhantomKind(StrEnum):
    """Which phantom."""

    qa = "qa"
    chest = "chest"


@app.command()
def phantom(
    out: Annotated[Path, typer.Option("--out", help="Gets dicom/*.dcm and truth.json; must not hold a study yet.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same phantom.")] = 1,
    orientation: Annotated[OrientationName, typer.Option()] = OrientationName.oblique,
    empty: Annotated[bool, typer.Option("--empty", help="Distractors only: nothing to be found.")] = False,
    kind: Annotated[PhantomKind, typer.Option(help="chest: a CT with lung nodules.")] = PhantomKind.qa,
    shifted: Annotated[bool, typer.Option("--shifted", help="chest: taken by the other scanner.")] = False,
    date: Annotated[str | None, typer.Option(help="Study date, YYYYMMDD; default: today.")] = None,
    uid_root: Annotated[str | None, typer.Option(help="UIDs are derived from it; default: a new one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a phantom study as DICOM, with the truth beside it."""
    if any((out / "dicom").glob("*.dcm")):
        raise UsageError(f"{out} holds a study already; give an empty folder")
    moment, root = _moment(date), uid_root or new_uid()
    if kind is PhantomKind.chest:
        from model_build.phantoms.chest import make_chest, write_chest

        if orientation is not OrientationName.oblique:
            raise UsageError("--orientation belongs to the qa phantom; a chest is always axial")
        study = write_chest(make_chest(seed, shifted=shifted, empty=empty), out, uid_root=root, acquired_at=moment)
    elif shifted:
        raise UsageError("--shifted belongs to --kind chest")
    else:
        made = make_phantom(seed, orientation=orientation.value, empty=empty)
        study = write_study(made, out, uid_root=root, acquired_at=moment)
    summary = {
        "folder": str(study.folder),
        "instances": len(study.instances),
        "truth": str(study.truth),
        "study_instance_uid": study.study_instance_uid,
        "series_instance_uid": study.series_instance_uid,
    }
    if as_json:
        _print_json(summary)
    else:
        _console().print(f"{len(study.instances)} instances in {study.folder / 'dicom'}, truth in {study.truth}")


@app.command()
def train(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option("--out", help="Gets weights, log and checkpoints; an interrupted run resumes.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Instead of the plan's.")] = None,
) -> None:
    """Train a network as the plan says. Needs the extra [train]."""
    import dataclasses

    from model_build import train as training

    plan = read_plan(plan_file)
    if threads is not None:
        plan = dataclasses.replace(plan, threads=threads)
    manifest = read_table(plan.plugin / "plugin.toml", Manifest)
    with ProgressBar(console=Console(stderr=True)) as bar:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("data", "training")}

        def report(progress: training.Progress) -> None:
            text = progress.stage if progress.loss is None else f"{progress.stage}, loss {progress.loss:.4f}"
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, description=text)
            if not bar.console.is_terminal and progress.loss is not None:
                bar.console.print(f"step {progress.done} of {progress.total}: loss {progress.loss:.4f}")

        weights = training.train(plan, manifest.preprocess.step, out, clock=SystemClock(), report=report)
    _console().print(f"weights in {weights}")


@app.command()
def export(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml", exists=True, dir_okay=False)],
    weights: Annotated[Path, typer.Option("--weights", help="weights.pt of a training.", exists=True)],
    out: Annotated[Path, typer.Option("--out", help="The ONNX file.")],
) -> None:
    """Write trained weights as one ONNX file and compare it with torch. Needs the extra [train]."""
    from model_build.export import export as export_model

    plan = read_plan(plan_file)
    manifest = read_table(plan.plugin / "plugin.toml", Manifest)
    exported = export_model(plan.architecture, weights, manifest, out)
    _console().print(f"{exported.path}: {exported.size_bytes} bytes, differs by {exported.max_difference:.1e}")


@app.command()
def evaluate(
    plugin: PluginOption,
    seeds: Annotated[str, typer.Option(help="FIRST:STOP, the stop excluded.")] = "1000:1020",
    orientation: Annotated[OrientationName, typer.Option()] = OrientationName.oblique,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a plugin finds in unseen phantoms with the truth; exit 1 unless every target holds."""
    from model_build.evaluation import evaluate as evaluate_plugin

    def report(seed: int, pairs: list[Pair]) -> None:
        Console(stderr=True).print(f"seed {seed}: {len(pairs)} rows", highlight=False)

    evaluation = evaluate_plugin(
        plugin, _seeds(seeds), clock=SystemClock(), orientation=orientation.value, threads=threads, report=report
    )
    values = evaluation.as_json()
    if out is not None:
        out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if as_json:
        _print_json(values)
    else:
        _console().print(_table_of(evaluation.pairs))
        for name, value in evaluation.figures().items():
            _console().print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
        for failure in evaluation.failures():
            _console().print(f"does not hold: {failure}", style="bold red")
    raise typer.Exit(code=0 if values["holds"] else 1)


@app.command()
def statistics(
    plugin: PluginOption,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Series: a folder of DICOM each, or a NIfTI file.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Also the QA phantoms of these seeds, FIRST:STOP.")] = None,
    max_distance: Annotated[float, typer.Option(min=0.1, help="Of the gate, in standard deviations.")] = 4.0,
    least_sd: Annotated[float, typer.Option(min=0.001, help="No spread is below this share of the median.")] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Compute [plausibility.statistics] of a plugin from images that it is meant for, and the ranges of measures."""
    from model_build.data import volume_of
    from model_build.statistics import appearance_of, as_toml, read_image, statistics_of

    manifest = read_table(plugin / "plugin.toml", Manifest)
    seen = [appearance_of(str(path), read_image(path), manifest) for path in paths or ()]
    for seed in _seeds(seeds) if seeds else ():
        seen.append(appearance_of(f"seed {seed}", volume_of(make_phantom(seed)), manifest))
    table = statistics_of(seen, max_distance=max_distance, least_sd=least_sd)
    names = list(seen[0].measures)
    if as_json:
        images = [{"name": each.name, "measures": each.measures} for each in seen]
        _print_json({"statistics": table.model_dump(mode="json"), "images": images})
        return
    _console().print(as_toml(table), markup=False)
    for name in names:
        values = sorted(each.measures[name] for each in seen)
        _console().print(f"{name}: {values[0]:.4g} to {values[-1]:.4g}", markup=False)


@app.command()
def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", exists=True, dir_okay=False)],
    plugin: PluginOption,
) -> None:
    """Put a model and its digest into a plugin's folder and renew the reference case."""
    from model_build.publish import publish as publish_model

    digest = publish_model(model, plugin, clock=SystemClock())
    _console().print(f"{plugin.name}: sha256 {digest}")


def _models(models: Path | None) -> Path:
    """Return data_dir/models of the node whose configuration is found, unless a folder was named."""
    if models is not None:
        return models
    path = find_config(None, os.environ, Path.cwd())
    return data_dir(load_config(path), path) / "models"


@app.command()
def compare(
    plugin: PluginOption,
    engine: Annotated[str, typer.Option("--engine", help="openvino, tensorrt or tensorrt_rtx.")],
    case: Annotated[
        list[Path] | None, typer.Option("--case", help="Folder or file of one series; default: reference/*.dcm.")
    ] = None,
    models: ModelsOption = None,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each engine, in turns; the fastest counts.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Compare an engine with the reference on golden cases and keep the verdict; exit 1 unless it may serve."""
    from model_build import engines

    opened = engines.open_model(plugin, _models(models))
    cases = engines.golden_cases(plugin, case or [])
    verdict = engines.compare(opened, engine, cases, clock=SystemClock(), threads=threads, rounds=rounds)
    engines.keep(opened, verdict)
    if as_json:
        _print_json(engines.as_json(verdict))
    else:
        _console().print(_comparison_of(verdict))
        for reason in verdict.reasons:
            _console().print(f"does not hold: {reason}", style="bold red")
    raise typer.Exit(code=0 if verdict.passed else 1)


@app.command()
def engine(
    plugin: PluginOption,
    name: Annotated[str | None, typer.Option("--engine", help="Make it ready: parse, build, keep.")] = None,
    use: Annotated[
        str | None, typer.Option("--use", help="Serve by this engine from the next job on, or by the `fastest`.")
    ] = None,
    models: ModelsOption = None,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make an engine of a plugin's model, or choose which one serves: `--use onnxruntime` is the way back."""
    from model_build import engines

    if (name is None) == (use is None):
        raise UsageError("give either --engine or --use")
    opened = engines.open_model(plugin, _models(models))
    if use is not None:
        verdicts = engines.use_engine(opened, use)
        said: dict[str, object] = {"plugin": opened.manifest.plugin.id, "use": verdicts.use or "fastest"}
    else:
        assert name is not None
        clock = SystemClock()
        started = clock.monotonic()
        made = engines.make_engine(opened, name, threads=threads)
        said = {
            "plugin": opened.manifest.plugin.id,
            "engine": name,
            "fingerprint": made.fingerprint,
            "seconds": clock.monotonic() - started,
            "inputs": [str(spec) for spec in made.signature.inputs],
            "outputs": [str(spec) for spec in made.signature.outputs],
        }
    if as_json:
        _print_json(said)
    else:
        for key, value in said.items():
            _console().print(f"{key}: {value}")


def _comparison_of(verdict: Verdict) -> Table:
    """Return one row for the engine and one for the reference."""
    table = Table()
    for heading in ("engine", "s for all cases", "speed", "relative error", "other labels", "findings", "verdict"):
        table.add_column(heading, justify="right")
    table.add_row("reference", f"{verdict.reference_seconds:.3f}", "1.00", "", "", "", "")
    table.add_row(
        verdict.fingerprint,
        f"{verdict.seconds:.3f}",
        f"{verdict.reference_seconds / verdict.seconds:.2f}",
        f"{verdict.relative_error:.1e}",
        f"{verdict.label_disagreement:.1e}",
        "same" if verdict.same_findings else "differ",
        "may serve" if verdict.passed else "may not serve",
    )
    return table


def main() -> None:
    """Run the command line; our errors become a sentence and an exit status."""
    try:
        app()
    except DicomNodeError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from error
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "onnxscript", "matplotlib"):
            raise
        sys.stderr.write(f"this command needs {error.name}: install dicom-node with the extra [train]\n")
        raise SystemExit(1) from error


def _seeds(text: str) -> range:
    """Return the seeds of "FIRST:STOP" or of one number."""
    first, _, stop = text.partition(":")
    try:
        seeds = range(int(first), int(stop) if stop else int(first) + 1)
    except ValueError as error:
        raise UsageError(f"seeds are written FIRST:STOP, not {text!r}") from error
    if not seeds or seeds.start < 0:
        raise UsageError(f"{text!r} names no seed; they are written FIRST:STOP, the stop excluded")
    return seeds


def _moment(date: str | None) -> datetime:
    """Return the noon of a DICOM date, or now."""
    if date is None:
        return SystemClock().now()
    try:
        return datetime.strptime(date, "%Y%m%d").replace(hour=12, tzinfo=UTC)
    except ValueError as error:
        raise UsageError(f"a date is written YYYYMMDD, not {date!r}") from error


def _table_of(pairs: tuple[Pair, ...]) -> Table:
    """Return one row for each object or false finding."""
    table = Table()
    for heading in ("seed", "object", "kind", "least diameter mm", "HU", "true ml", "found ml", "error %", "centre mm"):
        table.add_column(heading, justify="right")
    for pair in pairs:
        error = None if pair.volume_error is None else 100 * pair.volume_error
        table.add_row(
            str(pair.seed),
            "false" if pair.object_number is None else str(pair.object_number),
            pair.kind or "",
            _number(pair.smallest_diameter_mm, 1),
            _number(pair.hu, 0),
            _number(pair.true_ml, 3),
            "missed" if pair.found_ml is None else _number(pair.found_ml, 3),
            _number(error, 1),
            _number(pair.centre_error_mm, 2),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    """Return a number for a table, nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def _console() -> Console:
    """Return a console as wide as the terminal, or wide enough where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
