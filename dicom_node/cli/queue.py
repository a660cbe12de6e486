"""Commands about what the node did and has to do: studies, jobs, deliveries, and why a rule fired or not."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_node.app import open_node
from dicom_node.cli.output import ConfigOption, JsonOption, say, show, show_json

studies = typer.Typer(help="Studies that were received.", no_args_is_help=True, rich_markup_mode=None)
jobs = typer.Typer(help="Jobs: one plugin on one input.", no_args_is_help=True, rich_markup_mode=None)
deliveries = typer.Typer(help="Results on their way to destinations.", no_args_is_help=True, rich_markup_mode=None)
route = typer.Typer(help="Rules.", no_args_is_help=True, rich_markup_mode=None)

STUDY_COLUMNS = ("study_instance_uid", "state", "n_series", "n_instances", "last_received", "decisions", "jobs")
JOB_COLUMNS = ("id", "plugin", "study_instance_uid", "state", "priority", "attempts", "generation", "reason")
DELIVERY_COLUMNS = ("id", "job_id", "kind", "destination", "state", "attempts", "status", "reason")
DECISION_COLUMNS = ("route", "series_instance_uid", "outcome", "reason", "complete_because", "job_id")

StudyUid = Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="Number of the job.")]


def register(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.add_typer(studies, name="studies")
    cli.add_typer(jobs, name="jobs")
    cli.add_typer(deliveries, name="deliveries")
    cli.add_typer(route, name="route")


@studies.command("list")
def list_studies(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List studies, latest first."""
    show(open_node(config).admin.studies(), STUDY_COLUMNS, as_json=as_json)


@studies.command("show")
def show_study(study_uid: StudyUid, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one study: its decisions, each with its reason, and its jobs."""
    entry = open_node(config).admin.study(study_uid)
    if as_json:
        show_json(entry)
        return
    show([entry], STUDY_COLUMNS[:5], as_json=False)
    show(entry["decisions"], DECISION_COLUMNS, as_json=False, title="decisions")
    show(entry["jobs"], JOB_COLUMNS, as_json=False, title="jobs")


@studies.command("complete")
def complete_study(study_uid: StudyUid, config: ConfigOption = None) -> None:
    """Wait for nothing more: the study and its series count as complete as they stand now."""
    open_node(config).admin.complete(study_uid)
    say(f"study {study_uid} counts as complete; what comes later opens it again")


@studies.command("reprocess")
def reprocess_study(study_uid: StudyUid, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Run the study's jobs once more, under new result UIDs; the older results are superseded."""
    made = open_node(config).admin.reprocess(study_uid)
    if as_json:
        show_json({"jobs": made})
        return
    say(f"queued again as {', '.join(f'job {number}' for number in made)}")


@jobs.command("list")
def list_jobs(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List jobs, latest first."""
    show(open_node(config).admin.jobs(), JOB_COLUMNS, as_json=as_json)


@jobs.command("show")
def show_job(job_id: JobId, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one job: its events, attempts, results and deliveries."""
    entry = open_node(config).admin.job(job_id)
    if as_json:
        show_json(entry)
        return
    show([entry], (*JOB_COLUMNS, "engine"), as_json=False)
    show(entry["events"], ("at", "event", "from_state", "to_state", "reason"), as_json=False, title="events")
    show(
        entry["attempts_made"],
        ("started_at", "ended_at", "worker", "outcome", "reason"),
        as_json=False,
        title="attempts",
    )
    show(entry["results"], ("kind", "sop_instance_uid", "path"), as_json=False, title="results")
    show(entry["deliveries"], DELIVERY_COLUMNS, as_json=False, title="deliveries")


@jobs.command("retry")
def retry_job(job_id: JobId, config: ConfigOption = None) -> None:
    """Queue a job again that failed, was refused, withheld, held or cancelled; its attempts count afresh."""
    open_node(config).admin.retry_job(job_id)
    say(f"job {job_id} is queued")


@jobs.command("cancel")
def cancel_job(job_id: JobId, config: ConfigOption = None) -> None:
    """End a job that is not finished; a running one is stopped."""
    open_node(config).admin.cancel_job(job_id)
    say(f"job {job_id} is cancelled")


@deliveries.command("list")
def list_deliveries(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List deliveries with each destination's last answer."""
    show(open_node(config).admin.deliveries(), DELIVERY_COLUMNS, as_json=as_json)


@route.command("explain")
def explain_route(
    study: Annotated[str, typer.Argument(metavar="PATH|STUDY_UID", help="A file, a folder, or a stored study.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each rule and each condition for a study: matched, or why not; `--config DRAFT` tries other rules."""
    explained = open_node(config).admin.explain(study)
    if as_json:
        show_json(explained)
        return
    for rule in explained:
        say("\n".join(rule["lines"]))
