"""Can a regular expression match at all? Only what is cheap to prove; in doubt it can. Pure.

Three proofs: something has to stand before the beginning of the text or behind its end; the text would begin or end
with a blank, and texts are compared without; a character is required that the attribute's values never hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from re import _constants, _parser  # type: ignore[attr-defined]  # the public names, sre_*, are deprecated
from typing import Any, Final

_BEGINNING: Final = (_constants.AT_BEGINNING, _constants.AT_BEGINNING_STRING)
_END: Final = (_constants.AT_END, _constants.AT_END_STRING)
_REPEATS: Final = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def never_matches(pattern: str, alphabet: str | None = None) -> str | None:
    """Return why no text can match, None when one might.

    Parameters
    ----------
    pattern
        A valid regular expression, searched for anywhere in a text without surrounding blanks.
    alphabet
        The characters that texts are made of; None: any.
    """
    parsed = _parser.parse(pattern)
    flags = parsed.state.flags
    if not flags & re.MULTILINE and _is_out_of_bounds(parsed):
        return "something would have to stand before the beginning of the text or behind its end"
    if not flags & (re.MULTILINE | re.VERBOSE) and _has_blank_edge(list(parsed)):
        return "text is compared without surrounding blanks"
    if alphabet is not None and not _is_possible(parsed, alphabet, bool(flags & re.IGNORECASE)):
        return "a value never holds such a character"
    return None


def _is_out_of_bounds(sequence: Any) -> bool:
    """Return whether something of a width stands before a beginning, or behind an end."""
    width_before, ended = 0, False
    for index, (kind, what) in enumerate(sequence):
        narrowest = sequence[index : index + 1].getwidth()[0]
        if (kind is _constants.AT and what in _BEGINNING and width_before) or (ended and narrowest):
            return True
        if kind is _constants.BRANCH and all(_is_out_of_bounds(branch) for branch in what[1]):
            return True
        if kind is _constants.SUBPATTERN and _is_out_of_bounds(what[-1]):
            return True
        ended = ended or (kind is _constants.AT and what in _END)
        width_before += narrowest
    return False


def _has_blank_edge(items: list[tuple[Any, Any]]) -> bool:
    blank = (_constants.LITERAL, ord(" "))
    first, last = items[:2], items[-2:]
    at_first = len(first) == 2 and first[0][0] is _constants.AT and first[0][1] in _BEGINNING and first[1] == blank
    at_last = len(last) == 2 and last[1][0] is _constants.AT and last[1][1] in _END and last[0] == blank
    return at_first or at_last


def _is_possible(sequence: Iterable[tuple[Any, Any]], alphabet: str, ignore_case: bool) -> bool:
    """Return whether every part of a sequence might be made of the alphabet."""
    return all(_part_is_possible(kind, what, alphabet, ignore_case) for kind, what in sequence)


def _part_is_possible(kind: Any, what: Any, alphabet: str, ignore_case: bool) -> bool:
    if kind is _constants.LITERAL:
        return _is_in(what, alphabet, ignore_case)
    if kind is _constants.IN:
        return any(_member_is_possible(kind, member, alphabet, ignore_case) for kind, member in what)
    if kind is _constants.BRANCH:
        return any(_is_possible(branch, alphabet, ignore_case) for branch in what[1])
    if kind is _constants.SUBPATTERN:
        return _is_possible(what[-1], alphabet, ignore_case or bool(what[1] & re.IGNORECASE))
    if kind in _REPEATS:
        return what[0] == 0 or _is_possible(what[2], alphabet, ignore_case)
    return True


def _member_is_possible(kind: Any, what: Any, alphabet: str, ignore_case: bool) -> bool:
    if kind is _constants.LITERAL:
        return _is_in(what, alphabet, ignore_case)
    if kind is _constants.RANGE:
        low, high = what
        return ignore_case or any(low <= ord(one) <= high for one in alphabet)
    return True  # a negated set, or a category


def _is_in(code: int, alphabet: str, ignore_case: bool) -> bool:
    one = chr(code)
    return one in alphabet or (ignore_case and (one.lower() in alphabet or one.upper() in alphabet))
