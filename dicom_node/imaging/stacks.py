"""Frames -> stacks: which frames of a series belong together, and which of several stacks is read. Pure.

Before `geometry`, which puts one stack on a grid. A series may hold images of several kinds (localizers, other sizes),
and of one kind several at each position: echoes, b-values, phases, parts of a complex image, two passes of a contrast
agent under one UID. They are never mixed and never merged.

* **Kinds**: frames of another size, orientation, Pixel Spacing or Frame of Reference cannot lie on one grid.
* **Marks**: where frames of one kind make no regular stack, the first mark (`_ORDER`) is looked for whose values part
  them into alternatives: stacks over the same stretch, not pieces of one stretch behind each other. Marks that change
  from slice to slice (trigger and acquisition times) part by their rank at each position.
* **Copies**: frames at one place with the same pixels are one frame. With other pixels, and no mark that tells them
  apart, the stack stays doubled, and `geometry` refuses it.
* **Choice**: the kind whose largest stack has most slices, the plugin's preferences, most slices, then the natural
  order of the marks: first echo, lowest b-value, first phase, magnitude before phase. It is always said in words.

Sources: DICOM PS3.3 C.7.6.16.2.2 (Stack ID, Temporal Position Index), C.8.13.5.1 (Complex Image Component).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import GeometryError, NotApplicableError
from dicom_node.imaging.geometry import COSINE_TOLERANCE, SPACING_TOLERANCE, grid_from_frames, same_position_mm
from dicom_node.study import Frame

SamePixels: TypeAlias = Callable[[int, int], bool]
"""Whether two frames, by their index, show the same values."""
Marks: TypeAlias = tuple[tuple[str, str], ...]
LateMarks: TypeAlias = Callable[[int], Marks]
"""Marks of a frame, by its index, that cost a look into its header."""

_ORDER = (
    *("ComplexImageComponent", "ImageType", "FrameType", "StackID"),
    *("EffectiveEchoTime", "EchoTime", "EchoNumbers", "InversionTime", "InversionTimes", "FlipAngle"),
    *("DiffusionBValue", "DiffusionDirectionality", "DiffusionGradientOrientation"),
    *("TemporalPositionIndex", "TemporalPositionIdentifier", "NominalCardiacTriggerDelayTime", "TriggerTime"),
    *("ConvolutionKernel", "KVP", "SliceThickness", "FrameAcquisitionNumber", "AcquisitionNumber"),
    "",  # every other mark
    *("AcquisitionTime", "ContentTime", "InstanceNumber"),
)
"""Which mark explains first why frames share a place: what was measured, before when, before how it was numbered."""
_WEAK = frozenset(
    {"ImageType", "FrameType", "FrameAcquisitionNumber", "AcquisitionNumber"}
    | {"AcquisitionTime", "ContentTime", "InstanceNumber"}
)
"""Marks that also differ within one stack: they part no stack that only misses a slice."""
_RANKED = {
    "NominalCardiacTriggerDelayTime": False,
    "TriggerTime": False,
    "AcquisitionTime": True,
    "ContentTime": True,
    "InstanceNumber": True,
}
"""Marks that may change from slice to slice, and whether one stack must end before the next begins."""
_TIMES = frozenset({"AcquisitionTime", "ContentTime"})
_UNITS: Mapping[str, str] = {
    "EchoTime": " ms",
    "EffectiveEchoTime": " ms",
    "InversionTime": " ms",
    "InversionTimes": " ms",
    "FlipAngle": " degrees",
    "DiffusionBValue": " s/mm2",
    "NominalCardiacTriggerDelayTime": " ms",
    "TriggerTime": " ms",
    "KVP": " kV",
    "SliceThickness": " mm",
}
_COMPONENTS = ("MAGNITUDE", "M", "PHASE", "P", "REAL", "R", "IMAGINARY", "I", "MIXED")
"""Natural order of the parts of a complex image, as functional groups and as Image Type name them."""
_NAMED = 4
"""Stacks whose names a sentence lists."""
_LEAST_OVERLAP = 0.5
"""Of the shorter of two stretches: alternatives show the same place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPreference:
    """What a plugin wants of one mark when a series holds several stacks."""

    keyword: str
    prefer: Literal["smallest", "largest"] | None = None
    equals: str | None = None
    """A demand: stacks with another value, or without the mark, are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPolicy:
    """What may become a volume; the defaults are those of a plugin that says nothing."""

    stacks: Literal["choose", "refuse"] = "choose"
    """Of a series with several stacks."""
    preferences: tuple[StackPreference, ...] = ()
    missing_slices: int = 0
    """How many missing slices of a stack, in all, may be interpolated."""
    min_slices: int = 2
    """1: a single slice makes a volume too, as thick as its header says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames that belong together, by their index in the series."""

    members: tuple[int, ...]
    kind: int
    """Number of its kind: size, orientation, Pixel Spacing, Frame of Reference."""
    marks: Marks = ()
    """What sets it apart from the other stacks of its kind."""
    n_copies: int = 0
    """Frames that were left out because another one shows the same at the same place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The stack that is read, and what must be said about it."""

    members: tuple[int, ...]
    notes: tuple[str, ...]


def choose_stack(
    frames: Sequence[Frame], policy: ReadPolicy, *, late: LateMarks | None = None, same_pixels: SamePixels | None = None
) -> Choice:
    """Return the one stack of a series that is read, and what was left out in words.

    Parameters
    ----------
    late
        Further marks of a frame, which do not belong to its identity: ContentTime, InstanceNumber, SliceThickness.
        Asked only where frames make no regular stack.
    same_pixels
        None: no two frames are copies.

    Raises
    ------
    GeometryError
        When there are several stacks and none may be, or none is clearly, the one that is meant.
    NotApplicableError
        When no stack has what the plugin demands, or the one that is meant has too few slices.
    """
    sheet = _Sheet(frames, late, policy.missing_slices)
    stacks = _stacks(sheet, same_pixels)
    if len(stacks) > 1 and policy.stacks == "refuse":
        raise GeometryError(f"{_listed(stacks, frames)}; this plugin reads series of one stack only")
    wanted = _demanded(stacks, sheet, policy.preferences)
    candidates = _preferred(_main_kind(wanted, frames), sheet, policy.preferences)
    chosen = min(candidates, key=lambda stack: (-len(stack.members), _natural(stack), _uids(stack, frames)))
    _check_no_piece(chosen, stacks, sheet)
    notes = []
    if len(stacks) > 1:
        why = "as the plugin prefers" if policy.preferences else "most slices, then the first"
        notes.append(f"{_listed(stacks, frames)}: read {_name(chosen, stacks, frames)} ({why})")
    if chosen.n_copies:
        copies = "1 image is a copy" if chosen.n_copies == 1 else f"{chosen.n_copies} images are copies"
        notes.append(f"{copies} of others (same place, same pixels) and left out")
    return Choice(members=chosen.members, notes=tuple(notes))


def split_stacks(
    frames: Sequence[Frame],
    *,
    missing_slices: int = 0,
    late: LateMarks | None = None,
    same_pixels: SamePixels | None = None,
) -> tuple[Stack, ...]:
    """Return the stacks that the frames make, each a candidate for `grid_from_frames`; no frame is in two.

    A stack that is not regular and that nothing splits further stays as it is.
    """
    return _stacks(_Sheet(frames, late, missing_slices), same_pixels)


def _stacks(sheet: _Sheet, same_pixels: SamePixels | None) -> tuple[Stack, ...]:
    stacks = []
    for number, members in enumerate(_kinds(sheet.frames)):
        stacks += _split(sheet, Stack(members=members, kind=number), same_pixels)
    return tuple(stacks)


def _kinds(frames: Sequence[Frame]) -> list[tuple[int, ...]]:
    """Return the frames of each kind, in the order of their first ones."""
    kinds: list[tuple[Frame, list[int]]] = []
    known: dict[object, list[int]] = {}
    for index, frame in enumerate(frames):
        key = (frame.rows, frame.columns, frame.frame_of_reference_uid, frame.orientation, frame.pixel_spacing_mm)
        if key not in known:
            for first, members in kinds:
                if _same_kind(first, frame):
                    known[key] = members
                    break
            else:
                known[key] = []
                kinds.append((frame, known[key]))
        known[key].append(index)
    return [tuple(members) for _, members in kinds]


def _same_kind(one: Frame, other: Frame) -> bool:
    if (one.rows, one.columns, one.frame_of_reference_uid) != (other.rows, other.columns, other.frame_of_reference_uid):
        return False
    turned = np.abs(np.subtract(one.orientation, other.orientation)).max()
    return bool(turned <= COSINE_TOLERANCE) and _same_spacing(one.pixel_spacing_mm, other.pixel_spacing_mm)


def _same_spacing(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(abs(a - b) <= SPACING_TOLERANCE * abs(b) for a, b in zip(one, other, strict=True))


class _Sheet:
    """What is asked of frames again and again: their marks, their place along the normal, whether they are regular."""

    def __init__(self, frames: Sequence[Frame], late: LateMarks | None, missing_slices: int) -> None:
        self.frames = frames
        self._missing_slices = missing_slices
        self._late = late

    @cached_property
    def _marks(self) -> list[dict[str, str]]:
        """Return the marks of every frame; most series are one regular stack, and nobody asks."""
        late = self._late or (lambda _: ())
        return [
            {keyword: _canonical(keyword, text) for keyword, text in (*frame.stack, *late(index))}
            for index, frame in enumerate(self.frames)
        ]

    def value(self, index: int, keyword: str) -> str:
        """Return a mark of a frame; empty where it has none."""
        return self._marks[index].get(keyword, "")

    def keywords(self, members: Iterable[int]) -> list[str]:
        """Return the marks that differ between frames, what explains most first."""
        values: dict[str, set[str]] = {}
        members = list(members)
        for index in members:
            for keyword in self._marks[index]:
                values.setdefault(keyword, set())
        for keyword, found in values.items():
            found.update(self.value(index, keyword) for index in members)
        return sorted((keyword for keyword, found in values.items() if len(found) > 1), key=_explains)

    def parts(self, members: Iterable[int], keyword: str) -> dict[str, tuple[int, ...]]:
        """Return the frames of each value of a mark."""
        parts: dict[str, list[int]] = {}
        for index in members:
            parts.setdefault(self.value(index, keyword), []).append(index)
        return {value: tuple(part) for value, part in parts.items()}

    def along(self, members: Sequence[int]) -> NDArray[np.float64]:
        """Return how far each frame lies along the normal of the first, in mm."""
        cosines = np.array(self.frames[members[0]].orientation).reshape(2, 3)
        positions = np.array([self.frames[index].position_mm for index in members])
        return np.asarray(positions @ np.cross(cosines[0], cosines[1]))

    def places(self, members: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the frames at each place, in the order of the places along the normal."""
        along = self.along(members)
        order = np.argsort(along, kind="stable")
        apart = np.flatnonzero(np.diff(along[order]) > same_position_mm(along)) + 1
        return [tuple(members[int(i)] for i in part) for part in np.split(order, apart)]

    def refusal(self, members: Sequence[int], missing_slices: int | None = None) -> str | None:
        """Return why the frames make no regular stack; None when they do."""
        if len(members) == 1:
            return None
        allowed = self._missing_slices if missing_slices is None else missing_slices
        try:
            grid_from_frames([self.frames[index] for index in members], missing_slices=allowed)
        except GeometryError as error:
            return error.reason
        return None


