"""Files -> series -> volumes: what indexing, the commands and inference call.

`group_series` sorts a folder, `load_volume` makes an array on a grid. Positions are the truth: slice order, distance
and direction come from them alone, and a header that contradicts them is noted, not believed. What does not make one
volume is refused with the reason; nothing is repaired in silence. Which frame becomes which slice is decided in
`arrangement`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.errors import RefusedInputError, UndecodableError
from dicom_node.imaging.stacks import ReadPolicy
from dicom_node.imaging.volume import Volume
from dicom_node.reading.arrangement import arrange
from dicom_node.reading.decode import MAX_VOXELS, check_decodable
from dicom_node.reading.decoding import decode_into, helpers_for
from dicom_node.reading.description import describe_any
from dicom_node.reading.header import data_set_digest, quiet, read_header, text
from dicom_node.reading.intensity import intensity_of
from dicom_node.reading.kinds import plane_note
from dicom_node.study import DicomJson, InstanceDescription, SourceImage

DEFAULT_POLICY = ReadPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadableFile:
    """A file that is no DICOM instance, or a broken one."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFiles:
    """A series as it lies in files."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    images: tuple[SourceImage, ...]
    """Its images, one for each SOP instance, in the order of the files."""
    header: DicomJson
    """Of its first image, or of its first instance when it has none."""
    n_instances: int
    descriptions: tuple[InstanceDescription, ...]


def find_files(path: Path) -> list[Path]:
    """Return the file, or every file below the folder, sorted; DICOMDIR and hidden files are left out."""
    if not path.is_dir():
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith((".", "DICOMDIR"))]
    return sorted(found)


def group_series(paths: Iterable[Path]) -> tuple[list[SeriesFiles], list[UnreadableFile]]:
    """Return the series that the files hold, by study and series UID, and the files that cannot be read.

    A second file with the same bytes adds no image: copies are common in exported folders. Anonymised files without
    Study or Series Instance UID make one series a folder; the store takes none of those, people look at them.
    """
    groups: dict[tuple[str, str, str], list[tuple[Path, InstanceDescription]]] = {}
    unreadable = []
    for path in paths:
        try:
            description = describe_any(path)
        except UndecodableError as error:
            unreadable.append(UnreadableFile(path=path, reason=error.reason))
        except OSError as error:
            unreadable.append(UnreadableFile(path=path, reason=f"the file cannot be read ({error.strerror})"))
        else:
            study, series = description.study_instance_uid, description.series_instance_uid
            folder = "" if study and series else str(path.parent)
            groups.setdefault((study, series, folder), []).append((path, description))
    return [_series(members) for _, members in sorted(groups.items())], unreadable


def _series(members: list[tuple[Path, InstanceDescription]]) -> SeriesFiles:
    images: dict[tuple[str, str], SourceImage] = {}
    for path, description in members:
        if description.is_image:
            image = SourceImage(sop_instance_uid=description.sop_instance_uid, digest=data_set_digest(path), path=path)
            images.setdefault((image.sop_instance_uid, image.digest), image)
    first = next((description for _, description in members if description.is_image), members[0][1])
    modality = next(iter(first.header.get("00080060", {}).get("Value", ())), "")
    return SeriesFiles(
        study_instance_uid=first.study_instance_uid,
        series_instance_uid=first.series_instance_uid,
        modality=str(modality or ""),
        images=tuple(images.values()),
        header=first.header,
        n_instances=len(members),
        descriptions=tuple(description for _, description in members),
    )


def read_headers(paths: Sequence[Path]) -> list[Dataset]:
    """Return the data sets of the files without pixel data, with their file meta information, in the order given.

    Raises
    ------
    UndecodableError
        When a file cannot be parsed.
    """
    return [read_header(path).dataset for path in paths]


def load_volume(
    paths: Sequence[Path],
    *,
    workers: int | None = None,
    policy: ReadPolicy = DEFAULT_POLICY,
    grey_from_colour: bool = False,
) -> Volume:
    """Return the volume that the files make: decoded, in the unit of the modality, sorted along the normal.

    Parameters
    ----------
    paths
        All instances of one series, in any order: classic ones, or one or more enhanced ones.
    workers
        Threads or processes that decode; as many as there are processors, at most four, when not given.
    policy
        What may become a volume: which of several stacks, how many missing slices may be filled, from how many slices
        on. A plugin's is `InputSeries.policy`.
    grey_from_colour
        Whether colours become their luminance (`colour.luminance`); otherwise colour is refused.

    Raises
    ------
    UndecodableError
        When a file cannot be parsed or decoded, or is in colour.
    GeometryError
        When the frames do not make one volume.
    NotApplicableError
        When they make none that the policy takes.
    """
    with helpers_for(paths, workers=workers) as pool, quiet():
        plan = arrange(paths, policy, grey_from_colour=grey_from_colour)
        if np.prod(plan.grid.shape, dtype=np.int64) > MAX_VOXELS:
            raise UndecodableError(f"a volume of {plan.grid.shape} voxels is more than the {MAX_VOXELS} that are read")
        for header, layout in zip(plan.headers, plan.layouts, strict=True):
            check_decodable(header, layout)
        array = np.empty(plan.grid.shape, dtype=np.float32)
        decode_into(array, plan.headers, plan.layouts, plan.slices, workers=workers, pool=pool)
        for gap in plan.gaps:
            gap.fill(array)
        array.flags.writeable = False
        modality = text(plan.headers[0].attributes, "Modality")
        # Of PET each image counts; a whole data set is parsed for nothing else.
        telling = plan.headers if modality == "PT" else plan.headers[:1]
        intensity, remarks = intensity_of([header.dataset for header in telling])
        return Volume(
            array=array,
            grid=plan.grid,
            frames=plan.frames,
            modality=modality,
            notes=plan.notes + remarks,
            intensity=intensity,
        )


def why_no_volume(paths: Sequence[Path], policy: ReadPolicy) -> str | None:
    """Return why the files make no volume that the policy takes, from their headers; None when they do."""
    try:
        with quiet():
            arrange(paths, policy)
    except RefusedInputError as error:
        return error.reason
    return None


def plane_notes(paths: Sequence[Path]) -> tuple[str, ...]:
    """Return what the pixels of images that are no slices measure, in words, each sentence once."""
    notes: dict[str, None] = {}
    for path in paths:
        try:
            header = read_header(path)
        except UndecodableError:
            continue
        with quiet():
            note = plane_note(header.attributes)
        if note is not None:
            notes[note] = None
    return tuple(notes)
