"""Second chapter of `pipeline`: a series or study is complete, every route says yes or why not; a yes becomes a job.

What is complete, `routing.assess` says; this brings it the evidence and writes down the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from dicom_node import routing
from dicom_node.clock import Clock
from dicom_node.config import Config
from dicom_node.config.live import Live, Rules
from dicom_node.config.schema import Complete, Route
from dicom_node.gathering import Expectations, Gathering
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.records import (
    FORWARD,
    FORWARDED_KIND,
    Decisions,
    NewDecision,
    NewJob,
    SeriesEvidence,
    Studies,
    StudyEvidence,
)
from dicom_node.study import JobInput

RESULT_ROLES: Final = ("seg.series", "seg.instance", "sr.series", "sr.instance")
"""What UIDs are allocated for with every job; report.ResultIdentity derives the same."""
FLAGGED: Final = "flagged"
"""Outcome of a decision: late or changed images were not read, and somebody should look."""
NO_ROUTE: Final = NewDecision(route="", outcome="not_matched", reason="Not processed: no [[route]] is configured.")


class Decision:
    """Complete series and studies become decisions, and those that a route wants become jobs.

    A route with ``start = "series"`` is asked about each series as soon as that is complete by the route's own quiet
    time; a route with ``start = "study"``, and the end of the study itself, wait for the whole study.
    """

    def __init__(
        self,
        studies: Studies,
        decisions: Decisions,
        *,
        rules: Live[Rules],
        registry: PluginRegistry,
        clock: Clock,
        log: Log,
        lets_through: Callable[[StudyEvidence], bool] = lambda _: True,
        expectations: Expectations | None = None,
    ) -> None:
        """Take the collaborators.

        Parameters
        ----------
        lets_through
            Whether a study may be decided at all; what says no has held it.
        expectations
            Asks peers what they hold; None asks nobody.
        """
        self._studies = studies
        self._lets_through = lets_through
        self._decisions = decisions
        self._live = rules
        self._rules = rules.current
        """Those of the present step: one study is judged by one set of rules."""
        self._plugins = {plugin.id: plugin for plugin in registry}
        self._judged: frozenset[tuple[str, str, str, int]] = frozenset()
        """(route, study, series, revision) that spoke while a slower route has not yet; lost with the process, which
        only makes them speak again."""
        self._reopened: set[tuple[str, str]] = set()
        """(study, series or "") that are open again and were named in the log."""
        self._gathering = Gathering(
            studies,
            pause_s=lambda: {one.ae_title: one.pause_s for one in self._rules.config.peer if one.pause_s is not None},
            expectations=expectations,
            clock=clock,
        )
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Ask about every study that has undecided content; return whether something was decided."""
        if self._rules is not self._live.current:
            self._rules = self._live.current
            self._judged = frozenset()  # every route speaks again: another rule may bear the same name
        studies = self._studies.open_studies()
        decided = [self._ask(one) for one in studies if self._lets_through(one)]
        self._gathering.forget_all_but(studies)
        return any(decided)

    def _ask(self, study: StudyEvidence) -> bool:
        arrival = self._gathering.evidence(study)
        by_series = [route for route in self._rules.config.route if route.start == "series"]
        asked = [self._ask_about_series(study, arrival, route, by_series) for route in by_series]
        whole = [route for route in self._rules.config.route if route.start == "study"]
        quiet = [route.complete for route in whole or by_series] or [Complete()]
        answers = [self._assess(study, arrival, one, None) for one in quiet]
        complete = [answer for answer in answers if isinstance(answer, routing.IsComplete)]
        if len(complete) == len(answers):
            return self._decide_study(study, whole, complete)
        return any(asked)

    def _assess(
        self, study: StudyEvidence, arrival: routing.StudyEvidence, complete: Complete, series_uid: str | None
    ) -> routing.Completeness:
        if complete.expected_from is not None:
            arrival = self._gathering.with_expected(arrival, study.revision, complete.expected_from)
        answer = routing.assess(arrival, self._gathering.now(), complete, series_instance_uid=series_uid)
        if isinstance(answer, routing.Reopened):
            self._say_reopened(study, series_uid, answer)
        return answer

    def _say_reopened(self, study: StudyEvidence, series_uid: str | None, answer: routing.Reopened) -> None:
        mark = (study.study_instance_uid, series_uid or "")
        if mark not in self._reopened:
            self._reopened.add(mark)
            self._log.info(
                "study.reopened" if series_uid is None else "series.reopened",
                study_instance_uid=study.study_instance_uid,
                series_instance_uid=series_uid or "",
                reason=answer.why,
            )

    def _ask_about_series(
        self, study: StudyEvidence, arrival: routing.StudyEvidence, route: Route, routes: Sequence[Route]
    ) -> bool:
        """Ask one route about the series that are complete by its own measure: no slower route holds it up.

        All complete series are compared; what is written is about those that it has not judged as they stand now. A
        series is decided when the last of `routes` has judged it.
        """
        answered = {
            one.series_instance_uid: self._assess(study, arrival, route.complete, one.series_instance_uid)
            for one in study.series
            if not one.is_decided
        }
        complete = {uid: answer for uid, answer in answered.items() if isinstance(answer, routing.IsComplete)}
        key = (route.name, study.study_instance_uid)
        new = [
            one
            for one in study.series
            if one.series_instance_uid in complete
            and (*key, one.series_instance_uid, one.revision) not in self._judged
            and self._is_compared(study.study_instance_uid, one)
        ]
        if not new:
            return False
        decided = {one.series_instance_uid for one in study.series if one.is_decided}
        answers = self._apply(study.study_instance_uid, [route], decided | set(complete))
        for series in new:
            mine = [answer for answer in answers if answer.series_instance_uid == series.series_instance_uid]
            judged = {
                (other.name, study.study_instance_uid, series.series_instance_uid, series.revision) for other in routes
            }
            mark = (*key, series.series_instance_uid, series.revision)
            is_last = judged <= self._judged | {mark}
            because = complete[series.series_instance_uid]
            spoken = [self._spoken(answer, because) for answer in mine]
            if self._write(
                study.study_instance_uid, series.series_instance_uid, series.revision, spoken, is_final=is_last
            ):
                self._judged = self._judged - judged if is_last else self._judged | {mark}
                self._reopened.discard((study.study_instance_uid, series.series_instance_uid))
        return True

    def _is_compared(self, study_uid: str, series: SeriesEvidence) -> bool:
        """Return whether nobody has to look whether new versions of its images hold the same pixels."""
        return not series.was_decided or not self._studies.contents.uncompared(
            study_uid, series.series_instance_uid, limit=1
        )

    def _decide_study(
        self, study: StudyEvidence, routes: Sequence[Route], complete: Sequence[routing.IsComplete]
    ) -> bool:
        if routes and not all(self._is_compared(study.study_instance_uid, one) for one in study.series):
            return False
        answers = self._apply(study.study_instance_uid, routes, None) if routes else ()
        because = {route.name: answer for route, answer in zip(routes, complete, strict=False)}
        spoken = [self._spoken(answer, because[answer.route]) for answer in answers]
        if not self._rules.config.route:
            spoken = [replace(NO_ROUTE, evidence=complete[0].evidence.value, complete_because=complete[0].why)]
        self._reopened.discard((study.study_instance_uid, ""))
        return self._write(study.study_instance_uid, None, study.revision, spoken)

    def _spoken(self, answer: routing.RouteDecision, because: routing.IsComplete) -> NewDecision:
        """Return what is written down of a route's answer, with the work that it asks for, or why none is made."""
        spoken = NewDecision(
            route=answer.route,
            outcome=answer.outcome.value,
            reason=routing.reason(answer),
            evidence=because.evidence.value,
            complete_because=because.why,
        )
        if answer.outcome is not routing.Outcome.MATCHED:
            return spoken
        if answer.plugin is None:
            jobs = self._forwards(answer)
            return replace(spoken, job=jobs[0] if jobs else None, more_jobs=tuple(jobs[1:]))
        job = self._job(answer, answer.plugin)
        why_not = self._why_no_rerun(answer, job)
        if why_not:
            return replace(spoken, outcome=FLAGGED, reason=f"Not processed again: {why_not}")
        return replace(spoken, job=job)

    def _why_no_rerun(self, answer: routing.RouteDecision, job: NewJob) -> str:
        """Return why late or changed images are flagged instead of read; empty when they may be read."""
        assert answer.series_instance_uid is not None
        earlier = self._decisions.earlier_work(answer.study_instance_uid, answer.series_instance_uid, answer.route)
        if not earlier.input_digests or job.input_digest in earlier.input_digests:
            return ""
        if earlier.n_purged:
            return (
                f"{earlier.n_purged} images that the earlier result was made of were purged; "
                "a result of the rest would not replace it"
            )
        most = self._route(answer.route).complete.max_reruns
        if len(earlier.input_digests) > most:
            return f"late images made {len(earlier.input_digests) - 1} new jobs already (max_reruns = {most})"
        return ""

    def _apply(
        self, study_uid: str, routes: Sequence[Route], complete: set[str] | None
    ) -> tuple[routing.RouteDecision, ...]:
        requirements = {name: plugin.manifest.input_series[0] for name, plugin in self._plugins.items()}
        view = self._studies.view(study_uid)
        return routing.apply_routes(
            view, routes, requirements, self._clock.now(), complete, origins(self._rules.config)
        )

    def _write(
        self,
        study_uid: str,
        series_uid: str | None,
        revision: int,
        spoken: Sequence[NewDecision],
        *,
        is_final: bool = True,
    ) -> bool:
        """Write decisions and jobs in one transaction; nothing when more has come since, then it is asked again."""
        decided = self._decisions.decide(
            study_uid, series_uid, revision, spoken, config_digest=self._rules.digest, is_final=is_final
        )
        for job_id, is_new in decided.jobs:
            self._log.info("job.queued" if is_new else "job.exists", job_id=job_id, study_instance_uid=study_uid)
        if decided.is_current and any(one.outcome == FLAGGED for one in spoken):
            self._log.warning("late.flagged", study_instance_uid=study_uid, series_instance_uid=series_uid or "")
        return decided.is_current

    def _route(self, name: str) -> Route:
        return next(route for route in self._rules.config.route if route.name == name)

    def _forwards(self, answer: routing.RouteDecision) -> list[NewJob]:
        """Return the jobs of a route without plugin: one for all destinations that get the same instances."""
        route = self._route(answer.route)
        stored = self._studies.received_files(answer.study_instance_uid)
        by_content: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for forward in answer.forwards:
            if forward.instances:
                by_content.setdefault(forward.instances, []).append(forward.destination)
        jobs = []
        for instances, names in by_content.items():
            wanted = set(instances)
            files = tuple(one for one in stored if (one.sop_instance_uid, one.digest) in wanted)
            jobs.append(
                NewJob(
                    route=route.name,
                    plugin=FORWARD,
                    plugin_version="",
                    input=JobInput(study_instance_uid=answer.study_instance_uid, roles={FORWARDED_KIND: files}),
                    input_digest=input_digest(instances),
                    series_instance_uid=answer.series_instance_uid,
                    destinations=dict.fromkeys(names, (FORWARDED_KIND,)),
                    priority=route.priority,
                )
            )
        return jobs

    def _job(self, answer: routing.RouteDecision, plugin_id: str) -> NewJob:
        plugin = self._plugins[plugin_id]
        route = self._route(answer.route)
        assert answer.series_instance_uid is not None
        stored = self._studies.series_images(answer.study_instance_uid, answer.series_instance_uid)
        wanted = set(answer.images)
        images = tuple(image for image in stored if (image.sop_instance_uid, image.digest) in wanted)
        role = plugin.manifest.input_series[0].role
        kinds = {one.name: tuple(one.profile.results) for one in self._rules.config.destination}
        return NewJob(
            route=route.name,
            plugin=plugin.id,
            plugin_version=plugin.manifest.plugin.version,
            input=JobInput(study_instance_uid=answer.study_instance_uid, roles={role: images}),
            input_digest=input_digest(
                self._studies.contents.first_of_their_kind(answer.study_instance_uid, answer.images)
            ),
            series_instance_uid=answer.series_instance_uid,
            parameters={"model_sha256": plugin.model_sha256, "spec_sha256": plugin.manifest.spec_sha256()},
            destinations={name: kinds[name] for name in route.destinations},
            priority=route.priority,
            target_s=route.target_s,
            engine=plugin.manifest.runtime.engines[0],
            result_roles=RESULT_ROLES,
            max_attempts=self._rules.config.worker.max_attempts,
        )


def origins(config: Config) -> dict[str, str]:
    """Return the AE title of the peer behind each destination: what it sent us is never forwarded to it."""
    titles = {peer.name: peer.ae_title for peer in config.peer}
    return {one.name: titles[one.peer] for one in config.destination}


def input_digest(images: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of the (SOP Instance UID, digest) pairs of the selected images, in any order."""
    return hashlib.sha256(json.dumps(sorted(images)).encode()).hexdigest()