def _split(sheet: _Sheet, stack: Stack, same_pixels: SamePixels | None) -> list[Stack]:
    """Return the stacks that one kind, or a part of it, holds."""
    if sheet.refusal(stack.members) is None:
        return [stack]
    for keyword in sheet.keywords(stack.members):
        parts = sheet.parts(stack.members, keyword)
        if _are_alternatives(sheet, keyword, stack.members, parts):
            return _split_parts(sheet, stack, keyword, parts, same_pixels)
    without = _without_copies(sheet, stack, same_pixels)
    if without is not None:
        return [without]
    for keyword, in_blocks in _RANKED.items():
        ranked = _ranks(sheet, stack.members, keyword, in_blocks=in_blocks)
        if ranked is not None:
            return _split_parts(sheet, stack, keyword, ranked, same_pixels)
    return [stack]


def _split_parts(
    sheet: _Sheet, stack: Stack, keyword: str, parts: Mapping[str, tuple[int, ...]], same_pixels: SamePixels | None
) -> list[Stack]:
    found = []
    for value, part in parts.items():
        marked = Stack(members=part, kind=stack.kind, marks=(*stack.marks, (keyword, value)))
        found += _split(sheet, marked, same_pixels)
    return found


def _are_alternatives(
    sheet: _Sheet, keyword: str, members: tuple[int, ...], parts: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether the values of a mark part the frames into stacks that show the same stretch of the patient."""
    if len(parts) < 2 or not (keyword == "StackID" or _overlap(sheet, parts.values())):
        return False
    at_one_place = max(len({sheet.value(i, keyword) for i in place}) for place in sheet.places(members))
    if 2 <= at_one_place and len(parts) < 2 * at_one_place:
        return True
    if 2 * len(parts) > len(members) or any(sheet.refusal(part) for part in parts.values()):
        return False
    # Two passes that interleave miss a slice of one whole; they are no alternatives.
    return keyword not in _WEAK or sheet.refusal(members, missing_slices=len(members)) is not None


def _overlap(sheet: _Sheet, parts: Iterable[tuple[int, ...]]) -> bool:
    """Return whether every part shows, for half of its length or more, the stretch that the largest one shows."""
    parts = sorted(parts, key=len, reverse=True)
    along = sheet.along([index for part in parts for index in part])
    ends = np.cumsum([len(part) for part in parts])[:-1]
    stretches = [(float(part.min()), float(part.max())) for part in np.split(along, ends)]
    low, high = stretches[0]
    for first, last in stretches[1:]:
        shared = min(high, last) - max(low, first)
        if shared < 0 or shared < _LEAST_OVERLAP * min(last - first, high - low):
            return False
    return True


def _without_copies(sheet: _Sheet, stack: Stack, same_pixels: SamePixels | None) -> Stack | None:
    """Return the stack with one frame at each place, when all others there are copies."""
    if same_pixels is None:
        return None
    kept = []
    for place in sheet.places(stack.members):
        first, *others = sorted(place, key=lambda index: _uid(sheet.frames[index]))
        shift = max((_shift(sheet.frames[first], sheet.frames[other]) for other in others), default=0.0)
        if shift > same_position_mm(sheet.along(stack.members)) or not all(same_pixels(first, i) for i in others):
            return None
        kept.append(first)
    n_copies = len(stack.members) - len(kept)
    if not n_copies:
        return None
    return Stack(members=tuple(kept), kind=stack.kind, marks=stack.marks, n_copies=n_copies)


def _shift(one: Frame, other: Frame) -> float:
    return float(np.linalg.norm(np.subtract(one.position_mm, other.position_mm)))


def _ranks(
    sheet: _Sheet, members: tuple[int, ...], keyword: str, *, in_blocks: bool
) -> dict[str, tuple[int, ...]] | None:
    """Return the frames that come first, second ... at every place by a mark that changes from slice to slice."""
    places = sheet.places(members)
    depth = len(places[0])
    if depth < 2 or len(places) < 2 or any(len(place) != depth for place in places):
        return None
    numbers = {index: _number(sheet.value(index, keyword)) for index in members}
    if any(number is None for number in numbers.values()):
        return None
    ranked: list[list[int]] = [[] for _ in range(depth)]
    for place in places:
        in_turn = sorted(place, key=lambda index: numbers[index] or 0.0)
        if any(numbers[one] == numbers[other] for one, other in pairwise(in_turn)):
            return None
        for part, index in zip(ranked, in_turn, strict=True):
            part.append(index)
    spans = [sorted(numbers[index] or 0.0 for index in part) for part in ranked]
    if in_blocks and any(one[-1] >= other[0] for one, other in pairwise(spans)):
        return None
    if any(sheet.refusal(part) for part in ranked):
        return None
    return {f"{span[0]:.12g} to {span[-1]:.12g}": tuple(part) for span, part in zip(spans, ranked, strict=True)}


def _demanded(stacks: Sequence[Stack], sheet: _Sheet, preferences: Sequence[StackPreference]) -> list[Stack]:
    """Return the stacks that have every value that the plugin demands."""
    wanted = list(stacks)
    for demand in preferences:
        if demand.equals is not None:
            value = _canonical(demand.keyword, demand.equals)
            wanted = [s for s in wanted if {value} == {sheet.value(i, demand.keyword) for i in s.members}]
            if not wanted:
                raise NotApplicableError(f"no stack of the series has {demand.keyword} {demand.equals}")
    return wanted


def _preferred(stacks: Sequence[Stack], sheet: _Sheet, preferences: Sequence[StackPreference]) -> list[Stack]:
    """Return the stacks with the smallest or largest value of each preferred mark in turn; those without it lose."""
    kept = list(stacks)
    for preference in preferences:
        if preference.prefer is not None:
            values = {stack: _mean(sheet, stack, preference.keyword) for stack in kept}
            known = [value for value in values.values() if value is not None]
            if known:
                best = min(known) if preference.prefer == "smallest" else max(known)
                kept = [stack for stack in kept if values[stack] == best]
    return kept


def _mean(sheet: _Sheet, stack: Stack, keyword: str) -> float | None:
    numbers = [_number(sheet.value(index, keyword)) for index in stack.members]
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if len(known) == len(numbers) else None


def _main_kind(stacks: Sequence[Stack], frames: Sequence[Frame]) -> list[Stack]:
    """Return the stacks of the kind whose largest stack has most slices."""
    largest: dict[int, int] = {}
    for stack in stacks:
        largest[stack.kind] = max(largest.get(stack.kind, 0), len(stack.members))
    most = max(largest.values())
    main = [kind for kind, size in largest.items() if size == most]
    if len(main) > 1:
        what = f"{most} slices each" if most > 1 else "single slices"
        raise GeometryError(f"{_listed(stacks, frames)}: {what}, so none of them is the one that is meant")
    return [stack for stack in stacks if stack.kind == main[0]]


def _check_no_piece(chosen: Stack, stacks: Sequence[Stack], sheet: _Sheet) -> None:
    """Refuse a stack that images of another size or spacing continue: what is read would end in mid-patient."""
    first = sheet.frames[chosen.members[0]]
    for other in stacks:
        frame = sheet.frames[other.members[0]]
        turned = np.abs(np.subtract(first.orientation, frame.orientation)).max() > COSINE_TOLERANCE
        if other.kind == chosen.kind or turned or frame.frame_of_reference_uid != first.frame_of_reference_uid:
            continue
        if not _overlap(sheet, [chosen.members, other.members]):
            raise GeometryError(
                f"{_listed(stacks, sheet.frames)}: they lie behind each other and are pieces of one volume"
            )


def _listed(stacks: Sequence[Stack], frames: Sequence[Frame]) -> str:
    """Return how many stacks there are and what sets them apart, in words."""
    first = {stack.kind: frames[stack.members[0]] for stack in reversed(stacks)}
    differ = _differences(list(first.values()))
    mixed = f"images of different {_and(list(differ))} are mixed in one series: " if differ else ""
    several = "several stacks are mixed in one series: " if not differ else ""
    ordered = sorted(stacks, key=lambda stack: (stack.kind, _natural(stack), _uids(stack, frames)))
    names = [_name(stack, stacks, frames) for stack in ordered[:_NAMED]]
    more = "; ..." if len(stacks) > _NAMED else ""
    counted = f"{len(first)} {_one_word(differ)}, " if len(first) > 1 and differ else ""
    return f"{mixed}{several}{counted}{len(stacks)} stacks ({'; '.join(names)}{more})"


def _one_word(differ: Mapping[str, object]) -> str:
    return "orientations" if list(differ) == ["orientations"] else "kinds"


def _name(stack: Stack, stacks: Sequence[Stack], frames: Sequence[Frame]) -> str:
    """Return what sets a stack apart: "EchoTime 4.9 ms, 40 slices"."""
    first = {one.kind: frames[one.members[0]] for one in reversed(stacks)}
    words = [
        f"{keyword} {value}{_UNITS.get(keyword, '')}" if value else f"no {keyword}" for keyword, value in stack.marks
    ]
    frame = first[stack.kind]
    words += [word(frame) for word in _differences(list(first.values())).values()]
    n_slices = len(stack.members)
    return ", ".join([*words, "1 slice" if n_slices == 1 else f"{n_slices} slices"])


def _differences(kinds: Sequence[Frame]) -> dict[str, Callable[[Frame], str]]:
    """Return in which respects kinds differ, and the words for each."""
    respects: dict[str, Callable[[Frame], str]] = {}
    if len({(frame.rows, frame.columns) for frame in kinds}) > 1:
        respects["sizes"] = lambda frame: f"{frame.rows} x {frame.columns} pixels"
    if len({frame.frame_of_reference_uid for frame in kinds}) > 1:
        uids = list(dict.fromkeys(frame.frame_of_reference_uid for frame in kinds))
        respects["Frames of Reference"] = lambda f: f"Frame of Reference {uids.index(f.frame_of_reference_uid) + 1}"
    if any(np.abs(np.subtract(kinds[0].orientation, f.orientation)).max() > COSINE_TOLERANCE for f in kinds):
        respects["orientations"] = lambda frame: f"orientation {_backslashed(frame.orientation)}"
    if not all(_same_spacing(kinds[0].pixel_spacing_mm, frame.pixel_spacing_mm) for frame in kinds):
        respects["Pixel Spacing"] = lambda frame: "{:g} x {:g} mm".format(*frame.pixel_spacing_mm)
    return respects


def _backslashed(numbers: Iterable[float]) -> str:
    return "\\".join(f"{round(number, 2) + 0.0:g}" for number in numbers)


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _explains(keyword: str) -> tuple[int, bool, str]:
    place = _ORDER.index(keyword) if keyword in _ORDER else _ORDER.index("")
    return place, keyword.startswith("("), keyword


def _natural(stack: Stack) -> tuple[tuple[object, ...], ...]:
    """Return the key by which stacks with the same number of slices are ordered."""
    return tuple((_explains(keyword), *_natural_value(keyword, value)) for keyword, value in stack.marks)


def _natural_value(keyword: str, value: str) -> tuple[float, float, str]:
    if keyword in ("ComplexImageComponent", "ImageType", "FrameType"):
        words = value.split("\\")
        component = next((_COMPONENTS.index(word) for word in words if word in _COMPONENTS), len(_COMPONENTS))
        return float(component), float(words[0] != "ORIGINAL"), value
    number = _number(value.partition(" to ")[0])
    return (float(number is None), 0.0 if number is None else number, value)


def _canonical(keyword: str, text: str) -> str:
    """Return a mark so that equal values are equal texts: 4.90 is 4.9."""
    if keyword in _TIMES:
        return text
    numbers = [_number(part) for part in text.split("\\")]
    return "\\".join(
        part if number is None else f"{number:.6g}" for part, number in zip(text.split("\\"), numbers, strict=True)
    )


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _uid(frame: Frame) -> tuple[str, int]:
    return frame.sop_instance_uid, frame.frame_number


def _uids(stack: Stack, frames: Sequence[Frame]) -> tuple[str, int]:
    """Return what orders stacks that nothing else does, whatever the order of the files."""
    return min(_uid(frames[index]) for index in stack.members)
