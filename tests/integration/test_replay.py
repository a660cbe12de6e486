"""Replay: what a draft would have done with the node's own history, and whose records a draft means."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.app import Node, open_draft
from dicom_node.clock import ManualClock
from dicom_node.config import load_config
from dicom_node.config.live import Live, Rules
from dicom_node.errors import NotFoundError
from dicom_node.logs import Log
from dicom_node.pipeline import Decision
from dicom_node.records import Decisions
from tests import peers
from tests.integration.cli_case import CommandLine
from tests.integration.records_case import image, later

RULES = """
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
address = "127.0.0.1:1"
[[destination]]
name = "archive"
peer = "archive"
"""
ROUTE = """
[[route]]
name = "{name}"
destinations = ["archive"]
start = "{start}"
{more}
[route.series]
match = [{{ keyword = "SeriesDescription", contains = "{word}" }}]
[route.complete]
quiet_s = 0
"""


def _route(name: str, word: str, *, start: str = "series", more: str = "") -> str:
    return ROUTE.format(name=name, word=word, start=start, more=more)


OLD = RULES + _route("heads", "HEAD") + _route("gone", "HEAD") + _route("same", "CHEST")
DRAFT = RULES + _route("heads", "CHEST") + _route("same", "CHEST") + _route("new", "HEAD", start="study")


def _header(description: str) -> dict[str, dict[str, object]]:
    return {
        "0008103E": {"vr": "LO", "Value": [description]},
        "00080020": {"vr": "DA", "Value": ["20251230"]},
    }


@pytest.fixture
def dicom_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Return the command line of a node with a history: three studies, decided by the old rules, one undecided."""
    (tmp_path / "node").mkdir()
    line = CommandLine(tmp_path / "node", peers.free_port(), peers.free_port(), monkeypatch, capsys)
    line.config_file.write_text(OLD)
    node = Node(line.config_file)
    for number, description in enumerate(("HEAD", "CHEST", "HEAD and CHEST"), 1):
        uid = f"1.2.{number}"
        node.studies.index([image(1, study=uid, series=f"{uid}.1", at=later(number), header=_header(description))])
    clock = ManualClock(node.clock.now())
    decision = Decision(
        node.studies,
        Decisions(node.database, node.jobs),
        rules=Live(Rules.of(load_config(line.config_file))),
        registry=node.registry,
        clock=clock,
        log=Log("test"),
    )
    decision.step()
    clock.advance(3600)
    while decision.step():
        pass
    node.studies.index([image(1, study="1.2.4", series="1.2.4.1", at=later(9), header=_header("HEAD"))])
    return line


def _days(node: Node) -> float:
    return (node.clock.now() - later(0)).total_seconds() / 86400 + 1


def _effects(found: dict[str, object]) -> dict[tuple[str, str], str]:
    changes = found["changes"]
    assert isinstance(changes, list)
    return {(one["study_instance_uid"], one["route"]): one["effect"] for one in changes}


def test_a_draft_is_compared_with_what_was_decided(dicom_node: CommandLine, tmp_path: Path) -> None:
    """By study and route: what would start, stop, or stay; the undecided study is left out and counted."""
    draft = tmp_path / "elsewhere" / "draft.toml"
    draft.parent.mkdir()
    draft.write_text(DRAFT)
    days = _days(Node(dicom_node.config_file))
    said = dicom_node("route", "replay", "--days", str(days), "--config", draft, "--json")
    assert 0 == said.status, said.err
    assert {
        ("1.2.1", "heads"): "stops",
        ("1.2.2", "heads"): "starts",
        ("1.2.1", "gone"): "stops",
        ("1.2.3", "gone"): "stops",
        ("1.2.1", "new"): "starts",
        ("1.2.3", "new"): "starts",
    } == _effects(said.json)
    assert (3, 1) == (said.json["studies"], said.json["undecided"])
    totals = {one["route"]: one for one in said.json["totals"]}
    assert (1, 1, 1) == tuple(totals["heads"][effect] for effect in ("starts", "stops", "unchanged"))
    assert 3 == totals["same"]["unchanged"]
    stopped = next(
        one for one in said.json["changes"] if (one["study_instance_uid"], one["route"]) == ("1.2.1", "heads")
    )
    assert ("matched", "not_matched", ["1.2.1.1"], []) == tuple(
        stopped[key] for key in ("old_outcome", "new_outcome", "old_series", "new_series")
    )
    assert 'contains "CHEST"\' does not hold' in stopped["new_reason"]
    assert not (draft.parent / "var").exists()


