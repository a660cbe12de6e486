"""What a claim costs while 100,000 jobs wait, what a whole job costs beside huey, and C-STORE beside backup and purge.

    python benchmarks/queue.py [--quick] [--jobs N] [--claims N] [--only PART ...] [--scratch FOLDER]

A claim, an enqueued job and a completed one are each one durable transaction. The claim is measured with every job in
reach, and with nine of ten behind a pause. huey, the peer, keeps its queue in SQLite with fsync, too; it is installed
from PyPI into a virtual environment of its own, below the scratch folder. It removes a task when a worker takes it: one
that is killed then has lost its task, so the two do not promise the same.

The last part is that of response.py (eight senders at 1 Gbit/s in sum, inference) while the node's own backup copies
and checks a database of many rows over and over, its own retention purges the studies in it one after the other, and
old files are deleted as fast as new ones come.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final

from sqlalchemy import insert

from benchmarks import response
from benchmarks.corpus import KINDS, make_template
from benchmarks.index import Studio, fill
from benchmarks.measure import Report, Target, percentile
from benchmarks.node import RunningNode
from benchmarks.processes import disk_class
from dicom_node.clock import SystemClock
from dicom_node.records import Database, Jobs, NewJob, Pauses, Studies, open_database
from dicom_node.records.schema import job
from dicom_node.study import JobInput

SCRATCH: Final = Path(__file__).resolve().parents[1] / "var"
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
QUEUED = 100_000
CLAIMS, QUICK_CLAIMS = 2_000, 500
WHOLE_JOBS, QUICK_WHOLE_JOBS = 500, 150
ROWS, QUICK_ROWS = 300_000, 60_000
"""Instances in the database that is copied."""
CLAIM_P99_MS: Final = 5.0
LANES: Final = 10
NO_LIMIT: Final = 1_000_000_000
"""Slots that are never all taken: a claim counts them all the same."""
_AT_ONCE: Final = 5_000
HUEY: Final = "huey==2.5.2"
PARTS: Final = ("claim", "whole", "store")

PEER = """
import json, sys, time
from huey import SqliteHuey
huey = SqliteHuey(filename=sys.argv[1], fsync=True, results=False)

@huey.task()
def work(payload):
    return None

times = []
for number in range(int(sys.argv[2])):
    started = time.perf_counter()
    work({"study": f"1.2.3.{number}", "images": ["1.2.3.4"] * 10})
    huey.execute(huey.dequeue())
    times.append(time.perf_counter() - started)
print(json.dumps(times))
"""

BACKUP = """
import sys, time
from pathlib import Path
from dicom_node.app import open_node
from dicom_node.backup import backup
from dicom_node.processes import give_way
give_way()  # as the loops of the worker do
node, copy = open_node(Path(sys.argv[1])), Path(sys.argv[2])
while True:
    copy.unlink(missing_ok=True)
    backup(node.database, copy, clock=node.clock)
    with copy.with_suffix(".count").open("a") as count:
        count.write("x")
    time.sleep(0.5)
"""
"""Copies and checks the records over and over, and counts the copies."""

RETENTION = """
import sys, time
from pathlib import Path
from contextlib import suppress
from dicom_node.app import open_node
from dicom_node.errors import IllegalTransitionError
from dicom_node.processes import give_way
give_way()
node = open_node(Path(sys.argv[1]))
old = [one.study_instance_uid for one in node.studies.list() if one.state == "complete"]
for uid in reversed(old):
    with suppress(IllegalTransitionError):  # the node's own loop was faster
        node.retention.purge(uid)
    with Path(sys.argv[2]).open("a") as count:
        count.write("x")
    time.sleep(0.02)
