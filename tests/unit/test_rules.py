"""Rules: what a condition finds, when it holds, which series a route takes, and what it says of the others."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence

from dicom_node.config.keywords import tag_of
from dicom_node.config.schema import Condition
from dicom_node.routing import Outcome, apply_routes, judge_series
from dicom_node.routing.conditions import judge
from dicom_node.routing.rules import choose_series
from dicom_node.study import SeriesView
from tests.unit.rules_case import MR_ONLY, NOW, condition, header, requirement, route, series, study

CREATOR = "GEMS_ACQU_01"

RICH = header(
    Modality="MR",
    SeriesDescription=" T1 mprage ",
    SliceThickness="1.50",
    SeriesNumber=7,
    ImageType=["ORIGINAL", "PRIMARY", "M"],
    PatientName="Doe^Jane=Other^Script",
    PatientID="QA-1",
    StudyDescription="",
    ReferencedImageSequence=Sequence([Dataset()]),
    ConversionType="",
)
RICH["00080104"] = {"vr": "LO", "Value": [None, " "]}
RICH["00190010"] = {"vr": "LO", "Value": ["OTHER"]}
RICH["00190011"] = {"vr": "LO", "Value": [f"{CREATOR} "]}
RICH["00191108"] = {"vr": "DS", "Value": [4.5]}
RICH["00191109"] = {"vr": "UN", "InlineBinary": base64.b64encode(b"AXIAL\\HELICAL ").decode()}
RICH["0019110A"] = {"vr": "UN", "InlineBinary": base64.b64encode(b"\x00\x01\xff").decode()}
RICH["00191008"] = {"vr": "DS", "Value": [9.0]}

RICH_SERIES = SeriesView(
    series_instance_uid="1.1",
    header=RICH,
    n_images=3,
    n_instances=3,
    calling_ae=" CT1",
    called_ae="NODE_B",
    slice_spacing_mm=1.0,
    image_digests=(),
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('{ keyword = "Modality", equals = "MR" }', True),
        ('{ keyword = "Modality", equals = "mr" }', False),
        ('{ keyword = "Modality", equals = "CT" }', False),
        ('{ keyword = "Modality", equals = "CT", not = true }', True),
        ('{ keyword = "SeriesDescription", equals = "T1 mprage" }', True),
        ('{ keyword = "SeriesDescription", equals = " T1 mprage" }', True),
        ('{ keyword = "SeriesDescription", contains = "mpr" }', True),
        ('{ keyword = "SeriesDescription", contains = "MPR" }', False),
        ('{ keyword = "SeriesDescription", matches = "(?i)MPR" }', True),
        ('{ keyword = "SeriesDescription", matches = "^mprage" }', False),
        ('{ keyword = "SeriesDescription", in = ["T2", "T1 mprage"] }', True),
        ('{ keyword = "SeriesNumber", in = [6, 7] }', True),
        ('{ keyword = "SeriesNumber", equals = "7" }', True),
        ('{ keyword = "SeriesNumber", equals = 7.0 }', True),
        ('{ keyword = "SliceThickness", equals = 1.5 }', True),
        ('{ keyword = "SliceThickness", at_most = 1.5 }', True),
        ('{ keyword = "SliceThickness", at_most = 1.49 }', False),
        ('{ keyword = "SliceThickness", at_least = 1.5 }', True),
        ('{ keyword = "SliceThickness", at_least = 1.51 }', False),
        ('{ keyword = "SliceThickness", at_least = 1, at_most = 2 }', True),
        ('{ keyword = "SliceThickness", at_least = 1, at_most = 1.2 }', False),
        ('{ keyword = "SeriesDescription", at_least = 1 }', False),
        ('{ keyword = "SeriesDescription", equals = 1 }', False),
        ('{ keyword = "ImageType", equals = "PRIMARY" }', True),
        ('{ keyword = "ImageType", equals = "PRIMARY", all = true }', False),
        ('{ keyword = "ImageType", matches = "[A-Z]", all = true }', True),
        ('{ keyword = "ImageType", equals = "DERIVED", not = true }', True),
        ('{ keyword = "ImageType", equals = "PRIMARY", not = true }', False),
        ('{ keyword = "PatientName", equals = "Doe^Jane" }', True),
        ('{ keyword = "Manufacturer", exists = true }', False),
        ('{ keyword = "Manufacturer", exists = false }', True),
        ('{ keyword = "Manufacturer", exists = true, not = true }', True),
        ('{ keyword = "Modality", exists = true }', True),
        ('{ keyword = "Modality", exists = false }', False),
        ('{ keyword = "StudyDescription", exists = true }', False),
        ('{ keyword = "CodeMeaning", exists = true }', False),
        ('{ keyword = "Manufacturer", equals = "X" }', False),
        ('{ keyword = "Manufacturer", equals = "X", not = true }', False),
        ('{ keyword = "Manufacturer", equals = "X", missing = true }', True),
        ('{ keyword = "Manufacturer", equals = "X", not = true, missing = true }', True),
        ('{ keyword = "StudyDescription", contains = "HEAD", missing = true }', True),
        ('{ keyword = "Modality", equals = "CT", missing = true }', False),
        ('{ keyword = "CallingAETitle", equals = "CT1" }', True),
        ('{ keyword = "CalledAETitle", matches = "_B$" }', True),
        ('{ keyword = "CalledAETitle", equals = "DICOM_NODE" }', False),
        ('{ tag = "(0008,0060)", equals = "MR" }', True),
        ('{ tag = "(0018,0050)", at_most = 2 }', True),
        ('{ tag = "(0019,1008)", equals = 9 }', True),
        (f'{{ tag = "(0019,xx08)", private_creator = "{CREATOR}", equals = 4.5 }}', True),
        (f'{{ tag = "(0019,xx08)", private_creator = "{CREATOR}", equals = 9 }}', False),
        (f'{{ tag = "(0019,xx09)", private_creator = "{CREATOR}", equals = "HELICAL" }}', True),
        (f'{{ tag = "(0019,XX0a)", private_creator = "{CREATOR}", exists = true }}', False),
        ('{ tag = "(0019,xx08)", private_creator = "NOBODY", exists = true }', False),
        ('{ any = [{ keyword = "Modality", equals = "CT" }, { keyword = "Modality", equals = "MR" }] }', True),
        ('{ any = [{ keyword = "Modality", equals = "CT" }, { keyword = "Modality", equals = "PT" }] }', False),
        ('{ any = [{ keyword = "Modality", equals = "CT" }], not = true }', True),
        ('{ any = [{ any = [{ keyword = "Modality", equals = "MR" }] }] }', True),
    ],
)
def test_condition_holds_or_not(text: str, holds: bool) -> None:
    """The semantics of the published interface, operator by operator."""
    assert holds == judge(condition(text), [RICH_SERIES]).passed


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_bounds_agree_with_numbers(value: float, bound: float) -> None:
    """A DS of any spelling is compared as a number, and both bounds include their value."""
    view = SeriesView(
        series_instance_uid="1",
        header={tag_of("EchoTime"): {"vr": "DS", "Value": [repr(value)]}},
        n_images=1,
        n_instances=1,
        calling_ae="",
        called_ae="",
        slice_spacing_mm=None,
        image_digests=(),
    )
    at_least = Condition.model_validate({"keyword": "EchoTime", "at_least": bound})
    at_most = Condition.model_validate({"keyword": "EchoTime", "at_most": bound})
    assert (value >= bound, value <= bound) == (judge(at_least, [view]).passed, judge(at_most, [view]).passed)


def _enhanced() -> SeriesView:
    shared, per_frame, measures, timing = Dataset(), Dataset(), Dataset(), Dataset()
    measures.SliceThickness = "0.9"
    shared.PixelMeasuresSequence = Sequence([measures])
    timing.RepetitionTime = "2000"
    per_frame.MRTimingAndRelatedParametersSequence = Sequence([timing])
    wrong = Dataset()
    wrong.PixelMeasuresSequence = Sequence([Dataset()])
    wrong.PixelMeasuresSequence[0].SliceThickness = "5"
    per_frame.PixelMeasuresSequence = wrong.PixelMeasuresSequence
    return series(
        n_images=1,
        NumberOfFrames=64,
        SharedFunctionalGroupsSequence=Sequence([shared]),
        PerFrameFunctionalGroupsSequence=Sequence([per_frame]),
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('{ keyword = "SliceThickness", equals = 0.9 }', True),
        ('{ keyword = "RepetitionTime", equals = 2000 }', True),
        ('{ keyword = "EchoTime", exists = false }', True),
        ('{ keyword = "Modality", equals = "MR" }', True),
    ],
)
def test_enhanced_objects_answer_from_their_functional_groups(text: str, holds: bool) -> None:
    """One rule serves classic and enhanced objects; shared groups speak before the first frame's."""
    assert holds == judge(condition(text), [_enhanced()]).passed


