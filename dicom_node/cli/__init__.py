"""The command `dicom-node`: words in, tables or JSON out; what is done stands in `admin`, `app` and `demo`."""

from __future__ import annotations

import typer

from dicom_node.cli import files, network, node, queue
from dicom_node.cli.output import leave
from dicom_node.errors import DicomNodeError

cli = typer.Typer(
    name="dicom-node",
    help="Receives studies, runs networks on them, sends SR and SEG back to the PACS.",
    no_args_is_help=True,
    rich_markup_mode=None,  # help speaks of [[peer]], which markup would swallow
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (node, files, network, queue):
    group.register(cli)


def main() -> None:
    """Run the command line.

    Exit statuses: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 unreachable.
    """
    try:
        cli()
    except DicomNodeError as error:
        leave(error)
    except BrokenPipeError:  # `dicom-node jobs list | head`
        raise SystemExit(0) from None
    except OSError as error:  # a folder that may not be written, a file where a folder should be
        leave(DicomNodeError(f"{error.filename}: {error.strerror}" if error.filename else str(error)))


__all__ = ["cli", "main"]
