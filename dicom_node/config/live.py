"""What serves now: the rules of the latest good configuration, swapped as a whole while the node runs.

`RELOADED` tables follow the file; a change of any other key is named as waiting for a restart. Whoever needs rules asks
`Live.current` once for each piece of work and uses that value throughout, so that no study is judged by half of one
file and half of another. Nothing here watches the file: `reload` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Generic, Self, TypeVar

from dicom_node.config.load import config_digest
from dicom_node.config.schema import Config, Table

T = TypeVar("T")

RELOADED: Final = ("peer", "destination", "route")
"""Tables of config.toml that take effect without a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A configuration as it serves."""

    config: Config
    """`RELOADED` as in the latest good file, all else as it was when the process started."""
    digest: str
    """Of `config`: what decisions and jobs are marked with."""
    restart_needed: tuple[str, ...] = ()
    """Keys whose change waits for a restart: ``[receive] port``."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the rules of a process that starts with `config`."""
        return cls(config=config, digest=config_digest(config))

    @classmethod
    def after_reload(cls, started: Config, fresh: Config) -> Self:
        """Return what serves when a process that was started with `started` reads `fresh`.

        Raises
        ------
        ValueError
            When a peer is called by TLS and the process has no certificate: it would be called without.
        """
        unsafe = [peer.name for peer in fresh.peer if peer.tls]
        if unsafe and started.receive.tls is None:
            raise ValueError(f'peer "{unsafe[0]}" needs [receive.tls], which needs a restart; the old rules serve')
        config = merged(started, fresh)
        waiting = tuple(
            key
            for name in Config.model_fields
            if name not in RELOADED
            for key in _differences(name, getattr(started, name), getattr(fresh, name))
        )
        return cls(config=config, digest=config_digest(config), restart_needed=waiting)


def merged(started: Config, fresh: Config) -> Config:
    """Return `started` with the tables of `fresh` that take effect without a restart."""
    return started.model_copy(update={name: getattr(fresh, name) for name in RELOADED})


class Live(Generic[T]):
    """One value that many threads read and one replaces; a reader sees the old value or the new, never a mixture."""

    def __init__(self, value: T) -> None:
        self._value = value

    @property
    def current(self) -> T:
        """What serves now."""
        return self._value

    def swap(self, value: T) -> None:
        """Let `value` serve from now on."""
        self._value = value


def _differences(way: str, before: Table, after: Table) -> Iterator[str]:
    for key, field in type(before).model_fields.items():
        old, new = getattr(before, key), getattr(after, key)
        name = field.alias or key
        if isinstance(old, Table) and isinstance(new, Table):
            yield from _differences(f"{way}.{name}", old, new)
        elif old != new:
            yield f"[{way}] {name}"
