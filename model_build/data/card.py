"""The data card: what a folder of cases holds, counted, without anybody's name. JSON, and Markdown for people.

Counts, balance, scanners, spacings, duplicates, problems, and the parts. Patients are numbers here, never identifiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dicom_node.errors import RefusedInputError
from model_build.data.cases import Case, ClassLabel, Problem
from model_build.data.split import Item, Split, leaks, slice_digests

__all__ = ["Survey", "as_markdown", "data_card", "survey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One case, looked at: what must be known to split and to count."""

    case: Case
    item: Item
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    labels: Mapping[str, float]
    """Label -> volume in ml; a class -> 0."""


def survey(
    cases: Sequence[Case], *, report: Callable[[str], None] = lambda _case: None
) -> tuple[list[Survey], list[Problem]]:
    """Return every case that can be read with its label, and why the others cannot."""
    surveys, problems = [], []
    for case in cases:
        report(case.id)
        try:
            volume = case.load()
            masks = case.masks(volume)
        except RefusedInputError as error:
            problems.append(Problem(what=case.id, reason=error.reason))
            continue
        if case.label is None:
            problems.append(Problem(what=case.id, reason="has no label; it is counted and belongs to no part"))
        is_class = isinstance(case.label, ClassLabel)
        labels = {name: float(mask.sum()) * volume.grid.voxel_volume_mm3 / 1000 for name, mask in masks.items()}
        surveys.append(
            Survey(
                case=case,
                item=Item(
                    id=case.id,
                    patient=case.patient,
                    study=case.study,
                    content=slice_digests(volume.array),
                    group=case.label.name if isinstance(case.label, ClassLabel) else "",
                ),
                shape=volume.grid.shape,
                spacing_mm=volume.grid.spacing_mm,
                labels={case.label.name: 0.0} if is_class and isinstance(case.label, ClassLabel) else labels,
            )
        )
    return surveys, problems


def data_card(surveys: Sequence[Survey], problems: Sequence[Problem], parts: Split | None) -> dict[str, object]:
    """Return the card as plain JSON values: lengths in mm, volumes in ml."""
    items = [each.item for each in surveys]
    card: dict[str, object] = {
        "cases": len(surveys),
        "patients": len({item.patient for item in items}),
        "patients_unknown": sum(not each.case.patient_known for each in surveys),
        "studies": len({item.study for item in items}),
        "modalities": dict(Counter(each.case.facts.modality or "unknown" for each in surveys)),
        "scanners": dict(Counter(each.case.facts.scanner for each in surveys)),
        "kernels": dict(Counter(each.case.facts.kernel or "unknown" for each in surveys)),
        "labels": _labels(surveys),
        "spacing_mm": _spread([each.spacing_mm for each in surveys]),
        "shape": _spread([each.shape for each in surveys]),
        "duplicates": _duplicates(items),
        "problems": [{"what": each.what, "reason": each.reason} for each in problems],
    }
    if parts is not None:
        of_part = {part: [each for each in surveys if each.item.id in cases] for part, cases in parts.parts.items()}
        card["split"] = {
            "seed": parts.seed,
            "parts": {
                part: {
                    "cases": len(members),
                    "patients": len({each.item.patient for each in members}),
                    "labels": _labels(members),
                    "scanners": dict(Counter(each.case.facts.scanner for each in members)),
                }
                for part, members in of_part.items()
            },
            "leaks": leaks([each.item for each in surveys if each.case.label is not None], parts.parts),
        }
    return card


def as_markdown(card: Mapping[str, object]) -> str:
    """Return the card as a Markdown document."""
    lines = ["# Data card", ""]
    for name, value in card.items():
        lines += [f"## {name.replace('_', ' ')}", "", *_lines(value), ""]
    return "\n".join(lines)


def _lines(value: object, indent: str = "") -> list[str]:
    if isinstance(value, Mapping):
        found = []
        for key, inner in value.items():
            if isinstance(inner, Mapping | list) and inner:
                found += [f"{indent}- {key}:", *_lines(inner, indent + "  ")]
            else:
                found.append(f"{indent}- {key}: {_word(inner)}")
        return found or [f"{indent}none"]
    if isinstance(value, list):
        return [f"{indent}- {_word(each)}" for each in value] or [f"{indent}none"]
    return [f"{indent}{_word(value)}"]


def _word(value: object) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_word(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(_word(each) for each in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _labels(surveys: Sequence[Survey]) -> dict[str, dict[str, float | int]]:
    """Return for each label in how many cases it is, and its median volume."""
    volumes: dict[str, list[float]] = {}
    for each in surveys:
        for name, volume in each.labels.items():
            volumes.setdefault(name, []).append(volume)
    return {
        name: {"cases": len(values), "median_ml": float(np.median(values))} for name, values in sorted(volumes.items())
    }


def _spread(values: Sequence[tuple[float, ...]]) -> dict[str, list[float]]:
    """Return the smallest, median and largest of each axis (z, y, x)."""
    if not values:
        return {}
    table = np.array(values, dtype=np.float64)
    return {
        name: [round(float(value), 4) for value in function(table, axis=0)]
        for name, function in (("min", np.min), ("median", np.median), ("max", np.max))
    }


def _duplicates(items: Sequence[Item]) -> list[list[str]]:
    """Return pairs of cases that share slices: [first, second, number of slices]."""
    first: dict[str, list[str]] = {}
    for item in items:
        for digest in item.content:
            first.setdefault(digest, []).append(item.id)
    pairs = Counter(pair for cases in first.values() for pair in combinations(sorted(cases), 2))
    return [[one, other, str(n)] for (one, other), n in sorted(pairs.items())]
