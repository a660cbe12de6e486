"""Which plugin gets which series, and why the others do not: routes applied to a study.

Pure: headers and rules in, decisions out. A route says what the administrator wants, `input_series` of its plugin what
the plugin can read; both must hold. `explain` turns decisions into sentences; `pipeline` stores them and makes jobs.

Series or study. A route with ``start = "series"`` decides about each series as soon as that is complete; every series
that meets all conditions gets a job of its own, unless `prefer` is given: then the complete candidates are compared and
one wins. A better candidate that completes later wins later, and is processed too. A route with ``start = "study"``
decides once, when the study is complete, and takes one series.

A route without plugin forwards: each matching series as soon as it is complete, or all matching series of the complete
study, images or not; never to a destination what that destination has sent itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from dicom_node.config.schema import Condition, Match, Route, SeriesMatch
from dicom_node.plugin_api import InputSeries
from dicom_node.routing.attributes import text_of
from dicom_node.routing.conditions import ConditionVerdict, judge
from dicom_node.study import ReceivedVersion, SeriesView, StudyView


class Outcome(StrEnum):
    """What a route decided about a series or a study."""

    MATCHED = "matched"  # a job is wanted, or something is forwarded
    NOT_MATCHED = "not_matched"  # a condition of the route fails, or another series is preferred
    NOT_APPLICABLE = "not_applicable"  # the plugin cannot read it, is not installed, there are no images; or all of it
    # came from the very destinations that it would be forwarded to
    TOO_OLD = "too_old"  # older than max_study_age_days
    DISABLED = "disabled"  # enabled = false


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesVerdict:
    """How one series stands to one route."""

    series_instance_uid: str
    outcome: Outcome
    """MATCHED: a candidate; whether it is the one that is taken, the decision says."""
    has_images: bool
    """False for reports, segmentations and what we made ourselves: they never trigger a plugin."""
    route_verdicts: tuple[ConditionVerdict, ...]
    """Of the conditions of [route.series]."""
    plugin_verdicts: tuple[ConditionVerdict, ...]
    """Of the plugin's own requirements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What one destination gets of what was received."""

    destination: str
    instances: tuple[tuple[str, str], ...]
    """(SOP Instance UID, digest), sorted."""
    n_kept: int = 0
    """Instances that are not forwarded because this very destination sent them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDecision:
    """What one route decided, with everything that a reason needs."""

    route: str
    plugin: str | None
    """None: the route forwards."""
    study_instance_uid: str
    series_instance_uid: str | None
    """The series that was decided about; of a study-wide decision the one that was taken, None without one."""
    outcome: Outcome
    study_verdicts: tuple[ConditionVerdict, ...]
    """Age and the conditions of [route.study]."""
    series: tuple[SeriesVerdict, ...]
    """The series that was decided about, or every series of a study-wide decision."""
    preferred: str | None = None
    """The series that was taken instead of this one."""
    plugin_installed: bool = True
    images: tuple[tuple[str, str], ...] = ()
    """(SOP Instance UID, digest) of what the job reads; empty unless matched."""
    forwards: tuple[Forward, ...] = ()
    """By destination, of a route without plugin; empty unless its conditions hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesChoice:
    """The series that was chosen among those of a study, and how each stands."""

    chosen: SeriesView | None
    candidates: tuple[SeriesView, ...]
    verdicts: tuple[SeriesVerdict, ...]