def test_frames_of_an_enhanced_instance_count_as_slices() -> None:
    """One instance of 64 frames has 64 slices for `min_slices`."""
    verdict = judge_series(_enhanced(), route().series, requirement(min_slices=64))
    assert Outcome.MATCHED is verdict.outcome


# ------------------------------------------------------------------------------------------------------- routes


def decide(*views: SeriesView, text: str = "", now: datetime = NOW, **needs: object) -> list[tuple[str | None, str]]:
    """Return (series, outcome) of each decision of one route with this text."""
    decisions = apply_routes(study(*views), [route(text)], {"p": requirement(**needs)}, now)
    return [(decision.series_instance_uid, decision.outcome.value) for decision in decisions]


def test_every_series_that_matches_gets_its_own_job() -> None:
    """With start = "series" and no preference nothing that matches is left out."""
    views = series("1.1"), series("1.2", Modality="CT"), series("1.3")
    expected = [("1.1", "matched"), ("1.2", "not_matched"), ("1.3", "matched")]
    assert expected == decide(*views, text=MR_ONLY)


def test_preference_takes_one_of_several_series() -> None:
    """With `prefer` the losers say which series was taken instead."""
    text = MR_ONLY + 'prefer = ["thinnest"]'
    thick, thin = series("1.1", spacing=3.0), series("1.2", spacing=0.8)
    decisions = apply_routes(study(thick, thin), [route(text)], {"p": requirement()}, NOW)
    assert [Outcome.NOT_MATCHED, Outcome.MATCHED] == [decision.outcome for decision in decisions]
    assert ["1.2", None] == [decision.preferred for decision in decisions]
    assert [(), thin.image_digests] == [decision.images for decision in decisions]


