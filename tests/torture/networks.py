"""Machines of their own for node and scanners: network namespaces, each scanner's joined to the node's by a cable.

A cut cable is a link that is down: packets vanish, nobody is told.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cable:
    """Joins a scanner's namespace to the node's."""

    namespace: str
    """The scanner's."""
    node_address: str
    """Of the node, as the scanner calls it."""
    _node: str
    _link: str

    def cut(self) -> None:
        """Let no packet pass any more."""
        _ip("-n", self._node, "link", "set", self._link, "down")

    def mend(self) -> None:
        """Let packets pass again."""
        _ip("-n", self._node, "link", "set", self._link, "up")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The node's namespace, and a cable to each scanner's."""

    node: str
    cables: Sequence[Cable]

    @property
    def inside_node(self) -> tuple[str, ...]:
        """Words before a command that shall run on the node's machine."""
        return ("ip", "netns", "exec", self.node)


@contextmanager
def network(*, scanners: int) -> Iterator[Network]:
    """Make namespaces and cables; skip the test where that is not permitted."""
    node = f"node-{os.getpid()}"
    names = [f"scan{number}-{os.getpid()}" for number in range(scanners)]
    made = []
    try:
        for name in (node, *names):
            said = _tried("netns", "add", name)
            if said:
                pytest.skip(f"network namespaces cannot be made here: {said}")
            made.append(name)
        yield Network(node=node, cables=[_laid(node, name, number) for number, name in enumerate(names)])
    finally:
        for name in made:
            _ip("netns", "del", name)


def _laid(node: str, scanner: str, number: int) -> Cable:
    """Join two namespaces by a cable with a network of its own, 10.99.<number>.0/24."""
    here, there = f"n{number}", f"s{number}"
    _ip("-n", node, "link", "add", here, "type", "veth", "peer", "name", there, "netns", scanner)
    for name, link, host in ((node, here, 1), (scanner, there, 2)):
        _ip("-n", name, "address", "add", f"10.99.{number}.{host}/24", "dev", link)
        _ip("-n", name, "link", "set", link, "up")
    return Cable(namespace=scanner, node_address=f"10.99.{number}.1", _node=node, _link=here)


def _ip(*words: str) -> None:
    said = _tried(*words)
    assert not said, said


def _tried(*words: str) -> str:
    """Run ip(8); return nothing when it succeeds, else why not."""
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode else ""