def apply_routes(
    study: StudyView,
    routes: Sequence[Route],
    requirements: Mapping[str, InputSeries],
    now: datetime,
    complete_series: Collection[str] | None = None,
    origins: Mapping[str, str] = MappingProxyType({}),
) -> tuple[RouteDecision, ...]:
    """Return what each route decides, in the order of the routes and series.

    Parameters
    ----------
    requirements
        What each installed plugin can read, by plugin id.
    now
        Aware; its date, in its zone, is compared with Study Date.
    complete_series
        Series Instance UIDs that are complete while the study is not: then only routes with ``start = "series"``
        decide, and only about these. None: the study is complete and every route decides.
    origins
        AE title of the peer behind each destination: what it sent us is not forwarded to it.
    """
    decisions: list[RouteDecision] = []
    for route in routes:
        if route.start == "series":
            ready = [
                series
                for series in study.series
                if complete_series is None or series.series_instance_uid in complete_series
            ]
            if route.plugin is None:
                decisions += _forward_each(study, route, now, ready, origins)
                continue
            decisions += _decide_each(study, route, _requirement(route, requirements), now, ready)
        elif complete_series is None and route.plugin is None:
            decisions.append(_forward_study(study, route, now, origins))
        elif complete_series is None:
            decisions.append(_decide_study(study, route, _requirement(route, requirements), now))
    return tuple(decisions)


def choose_series(
    series: Sequence[SeriesView], match: SeriesMatch, requirement: InputSeries | None, prefer: Sequence[str]
) -> SeriesChoice:
    """Return the series that meets all conditions and comes first by `prefer`, and the verdict on each.

    Ties, and candidates without `prefer`, go by Series Number, then Series Instance UID, so that the choice never
    depends on the order of arrival.
    """
    verdicts = tuple(judge_series(one, match, requirement) for one in series)
    candidates = [one for one, verdict in zip(series, verdicts, strict=True) if verdict.outcome is Outcome.MATCHED]
    candidates.sort(key=lambda one: (*(_RANKS[name](one) for name in prefer), *_arrival_free_order(one)))
    return SeriesChoice(chosen=candidates[0] if candidates else None, candidates=tuple(candidates), verdicts=verdicts)


def judge_series(series: SeriesView, match: Match, requirement: InputSeries | None) -> SeriesVerdict:
    """Return how one series stands to the conditions of a route and to its plugin's requirements.

    `requirement` None: no plugin; any series that holds something may be forwarded.
    """
    route_verdicts = _judge_all(match.match, [series])
    if requirement is None:
        return SeriesVerdict(
            series_instance_uid=series.series_instance_uid,
            outcome=Outcome.MATCHED if _all_pass(route_verdicts) else Outcome.NOT_MATCHED,
            has_images=True,
            route_verdicts=route_verdicts,
            plugin_verdicts=(),
        )
    slices = n_slices(series)
    plugin_verdicts = (
        *_judge_all(requirement.match, [series]),
        ConditionVerdict(
            text=f"the series has at least {requirement.min_slices} slices",
            passed=slices >= requirement.min_slices,
            found=str(slices),
        ),
    )
    if not series.n_images:
        outcome = Outcome.NOT_APPLICABLE
    elif not _all_pass(route_verdicts):
        outcome = Outcome.NOT_MATCHED
    else:
        outcome = Outcome.MATCHED if _all_pass(plugin_verdicts) else Outcome.NOT_APPLICABLE
    return SeriesVerdict(
        series_instance_uid=series.series_instance_uid,
        outcome=outcome,
        has_images=series.n_images > 0,
        route_verdicts=route_verdicts,
        plugin_verdicts=plugin_verdicts,
    )


def n_slices(series: SeriesView) -> int:
    """Return the number of frames, an enhanced instance counting as many as its Number of Frames."""
    frames = text_of("NumberOfFrames", series.header) or "1"
    return series.n_images * (int(frames) if frames.isdecimal() else 1)


def _decide_each(
    study: StudyView, route: Route, requirement: InputSeries | None, now: datetime, series: Sequence[SeriesView]
) -> list[RouteDecision]:
    common = _decision_about_study(study, route, requirement, now)
    if requirement is None or common.outcome is not Outcome.MATCHED:
        return [replace(common, series_instance_uid=one.series_instance_uid) for one in series]
    prefer = _prefer(route, requirement)
    choice = choose_series(series, route.series, requirement, prefer)
    winner = choice.chosen if prefer else None
    return _of_each(common, series, choice, winner, lambda decision, one: replace(decision, images=one.image_digests))


