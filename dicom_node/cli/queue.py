"""Commands about what the node did and has to do: studies, jobs, deliveries, and why a rule fired or not."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from dicom_node.app import open_draft, open_node
from dicom_node.cli.output import ConfigOption, JsonOption, say, show, show_json, working

studies = typer.Typer(help="Studies that were received.", no_args_is_help=True, rich_markup_mode=None)
jobs = typer.Typer(help="Jobs: one plugin on one input.", no_args_is_help=True, rich_markup_mode=None)
deliveries = typer.Typer(help="Results on their way to destinations.", no_args_is_help=True, rich_markup_mode=None)
route = typer.Typer(help="Rules.", no_args_is_help=True, rich_markup_mode=None)

STUDY_COLUMNS = (
    *("study_instance_uid", "state", "n_series", "n_instances", "last_received", "decisions", "jobs", "reason"),
)
JOB_COLUMNS = ("id", "plugin", "study_instance_uid", "state", "priority", "due_at", "attempts", "generation", "reason")
DELIVERY_COLUMNS = ("id", "job_id", "kind", "destination", "state", "attempts", "status", "reason")
REPLAY_COLUMNS = ("study_instance_uid", "route", "old_outcome", "new_outcome", "effect", "new_reason")
REPLAY_TOTALS = ("route", "starts", "stops", "other_series", "other_plugin", "other_reason", "unchanged")
DECISION_COLUMNS = ("route", "series_instance_uid", "outcome", "reason", "complete_because", "job_id")

StudyUid = Annotated[str, typer.Argument(metavar="STUDY_UID", help="Study Instance UID.")]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="Number of the job.")]
DeliveryId = Annotated[int, typer.Argument(metavar="DELIVERY", help="Number of the delivery.")]
CommentOption = Annotated[str | None, typer.Option("--comment", help="Why; kept in the job's events.")]


class Priority(StrEnum):
    """Where a job stands in the queue."""

    STAT = "stat"
    HIGH = "high"
    ROUTINE = "routine"


class PauseKind(StrEnum):
    """What can be paused."""

    PLUGIN = "plugin"
    ROUTE = "route"
    DESTINATION = "destination"


PauseKindArgument = Annotated[PauseKind, typer.Argument(metavar="plugin|route|destination")]
PauseName = Annotated[str, typer.Argument(metavar="NAME", help="As the configuration calls it.")]


def register(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.add_typer(studies, name="studies")
    cli.add_typer(jobs, name="jobs")
    cli.add_typer(deliveries, name="deliveries")
    cli.add_typer(route, name="route")
    cli.command("pause")(pause)
    cli.command("resume")(resume)


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
    show([entry], (*STUDY_COLUMNS[:5], "reason"), as_json=False)
    if len(entry["identities"]) > 1:
        show(entry["identities"], ("patient_id", "issuer", "n_instances"), as_json=False, title="patients")
    for reason, count in entry["withdrawn"].items():
        say(f"{count} instances do not count: {reason}")
    for job in entry["jobs"]:
        if job["flag"]:
            say(f"the results of job {job['id']} are not to be relied on: {job['flag']}")
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


@studies.command("hold")
def hold_study(
    study_uid: StudyUid,
    reason: Annotated[str | None, typer.Option("--reason", help="Shown by `studies show`.")] = None,
    config: ConfigOption = None,
) -> None:
    """Keep a study from being processed, and its results from leaving, until it is released."""
    open_node(config).admin.hold(study_uid, reason)
    say(f"study {study_uid} is held")


@studies.command("release")
def release_studies(
    study_uids: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDY_UID]...", help="Study Instance UIDs.")
    ] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", help="The right Patient ID; images with another are withdrawn.")
    ] = None,
    same: Annotated[bool, typer.Option("--same", help="All Patient IDs of the study are one patient.")] = False,
    peer: Annotated[str | None, typer.Option("--peer", help="All that the rate of this [[peer]] holds.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let held studies go on; of two patients, say which is right or that they are the same."""
    done = open_node(config).admin.release(study_uids or [], peer=peer, patient_id=patient, is_same=same)
    if as_json:
        show_json(done)
        return
    for one in done:
        say(f"study {one['study_instance_uid']} goes on")
        if one["n_instances"]:
            say(f"{one['n_instances']} instances of another patient are withdrawn")
    if not done:
        say("no study is held by the rate of this peer")


