"""What happened at the port, as values: receiving notes them in order, indexing makes rows of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from dicom_node.ids import ProcessIdentity
from dicom_node.study import Arrival, Association


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An association was admitted by a process."""

    association: Association
    process: ProcessIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """An association ended; that is written behind the rows of all its instances."""

    association_id: str
    at: datetime
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """All that an earlier receiver left has been told: associations of dead receivers hold nothing open any more."""


Fact: TypeAlias = Opened | Arrival | Closed | Recovered
"""What happened at the port, in order."""
