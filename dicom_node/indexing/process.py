"""Indexing in a process of its own, so that shelving, parsing and rows take nothing from receiving.

Receiving and indexing in one process would share one interpreter lock: each write of a batch would hold up every
response. The process is nicer than the listener, dies with it, and is started again when it ends; facts that were not
dealt with are simply handed on again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeAlias

from dicom_node.errors import ChildDiedError, RecordsError, StorageError
from dicom_node.indexing.facts import Fact
from dicom_node.logs import Log
from dicom_node.processes import die_with_parent, give_way

Index: TypeAlias = Callable[[Sequence[Fact], Mapping[str, datetime]], int]


class Indexer:
    """The listener's side: hands on facts and waits for the answer. Used by one thread.

    Parameters
    ----------
    build
        Makes what indexes; called in the new process, so it must be picklable.
    """

    def __init__(self, build: Callable[[], Index]) -> None:
        self._build = build
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None before the first batch."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, if it does not run, and wait until it is ready.

        Raises
        ------
        ChildDiedError
            When it does not come up.
        """
        if self._process is not None and self._process.is_alive():
            return
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, self._build, os.getpid()), name="indexer", daemon=True
        )
        self._process.start()
        theirs.close()
        self._answer()

    def index(self, facts: Sequence[Fact], active: Mapping[str, datetime]) -> int:
        """Return how many of `facts` are dealt with.

        Raises
        ------
        ChildDiedError
            When the process failed or ended over them; the next call starts it anew.
        """
        self.start()
        assert self._connection is not None
        with suppress(OSError):  # it is gone: the answer will not come
            self._connection.send((facts, active))
        return self._answer()

    def _answer(self) -> int:
        assert self._connection is not None
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise ChildDiedError("the process that indexes ended without an answer") from error
        if isinstance(answer, str):
            raise ChildDiedError(f"indexing failed: {answer}")
        return int(answer)

    def stop(self) -> None:
        """End the process; what it has not answered is handed on again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.join(timeout=1.0)  # it ends by itself when the connection does
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None


def _main(connection: Connection, build: Callable[[], Index], parent_pid: int) -> None:
    """Answer batches until the parent hangs up. A process boundary: every error becomes an answer."""
    die_with_parent(parent_pid)
    give_way()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that closes sends it to the whole group
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent drains and then hangs up
    index: Index | None = None
    batch: tuple[Sequence[Fact], Mapping[str, datetime]] | None = None
    while True:
        answer: int | str = 0
        try:
            index = index or build()
            answer = index(*batch) if batch else 0
        except (RecordsError, StorageError) as error:  # locked or full since the start: the next batch tries again
            Log("indexer").error("index.postponed", reason=str(error))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        try:
            connection.send(answer)
            if index is None and isinstance(answer, str):
                return
            batch = connection.recv()
        except (EOFError, BrokenPipeError):
            return
