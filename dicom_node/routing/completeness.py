"""Is everything here? The answer from evidence, never from one timer.

Pure. DICOM has no end-of-study message. What there is instead, strongest first:

    a count     the scanner wrote how many images there are, or a PACS says how many it holds: reached, or not
    geometry    slice positions without a gap, or with one
    release     one association brought all of it and was released; an abort, or silence, says the contrary
    habit       whether this sender ever went on after a release, and how long it pauses (`habits`)
    quiet       nothing came for a while, which alone proves nothing

What speaks for the end lets a series start at once; what speaks against it makes it wait longer, up to `max_wait_s`;
where nothing speaks, the quiet time decides. Each answer names the evidence that decided, for the administrator.
`records` supplies the rows, `decision` asks again as time goes by. Times are whatever the caller counts in, as long as
it is one clock: `decision` counts on the monotonic one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

from dicom_node.config.schema import Complete
from dicom_node.routing.habits import ENOUGH, Habit
from dicom_node.routing.stack import Stack
from dicom_node.study import MOST_PAUSE_S, ArrivalEnd

IDLE_S: Final = 30.0
"""An association without network activity for this long holds nothing open; gateways keep them open all day."""
DOUBT_S: Final = 300.0
"""How long something waits that is plainly not whole, when the route has no max_wait_s: an association that broke is
tried again within minutes, and [receive] idle_timeout_s ends a silent one after as long."""
LONE_S: Final = 10.0
"""How long a first slice waits for a second one."""
_RHYTHM: Final = 2.0
"""A series that came in parts is over when it was silent this many times as long as between its parts."""


class Evidence(StrEnum):
    """What decided that something is complete, or is not."""

    FORCED = "forced"  # an administrator said so
    COUNTED = "counted"  # as many images as the scanner, or a PACS, says
    RELEASED = "released"  # whole, in one association that was released, by a sender that never goes on after that
    GONE_ON = "gone_on"  # the same, when the association turned to another series
    QUIET = "quiet"  # nothing came for the quiet time, and nothing speaks against the end
    LONGEST_WAIT = "longest_wait"  # max_wait_s is over, whatever is still open or missing
    RECENT = "recent"  # the last image is younger than the quiet time
    MOVING = "moving"  # an association moves data of it
    SHORT = "short"  # fewer images than the scanner, or a PACS, says
    GAP = "gap"  # slices are missing in between
    BROKEN = "broken"  # the association that brought the last image did not end in order
    STALLED = "stalled"  # the association is silent, of a sender that releases when it is done
    LONE = "lone"  # one slice
    LATE = "late"  # it was complete before; what comes late is collected first


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesEvidence:
    """What is known of the arrival of one series."""

    series_instance_uid: str
    last_received_at: datetime
    """Its latest new instance; a repeat that changed nothing does not count."""
    n_instances: int
    """Images, where it has any."""
    calling_ae: str = ""
    n_runs: int = 1
    """Times that an association turned to it: 1 when it came in one go."""
    longest_pause_s: float = 0.0
    """Between two of its instances."""
    end: ArrivalEnd = "unknown"
    """Of the association that brought its last instance."""
    is_decided: bool = False
    """It was complete as it stands: only its study is still waited for."""
    was_decided: bool = False
    """It was complete before."""
    is_forced: bool = False
    """An administrator says that it is complete as it stands."""
    stack: Stack | None = None
    """None: not looked at, or no image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationEvidence:
    """What is known of one association that brought data of the study and has not ended."""

    id: str
    calling_ae: str
    is_open: bool
    """No release, abort or orphaning is recorded."""
    study_instance_uid: str
    """The study that it moved most recently."""
    series_instance_uid: str
    """The series that it moved most recently."""
    last_activity_at: datetime
    """The latest bytes on the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEvidence:
    """What is known of the arrival of one study."""

    study_instance_uid: str
    series: tuple[SeriesEvidence, ...]
    """At least one."""
    associations: tuple[AssociationEvidence, ...] = ()
    was_decided: bool = False
    habits: Mapping[str, Habit] = field(default_factory=dict)
    """By AE title."""
    pause_s: Mapping[str, float] = field(default_factory=dict)
    """What an administrator says of senders' pauses, by AE title; it outweighs what was learned."""
    expected: Mapping[str, int] | None = None
    """Instances that the asked PACS holds of each series, by UID; None: nobody was asked, or nobody answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IsComplete:
    """Nothing more is expected."""

    why: str
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitUntil:
    """Something may still come."""

    at: datetime
    """When to ask again, unless the evidence changes before."""
    why: str
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """It was complete, something came since, and more of that may come."""

    at: datetime
    """When to ask again, unless the evidence changes before."""
    why: str
    evidence: Evidence


Completeness: TypeAlias = IsComplete | WaitUntil | Reopened
_Doubt: TypeAlias = tuple[Evidence, str]


def assess(
    evidence: StudyEvidence,
    now: datetime,
    complete: Complete,
    *,
    series_instance_uid: str | None = None,
    idle_s: float = IDLE_S,
) -> Completeness:
    """Return whether the study, or one series of it, is complete at `now`.

    Parameters
    ----------
    now
        Aware; of the same clock as the times of the evidence.
    complete
        Quiet time, longest wait and wait for late images, in seconds after the last instance.
    series_instance_uid
        The series to judge; None judges the study, which is complete when each of its series is and nobody moves it.
    idle_s
        Silence after which an open association is taken for one that is only kept open.

    Raises
    ------
    ValueError
        When there is no evidence of the series, or none at all.
    """
    chosen = [one for one in evidence.series if series_instance_uid in (None, one.series_instance_uid)]
    if not chosen:
        raise ValueError("nothing has arrived of this study or series")
    if series_instance_uid is not None:
        answer = _assess_series(chosen[0], evidence, now, complete, idle_s)
        was_decided = chosen[0].was_decided and not chosen[0].is_decided
    else:
        answer = _assess_study(evidence, now, complete, idle_s)
        was_decided = evidence.was_decided
    if was_decided and isinstance(answer, WaitUntil):
        return Reopened(at=answer.at, why=answer.why, evidence=answer.evidence)
    return answer


def _assess_series(
    series: SeriesEvidence, study: StudyEvidence, now: datetime, complete: Complete, idle_s: float
) -> IsComplete | WaitUntil:
    last = series.last_received_at
    decided = _whatever_is_open([series], last, now, complete)
    if decided is not None:
        return decided
    cap = _cap(last, complete)
    moving = _moving(study, series.series_instance_uid, now, _idle_s(series, study, complete, idle_s))
    quiet_until = last + timedelta(seconds=_quiet_s(series, study, complete))
    if series.was_decided and not series.is_decided:
        late_until = last + timedelta(seconds=complete.debounce_s)
        if now < late_until:
            why = f"it was complete before; what comes late is collected for {complete.debounce_s:g} s"
            return _wait([late_until], cap, why, Evidence.LATE)
    counted = _counted(series, study)
    is_done = series.end == "released" or _has_gone_on(series, study)
    if counted and (is_done or now >= last + timedelta(seconds=complete.quiet_s)):
        return IsComplete(why=counted, evidence=Evidence.COUNTED)
    if moving:
        return _wait_for(moving, cap, quiet_until, now, _idle_s(series, study, complete, idle_s))
    doubt = None if counted else _doubt(series, study)
    if doubt:
        until = cap or last + timedelta(seconds=DOUBT_S)
        if now < until:
            return WaitUntil(at=until, why=doubt[1], evidence=doubt[0])
        waited = (until - last).total_seconds()
        return IsComplete(why=f"no image for {waited:g} s, although {doubt[1]}", evidence=Evidence.LONGEST_WAIT)
    if is_done and _came_whole(series, study):
        how = "released its association" if series.end == "released" else "turned to another series"
        why = (
            f"{series.n_instances} images without a gap, then {series.calling_ae} {how}; "
            f"it brought its latest {study.habits[series.calling_ae].n_series} series in one go each"
        )
        evidence = Evidence.RELEASED if series.end == "released" else Evidence.GONE_ON
        return IsComplete(why=why, evidence=evidence)
    if now < quiet_until:
        quiet = (quiet_until - last).total_seconds()
        return _wait([quiet_until], cap, f"the last image is not {quiet:g} s old", Evidence.RECENT)
    return _is_quiet(last, quiet_until)


def _assess_study(study: StudyEvidence, now: datetime, complete: Complete, idle_s: float) -> IsComplete | WaitUntil:
    last = max(one.last_received_at for one in study.series)
    decided = _whatever_is_open(study.series, last, now, complete)
    if decided is not None:
        return decided
    cap = _cap(last, complete)
    late_until = last + timedelta(seconds=complete.debounce_s)
    if study.was_decided and now < late_until:
        why = f"it was complete before; what comes late is collected for {complete.debounce_s:g} s"
        return _wait([late_until], cap, why, Evidence.LATE)
    quiet_until = last + timedelta(seconds=max(_quiet_s(one, study, complete) for one in study.series))
    answers = [_assess_series(one, study, now, complete, idle_s) for one in study.series if not one.is_decided]
    waiting = [one for one in answers if isinstance(one, WaitUntil) and one.evidence is not Evidence.RECENT]
    if waiting:
        longest = max(waiting, key=lambda one: one.at)
        return _wait([longest.at], cap, longest.why, longest.evidence)
    moving = _moving(study, None, now, idle_s)
    if moving:
        return _wait_for(moving, cap, quiet_until, now, idle_s)
    if now < quiet_until:
        quiet = (quiet_until - last).total_seconds()
        return _wait([quiet_until], cap, f"the last image is not {quiet:g} s old", Evidence.RECENT)
    lacking = _lacking_series(study)
    if lacking:
        until = cap or last + timedelta(seconds=DOUBT_S)
        if now < until:
            return WaitUntil(at=until, why=lacking, evidence=Evidence.SHORT)
        waited = (until - last).total_seconds()
        return IsComplete(why=f"no image for {waited:g} s, although {lacking}", evidence=Evidence.LONGEST_WAIT)
    return _is_quiet(last, quiet_until)


def _whatever_is_open(
    series: tuple[SeriesEvidence, ...] | list[SeriesEvidence], last: datetime, now: datetime, complete: Complete
) -> IsComplete | None:
    """Return the answers that no other evidence holds up: an administrator's word, and the cap."""
    if all(one.is_forced for one in series):
        return IsComplete(why="an administrator said that it is complete", evidence=Evidence.FORCED)
    cap = _cap(last, complete)
    if cap is not None and now >= cap:
        why = f"no image for {complete.max_wait_s:g} s, the longest wait (max_wait_s)"
        return IsComplete(why=why, evidence=Evidence.LONGEST_WAIT)
    return None


