"""The line of every key in a TOML text, so that an error can name it.

`tomllib` parses and validates; it keeps no positions. This scanner walks a text that `tomllib` has accepted and notes
where tables, keys and array items begin. It never judges and never interprets a value beyond finding its end.
Source: TOML v1.0.0, sections Keys, String, Array, Table, Inline Table, Array of Tables.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from collections.abc import Callable
from typing import Final, TypeAlias

Loc: TypeAlias = tuple[str | int, ...]
"""The way to a value: keys and array indices, as in a pydantic error."""

_BLANK: Final = re.compile(r"[ \t]*")
_BLANK_LINES_COMMENTS: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE: Final = re.compile(r"[^,\]}#\r\n]*")
_ONE_LINE_STRING: Final = re.compile(r"\"(?:\\.|[^\"\\])*\"|'[^']*'")
_MULTILINE_STRING: Final = re.compile(r'"""(?:\\.|[^\\])*?"{3,5}(?!")|' + r"'''.*?'{3,5}(?!')", re.DOTALL)


def locate(text: str) -> Callable[[Loc], int | None]:
    """Return a function that gives the 1-based line of a location.

    A location that is not in the text (a missing key) gets the line of the nearest table above it; None when there is
    none, or when the way is empty.

    Parameters
    ----------
    text
        A TOML text that `tomllib` accepts; the result means nothing for another.
    """
    lines = _Scanner(text).scan()

    def line_of(loc: Loc) -> int | None:
        return next((lines[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in lines), None)

    return line_of


class _Scanner:
    """One walk over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Loc, int] = {}
        self._last_item: dict[Loc, int] = {}  # array of tables -> index of its last table

    def scan(self) -> dict[Loc, int]:
        """Return the line of each table, key and item."""
        base: Loc = ()
        self._skip(_BLANK_LINES_COMMENTS)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                base = self._header()
            else:
                self._key_and_value(base)
            self._skip(_BLANK_LINES_COMMENTS)
        return self._lines

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no TOML at offset {self._at}")
        self._at = match.end()
        return match.group()

    def _note(self, loc: Loc, offset: int) -> None:
        """Keep the first line at which `loc`, and each table that it opens on the way, is named."""
        line = bisect_right(self._line_starts, offset)
        for n in range(1, len(loc) + 1):
            self._lines.setdefault(loc[:n], line)

    def _header(self) -> Loc:
        start = self._at
        is_array = self._text.startswith("[[", start)
        self._at += 2 if is_array else 1
        *parents, name = self._dotted_key()
        self._at += 2 if is_array else 1
        base = (*self._within_arrays(tuple(parents)), name)
        if is_array:
            self._last_item[base] = self._last_item.get(base, -1) + 1
        base = self._within_arrays((*parents, name))
        self._note(base, start)
        # A table that an earlier [table.child] opened implicitly is better named by its own header.
        self._lines[base] = bisect_right(self._line_starts, start)
        return base

    def _within_arrays(self, keys: Loc) -> Loc:
        """Return the way to a header's table: under an array of tables it is the latest item."""
        loc: Loc = ()
        for key in keys:
            loc = (*loc, key)
            if loc in self._last_item:
                loc = (*loc, self._last_item[loc])
        return loc

    def _key_and_value(self, base: Loc) -> None:
        start = self._at
        loc = (*base, *self._dotted_key())
        self._note(loc, start)
        self._at += 1  # the equals sign
        self._value(loc)

    def _dotted_key(self) -> Loc:
        parts: list[str] = []
        while True:
            self._skip(_BLANK)
            if self._text[self._at] in "\"'":
                quoted = self._skip(_ONE_LINE_STRING)
                parts.append(str(tomllib.loads(f"key = {quoted}")["key"]))
            else:
                parts.append(self._skip(_BARE_KEY))
            self._skip(_BLANK)
            if self._text[self._at] != ".":
                return tuple(parts)
            self._at += 1

    def _value(self, loc: Loc) -> None:
        self._skip(_BLANK)
        first = self._text[self._at]
        if self._text.startswith(('"""', "'''"), self._at):
            self._skip(_MULTILINE_STRING)
        elif first in "\"'":
            self._skip(_ONE_LINE_STRING)
        elif first == "[":
            self._items("]", lambda index: self._item(loc, index))
        elif first == "{":
            self._items("}", lambda _: self._key_and_value(loc))
        else:
            self._skip(_BARE_VALUE)

    def _items(self, end: str, read_one: Callable[[int], None]) -> None:
        self._at += 1
        index = 0
        self._skip(_BLANK_LINES_COMMENTS)
        while self._text[self._at] != end:
            read_one(index)
            index += 1
            self._skip(_BLANK_LINES_COMMENTS)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK_LINES_COMMENTS)
        self._at += 1

    def _item(self, loc: Loc, index: int) -> None:
        self._note((*loc, index), self._at)
        self._value((*loc, index))
