"""Documents say what the code does: diagrams, commands, keys and states are compared with their source."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

from dicom_node.cli import cli
from dicom_node.config import Config, load_config
from dicom_node.lifecycle import DELIVERY_TRANSITIONS, JOB_TRANSITIONS, DeliveryState, JobState, state_diagram

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "administration.md"
SPOKEN = [ROOT / "README.md", GUIDE, ROOT / "config.toml", *sorted((ROOT / "plugins").glob("*/README.md"))]
"""Documents in which commands stand that people copy."""
UsageError = typer.BadParameter.__base__
"""typer carries a click of its own and shows only this child of the class."""
COMMANDS = typer.main.get_command(cli)


def _spoken_commands(file: Path) -> Iterator[str]:
    """Yield every command line of a document: in a block, in backticks, or in a comment."""
    for line in file.read_text(encoding="utf-8").splitlines():
        yield from re.findall(r"`(dicom-node [a-z][^`]*)`", line)
        if alone := re.fullmatch(r"[\s#]*(dicom-node [a-z].*?)(\s{2,}.*)?", line):
            yield alone[1]


SPOKEN_COMMANDS = sorted({(command, file.name) for file in SPOKEN for command in _spoken_commands(file)})


def _parse(group: Any, words: list[str], name: str = "dicom-node") -> None:
    """Parse words as the command line does, without running anything.

    Raises
    ------
    UsageError
        When there is no such command, option or argument, or one is missing.
    """
    if not hasattr(group, "get_command"):
        group.make_context(name, ["1" if word in ("JOB", "DELIVERY") else word for word in words])
        return
    word, *rest = words
    context = typer.Context(group, info_name=name)
    command = group.get_command(context, word)
    if command is None:
        raise UsageError(f"no command {word!r} in {name!r}")
    _parse(command, rest, f"{name} {word}")


def _leaves(group: Any, name: str = "dicom-node") -> Iterator[str]:
    """Yield the full name of every command."""
    for word, command in getattr(group, "commands", {}).items():
        yield from _leaves(command, f"{name} {word}") if hasattr(command, "commands") else [f"{name} {word}"]


def _keys(model: type[BaseModel], seen: frozenset[type[BaseModel]] = frozenset()) -> Iterator[str]:
    """Yield every key that config.toml may have; a condition may hold conditions."""
    for name, field in model.model_fields.items():
        yield field.alias or name
        for inner in set(_models_in(field.annotation)) - seen - {model}:
            yield from _keys(inner, seen | {model})


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


@pytest.mark.parametrize("table", [JOB_TRANSITIONS, DELIVERY_TRANSITIONS], ids=["job", "delivery"])
def test_architecture_shows_the_state_diagrams_of_the_code(table):
    """The Mermaid diagrams are the tables of lifecycle.py, line by line."""
    assert state_diagram(table) in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("state", [*JobState, *DeliveryState], ids=str)
def test_architecture_names_each_state(state):
    """No state without its place in a diagram."""
    assert re.search(rf"\b{state.value}\b", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("command", "file"), SPOKEN_COMMANDS)
def test_spoken_commands_parse(command, file):
    """What a document tells people to type is a command with options that exist."""
    _parse(COMMANDS, shlex.split(command)[1:])


@pytest.mark.parametrize("command", ["dicom-node frobnicate", "dicom-node check --net", "dicom-node jobs show"])
def test_wrong_commands_do_not_parse(command):
    """The test above can fail: no such command, no such option, a missing argument."""
    with pytest.raises(UsageError):
        _parse(COMMANDS, shlex.split(command)[1:])


@pytest.mark.parametrize("command", list(_leaves(COMMANDS)))
def test_each_command_is_in_the_guide(command):
    """The administrator's guide has a line for every command."""
    assert re.search(rf"`{command}\b", GUIDE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("key", sorted(set(_keys(Config))))
def test_each_key_is_in_the_guide_and_in_the_shipped_file(key):
    """A key that the node reads is explained, and stands in config.toml with its comment."""
    guide, shipped = GUIDE.read_text(encoding="utf-8"), (ROOT / "config.toml").read_text(encoding="utf-8")
    assert re.search(rf"`[^`\n]*\b{key}\b[^`\n]*`", guide)
    assert re.search(rf"\b{key}\b", shipped)


def test_the_example_in_the_readme_is_let_in():
    """The AE title that the README sends with is a peer of the shipped file that may store, from this machine."""
    (sent,) = [command for command, file in SPOKEN_COMMANDS if file == "README.md" and " send " in command]
    words = shlex.split(sent)
    config = load_config(ROOT / "config.toml")
    calling = words[words.index("--calling") + 1]
    (peer,) = [peer for peer in config.peer if peer.ae_title == calling]
    assert "store" in peer.may
    assert any(str(network).startswith("127.0.0.1") for network in peer.hosts)
    assert words[words.index("--called") + 1] in config.node.ae_titles
    assert str(config.receive.port) == words[words.index("--port") + 1]


@pytest.mark.parametrize("file", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda file: file.name)
def test_links_lead_somewhere(file):
    """A link to a file of the repository names one that is there."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8"))
    assert [] == [link for link in links if not (file.parent / link).exists()]