@studies.command("purge")
def purge_study(
    study_uid: StudyUid,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete the images of a study now; what is known of it stays, and it may be sent again."""
    admin = open_node(config).admin
    if not yes:
        typer.confirm(f"Delete the {admin.study(study_uid)['n_instances']} instances of {study_uid}?", abort=True)
    count = admin.purge(study_uid)
    if as_json:
        show_json({"study_instance_uid": study_uid, "purged": count})
        return
    say(f"purged {count} instances of {study_uid}")


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
    show(entry["events"], ("at", "event", "from_state", "to_state", "actor", "reason"), as_json=False, title="events")
    show(
        entry["attempts_made"],
        ("started_at", "ended_at", "worker", "outcome", "reason"),
        as_json=False,
        title="attempts",
    )
    show(entry["results"], ("kind", "sop_instance_uid", "path"), as_json=False, title="results")
    show(entry["deliveries"], DELIVERY_COLUMNS, as_json=False, title="deliveries")


@jobs.command("retry")
def retry_job(job_id: JobId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Queue a job again that failed, waits, hangs, was refused, withheld, held or cancelled; attempts count afresh."""
    _say_job(job_id, open_node(config).admin.queue.retry_job(job_id, comment))


@jobs.command("cancel")
def cancel_job(job_id: JobId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """End a job that is not finished; a running one is stopped."""
    _say_job(job_id, open_node(config).admin.queue.cancel_job(job_id, comment))


@jobs.command("hold")
def hold_job(job_id: JobId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Keep a job from running until it is released; a running one is stopped."""
    _say_job(job_id, open_node(config).admin.queue.hold_job(job_id, comment))


@jobs.command("release")
def release_job(job_id: JobId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Let a held job run; attempts count afresh."""
    _say_job(job_id, open_node(config).admin.queue.release_job(job_id, comment))


@jobs.command("priority")
def prioritise_job(
    job_id: JobId,
    priority: Annotated[Priority, typer.Argument(metavar="stat|high|routine")],
    comment: CommentOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a job that has not run yet another place in the queue."""
    state = open_node(config).admin.queue.prioritise_job(job_id, priority.value, comment)
    say(f"job {job_id} is {state}, priority {priority.value}")


def _say_job(job_id: int, state: str) -> None:
    say(f"job {job_id} is {state}")


@deliveries.command("list")
def list_deliveries(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List deliveries with each destination's last answer."""
    show(open_node(config).admin.deliveries(), DELIVERY_COLUMNS, as_json=as_json)


@deliveries.command("retry")
def retry_delivery(delivery_id: DeliveryId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Send a delivery again that failed, was refused, held or skipped; one that waits for its next try goes at once."""
    _say_delivery(delivery_id, open_node(config).admin.queue.retry_delivery(delivery_id, comment))


@deliveries.command("hold")
def hold_delivery(delivery_id: DeliveryId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Keep a delivery from being sent until it is retried or skipped."""
    _say_delivery(delivery_id, open_node(config).admin.queue.hold_delivery(delivery_id, comment))


@deliveries.command("skip")
def skip_delivery(delivery_id: DeliveryId, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Do without a delivery: its job may end well without it."""
    _say_delivery(delivery_id, open_node(config).admin.queue.skip_delivery(delivery_id, comment))


def _say_delivery(delivery_id: int, state: str) -> None:
    say(f"delivery {delivery_id} is {state}")


def pause(kind: PauseKindArgument, name: PauseName, comment: CommentOption = None, config: ConfigOption = None) -> None:
    """Pause a plugin or a route (their jobs stay queued), or a destination (nothing is sent to it), until `resume`."""
    open_node(config).admin.queue.pause(kind.value, name, comment)
    say(f"{kind.value} {name} is paused")


def resume(kind: PauseKindArgument, name: PauseName, config: ConfigOption = None) -> None:
    """Let a paused plugin, route or destination go on."""
    open_node(config).admin.queue.resume(kind.value, name)
    say(f"{kind.value} {name} goes on")


@route.command("explain")
def explain_route(
    study: Annotated[str, typer.Argument(metavar="PATH|STUDY_UID", help="A file, a folder, or a stored study.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show each rule and each condition for a study: matched, or why not; `--config DRAFT` tries other rules."""
    explained = open_draft(config).admin.explain(study)
    if as_json:
        show_json(explained)
        return
    for rule in explained:
        say("\n".join(rule["lines"]))


@route.command("replay")
def replay_routes(
    days: Annotated[float, typer.Option("--days", help="How far to look back.")] = 7,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which studies of the last days `--config DRAFT` would treat otherwise; nothing is started."""
    node = open_draft(config)
    with working(f"replaying {days:g} days") as tell:
        found = node.admin.replay(days, tell=(lambda _text: None) if as_json else tell)
    if as_json:
        show_json(found)
        return
    show(found["changes"], REPLAY_COLUMNS, title="what would change")
    show(found["totals"], REPLAY_TOTALS, title="studies by route")
    left = f"; {found['undecided']} are not decided yet and were left out" if found["undecided"] else ""
    say(f"{len(found['changes'])} changes in {found['studies']} studies of {days:g} days{left}")