def test_better_series_that_completes_later_is_processed_too() -> None:
    """What is complete competes; what is still arriving neither wins nor gets a decision."""
    one = [route(MR_ONLY + 'prefer = ["thinnest"]')]
    views = study(series("1.1", spacing=3.0), series("1.2", spacing=0.8))
    early = apply_routes(views, one, {"p": requirement()}, NOW, complete_series={"1.1"})
    late = apply_routes(views, one, {"p": requirement()}, NOW)
    assert [("1.1", "matched")] == [(decision.series_instance_uid, decision.outcome) for decision in early]
    assert ["not_matched", "matched"] == [decision.outcome for decision in late]


def test_study_route_waits_for_the_study_and_takes_one_series() -> None:
    """Start = "study": no decision while series arrive, then exactly one."""
    routes = [route('start = "study"\n' + MR_ONLY)]
    views = study(series("1.2", SeriesNumber=2), series("1.1", SeriesNumber=9))
    assert () == apply_routes(views, routes, {"p": requirement()}, NOW, complete_series={"1.1", "1.2"})
    (decision,) = apply_routes(views, routes, {"p": requirement()}, NOW)
    assert (Outcome.MATCHED, "1.2") == (decision.outcome, decision.series_instance_uid)
    assert ["1.2", "1.1"] == [verdict.series_instance_uid for verdict in decision.series]


def test_study_route_without_candidate_names_every_series() -> None:
    """A study that no series of fits gets one decision with the verdict on each."""
    views = study(series("1.1", Modality="CT"), series("1.2", n_images=0))
    (decision,) = apply_routes(views, [route('start = "study"\n' + MR_ONLY)], {"p": requirement()}, NOW)
    assert (Outcome.NOT_MATCHED, None) == (decision.outcome, decision.series_instance_uid)
    assert [Outcome.NOT_MATCHED, Outcome.NOT_APPLICABLE] == [verdict.outcome for verdict in decision.series]


@pytest.mark.parametrize(
    ("prefer", "chosen"),
    [
        (["thinnest"], "1.2"),
        (["thickest"], "1.1"),
        (["most_slices"], "1.3"),
        (["fewest_slices"], "1.2"),
        (["first"], "1.1"),
        (["last"], "1.3"),
        (["most_slices", "thinnest"], "1.3"),
        (["thinnest", "most_slices"], "1.2"),
        ([], "1.1"),
    ],
)
def test_each_preference_orders_as_its_name_says(prefer: list[str], chosen: str) -> None:
    """Positions tell the distance between slices, Slice Thickness only where there are none."""
    views = [
        series("1.3", n_images=90, spacing=None, SliceThickness="2.0", SeriesNumber=12),
        series("1.2", n_images=30, spacing=0.5, SliceThickness="9.0", SeriesNumber=4),
        series("1.1", n_images=60, spacing=4.0, SeriesNumber=3),
    ]
    choice = choose_series(views, route().series, requirement(), prefer)
    assert choice.chosen is not None
    assert chosen == choice.chosen.series_instance_uid


@pytest.mark.parametrize("prefer", [["thinnest"], ["thickest"]])
def test_series_of_unknown_distance_comes_last(prefer: list[str]) -> None:
    """Whatever is preferred, a series whose distance nobody knows does not win by it."""
    views = [series("1.1", spacing=None), series("1.2", spacing=5.0)]
    choice = choose_series(views, route().series, requirement(), prefer)
    assert choice.chosen is views[1]


