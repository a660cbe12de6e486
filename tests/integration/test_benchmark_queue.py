"""The benchmark of the queue, made small: rows as the program writes them, commands that are replaced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from benchmarks import job_queue as queue
from benchmarks.index import fill
from benchmarks.measure import Report
from dicom_node.clock import SystemClock
from dicom_node.records import Jobs, NewJob, Studies, open_database
from dicom_node.records.schema import job
from dicom_node.study import JobInput
from tests.peers import eventually

ROOT = Path(__file__).resolve().parents[2]


def test_claims_are_measured_with_and_without_a_pause(tmp_path: Path) -> None:
    """Two targets with a value each, on a queue that is as long as was asked for."""
    report = Report(benchmark="queue")
    queue.measure_claims(report, tmp_path, queued=400, claims=20)
    assert ["all may run", "nine of ten are paused"] == [one.name.split(", ")[1] for one in report.targets]
    assert all(one.value is not None and 0 < one.value < 1000 for one in report.targets)
    assert "Claiming one of 400 queued jobs" in report.text()


def test_rows_that_are_written_in_bulk_are_those_of_the_program(tmp_path: Path) -> None:
    """The same columns are set as by `enqueue`, so that the claim finds what it would find."""
    database = open_database(tmp_path / "records.sqlite", clock=SystemClock())
    database.migrate()
    Studies(database).index(queue._STUDY)
    queue.enqueue_many(database, 1)
    described = queue._STUDY[0][1]
    images = Studies(database).series_images(described.study_instance_uid, described.series_instance_uid)
    pinned = JobInput(study_instance_uid=described.study_instance_uid, roles={"ct": images})
    new = NewJob(
        route="p0",
        plugin="p0",
        plugin_version="1.0.0",
        input=pinned,
        input_digest="other",
        series_instance_uid=None,  # or it would supersede the other one
    )
    Jobs(database).enqueue(new)
    with database.read() as connection:
        bulk, own = connection.execute(select(job).order_by(job.c.id))
    same = ("lane", "rank", "state", "priority", "input", "attempts", "worker_deaths", "token", "max_attempts")
    assert [getattr(own, name) for name in same] == [getattr(bulk, name) for name in same]
    filled = lambda row: {name for name, value in row._mapping.items() if value is not None}  # noqa: E731
    assert filled(own) | {"series_instance_uid"} == filled(bulk)


def test_backup_and_retention_work_on_the_records_that_are_measured(tmp_path: Path) -> None:
    """Both programs run until they are ended, and count what they did: a checked copy, and studies that are purged."""
    config, copy, purged = tmp_path / "config.toml", tmp_path / "copy.sqlite", tmp_path / "purged"
    config.write_text("")
    database = open_database(tmp_path / "var" / "records.sqlite", clock=SystemClock())
    (tmp_path / "var").mkdir()
    database.migrate()
    fill(database, queue.Studio(2), 1000)
    with (
        queue.running([sys.executable, "-c", queue.BACKUP, str(config), str(copy)]),
        queue.running([sys.executable, "-c", queue.RETENTION, str(config), str(purged)]),
    ):
        assert eventually(lambda: copy.with_suffix(".count").exists() and purged.exists(), timeout_s=30)
    assert "purged" in {one.state for one in Studies(database).list()}


@pytest.mark.parametrize("name", ["queue", "index"])
def test_driver_of_that_name_hides_nothing(name: str) -> None:
    """Every driver finds the standard library's `queue`, however it is called."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (0, "") == (done.returncode, done.stderr)
    assert "--quick" in done.stdout