def _of_each(
    common: RouteDecision,
    series: Sequence[SeriesView],
    choice: SeriesChoice,
    winner: SeriesView | None,
    take: Callable[[RouteDecision, SeriesView], RouteDecision],
) -> list[RouteDecision]:
    """Return a decision for each series; `take` completes those that match, or the `winner` of them if there is one."""
    decisions = []
    for one, verdict in zip(series, choice.verdicts, strict=True):
        decision = replace(
            common, series_instance_uid=one.series_instance_uid, series=(verdict,), outcome=verdict.outcome
        )
        if verdict.outcome is Outcome.MATCHED and winner is not None and one is not winner:
            decision = replace(decision, outcome=Outcome.NOT_MATCHED, preferred=winner.series_instance_uid)
        elif verdict.outcome is Outcome.MATCHED:
            decision = take(decision, one)
        decisions.append(decision)
    return decisions


def _decide_study(study: StudyView, route: Route, requirement: InputSeries | None, now: datetime) -> RouteDecision:
    common = _decision_about_study(study, route, requirement, now)
    if requirement is None or common.outcome is not Outcome.MATCHED:
        return common
    choice = choose_series(study.series, route.series, requirement, _prefer(route, requirement))
    if choice.chosen is None:
        outcomes = {verdict.outcome for verdict in choice.verdicts}
        unmet = Outcome.NOT_MATCHED if Outcome.NOT_MATCHED in outcomes else Outcome.NOT_APPLICABLE
        return replace(common, outcome=unmet, series=choice.verdicts)
    return replace(
        common,
        series_instance_uid=choice.chosen.series_instance_uid,
        series=choice.verdicts,
        images=choice.chosen.image_digests,
    )


def _forward_each(
    study: StudyView, route: Route, now: datetime, series: Sequence[SeriesView], origins: Mapping[str, str]
) -> list[RouteDecision]:
    common = _decision_about_study(study, route, None, now)
    if common.outcome is not Outcome.MATCHED:
        return [replace(common, series_instance_uid=one.series_instance_uid) for one in series]
    choice = choose_series(series, route.series, None, route.series.prefer)
    winner = choice.chosen if route.series.prefer else None
    return _of_each(
        common, series, choice, winner, lambda decision, one: _with_forwards(decision, route, one.received, origins)
    )


def _forward_study(study: StudyView, route: Route, now: datetime, origins: Mapping[str, str]) -> RouteDecision:
    """Return what is forwarded of a complete study: every series that matches, or the preferred one."""
    common = _decision_about_study(study, route, None, now)
    if common.outcome is not Outcome.MATCHED:
        return common
    choice = choose_series(study.series, route.series, None, route.series.prefer)
    taken = choice.candidates[:1] if route.series.prefer else choice.candidates
    decision = replace(common, series=choice.verdicts)
    if not taken:
        return replace(decision, outcome=Outcome.NOT_MATCHED)
    return _with_forwards(decision, route, [version for one in taken for version in one.received], origins)


def _with_forwards(
    decision: RouteDecision, route: Route, received: Sequence[ReceivedVersion], origins: Mapping[str, str]
) -> RouteDecision:
    """Return the decision with what each destination gets; not applicable when all of it came from there."""
    forwards = []
    for name in route.destinations:
        given = [one for one in received if one.calling_ae.strip() != origins.get(name)]
        instances = tuple(sorted((one.sop_instance_uid, one.digest) for one in given))
        forwards.append(Forward(destination=name, instances=instances, n_kept=len(received) - len(given)))
    something = any(forward.instances for forward in forwards)
    outcome = Outcome.MATCHED if something else Outcome.NOT_APPLICABLE
    return replace(decision, outcome=outcome, forwards=tuple(forwards))


