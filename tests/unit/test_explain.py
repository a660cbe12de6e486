"""Explanations: one sentence for the record, a page for the administrator, and never a patient in either."""

from __future__ import annotations

import json

import pytest

from dicom_node.routing import RouteDecision, apply_routes, as_json, lines, reason
from dicom_node.study import SeriesView
from tests.unit.rules_case import MR_ONLY, NOW, header, requirement, route, series, study

MARKED = "ZZMARKED"
"""Stands in every patient attribute; must stand in no text."""


def decisions(*views: SeriesView, text: str = "", plugin: str = "p") -> tuple[RouteDecision, ...]:
    """Return what one route with this text decides."""
    return apply_routes(study(*views), [route(text, plugin)], {"p": requirement()}, NOW)


@pytest.mark.parametrize(
    ("view", "text", "plugin", "expected"),
    [
        (series(n_images=20), MR_ONLY, "p", "All conditions hold; 20 images go to p."),
        (
            series(Modality="CT"),
            MR_ONLY,
            "p",
            'Not processed: the condition \'Modality is "MR"\' does not hold (found: "CT").',
        ),
        (
            series(),
            '[route.series]\nmatch = [{ keyword = "SliceThickness", at_most = 2.0 }]',
            "p",
            "Not processed: the condition 'SliceThickness is at most 2' does not hold (found: absent).",
        ),
        (
            series(StudyDate="20250101"),
            "max_study_age_days = 7",
            "p",
            "Not processed: the condition 'the study is at most 7 days old' does not hold (found: 433 days).",
        ),
        (series(), "enabled = false", "p", 'Not processed: the route "r" is disabled (enabled = false).'),
        (series(), "", "gone", 'Not processed: the plugin "gone" is not installed.'),
        (series(n_images=0), "", "p", "Not processed: the series has no images."),
        (
            series(n_images=1),
            "",
            "p",
            "Not processed: p cannot read it: "
            "the condition 'the series has at least 2 slices' does not hold (found: 1).",
        ),
    ],
)
def test_reason_is_one_sentence_with_what_was_found(view: SeriesView, text: str, plugin: str, expected: str) -> None:
    """Golden texts: an administrator finds the line to change in them."""
    (decision,) = decisions(view, text=text, plugin=plugin)
    assert expected == reason(decision)


def test_reason_names_the_series_that_was_preferred() -> None:
    """Which one won stands in the loser's reason."""
    views = series("1.1", spacing=3.0), series("1.2", spacing=0.8)
    loser, winner = decisions(*views, text=MR_ONLY + 'prefer = ["thinnest"]')
    assert "Not processed: the series 1.2 is preferred." == reason(loser)
    assert "All conditions hold; 20 images go to p." == reason(winner)


def test_study_reason_shows_the_nearest_series() -> None:
    """Of many series that fail, the one that fails least tells most."""
    views = (
        series("1.1", n_images=0),
        series("1.2", Modality="CT", SeriesDescription="x"),
        series("1.3", SeriesDescription="T2"),
    )
    conditions = '{ keyword = "Modality", equals = "MR" }, { keyword = "SeriesDescription", contains = "T1" }'
    (decision,) = decisions(*views, text=f'start = "study"\n[route.series]\nmatch = [{conditions}]')
    assert (
        "Not processed: none of 3 series meets all conditions; nearest 1.3: "
        'the condition \'SeriesDescription contains "T1"\' does not hold (found: "T2").'
    ) == reason(decision)


def test_study_reason_says_how_many_were_left() -> None:
    """A choice among several is visible."""
    (decision,) = decisions(series("1.1"), series("1.2"), text='start = "study"')
    assert "All conditions hold; 20 images go to p; preferred to 1 other series." == reason(decision)


def test_study_without_series_is_explained() -> None:
    """Even nothing gets a sentence."""
    (decision,) = decisions(text='start = "study"')
    assert "Not processed: the study has no series." == reason(decision)


def test_page_shows_each_condition_with_its_box() -> None:
    """What `route explain` prints, line by line."""
    text = (
        "max_study_age_days = 7\n[route.study]\n"
        'match = [{ keyword = "StudyDescription", matches = "(?i)head", missing = true }]\n' + MR_ONLY
    )
    assert [
        'route "r" -> p, series 1.1: not_matched',
        '  Not processed: the condition \'Modality is "MR"\' does not hold (found: "CT").',
        "    [x] study   the study is at most 7 days old  (found: 2 days)",
        '    [x] study   StudyDescription matches "(?i)head", or is absent  (found: absent)',
        '    [ ] series  Modality is "MR"  (found: "CT")',
        "    [x] plugin  the series has at least 2 slices  (found: 20)",
    ] == lines(decisions(series(Modality="CT"), text=text))


