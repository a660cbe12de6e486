"""Headers -> which frame becomes which slice: everything about a volume but its values.

Between `enhanced` (headers to frames) and `decoding` (frames to numbers). A policy says what may be chosen and filled;
whatever was chosen, left out, filled or contradicted is noted in words that travel with the volume into the report.
Nothing is repaired in silence.

Sources: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (Multi-frame Functional Groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import GeometryError, NotApplicableError
from dicom_node.imaging.geometry import (
    Grid,
    frame_between,
    grid_from_frames,
    shear_degrees,
    single_slice_grid,
    slice_distance_mm,
)
from dicom_node.imaging.stacks import Marks, ReadPolicy, choose_stack
from dicom_node.reading.decode import PixelLayout, check_decodable, modality_luts, pixel_layout, stored_frames
from dicom_node.reading.decoding import pixel_notes
from dicom_node.reading.enhanced import frames_of, functional_groups
from dicom_node.reading.header import Attributes, Header, floats, items, read_header, text
from dicom_node.reading.kinds import NUCLEAR_MEDICINE, class_name, refused_kind
from dicom_node.reading.nuclear import image_type
from dicom_node.study import Frame

NOT_READ = -1
"""Instead of a slice: the frame belongs to another stack."""
_LATE_MARKS = ("ContentTime", "InstanceNumber", "SliceThickness")
"""Marks that may tell stacks apart and are no part of what an image shows."""
_HINT_TOLERANCE = 0.01
"""Relative difference from which a header's distance contradicts the positions."""
_SHEAR_NOTED_DEGREES = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A slice that no image shows, and the slices on both sides that one shows."""

    z: int
    before: int
    after: int

    def fill(self, array: NDArray[np.float32]) -> None:
        """Write the linear interpolation between its neighbours into the slice of `array` (Z, Y, X)."""
        weight = np.float32((self.z - self.before) / (self.after - self.before))
        array[self.z] = (1 - weight) * array[self.before] + weight * array[self.after]


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Arrangement:
    """How the frames of files make a volume."""

    headers: tuple[Header, ...]
    """Of the files that are read."""
    layouts: tuple[PixelLayout, ...]
    slices: tuple[int, ...]
    """Which slice each frame becomes, file after file, frame after frame; `NOT_READ` where it becomes none."""
    grid: Grid
    frames: tuple[Frame, ...]
    """Of each slice; interpolated ones too."""
    gaps: tuple[Gap, ...]
    notes: tuple[str, ...]


def arrange(paths: Sequence[Path], policy: ReadPolicy, *, grey_from_colour: bool = False) -> Arrangement:
    """Return how the files make a volume; their pixels are read only where two images at one place must be compared.

    Raises
    ------
    UndecodableError
        When a file cannot be parsed, or holds no grey values.
    GeometryError
        When the frames do not make a volume.
    NotApplicableError
        When they make none that the policy takes.
    """
    if not paths:
        raise GeometryError("the series holds no image")
    headers = [read_header(path) for path in paths]
    for header in headers:
        if (kind := refused_kind(header.attributes)) is not None:
            raise GeometryError(f"not read as a volume: {kind}")
    layouts = [pixel_layout(header, colour=grey_from_colour) for header in headers]
    per_file = [_frames(header, layout) for header, layout in zip(headers, layouts, strict=True)]
    frames = [frame for found in per_file for frame in found]
    owners = [number for number, found in enumerate(per_file) for _ in found]
    choice = choose_stack(
        frames,
        policy,
        late=lambda index: _late_marks(headers[owners[index]], len(per_file[owners[index]])),
        same_pixels=_comparison(headers, layouts, frames, owners),
    )
    first = headers[owners[choice.members[0]]]
    try:
        grid, order = _grid(frames, choice.members, policy, first)
    except GeometryError as error:
        raise GeometryError("; ".join([*choice.notes, error.reason])) from error
    slices = [NOT_READ] * len(frames)
    for z, index in enumerate(order):
        if index is not None:
            slices[index] = z
    read = sorted({owners[index] for index in choice.members})
    layout = layouts[owners[choice.members[0]]]
    gaps = _gaps(order)
    return Arrangement(
        headers=tuple(headers[number] for number in read),
        layouts=tuple(layouts[number] for number in read),
        slices=tuple(z for z, owner in zip(slices, owners, strict=True) if owner in set(read)),
        grid=grid,
        frames=_frames_of_slices(frames, order, grid),
        gaps=gaps,
        notes=(*choice.notes, *_gap_notes(gaps, len(order)), *_notes(first, layout, grid)),
    )


def _frames(header: Header, layout: PixelLayout) -> tuple[Frame, ...]:
    """Return the frames of one file, one for each image plane in it."""
    dataset = header.attributes
    if "MOSAIC" in text(dataset, "ImageType").split("\\"):
        raise GeometryError("the images are mosaics (several slices tiled in one image), which are not read")
    frames = frames_of(dataset)
    if len(frames) == layout.n_frames:
        return frames
    if text(dataset, "SOPClassUID") == NUCLEAR_MEDICINE:
        raise GeometryError(
            f"not read as a volume: nuclear medicine of the type {image_type(dataset) or 'unknown'}; only RECON TOMO "
            "of one detector is, with its position, Slice Vector and Spacing Between Slices"
        )
    described = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    if described not in (0, layout.n_frames):
        raise GeometryError(f"functional groups describe {described} of {layout.n_frames} frames")
    if not described and layout.n_frames > 1:
        raise GeometryError(f"{layout.n_frames} frames in one instance without a position for each")
    raise GeometryError(
        f"the images ({class_name(text(dataset, 'SOPClassUID'))}) have no full geometry: Image Position (Patient), "
        "Image Orientation (Patient) or Pixel Spacing is missing"
    )


def _late_marks(header: Header, n_frames: int) -> Marks:
    """Return further marks of a classic image; those of an enhanced one stand in its functional groups."""
    if n_frames > 1:
        return ()
    return tuple((keyword, found) for keyword in _LATE_MARKS if (found := text(header.attributes, keyword)))


def _comparison(
    headers: Sequence[Header], layouts: Sequence[PixelLayout], frames: Sequence[Frame], owners: Sequence[int]
) -> Callable[[int, int], bool]:
    """Return the function that compares the values of two frames, in the unit of the modality."""

    def values(index: int) -> NDArray[np.float32]:
        header, layout = headers[owners[index]], layouts[owners[index]]
        number = frames[index].frame_number - 1
        check_decodable(header, layout)
        (stored,) = stored_frames(header, layout, [number])
        out = np.empty(stored.shape, dtype=np.float32)
        modality_luts(header.attributes, layout.n_frames)[number].apply(stored, out)
        return out

    return lambda one, other: np.array_equal(values(one), values(other))


def _grid(
    frames: Sequence[Frame], members: Sequence[int], policy: ReadPolicy, header: Header
) -> tuple[Grid, tuple[int | None, ...]]:
    """Return the grid of the chosen frames, and which of all frames is each slice."""
    if len(members) == 1 and policy.min_slices <= 1:
        return single_slice_grid(frames[members[0]], _thickness(header)), (members[0],)
    chosen = [frames[index] for index in members]
    grid, order = grid_from_frames(chosen, missing_slices=policy.missing_slices)
    if len(members) < policy.min_slices:
        raise NotApplicableError(f"the stack has {len(members)} slices; at least {policy.min_slices} are needed")
    return grid, tuple(None if place is None else members[place] for place in order)


def _thickness(header: Header) -> float:
    found = floats(_measures(header), "SliceThickness", 1)
    if not found or found[0] <= 0:
        raise GeometryError("a single slice without Slice Thickness: how far it reaches is not known")
    return found[0]


def _gaps(order: Sequence[int | None]) -> tuple[Gap, ...]:
    shown = [z for z, index in enumerate(order) if index is not None]
    return tuple(
        Gap(z=z, before=max(k for k in shown if k < z), after=min(k for k in shown if k > z))
        for z, index in enumerate(order)
        if index is None
    )


def _gap_notes(gaps: Sequence[Gap], n_slices: int) -> tuple[str, ...]:
    if not gaps:
        return ()
    which = ", ".join(str(gap.z + 1) for gap in gaps)
    words = f"slice {which} of {n_slices} is" if len(gaps) == 1 else f"slices {which} of {n_slices} are"
    return (
        f"{words} missing and interpolated from the neighbours: volumes count what is found there; outlines, diameters "
        "and the segmentation, which belong to images, leave it out",
    )


def _frames_of_slices(frames: Sequence[Frame], order: Sequence[int | None], grid: Grid) -> tuple[Frame, ...]:
    first = next(frames[index] for index in order if index is not None)
    return tuple(frame_between(first, grid, z) if index is None else frames[index] for z, index in enumerate(order))


def _notes(header: Header, layout: PixelLayout, grid: Grid) -> tuple[str, ...]:
    """Return in words what was noticed and accepted."""
    notes = []
    if not text(header.attributes, "SOPInstanceUID"):
        notes.append("the instances have no SOP Instance UID: results cannot refer to them")
    if grid.shape[0] == 1:
        notes.append(f"a single slice: that it reaches {grid.spacing_mm[0]:g} mm is what SliceThickness says, a hint")
    return (*notes, *_contradictions(header, grid), *pixel_notes(header, layout))


def _contradictions(header: Header, grid: Grid) -> list[str]:
    """Return what the header says of distances and the positions do not."""
    notes = []
    distance, step = slice_distance_mm(grid), grid.spacing_mm[0]
    tilt = shear_degrees(grid)
    if tilt > _SHEAR_NOTED_DEGREES:
        notes.append(f"the slices are sheared by {tilt:.1f} degrees (gantry tilt); the grid keeps the shear")
    if grid.shape[0] == 1:
        return notes
    between = floats(_measures(header), "SpacingBetweenSlices", 1)
    if between and all(_differs(abs(between[0]), truth) for truth in (distance, step)):
        notes.append(
            f"SpacingBetweenSlices says {between[0]:g} mm, but the positions are {distance:.3f} mm apart; "
            "positions are used"
        )
    thickness = floats(_measures(header), "SliceThickness", 1)
    if thickness and thickness[0] > 0 and all(_differs(thickness[0], truth) for truth in (distance, step)):
        kind = "overlap" if thickness[0] > distance else "leave gaps"
        notes.append(
            f"SliceThickness says {thickness[0]:g} mm, but the positions are {distance:.3f} mm apart: slices {kind}; "
            "positions are used"
        )
    return notes


def _measures(header: Header) -> Attributes:
    return next(iter(functional_groups(header.attributes, "PixelMeasuresSequence")), None) or header.attributes


def _differs(hint_mm: float, truth_mm: float) -> bool:
    return abs(hint_mm - truth_mm) > _HINT_TOLERANCE * truth_mm
