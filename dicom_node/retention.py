"""What is given up, when, and in which order: rows first, then files, in small batches that no scanner notices.

    by age            a study that got nothing for `retention_days`
    above the quota   the oldest study, while received images take more than `quota_gb`
    high water        the oldest study, while the disk is fuller than `high_water_percent`

Never what is being received, held, or has an open job or delivery (`records.purging`), and nothing younger than
`keep_hours`. Rows and headers stay, so that rules are replayed and statistics made; what comes again counts as new.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from dicom_node.clock import Clock
from dicom_node.config.schema import StorageSettings
from dicom_node.errors import IllegalTransitionError
from dicom_node.filing import Disposal
from dicom_node.logs import Log
from dicom_node.records import PurgedFile, Purges

BATCH: Final = 64
"""Files given up at once."""
PAUSE_S: Final = 0.05
"""Between two batches: the disk belongs to scanners."""
_FIRST: Final = ("", "")


class Retention:
    """Gives up what the limits ask for. Again is harmless, in any number of processes."""

    def __init__(
        self,
        purges: Purges,
        *,
        received: Disposal,
        results: Disposal,
        settings: StorageSettings,
        used_percent: Callable[[], float],
        clock: Clock,
        log: Log,
    ) -> None:
        """`used_percent`: how full the disk is."""
        self._purges = purges
        self._received = received
        self._results = results
        self._settings = settings
        self._used_percent = used_percent
        self._clock = clock
        self._log = log
        self._is_swept = False
        self._under_way: tuple[str, tuple[str, str]] | None = None
        """A study whose files go, and the last version that went."""

    def step(self) -> bool:
        """Give up one batch, or decide on the next study; return whether there was anything to do."""
        if not self._is_swept:
            self._sweep()
        worked = self._unlink() or self._choose() or self._purge_results()
        if worked:
            self._clock.sleep(PAUSE_S)
        return worked

    def purge(self, study_uid: str) -> int:
        """Give up a study now, whatever its age; return how many instances that were.

        Raises
        ------
        NotFoundError
            When there is no such study.
        IllegalTransitionError
            When it may not be purged now; the sentence says why.
        """
        count = self._purges.mark_study(study_uid)
        self._log.info("study.purged", study_instance_uid=study_uid, count=count, reason="by an administrator")
        after: tuple[str, str] | None = _FIRST
        while after is not None:
            after = self._unlink_batch(study_uid, after)
        return count

    def _sweep(self) -> None:
        count = self._received.sweep(self._purges.kept) + self._results.sweep(lambda _digests: ())
        if count:
            self._log.info("purge.swept", count=count)
        self._is_swept = True

    def _unlink(self) -> bool:
        """Give up the next files of a study that is marked already, perhaps by a process that died since."""
        if self._under_way is None:
            waiting = self._purges.unlinking()
            if not waiting:
                return False
            self._under_way = (waiting[0], _FIRST)
        study_uid, after = self._under_way
        next_ = self._unlink_batch(study_uid, after)
        self._under_way = None if next_ is None else (study_uid, next_)
        return True

    def _unlink_batch(self, study_uid: str, after: tuple[str, str]) -> tuple[str, str] | None:
        """Give up a batch of a study's files; return behind which version the next one begins, None at the end."""
        files = self._purges.purged_files(study_uid, after, BATCH)
        if not files:
            self._purges.unlinked(study_uid)
            return None
        self._received.dispose([one.path for one in files], self._purges.kept)
        return files[-1].name, files[-1].digest

    def _choose(self) -> bool:
        """Mark the next study, if the limits ask for one."""
        received_bytes = self._purges.received_bytes() if self._settings.quota_gb else 0
        limit, reason = purge_before(self._clock.now(), self._settings, received_bytes, self._used_percent())
        study_uid = self._purges.next_study(limit) if limit is not None else None
        if study_uid is None:
            return False
        try:
            count = self._purges.mark_study(study_uid)
        except IllegalTransitionError:  # something came, or another worker was quicker: look again
            return True
        self._log.info("study.purged", study_instance_uid=study_uid, count=count, reason=reason)
        return True

    def _purge_results(self) -> bool:
        if self._settings.result_retention_days:
            limit = self._clock.now() - timedelta(days=self._settings.result_retention_days)
            self._purges.mark_results(limit, BATCH)
        files: tuple[PurgedFile, ...] = self._purges.purged_results(BATCH)
        if not files:
            return False
        self._results.dispose([one.path for one in files], lambda _digests: ())
        self._purges.results_unlinked(files)
        self._log.info("results.purged", count=len(files))
        return True


def purge_before(
    now: datetime, settings: StorageSettings, received_bytes: int, used_percent: float
) -> tuple[datetime | None, str]:
    """Return before which time a study must have got its last image to be given up now, and why; None for none."""
    youngest = now - timedelta(hours=settings.keep_hours)
    if settings.quota_gb and received_bytes > settings.quota_gb * 1e9:
        return youngest, f"received images take more than {settings.quota_gb:g} GB"
    if settings.high_water_percent and used_percent > settings.high_water_percent:
        return youngest, f"the disk is more than {settings.high_water_percent:g} % full"
    if settings.retention_days:
        limit = min(youngest, now - timedelta(days=settings.retention_days))
        return limit, f"nothing came for {settings.retention_days:g} days"
    return None, ""


def used_percent(folder: Path) -> float:
    """Return how full the disk of a folder is, in percent of what the node may use of it."""
    usage = shutil.disk_usage(folder)
    return 100 * (1 - usage.free / (usage.used + usage.free))
