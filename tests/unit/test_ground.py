"""The ground that everything stands on: clock, identifiers, logs, errors."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import errors, logs
from dicom_node.clock import Clock, ManualClock, SystemClock
from dicom_node.errors import ConfigError, ConfigProblem, DicomNodeError
from dicom_node.ids import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    derived_uid,
    new_uid,
    process_identity,
)

# ---------------------------------------------------------------- clock


def test_the_system_clock_is_aware_and_in_utc() -> None:
    """Wall-clock time carries its zone."""
    assert timedelta(0) == SystemClock().now().utcoffset()


def test_the_system_clock_never_runs_backwards() -> None:
    """Two readings of the monotonic clock are in order."""
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()


def test_a_manual_clock_moves_only_when_told() -> None:
    """Sleeping on it moves both times and waits for nothing."""
    clock: Clock = ManualClock(datetime(2026, 3, 1, tzinfo=UTC))
    assert datetime(2026, 3, 1, tzinfo=UTC) == clock.now() == clock.now()
    clock.sleep(90)
    assert datetime(2026, 3, 1, 0, 1, 30, tzinfo=UTC) == clock.now()
    assert 90.0 == clock.monotonic()


def test_a_naive_start_is_refused() -> None:
    """A time without a zone never enters."""
    with pytest.raises(ValueError, match="aware"):
        ManualClock(datetime(2026, 3, 1))  # noqa: DTZ001 - the very thing that must be refused


# ---------------------------------------------------------------- ids


def _is_valid_uid(uid: str) -> bool:
    """PS3.5 9.1: at most 64 characters, numeric components without leading zeros."""
    return len(uid) <= 64 and all(part == str(int(part)) for part in uid.split("."))


def test_new_uids_are_valid_and_differ() -> None:
    """A thousand new UIDs are a thousand valid UIDs."""
    uids = {new_uid() for _ in range(1000)}
    assert 1000 == len(uids)
    assert all(_is_valid_uid(uid) and uid.startswith("2.25.") for uid in uids)


@given(st.text(max_size=80), st.text(max_size=40))
def test_a_derived_uid_is_valid_and_always_the_same(root_uid: str, role: str) -> None:
    """The same root and role give the same UID, whatever they are."""
    uid = derived_uid(root_uid, role)
    assert _is_valid_uid(uid)
    assert uid == derived_uid(root_uid, role)


def test_a_derived_uid_is_the_same_in_every_version() -> None:
    """A release must not rename results: this value is frozen."""
    assert "2.25.257476850865794373930135244774368526868" == derived_uid("2.25.1", "sr.instance")


def test_derived_uids_differ_by_root_and_by_role() -> None:
    """Neither another job nor another role shares a UID."""
    pairs = [(f"2.25.{root}", f"tracking/{role}") for root in range(30) for role in range(30)]
    assert len(pairs) == len({derived_uid(*pair) for pair in pairs})


def test_the_implementation_names_itself_within_the_limits() -> None:
    """PS3.7 D.3.3.2: a valid UID and at most 16 characters."""
    assert _is_valid_uid(IMPLEMENTATION_CLASS_UID)
    assert 1 <= len(IMPLEMENTATION_VERSION_NAME) <= 16


def test_this_process_is_alive_and_is_itself() -> None:
    """A process finds itself alive, under its own pid."""
    identity = process_identity()
    assert os.getpid() == identity.pid
    assert identity.is_alive()


def test_an_ended_process_is_not_alive() -> None:
    """A pid whose process has gone, or waits to be reaped, is dead."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    assert identity.is_alive()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: ended, not reaped
    assert not identity.is_alive()
    child.communicate()
    assert not identity.is_alive()


def test_another_process_with_the_same_pid_is_another() -> None:
    """The start time and the boot tell two owners of one pid apart."""
    me = process_identity()
    later = type(me)(boot_id=me.boot_id, pid=me.pid, start_ticks=me.start_ticks + 1)
    other_boot = type(me)(boot_id="0", pid=me.pid, start_ticks=me.start_ticks)
    assert [False, False] == [later.is_alive(), other_boot.is_alive()]


# ---------------------------------------------------------------- logs

MARKED_NAME = "ZZMARKEDPATIENT"


def test_a_log_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """Action, role, level, time and the values stand in one line on standard error."""
    logs.start_logging()
    logs.Log("receiver").warning("instance_refused", sop_instance_uid="1.2.3", status=0xA700)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert datetime.fromisoformat(entry.pop("time")).tzinfo is not None
    assert {
        "level": "warning",
        "role": "receiver",
        "action": "instance_refused",
        "sop_instance_uid": "1.2.3",
        "status": 0xA700,
    } == entry


@pytest.mark.parametrize(
    "key", ["patient_name", "PatientName", "patient_id", "accession_number", "dataset", "birth_date", "description"]
)
def test_a_patient_attribute_cannot_be_logged(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An attribute that is not on the list raises where it is written, and nothing gets out."""
    logs.start_logging()
    for write in (logs.Log("worker").info, logs.Log("worker").warning, logs.Log("worker").error):
        with pytest.raises(ValueError, match="ALLOWED_KEYS"):
            write("job_done", **{key: MARKED_NAME})
    assert MARKED_NAME not in capsys.readouterr().err


def test_no_allowed_key_is_a_patient_attribute() -> None:
    """The list itself holds no key that names a person or an order."""
    personal = ("patient", "name", "birth", "accession", "physician", "sex", "age", "dataset", "description")
    assert [] == [key for key in logs.ALLOWED_KEYS if any(word in key for word in personal)]


@pytest.mark.parametrize("library", ["pynetdicom.acse", "pydicom", "highdicom.seg.sop"])
def test_foreign_libraries_do_not_speak(library: str, caplog: pytest.LogCaptureFixture) -> None:
    """They print identifiers: not even their errors reach any handler."""
    logs.start_logging()
    logging.getLogger(library).error("identifier: %s", MARKED_NAME)
    assert [] == caplog.records


# ---------------------------------------------------------------- errors


def _classes(top: type[DicomNodeError]) -> list[type[DicomNodeError]]:
    return [top, *(deeper for below in top.__subclasses__() for deeper in _classes(below))]


ERRORS = [kind for kind in _classes(DicomNodeError) if kind.__module__ == "dicom_node.errors"]


@pytest.mark.parametrize("kind", [kind for kind in ERRORS if kind is not ConfigError])
def test_an_error_without_words_says_its_sentence(kind: type[DicomNodeError]) -> None:
    """The first line of the class docstring is the default message: a sentence with the remedy."""
    assert str(kind()).endswith(".")
    assert "lost the queue" == str(kind("lost the queue"))


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_stands_in_the_drawing(kind: type[DicomNodeError]) -> None:
    """The tree in the module head names each class, and its exit status where it has one of its own."""
    (line,) = [line for line in (errors.__doc__ or "").splitlines() if kind.__name__ in line.split()]
    if "exit_code" in vars(kind) and kind is not DicomNodeError:
        assert f"exit {kind.exit_code}" in line
    if "retryable" in vars(kind) and kind.retryable:
        assert "retryable" in line


def test_a_configuration_error_names_every_problem() -> None:
    """All problems at once, each with file and line."""
    problems = (
        ConfigProblem(file=Path("conf/config.toml"), line=12, message="unknown key"),
        ConfigProblem(file=Path("plugin.toml"), line=None, message="no such file"),
    )
    error = ConfigError(problems)
    assert "config.toml:12: unknown key\nplugin.toml: no such file" == str(error)
    assert 2 == error.exit_code
