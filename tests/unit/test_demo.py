"""The demonstration's judgement and its table: findings beside the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.demo import Found, Report, Row, TrueObject, compare, lines


def _found(number=1, centre=(0.0, 0.0, 0.0), volume_ml=1.0):
    return Found(number=number, centre_lps_mm=centre, volume_ml=volume_ml, diameter_mm=12.4, mean=60.0)


def _true(centre=(0.0, 0.0, 0.0), volume_ml=1.0, smallest=12.4, kind="sphere"):
    return TrueObject(
        kind=kind, centre_lps_mm=centre, volume_ml=volume_ml, diameter_mm=12.4, smallest_diameter_mm=smallest, hu=60.0
    )


def _report(rows, *, has_truth=True, states=("done",)):
    jobs = tuple({"id": 1, "plugin": "qa_phantom", "state": state, "reason": None} for state in states)
    files = (Path("demo/seg.dcm"),)
    return Report(rows=tuple(rows), has_truth=has_truth, jobs=jobs, duration_s=12.34, files=files)


@pytest.mark.parametrize(
    ("found", "true", "verdict", "agrees"),
    [
        (_found(), _true(), "agrees", True),
        (_found(centre=(0.6, 0.6, 0.5)), _true(), "agrees", True),
        (_found(centre=(0.6, 0.6, 0.6)), _true(), "wrong place", False),
        (_found(volume_ml=1.149), _true(), "agrees", True),
        (_found(volume_ml=1.151), _true(), "wrong volume", False),
        (_found(volume_ml=0.849), _true(), "wrong volume", False),
        (None, _true(smallest=8.0), "not found", False),
        (None, _true(smallest=7.99), "small, not judged", True),
        (_found(volume_ml=1.3), _true(smallest=7.99), "small, not judged", True),
        (_found(centre=(2.0, 0.0, 0.0)), _true(smallest=7.99), "wrong place", False),
        (_found(), None, "nothing there", False),
    ],
)
def test_a_row_is_judged_by_place_and_volume(found, true, verdict, agrees):
    """1 mm, 15 %, everything of at least 8 mm and nothing else."""
    row = Row(found=found, true=true)
    assert (verdict, agrees) == (row.verdict, row.agrees)


def test_the_nearest_pair_is_settled_first():
    """A finding goes to the object that it is nearest to, though another object could have it, too."""
    left, right = _true(centre=(0.0, 0.0, 0.0)), _true(centre=(8.0, 0.0, 0.0))
    near_right = _found(number=7, centre=(7.0, 0.0, 0.0))
    assert [(None, left), (near_right, right)] == [
        (row.found, row.true) for row in compare([near_right], [left, right])
    ]


def test_each_finding_is_one_object_and_the_rest_is_nothing():
    """Two findings at one object: the nearer is it, the other one is extra; so is one that is far away."""
    near, second, far = _found(1), _found(2, centre=(3.0, 0.0, 0.0)), _found(3, centre=(50.0, 0.0, 0.0))
    rows = compare([far, second, near], [_true()])
    assert [near, far, second] == [row.found for row in rows]
    assert ["agrees", "nothing there", "nothing there"] == [row.verdict for row in rows]


@pytest.mark.parametrize(
    ("rows", "has_truth", "states", "agrees"),
    [
        ([Row(found=_found(), true=_true())], True, ("done",), True),
        ([Row(found=_found(), true=None)], True, ("done",), False),
        ([Row(found=_found(), true=None)], False, ("done",), True),
        ([], True, ("done",), True),
        ([Row(found=_found(), true=_true())], True, ("done", "failed"), False),
        ([], False, ("withheld",), False),
        ([], False, (), False),
    ],
)
def test_the_report_agrees_only_when_jobs_and_rows_do(rows, has_truth, states, agrees):
    """Every job done; and, where there is a truth, every row right."""
    report = _report(rows, has_truth=has_truth, states=states)
    assert agrees is report.agrees
    assert agrees is report.as_dict()["agrees"]


def test_the_table_fits_120_columns_and_says_what_is_wrong():
    """One row an object, kind and size of the truth beside it; what disagrees stands in capitals."""
    far = _found(number=12, centre=(-123.4, -234.5, -345.6), volume_ml=123.45)
    rows = [Row(found=far, true=None), Row(found=None, true=_true(kind="ellipsoid")), Row(found=_found(), true=_true())]
    page = lines(_report(rows))
    assert max(map(len, page)) <= 120
    extra, missed, right = page[4:7]
    assert extra.endswith("NOTHING THERE")
    assert "-123.4 -234.5 -345.6 123.45" in extra
    assert "ellipsoid" in missed
    assert missed.endswith("NOT FOUND")
    assert right.endswith("agrees")
    assert "time to result 12.3 s" in page
    assert "wrote demo/seg.dcm" in page
    assert "findings and truth DISAGREE" == page[-1]


def test_a_study_without_truth_is_shown_without_verdict():
    """Findings alone, and nothing that sounds like a judgement."""
    page = lines(_report([Row(found=_found(), true=None)], has_truth=False))
    assert not any("agree" in line.lower() or "truth" in line.lower() for line in page)
    assert any(line.endswith("60.0") for line in page)


@pytest.mark.parametrize(("has_truth", "text"), [(True, "there is nothing to find"), (False, "nothing was found")])
def test_nothing_found_is_said(has_truth, text):
    """An empty table has a sentence in its place."""
    assert any(text in line for line in lines(_report([], has_truth=has_truth)))
