"""What the operators of a condition mean for one value. Pure.

Stands beside the schema, so that a rule is judged by the same tests when it is read (can it ever hold?) and when it is
applied (`routing.conditions`). Values are texts without surrounding blanks, as a header gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from dicom_node.config.schema import Condition


def holds(condition: Condition, value: str) -> bool:
    """Return whether one value meets every operator of a condition; `not`, `all` and `missing` are the caller's."""
    return all(_TESTS[name](operand_of(condition, name), value) for name in condition.operators)


def operand_of(condition: Condition, name: str) -> Any:
    """Return what is written behind an operator."""
    return condition.in_ if name == "in" else getattr(condition, name)


def _number(value: str | int | float) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _equals(operand: str | int | float, value: str) -> bool:
    """Compare as numbers when the rule gives a number, otherwise as texts."""
    return value == operand.strip() if isinstance(operand, str) else _number(value) == operand


def _at_least(operand: float, value: str) -> bool:
    number = _number(value)
    return number is not None and number >= operand


def _at_most(operand: float, value: str) -> bool:
    number = _number(value)
    return number is not None and number <= operand


_TESTS: Final[Mapping[str, Callable[[Any, str], bool]]] = {
    "equals": _equals,
    "in": lambda operands, value: any(_equals(operand, value) for operand in operands),
    "matches": lambda operand, value: re.search(operand, value) is not None,
    "contains": lambda operand, value: operand in value,
    "at_least": _at_least,
    "at_most": _at_most,
}
