"""The shape of config.toml: every table and key with its default, unit and meaning. Plain data, frozen.

`config.locate` finds the line of a key, `config.load` turns a file into these values. An unknown key is an error.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Table(BaseModel):
    """A TOML table whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def _checked_ae_title(value: object) -> object:
    """Refuse what is no AE title: 1 to 16 printable ASCII characters, no backslash (PS3.5 6.2, VR AE)."""
    if isinstance(value, str):
        if not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]{1,16}", value) or not value.strip():
            raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
        return value.strip()
    return value


AeTitle: TypeAlias = Annotated[str, BeforeValidator(_checked_ae_title)]
Network: TypeAlias = IPv4Network | IPv6Network
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Scalar: TypeAlias = str | int | float


class Condition(Table):
    """One condition on a header, or a group of alternatives (`any`).

    Exactly one operator applies to one attribute; text is compared without surrounding blanks.
    """

    keyword: str | None = None
    """DICOM keyword, or CallingAETitle, CalledAETitle."""
    tag: str | None = Field(default=None, pattern=r"^\([0-9A-Fa-f]{4},[0-9A-Fa-fxX]{4}\)$")
    """"(0019,xx08)": a tag, with `private_creator` where its block is private."""
    private_creator: str | None = None
    equals: Scalar | None = None
    in_: tuple[Scalar, ...] | None = Field(default=None, alias="in")
    matches: str | None = None
    """Regular expression, found anywhere in the text."""
    contains: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    exists: bool | None = None
    not_: bool = Field(default=False, alias="not")
    missing: bool = False
    """An absent or empty attribute passes."""
    all_: bool = Field(default=False, alias="all")
    """Every value of a multi-valued attribute must match, not any."""
    any_: tuple[Condition, ...] | None = Field(default=None, alias="any")
    """Alternatives, one of which must hold; then no other key but `not` is given."""

    @model_validator(mode="after")
    def _is_one_condition(self) -> Self:
        operators = [
            name
            for name in ("equals", "in_", "matches", "contains", "at_least", "at_most", "exists")
            if getattr(self, name) is not None
        ]
        if self.any_ is not None:
            if self.keyword or self.tag or operators:
                raise ValueError("a group with `any` has no keyword and no operator of its own")
            if not self.any_:
                raise ValueError("`any` needs at least one condition")
            return self
        if bool(self.keyword) == bool(self.tag):
            raise ValueError("name one attribute: `keyword` or `tag`")
        if not operators:
            raise ValueError("name what must hold: equals, in, matches, contains, at_least, at_most or exists")
        if len(operators) > 1 and set(operators) != {"at_least", "at_most"}:
            raise ValueError(f"one operator a condition; {' and '.join(operators)} are two")
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"matches is no regular expression: {error}") from error
        return self


class Match(Table):
    """Conditions that must all hold."""

    match: tuple[Condition, ...] = ()


class SeriesMatch(Match):
    """Conditions on one series, and which of several candidates is taken."""

    prefer: tuple[Literal["thinnest", "thickest", "most_slices", "fewest_slices", "first", "last"], ...] = ()


class NodeSettings(Table):
    """[node]"""

    ae_titles: tuple[AeTitle, ...] = Field(default=("DICOM_NODE",), min_length=1)
    data_dir: str = "var"
    """Relative to the configuration file."""
    database: str = ""
    """"" = SQLite in data_dir."""
    timezone: str = "local"


class ReceiveSettings(Table):
    """[receive]"""

    host: str = "127.0.0.1"
    port: Port = 11112
    max_associations: Annotated[int, Field(ge=1, le=10_000)] = 100
    max_pdu: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    """Bytes."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """An association that is silent so long is aborted."""


class StorageSettings(Table):
    """[storage]"""

    on_conflict: Literal["replace_if_same_source", "keep_first", "reject"] = "replace_if_same_source"
    reserve_mb: Annotated[int, Field(ge=0)] = 512
    """Below this much free space no instance is accepted (0xA700)."""


class WorkerSettings(Table):
    """[worker]"""

    slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that infer at the same time."""
    lease_s: Annotated[float, Field(gt=0)] = 30.0
    max_attempts: Annotated[int, Field(ge=1)] = 3
    retry_base_s: Annotated[float, Field(ge=0)] = 5.0


