"""`model-build data`: what a folder of labelled images holds, its parts, and a preview of its augmentation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dicom_node.errors import UsageError

__all__ = ["data"]


def data(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False)],
    classes: Annotated[Path | None, typer.Option(help="CSV: label, and path, a UID or patient_id.")] = None,
    folder_classes: Annotated[bool, typer.Option("--folder-classes", help="First folders are classes.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Gets card.json, card.md and split.json.")] = None,
    preview: Annotated[Path | None, typer.Option(help="PNG: the first labelled case, augmented.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON.")] = False,
) -> None:
    """Read every case, count what there is, split it by patient; exit 1 when a label could not be used."""
    from model_build.data import as_markdown, data_card, find_cases, split, survey

    cases, problems = find_cases(folder, classes=classes, folder_classes=folder_classes)
    if not cases:
        raise UsageError(f"{folder} holds no image series" + (f": {problems[0].reason}" if problems else ""))
    log = Console(stderr=True, highlight=False)
    surveys, unread = survey(cases, report=lambda case: log.print(f"reading {case}"))
    labelled = [each.item for each in surveys if each.case.label is not None]
    parts = split(labelled, seed=seed) if labelled else None
    card = data_card(surveys, [*problems, *unread], parts)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (out / "card.md").write_text(as_markdown(card) + "\n", encoding="utf-8")
        if parts is not None:
            values = {"seed": parts.seed, "parts": {part: list(ids) for part, ids in parts.parts.items()}}
            (out / "split.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if preview is not None:
        from model_build.data.preview import PREVIEW, middle_slices, write_preview

        readable = [each.case for each in surveys if each.case.label is not None]
        if not readable:
            raise UsageError("--preview needs a case with a label")
        write_preview(preview, *middle_slices(readable[0]), PREVIEW, seed=seed)
    sys.stdout.write((json.dumps(card, indent=2) if as_json else as_markdown(card)) + "\n")
    raise typer.Exit(code=1 if problems or unread else 0)