def _cap(last: datetime, complete: Complete) -> datetime | None:
    return None if complete.max_wait_s is None else last + timedelta(seconds=complete.max_wait_s)


def _wait(times: list[datetime], cap: datetime | None, why: str, evidence: Evidence) -> WaitUntil:
    return WaitUntil(at=min([*times, *([cap] if cap else [])]), why=why, evidence=evidence)


def _wait_for(
    moving: list[AssociationEvidence],
    cap: datetime | None,
    quiet_until: datetime,
    now: datetime,
    idle_s: float,
) -> WaitUntil:
    if now < quiet_until:
        why = "the last image is only just here, and its association is open"
        return _wait([quiet_until], cap, why, Evidence.RECENT)
    silent_at = max(one.last_activity_at for one in moving) + timedelta(seconds=idle_s)
    names = ", ".join(sorted({one.calling_ae for one in moving}))
    return _wait([silent_at], cap, f"an association of {names} still moves data", Evidence.MOVING)


def _is_quiet(last: datetime, quiet_until: datetime) -> IsComplete:
    quiet = (quiet_until - last).total_seconds()
    return IsComplete(why=f"no image for {quiet:g} s, and no association moves data", evidence=Evidence.QUIET)


def _quiet_s(series: SeriesEvidence, study: StudyEvidence, complete: Complete) -> float:
    """Return how long this series may be silent between its parts: the route's, the sender's, its own rhythm."""
    if series.stack is not None and series.stack.n_positions == 1 and series.n_instances == 1:
        least = max(LONE_S, complete.quiet_s)
    else:
        least = complete.quiet_s
    told = study.pause_s.get(series.calling_ae)
    if told is not None:
        return max(least, told)
    habit = study.habits.get(series.calling_ae, Habit())
    if habit.n_series >= ENOUGH:
        return max(least, habit.quiet_s)
    is_cut = series.n_runs > 1 and not series.was_decided  # the pause before what is late is no rhythm
    own = min(MOST_PAUSE_S, _RHYTHM * series.longest_pause_s) if is_cut else 0.0
    return max(least, habit.quiet_s, own)


