"""Conditions that can never hold: values that an attribute cannot have, and conditions that contradict each other.

Pure, and on the safe side: what might hold passes. An attribute counts as having one value where the data dictionary
says so and one series is asked; conditions on a study are asked of all its series together, so that two different
values of one attribute may well be wanted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from dicom_node.config.checks import Problem, Raw, conditions_of
from dicom_node.config.keywords import is_keyword, is_single_valued, representation
from dicom_node.config.patterns import never_matches
from dicom_node.config.predicates import holds, operand_of
from dicom_node.config.schema import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What values of a value representation look like (PS3.5 6.2), as tolerantly as headers in the field ask for."""

    form: str
    """Regular expression of a whole value."""
    words: str
    alphabet: str
    is_number: bool = False
    is_ordered: bool = True
    """`at_least` and `at_most` make sense: values read as numbers."""


_NUMBER: Final = _Kind(
    form=r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", words="a number", alphabet="0123456789+-.eE", is_number=True
)
_WHOLE: Final = _Kind(form=r"[+-]?\d+(\.0*)?", words="a whole number", alphabet="0123456789+-", is_number=True)
_KINDS: Final[Mapping[str, _Kind]] = {
    **dict.fromkeys(("DS", "FL", "FD"), _NUMBER),
    **dict.fromkeys(("IS", "US", "SS", "UL", "SL", "UV", "SV"), _WHOLE),
    "DA": _Kind(form=r"\d{8}|\d{4}\.\d\d\.\d\d", words="a date, YYYYMMDD", alphabet="0123456789."),
    "TM": _Kind(form=r"[\d:]{2,8}(\.\d{1,6})?", words="a time, HHMMSS", alphabet="0123456789.:"),
    "UI": _Kind(form=r"[0-9.]{1,64}", words="a UID: digits and dots", alphabet="0123456789.", is_ordered=False),
    "AS": _Kind(form=r"\d{3}[DWMY]", words='an age, such as "045Y"', alphabet="0123456789DWMY", is_ordered=False),
}
_MODALITY: Final = _Kind(
    form=r"[A-Z0-9_ ]{1,16}",
    words='in upper case, such as "MR"',
    alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_ ",
    is_ordered=False,
)
"""Of code strings (VR CS) this one alone: others come in lower case, too, against the standard."""


def impossible_conditions(raw: Raw) -> Iterator[Problem]:
    """Yield each condition of a file that can never hold, alone or beside those before it."""
    lists: dict[tuple[str | int, ...], list[tuple[int, Condition]]] = {}
    for loc, table in conditions_of(raw):
        condition = _read(table)
        if condition is None:
            continue
        reason = never_holds(condition)
        if reason is not None:
            yield loc, reason
        elif loc[-2] == "match" and isinstance(loc[-1], int):
            lists.setdefault(loc[:-1], []).append((loc[-1], condition))
    for loc, found in lists.items():
        clash = contradiction([one for _, one in found], one_series="study" not in loc)
        if clash is not None:
            first, second = clash
            at = next(index for index, one in found if one is second)
            yield (*loc, at), f"this can never hold together with {shown(first)}"


def never_holds(condition: Condition) -> str | None:
    """Return why no value of its attribute meets a condition, with a hint; None when one might."""
    if condition.any_ is not None or condition.not_:
        return None
    vr = representation(condition.keyword) if condition.keyword else None
    if vr == "SQ" and condition.exists is None:
        return f'"{condition.keyword}" is a sequence and has no value of its own; ask whether it `exists`'
    kind = _MODALITY if condition.keyword == "Modality" else _KINDS.get(vr or "")
    for operand in (*(condition.in_ or ()), *(() if condition.equals is None else (condition.equals,))):
        reason = None if kind is None else _no_value(operand, kind)
        if reason is not None:  # also one of several: it is there for nothing, and meant otherwise
            return f'no "{condition.keyword}" is {json.dumps(operand)}: {reason}'
    ordered = condition.at_least is not None or condition.at_most is not None
    if kind and ordered and not kind.is_ordered:
        return f'a "{condition.keyword}" is no number: it is {kind.words}'
    if kind and condition.contains is not None and not set(condition.contains) <= set(kind.alphabet):
        return f'no "{condition.keyword}" contains "{condition.contains}": it is {kind.words}'
    if condition.matches is not None:
        why = never_matches(condition.matches, kind.alphabet if kind else None)
        return None if why is None else f"`matches` can never match: {why}"
    return None


