"""A worker's step around what a plugin does: how each kind of error ends a job, and what keeps its lease."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from dicom_node.config.schema import EngineSlots, WorkerSettings
from dicom_node.errors import ChildDiedError, GeometryError, LimitExceededError, RecordsError
from dicom_node.filing import ResultStore
from dicom_node.ids import Installation
from dicom_node.infer import PluginRegistry, Slots
from dicom_node.lifecycle import JobState
from dicom_node.logs import Log
from dicom_node.pipeline import Work
from tests.integration.records_case import Records, image, new_job


class FakeSlots:
    """Raises what it was told to, instead of inferring; both faces of a worker that the step needs."""

    def __init__(self, error: Exception, lasting_s: float = 0.0) -> None:
        self._error, self._lasting_s = error, lasting_s

    def get(self, plugin_id: str) -> str:
        """Return something that stands for a plugin."""
        return plugin_id

    def run(self, *_: object, **__: object) -> None:
        """Raise."""
        time.sleep(self._lasting_s)  # a thread of its own renews the lease meanwhile
        raise self._error


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a database with one job."""
    records = Records(tmp_path / "records.sqlite")
    records.studies.index([image(1)])
    records.jobs.enqueue(new_job(records))
    return records


def _work(records: Records, folder: Path, slots: FakeSlots, **settings: Any) -> Work:
    return Work(
        records.jobs,
        worker="w1",
        settings=WorkerSettings(**settings),
        registry=cast(PluginRegistry, slots),
        slots=cast(Slots, slots),
        results=ResultStore(folder / "results"),
        installation=Installation(uid="2.25.1", serial_number="1"),
        stopping=threading.Event(),
        clock=records.clock,
        log=Log("test"),
    )


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (ChildDiedError("killed by SIGKILL"), JobState.WAITING, "killed by SIGKILL"),
        (LimitExceededError("too much memory"), JobState.FAILED, "too much memory"),
        (GeometryError("a slice is missing"), JobState.REFUSED, "a slice is missing"),
        (ValueError("what nobody foresaw"), JobState.FAILED, "unexpected ValueError: what nobody foresaw"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_error_ends_the_attempt_with_its_reason(
    records: Records, tmp_path: Path, error: Exception, state: JobState, reason: str
) -> None:
    """Retryable ones wait for another attempt, the rest end the job; no child that died counts as a dead worker."""
    assert _work(records, tmp_path, FakeSlots(error)).step()
    shown = records.jobs.show(1).job
    assert (state, reason) == (shown.state, shown.reason)


def test_limit_of_the_configuration_reaches_the_claim(records: Records, tmp_path: Path) -> None:
    """[worker.engine_slots] holds for this worker when another one has the slot."""
    records.jobs.enqueue(new_job(records, plugin="second"))
    assert records.jobs.claim("other worker", 30.0) is not None
    limited = _work(records, tmp_path, FakeSlots(ValueError()), engine_slots=EngineSlots(onnxruntime=1))
    assert not limited.step()
    assert _work(records, tmp_path, FakeSlots(ValueError())).step()


def test_lease_outlives_a_database_that_is_away_for_a_moment(
    records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat that fails is followed by the next one."""
    beats = []

    def beat(*_: object) -> None:
        beats.append(1)
        raise RecordsError("locked")

    monkeypatch.setattr(records.jobs, "heartbeat", beat)
    assert _work(records, tmp_path, FakeSlots(ChildDiedError("x"), lasting_s=0.3), lease_s=0.15).step()
    assert 2 < len(beats)
