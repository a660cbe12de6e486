"""The plan of a training, read from TOML: plain frozen values; an unknown or missing key is refused by name."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dicom_node.errors import UsageError

__all__ = ["Plan", "read_plan"]

_TableT = TypeVar("_TableT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """[data]: which phantoms are learned from."""

    first_seed: int
    phantoms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """[patches]: the cubes that one step sees."""

    edge: int
    """Voxels."""
    batch: int
    at_objects: float
    """Fraction of the patches centred near an object."""
    at_distractors: float
    """Fraction centred near what must not be found; the rest lie anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """[optimiser]: AdamW, its rate falling to zero as (1 - step / steps) ** power."""

    steps: int
    learning_rate: float
    weight_decay: float
    power: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """[settle]: the steps after those of [optimiser], with the statistics of batch normalisation held."""

    calibrate: int
    """Batches over which the statistics are averaged before they are held."""
    rounds: int
    steps: int
    """Of one round."""
    learning_rate: float
    """Falls to zero in every round like the optimiser's (warm restarts, Loshchilov 2017)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """[log]: how often, in steps."""

    every: int
    checkpoint_every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what a training gives, but for the preprocessing, which the plugin's manifest holds."""

    name: str
    plugin: Path
    """Folder of the plugin; in the file relative to the file."""
    architecture: str
    seed: int
    threads: int
    data: Data
    patches: Patches
    optimiser: Optimiser
    settle: Settle
    log: Log

    @property
    def steps(self) -> int:
        """Return how many steps the training has in all."""
        return self.optimiser.steps + self.settle.rounds * self.settle.steps


_TABLES: dict[str, type[Data | Patches | Optimiser | Settle | Log]] = {
    "data": Data,
    "patches": Patches,
    "optimiser": Optimiser,
    "settle": Settle,
    "log": Log,
}


def read_plan(path: Path) -> Plan:
    """Return the plan in the file.

    Raises
    ------
    UsageError
        The file cannot be read, is no TOML, or has a key too many or too few.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path.name}: {error}") from error
    for name, table in _TABLES.items():
        if isinstance(values.get(name), dict):
            values[name] = _built(table, values[name], f"{path.name}, [{name}]")
    plan = _built(Plan, values, path.name)
    return dataclasses.replace(plan, plugin=(path.parent / plan.plugin).resolve())


def _built(table: type[_TableT], values: dict[str, Any], where: str) -> _TableT:
    """Return the dataclass of these values, or say which key is wrong."""
    wanted = {field.name for field in dataclasses.fields(table)}  # type: ignore[arg-type]  # every caller passes a dataclass
    for word, keys in (("unknown", set(values) - wanted), ("missing", wanted - set(values))):
        if keys:
            raise UsageError(f"{where}: {word} key {', '.join(sorted(keys))}")
    return table(**values)
