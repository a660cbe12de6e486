"""Second chapter of `pipeline`: a series or study is complete, every route says yes or why not; a yes becomes a job.

What is complete, `routing.assess` says; this brings it the evidence and writes down the answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from dicom_node import routing
from dicom_node.clock import Clock
from dicom_node.config import Config, config_digest
from dicom_node.config.schema import Complete, Route
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.records import Decisions, NewDecision, NewJob, Studies, StudyEvidence
from dicom_node.study import JobInput

RESULT_ROLES: Final = ("seg.series", "seg.instance", "sr.series", "sr.instance")
"""What UIDs are allocated for with every job; report.ResultIdentity derives the same."""
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
        config: Config,
        registry: PluginRegistry,
        clock: Clock,
        log: Log,
    ) -> None:
        self._studies = studies
        self._decisions = decisions
        self._config = config
        self._config_digest = config_digest(config)
        self._kinds = {one.name: tuple(one.profile.results) for one in config.destination}
        self._plugins = {plugin.id: plugin for plugin in registry}
        self._judged: frozenset[tuple[str, str, str, int]] = frozenset()
        """(route, study, series, revision) that spoke while a slower route has not yet; lost with the process, which
        only makes them speak again."""
        self._since = clock.now()
        self._clock = clock
        self._log = log

    def step(self) -> bool:
        """Ask about every study that has undecided content; return whether something was decided."""
        decided = [self._ask(evidence) for evidence in self._studies.open_studies()]
        return any(decided)

    def _ask(self, study: StudyEvidence) -> bool:
        arrival = _arrival(study, self._since)
        by_series = [route for route in self._config.route if route.start == "series"]
        asked = [self._ask_about_series(study, arrival, route, by_series) for route in by_series]
        whole = [route for route in self._config.route if route.start == "study"]
        quiet = [route.complete for route in whole or by_series] or [Complete()]
        if all(self._is_complete(arrival, one, None) for one in quiet):
            return self._decide_study(study, whole)
        return any(asked)

    def _is_complete(self, arrival: routing.StudyEvidence, complete: Complete, series_uid: str | None) -> bool:
        verdict = routing.assess(arrival, self._clock.now(), complete, series_instance_uid=series_uid)
        return isinstance(verdict, routing.IsComplete)

    def _ask_about_series(
        self, study: StudyEvidence, arrival: routing.StudyEvidence, route: Route, routes: Sequence[Route]
    ) -> bool:
        """Ask one route about the series that are complete by its own measure: no slower route holds it up.

        All complete series are compared; what is written is about those that it has not judged as they stand now. A
        series is decided when the last of `routes` has judged it.
        """
        complete = [one for one in study.series if self._is_complete(arrival, route.complete, one.series_instance_uid)]
        key = (route.name, study.study_instance_uid)
        new = [
            one
            for one in complete
            if not one.is_decided and (*key, one.series_instance_uid, one.revision) not in self._judged
        ]
        if not new:
            return False
        answers = self._apply(study.study_instance_uid, [route], {one.series_instance_uid for one in complete})
        for series in new:
            mine = [answer for answer in answers if answer.series_instance_uid == series.series_instance_uid]
            judged = {
                (other.name, study.study_instance_uid, series.series_instance_uid, series.revision) for other in routes
            }
            mark = (*key, series.series_instance_uid, series.revision)
            is_last = judged <= self._judged | {mark}
            if self._write(
                study.study_instance_uid, series.series_instance_uid, series.revision, mine, is_final=is_last
            ):
                self._judged = self._judged - judged if is_last else self._judged | {mark}
        return True

    def _decide_study(self, study: StudyEvidence, routes: Sequence[Route]) -> bool:
        answers = self._apply(study.study_instance_uid, routes, None) if routes else ()
        spoken = [] if self._config.route else [NO_ROUTE]
        return self._write(study.study_instance_uid, None, study.revision, answers, spoken)

    def _apply(
        self, study_uid: str, routes: Sequence[Route], complete: set[str] | None
    ) -> tuple[routing.RouteDecision, ...]:
        requirements = {name: plugin.manifest.input_series[0] for name, plugin in self._plugins.items()}
        view = self._studies.view(study_uid)
        return routing.apply_routes(view, routes, requirements, self._clock.now(), complete)

    def _write(
        self,
        study_uid: str,
        series_uid: str | None,
        revision: int,
        answers: Sequence[routing.RouteDecision],
        spoken: Sequence[NewDecision] = (),
        *,
        is_final: bool = True,
    ) -> bool:
        """Write decisions and jobs in one transaction; nothing when more has come since, then it is asked again."""
        decided = self._decisions.decide(
            study_uid,
            series_uid,
            revision,
            [
                *spoken,
                *(
                    NewDecision(
                        route=answer.route,
                        outcome=answer.outcome.value,
                        reason=routing.reason(answer),
                        job=self._job(answer) if answer.outcome is routing.Outcome.MATCHED else None,
                    )
                    for answer in answers
                ),
            ],
            config_digest=self._config_digest,
            is_final=is_final,
        )
        for job_id, is_new in decided.jobs:
            self._log.info("job.queued" if is_new else "job.exists", job_id=job_id, study_instance_uid=study_uid)
        return decided.is_current

    def _job(self, answer: routing.RouteDecision) -> NewJob:
        plugin = self._plugins[answer.plugin]
        route = next(route for route in self._config.route if route.name == answer.route)
        assert answer.series_instance_uid is not None
        stored = self._studies.series_images(answer.study_instance_uid, answer.series_instance_uid)
        wanted = set(answer.images)
        images = tuple(image for image in stored if (image.sop_instance_uid, image.digest) in wanted)
        role = plugin.manifest.input_series[0].role
        return NewJob(
            route=route.name,
            plugin=plugin.id,
            plugin_version=plugin.manifest.plugin.version,
            input=JobInput(study_instance_uid=answer.study_instance_uid, roles={role: images}),
            input_digest=input_digest(answer.images),
            series_instance_uid=answer.series_instance_uid,
            parameters={"model_sha256": plugin.model_sha256, "spec_sha256": plugin.manifest.spec_sha256()},
            destinations={name: self._kinds[name] for name in route.destinations},
            priority=route.priority,
            result_roles=RESULT_ROLES,
            max_attempts=self._config.worker.max_attempts,
        )


def input_digest(images: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 of the (SOP Instance UID, digest) pairs of the selected images, in any order."""
    return hashlib.sha256(json.dumps(sorted(images)).encode()).hexdigest()


def _arrival(study: StudyEvidence, since: datetime) -> routing.StudyEvidence:
    """Return the rows of a study as completeness reads them.

    Quiet times begin no earlier than `since`: after a restart nobody knows what was under way, so all count afresh.
    The association of a dead receiver is open until the next receiver has indexed what it filed (`indexing`),
    or until it has been idle too long: before, files without rows may belong to the study.
    """
    return routing.StudyEvidence(
        study_instance_uid=study.study_instance_uid,
        series=tuple(
            routing.SeriesEvidence(
                series_instance_uid=series.series_instance_uid,
                last_received_at=max(series.last_received_at, since),
                n_instances=series.n_images,
            )
            for series in study.series
        ),
        associations=tuple(
            routing.AssociationEvidence(
                id=association.id,
                calling_ae=association.calling_ae,
                is_open=True,
                study_instance_uid=association.present_study_uid,
                series_instance_uid=association.present_series_uid,
                last_activity_at=association.last_activity_at,
            )
            for association in study.associations
        ),
    )