def _counted(series: SeriesEvidence, study: StudyEvidence) -> str:
    """Return which count is reached, in words; empty when none is known to be."""
    if study.expected is not None and study.expected.get(series.series_instance_uid) == series.n_instances:
        return f"{series.n_instances} images, as many as the asked PACS holds"
    if series.stack is not None and series.stack.is_claim_met:
        return f"{series.n_instances} images without a gap, as many as the scanner says"
    return ""


def _doubt(series: SeriesEvidence, study: StudyEvidence) -> _Doubt | None:
    """Return what says that the series is not whole; None when nothing does."""
    habit = study.habits.get(series.calling_ae, Habit())
    held = (study.expected or {}).get(series.series_instance_uid, 0)
    if held > series.n_instances:
        return Evidence.SHORT, f"the asked PACS holds {held} images, here are {series.n_instances}"
    stack = series.stack
    if stack is not None and stack.n_missing:
        return Evidence.GAP, f"{stack.n_missing} slices or more are missing between those that are here"
    if stack is not None and stack.n_short:
        return Evidence.SHORT, f"the scanner says {stack.n_claimed} images, here are {series.n_instances}"
    if series.end == "orphaned" or (series.end == "aborted" and not habit.aborts):
        return Evidence.BROKEN, "the association that brought the last image broke off"
    if series.end == "open" and habit.has_released and _stands_at(series, study):
        return Evidence.STALLED, f"{series.calling_ae} is silent and has not released its association, as it does"
    return None