def test_page_of_a_study_names_each_series() -> None:
    """Several series in one decision stay apart."""
    page = lines(decisions(series("1.1"), series("1.2", n_images=0), text='start = "study"'))
    assert "  series 1.1: matched" in page
    assert "  series 1.2: not_applicable" in page
    assert "    [ ] the series has images" in page


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ('{ keyword = "Modality", in = ["MR", "CT"] }', 'Modality is one of "MR", "CT"'),
        ('{ keyword = "Modality", equals = "MR", not = true }', 'not: Modality is "MR"'),
        ('{ keyword = "ImageType", contains = "A", all = true }', 'every value of ImageType contains "A"'),
        ('{ keyword = "Rows", at_least = 1, at_most = 9 }', "Rows is at least 1 and is at most 9"),
        ('{ keyword = "Rows", exists = true }', "Rows exists"),
        ('{ keyword = "Rows", exists = true, not = true }', "Rows does not exist"),
        (
            '{ tag = "(0019,xx08)", private_creator = "A", equals = 1 }',
            "(0019,xx08) of A is (as the rule says)",
        ),
        (
            '{ any = [{ keyword = "Modality", equals = "MR" }, { keyword = "Rows", exists = true }] }',
            'one of (Modality is "MR") or (Rows exists) holds',
        ),
        ('{ any = [{ keyword = "Rows", exists = true }], not = true }', "none of (Rows exists) holds"),
    ],
)
def test_condition_reads_as_a_sentence(condition: str, words: str) -> None:
    """Each operator and modifier has its words."""
    (decision,) = decisions(series(), text=f"[route.series]\nmatch = [{condition}]")
    assert words == decision.series[0].route_verdicts[0].text


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "OtherPatientNames",
        "PatientComments",
        "AccessionNumber",
        "StudyID",
        "ReferringPhysicianName",
        "OperatorsName",
    ],
)
@pytest.mark.parametrize("rule", [MARKED, "another"])
def test_patient_is_never_named(keyword: str, rule: str) -> None:
    """Neither the value nor, where a condition holds, the rule's own text tells who the patient is."""
    value = "19700101" if keyword == "PatientBirthDate" else MARKED
    other = "19710101" if keyword == "PatientBirthDate" else rule
    rule = value if rule == MARKED else other
    view = series()
    view.header.update(header(**{keyword: value}))  # type: ignore[attr-defined]
    text = f'[route.series]\nmatch = [{{ keyword = "{keyword}", equals = "{rule}" }}]'
    (decision,) = decisions(view, text=text)
    everything = "\n".join([reason(decision), *lines([decision]), json.dumps(as_json(decision))])
    assert value not in everything
    assert "(found: (present))" in everything


def test_private_attribute_is_not_shown() -> None:
    """Nobody knows what a vendor keeps in a private attribute."""
    view = series()
    view.header["00190010"] = {"vr": "LO", "Value": ["A"]}  # type: ignore[index]
    view.header["00191008"] = {"vr": "LO", "Value": [MARKED]}  # type: ignore[index]
    text = '[route.series]\nmatch = [{ tag = "(0019,xx08)", private_creator = "A", equals = "x" }]'
    assert MARKED not in "\n".join(lines(decisions(view, text=text)))


def test_long_values_are_cut() -> None:
    """A reason stays readable when a header does not."""
    (decision,) = decisions(
        series(SeriesDescription="x" * 64, ImageType=["Y" * 16] * 8),
        text='[route.series]\nmatch = [{ keyword = "SeriesDescription", equals = "a" },'
        ' { keyword = "ImageType", equals = "a" }]',
    )
    assert all(len(verdict.found) <= 80 for verdict in decision.series[0].route_verdicts)


def test_plain_data_has_stable_keys() -> None:
    """Programs rely on the names."""
    (decision,) = decisions(series("1.1", Modality="CT"), text=MR_ONLY)
    assert {
        "route": "r",
        "plugin": "p",
        "study_instance_uid": "1",
        "series_instance_uid": "1.1",
        "outcome": "not_matched",
        "reason": 'Not processed: the condition \'Modality is "MR"\' does not hold (found: "CT").',
        "preferred": None,
        "forwards": [],
        "study_conditions": [],
        "series": [
            {
                "series_instance_uid": "1.1",
                "outcome": "not_matched",
                "has_images": True,
                "series_conditions": [{"condition": 'Modality is "MR"', "passed": False, "found": '"CT"'}],
                "plugin_conditions": [{"condition": "the series has at least 2 slices", "passed": True, "found": "20"}],
            }
        ],
    } == as_json(decision)
