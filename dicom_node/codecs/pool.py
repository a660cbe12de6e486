"""Helper processes that decode frames of files side by side, for codecs that hold the interpreter lock.

Each helper is a bare interpreter with a codec and little else, so it starts in a tenth of a second and holds 40 MB; it
gets the next request while it works on one, and its values come back through a pipe into one buffer of its thread:
no frame is held twice. Plain child processes serve where `multiprocessing` allows none, in children that are daemons.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Final, Self

import numpy as np

from dicom_node.codecs.frame import FrameForm, Stored
from dicom_node.codecs.helper import ANSWER
from dicom_node.errors import UndecodableError

_ROOT: Final = Path(__file__).resolve().parents[2]
"""Where this package lies, in case something else than a path found it."""
_AHEAD: Final = 2
"""Requests that a helper has at a time, so that it never waits for the next one."""
_PIPE_BYTES: Final = 1 << 20
"""What Linux lets anybody ask for (/proc/sys/fs/pipe-max-size): a frame passes in few turns."""
_PIPE_HOLDS: Final = 1 << 14
"""Bytes of requests that wait for a helper at most: less than the smallest pipe, so that writing one never blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRequest:
    """One frame of a file, and what to do with its values."""

    path: Path
    extents: tuple[tuple[int, int], ...]
    """Offset in the file and length of each fragment."""
    form: FrameForm
    deliver: Callable[[Stored], None]
    """Called in some thread with values that are overwritten afterwards."""
    name: str
    """What a reason calls the frame."""

    def line(self) -> bytes:
        """Return the request as the helper reads it."""
        said = {"path": os.fspath(self.path), "extents": self.extents, "form": asdict(self.form)}
        return json.dumps(said).encode() + b"\n"


class DecoderPool:
    """A number of helpers; a context manager that ends them.

    Parameters
    ----------
    workers
        How many processes decode.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._helpers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        # The same modules as here, wherever they were found.
        found = os.pathsep.join([*filter(None, sys.path), str(_ROOT)])
        environment = os.environ | {"PYTHONPATH": found, "OPENBLAS_NUM_THREADS": "1"}
        # -S: all paths are given, and looking for more takes a fifth of the start.
        command = [sys.executable, "-P", "-S", "-m", "dicom_node.codecs.helper"]
        for _ in range(self._workers):
            helper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            self._helpers.append(helper)
            for pipe in (helper.stdin, helper.stdout):
                assert pipe is not None
                with suppress(OSError):  # the user's pipes have used up their memory: slower, not wrong
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for helper in self._helpers:
            if kind is not None:
                helper.kill()
            with suppress(BrokenPipeError), helper:  # closes its pipes and waits for its end
                pass

    def run(self, requests: Sequence[FrameRequest]) -> None:
        """Decode all frames and hand each one's values to its `deliver`.

        Raises
        ------
        UndecodableError
            When one of them cannot be decoded; the others are not waited for.
        """
        queue = _Queue(requests)
        with ThreadPoolExecutor(max_workers=len(self._helpers)) as threads:
            served = [threads.submit(_serve, helper, queue) for helper in self._helpers]
            for one in served:
                one.result()


class _Queue:
    """Requests that several threads take from."""

    def __init__(self, requests: Sequence[FrameRequest]) -> None:
        self._left: Iterator[FrameRequest] = iter(requests)
        self._lock = Lock()

    def take(self) -> FrameRequest | None:
        """Return the next request; None when there is none left."""
        with self._lock:
            return next(self._left, None)

    def stop(self) -> None:
        """Let nobody take another one."""
        with self._lock:
            self._left = iter(())


def _serve(helper: subprocess.Popen[bytes], queue: _Queue) -> None:
    """Keep one helper busy until nothing is left."""
    assert helper.stdin is not None
    assert helper.stdout is not None
    buffer = bytearray()
    asked: list[FrameRequest] = []
    following = queue.take()
    try:
        while following is not None or asked:
            while following is not None and len(asked) < _AHEAD:
                line = following.line()
                if asked and len(line) > _PIPE_HOLDS // _AHEAD:
                    break  # it is sent when the helper has nothing else to do, and reads
                helper.stdin.write(line)
                asked.append(following)
                following = queue.take()
            helper.stdin.flush()
            _take_answer(helper.stdout, asked.pop(0), buffer)
    except (BrokenPipeError, EOFError) as error:
        queue.stop()
        code = helper.wait()
        raise UndecodableError(f"the process that decodes ended (exit status {code}); a codec broke down") from error
    except UndecodableError:
        queue.stop()
        raise


def _take_answer(pipe: IO[bytes], request: FrameRequest, buffer: bytearray) -> None:
    head = pipe.read(ANSWER.size)
    if len(head) < ANSWER.size:
        raise EOFError
    is_well, kind, length = ANSWER.unpack(head)
    if len(buffer) < length:
        buffer.extend(bytes(length - len(buffer)))
    body = memoryview(buffer)[:length]
    done = 0
    while done < length:
        n = pipe.readinto(body[done:])  # type: ignore[attr-defined]  # a BufferedReader
        if not n:
            raise EOFError
        done += n
    if not is_well:
        raise UndecodableError(f"{request.name} {bytes(body).decode()}")
    form = request.form
    shape = (form.rows, form.columns) if form.samples == 1 else (form.rows, form.columns, form.samples)
    request.deliver(np.frombuffer(body, dtype=f"<{kind.decode()}").reshape(shape))
