from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import GeometryError, NotApplicableError
from dicom_node.imaging.stacks import Choice, Marks, ReadPolicy, StackPreference, choose_stack, split_stacks
from dicom_node.study import Frame

SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def frame(z_mm: float, number: int = 1, **changes: Any) -> Frame:
    """Return an axial frame of 4 x 5 pixels at a height; keywords that are no fields become its marks."""
    fields = {name: value for name, value in changes.items() if name in Frame.__dataclass_fields__}
    marks = tuple(sorted((name, str(value)) for name, value in changes.items() if name not in fields))
    whole = Frame(
        sop_instance_uid=f"1.2.{number}",
        frame_number=1,
        position_mm=(10.0, 20.0, z_mm),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(2.0, 3.0),
        rows=4,
        columns=5,
        frame_of_reference_uid="1.3",
        stack=marks,
    )
    return replace(whole, **fields)


def stack(*z_mm: float, **changes: Any) -> list[Frame]:
    """Return the frames of one stack; no UID is that of another stack's frame."""
    first = zlib.crc32(str((z_mm, sorted(changes.items()))).encode())
    return [frame(z, first + k, **changes) for k, z in enumerate(z_mm)]


def chosen(frames: Sequence[Frame], **changes: Any) -> Choice:
    """Return the choice with a policy of these values."""
    late = changes.pop("late", None)
    same_pixels = changes.pop("same_pixels", None)
    return choose_stack(frames, ReadPolicy(**changes), late=late, same_pixels=same_pixels)


def read(frames: Sequence[Frame], choice: Choice) -> set[Frame]:
    """Return the frames of a choice."""
    return {frames[index] for index in choice.members}


def test_one_stack_is_read_whole_and_nothing_is_said() -> None:
    """Marks that differ within a regular stack split nothing."""
    frames = [frame(z, z, AcquisitionNumber=z, ImageType="ORIGINAL" if z else "DERIVED") for z in range(5)]
    choice = chosen(frames)
    assert (0, 1, 2, 3, 4) == choice.members
    assert () == choice.notes