class SenderSettings(Table):
    """[sender]"""

    retry_base_s: Annotated[float, Field(gt=0)] = 5.0
    retry_max_s: Annotated[float, Field(gt=0)] = 600.0
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    max_refusals: Annotated[int, Field(ge=1)] = 5
    """Answers other than success after which a delivery is `failed`; a peer that is away is tried for ever."""


class WebSettings(Table):
    """[web]"""

    host: str = "127.0.0.1"
    port: Port = 8080


class PluginSettings(Table):
    """[plugins]"""

    paths: tuple[str, ...] = ("plugins",)
    """Folders, searched in order, relative to the configuration file; then the plugins that the node brings along."""


class Address(Table):
    """Where a peer listens."""

    host: str
    port: Port


def _parsed_address(value: object) -> object:
    if isinstance(value, str):
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError('an address is "host:port", for example "127.0.0.1:4242"')
        return {"host": host.strip("[]"), "port": int(port)}
    return value


class Peer(Table):
    """[[peer]]: whom we know."""

    name: Name
    ae_title: AeTitle
    hosts: tuple[Network, ...] = ()
    """Networks it may call from; empty: it never calls."""
    address: Annotated[Address, BeforeValidator(_parsed_address)] | None = None
    """Where we call it; None: we never do."""
    may: tuple[Literal["echo", "store", "commit"], ...] = ("echo", "store")


class Profile(Table):
    """[destination.profile]: what a destination gets, in which form."""

    results: tuple[Literal["sr", "seg"], ...] = ("sr", "seg")
    seg: Literal["binary"] = "binary"
    sr: Literal["comprehensive_3d"] = "comprehensive_3d"
    identity: Literal["source"] = "source"


class Destination(Table):
    """[[destination]]: who gets results."""

    name: Name
    peer: str
    profile: Profile = Profile()


class Complete(Table):
    """[route.complete]: when a study or series counts as complete."""

    quiet_s: Annotated[float, Field(ge=0)] = 5.0
    max_wait_s: Annotated[float, Field(gt=0)] | None = None
    """After the last image at the latest, even if an association still holds the study open; None: no cap."""


class Route(Table):
    """[[route]]: which studies go to which plugin, and whither its results."""

    name: Name
    plugin: str
    destinations: tuple[str, ...] = ()
    enabled: bool = True
    priority: Literal["routine", "high", "stat"] = "routine"
    start: Literal["series", "study"] = "series"
    max_study_age_days: Annotated[float, Field(gt=0)] | None = None
    """By Study Date; older studies (migrations, prefetched priors) are not processed."""
    study: Match = Match()
    series: SeriesMatch = SeriesMatch()
    complete: Complete = Complete()


class Config(Table):
    """config.toml."""

    node: NodeSettings = NodeSettings()
    receive: ReceiveSettings = ReceiveSettings()
    storage: StorageSettings = StorageSettings()
    worker: WorkerSettings = WorkerSettings()
    sender: SenderSettings = SenderSettings()
    web: WebSettings = WebSettings()
    plugins: PluginSettings = PluginSettings()
    peer: tuple[Peer, ...] = ()
    destination: tuple[Destination, ...] = ()
    route: tuple[Route, ...] = ()

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        peers = {peer.name: peer for peer in self.peer}
        destinations = {destination.name for destination in self.destination}
        for kind, names in (
            ("peer", [peer.name for peer in self.peer]),
            ("destination", [destination.name for destination in self.destination]),
            ("route", [route.name for route in self.route]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {kind}s are called {twice[0]!r}; names are unique")
        for destination in self.destination:
            if destination.peer not in peers:
                raise ValueError(f"destination {destination.name!r}: no [[peer]] is called {destination.peer!r}")
            if peers[destination.peer].address is None:
                raise ValueError(f"destination {destination.name!r}: peer {destination.peer!r} needs an `address`")
        for route in self.route:
            for name in route.destinations:
                if name not in destinations:
                    raise ValueError(f"route {route.name!r}: no [[destination]] is called {name!r}")
        return self


def plain(table: Table) -> dict[str, Any]:
    """Return the table as TOML-like plain data, keys spelled as in the file."""
    return table.model_dump(mode="json", by_alias=True, exclude_none=True)
