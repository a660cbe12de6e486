"""Commands about the node itself: serve, check, demo, plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.app import Role, open_node, run_role, supervise
from dicom_node.cli.output import ConfigOption, JsonOption, say, show, show_json, working

plugins = typer.Typer(help="Plugins and their models.", no_args_is_help=True, rich_markup_mode=None)

PluginId = Annotated[str, typer.Argument(metavar="PLUGIN", help="Id of the plugin.")]


def register(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.command("serve")(serve)
    cli.command("check")(check)
    cli.command("demo")(demo)
    cli.command("backup")(backup)
    cli.command("restore")(restore)
    cli.command("migrate")(migrate)
    cli.add_typer(plugins, name="plugins")


def serve(
    role: Annotated[Role, typer.Option("--role", help="What this process does.")] = Role.ALL,
    config: ConfigOption = None,
) -> None:
    """Run the node until SIGTERM."""
    if role is Role.ALL:
        raise typer.Exit(supervise(config))
    run_role(config, role)


def check(
    network: Annotated[
        bool, typer.Option("--network", help="Also C-ECHO peers and negotiate with destinations.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the configuration, the disk, the database and the models; exit status 1 when something is wrong."""
    results = open_node(config).admin.check(network=network)
    show(results, ("what", "ok", "detail"), as_json=as_json)
    if not all(result["ok"] for result in results):
        raise typer.Exit(1)


def demo(
    study_dir: Annotated[
        Path | None, typer.Argument(metavar="[STUDY_DIR]", help="A study to send; default: a new QA phantom.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for results and pictures.")] = Path("demo"),
    as_json: JsonOption = False,
) -> None:
    """Send a study through a node and a stand-in PACS on loopback.

    The exit status is 0 when results came back and agree with the truth beside the study, if there is one.
    """
    from dicom_node.demo import run_demo

    with working("demonstration") as tell:
        report = run_demo(study_dir, out, say=(lambda _text: None) if as_json else tell)
    if as_json:
        show_json(report.as_dict())
    raise typer.Exit(0 if report.agrees else 1)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database to a new file and check the copy; the node may serve meanwhile."""
    made = open_node(config).admin.backup(file)
    if as_json:
        show_json(made)
        return
    say(f"wrote {made['size_bytes']} bytes to {made['file']}; the copy is whole")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `backup` wrote.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a copy in the place of the database, which is kept; not while the node serves."""
    done = open_node(config).admin.restore(file)
    if as_json:
        show_json(done)
        return
    say(f"restored {file}" + (f"; the former database is {done['replaced']}" if done["replaced"] else ""))
    say(f"{done['n_lost']} images were purged since and are marked so, {done['n_indexed']} came since and have rows")


def migrate(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Bring the database up to this program's version; `serve` does it, too."""
    done = open_node(config).admin.migrate()
    if as_json:
        show_json(done)
        return
    say("nothing to do: the database is current" if done["before"] == "current" else "the database is current now")


@plugins.command("list")
def list_plugins(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the plugins that routes can name."""
    show(open_node(config).admin.plugins(), ("id", "version", "name", "ready", "reason"), as_json=as_json)


@plugins.command("check")
def check_plugins(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check every manifest and model; exit status 1 when a plugin cannot run."""
    found = open_node(config).admin.plugins()
    show(found, ("id", "ready", "reason"), as_json=as_json)
    if not all(plugin["ready"] for plugin in found):
        raise typer.Exit(1)


@plugins.command("selftest")
def selftest_plugins(
    plugin: Annotated[
        str | None, typer.Argument(metavar="[PLUGIN]", help="Default: every plugin that can run.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute each plugin's reference case again and compare; exit status 1 when one differs."""
    with working("computing reference cases"):
        results = open_node(config).admin.selftest(plugin)
    show(results, ("id", "ok", "detail", "duration_s"), as_json=as_json)
    if not all(result["ok"] for result in results):
        raise typer.Exit(1)


@plugins.command("install")
def install_plugin(
    plugin: PluginId,
    source: Annotated[Path, typer.Option("--from", help="Folder that holds the model file.")],
    config: ConfigOption = None,
) -> None:
    """Copy a plugin's weights under data_dir after checking their sha256."""
    say(f"installed {open_node(config).admin.install(plugin, source)}")
