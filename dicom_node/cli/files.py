"""Commands about files on a disk: inspect, measure, infer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.app import open_node
from dicom_node.cli.output import ConfigOption, JsonOption, say, show, show_json, working

FINDING_COLUMNS = ("number", "label", "volume_ml", "diameter_long_mm", "mean", "centroid_lps_mm")
"""What fits a terminal; `--json` has every measurement."""


def register(cli: typer.Typer) -> None:
    """Add these commands to the command line."""
    cli.command("inspect")(inspect)
    cli.command("measure")(measure)
    cli.command("infer")(infer)


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or a folder.")],
    volume: Annotated[Path | None, typer.Option("--volume", help="Write the first volume as NIfTI.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the node sees: series, geometry, which plugins would take it, and why not."""
    with working(f"reading {path}"):
        series = open_node(config).admin.inspect(path, nifti=volume)
    if as_json:
        show_json(series)
        return
    for entry in series:
        say(f"series {entry['series_instance_uid'] or '(none)'}  {entry['modality']}  {entry['n_instances']} instances")
        if entry["volume"]:
            shape = " x ".join(map(str, entry["volume"]["shape"]))
            spacing = " x ".join(f"{value:.4g}" for value in entry["volume"]["spacing_mm"])
            say(f"  volume   {shape} (Z, Y, X), {spacing} mm, mean {entry['volume']['mean']:.4g}")
        else:
            say(f"  refused  {entry['refused']}")
        for note in entry["notes"]:
            say(f"  note     {note}")
        for plugin, verdict in entry["plugins"].items():
            say(f"  {'takes it' if verdict['eligible'] else 'declines'} {plugin}: {verdict['reason']}")


def measure(
    mask: Annotated[Path, typer.Argument(metavar="MASK", help="SEG, RTSTRUCT, NIfTI or NRRD on the image's grid.")],
    image: Annotated[Path, typer.Option("--image", help="The image series: a file or folder.")],
    as_json: JsonOption = False,
) -> None:
    """Measure every label of a mask on its image."""
    from dicom_node.admin.inspection import measure_mask  # reads images: a second to load

    with working(f"measuring {mask}"):
        measured = measure_mask(mask, image)
    if as_json:
        show_json(measured)
        return
    for entry in measured:
        named = f"{entry['label']} {entry['name']}" if entry["name"] else str(entry["label"])
        slices = " to ".join(map(str, entry["slice_range"]))
        x, y, z = entry["centroid_lps_mm"]
        show(entry["measurements"], ("name", "value", "unit", "source"), title=f"label {named}")
        say(f"  {entry['n_voxels']} voxels, slices {slices}, centroid ({x:.1f}, {y:.1f}, {z:.1f}) mm LPS")
    for note in dict.fromkeys(note for entry in measured for note in entry["notes"]):
        say(f"  note     {note}")
    if not measured:
        say("the mask marks nothing")


def infer(
    plugin: Annotated[str, typer.Argument(metavar="PLUGIN", help="Id of the plugin.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The study: a file or folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one study through one plugin without the queue: results as files, or withheld or refused with the reason."""
    with working(f"{plugin} on {path}"):
        answer = open_node(config).admin.infer(plugin, path, out)
    if as_json:
        show_json(answer)
    else:
        say(f"{answer['outcome']}" + (f": {answer['reason']}" if answer["reason"] else ""))
        if answer["findings"]:
            show(answer["findings"], FINDING_COLUMNS)
        for note in answer["notes"]:
            say(f"note: {note}")
        for file in answer["files"]:
            say(str(file))
