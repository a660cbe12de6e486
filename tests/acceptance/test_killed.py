"""The whole node killed with SIGKILL at random moments of a study's life: nothing is lost, nothing is doubled.

The sender behaves as a scanner does: what was not acknowledged it sends again. A study is killed once in each phase of
its life at most, at a moment drawn within the phase; seeds are fixed, so that the draw is the same each time.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from pynetdicom.dsutils import split_dataset

from benchmarks import upper_layer
from tests import peers
from tests.acceptance.site import Site
from tests.acceptance.variants import Variant

QUIET_S = 3.0
"""Longer than a sender takes to come back after the restart."""

PHASES: dict[str, tuple[Callable[[Site, Variant], bool], float]] = {
    "receive": (lambda _node, _study: True, 0.3),
    "decide": (lambda node, study: _count(node, study, "instance") >= len(study.files), QUIET_S),
    "infer": (lambda node, study: _has_job_in(node, study, "running"), 3.0),
    "report": (lambda node, study: _has_job_in(node, study, "running") and _has_unrecorded_result(node), 0.05),
    "deliver": (lambda node, study: _has_job_in(node, study, "delivering", "done"), 0.3),
}
"""Phase -> when it has begun, and the seconds within which the kill is drawn."""


def _count(node: Site, study: Variant, table: str) -> int:
    ((count,),) = node.rows(f"SELECT count(*) FROM {table} WHERE study_instance_uid = :uid", uid=study.uid)
    return count


def _has_job_in(node: Site, study: Variant, *states: str) -> bool:
    return any(job["state"] in states for job in node.jobs(study.uid))


def _has_unrecorded_result(node: Site) -> bool:
    """Return whether a result lies in the store whose row is not written yet."""
    files = sum(1 for _ in (node.folder / "var" / "results" / "results").rglob("*.dcm"))
    return files > node.rows("SELECT count(*) FROM result")[0][0]


class Scanner:
    """Sends a study over and over, each time what was not acknowledged, until all of it was."""

    def __init__(self, storescu: Callable[..., peers.SendReport], node: Site, study: Variant) -> None:
        self._storescu = storescu
        self._node = node
        self._left = list(study.files)
        self.acknowledged: set[Path] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send what is left, in the background."""
        if self._left:
            self._thread = threading.Thread(target=self._send)
            self._thread.start()

    def wait(self) -> None:
        """Wait until storescu has ended, whether it came through or not."""
        if self._thread is not None:
            self._thread.join()

    def _send(self) -> None:
        report = self._storescu(self._left, self._node.port, check=False)
        said = re.findall(r"Sending file: (\S+)|Received Store Response \((\w+)\)", report.output)
        for (file, _), (_, status) in pairwise(said):
            if file and status == "Success":
                self.acknowledged.add(Path(file))
        self._left = [file for file in self._left if file not in self.acknowledged]


def _kill_within(phase: str, node: Site, study: Variant, draw: random.Random) -> bool:
    """Kill the node within a phase; False, and no kill, when the phase went by unseen."""
    has_begun, within_s = PHASES[phase]
    began = peers.eventually(
        lambda: has_begun(node, study) or _has_job_in(node, study, "done"), timeout_s=120, every_s=0.005
    )
    assert began, f"{phase} never began:\n{node.log.read_text()[-3000:]}"
    if not has_begun(node, study):
        return False
    time.sleep(draw.uniform(0, within_s))  # the drawn moment is what is tested, nothing waits for it
    node.kill()
    return True


def _survive(
    node: Site, storescu: Callable[..., peers.SendReport], study: Variant, seed: int, phases: Sequence[str]
) -> int:
    """Send a study, kill the node once in each of the phases, and see it done; return the number of kills."""
    draw = random.Random(seed)
    scanner = Scanner(storescu, node, study)
    kills = 0
    scanner.start()
    for phase in phases:
        if _kill_within(phase, node, study, draw):
            kills += 1
            scanner.wait()
            node.start()
            scanner.start()
    scanner.wait()
    assert set(study.files) == scanner.acknowledged
    node.wait_until(lambda: _has_job_in(node, study, "done"), "the study is done", timeout_s=180)
    node.wait_until_at_rest()
    return kills