def test_the_present_rules_change_nothing(dicom_node: CommandLine) -> None:
    """The same rules on the same headers: totals, and no change."""
    days = _days(Node(dicom_node.config_file))
    said = dicom_node("route", "replay", "--days", str(days), "--json")
    assert ([], 3) == (said.json["changes"], said.json["studies"])
    table = dicom_node("route", "replay", "--days", str(days))
    assert f"0 changes in 3 studies of {days:g} days; 1 are not decided yet" in table.out


def test_age_is_judged_as_of_the_day_of_the_study(dicom_node: CommandLine, tmp_path: Path) -> None:
    """A limit of a week stops nothing that was two days old when it came; what is not taken has another reason now."""
    draft = dicom_node.folder / "draft.toml"
    draft.write_text(OLD.replace('start = "series"', 'start = "series"\nmax_study_age_days = 7'))
    node = open_draft(draft)
    assert [] == node.admin.replay(_days(node))["changes"]
    draft.write_text(OLD.replace('start = "series"', 'start = "series"\nmax_study_age_days = 1'))
    assert {"stops", "other_reason"} == set(_effects(open_draft(draft).admin.replay(_days(node))).values())


def test_only_the_days_that_were_asked_for(dicom_node: CommandLine) -> None:
    """The history begins where it is told to."""
    assert 0 == open_draft(None).admin.replay(0.001)["studies"]


def test_explain_finds_the_records_of_the_node(dicom_node: CommandLine, tmp_path: Path) -> None:
    """A draft that lies elsewhere is tried on a stored study, and makes no database beside itself."""
    draft = tmp_path / "draft.toml"
    draft.write_text(DRAFT)
    said = dicom_node("route", "explain", "1.2.1", "--config", draft, "--json")
    assert {"heads": "not_matched", "same": "not_matched", "new": "matched"} == {
        one["route"]: one["outcome"] for one in said.json
    }
    assert not (tmp_path / "var").exists()


def test_without_records_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft without any node: not found, and no empty database."""
    monkeypatch.delenv("DICOM_NODE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    draft = tmp_path / "draft.toml"
    draft.write_text(DRAFT)
    with pytest.raises(NotFoundError, match="holds no records"):
        open_draft(draft).admin.replay(7)
    assert not (tmp_path / "var").exists()


def test_studies_are_released_by_command(dicom_node: CommandLine) -> None:
    """One by its UID, or all of a peer; what no rate holds is refused."""
    node = Node(dicom_node.config_file)
    node.studies.hold_for_rate("1.2.4", "too many")
    listed = {one["study_instance_uid"]: one for one in dicom_node("studies", "list", "--json").json}
    assert ("held", "too many") == (listed["1.2.4"]["state"], listed["1.2.4"]["reason"])
    assert ["1.2.4"] == [one["study_instance_uid"] for one in dicom_node("studies", "release", "1.2.4", "--json").json]
    assert "receiving" == node.studies.show("1.2.4").state
    assert [] == dicom_node("studies", "release", "--peer", "archive", "--json").json
    assert (1, 2, 3) == (
        dicom_node("studies", "release", "1.2.4").status,
        dicom_node("studies", "release").status,
        dicom_node("studies", "release", "--peer", "nobody").status,
    )
