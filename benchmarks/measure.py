"""What the drivers of benchmarks/ have in common: order of runs, statistics, targets and the report.

A driver fills a `Report` and ends with `return report.finish()`: a table for people, then one line of JSON, and the
exit status 0 only when every target holds. Pure but for `Report.finish`, which writes, and `machine_class`, which reads
what the machine is made of.

Runs of different receivers are compared within one round only (`paired_ratios`): on a shared machine wall times carry
+-30 %, ratios within a round much less. The order turns with each round, A B C, C B A, so that whatever drifts during
a round favours nobody.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Report", "Spread", "Target", "interleaved", "machine_class", "paired_ratios", "percentile", "spread"]

Figure = float | int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and extremes of repeated measurements, in their unit."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Return the median with the extremes in brackets."""
        return f"{self.median:.3g} [{self.low:.3g}-{self.high:.3g}]"


def spread(values: Iterable[float]) -> Spread:
    """Return median and extremes.

    Raises
    ------
    ValueError
        When there is no value.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    return Spread(median=statistics.median(ordered), low=ordered[0], high=ordered[-1], count=len(ordered))


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that at least `percent` % of the values do not exceed (nearest rank, no interpolation).

    Raises
    ------
    ValueError
        When there is no value, or `percent` does not lie in (0, 100].
    """
    ordered = sorted(values)
    if not ordered or not 0 < percent <= 100:
        raise ValueError("a percentile needs values and a percentage above 0, at most 100")
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return peer time / our time for each round: above 1 we are faster.

    Raises
    ------
    ValueError
        When the two were not measured in the same number of rounds.
    """
    return [peer / own for own, peer in zip(ours, theirs, strict=True)]


def interleaved(names: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """Return (round, name) in the order of the runs: A B C, C B A, A B C ..."""
    turns = [list(names), list(reversed(names))]
    return [(number, name) for number in range(rounds) for name in turns[number % 2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure must reach: at least, or at most, a limit; one of the two is given."""

    name: str
    value: float | None
    """None: it could not be measured, and the target does not hold."""
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Refuse a target with no limit, or with two."""
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"target {self.name!r} needs either at_least or at_most")

    @property
    def holds(self) -> bool:
        """Whether the value keeps within the limit; no value and NaN never do."""
        if self.value is None or math.isnan(self.value):
            return False
        return self.value >= self.at_least if self.at_least is not None else self.value <= (self.at_most or 0.0)

    @property
    def limit(self) -> str:
        """The limit in words."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"

    def as_json(self) -> dict[str, Figure]:
        """Return the target as it stands in the report's line of JSON."""
        return {"value": _plain(self.value), "limit": self.limit, "holds": self.holds}


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as aligned columns: words left, figures right."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    figures = [all(re.match(r"[-\d<>]|$", row[column]) for row in cells[1:]) for column in range(len(headers))]

    def line(row: list[str]) -> str:
        parts = zip(row, widths, figures, strict=True)
        return "  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in parts).rstrip()

    return "\n".join([line(cells[0]), line(["-" * width for width in widths]), *map(line, cells[1:])])


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: Figure) -> Figure:
    """Return the figure as JSON can hold it: four significant digits, no NaN, no infinity."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


@dataclass(slots=True, kw_only=True)
class Report:
    """What a driver found: tables for people, figures and targets for programs."""

    benchmark: str
    figures: dict[str, Figure] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether there are targets and each of them holds."""
        return bool(self.targets) and all(target.holds for target in self.targets)

    def add_table(self, title: str, headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Add a table that people read."""
        self.tables.append(f"{title}\n{table(headers, rows)}")

    def json_line(self) -> str:
        """Return the report as one line of JSON."""
        document: Mapping[str, object] = {
            "benchmark": self.benchmark,
            "figures": {name: _plain(value) for name, value in self.figures.items()},
            "targets": {target.name: target.as_json() for target in self.targets},
            "holds": self.holds,
        }
        return json.dumps(document, allow_nan=False)

    def text(self) -> str:
        """Return what people read: the tables, and the targets below them."""
        verdicts = [(t.name, t.value if t.value is not None else "-", t.limit, _verdict(t)) for t in self.targets]
        parts = [*self.tables, "Targets\n" + table(("target", "value", "limit", "verdict"), verdicts)]
        return "\n\n".join(parts)

    def finish(self) -> int:
        """Write the report to standard output, the line of JSON last; return the exit status."""
        sys.stdout.write(f"{self.benchmark} on {machine_class()}\n\n{self.text()}\n\n{self.json_line()}\n")
        sys.stdout.flush()
        return 0 if self.holds else 1


def _verdict(target: Target) -> str:
    return "holds" if target.holds else "MISSED"


def machine_class() -> str:
    """Return what the machine is made of, without its name: cores, memory, processor, kernel."""
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return (
        f"{cores} cores ({models[0] if models else os.uname().machine}), {memory_gb:.0f} GB, Linux {os.uname().release}"
    )
