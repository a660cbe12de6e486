"""The flood guard: what a sender begins beyond its rate is received and held, before any route is asked.

Stands beside `pipeline`, whose Decision asks it about each open study. It refuses nothing and loses nothing; an
administrator releases what is held.
"""

from __future__ import annotations

from typing import Final

from dicom_node.config.live import Live, Rules
from dicom_node.logs import Log
from dicom_node.records import Studies, StudyEvidence
from dicom_node.routing import RATE_WINDOW, over_rate

_REMEMBERED: Final = 10_000
"""Studies that were let through and need not be counted again at each step."""


class FloodGuard:
    """Holds the studies of senders that exceed `max_studies_per_hour`."""

    def __init__(self, studies: Studies, rules: Live[Rules], *, log: Log) -> None:
        self._studies = studies
        self._rules = rules
        self._log = log
        self._passed: set[str] = set()
        self._under = rules.current

    def lets_through(self, study: StudyEvidence) -> bool:
        """Return whether routes may be asked about the study; hold it when not."""
        rules = self._rules.current
        if rules is not self._under or len(self._passed) > _REMEMBERED:
            self._under = rules
            self._passed.clear()
        uid = study.study_instance_uid
        peers = [peer for peer in rules.config.peer if peer.max_studies_per_hour is not None]
        if not peers or uid in self._passed:
            return True
        reason = over_rate(self._studies.begun(uid, RATE_WINDOW), peers)
        if reason is None:
            self._passed.add(uid)
            return True
        self._studies.hold_for_rate(uid, reason)
        self._log.warning("study.held", study_instance_uid=uid, reason=reason)
        return False
