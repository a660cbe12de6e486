"""Checks that one table alone cannot make: what later versions bring, names that other tables define, keywords.

Pure. They run on the parsed file rather than on finished values, so that a misspelt key elsewhere does not hide them:
the administrator sees every problem at once. What has the wrong shape is left to the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from dicom_node.config.keywords import is_keyword, nearest_keyword
from dicom_node.config.locate import Loc
from dicom_node.config.schema import ReceiveSettings, Table, TlsSettings
from dicom_node.config.words import did_you_mean, table_name

Raw: TypeAlias = Mapping[str, Any]
Problem: TypeAlias = tuple[Loc, str]
"""Where, and what is wrong."""

_WHOLE_KEY: Final = None
LATER: Final[Mapping[tuple[str, ...], tuple[object, ...] | None]] = {
    ("node", "database"): ("postgresql",),
    ("destination", "dicomweb"): _WHOLE_KEY,
    ("destination", "profile", "seg"): ("labelmap",),
    ("destination", "profile", "sr"): ("comprehensive",),
    ("route", "report_not_processed"): (True,),
}
"""Keys of the published interface that this version does not implement: all of a key, or some of its values (a text
stands for what begins with it and a "+" or ":", too). They are refused by name; nothing is silently ignored."""


def later_keys(raw: Raw) -> Iterator[Problem]:
    """Yield each use of what a later version brings."""
    for way, values in LATER.items():
        for loc, value in _values_at(raw, way):
            where = f"in {table_name(loc[:-1])} is not available in this version"
            if values is _WHOLE_KEY:
                yield loc, f'"{loc[-1]}" {where}'
            elif any(_is_later(value, later) for later in values):
                shown = str(value).lower() if isinstance(value, bool) else f'"{str(value).partition(":")[0]}"'
                yield loc, f'"{loc[-1]}" = {shown} {where}'


def unknown_keywords(raw: Raw) -> Iterator[Problem]:
    """Yield each condition, however deep, whose keyword the DICOM data dictionary does not have."""
    for loc, condition in conditions_of(raw):
        keyword = condition.get("keyword")
        if isinstance(keyword, str) and not is_keyword(keyword):
            near = nearest_keyword(keyword)
            hint = f'; did you mean "{near}"?' if near else ""
            yield (*loc, "keyword"), f'unknown DICOM keyword "{keyword}"{hint}'


def cross_references(raw: Raw) -> Iterator[Problem]:
    """Yield names of config.toml that are used twice or defined nowhere."""
    for kind in ("peer", "destination", "route"):
        yield from _used_twice(raw, kind)
    peers = {name: table for _, table in _items(raw, "peer") if isinstance(name := table.get("name"), str)}
    for loc, destination in _items(raw, "destination"):
        peer = destination.get("peer")
        if isinstance(peer, str) and peer not in peers:
            yield (*loc, "peer"), f'no [[peer]] is called "{peer}"{did_you_mean(peer, list(peers))}'
        elif isinstance(peer, str) and "address" not in peers[peer]:
            yield (*loc, "peer"), f'[[peer]] "{peer}" needs an `address`, because a destination names it'
    known = [name for _, table in _items(raw, "destination") if isinstance(name := table.get("name"), str)]
    for loc, route in _items(raw, "route"):
        names = route.get("destinations")
        for index, name in enumerate(names if isinstance(names, list) else []):
            if isinstance(name, str) and name not in known:
                message = f'no [[destination]] is called "{name}"{did_you_mean(name, known)}'
                yield (*loc, "destinations", index), message
        yield from _expected_from(loc, route, peers)


def _expected_from(loc: Loc, route: Raw, peers: Mapping[str, Raw]) -> Iterator[Problem]:
    complete = route.get("complete")
    peer = complete.get("expected_from") if isinstance(complete, Mapping) else None
    if isinstance(peer, str) and peer not in peers:
        message = f'no [[peer]] is called "{peer}"{did_you_mean(peer, list(peers))}'
        yield (*loc, "complete", "expected_from"), message
    elif isinstance(peer, str) and "address" not in peers[peer]:
        yield (*loc, "complete", "expected_from"), f'[[peer]] "{peer}" needs an `address`, because it is asked'


def tls_references(raw: Raw) -> Iterator[Problem]:
    """Yield peers that need a certificate that we do not have, and a TLS port that is the plain one."""
    receive = raw.get("receive")
    tls = receive.get("tls") if isinstance(receive, Mapping) else None
    if tls is None:
        for loc, peer in _items(raw, "peer"):
            if peer.get("tls") is True:
                message = f'[[peer]] "{peer.get("name", "")}" needs the table [receive.tls]: its certificate is ours'
                yield (*loc, "tls"), message
    elif isinstance(receive, Mapping) and isinstance(tls, Mapping):
        port = tls.get("port", _default(TlsSettings, "port"))
        host = receive.get("host", _default(ReceiveSettings, "host"))
        if port == receive.get("port", _default(ReceiveSettings, "port")) and tls.get("host", host) == host:
            at = ("port",) if "port" in tls else ()
            yield ("receive", "tls", *at), f"port {port} is that of [receive] already; TLS listens on another one"


CONFIG_CHECKS: Final[tuple[Callable[[Raw], Iterator[Problem]], ...]] = (later_keys, cross_references, tls_references)
"""What is asked of config.toml beyond its schema; `unknown_keywords` is asked of every file with conditions."""


def conditions_of(raw: Raw) -> Iterator[tuple[Loc, Raw]]:
    """Yield each condition of a file, however deep, with its location."""
    return _conditions(raw, ())


def _default(table: type[Table], key: str) -> object:
    return table.model_fields[key].default


def _used_twice(raw: Raw, kind: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for loc, table in _items(raw, kind):
        name = table.get("name")
        if isinstance(name, str) and name in seen:
            yield (*loc, "name"), f'another [[{kind}]] is called "{name}" already; names are unique'
        elif isinstance(name, str):
            seen.add(name)


def _items(raw: Raw, key: str) -> Iterator[tuple[Loc, Raw]]:
    """Yield the tables of an array of tables with their locations."""
    tables = raw.get(key)
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        if isinstance(table, Mapping):
            yield (key, index), table


def _values_at(value: object, way: tuple[str, ...], loc: Loc = ()) -> Iterator[tuple[Loc, object]]:
    """Yield what stands at `way`, in each table of an array of tables."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _values_at(item, way, (*loc, index))
    elif not way:
        yield loc, value
    elif isinstance(value, Mapping) and way[0] in value:
        yield from _values_at(value[way[0]], way[1:], (*loc, way[0]))


def _is_later(value: object, later: object) -> bool:
    if isinstance(later, str) and isinstance(value, str):
        return value == later or value.startswith((f"{later}+", f"{later}:"))
    return value is later


def _conditions(value: object, loc: Loc) -> Iterator[tuple[Loc, Raw]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _conditions(inner, (*loc, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, Mapping) and loc[-1] in ("match", "any"):
                yield (*loc, index), item
            yield from _conditions(item, (*loc, index))
