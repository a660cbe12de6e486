"""One condition on one study or series: does it hold, what was found, and both in words.

Pure. Stands under `rules`, which puts conditions together to routes. Values that identify a patient are compared and
never kept: a verdict may be stored and shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dicom_node.config.predicates import holds, operand_of
from dicom_node.config.schema import Condition
from dicom_node.routing.attributes import is_private_to_patient, values_of
from dicom_node.study import SeriesView

ABSENT: Final = "absent"
PRESENT: Final = "(present)"
_LONGEST_FOUND: Final = 80
"""Characters of a found value that a reason shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionVerdict:
    """Whether one condition holds, in words that hold no patient data."""

    text: str
    """The condition: ``SliceThickness is at most 2``."""
    passed: bool
    found: str
    """The values: ``5``, ``absent``, or ``(present)`` where a value could identify a patient."""


def judge(condition: Condition, series: Iterable[SeriesView]) -> ConditionVerdict:
    """Return whether `condition` holds.

    Parameters
    ----------
    series
        One series for a condition on a series; all of a study for one on the study, whose values count as one
        multi-valued attribute ("any value" then means "in any series").
    """
    series = tuple(series)
    if condition.any_ is not None:
        return _judge_group(condition, series)
    values = tuple(dict.fromkeys(value for one in series for value in values_of(condition, one)))
    if condition.exists is not None:
        passed = (bool(values) == condition.exists) != condition.not_
    elif not values:
        # An absent attribute fails, negated or not; `missing = true` is the one way to let it pass.
        passed = condition.missing
    else:
        quantifier = all if condition.all_ else any
        passed = quantifier(holds(condition, value) for value in values) != condition.not_
    return ConditionVerdict(text=words(condition), passed=passed, found=_shown(condition, values))


def words(condition: Condition) -> str:
    """Return the condition as a sentence without its full stop."""
    if condition.any_ is not None:
        alternatives = " or ".join(f"({words(alternative)})" for alternative in condition.any_)
        return f"{'none' if condition.not_ else 'one'} of {alternatives} holds"
    subject = condition.keyword or str(condition.tag)
    if condition.private_creator:
        subject = f"{subject} of {condition.private_creator}"
    if condition.exists is not None:
        return f"{subject} {'exists' if condition.exists != condition.not_ else 'does not exist'}"
    quantifier = "every value of " if condition.all_ else ""
    negation = "not: " if condition.not_ else ""
    escape = ", or is absent" if condition.missing else ""
    predicates = " and ".join(f"{_PREDICATES[name]} {_operand(condition, name)}" for name in condition.operators)
    return f"{negation}{quantifier}{subject} {predicates}{escape}"


def _judge_group(condition: Condition, series: tuple[SeriesView, ...]) -> ConditionVerdict:
    verdicts = [judge(alternative, series) for alternative in condition.any_ or ()]
    return ConditionVerdict(
        text=words(condition),
        passed=any(verdict.passed for verdict in verdicts) != condition.not_,
        found="; ".join(dict.fromkeys(verdict.found for verdict in verdicts)),
    )


_PREDICATES: Final = {
    "equals": "is",
    "in": "is one of",
    "matches": "matches",
    "contains": "contains",
    "at_least": "is at least",
    "at_most": "is at most",
}


def _operand(condition: Condition, name: str) -> str:
    """Return what the rule asks for; hidden where it would tell who the patient is once the condition holds."""
    if is_private_to_patient(condition):
        return "(as the rule says)"
    operand = operand_of(condition, name)
    operands = operand if isinstance(operand, tuple) else (operand,)
    return ", ".join(f'"{one}"' if isinstance(one, str) else f"{one:g}" for one in operands)


def _shown(condition: Condition, values: tuple[str, ...]) -> str:
    if not values:
        return ABSENT
    if is_private_to_patient(condition):
        return PRESENT
    text = ", ".join(f'"{value}"' for value in values)
    return text if len(text) <= _LONGEST_FOUND else text[: _LONGEST_FOUND - 3] + "..."
