"""How findings are compared with the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from dicom_node.errors import UsageError
from model_build.cli import app
from model_build.evaluation import Evaluation, Pair, pair_up
from model_build.phantoms import PhantomObject

RIGHT = Pair(
    seed=1,
    object_number=1,
    kind="sphere",
    smallest_diameter_mm=10.0,
    hu=60.0,
    true_ml=0.5,
    found_ml=0.5,
    centre_error_mm=0.1,
)
MISSED = replace(RIGHT, found_ml=None, centre_error_mm=None)
FALSE = replace(RIGHT, object_number=None, kind=None, smallest_diameter_mm=None, hu=None, true_ml=None)


def _object(number: int, centre: tuple[float, float, float]) -> PhantomObject:
    identity = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return PhantomObject(
        number=number,
        kind="sphere",
        centre_lps_mm=centre,
        semi_axes_mm=(5.0, 5.0, 5.0),
        rotation=identity,
        hu=60.0,
        volume_ml=0.5236,
    )


def _findings(*centres: tuple[float, float, float]) -> Any:
    return SimpleNamespace(
        findings=[
            SimpleNamespace(number=n, measurements=SimpleNamespace(centroid_lps_mm=centre, volume_ml=n / 10))
            for n, centre in enumerate(centres, 1)
        ]
    )


def _evaluation(*pairs: Pair) -> Evaluation:
    return Evaluation(pairs=pairs, n_seeds=1, seconds_per_study=1.0)


def test_each_object_takes_the_nearest_finding_and_none_twice() -> None:
    """Two near objects do not share a finding; what is far from every object is false."""
    objects = [_object(1, (0, 0, 0)), _object(2, (4, 0, 0))]
    pairs = pair_up(9, objects, _findings((3.5, 0, 0), (0.5, 0, 0), (50, 0, 0)))
    assert [(1, 0.2, 0.5), (2, 0.1, 0.5), (None, 0.3, None)] == [
        (pair.object_number, pair.found_ml, pair.centre_error_mm) for pair in pairs
    ]


def test_object_without_a_finding_is_missed() -> None:
    """A finding 7 mm away is another thing."""
    missed, false = pair_up(9, [_object(1, (0, 0, 0))], _findings((7, 0, 0)))
    assert (1, None) == (missed.object_number, missed.found_ml)
    assert (None, None) == (false.object_number, false.true_ml)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((RIGHT, MISSED), "missed"),
        ((RIGHT, FALSE), "false_positives"),
        ((RIGHT, replace(RIGHT, centre_error_mm=1.1)), "centre_error_max_mm"),
        ((RIGHT, RIGHT, replace(RIGHT, found_ml=0.58)), "volume_error_max"),
        ((RIGHT, replace(RIGHT, found_ml=0.45)), "volume_error_p90"),
        ((replace(RIGHT, found_ml=0.48),), "volume_error_median"),
    ],
)
def test_every_target_can_fail(pairs: tuple[Pair, ...], words: str) -> None:
    """Each limit is judged by itself, and the failure names it."""
    failures = _evaluation(*pairs).failures()
    assert any(words in failure for failure in failures)


def test_right_answers_hold() -> None:
    """Nothing is said against a perfect answer, and its figures are plain JSON."""
    evaluation = _evaluation(RIGHT, RIGHT)
    assert [] == evaluation.failures()
    values = json.loads(json.dumps(evaluation.as_json()))
    assert (True, 1.0, 0.0) == (values["holds"], values["figures"]["recall"], values["figures"]["volume_error_max"])


def test_phantom_command_writes_a_study_and_refuses_a_second_one(tmp_path: Path) -> None:
    """The command's JSON names what it wrote; an older study in the folder is not mixed with a new one."""
    arguments = ["phantom", "--out", str(tmp_path), "--seed", "3", "--orientation", "axial", "--empty", "--json"]
    arguments += ["--date", "20260131", "--uid-root", "2.25.9"]
    done = CliRunner().invoke(app, arguments)
    assert 0 == done.exit_code
    summary = json.loads(done.stdout)
    assert summary["instances"] == len(list((tmp_path / "dicom").glob("*.dcm"))) > 80
    assert [] == json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))["objects"]
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, UsageError)


@pytest.mark.parametrize("arguments", [["--date", "2026-01-31"], ["--orientation", "sagittal"], ["--seed", "-1"]])
def test_phantom_command_refuses_what_it_cannot_read(tmp_path: Path, arguments: list[str]) -> None:
    """Wrong usage ends with an error and leaves no file."""
    done = CliRunner().invoke(app, ["phantom", "--out", str(tmp_path / "new"), *arguments])
    assert isinstance(done.exception, UsageError) or done.exit_code == 2
    assert not (tmp_path / "new").exists()
