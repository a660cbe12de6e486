"""Conditions that can never hold are named with their line; what might hold is let through."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import Config, parse_toml
from dicom_node.config.impossible import contradiction, shown
from dicom_node.config.patterns import never_matches
from dicom_node.config.schema import Condition
from dicom_node.errors import ConfigError
from dicom_node.routing.conditions import judge
from tests.unit.rules_case import condition, series

ROUTE = '[[route]]\nname = "r"\nplugin = "p"\n[route.{scope}]\nmatch = [\n{lines}\n]\n'
FIRST_LINE = 6


def problems(*conditions: str, scope: str = "series") -> list[str]:
    """Return what is wrong with a route that has these conditions, one a line."""
    try:
        parse_toml(ROUTE.format(scope=scope, lines=",\n".join(conditions)), Path("config.toml"), Config)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ('{ keyword = "SliceThickness", equals = "thin" }', 'no "SliceThickness" is "thin": it is a number'),
        (
            '{ keyword = "SliceThickness", equals = "2.0" }',
            'no "SliceThickness" is "2.0": numbers are compared by value, texts letter by letter; '
            "write 2 without quotes",
        ),
        ('{ keyword = "SeriesNumber", equals = 2.5 }', 'no "SeriesNumber" is 2.5: it is a whole number'),
        ('{ keyword = "Rows", in = [512, "many"] }', 'no "Rows" is "many": it is a whole number'),
        ('{ keyword = "StudyDate", equals = "2026-03-01" }', 'no "StudyDate" is "2026-03-01": it is a date, YYYYMMDD'),
        ('{ keyword = "PatientAge", at_least = 18 }', 'a "PatientAge" is no number: it is an age, such as "045Y"'),
        ('{ keyword = "SOPClassUID", equals = "CT" }', 'no "SOPClassUID" is "CT": it is a UID: digits and dots'),
        (
            '{ keyword = "Modality", equals = "mr" }',
            'no "Modality" is "mr": it is in upper case, such as "MR"; did you mean "MR"?',
        ),
        ('{ keyword = "SliceThickness", contains = "mm" }', 'no "SliceThickness" contains "mm": it is a number'),
        (
            '{ keyword = "SliceThickness", matches = "thin|thick" }',
            "`matches` can never match: a value never holds such a character",
        ),
        (
            '{ keyword = "SeriesDescription", matches = "T1$ax" }',
            "`matches` can never match: "
            "something would have to stand before the beginning of the text or behind its end",
        ),
        (
            '{ keyword = "SeriesDescription", matches = "^ T1" }',
            "`matches` can never match: text is compared without surrounding blanks",
        ),
        (
            '{ keyword = "ReferencedStudySequence", equals = "x" }',
            '"ReferencedStudySequence" is a sequence and has no value of its own; ask whether it `exists`',
        ),
    ],
)
@pytest.mark.parametrize("scope", ["series", "study"])
def test_value_that_no_attribute_has_is_named(one: str, message: str, scope: str) -> None:
    """Alone, or as an alternative of a group; with file, line and what to write."""
    assert [f"config.toml:{FIRST_LINE}: {message}"] == problems(one, scope=scope)
    grouped = f'{{ any = [{one}, {{ keyword = "Modality", equals = "CT" }}] }}'
    assert [f"config.toml:{FIRST_LINE}: {message}"] == problems(grouped, scope=scope)


MR = '{ keyword = "Modality", equals = "MR" }'


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (MR, '{ keyword = "Modality", equals = "CT" }'),
        (MR, '{ keyword = "Modality", in = ["CT", "PT"] }'),
        (MR, '{ keyword = "Modality", in = ["MR", "PT"], not = true }'),
        (MR, '{ keyword = "Modality", exists = false }'),
        (MR, '{ keyword = "Modality", matches = "^CT" }'),
        ('{ keyword = "Modality", exists = true }', '{ keyword = "Modality", exists = false }'),
        ('{ keyword = "Modality", exists = true, not = true }', '{ keyword = "Modality", matches = "M" }'),
        ('{ keyword = "SliceThickness", at_least = 3.0 }', '{ keyword = "SliceThickness", at_most = 2.0 }'),
        ('{ keyword = "SliceThickness", equals = 3 }', '{ keyword = "SliceThickness", at_most = 2.5 }'),
        (
            '{ keyword = "SeriesDescription", contains = "T1" }',
            '{ keyword = "SeriesDescription", contains = "T1", not = true }',
        ),
        ('{ keyword = "SeriesDescription", equals = "T2" }', '{ keyword = "SeriesDescription", contains = "T1" }'),
        ('{ keyword = "CallingAETitle", equals = "CT1" }', '{ keyword = "CallingAETitle", equals = "CT2" }'),
        ('{ keyword = "ImageType", equals = "A", all = true }', '{ keyword = "ImageType", equals = "B", all = true }'),
        (
            '{ tag = "(0019,xx08)", private_creator = "P", exists = true }',
            '{ tag = "(0019,xx08)", private_creator = "P", exists = false }',
        ),
    ],
)
def test_contradiction_names_both_conditions(first: str, second: str) -> None:
    """In either order; the line is that of the later one, whose words are those of the file."""
    for one, other in ((first, second), (second, first)):
        (problem,) = problems(one, '{ keyword = "Rows", exists = true }', other)
        assert problem.startswith(f"config.toml:{FIRST_LINE + 2}: this can never hold together with "), problem
        assert one in problem


def test_group_whose_alternatives_are_all_excluded_is_named() -> None:
    """At its own line, wherever it stands."""
    group = '{ any = [{ keyword = "Modality", equals = "CT" }, { keyword = "Modality", equals = "PT" }] }'
    expected = f"this can never hold together with {MR}"
    assert [f"config.toml:{FIRST_LINE + 1}: {expected}"] == problems(MR, group)
    assert [f"config.toml:{FIRST_LINE}: {expected}"] == problems(group, MR)


@pytest.mark.parametrize(
    "conditions",
    [
        ('{ keyword = "ImageType", equals = "ORIGINAL" }', '{ keyword = "ImageType", equals = "PRIMARY" }'),
        (
            '{ tag = "(0019,xx08)", private_creator = "P", equals = "A" }',
            '{ tag = "(0019,xx08)", private_creator = "P", equals = "B" }',
        ),
        (
            '{ keyword = "SliceThickness", at_most = 2, missing = true }',
            '{ keyword = "SliceThickness", at_least = 3, missing = true }',
        ),
        ('{ keyword = "SliceThickness", at_least = 2 }', '{ keyword = "SliceThickness", at_most = 2 }'),
        (MR, '{ keyword = "Modality", in = ["MR", "CT"] }', '{ keyword = "Modality", equals = "CT", not = true }'),
        ('{ keyword = "BodyPartExamined", equals = "Head" }',),
        ('{ keyword = "SliceThickness", matches = "^[0-2]" }', '{ keyword = "SliceThickness", equals = 2 }'),
        ('{ keyword = "SeriesDescription", matches = "(?i)^t1$|x" }',),
        ('{ keyword = "SeriesDescription", matches = "T1 +(ax|sag)? *$" }',),
        ('{ keyword = "StudyDate", at_least = 20250101 }', '{ keyword = "StudyDate", equals = "20250301" }'),
        ('{ keyword = "AcquisitionTime", matches = "^1[0-9]" }',),
        ('{ any = [{ keyword = "Modality", equals = "CT" }, { keyword = "Rows", at_least = 1 }] }', MR),
        ('{ keyword = "SliceThickness", equals = "thin", not = true }',),
        ('{ keyword = "Modality", exists = false }', '{ keyword = "Modality", equals = "MR", missing = true }'),
    ],
)
def test_what_might_hold_is_let_through(conditions: tuple[str, ...]) -> None:
    """Several values, odd headers, absent attributes: an administrator's rule is not refused for a guess."""
    assert [] == problems(*conditions)


