"""Validation errors in the words of an administrator: key, table, what is allowed, what was probably meant.

Pure. `config.load` hands over what pydantic reports about a shape; nothing here reads a file or knows a line number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic.fields import FieldInfo

from dicom_node.config.locate import Loc
from dicom_node.config.schema import Table

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TYPES: Final = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_type": 'text in quotation marks, such as "abc"',
    "tuple_type": "a list in brackets [ ]",
}
_BOUNDS: Final = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_LENGTHS: Final = {
    "string_too_long": ("max_length", "at most {} characters"),
    "string_too_short": ("min_length", "at least {} characters"),
    "too_long": ("max_length", "at most {} item(s)"),
    "too_short": ("min_length", "at least {} item(s)"),
}


def table_name(loc: Loc) -> str:
    """Return how the header of the table at `loc` is written: ``[receive]``, ``[[route]]``, or ``the file``."""
    keys = ".".join(str(part) for part in loc if isinstance(part, str))
    if not keys:
        return "the file"
    return f"[[{keys}]]" if isinstance(loc[-1], int) else f"[{keys}]"


def key_in_table(loc: Loc) -> str:
    """Return `"key" in [table]` for a location; an item of a list counts as its list."""
    while loc and isinstance(loc[-1], int):
        loc = loc[:-1]
    if not loc:
        return "the file"
    return f'"{loc[-1]}" in {table_name(loc[:-1])}'


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """Return `; did you mean "..."?`, empty when nothing is near."""
    near = get_close_matches(wrong, known, n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def in_file(loc: Loc, raw: object, *, keep_last: bool) -> Loc:
    """Return `loc` without the parts that pydantic adds for the members of a union.

    Parameters
    ----------
    raw
        The parsed file.
    keep_last
        Keep the last part though the file does not have it: the name of a missing key.
    """
    kept: list[str | int] = []
    for number, part in enumerate(loc):
        if isinstance(raw, Mapping) and part in raw:
            raw = raw[str(part)]
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
        elif not (keep_last and number == len(loc) - 1):
            continue
        kept.append(part)
    return tuple(kept)


def sentence(error: ErrorDetails, loc: Loc, model: type[Table]) -> str:
    """Return what is wrong, naming key and table.

    Parameters
    ----------
    error
        One error of pydantic.
    loc
        Its location in the file, from `in_file`.
    model
        The model of the whole file, for the keys that exist.
    """
    kind, context = error["type"], error.get("ctx", {})
    key = key_in_table(loc)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(loc, error["loc"], model)
    if kind == "missing":
        return f'{table_name(loc[:-1])} needs the key "{loc[-1]}"'
    if kind in _TYPES:
        return f"{key} must be {_TYPES[kind]}, not {_shown(error['input'])}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{key} must be {words} {context[name]:g}, not {_shown(error['input'])}"
    if kind in _LENGTHS:
        name, words = _LENGTHS[kind]
        return f"{key} must have {words.format(context[name])}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context["discriminator"]).strip("'")
        missing = f'{table_name(loc)} needs the key "{tag}"'
        return missing if kind == "union_tag_not_found" else _not_one_of(error, key_in_table((*loc, tag)))
    if kind == "literal_error":
        return _not_one_of(error, key)
    if kind == "value_error":
        in_table = isinstance(error["input"], Mapping)
        return f"{table_name(loc) if in_table else key}: {context['error']}"
    return f"{key}: {error['msg']}"


def _shown(value: object) -> str:
    """Return a wrong value as the file spells it, short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the text "{value[:40]}"'
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, Sequence) else str(value)


def _not_one_of(error: ErrorDetails, key: str) -> str:
    context = error.get("ctx", {})
    words = str(context.get("expected") or context.get("expected_tags"))
    allowed = re.findall(r"'([^']*)'", words)
    given = context.get("tag", error["input"])
    listed = " or ".join(f'"{word}"' for word in allowed) if allowed else words.lower()
    hint = did_you_mean(given, allowed) if isinstance(given, str) else ""
    return f"{key} must be {listed}, not {_shown(given)}{hint}"


def _unknown_key(loc: Loc, loc_with_tags: Loc, model: type[Table]) -> str:
    name = str(loc[-1])
    tables = _tables_at(model, loc[:-1])
    # Of several kinds of table (`kind = "resample"`) the one that is written here knows the keys.
    tagged = [table for table in tables if loc_with_tags[-2:-1] == _kind(table)]
    known = [key for table in tagged or tables for key in _key_names(table)]
    start = f'unknown key "{name}" in {table_name(loc[:-1])}'
    hint = did_you_mean(name, known)
    homes = [home for home, table in all_tables(model, ()) if name in keys_of(table)]
    if not hint and len(homes) == 1:
        return f"{start}; it belongs in {table_name(homes[0])}"
    return start + hint


def keys_of(table: type[Table]) -> dict[str, FieldInfo]:
    """Return the keys of a table as the file spells them."""
    return {field.alias or name: field for name, field in table.model_fields.items()}


def _key_names(table: type) -> list[str]:
    if is_dataclass(table):
        return [field.name for field in fields(table)]
    return list(keys_of(table)) if issubclass(table, Table) else []


def _kind(table: type) -> tuple[str, ...]:
    """Return the value of `kind` that this class stands for."""
    kinds = [field.default for field in fields(table) if field.name == "kind"] if is_dataclass(table) else []
    return tuple(str(kind) for kind in kinds)


def _tables_in(annotation: Any) -> Iterator[type]:
    """Yield the table classes inside an annotation: optional, one of several, or items of a list."""
    if isinstance(annotation, type) and (issubclass(annotation, Table) or is_dataclass(annotation)):
        yield annotation
    for argument in get_args(annotation):
        yield from _tables_in(argument)


def _tables_at(model: type[Table], loc: Loc) -> list[type]:
    """Return the classes that the table at `loc` may be of."""
    tables: list[type] = [model]
    for part in loc:
        if isinstance(part, str):
            keys = [keys_of(table) for table in tables if issubclass(table, Table)]
            tables = [table for known in keys if part in known for table in _tables_in(known[part].annotation)]
    return tables


def all_tables(model: type[Table], loc: Loc = ()) -> Iterator[tuple[Loc, type[Table]]]:
    """Yield every table of a file with its location; of an array of tables the first item."""
    yield loc, model
    for key, field in keys_of(model).items():
        for table in _tables_in(field.annotation):
            if table is not model and issubclass(table, Table):
                item: Loc = (0,) if "tuple" in str(field.annotation) else ()
                yield from all_tables(table, (*loc, key, *item))
