"""Workers killed with SIGKILL at random moments: each job has exactly one set of results, and each result arrives.

Real processes over the real queue, leases, result store and deliveries; only what looks at pixels is replaced, by bytes
that are named after the job, and a short sleep. The watch runs in the test, as it does in the workers of a node.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import cast

import pytest

from dicom_node.clock import SystemClock
from dicom_node.config.schema import WorkerSettings
from dicom_node.errors import LeaseLostError
from dicom_node.filing import ResultStore
from dicom_node.ids import Installation
from dicom_node.infer import PluginRegistry, Slots
from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.logs import Log
from dicom_node.pipeline import Work
from dicom_node.records import ClaimedJob, Deliveries, Jobs, NewResult, open_database
from dicom_node.records.job_values import AttemptRow
from dicom_node.upkeep import Watch, owner_is_alive, owner_name
from tests.integration.records_case import Records, image, new_job

N_WORKERS = 4
LEASE_S = 5.0
LONGEST_INFERENCE_S = 0.05
KINDS = ("seg", "sr")


class LightWork(Work):
    """A worker whose plugin takes a moment and finds bytes that are made of the job's number."""

    def _do(self, job: ClaimedJob, _is_ours: object) -> str:
        filed = []
        for kind in KINDS:
            time.sleep(random.uniform(0, LONGEST_INFERENCE_S))  # a kill comes before, between and after the files
            uid = job.result_uids[f"{kind}.instance"]
            path, digest = self._results.file(f"{kind} of job {job.id}".encode(), uid)
            filed.append(
                NewResult(
                    kind=kind,
                    sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4",
                    sop_instance_uid=uid,
                    series_instance_uid=f"{uid}.1",
                    path=path,
                    digest=digest,
                )
            )
        return self._jobs.file_results(job.id, job.token, filed, outcome="result", engine="light", duration_s=0.0)


def serve(folder: Path) -> None:
    """Work and send until killed: what a worker and a sender do, in one process."""
    clock = SystemClock()
    database = open_database(folder / "records.sqlite", clock=clock)
    deliveries = Deliveries(database)
    work = LightWork(
        Jobs(database),
        worker=owner_name(),
        settings=WorkerSettings(lease_s=LEASE_S, max_attempts=1000),
        registry=cast(PluginRegistry, None),
        slots=cast(Slots, None),
        results=ResultStore(folder / "results"),
        installation=Installation(uid="2.25.1", serial_number="1"),
        stopping=threading.Event(),
        clock=clock,
        log=Log("worker"),
    )
    while True:
        if not (_deliver(deliveries, folder / "pacs") | work.step()):
            time.sleep(0.02)


def _deliver(deliveries: Deliveries, pacs: Path) -> bool:
    """Send one result: the stand-in PACS keeps every object that it was ever sent."""
    claimed = deliveries.claim(None, owner_name(), LEASE_S)
    if claimed is None:
        return False
    with pacs.open("a", encoding="ascii") as arrived:
        digest = hashlib.sha256(claimed.path.read_bytes()).hexdigest()
        arrived.write(f"{claimed.sop_instance_uid} {digest}\n")
    with suppress(LeaseLostError):  # a sender that was slow: its heir writes the answer
        deliveries.stored(claimed.id, claimed.token, 0x0000)
    return True


class Crew:
    """Four workers; whoever is killed is replaced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "dicom_node.pipeline"])
        self.workers = [self._start() for _ in range(N_WORKERS)]

    def kill(self, number: int) -> None:
        """Kill one, and start another in its place."""
        process = self.workers[number]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        self.workers[number] = self._start()

    def stop(self) -> None:
        """End all of them."""
        for process in self.workers:
            process.kill()
            process.join()

    def _start(self) -> ForkServerProcess:
        process = self._context.Process(target=serve, args=(self._folder,), daemon=True)
        process.start()
        return process


@pytest.mark.parametrize(
    ("n_jobs", "n_kills"), [(30, 6), pytest.param(200, 50, marks=[pytest.mark.long])], ids=["6", "50"]
)
def test_killed_workers_lose_and_double_nothing(tmp_path: Path, n_jobs: int, n_kills: int) -> None:
    """Every job is done, with one SEG and one SR that both arrived; a job that was set aside is released by hand."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1)])
    for number in range(n_jobs):
        records.jobs.enqueue(new_job(records, plugin=f"p{number}", max_attempts=1000))
    jobs = Jobs(open_database(tmp_path / "records.sqlite", clock=SystemClock()))
    deliveries = Deliveries(open_database(tmp_path / "records.sqlite", clock=SystemClock()))
    watch = Watch(jobs, deliveries, log=Log("watch"))
    draw = random.Random(20261120)
    crew = Crew(tmp_path)
    kills = interrupted = 0
    try:
        deadline = time.monotonic() + 240
        while (counts := jobs.counts())[JobState.DONE] < n_jobs:
            assert time.monotonic() < deadline, counts
            if kills < n_kills and counts[JobState.DONE] * n_kills >= kills * n_jobs * 0.6:
                time.sleep(draw.uniform(0, 0.05))
                crew.kill(draw.randrange(N_WORKERS))
                kills += 1
                interrupted += sum(not owner_is_alive(one.worker) for one in _running(jobs))
            watch.step()
            for held in jobs.list(state=JobState.HELD):
                jobs.release(held.id, actor="test")
            time.sleep(0.01)
    finally:
        crew.stop()
    assert n_kills == kills
    assert interrupted > 0
    _assert_one_set_each(jobs, tmp_path, n_jobs)


def _running(jobs: Jobs) -> list[AttemptRow]:
    """Return the attempt under way of each running job."""
    return [jobs.show(row.id).attempts[-1] for row in jobs.list(state=JobState.RUNNING)]


def _assert_one_set_each(jobs: Jobs, folder: Path, n_jobs: int) -> None:
    """One SEG and one SR a job, whose bytes are those of the job; the PACS has them all, each with one content."""
    expected: dict[str, str] = {}
    for row in jobs.list():
        shown = jobs.show(row.id)
        assert sorted(KINDS) == sorted(one.kind for one in shown.results)
        assert {DeliveryState.STORED} == {one.state for one in shown.deliveries}
        assert Counter({"enqueue": 1, "file_results": 1, "finish": 1}) == Counter(
            {
                k: n
                for k, n in Counter(one.event for one in shown.events).items()
                if k in ("enqueue", "file_results", "finish")
            }
        )
        for one in shown.results:
            assert f"{one.kind} of job {row.id}".encode() == one.path.read_bytes()
            assert one.digest == hashlib.sha256(one.path.read_bytes()).hexdigest()
            expected[one.sop_instance_uid] = one.digest
    assert 2 * n_jobs == len(expected)
    arrived = {tuple(line.split()) for line in (folder / "pacs").read_text(encoding="ascii").splitlines()}
    assert set(expected.items()) == arrived