def _requirement(route: Route, requirements: Mapping[str, InputSeries]) -> InputSeries | None:
    return None if route.plugin is None else requirements.get(route.plugin)


def _decision_about_study(
    study: StudyView, route: Route, requirement: InputSeries | None, now: datetime
) -> RouteDecision:
    """Return the decision as far as the study alone makes it: MATCHED when its series may speak."""
    age = _age_verdict(study, route, now)
    conditions = _judge_all(route.study.match, study.series)
    outcome = Outcome.MATCHED
    if not route.enabled:
        outcome = Outcome.DISABLED
    elif not _all_pass(age):
        outcome = Outcome.TOO_OLD
    elif not _all_pass(conditions):
        outcome = Outcome.NOT_MATCHED
    elif requirement is None and route.plugin is not None:
        outcome = Outcome.NOT_APPLICABLE
    return RouteDecision(
        route=route.name,
        plugin=route.plugin,
        study_instance_uid=study.study_instance_uid,
        series_instance_uid=None,
        outcome=outcome,
        study_verdicts=(*age, *conditions),
        series=(),
        plugin_installed=requirement is not None or route.plugin is None,
    )


def _prefer(route: Route, requirement: InputSeries) -> Sequence[str]:
    """Return the route's preference where it has a [route.series], otherwise the plugin's."""
    return route.series.prefer if "series" in route.model_fields_set else requirement.prefer


def _judge_all(conditions: Sequence[Condition], series: Sequence[SeriesView]) -> tuple[ConditionVerdict, ...]:
    return tuple(judge(condition, series) for condition in conditions)


def _all_pass(verdicts: Sequence[ConditionVerdict]) -> bool:
    return all(verdict.passed for verdict in verdicts)


def _age_verdict(study: StudyView, route: Route, now: datetime) -> tuple[ConditionVerdict, ...]:
    """Return the verdict on the study's age; a study without a readable date has none and passes."""
    if route.max_study_age_days is None:
        return ()
    text = f"the study is at most {route.max_study_age_days:g} days old"
    day = _study_date(study)
    if day is None:
        return (ConditionVerdict(text=text, passed=True, found="no StudyDate"),)
    days = (now.date() - day).days
    return (ConditionVerdict(text=text, passed=days <= route.max_study_age_days, found=f"{days} days"),)


def _study_date(study: StudyView) -> date | None:
    for series in study.series:
        # PS3.5 6.2, VR DA: YYYYMMDD; YYYY.MM.DD is its form before DICOM.
        digits = (text_of("StudyDate", series.header) or "").replace(".", "")
        try:
            return date.fromisoformat(digits)
        except ValueError:
            continue
    return None


def _slice_distance_mm(series: SeriesView) -> float | None:
    """Return the distance between slices: measured from positions, else as Slice Thickness claims it."""
    if series.slice_spacing_mm is not None:
        return series.slice_spacing_mm
    thickness = text_of("SliceThickness", series.header)
    try:
        return None if thickness is None else float(thickness)
    except ValueError:
        return None


def _distance_or_last(series: SeriesView, sign: int) -> float:
    distance = _slice_distance_mm(series)
    return float("inf") if distance is None else sign * distance


def _series_number(series: SeriesView) -> int:
    number = text_of("SeriesNumber", series.header) or ""
    return int(number) if number.lstrip("+-").isdecimal() else 1 << 31


def _arrival_free_order(series: SeriesView) -> tuple[int, str]:
    return _series_number(series), series.series_instance_uid


_RANKS: Final[Mapping[str, Callable[[SeriesView], float]]] = {
    "thinnest": lambda series: _distance_or_last(series, 1),
    "thickest": lambda series: _distance_or_last(series, -1),
    "most_slices": lambda series: -n_slices(series),
    "fewest_slices": n_slices,
    "first": _series_number,
    "last": lambda series: -_series_number(series),
}
"""Smaller comes first. "first" and "last" go by Series Number."""