def _stands_at(series: SeriesEvidence, study: StudyEvidence) -> bool:
    return any(
        one.is_open
        and one.study_instance_uid == study.study_instance_uid
        and one.series_instance_uid == series.series_instance_uid
        for one in study.associations
    )


def _has_gone_on(series: SeriesEvidence, study: StudyEvidence) -> bool:
    """Return whether the association that brought its last image is open and has turned to another series."""
    return series.end == "open" and not _stands_at(series, study)


def _came_whole(series: SeriesEvidence, study: StudyEvidence) -> bool:
    """Return whether a stack without a gap came from a sender that brings each series in one go.

    Several turns and a release at last are a sender that lost its association, or shuffles, and is done.
    """
    habit = study.habits.get(series.calling_ae, Habit())
    return (
        (series.n_runs == 1 or series.end == "released")
        and habit.is_steady
        and series.calling_ae not in study.pause_s
        and series.stack is not None
        and series.stack.is_regular
    )


def _lacking_series(study: StudyEvidence) -> str:
    here = {one.series_instance_uid for one in study.series}
    lacking = sum(uid not in here for uid in study.expected or {})
    return f"the asked PACS holds {lacking} series more" if lacking else ""


def _moving(
    study: StudyEvidence, series_instance_uid: str | None, now: datetime, idle_s: float
) -> list[AssociationEvidence]:
    """Return the associations that move data of the study or series, or did so a moment ago."""
    return [
        one
        for one in study.associations
        if one.is_open
        and one.study_instance_uid == study.study_instance_uid
        and series_instance_uid in (None, one.series_instance_uid)
        and now < one.last_activity_at + timedelta(seconds=idle_s)
    ]


def _idle_s(series: SeriesEvidence, study: StudyEvidence, complete: Complete, idle_s: float) -> float:
    """Return how long an association that stands at the series may be silent before it holds nothing open.

    A gateway that never releases, and brings each series in one go, is known by its own pauses.
    """
    habit = study.habits.get(series.calling_ae, Habit())
    if _came_whole(series, study) and not habit.releases:
        return max(complete.quiet_s, habit.idle_s)
    return max(idle_s, habit.idle_s)
