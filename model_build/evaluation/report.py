"""The report of an evaluation: one HTML file with tables and plots, from the same values as the JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from model_build.evaluation.plots import plot

__all__ = ["nodule_report"]

_STYLE = "body{font:14px sans-serif;max-width:60em;margin:2em auto}td,th{padding:2px 10px;text-align:left}"


def nodule_report(values: Mapping[str, Any], title: str) -> str:
    """Return the HTML of what `NoduleEvaluation.as_json` says."""
    rows = [
        ("recall", values["recall"]),
        ("recall above 6 mm", values["recall_above_6_mm"]),
        *((f"recall {name} mm", each) for name, each in values["recall_by_size_mm"].items()),
        *((f"recall {name}", each) for name, each in values["recall_by_kind"].items()),
        ("false positives a study", values["false_positives_per_study"]),
        *((f"recall at {name} false positives a study", each) for name, each in values["froc"].items()),
    ]
    for size, errors in values["volume_error_by_size_mm"].items():
        rows += [(f"volume error {size} mm, {name.replace('_', ' ')}", each) for name, each in errors.items()]
    generator = values["generator"]
    scanner = "the shifted scanner" if generator["shifted"] else "the scanner of the training"
    said = (
        f"{values['studies']} phantom studies of {scanner}, {values['nodule_free']} without a nodule, "
        f"{values['withheld']} withheld; generator {generator['sha256'][:12]}. Intervals: 95 %, studies resampled. "
        "Phantoms are no patients: nothing here says how it does on real CT."
    )
    curve = values["froc_curve"]
    froc = plot(
        "FROC",
        "false positives a study",
        "recall",
        lines=[list(zip(curve["false_per_study"], curve["recall"], strict=True))],
        y_range=(0.0, 1.0),
    )
    agreement = values["volume_agreement"]
    bland_altman = plot(
        "Volumes (Bland-Altman)",
        "mean of true and found, ml",
        "(found - true) / true",
        dots=[((true + found) / 2, found / true - 1) for true, found in values["volumes_ml"]],
        levels=[agreement[name] for name in ("low", "bias", "high")] if agreement else (),
    )
    table = "\n".join(f"<tr><td>{escape(name)}</td>{_cells(each)}</tr>" for name, each in rows)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>\n"
        f"<h1>{escape(title)}</h1><p>{escape(said)}</p>\n{froc}\n{bland_altman}\n"
        f"<table><tr><th>figure</th><th>value</th><th>95 % interval</th><th>n</th></tr>\n{table}\n</table></html>\n"
    )


def _cells(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"<td>-</td><td></td><td>{figure['n']}</td>"
    interval = "" if figure["low"] is None else f"{figure['low']:.3f} to {figure['high']:.3f}"
    return f"<td>{figure['value']:.3f}</td><td>{interval}</td><td>{figure['n']}</td>"
