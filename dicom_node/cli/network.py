"""Commands that talk to peers: echo and send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.app import open_node
from dicom_node.cli.output import ConfigOption, JsonOption, say, show, show_json, working
from dicom_node.errors import UsageError


def register(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.command("echo")(echo)
    cli.command("send")(send)


def echo(
    peer: Annotated[str, typer.Argument(metavar="PEER", help="Name of a [[peer]].")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a C-ECHO to a peer; exit status 4 when it does not answer."""
    answer = open_node(config).admin.echo(peer)
    if as_json:
        show_json(answer)
        return
    say(f"{peer} answered in {answer['duration_s'] * 1000:.0f} ms")


def send(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files or folders.")],
    config: ConfigOption = None,
    to: Annotated[str | None, typer.Option("--to", help="Name of a [[destination]].")] = None,
    host: Annotated[str | None, typer.Option(help="Instead of --to: the receiver's host.")] = None,
    port: Annotated[int | None, typer.Option(help="The receiver's port.")] = None,
    called: Annotated[str, typer.Option("--called", help="The receiver's AE title.")] = "ANY-SCP",
    calling: Annotated[
        str | None, typer.Option("--calling", help="Our AE title towards it; default: the first of the node.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send DICOM files with C-STORE; exit status 1 unless every one is stored."""
    admin = open_node(config).admin
    if to is not None and host is None and port is None:
        with working(f"sending to {to}"):
            sent = admin.send(paths, destination=to)
    elif to is None and host is not None and port is not None:
        with working(f"sending to {host}:{port}"):
            sent = admin.send_to(paths, host=host, port=port, called_ae=called, calling_ae=calling)
    else:
        raise UsageError("say where to send: --to DESTINATION, or --host and --port (and --called)")
    failed = [item for item in sent if not item["stored"]]
    if as_json:
        show_json(sent)
    else:
        if failed:
            show(failed, ("file", "sop_instance_uid", "status", "reason"), as_json=False, title="not stored")
        say(f"{len(sent) - len(failed)} of {len(sent)} stored")
    if failed:
        raise typer.Exit(1)
