"""How commands speak: tables for people, JSON with stable keys for scripts, errors on standard error.

The only place beside the web pages that formats for people. JSON carries times as ISO 8601 with zone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dicom_node.errors import DicomNodeError

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file; default: $DICOM_NODE_CONFIG, ./config.toml, ...")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]


def console() -> Console:
    """Return a console that is as wide as the terminal, or wide enough for whole UIDs where there is none."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def show(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], *, as_json: bool = False, title: str = "") -> None:
    """Print rows as a table of the named columns, or all of their keys as JSON."""
    if as_json:
        show_json(list(rows))
        return
    names = list(columns)
    table = Table(title=title or None, title_justify="left")
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(row.get(name))) for name in names))
    console().print(table)


def show_json(value: object) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Print a line for people; square brackets are shown as they are."""
    console().print(text, markup=False, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error that long work is under way; yield what prints a line meanwhile.

    A moving bar with the time on a terminal, one plain line elsewhere. Standard output stays for the answer.
    """
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        sys.stderr.write(f"{what} ...\n")
        yield say
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        progress.add_task(what, total=None)  # nobody knows how long a network takes
        yield say


def leave(error: DicomNodeError) -> NoReturn:
    """End the command with the error's sentence and exit status."""
    sys.stderr.write(f"{error}\n")
    raise SystemExit(error.exit_code)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return str(value)
