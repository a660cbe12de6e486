"""The large database of benchmarks/index.py: its bulk rows are those that indexing would have written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.index import Studio, fill
from dicom_node.records.schema import instance, series
from tests.integration.records_case import Records


def test_bulk_rows_are_those_of_indexing(tmp_path: Path) -> None:
    """So a figure for a database that holds a million of them tells of a node that received a million."""
    filled, indexed = Records(tmp_path / "filled.sqlite"), Records(tmp_path / "indexed.sqlite")
    fill(filled.database, Studio(1), 1000)
    studio = Studio(1)
    for _ in range(2):
        indexed.studies.index(studio.study())
    assert 1000 == indexed.database.counters()["instance"]
    assert _rows(indexed) == _rows(filled)


def _rows(records: Records) -> list[list[dict[str, Any]]]:
    """Return the rows of series and instances, but for the revisions: those of the one are decided."""
    revisions = {"revision", "decided_revision"}
    with records.database.read() as connection:
        return [
            [
                {name: value for name, value in row._mapping.items() if name not in revisions}
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in (series, instance)
        ]
