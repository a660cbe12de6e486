"""`route replay`: what a draft of the rules would have done with the studies of the last days.

The old side is what the records say was decided, the new side what the draft decides about the same headers, as of the
day on which they came; headers and decisions outlive their images. Nothing is written and nothing is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Final

from dicom_node import routing
from dicom_node.admin.node import Parts
from dicom_node.decision import origins
from dicom_node.records import FORWARD, DecisionRow, JobRow, StudyRow

EFFECTS: Final = ("starts", "stops", "other_series", "other_plugin", "other_reason", "unchanged")
"""What a draft changes for one study and route: work that was not done, or was, on other series, by another plugin;
the same work or none for another reason; nothing."""

_NEAREST: Final = ("matched", "not_matched", "too_old", "disabled", "not_applicable")
"""Of several series the outcome that stands for the route: the one that came nearest to work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """What one set of rules says of one study and route."""

    outcome: str | None = None
    """None: the route is not in these rules, or was not asked."""
    series: tuple[str, ...] = ()
    """Taken, sorted; "" stands for the study as a whole."""
    plugin: str | None = None
    reason: str | None = None


def replay(node: Parts, days: float, *, tell: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Return what the rules of `node` change for the studies that came within the last `days`.

    Keys: days, since, rules (digest), studies, undecided (studies that no rule has judged yet: left out), changes (one
    entry a study and route whose effect is not "unchanged"), totals (one entry a route, with the count of each effect).
    `tell` hears of progress.
    """
    from dicom_node.config import config_digest

    since = node.clock.now() - timedelta(days=days)
    requirements = {plugin.id: plugin.manifest.input_series[0] for plugin in node.registry}
    titles = origins(node.config)
    changes: list[dict[str, Any]] = []
    totals: dict[str, dict[str, int]] = {route.name: dict.fromkeys(EFFECTS, 0) for route in node.config.route}
    undecided = 0
    history = node.studies.history(since)
    for number, study in enumerate(history, 1):
        if number % 500 == 0:
            tell(f"{number} of {len(history)} studies")
        uid = study.study_instance_uid
        before = _decided(node.decisions.list(uid), node.jobs.list(study_uid=uid))
        if not before and study.state in ("receiving", "held"):
            undecided += 1
            continue
        view = node.studies.view(uid)
        # As of the day on which it came: today every study of last week is older than it was.
        answers = routing.apply_routes(view, node.config.route, requirements, study.last_received, origins=titles)
        after = _drafted(answers)
        for route in dict.fromkeys((*before, *after)):
            old, new = before.get(route, _Side()), after.get(route, _Side())
            effect = _effect(old, new)
            totals.setdefault(route, dict.fromkeys(EFFECTS, 0))[effect] += 1
            if effect != "unchanged":
                changes.append(_entry(study, route, effect, old, new))
    return {
        "days": days,
        "since": since,
        "rules": config_digest(node.config),
        "studies": len(history) - undecided,
        "undecided": undecided,
        "changes": changes,
        "totals": [{"route": route, **counts} for route, counts in totals.items()],
    }


def _entry(study: StudyRow, route: str, effect: str, old: _Side, new: _Side) -> dict[str, Any]:
    sides = {f"old_{key}": value for key, value in asdict(old).items()}
    sides |= {f"new_{key}": value for key, value in asdict(new).items()}
    return {
        "study_instance_uid": study.study_instance_uid,
        "last_received": study.last_received,
        "route": route,
        "effect": effect,
        **sides,
    }


def _decided(rows: Iterable[DecisionRow], jobs: Iterable[JobRow]) -> dict[str, _Side]:
    """Return what was decided last by each route, by route."""
    by_id = {job.id: job for job in jobs}
    latest: dict[str, dict[str | None, DecisionRow]] = {}
    for row in rows:
        if row.route:
            latest.setdefault(row.route, {})[row.series_instance_uid] = row
    sides = {}
    for route, found in latest.items():
        taken = {}
        for uid, row in found.items():
            if row.outcome == routing.Outcome.MATCHED:
                job = by_id.get(row.job_id) if row.job_id is not None else None
                taken[uid or (job.series_instance_uid if job else None) or ""] = job.plugin if job else None
        nearest = min(found.values(), key=lambda row: _NEAREST.index(row.outcome))
        plugin = next(iter(taken.values()), None)
        sides[route] = _Side(outcome=nearest.outcome, series=tuple(sorted(taken)), plugin=plugin, reason=nearest.reason)
    return sides


def _drafted(answers: Iterable[routing.RouteDecision]) -> dict[str, _Side]:
    by_route: dict[str, list[routing.RouteDecision]] = {}
    for answer in answers:
        by_route.setdefault(answer.route, []).append(answer)
    sides = {}
    for route, found in by_route.items():
        taken = [one for one in found if one.outcome is routing.Outcome.MATCHED]
        nearest = min(found, key=lambda one: _NEAREST.index(one.outcome))
        plugin = (taken[0].plugin or FORWARD) if taken else None
        sides[route] = _Side(
            outcome=nearest.outcome.value,
            series=tuple(sorted(one.series_instance_uid or "" for one in taken)),
            plugin=plugin,
            reason=routing.reason(nearest),
        )
    return sides


def _effect(old: _Side, new: _Side) -> str:
    if bool(old.series) != bool(new.series):
        return "starts" if new.series else "stops"
    if old.series != new.series:
        return "other_series"
    if old.plugin != new.plugin:
        return "other_plugin"
    # A route that only one side has, and that takes nothing there, is no news.
    return "unchanged" if None in (old.outcome, new.outcome) or old.outcome == new.outcome else "other_reason"