def _assert_nothing_lost(node: Site, study: Variant) -> None:
    """Every instance that was acknowledged has one row, and a file with the digest of the row."""
    rows = node.rows("SELECT sop_instance_uid, digest, path FROM instance WHERE study_instance_uid = :u", u=study.uid)
    assert sorted(study.sop_instance_uids) == sorted(uid for uid, _, _ in rows if uid in study.sop_instance_uids)
    for _uid, digest, path in rows:
        _meta, offset = split_dataset(Path(path))
        assert digest == hashlib.sha256(Path(path).read_bytes()[offset:]).hexdigest()


def _assert_nothing_doubled(node: Site, pacs: peers.Orthanc, study: Variant) -> None:
    """One job an input; the PACS holds each of its results once, and nothing else of ours."""
    inputs = [node.node.admin.job(job["id"])["input_digest"] for job in node.jobs(study.uid)]
    assert len(set(inputs)) == len(inputs)
    (last,) = [job for job in node.jobs(study.uid) if job["superseded_by"] is None]
    assert ("done", None) == (last["state"], last["reason"])
    assert len(study.files) == node.node.admin.job(last["id"])["n_images"]
    assert ["seg", "sr"] == sorted(one["kind"] for one in node.node.admin.job(last["id"])["results"])
    results = [one for job in node.jobs(study.uid) for one in node.node.admin.job(job["id"])["results"]]
    held = [
        one["MainDicomTags"]["SOPInstanceUID"]
        for modality in ("SEG", "SR")
        for one in (pacs.rest(f"/instances/{instance}") for instance in pacs.objects(study.uid, modality))
    ]
    assert sorted(one["sop_instance_uid"] for one in results) == sorted(held)
    for one in results:
        assert one["digest"] == hashlib.sha256(Path(one["path"]).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("kills", "phases"),
    [
        pytest.param(3, ("receive", "infer", "deliver"), id="3"),
        pytest.param(20, tuple(PHASES), id="20", marks=pytest.mark.long),
    ],
)
def test_kills_lose_and_double_nothing(orthanc, site, storescu, small_study, kills, phases):
    """Study after study, each killed in every phase of its life, until so many kills are survived."""
    pacs = orthanc()
    node = site(pacs=pacs, quiet_s=QUIET_S)
    node.start()
    survived = 0
    for seed in range(20261120, 20261120 + kills):
        study = small_study()
        survived += _survive(node, storescu, study, seed, phases)
        _assert_nothing_lost(node, study)
        _assert_nothing_doubled(node, pacs, study)
        if survived >= kills:
            break
    assert survived >= kills


def test_a_receiver_killed_in_mid_study_makes_no_early_job(orthanc, site, storescu, small_study):
    """Half of a study is here when its receiver dies: the worker, which lives on, waits and reads all of it once."""
    pacs = orthanc()
    node = site(pacs=pacs, quiet_s=QUIET_S)
    node.start()
    study = small_study()
    half = study.files[: len(study.files) // 2]
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in half]
    contexts = {1: (headers[0].SOPClassUID, headers[0].file_meta.TransferSyntaxUID)}
    with upper_layer.associate(node.port, called="DICOM_NODE", calling="STORESCU", contexts=contexts) as connection:
        sender = upper_layer.Association(connection)
        for file, header in zip(half, headers, strict=True):
            _meta, offset = split_dataset(file)
            data_set = memoryview(file.read_bytes())[offset:]
            names = {"sop_class_uid": header.SOPClassUID, "sop_instance_uid": header.SOPInstanceUID}
            assert 0 == sender.store(data_set, **names)
        os.kill(node.pid_of("receiver"), signal.SIGKILL)
    node.wait_until(lambda: _count(node, study, "instance") == len(half), "what was acknowledged has its rows")
    time.sleep(QUIET_S + 2)  # the quiet time alone would decide meanwhile
    assert [] == node.jobs(study.uid)
    node.wait_until(lambda: node.pid_of("receiver") > 0, "a receiver again")
    scanner = Scanner(storescu, node, study)
    scanner.start()
    scanner.wait()
    assert set(study.files) == scanner.acknowledged
    node.wait_until(lambda: _has_job_in(node, study, "done"), "the study is done", timeout_s=180)
    node.wait_until_at_rest()
    assert 1 == len(node.jobs(study.uid))
    _assert_nothing_lost(node, study)
    _assert_nothing_doubled(node, pacs, study)
