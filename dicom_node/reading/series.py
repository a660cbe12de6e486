"""Files -> series -> volumes: what indexing, the commands and inference call.

`group_series` sorts a folder, `load_volume` makes an array on a grid. Positions are the truth: slice order, distance
and direction come from them alone, and a header that contradicts them is noted, not believed. What does not make one
volume is refused with the reason; nothing is repaired in silence.

Sources: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from dicom_node.codecs.pool import DecoderPool
from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.imaging.geometry import Grid, grid_from_frames, shear_degrees, slice_distance_mm
from dicom_node.imaging.volume import Volume
from dicom_node.reading.decode import MAX_VOXELS, PixelLayout, check_decodable, pixel_layout
from dicom_node.reading.decoding import decode_into, helpers_for, pixel_notes
from dicom_node.reading.description import describe_any
from dicom_node.reading.enhanced import frames_of, functional_groups
from dicom_node.reading.header import Attributes, Header, data_set_digest, floats, items, quiet, read_header, text
from dicom_node.study import DicomJson, Frame, InstanceDescription, SourceImage

_HINT_TOLERANCE = 0.01
"""Relative difference from which a header's distance contradicts the positions."""
_SHEAR_NOTED_DEGREES = 0.5


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


def load_volume(paths: Sequence[Path], *, workers: int | None = None, grey_from_colour: bool = False) -> Volume:
    """Return the volume that the files make: decoded, in the unit of the modality, sorted along the normal.

    Parameters
    ----------
    paths
        All instances of one series, in any order: classic ones, or one or more enhanced ones.
    workers
        Threads or processes that decode; as many as there are processors, at most four, when not given.
    grey_from_colour
        Whether colours become their luminance (`colour.luminance`); otherwise colour is refused.

    Raises
    ------
    UndecodableError
        When a file cannot be parsed or decoded, or is in colour.
    GeometryError
        When the frames do not make one volume.
    """
    if not paths:
        raise GeometryError("the series holds no image")
    with helpers_for(paths, workers=workers) as pool:
        return _volume(paths, workers, pool, grey_from_colour=grey_from_colour)


def _volume(paths: Sequence[Path], workers: int | None, pool: DecoderPool | None, *, grey_from_colour: bool) -> Volume:
    headers = [read_header(path) for path in paths]
    with quiet():
        layouts = [pixel_layout(header, colour=grey_from_colour) for header in headers]
        per_file = [_frames(header, layout) for header, layout in zip(headers, layouts, strict=True)]
        frames = [frame for frames in per_file for frame in frames]
        grid, order = grid_from_frames(frames)
        if np.prod(grid.shape, dtype=np.int64) > MAX_VOXELS:
            raise UndecodableError(f"a volume of {grid.shape} voxels is more than the {MAX_VOXELS} that are read")
        for header, layout in zip(headers, layouts, strict=True):
            check_decodable(header, layout)
        array = np.empty(grid.shape, dtype=np.float32)
        place = np.empty(len(order), dtype=np.intp)
        place[list(order)] = np.arange(len(order))
        decode_into(array, headers, layouts, place.tolist(), workers=workers, pool=pool)
        array.flags.writeable = False
        return Volume(
            array=array,
            grid=grid,
            frames=tuple(frames[i] for i in order),
            modality=text(headers[0].attributes, "Modality"),
            notes=_notes(headers[0].attributes, grid) + pixel_notes(headers[0], layouts[0]),
        )


def _frames(header: Header, layout: PixelLayout) -> tuple[Frame, ...]:
    """Return the frames of one file, one for each image plane in it."""
    if "MOSAIC" in text(header.attributes, "ImageType").split("\\"):
        raise GeometryError("the images are mosaics (several slices tiled in one image), which are not read")
    frames = frames_of(header.attributes)
    if len(frames) == layout.n_frames:
        return frames
    described = len(items(header.attributes, "PerFrameFunctionalGroupsSequence"))
    if described not in (0, layout.n_frames):
        raise GeometryError(f"functional groups describe {described} of {layout.n_frames} frames")
    if not described and layout.n_frames > 1:
        raise GeometryError(f"{layout.n_frames} frames in one instance without a position for each")
    raise GeometryError(
        "the images have no full geometry: Image Position (Patient), Image Orientation (Patient) or Pixel Spacing is "
        "missing"
    )


def _notes(dataset: Attributes, grid: Grid) -> tuple[str, ...]:
    """Return in words what was noticed and accepted."""
    notes = []
    if not text(dataset, "SOPInstanceUID"):
        notes.append("the instances have no SOP Instance UID: results cannot refer to them")
    distance, step = slice_distance_mm(grid), grid.spacing_mm[0]
    tilt = shear_degrees(grid)
    if tilt > _SHEAR_NOTED_DEGREES:
        notes.append(f"the slices are sheared by {tilt:.1f} degrees (gantry tilt); the grid keeps the shear")
    measures = next(iter(functional_groups(dataset, "PixelMeasuresSequence")), None) or dataset
    between = floats(measures, "SpacingBetweenSlices", 1)
    if between and all(_differs(abs(between[0]), truth) for truth in (distance, step)):
        notes.append(
            f"SpacingBetweenSlices says {between[0]:g} mm, but the positions are {distance:.3f} mm apart; "
            "positions are used"
        )
    thickness = floats(measures, "SliceThickness", 1)
    if thickness and thickness[0] > 0 and all(_differs(thickness[0], truth) for truth in (distance, step)):
        kind = "overlap" if thickness[0] > distance else "leave gaps"
        notes.append(
            f"SliceThickness says {thickness[0]:g} mm, but the positions are {distance:.3f} mm apart: slices {kind}; "
            "positions are used"
        )
    return tuple(notes)


def _differs(hint_mm: float, truth_mm: float) -> bool:
    return abs(hint_mm - truth_mm) > _HINT_TOLERANCE * truth_mm