@pytest.mark.parametrize(
    ("keyword", "values", "first", "words"),
    [
        ("EchoTime", ["9.8", "4.9"], "4.9", "EchoTime 4.9 ms"),
        ("EchoTime", ["10.5", "9.8"], "9.8", "EchoTime 9.8 ms"),  # as numbers
        ("DiffusionBValue", ["1000", "0"], "0", "DiffusionBValue 0 s/mm2"),
        ("TemporalPositionIndex", ["10", "2", "3"], "2", "TemporalPositionIndex 2"),
        ("ComplexImageComponent", ["PHASE", "MAGNITUDE"], "MAGNITUDE", "ComplexImageComponent MAGNITUDE"),
        ("ComplexImageComponent", ["IMAGINARY", "REAL"], "REAL", "ComplexImageComponent REAL"),
        (
            "ImageType",
            ["ORIGINAL\\PRIMARY\\P\\ND", "ORIGINAL\\PRIMARY\\M\\ND"],
            "ORIGINAL\\PRIMARY\\M\\ND",
            "ImageType",
        ),
        ("ImageType", ["DERIVED\\SECONDARY", "ORIGINAL\\PRIMARY"], "ORIGINAL\\PRIMARY", "ImageType ORIGINAL"),
        ("StackID", ["2", "1"], "1", "StackID 1"),
        ("NominalCardiacTriggerDelayTime", ["420", "35"], "35", "NominalCardiacTriggerDelayTime 35 ms"),
        ("AcquisitionTime", ["120500.5", "120101"], "120101", "AcquisitionTime 120101"),
        ("(0021,105A)", ["2", "1"], "1", "(0021,105A) 1"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_stacks_at_the_same_places_are_split_and_the_first_is_read(
    keyword: str, values: list[str], first: str, words: str, turned: bool
) -> None:
    """Echoes, b-values, phases and parts are told apart by their mark; the first is read in any order of files."""
    frames = [one for value in values for one in stack(0, 2, 4, **{keyword: value})]
    frames = frames[::-1] if turned else frames
    choice = chosen(frames)
    assert set(stack(0, 2, 4, **{keyword: first})) == read(frames, choice)
    (note,) = choice.notes
    assert f"several stacks are mixed in one series: {len(values)} stacks (" in note
    assert f": read {words}" in note


def test_stacks_of_several_marks_are_split_by_all_of_them() -> None:
    """Two echoes of magnitude and phase are four stacks; the first echo's magnitude is read."""
    frames = [
        one
        for part in ("PHASE", "MAGNITUDE")
        for echo in (9.8, 4.9)
        for one in stack(0, 2, 4, ComplexImageComponent=part, EchoTime=echo)
    ]
    assert 4 == len(split_stacks(frames))
    choice = chosen(frames)
    assert {frames[index].stack for index in choice.members} == {
        (("ComplexImageComponent", "MAGNITUDE"), ("EchoTime", "4.9"))
    }
    assert "read ComplexImageComponent MAGNITUDE, EchoTime 4.9 ms, 3 slices" in choice.notes[0]


def test_the_stack_with_most_slices_is_read_before_the_first() -> None:
    """A portal venous phase of more slices is read, not the arterial one before it."""
    arterial = stack(2, 4, 6, AcquisitionNumber=1)
    venous = stack(0, 2, 4, 6, 8, AcquisitionNumber=2)
    frames = arterial + venous
    assert set(venous) == read(frames, chosen(frames))


def test_phases_whose_positions_do_not_coincide_are_split() -> None:
    """The table went back to another place: two phases, 0.7 mm apart, are two stacks and no irregular one."""
    frames = stack(0, 2, 4, 6, AcquisitionNumber=1) + stack(0.7, 2.7, 4.7, AcquisitionNumber=2)
    assert set(frames[:4]) == read(frames, chosen(frames))


@pytest.mark.parametrize(
    "second",
    [
        stack(6, 8, 10, AcquisitionNumber=2),
        stack(7.4, 9.4, 11.4, AcquisitionNumber=2),
        stack(10, 12, AcquisitionNumber=2),
    ],
    ids=["shared slice", "other distance", "missing slice"],
)
def test_pieces_of_one_stretch_are_no_alternatives(second: list[Frame]) -> None:
    """A head scanned in two parts is one head: half of it must not be read as the whole."""
    frames = stack(0, 2, 4, 6, AcquisitionNumber=1) + second
    assert 1 == len(split_stacks(frames))


def test_passes_that_interleave_and_miss_a_slice_are_no_stacks() -> None:
    """Odd and even slices come in two passes; with one lost, half of the slices is no volume of its own."""
    frames = stack(0, 4, 8, 12, 16, AcquisitionNumber=1) + stack(2, 6, 10, AcquisitionNumber=2)
    assert 1 == len(split_stacks(frames))


def test_trigger_times_that_differ_from_slice_to_slice_are_ranked() -> None:
    """A cine: each slice has its own trigger times; the first phase is the earliest of each slice."""
    frames = [
        frame(z, 10 * z + phase, TriggerTime=phase * 40 + z) for z in (0, 2, 4) for phase in (2, 0, 1)
    ]  # fmt: skip
    choice = chosen(frames)
    assert {"0", "2", "4"} == {dict(frames[index].stack)["TriggerTime"] for index in choice.members}
    assert "read TriggerTime 0 to 4 ms, 3 slices" in choice.notes[0]


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime", "InstanceNumber"])
def test_whole_sweeps_after_each_other_are_phases(keyword: str) -> None:
    """Two sweeps over the same places, told only by time or number: the first is read."""
    frames = [frame(z, k) for k, z in enumerate((0, 2, 4, 0, 2, 4))]
    late: list[Marks] = [((keyword, str(120000 + k)),) for k in range(6)]
    assert (0, 1, 2) == chosen(frames, late=late.__getitem__).members


def test_pairs_of_neighbours_are_no_sweeps() -> None:
    """Positions rounded to whole millimetres fall together in pairs: numbers in turn make no two stacks of them."""
    frames = [frame(z, k) for k, z in enumerate((0, 0, 1, 1, 2, 2))]
    late: list[Marks] = [(("InstanceNumber", str(k)),) for k in range(6)]
    choice = chosen(frames, late=late.__getitem__)
    assert 6 == len(choice.members)


@pytest.mark.parametrize("off_mm", [0.0, 0.01])
def test_copies_are_left_out_with_a_note(off_mm: float) -> None:
    """The same pixels at the same place, a rounding apart, under another UID are one image."""
    frames = [frame(z, k) for k, z in enumerate((0, 2, 4))] + [frame(2 + off_mm, 7)]
    choice = chosen(frames, same_pixels=lambda one, other: {one, other} == {1, 3})
    assert (0, 1, 2) == choice.members
    assert ("1 image is a copy of others (same place, same pixels) and left out",) == choice.notes


def test_other_pixels_at_one_place_are_no_copies() -> None:
    """Nothing tells them apart, so the stack stays doubled; geometry refuses it."""
    frames = [frame(z, k) for k, z in enumerate((0, 2, 4, 2))]
    assert 4 == len(chosen(frames, same_pixels=lambda *_: False).members)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (
            [frame(z, 90 + z, orientation=SAGITTAL) for z in (0, 1)],
            "different orientations .*: 2 orientations, 2 stacks",
        ),
        ([frame(z, 90 + z, rows=8) for z in (0, 2)], r"different sizes .*4 x 5 pixels, 5 slices; 8 x 5 pixels, 2"),
        ([frame(0, 90, pixel_spacing_mm=(1.0, 1.0))], "different Pixel Spacing .*1 x 1 mm, 1 slice"),
        ([frame(z, 90 + z, frame_of_reference_uid="1.4") for z in (0, 2)], "different Frames of Reference"),
    ],
)
def test_images_of_other_kinds_are_left_out_with_a_note(others: list[Frame], words: str) -> None:
    """Localizers, other sizes and spacings, and another Frame of Reference stand apart."""
    main = [frame(z, z) for z in (0, 2, 4, 6, 8)]
    choice = chosen([*main, *others])
    assert (0, 1, 2, 3, 4) == choice.members
    assert re.search(words, choice.notes[0])


def test_kinds_of_the_same_size_are_refused() -> None:
    """A localizer in three planes: none of them is the one that is meant."""
    frames = stack(0, 2, 4) + [frame(0, 50 + k, orientation=SAGITTAL, position_mm=(k, 0.0, 0.0)) for k in range(3)]
    with pytest.raises(GeometryError, match="2 orientations, 2 stacks .* 3 slices each, so none of them"):
        chosen(frames)


def test_a_plugin_may_refuse_several_stacks() -> None:
    """`stacks = "refuse"` names them."""
    frames = stack(0, 2, EchoTime=4.9) + stack(0, 2, EchoTime=9.8)
    with pytest.raises(GeometryError, match="EchoTime 4.9 ms, 2 slices; EchoTime 9.8 ms.*one stack only"):
        chosen(frames, stacks="refuse")


@pytest.mark.parametrize(
    ("preference", "value"),
    [
        (StackPreference(keyword="DiffusionBValue", prefer="largest"), "1000"),
        (StackPreference(keyword="DiffusionBValue", prefer="smallest"), "0"),
        (StackPreference(keyword="DiffusionBValue", equals="500.0"), "500"),
        (StackPreference(keyword="EchoTime", prefer="largest"), "0"),  # a mark that no stack has says nothing
    ],
)
def test_a_plugin_may_say_which_stack_it_wants(preference: StackPreference, value: str) -> None:
    """Its preference comes before the number of slices and the natural order."""
    frames = stack(0, 2, 4, DiffusionBValue=0) + stack(0, 2, 4, DiffusionBValue=500) + stack(0, 2, DiffusionBValue=1000)
    choice = chosen(frames, preferences=(preference,))
    assert {value} == {dict(frames[index].stack)["DiffusionBValue"] for index in choice.members}
    assert "as the plugin prefers" in choice.notes[0]


@pytest.mark.parametrize("marks", [{"DiffusionBValue": 0}, {}])
def test_a_demand_is_asked_of_a_single_stack_too(marks: dict[str, object]) -> None:
    """A plugin for b = 1000 does not get the series that has b = 0 alone, nor one that does not say."""
    demand = StackPreference(keyword="DiffusionBValue", equals="1000")
    with pytest.raises(NotApplicableError, match="no stack of the series has DiffusionBValue 1000"):
        chosen(stack(0, 2, 4, **marks), preferences=(demand,))


@settings(max_examples=60, deadline=None)
@given(
    n_slices=st.integers(2, 9),
    n_echoes=st.integers(1, 4),
    n_phases=st.integers(1, 3),
    data=st.data(),
)
def test_every_frame_is_in_one_stack(n_slices: int, n_echoes: int, n_phases: int, data: st.DataObject) -> None:
    """Any mixture of echoes and phases in any order is parted into stacks of one frame a place."""
    frames = [
        frame(2.5 * z, (z * 9 + echo) * 9 + phase, EchoTime=5 + echo, TemporalPositionIndex=phase)
        for z in range(n_slices)
        for echo in range(n_echoes)
        for phase in range(n_phases)
    ]
    frames = data.draw(st.permutations(frames))
    stacks = split_stacks(frames)
    assert n_echoes * n_phases == len(stacks)
    assert list(range(len(frames))) == sorted(index for one in stacks for index in one.members)
    for one in stacks:
        assert n_slices == len({frames[index].position_mm for index in one.members})
        assert 1 == len({frames[index].stack for index in one.members})