"""
"""Purges the oldest studies one after the other, and counts them."""


def enqueue_many(database: Database, count: int) -> None:
    """Write queued jobs of several routes by bulk inserts, as they stand after a day on which nothing ran."""
    ((study_uid, series_uid),) = {(one.study_instance_uid, one.series_instance_uid) for _, one in _STUDY}
    images = [[one.sop_instance_uid, filed.digest, str(filed.path)] for filed, one in _STUDY]
    same = {
        **{"study_instance_uid": study_uid, "series_instance_uid": series_uid, "plugin_version": "1.0.0"},
        **{"parameters": {}, "parameters_digest": "0" * 64, "config_digest": "0" * 64, "generation": 0},
        **{"input": {"study_instance_uid": study_uid, "roles": {"ct": images}}, "uid_root": "2.25.1"},
        **{"result_uids": {}, "destinations": {}, "state": "queued", "attempts": 0, "max_attempts": 3},
        **{"worker_deaths": 0, "token": 0, "priority": "routine", "rank": 2},
    }
    for first in range(0, count, _AT_ONCE):
        rows = []
        for number in range(first, min(count, first + _AT_ONCE)):
            at = START + timedelta(seconds=number % 86_400)
            name = f"p{number % LANES}"
            own = {"route": name, "plugin": name, "lane": f"onnxruntime/{name}/{name}"}
            own |= {"input_digest": hashlib.sha256(str(number).encode()).hexdigest()}
            rows.append(same | own | {"received_at": at, "queued_at": at, "due_at": at + timedelta(hours=1)})
        with database.begin() as connection:
            connection.execute(insert(job), rows)


_STUDY: Final = Studio(1).study(100, 1)


def claim_ms(jobs: Jobs, count: int) -> list[float]:
    """Return the milliseconds of each of so many claims."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        claimed = jobs.claim("benchmark", 60.0, engine_slots={"onnxruntime": NO_LIMIT})
        times.append((time.perf_counter() - started) * 1e3)
        if claimed is None:
            raise RuntimeError("the queue is empty")
    return times