def test_a_study_may_have_two_modalities() -> None:
    """Of all its series together, one is MR and another SEG."""
    assert [] == problems(MR, '{ keyword = "Modality", equals = "SEG" }', scope="study")


_WORDS = st.sampled_from(["MR", "CT", "M"])
_CONDITIONS = st.one_of(
    st.builds(
        lambda word, no, gone: {"equals": word, "not": no, "missing": gone}, _WORDS, st.booleans(), st.booleans()
    ),
    st.builds(lambda words, no: {"in": words, "not": no}, st.lists(_WORDS, min_size=1, max_size=2), st.booleans()),
    st.builds(lambda word, no: {"contains": word, "not": no}, _WORDS, st.booleans()),
    st.builds(lambda word: {"matches": f"^{word}$"}, _WORDS),
    st.builds(lambda there, no: {"exists": there, "not": no}, st.booleans(), st.booleans()),
)


@given(asked=st.lists(_CONDITIONS, min_size=2, max_size=4), value=st.sampled_from([None, "MR", "CT", "M", "XA"]))
def test_a_contradiction_is_never_met(asked: list[dict[str, object]], value: str | None) -> None:
    """What routing takes was never called impossible: the two read conditions alike."""
    conditions = [Condition.model_validate({"keyword": "Modality", **one}) for one in asked]
    view = series(**({"Modality": value} if value else {}))
    if value is None:
        view = replace(view, header={})
    if all(judge(one, [view]).passed for one in conditions):
        assert contradiction(conditions, one_series=True) is None


_PIECES = st.lists(st.sampled_from(["a", "^", "$", "b?", "[ab]", "(a|^b)", "(?:b$|a)", ".", " ", "b*"]), max_size=5)


@given(pieces=_PIECES, text=st.text(alphabet="ab ", max_size=5))
def test_a_pattern_that_never_matches_matches_nothing(pieces: list[str], text: str) -> None:
    """The proof is right whatever the text, without surrounding blanks and of the alphabet that was named."""
    pattern = "".join(pieces)
    if re.search(pattern, text.strip()):
        assert never_matches(pattern) is None
        assert never_matches(pattern, "ab ") is None


@pytest.mark.parametrize("pattern", ["a^b", "a$b", "(?:a$b|c^d)", "(a^)b", "^ a", "a $", r"b\Aa"])
def test_what_asks_for_more_than_a_text_is_seen(pattern: str) -> None:
    """Something before its beginning, behind its end, or a blank at its edge."""
    assert never_matches(pattern) is not None


@pytest.mark.parametrize("pattern", ["(?:a$b|c)", "x*^a", "(?m)a\n^b", "(?m)a$\nb", "a$|^b", "a$x*", "^ *a"])
def test_a_pattern_that_might_match_is_let_through(pattern: str) -> None:
    """One alternative is enough, what may be empty has no width, and lines have edges of their own."""
    assert never_matches(pattern) is None


@pytest.mark.parametrize("pattern", ["x", "[x-z]", "a(x|y)", "x+", "(?i)X"])
def test_a_character_that_values_never_hold_is_seen(pattern: str) -> None:
    """And one that may be left out is not."""
    assert never_matches(pattern, string.digits) is not None
    assert never_matches(f"(?:{pattern.removeprefix('(?i)')})*", string.digits) is None


def test_condition_is_shown_as_in_the_file() -> None:
    """The words of a problem can be searched for."""
    text = '{ keyword = "SliceThickness", at_least = 1.0, at_most = 2.0, missing = true }'
    assert text == shown(condition(text))
