"""Logs as JSON lines: a stable `action` word, identifiers, numbers; never a patient attribute.

Only the keys of `ALLOWED_KEYS` can be logged, so that a name cannot slip in: an unknown key raises where it is written.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

ALLOWED_KEYS: Final = frozenset(
    {
        "ae_title",
        "address",
        "association",
        "attempt",
        "bytes",
        "called_ae",
        "calling_ae",
        "count",
        "destination",
        "digest",
        "duration_s",
        "engine",
        "error",
        "file",
        "job_id",
        "outcome",
        "peer",
        "pid",
        "plugin",
        "port",
        "reason",
        "role",
        "route",
        "series_instance_uid",
        "signal",
        "sop_class_uid",
        "sop_instance_uid",
        "state",
        "status",
        "study_instance_uid",
        "transfer_syntax_uid",
    }
)
"""Keys that carry no patient data. `reason` and `error` are our own sentences, not texts from a header."""


class Log:
    """A logger that writes one JSON object a line."""

    def __init__(self, role: str) -> None:
        self._role = role
        self._logger = logging.getLogger(f"dicom_node.{role}")

    def info(self, action: str, **values: object) -> None:
        """Write that `action` happened."""
        self._write(logging.INFO, action, values)

    def warning(self, action: str, **values: object) -> None:
        """Write that `action` happened and that somebody should look at it."""
        self._write(logging.WARNING, action, values)

    def error(self, action: str, **values: object) -> None:
        """Write that `action` failed."""
        self._write(logging.ERROR, action, values)

    def _write(self, level: int, action: str, values: dict[str, object]) -> None:
        unknown = values.keys() - ALLOWED_KEYS
        if unknown:
            raise ValueError(f"log keys {sorted(unknown)} are not in logs.ALLOWED_KEYS; no patient data in logs")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "role": self._role,
            "action": action,
            **values,
        }
        self._logger.log(level, "%s", json.dumps(line, default=str))


def start_logging(level: int = logging.INFO) -> None:
    """Send the node's log lines to standard error; foreign libraries speak from warnings on, pynetdicom never.

    pynetdicom prints identifiers at its lower levels, therefore it is silenced altogether.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger("dicom_node")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    for noisy in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