def contradiction(conditions: Sequence[Condition], *, one_series: bool) -> tuple[Condition, Condition] | None:
    """Return two conditions that cannot both hold, None when none are found.

    Parameters
    ----------
    one_series
        They are asked of one series, whose attributes of one value have one; otherwise of a whole study.
    """
    plain = [one for one in conditions if one.any_ is None]
    for index, second in enumerate(plain):
        for first in plain[:index]:
            if _attribute(first) == _attribute(second) and _clash(first, second, one_series):
                return first, second
    for group in (one for one in conditions if one.any_ is not None and not one.not_):
        others = [_opponent(alternative, plain, one_series) for alternative in group.any_ or ()]
        if others and others[0] is not None and all(other is not None for other in others):
            return others[0], group
    return None


def _opponent(condition: Condition, others: Sequence[Condition], one_series: bool) -> Condition | None:
    """Return which of the others cannot hold together with a condition."""
    same = (one for one in others if condition.any_ is None and _attribute(one) == _attribute(condition))
    return next((one for one in same if _clash(one, condition, one_series)), None)


def shown(condition: Condition) -> str:
    """Return a condition as the file spells it."""
    values = condition.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return _toml(values)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _read(table: Raw) -> Condition | None:
    """Return a condition whose form is right and whose keyword exists; others are reported elsewhere."""
    try:
        condition = Condition.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError:
        return None
    known = condition.keyword is None or is_keyword(condition.keyword)
    return condition if known else None


def _no_value(operand: str | int | float, kind: _Kind) -> str | None:
    """Return why an operand is no value of its kind, with what to write; None when it is one."""
    text = operand.strip() if isinstance(operand, str) else _plain(operand)
    if not re.fullmatch(kind.form, text):
        hint = ""
        if kind is _MODALITY and re.fullmatch(kind.form, text.upper()):
            hint = f'; did you mean "{text.upper()}"?'
        return f"it is {kind.words}{hint}"
    if kind.is_number and isinstance(operand, str) and text != _plain(float(text)):
        return f"numbers are compared by value, texts letter by letter; write {_plain(float(text))} without quotes"
    return None


def _plain(number: float) -> str:
    """Return a number as a header's value is read."""
    return str(int(number)) if float(number).is_integer() else str(number)


def _attribute(condition: Condition) -> tuple[str | None, str | None, str | None]:
    return condition.keyword, condition.tag, condition.private_creator


def _clash(first: Condition, second: Condition, one_series: bool) -> bool:
    if first.missing and second.missing:
        return False  # an absent attribute passes both
    for one, other in ((first, second), (second, first)):
        if _must_be_absent(one):
            return not other.missing and not _must_be_absent(other)
    if first.exists is not None or second.exists is not None:
        return False
    for one in (first, second):
        is_single = one_series and one.keyword is not None and is_single_valued(one.keyword)
        if not is_single and (not one.all_ or one.not_):
            return False
    return _excludes(first, second) or _excludes(second, first) or _leave_no_number(first, second)


def _must_be_absent(condition: Condition) -> bool:
    return condition.exists is not None and condition.exists == condition.not_


def _excludes(first: Condition, second: Condition) -> bool:
    """Return whether the values that `first` names are all refused by `second`, or `second` is its opposite."""
    if first.not_:
        return False
    if second.not_ and _asks(first) == _asks(second):
        return True
    named = first.in_ or (() if first.equals is None else (first.equals,))
    return bool(named) and not any(_meets(second, one) for one in named)


def _asks(condition: Condition) -> dict[str, Any]:
    return {name: operand_of(condition, name) for name in condition.operators}


def _meets(condition: Condition, operand: str | int | float) -> bool:
    """Return whether a value that equals `operand` may meet a condition."""
    if not isinstance(operand, str) and (condition.matches is not None or condition.contains is not None):
        return True  # how the number is spelled in the header is not known
    text = operand.strip() if isinstance(operand, str) else _plain(operand)
    return holds(condition, text) != condition.not_


def _leave_no_number(first: Condition, second: Condition) -> bool:
    if first.not_ or second.not_:
        return False
    lows = [one.at_least for one in (first, second) if one.at_least is not None]
    highs = [one.at_most for one in (first, second) if one.at_most is not None]
    return bool(lows) and bool(highs) and max(lows) > min(highs)
