"""What the node makes of files on a disk, without a queue: `inspect`, `measure` and `infer`.

Plain values for people and scripts, keys as the commands promise them; the reading, measuring and inferring is that of
the node itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node import __version__
from dicom_node.admin.pictures import Drawn, draw_outlines
from dicom_node.decision import input_digest
from dicom_node.errors import NotApplicableError, NotFoundError, RefusedInputError, UndecodableError
from dicom_node.findings import Findings, Measurements
from dicom_node.ids import Installation, new_uid
from dicom_node.imaging import Volume, measure, quantities
from dicom_node.imaging.stacks import ReadPolicy
from dicom_node.infer import Plugin, Request, Slots
from dicom_node.reading import (
    SeriesFiles,
    class_name,
    describe,
    find_files,
    group_series,
    load_volume,
    plane_notes,
    read_headers,
    read_regions,
    why_no_volume,
    write_nifti,
)
from dicom_node.records import planes_of, slice_spacing_mm
from dicom_node.report import ResultIdentity, build_results, encode
from dicom_node.routing import Outcome, choose_series, judge_series, why_not
from dicom_node.study import ReceivedVersion, SeriesView, StudyView

_SHOWN = ReadPolicy(min_slices=1)
"""People see single slices too."""


def inspect(path: Path, plugins: Iterable[Plugin], *, nifti: Path | None = None) -> list[dict[str, Any]]:
    """Return what the node sees below `path`: one entry a series, then one for each file that is none.

    Parameters
    ----------
    nifti
        Where to write the first volume that can be read.
    """
    series, unreadable = group_series(_files(path))
    known = list(plugins)
    entries = []
    for files in series:
        if not files.images and not files.series_instance_uid:
            continue  # no series at all; its files are named below
        volume, refused = _try_volume(files)
        if volume is not None and nifti is not None:
            write_nifti(volume, nifti)
            nifti = None
        entries.append(_entry(files, volume, refused, known))
    if nifti is not None:
        raise NotApplicableError(f"no series below {path} makes a volume; nothing was written")
    shown = {image.path for files in series for image in files.images} | {file.path for file in unreadable}
    reasons = [f"{file.path.name}: {file.reason}" for file in unreadable]
    reasons += [f"{file.name}: {reason}" for file in _files(path) if file not in shown and (reason := _defect(file))]
    return entries + [_no_series(reason) for reason in reasons]


def measure_mask(mask: Path, image: Path) -> list[dict[str, Any]]:
    """Return every measurement of every label of `mask` on the one image series at `image`.

    Raises
    ------
    NotFoundError
        When `image` holds no series of images.
    GeometryError
        When the mask does not lie on the image's grid.
    """
    series = [files for files in group_series(_files(image))[0] if files.images]
    if not series:
        raise NotFoundError(f"{image} holds no series of images")
    volume = _measurable(series)
    measured = []
    for region in read_regions(mask, volume.grid, volume.frames):
        if region.mask is not None:
            found = measure(region.mask, volume)
            measured.append(
                {
                    **_measured(region.label, found),
                    "name": region.name or None,
                    "notes": list(volume.notes),
                    "measurements": _defined(found),
                }
            )
    return measured


def infer(
    plugin: Plugin, path: Path, out: Path, *, slots: Slots, installation: Installation, now: datetime
) -> dict[str, Any]:
    """Run the study at `path` through one plugin; write SEG, SR and a picture of each finding into `out`.

    A study that the plugin cannot read is an answer too: outcome "refused" with the reason.
    """
    try:
        files = _chosen_series(plugin, path)
        paths = tuple(image.path for image in files.images)
        role = plugin.manifest.input_series[0].role
        findings = slots.run(plugin, Request(paths={role: paths}))
    except RefusedInputError as error:
        return {"outcome": "refused", "reason": error.reason, "findings": [], "files": [], "notes": []}
    written: list[Path] = []
    if findings.outcome != "withheld":
        out.mkdir(parents=True, exist_ok=True)
        identity = ResultIdentity(
            root_uid=new_uid(),
            device_uid=installation.uid,
            created_at=now,
            input_digest=input_digest((image.sop_instance_uid, image.digest) for image in files.images),
            node_version=__version__,
            device_serial_number=installation.serial_number,
        )
        for built in build_results(findings, plugin.manifest, read_headers(paths), identity):
            written.append(out / f"{built.kind}.dcm")
            written[-1].write_bytes(encode(built.dataset))
        volume = load_volume(
            paths,
            policy=plugin.manifest.input_series[0].policy,
            grey_from_colour=plugin.manifest.preprocess.takes_colour,
        )
        written += draw_outlines(volume, _drawn(findings, plugin), out)
    return {
        "outcome": findings.outcome,
        "reason": findings.reason,
        "findings": describe_findings(findings),
        "files": [str(file) for file in written],
        "notes": list(findings.notes),
    }


def describe_findings(findings: Findings) -> list[dict[str, Any]]:
    """Return each finding with its measurements, keys as `measure` has them."""
    return [
        {
            "number": finding.number,
            **_measured(finding.label, finding.measurements),
            "probability": finding.probability,
        }
        for finding in findings.findings
    ]


def series_view(files: SeriesFiles) -> SeriesView:
    """Return a series of files as rules see it; nobody called and nobody was called."""
    images = [description for description in files.descriptions if description.is_image and not description.made_by_us]
    return SeriesView(
        series_instance_uid=files.series_instance_uid,
        header=files.header,
        n_images=len(images),
        n_instances=files.n_instances,
        calling_ae="",
        called_ae="",
        slice_spacing_mm=slice_spacing_mm(planes_of([frame for image in images for frame in image.frames])),
        image_digests=tuple(sorted((image.sop_instance_uid, image.digest) for image in files.images)),
        received=tuple(
            ReceivedVersion(sop_instance_uid=one.sop_instance_uid, digest="", calling_ae="")
            for one in files.descriptions
            if not one.made_by_us
        ),
    )


def study_views(path: Path, now: datetime) -> list[StudyView]:
    """Return the studies below `path` as rules see them, as if they had just arrived."""
    studies: dict[str, list[SeriesView]] = {}
    for files in group_series(_files(path))[0]:
        studies.setdefault(files.study_instance_uid, []).append(series_view(files))
    return [
        StudyView(study_instance_uid=uid, series=tuple(series), first_received=now, last_received=now)
        for uid, series in studies.items()
    ]


def dicom_files(path: Path) -> list[Path]:
    """Return the DICOM instances at `path`; what else lies in a folder is left out.

    Raises
    ------
    UndecodableError
        When `path` is one file and no DICOM instance.
    NotFoundError
        When a folder holds none.
    """
    found = _files(path)
    if path.is_file():
        describe(path)
        return found
    instances = [file for file in found if _defect(file) is None]
    if not instances:
        raise NotFoundError(f"{path} holds no DICOM file")
    return instances


def _defect(file: Path) -> str | None:
    """Return why a file is no DICOM instance, None when it is one."""
    try:
        describe(file)
    except UndecodableError as error:
        return error.reason
    return None


def _drawn(findings: Findings, plugin: Plugin) -> list[Drawn]:
    colours = {segment.label: segment.colour for segment in plugin.manifest.segment}
    return [
        Drawn(
            number=finding.number,
            mask=finding.mask,
            slice_index=finding.measurements.diameter_long.slice_index,
            colour=colours[finding.label],
        )
        for finding in findings.findings
    ]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    files = find_files(path)
    if not files:
        raise NotFoundError(f"{path} holds no file")
    return files


def _try_volume(files: SeriesFiles, policy: ReadPolicy = _SHOWN) -> tuple[Volume | None, str | None]:
    if not files.images:
        held = sorted({class_name(one.sop_class_uid) for one in files.descriptions})
        lacking = " without rows, columns or pixel data" if all(name.endswith("Image") for name in held) else ""
        return None, f"the series has no images; it holds: {', '.join(held)}{lacking}"
    try:
        return load_volume([image.path for image in files.images], policy=policy), None
    except RefusedInputError as error:
        return None, error.reason


def _measurable(series: Sequence[SeriesFiles]) -> Volume:
    """Return the volume of the series, or of the only one that makes a volume."""
    volumes = [(files, *_try_volume(files, ReadPolicy())) for files in series]
    readable = [volume for _, volume, _ in volumes if volume is not None]
    if len(readable) == 1:
        return readable[0]
    if readable:
        raise NotApplicableError("several series make a volume; name the folder of one with --image")
    raise NotApplicableError("; ".join(str(refused) for _, _, refused in volumes))


def _entry(files: SeriesFiles, volume: Volume | None, refused: str | None, plugins: Sequence[Plugin]) -> dict[str, Any]:
    shown = None
    if volume is not None:
        shown = {
            "shape": list(volume.grid.shape),
            "spacing_mm": list(volume.grid.spacing_mm),
            "affine_lps": volume.grid.affine_lps.tolist(),
            "dtype": str(volume.array.dtype),
            "min": float(volume.array.min()),
            "max": float(volume.array.max()),
            "mean": float(volume.array.mean(dtype=np.float64)),
        }
    return {
        "series_instance_uid": files.series_instance_uid,
        "modality": files.modality,
        "n_instances": files.n_instances,
        "volume": shown,
        "refused": refused,
        "notes": list(volume.notes if volume else plane_notes([image.path for image in files.images])),
        "plugins": {plugin.id: _eligibility(files, plugin, volume) for plugin in plugins},
    }


def _no_series(refused: str) -> dict[str, Any]:
    return {
        "series_instance_uid": "",
        "modality": "",
        "n_instances": 1,
        "volume": None,
        "refused": refused,
        "notes": [],
        "plugins": {},
    }


def _eligibility(files: SeriesFiles, plugin: Plugin, volume: Volume | None) -> dict[str, Any]:
    verdict = judge_series(series_view(files), plugin.manifest.input_series[0], plugin.manifest.input_series[0])
    if verdict.outcome is not Outcome.MATCHED:
        return {"eligible": False, "reason": why_not(verdict, plugin.id)}
    policy = plugin.manifest.input_series[0].policy
    if (refused := why_no_volume([image.path for image in files.images], policy)) is not None:
        return {"eligible": False, "reason": refused}
    if volume is not None and (reason := plugin.manifest.too_large(volume.grid)):
        return {"eligible": False, "reason": reason}
    return {"eligible": True, "reason": "the series meets every requirement of the plugin"}


def _chosen_series(plugin: Plugin, path: Path) -> SeriesFiles:
    """Return the series that the plugin's own requirements choose.

    Raises
    ------
    NotApplicableError
        When no series meets them; the reason is that of the nearest one.
    """
    series = group_series(_files(path))[0]
    requirement = plugin.manifest.input_series[0]
    choice = choose_series([series_view(files) for files in series], requirement, requirement, requirement.prefer)
    if choice.chosen is None:
        reasons = [f"{verdict.series_instance_uid}: {why_not(verdict, plugin.id)}" for verdict in choice.verdicts]
        raise NotApplicableError("; ".join(reasons) or f"{path} holds no DICOM series")
    return next(files for files in series if files.series_instance_uid == choice.chosen.series_instance_uid)


def _measured(label: object, measured: Measurements) -> dict[str, Any]:
    return {
        "label": label,
        **quantities.values(measured),
        "n_voxels": measured.n_voxels,
        "intensity_unit": measured.intensity_unit,
        "centroid_lps_mm": list(measured.centroid_lps_mm),
        "slice_range": list(measured.slice_range),
    }


def _defined(measured: Measurements) -> list[dict[str, Any]]:
    """Return each measurement with its unit, its code and the source of its definition."""
    return [
        {
            "key": one.key,
            "name": one.name,
            "value": one.value(measured),
            "unit": one.unit_of(measured),
            "code": None if one.concept is None else asdict(one.concept),
            "definition": one.definition,
            "source": one.source,
        }
        for one in quantities.DEFINITIONS
    ]
