"""What is known now of a study's arrival: rows, habits of its senders, positions of its slices, what a PACS holds.

Between the records and `routing.assess`, which is pure. Times of rows are another process's wall clock, which may jump;
so a quiet time is counted here, on the monotonic clock, from when its row was first seen. After a restart all count
afresh: nobody knows what was under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from dicom_node import routing
from dicom_node.clock import Clock
from dicom_node.errors import QueryError, UnreachableError
from dicom_node.logs import Log
from dicom_node.records import SeriesEvidence, Studies, StudyEvidence
from dicom_node.routing.habits import LATEST

ROW_LAG_S: Final = 1.5
"""Rows follow their files in batches, up to a second later (`indexing.PATIENCE_S`): so old they are when seen."""
CALM_S: Final = 1.0
"""Silence after which slices are looked at, and a PACS is asked: in the middle of a burst both would be for nothing."""
HABIT_S: Final = 60.0
"""How long a habit is believed before the records are asked again."""
ASK_AGAIN_S: Final = 10.0
"""Between two questions about one study."""

AskPeer: TypeAlias = Callable[[str, str], Mapping[str, int]]
"""(name of a [[peer]], Study Instance UID) -> how many instances it holds of each series."""
_Question: TypeAlias = tuple[str, str]


class Timeline:
    """Times of rows on the monotonic clock: when they were first seen, written as times of one steady day."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now()
        self._start = clock.monotonic()
        self._seen: dict[tuple[str, str], tuple[datetime, datetime]] = {}

    def now(self) -> datetime:
        """Return the present time; it never jumps."""
        return self._since + timedelta(seconds=self._clock.monotonic() - self._start)

    def when(self, key: tuple[str, str], told: datetime) -> datetime:
        """Return when a row said `told` for the first time, less the time that rows lag behind."""
        seen = self._seen.get(key)
        if seen is None or seen[0] != told:
            lag_s = min(max((self._clock.now() - told).total_seconds(), 0.0), ROW_LAG_S)
            seen = (told, max(self._since, self.now() - timedelta(seconds=lag_s)))
            self._seen[key] = seen
        return seen[1]

    def forget_all_but(self, studies: frozenset[str], associations: frozenset[str]) -> None:
        """Drop what is not asked for any more."""
        kept = studies | associations
        self._seen = {key: seen for key, seen in self._seen.items() if key[0] in kept}


class Expectations:
    """How many instances a PACS holds: asked in a loop of its own, so that a slow PACS holds up no decision."""

    def __init__(self, ask: AskPeer, *, clock: Clock, log: Log) -> None:
        self._ask = ask
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._wanted: dict[_Question, int] = {}
        """Question -> revision of the study that it is about."""
        self._answers: dict[_Question, tuple[int, float, Mapping[str, int] | None]] = {}
        """Question -> revision, when on the monotonic clock, counts; None when no answer came."""

    def held(self, peer: str, study_uid: str, revision: int) -> Mapping[str, int] | None:
        """Return what the peer held when it was last asked about this revision; None, and a question, when it was not.

        An answer is asked for anew every ASK_AGAIN_S as long as somebody wants it.
        """
        question = (peer, study_uid)
        with self._lock:
            asked, at, counts = self._answers.get(question, (-1, float("-inf"), None))
            if asked != revision or self._clock.monotonic() - at >= ASK_AGAIN_S:
                self._wanted[question] = revision
            return counts if asked == revision else None

    def step(self) -> bool:
        """Ask one question that waits; return whether there was one."""
        with self._lock:
            if not self._wanted:
                return False
            question = next(iter(self._wanted))
            revision = self._wanted.pop(question)
        counts: Mapping[str, int] | None = None
        try:
            counts = self._ask(*question)
        except (QueryError, UnreachableError) as error:
            self._log.warning("peer.not_answering", peer=question[0], reason=str(error))
        with self._lock:
            self._answers[question] = (revision, self._clock.monotonic(), counts)
        return True

    def forget_all_but(self, studies: frozenset[str]) -> None:
        """Drop answers about studies that nobody waits for."""
        with self._lock:
            self._answers = {one: answer for one, answer in self._answers.items() if one[1] in studies}


