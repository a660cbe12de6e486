"""`model-build evaluate-nodules`: what a plugin, or the baseline, finds in chest phantoms, with a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dicom_node.clock import SystemClock
from dicom_node.errors import UsageError

if TYPE_CHECKING:
    from model_build.evaluation.detection import StudyResult

__all__ = ["evaluate_nodules"]


def evaluate_nodules(
    plugin: Annotated[Path | None, typer.Option("--plugin", help="Folder of the plugin.", exists=True)] = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Threshold and sphericity instead of a plugin.")] = False,
    studies: Annotated[int | None, typer.Option(min=1, help="Of each kind; default: all frozen seeds.")] = None,
    part: Annotated[str, typer.Option(help="test or validation: thresholds are chosen on validation only.")] = "test",
    shifted: Annotated[bool, typer.Option("--shifted", help="Taken by the other scanner.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="0: as many as there are cores.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Gets evaluation.json and report.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")] = False,
) -> None:
    """Compare what is found in chest phantoms of the frozen seeds with the truth."""
    from model_build.evaluation.nodules import baseline_finder, plugin_finder
    from model_build.evaluation.nodules import evaluate_nodules as evaluate
    from model_build.evaluation.report import nodule_report
    from model_build.phantoms.frozen import CHEST_SEEDS

    if baseline == (plugin is not None):
        raise UsageError("give either --plugin FOLDER or --baseline")
    if part not in ("test", "validation"):
        raise UsageError(f"--part is test or validation, not {part!r}")
    find = baseline_finder if plugin is None else plugin_finder(plugin, clock=SystemClock(), threads=threads)
    log = Console(stderr=True, highlight=False)

    def report(study: StudyResult) -> None:
        found = sum(each.target is not None and each.detection is not None for each in study.matches)
        n_targets = sum(each.target is not None for each in study.matches)
        log.print(f"seed {study.study}: {found} of {n_targets} found, {study.n_false} false")

    empty = CHEST_SEEDS["test_empty"] if part == "test" else range(0)
    evaluation = evaluate(
        find, CHEST_SEEDS[part][:studies], empty[:studies], clock=SystemClock(), shifted=shifted, report=report
    )
    values: dict[str, Any] = evaluation.as_json()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        title = "Nodules found by " + ("the baseline" if plugin is None else plugin.name)
        (out / "evaluation.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (out / "report.html").write_text(nodule_report(values, title), encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    table = Table("figure", "value", "95 % interval", "n")
    rows = {"recall": values["recall"], "false positives a study": values["false_positives_per_study"]}
    rows |= {f"recall {name} mm": each for name, each in values["recall_by_size_mm"].items()}
    for name, figure in rows.items():
        numbers = ["" if figure[key] is None else f"{figure[key]:.3f}" for key in ("value", "low", "high")]
        table.add_row(name, numbers[0], " to ".join(numbers[1:]), str(figure["n"]))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
