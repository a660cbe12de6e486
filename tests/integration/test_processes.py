"""Claims on processes: they end with their parent, and a sandbox that forbids niceness stops nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

from benchmarks.node import RunningNode
from dicom_node.logs import Log
from dicom_node.processes import behind
from dicom_node.roles import Loop, LoopingRole
from tests import peers

SANDBOXED = "from dicom_node.processes import give_way; give_way(); print('alive')"
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys, time
from dicom_node.processes import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(60)
''', str(os.getpid())], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_sandbox_that_forbids_niceness_stops_nothing() -> None:
    """systemd's filter answers EPERM to setpriority: the process goes on as it is."""
    peers.require_peer("strace")
    command = ["strace", "-f", "-o", "/dev/null", "-e", "trace=setpriority", "-e", "inject=setpriority:error=EPERM"]
    done = subprocess.run([*command, sys.executable, "-c", SANDBOXED], capture_output=True, text=True, check=False)
    assert "alive\n" == done.stdout, done.stderr


def test_a_child_ends_with_its_parent() -> None:
    """Even when the parent is killed: no indexing outlives its receiver."""
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_receiver_loads_nothing_that_reads_images(tmp_path: Path) -> None:
    """A tenth of the memory of a node that infers: of scipy, decoders and runtimes not a page is in it."""
    with RunningNode(tmp_path / "node", role="receiver") as node:
        loaded = Path(f"/proc/{node.pid}/maps").read_text(encoding="utf-8")
    assert "site-packages/pydantic_core" in loaded
    assert [] == [name for name in ("scipy", "skimage", "gdcm", "openjpeg", "onnxruntime") if f"/{name}" in loaded]


def test_what_is_settled_is_walked_over_no_more() -> None:
    """In a process of its own: the collector leaves alone what was there, and still finds what is made later."""
    code = (
        "import gc, weakref\n"
        "from dicom_node.processes import settle\n"
        "class Loop: pass\n"
        "settle()\n"
        "assert gc.get_freeze_count() > 5_000, gc.get_freeze_count()\n"
        "later = Loop(); later.itself = later; gone = weakref.ref(later); del later; gc.collect()\n"
        "assert gone() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_work_done_behind_leaves_its_caller_where_it_was() -> None:
    """A backup by hand gives way; what its process does next, in the tests all that follows, does not."""
    before = os.nice(0)
    assert before < behind(lambda: os.nice(0))
    assert before == os.nice(0)


def test_a_loop_that_gives_way_does_so_alone() -> None:
    """Niceness is its thread's: the loop beside it keeps that of the process."""
    stop, found = threading.Event(), {}

    def note(name: str) -> bool:
        found[name] = os.nice(0)
        if len(found) == 2:
            stop.set()
        return False

    loops = [
        Loop(name=name, step=partial(note, name), idle_s=0.01, gives_way=name == "backup")
        for name in ("decide", "backup")
    ]
    LoopingRole(loops, log=Log("test")).run(stop)
    assert os.nice(0) == found["decide"] < found["backup"]