class Gathering:
    """Makes of rows what completeness reads. Used by one thread."""

    def __init__(
        self,
        studies: Studies,
        *,
        pause_s: Callable[[], Mapping[str, float]],
        expectations: Expectations | None,
        clock: Clock,
    ) -> None:
        """`pause_s` gives the pauses that an administrator named, by AE title of the sender, as the rules have them."""
        self._studies = studies
        self._pause_s = pause_s
        self._expectations = expectations
        self._clock = clock
        self._timeline = Timeline(clock)
        self._habits: dict[str, tuple[float, routing.Habit]] = {}
        self._stacks: dict[tuple[str, str], tuple[int, routing.Stack]] = {}
        """(study, series) -> revision and what its slices say."""

    def now(self) -> datetime:
        """Return the present time on the clock of all evidence."""
        return self._timeline.now()

    def evidence(self, study: StudyEvidence) -> routing.StudyEvidence:
        """Return what is known of a study now."""
        uid = study.study_instance_uid
        titles = {one.calling_ae for one in study.series} | {one.calling_ae for one in study.associations}
        return routing.StudyEvidence(
            study_instance_uid=uid,
            series=tuple(self._series(study, one) for one in study.series),
            associations=tuple(
                routing.AssociationEvidence(
                    id=one.id,
                    calling_ae=one.calling_ae,
                    is_open=True,
                    study_instance_uid=one.present_study_uid,
                    series_instance_uid=one.present_series_uid,
                    last_activity_at=self._timeline.when((one.id, ""), one.last_activity_at),
                )
                for one in study.associations
            ),
            was_decided=study.was_decided,
            habits={title: self._habit(title) for title in titles},
            pause_s=self._pause_s(),
        )

    def with_expected(self, evidence: routing.StudyEvidence, revision: int, peer: str) -> routing.StudyEvidence:
        """Return the same evidence with what a peer holds, once the study is calm and the peer has answered."""
        last = max(one.last_received_at for one in evidence.series)
        if self._expectations is None or self.now() - last < timedelta(seconds=CALM_S):
            return evidence
        held = self._expectations.held(peer, evidence.study_instance_uid, revision)
        return replace(evidence, expected=held)

    def forget_all_but(self, studies: tuple[StudyEvidence, ...]) -> None:
        """Drop what was gathered of studies that are not open any more."""
        uids = frozenset(one.study_instance_uid for one in studies)
        self._timeline.forget_all_but(uids, frozenset(one.id for study in studies for one in study.associations))
        self._stacks = {key: stack for key, stack in self._stacks.items() if key[0] in uids}
        if self._expectations is not None:
            self._expectations.forget_all_but(uids)

    def _series(self, study: StudyEvidence, series: SeriesEvidence) -> routing.SeriesEvidence:
        """Return the evidence of one series.

        A sender that came again, brought nothing new and released, had lost its association over images that were
        here already: that release counts.
        """
        uid = study.study_instance_uid
        last = self._timeline.when((uid, series.series_instance_uid), series.last_received_at)
        came_again = (
            series.end in ("aborted", "orphaned")
            and study.last_released_at is not None
            and study.last_released_at > series.last_received_at
        )
        return routing.SeriesEvidence(
            series_instance_uid=series.series_instance_uid,
            last_received_at=last,
            n_instances=series.n_images,
            calling_ae=series.calling_ae,
            n_runs=series.n_runs,
            longest_pause_s=series.longest_pause_s,
            end="released" if came_again else series.end,
            is_decided=series.is_decided,
            was_decided=series.was_decided,
            is_forced=series.is_forced,
            stack=self._stack(uid, series, last),
        )

    def _stack(self, study_uid: str, series: SeriesEvidence, last: datetime) -> routing.Stack | None:
        key = (study_uid, series.series_instance_uid)
        revision, stack = self._stacks.get(key, (-1, None))
        if revision == series.revision:
            return stack
        is_calm = series.end != "open" or self.now() - last >= timedelta(seconds=CALM_S)
        if series.is_decided or not series.n_images or not is_calm:
            return None
        layout = self._studies.layout(*key)
        stack = routing.stack_of(layout.planes, layout.n_images, layout.header)
        self._stacks[key] = (series.revision, stack)
        return stack

    def _habit(self, calling_ae: str) -> routing.Habit:
        at, habit = self._habits.get(calling_ae, (float("-inf"), routing.Habit()))
        if self._clock.monotonic() - at >= HABIT_S:
            past = self._studies.arrivals(calling_ae, LATEST)
            habit = routing.habit_of(
                [
                    routing.PastSeries(n_runs=one.n_runs, longest_pause_s=one.longest_pause_s, end=one.end)
                    for one in past
                ]
            )
            self._habits[calling_ae] = (self._clock.monotonic(), habit)
        return habit
