"""What is paused: plugins and routes, whose jobs are not claimed, and destinations, to which nothing is sent.

One row while it lasts, so that a pause survives a restart; every claim reads the rows, so that it counts at once.
Nothing is refused meanwhile: jobs are made, results that are filed go on to destinations that are not paused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection, delete, insert, select, update

from dicom_node.errors import NotFoundError
from dicom_node.records.database import Database
from dicom_node.records.schema import pause

PauseKind: TypeAlias = Literal["plugin", "route", "destination"]

_READ: Final = select(pause).order_by(pause.c.kind, pause.c.name)
"""Made once; each claim executes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRow:
    """One thing that is paused: since when, by whom, and why."""

    kind: PauseKind
    name: str
    actor: str
    reason: str
    at: datetime

    @property
    def words(self) -> str:
        """What a job or delivery that waits for it says."""
        return f"paused: {self.kind} {self.name}, {self.reason}"


class Pauses:
    """The aggregate of pauses."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.clock

    def pause(self, kind: PauseKind, name: str, *, actor: str, reason: str) -> None:
        """Pause a plugin, a route or a destination; paused already, it keeps the new words."""
        said = {"actor": actor, "reason": reason, "at": self._clock.now()}
        here = (pause.c.kind == kind) & (pause.c.name == name)
        with self._database.begin() as connection:
            if connection.execute(update(pause).where(here).values(**said)).rowcount == 0:
                connection.execute(insert(pause).values(kind=kind, name=name, **said))

    def resume(self, kind: PauseKind, name: str) -> None:
        """Let it go on.

        Raises
        ------
        NotFoundError
            When it is not paused.
        """
        with self._database.begin() as connection:
            here = delete(pause).where(pause.c.kind == kind, pause.c.name == name)
            if connection.execute(here).rowcount == 0:
                raise NotFoundError(f"{kind} {name!r} is not paused")

    def list(self) -> tuple[PauseRow, ...]:
        """Return what is paused, by kind and name."""
        with self._database.read() as connection:
            return read_pauses(connection)


def read_pauses(connection: Connection) -> tuple[PauseRow, ...]:
    """Return what is paused, by kind and name."""
    rows = connection.execute(_READ)
    return tuple(PauseRow(kind=one.kind, name=one.name, actor=one.actor, reason=one.reason, at=one.at) for one in rows)


def words_for(pauses: Iterable[PauseRow], named: Collection[tuple[PauseKind, str]]) -> str | None:
    """Return the words of the first pause of what is `named`, as (kind, name); None when none of it is paused."""
    return next((one.words for one in pauses if (one.kind, one.name) in named), None)