def measure_claims(report: Report, folder: Path, queued: int, claims: int) -> None:
    """Add the latency of a claim in a long queue, and where most of the queue is paused."""
    database = _database(folder / "claims.sqlite")
    Studies(database).index(_STUDY)
    enqueue_many(database, queued)
    jobs, pauses = Jobs(database), Pauses(database)
    claim_ms(jobs, 20)  # warms up
    found = {"all may run": claim_ms(jobs, claims)}
    for number in range(LANES - 1):
        pauses.pause("plugin", f"p{number}", actor="benchmark", reason="measured")
    found["nine of ten are paused"] = claim_ms(jobs, min(claims, queued // LANES // 2))
    database.close()
    rows = [(name, *(percentile(times, part) for part in (50, 99, 100))) for name, times in found.items()]
    report.add_table(f"Claiming one of {queued} queued jobs", ("queue", "p50 ms", "p99 ms", "max ms"), rows)
    for name, p50, p99, _ in rows:
        report.figures |= {f"claim_p50_ms/{name}": p50, f"claim_p99_ms/{name}": p99}
        report.targets.append(Target(name=f"claim p99, {name}, ms", value=p99, at_most=CLAIM_P99_MS))


def whole_job_ms(folder: Path, count: int) -> list[float]:
    """Return the milliseconds of enqueueing, claiming and completing each of so many jobs."""
    database = _database(folder / "whole.sqlite")
    Studies(database).index(_STUDY[:10])
    jobs = Jobs(database)
    uid = _STUDY[0][1].study_instance_uid
    images = Studies(database).series_images(uid, _STUDY[0][1].series_instance_uid)
    times = []
    for number in range(count):
        new = NewJob(
            route="r",
            plugin="p",
            plugin_version="1.0.0",
            input=JobInput(study_instance_uid=uid, roles={"ct": images}),
            input_digest=hashlib.sha256(str(number).encode()).hexdigest(),
        )
        started = time.perf_counter()
        jobs.enqueue(new)
        claimed = jobs.claim("benchmark", 60.0)
        if claimed is None:
            raise RuntimeError("the queue is empty")
        jobs.file_results(claimed.id, claimed.token, [], outcome="nothing_found", engine="none", duration_s=0.0)
        times.append((time.perf_counter() - started) * 1e3)
    database.close()
    return times


def huey_ms(folder: Path, count: int) -> list[float] | None:
    """Return the same of huey, each step its own durable transaction; None when it cannot be installed."""
    home = folder / "huey"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", HUEY]
    if subprocess.run(install, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        return None
    command = [str(python), "-c", PEER, str(folder / "huey.db"), str(count)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [seconds * 1e3 for seconds in json.loads(done.stdout.splitlines()[-1])]


def measure_whole_jobs(report: Report, folder: Path, count: int) -> None:
    """Add what a job costs from its row to its end, ours and huey's."""
    found = {"ours": whole_job_ms(folder, count), "huey, SQLite, fsync": huey_ms(folder, count)}
    rows = []
    for name, times in found.items():
        rate = None if times is None else 1e3 * len(times) / sum(times)
        rows.append((name, *("-" if times is None else median(times),), "-" if rate is None else rate))
        report.figures[f"jobs_per_s/{name}"] = rate
    report.add_table("Enqueue, claim and complete", ("queue", "median ms", "jobs a second"), rows)


@contextmanager
def running(command: Sequence[str]) -> Iterator[None]:
    """Run a program beside what is measured."""
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def measure_store(report: Report, folder: Path, options: argparse.Namespace) -> None:
    """Add the response time of C-STORE while the database is copied and old files are deleted."""
    records = _database(folder / "records.sqlite")
    fill(records, Studio(2), options.rows)
    records.close()
    template = make_template(KINDS["ct"])
    size_bytes = len(template.content) - template.data_set_offset
    per_s = options.gbit_per_s * 1e9 / 8 / size_bytes
    old, copy = folder / "old", folder / "copy.sqlite"
    count = int(per_s * (options.seconds + response.SPARE_S))
    response.make_old_files(old, count=count, size_bytes=size_bytes)
    with (
        RunningNode(folder / "node", role="all", more=response.ROUTE, records=folder / "records.sqlite") as node,
        ExitStack() as beside,
    ):
        phantoms = response.Phantoms(node.port, response.make_phantom(folder / "phantom"))
        response.warm_up(node, phantoms)
        beside.enter_context(running([sys.executable, "-c", BACKUP, str(node.config_file), str(copy)]))
        beside.enter_context(running([sys.executable, "-c", RETENTION, str(node.config_file), str(folder / "purged")]))
        beside.enter_context(running([sys.executable, "-c", response.PURGE, str(old), str(per_s)]))
        answers = response.send_all(node.port, template, phantoms, options)
        beside.close()
        copies, studies = _size(copy.with_suffix(".count")), _size(folder / "purged")
        deleted = count - sum(1 for _ in old.iterdir())
    response.judge(report, answers, size_bytes=size_bytes, options=options)
    report.figures |= {"copies": copies, "studies_purged": studies, "files_deleted": deleted}
    # A load that was not there proves nothing.
    report.targets.append(Target(name="backups meanwhile", value=copies, at_least=1))
    report.targets.append(Target(name="studies purged meanwhile", value=studies, at_least=1))
    report.targets.append(Target(name="files deleted meanwhile", value=deleted, at_least=count / 2))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _database(path: Path) -> Database:
    database = open_database(path, clock=SystemClock())
    database.migrate()
    return database


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer claims and jobs, ten seconds of C-STORE")
    parser.add_argument("--jobs", type=int, default=QUEUED, help="queued while claims are measured")
    parser.add_argument("--claims", type=int)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--senders", type=int, default=8, help="associations that send at once")
    parser.add_argument("--gbit-per-s", type=float, default=1.0, help="of all senders together")
    parser.add_argument("--seconds", type=float, help="of C-STORE")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="a folder on the disk that is measured")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (response.QUICK_SECONDS if options.quick else response.SECONDS)
    options.rows = QUICK_ROWS if options.quick else ROWS
    options.scratch.mkdir(parents=True, exist_ok=True)
    report = Report(benchmark="queue")
    with TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        file_system, durable_write_ms = disk_class(folder)
        report.figures |= {"file_system": file_system, "durable_write_ms": durable_write_ms}
        if "claim" in options.only:
            measure_claims(report, folder, options.jobs, options.claims or (QUICK_CLAIMS if options.quick else CLAIMS))
        if "whole" in options.only:
            measure_whole_jobs(report, folder, QUICK_WHOLE_JOBS if options.quick else WHOLE_JOBS)
        if "store" in options.only:
            measure_store(report, folder, options)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