@given(st.permutations(range(4)))
def test_choice_does_not_depend_on_the_order_of_arrival(order: list[int]) -> None:
    """Ties go by Series Number, then UID."""
    views = [series(f"1.{number}", SeriesNumber=number // 2) for number in order]
    choice = choose_series(views, route().series, requirement(), ["thinnest"])
    assert choice.chosen is not None
    assert "1.0" == choice.chosen.series_instance_uid


def test_route_without_series_conditions_lets_the_plugin_choose() -> None:
    """The plugin's requirements and its preference stand in."""
    needs: dict[str, Any] = {
        "match": [{"keyword": "Modality", "equals": "CT"}],
        "prefer": ["thinnest"],
    }
    views = series("1.1"), series("1.2", Modality="CT", spacing=2.0), series("1.3", Modality="CT")
    assert [("1.1", "not_applicable"), ("1.2", "not_matched"), ("1.3", "matched")] == decide(*views, **needs)


def test_preference_of_the_route_replaces_that_of_the_plugin() -> None:
    """A [route.series] without `prefer` asks for every series that matches."""
    assert [("1.1", "matched"), ("1.2", "matched")] == decide(
        series("1.1"), series("1.2"), text=MR_ONLY, prefer=["thinnest"]
    )


def test_plugin_requirements_hold_besides_the_route() -> None:
    """A route cannot make a plugin read what it cannot."""
    views = series("1.1", n_images=1), series("1.2", n_images=2)
    assert [("1.1", "not_applicable"), ("1.2", "matched")] == decide(*views, text=MR_ONLY)


@pytest.mark.parametrize("start", ["series", "study"])
def test_what_holds_no_images_never_triggers(start: str) -> None:
    """Reports, segmentations and our own objects count no images, whatever a rule says."""
    assert ["not_applicable"] == [
        outcome for _, outcome in decide(series(n_images=0), text=f'start = "{start}"', min_slices=1)
    ]


def test_absence_of_images_speaks_before_the_rules() -> None:
    """A report that fails a rule, too, is first of all no image."""
    assert [("1.1", "not_applicable")] == decide(series(Modality="SR", n_images=0), text=MR_ONLY)


@pytest.mark.parametrize(
    ("study_date", "limit", "outcome"),
    [
        ("20260303", 7, "matched"),
        ("20260302", 7, "too_old"),
        ("20260310", 0.5, "matched"),
        ("20260311", 1, "matched"),
        ("2026.03.02", 7, "too_old"),
        ("", 7, "matched"),
        ("garbage", 7, "matched"),
    ],
)
def test_old_studies_are_left_alone(study_date: str, limit: float, outcome: str) -> None:
    """By Study Date in whole days; a study without a date cannot be called old."""
    view = series(Modality="MR")
    view.header["00080020"]["Value"] = [study_date]  # type: ignore[index]
    assert [("1.1", outcome)] == decide(view, text=f"max_study_age_days = {limit}")


def test_disabled_route_says_so() -> None:
    """Enabled = false is an answer, not silence."""
    assert [("1.1", "disabled")] == decide(series(), text="enabled = false")


def test_plugin_that_is_not_installed_is_named() -> None:
    """A route to nowhere decides, too."""
    (decision,) = apply_routes(study(series()), [route(plugin="absent")], {}, NOW)
    assert (Outcome.NOT_APPLICABLE, False) == (decision.outcome, decision.plugin_installed)


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{ keyword = "Modality", equals = "PT" }', "matched"),
        ('{ keyword = "Modality", equals = "US" }', "not_matched"),
        ('{ keyword = "Modality", equals = "PT", not = true }', "not_matched"),
        ('{ keyword = "Modality", in = ["MR", "PT"], all = true }', "matched"),
        ('{ keyword = "Modality", equals = "MR", all = true }', "not_matched"),
        ('{ keyword = "StudyDescription", contains = "HEAD" }', "not_matched"),
        ('{ keyword = "StudyDescription", contains = "HEAD", missing = true }', "matched"),
    ],
)
def test_study_conditions_see_all_series(text: str, outcome: str) -> None:
    """On the study, the values of all series are those of one multi-valued attribute."""
    decisions = decide(series("1.1"), series("1.2", Modality="PT"), text=f"[route.study]\nmatch = [{text}]")
    assert [("1.1", outcome), ("1.2", outcome)] == decisions


def test_each_route_decides_for_itself() -> None:
    """Several routes may take the same study; their order changes nothing but the order of decisions."""
    first, second = route(MR_ONLY), route('[route.series]\nmatch = [{ keyword = "Modality", equals = "CT" }]')
    outcomes = [d.outcome for d in apply_routes(study(series()), [first, second], {"p": requirement()}, NOW)]
    assert [Outcome.MATCHED, Outcome.NOT_MATCHED] == outcomes


def test_job_reads_the_images_of_the_chosen_series() -> None:
    """The decision pins identity and version of each image."""
    view = series(n_images=3)
    (decision,) = apply_routes(study(view), [route()], {"p": requirement()}, NOW)
    assert view.image_digests == decision.images
