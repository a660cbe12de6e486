"""Who owns work, and whether its death was its own."""

from __future__ import annotations

import os
import subprocess
import sys

from dicom_node.ids import process_identity
from dicom_node.upkeep import died_with_its_node, owner_is_alive, owner_name


def _dead() -> str:
    """Return the identity of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = str(process_identity(process.pid))
    process.kill()
    process.communicate()
    return identity


def test_this_process_is_alive_and_so_is_who_started_it() -> None:
    """The name of a living owner says so on both counts."""
    assert owner_is_alive(owner_name())
    assert not died_with_its_node(owner_name())


def test_owner_that_died_alone_is_told_from_one_that_died_with_its_node() -> None:
    """Only where the process that started the owner is gone too, nobody is to blame."""
    dead, alive = _dead(), str(process_identity(os.getpid()))
    assert not owner_is_alive(f"{dead}/{alive}")
    assert not died_with_its_node(f"{dead}/{alive}")
    assert died_with_its_node(f"{dead}/{_dead()}")


def test_name_that_is_none_counts_as_alive() -> None:
    """In doubt nobody's work is taken before its lease has run out."""
    assert owner_is_alive("worker-1")
    assert not died_with_its_node("worker-1")
