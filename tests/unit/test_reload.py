"""New rules while the node runs: good files are swapped in whole, wrong ones leave the old rules serving."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.clock import ManualClock
from dicom_node.config import Config, config_digest, load_config, parse_toml
from dicom_node.config.live import Live, Rules
from dicom_node.logs import Log
from dicom_node.reload import SETTLE_S, Reload, Serving, serving

ROUTE = '[[route]]\nname = "{name}"\nplugin = "p"\n'
OLD, NEW = ROUTE.format(name="old"), ROUTE.format(name="new")


def config(text: str) -> Config:
    """Return the configuration that a text means."""
    return parse_toml(text, Path("config.toml"), Config)


class Watched:
    """A file, its reload and a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.toml"
        self.path.write_text(OLD)
        self.live = Live(Rules.of(load_config(self.path)))
        self.asked = threading.Event()
        self.clock = ManualClock()
        self.folder = folder / "serving"
        self.swapped: list[Rules] = []
        self.reload = Reload(
            self.path,
            self.live,
            role="worker",
            folder=self.folder,
            asked=self.asked,
            on_swap=self.swapped.append,
            clock=self.clock,
            log=Log("test"),
        )
        self.reload.begin()
        self.look()

    def look(self, *, settled: bool = True) -> str:
        """Look at the file, and again when it has stood still; return the route that serves then."""
        self.reload.step()
        if settled:
            self.clock.advance(SETTLE_S)
            self.reload.step()
        return self.live.current.config.route[0].name

    @property
    def said(self) -> Serving:
        """What `check` would show."""
        (one,) = serving(self.folder)
        return one


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    """Return a watched file with one route, `old`."""
    return Watched(tmp_path)


def test_changed_file_serves_when_it_has_stood_still(watched: Watched) -> None:
    """Not while an editor may still write it; the digest is that of the new rules, and listeners hear of it."""
    watched.path.write_text(NEW)
    assert "old" == watched.look(settled=False)
    assert "new" == watched.look()
    digest = config_digest(load_config(watched.path))
    assert (digest, digest, 1) == (watched.live.current.digest, watched.said.digest, len(watched.swapped))


def test_hangup_does_not_wait(watched: Watched) -> None:
    """Who sends SIGHUP has finished writing."""
    watched.path.write_text(NEW)
    watched.asked.set()
    assert "new" == watched.look(settled=False)
    assert not watched.asked.is_set()


def test_atomically_replaced_file_is_seen(watched: Watched) -> None:
    """Another inode under the same name, of the same size and even the same time."""
    fresh = watched.path.with_name("fresh")
    fresh.write_text(NEW)
    fresh.replace(watched.path)
    assert "new" == watched.look()


@pytest.mark.parametrize("text", [NEW + "[receive]\nprot = 1\n", NEW[:-5], ""])
def test_half_written_file_is_not_read(watched: Watched, text: str) -> None:
    """What is written within the settling time serves only when it is whole; an empty file is a valid one, too."""
    watched.path.write_text(text)
    assert "old" == watched.look(settled=False)
    watched.clock.advance(SETTLE_S / 2)
    watched.path.write_text(NEW + "# whole\n")
    assert "old" == watched.look(settled=False)
    watched.clock.advance(SETTLE_S / 2)
    assert "old" == watched.look(settled=False)
    assert () == watched.said.refused
    assert "new" == watched.look()


def test_wrong_file_leaves_the_old_rules_serving(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    """Every problem is logged as an error with its line, and is there for `check`; it is said once."""
    logging.getLogger("dicom_node").propagate = True
    watched.path.write_text(NEW + "\n[receive]\nprot = 1\n")
    assert "old" == watched.look()
    watched.look()
    said = [json.loads(record.message) for record in caplog.records if "rules.refused" in record.message]
    expected = 'config.toml:6: unknown key "prot" in [receive]; did you mean "port"?'
    assert [("error", f"the old rules serve; {expected}")] == [(one["level"], one["reason"]) for one in said]
    assert ((expected,), True) == (watched.said.refused, watched.said.refused_at is not None)
    watched.path.write_text(NEW)
    assert "new" == watched.look()
    assert () == watched.said.refused


def test_file_that_is_gone_leaves_the_old_rules_serving(watched: Watched) -> None:
    """A share that was unmounted stops nobody."""
    watched.path.unlink()
    assert "old" == watched.look()
    assert "cannot be read" in watched.said.refused[0]


def test_what_needs_a_restart_is_named(watched: Watched) -> None:
    """Routes serve at once; the port does not, and its key is named."""
    watched.path.write_text(NEW + "[receive]\nport = 104\n[worker]\nslots = 2\n")
    assert "new" == watched.look()
    assert ("[receive] port", "[worker] slots") == watched.said.restart_needed
    assert 11112 == watched.live.current.config.receive.port


def test_peer_with_tls_is_never_called_without(watched: Watched) -> None:
    """A process without certificate does not take up a peer that needs one."""
    certificate = '[receive.tls]\ncertificate = "a"\nkey = "b"\nca = "c"\n'
    watched.path.write_text(NEW + f'{certificate}[[peer]]\nname = "x"\nae_title = "X"\ntls = true\naddress = "h:104"\n')
    assert "old" == watched.look()
    assert "needs a restart" in watched.said.refused[0]


def test_processes_that_are_gone_are_not_shown(watched: Watched) -> None:
    """A killed worker's last word is removed by the next one."""
    left = json.loads(next(watched.folder.iterdir()).read_text())
    (watched.folder / "worker-1.json").write_text(json.dumps({**left, "process": "boot:1:1"}))
    assert 1 == len(serving(watched.folder))
    watched.reload.begin()
    assert 1 == len(list(watched.folder.glob("*.json")))
    watched.reload.end()
    assert () == serving(watched.folder)


_TEXTS = st.lists(st.sampled_from([OLD, NEW, NEW + "x = 1\n", "", "[[route", OLD + "[worker]\nslots = 2\n"]))


@settings(max_examples=40, deadline=None)
@given(texts=_TEXTS, hangups=st.lists(st.booleans(), min_size=10, max_size=10))
def test_what_serves_is_always_the_last_good_file(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], hangups: list[bool]
) -> None:
    """Whatever was written in between, and however it was noticed."""
    watched = Watched(tmp_path_factory.mktemp("walk"))
    expected = ("old",)
    for number, text in enumerate(texts[:10]):
        watched.path.write_text(text)
        if hangups[number]:
            watched.asked.set()
        watched.reload.step()
        watched.clock.advance(SETTLE_S)
        watched.reload.step()
        if text != NEW + "x = 1\n" and text != "[[route":
            expected = tuple(route.name for route in config(text).route)
        assert expected == tuple(route.name for route in watched.live.current.config.route)
