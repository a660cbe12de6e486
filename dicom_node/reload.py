"""The configuration file while the node runs: read again on SIGHUP or when it changed, swapped only when it is good.

Each role has a `Reload` of its own, asked by a loop. What it last read, what it refused and what waits for a restart is
kept in `data_dir/serving`, one small file a process, so that `dicom-node check` can show it. A file that is being
written is waited for: it is read when it has stood still for `SETTLE_S`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from dicom_node.clock import Clock
from dicom_node.config import load_config
from dicom_node.config.live import Live, Rules
from dicom_node.errors import ConfigError
from dicom_node.ids import ProcessIdentity, process_identity
from dicom_node.logs import Log

SERVING: Final = "serving"
"""Folder in data_dir where processes say what they serve by."""
SETTLE_S: Final = 1.0
"""A file that changed so recently may still be written."""

_Stamp: TypeAlias = tuple[int, int, int] | None
"""Modification time, size and inode; None: there is no such file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What one process of the node serves by."""

    role: str
    process: str
    """ids.ProcessIdentity as one word."""
    digest: str
    """Of its rules."""
    since: datetime
    """When it took them up."""
    restart_needed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    """What is wrong with the file as it stands, one sentence with file and line each; empty when it serves."""
    refused_at: datetime | None = None


class Reload:
    """Keeps the rules of one process equal to the file, as far as the file is good."""

    def __init__(
        self,
        path: Path,
        live: Live[Rules],
        *,
        role: str,
        folder: Path,
        asked: threading.Event,
        on_swap: Callable[[Rules], object] = lambda _: None,
        clock: Clock,
        log: Log,
    ) -> None:
        """Take the collaborators; the rules that serve by now are those that the process started with.

        `folder`: where it says what it serves by. `asked`: set by SIGHUP. `on_swap` hears of each new set of rules.
        """
        self._path = path
        self._live = live
        self._started = live.current.config
        self._asked = asked
        self._on_swap = on_swap
        self._clock = clock
        self._log = log
        self._file = folder / f"{role}-{process_identity().pid}.json"
        self._serving = Serving(
            role=role, process=str(process_identity()), digest=live.current.digest, since=clock.now()
        )
        self._read: _Stamp | str = "never"
        """The file as it was when it was read last; the first look compares what changed since the start."""
        self._seen: tuple[_Stamp, float] = (None, 0.0)
        """The file as it was at the last look, and the monotonic time since when."""

    def begin(self) -> None:
        """Say what is served by from the start on; the files of processes that are gone are removed."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        for _, path in _entries(self._file.parent, alive=False):
            path.unlink(missing_ok=True)
        self._say(self._serving)

    def end(self) -> None:
        """Say that nothing is served any more."""
        self._file.unlink(missing_ok=True)

    def step(self) -> bool:
        """Look once; read the file when somebody asked, or when it changed and has stood still since."""
        stamp = _stamp(self._path)
        if self._asked.is_set():
            self._asked.clear()
            self._take_up(stamp)
            return False
        if stamp == self._read:
            return False
        if stamp != self._seen[0] or self._seen[1] == 0.0:
            self._seen = (stamp, self._clock.monotonic() or 1e-9)
        elif self._clock.monotonic() - self._seen[1] >= SETTLE_S:
            self._take_up(stamp)
        return False

    def _take_up(self, stamp: _Stamp) -> None:
        try:
            rules = Rules.after_reload(self._started, load_config(self._path))
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
        except ValueError as error:
            problems = [f"{self._path.name}: {error}"]
        else:
            problems = []
            self._serve(rules)
        if problems:
            self._refuse(problems)
        self._read = stamp

    def _serve(self, rules: Rules) -> None:
        before = self._live.current
        was_refused = bool(self._serving.refused)
        if rules.digest != before.digest:
            self._live.swap(rules)
            self._on_swap(rules)
            self._log.info("rules.reloaded", digest=rules.digest, file=str(self._path))
        elif was_refused:
            self._log.info("rules.good_again", digest=rules.digest, file=str(self._path))
        for key in rules.restart_needed:
            if key not in self._serving.restart_needed:
                self._log.warning("rules.restart_needed", reason=f"restart needed: {key}", file=str(self._path))
        since = self._clock.now() if rules.digest != before.digest else self._serving.since
        self._say(
            Serving(
                role=self._serving.role,
                process=self._serving.process,
                digest=rules.digest,
                since=since,
                restart_needed=rules.restart_needed,
            )
        )

    def _refuse(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self._log.error("rules.refused", reason=f"the old rules serve; {problem}", file=str(self._path))
        self._say(
            Serving(
                role=self._serving.role,
                process=self._serving.process,
                digest=self._serving.digest,
                since=self._serving.since,
                restart_needed=self._serving.restart_needed,
                refused=tuple(problems),
                refused_at=self._clock.now(),
            )
        )

    def _say(self, serving: Serving) -> None:
        """Keep what is served by; a disk that refuses it must not stop the rules."""
        self._serving = serving
        part = self._file.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(serving), default=_plain), encoding="utf-8")
            part.replace(self._file)
        except OSError as error:
            self._log.warning("rules.not_noted", error=type(error).__name__)


def serving(folder: Path) -> tuple[Serving, ...]:
    """Return what each process that runs now says it serves by, by role."""
    return tuple(sorted((one for one, _ in _entries(folder, alive=True)), key=lambda one: (one.role, one.process)))


def _entries(folder: Path, *, alive: bool) -> list[tuple[Serving, Path]]:
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            one = _from_json(json.loads(path.read_text(encoding="utf-8")))
            if ProcessIdentity.parse(one.process).is_alive() == alive:
                found.append((one, path))
        except (OSError, ValueError, KeyError, TypeError):  # gone meanwhile, or not ours
            continue
    return found


def _from_json(value: dict[str, Any]) -> Serving:
    refused_at = value["refused_at"]
    return Serving(
        role=value["role"],
        process=value["process"],
        digest=value["digest"],
        since=datetime.fromisoformat(value["since"]),
        restart_needed=tuple(value["restart_needed"]),
        refused=tuple(value["refused"]),
        refused_at=None if refused_at is None else datetime.fromisoformat(refused_at),
    )


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
