"""Decisions in words: one sentence for the record, a page for the administrator, plain data for programs.

Pure. Takes what `rules` decided; decides nothing. Holds no patient data, because verdicts hold none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from dicom_node.routing.conditions import ConditionVerdict
from dicom_node.routing.rules import Forward, Outcome, RouteDecision, SeriesVerdict

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"


def reason(decision: RouteDecision) -> str:
    """Return why the route decided so, as one sentence."""
    if decision.outcome is Outcome.MATCHED:
        return _why_matched(decision)
    if decision.outcome is Outcome.DISABLED:
        return f'Not processed: the route "{decision.route}" is disabled (enabled = false).'
    failed = _failed(decision.study_verdicts)
    if failed:
        return f"Not processed: {failed}."
    if decision.forwards:
        names = ", ".join(forward.destination for forward in decision.forwards)
        return f"Not forwarded: all of it came from {names} itself."
    if not decision.plugin_installed:
        return f'Not processed: the plugin "{decision.plugin}" is not installed.'
    if decision.preferred:
        return f"Not processed: the series {decision.preferred} is preferred."
    if not decision.series:
        return "Not processed: the study has no series."
    if len(decision.series) == 1:
        return f"Not processed: {why_not(decision.series[0], decision.plugin)}."
    nearest = min(decision.series, key=_distance)
    return (
        f"Not processed: none of {len(decision.series)} series meets all conditions; "
        f"nearest {nearest.series_instance_uid}: {why_not(nearest, decision.plugin)}."
    )


def lines(decisions: Iterable[RouteDecision]) -> list[str]:
    """Return a page that shows each route, each series and each condition: held, or not, and what was found."""
    page: list[str] = []
    for decision in decisions:
        scope = f"series {decision.series_instance_uid}" if decision.series_instance_uid else "study"
        page.append(f'route "{decision.route}" -> {decision.plugin or "forward"}, {scope}: {decision.outcome}')
        page.append(f"  {reason(decision)}")
        page += [_line("study ", verdict) for verdict in decision.study_verdicts]
        for series in decision.series:
            if len(decision.series) > 1 or series.series_instance_uid != decision.series_instance_uid:
                page.append(f"  series {series.series_instance_uid}: {series.outcome}")
            if not series.has_images:
                page.append("    [ ] the series has images")
            page += [_line("series", verdict) for verdict in series.route_verdicts]
            page += [_line("plugin", verdict) for verdict in series.plugin_verdicts]
    return page


def as_json(decision: RouteDecision) -> dict[str, Json]:
    """Return the decision with stable keys for `--json` and for the record."""
    return {
        "route": decision.route,
        "plugin": decision.plugin,
        "study_instance_uid": decision.study_instance_uid,
        "series_instance_uid": decision.series_instance_uid,
        "outcome": decision.outcome.value,
        "reason": reason(decision),
        "preferred": decision.preferred,
        "forwards": [
            {"destination": forward.destination, "n_instances": len(forward.instances), "n_kept": forward.n_kept}
            for forward in decision.forwards
        ],
        "study_conditions": _json(decision.study_verdicts),
        "series": [
            {
                "series_instance_uid": series.series_instance_uid,
                "outcome": series.outcome.value,
                "has_images": series.has_images,
                "series_conditions": _json(series.route_verdicts),
                "plugin_conditions": _json(series.plugin_verdicts),
            }
            for series in decision.series
        ],
    }


def _why_matched(decision: RouteDecision) -> str:
    if decision.forwards:
        return f"All conditions hold; {', and '.join(map(_forwarded, decision.forwards))}."
    others = sum(
        series.outcome is Outcome.MATCHED and series.series_instance_uid != decision.series_instance_uid
        for series in decision.series
    )
    chosen = f"; preferred to {others} other series" if others else ""
    return f"All conditions hold; {len(decision.images)} images go to {decision.plugin}{chosen}."


def _forwarded(forward: Forward) -> str:
    kept = f" ({forward.n_kept} came from there)" if forward.n_kept else ""
    return f"{len(forward.instances)} instances are forwarded to {forward.destination}{kept}"


def why_not(series: SeriesVerdict, plugin: str | None) -> str:
    """Return which conditions a series does not meet, as half a sentence."""
    if not series.has_images:
        return "the series has no images"
    failed = _failed(series.route_verdicts)
    if failed:
        return failed
    return f"{plugin} cannot read it: {_failed(series.plugin_verdicts)}"


def _failed(verdicts: Iterable[ConditionVerdict]) -> str:
    """Return the conditions that fail, with what was found; empty when all hold."""
    return ", and ".join(
        f"the condition '{verdict.text}' does not hold (found: {verdict.found})"
        for verdict in verdicts
        if not verdict.passed
    )


def _distance(series: SeriesVerdict) -> tuple[int, int]:
    """Return how far a series is from being taken: what holds no images last, then by conditions that fail."""
    verdicts = (*series.route_verdicts, *series.plugin_verdicts)
    return int(not series.has_images), sum(not verdict.passed for verdict in verdicts)


def _line(scope: str, verdict: ConditionVerdict) -> str:
    return f"    [{'x' if verdict.passed else ' '}] {scope}  {verdict.text}  (found: {verdict.found})"


def _json(verdicts: Iterable[ConditionVerdict]) -> list[Json]:
    return [{"condition": verdict.text, "passed": verdict.passed, "found": verdict.found} for verdict in verdicts]
