"""The shape of config.toml: every table and key with its default, unit and meaning. Plain data, frozen.

`config.locate` finds the line of a key, `config.load` turns a file into these values and `config.checks` judges what
one table alone cannot know (names that other tables define, DICOM keywords). An unknown key is an error.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator


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
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
FileName: TypeAlias = Annotated[str, Field(min_length=1)]
Scalar: TypeAlias = str | int | float
NotNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _checked_network(value: object) -> IPv4Network | IPv6Network:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError(f'a network is text, such as "10.20.0.0/16", not {value}')
    try:
        return ip_network(value)
    except ValueError as error:
        raise ValueError(f'a network is written "10.20.0.0/16", an address "10.20.3.4": {error}') from error


Network: TypeAlias = Annotated[IPv4Network | IPv6Network, PlainValidator(_checked_network), PlainSerializer(str)]


def _checked_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError("a name has 1 to 64 letters, digits, dots, dashes or underscores; a letter or digit first")
    return value


Name: TypeAlias = Annotated[str, BeforeValidator(_checked_name)]


def _checked_tag(value: object) -> object:
    if isinstance(value, str):
        if not re.fullmatch(r"\([0-9A-Fa-f]{4},([0-9A-Fa-f]{4}|[xX]{2}[0-9A-Fa-f]{2})\)", value):
            raise ValueError('a tag is written "(0018,0050)", a private one "(0019,xx08)" with `private_creator`')
        return value.lower()
    return value


_OPERATOR_FIELDS = ("equals", "in_", "matches", "contains", "at_least", "at_most", "exists")


class Condition(Table):
    """One condition on a header, or a group of alternatives (`any`).

    Exactly one operator applies to one attribute; text is compared without surrounding blanks.
    """

    keyword: str | None = None
    """DICOM keyword, or CallingAETitle, CalledAETitle."""
    tag: Annotated[str | None, BeforeValidator(_checked_tag)] = None
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

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that are given, as they are written in the file."""
        names = {name.rstrip("_"): getattr(self, name) for name in _OPERATOR_FIELDS}
        return tuple(name for name, operand in names.items() if operand is not None)

    @model_validator(mode="after")
    def _is_one_condition(self) -> Self:
        if self.any_ is not None:
            self._check_group()
            return self
        if bool(self.keyword) == bool(self.tag):
            raise ValueError("a condition names one attribute: `keyword` or `tag`")
        self._check_operators()
        self._check_tag()
        return self

    def _check_group(self) -> None:
        if not self.any_:
            raise ValueError("`any` needs at least one condition")
        if self.model_fields_set - {"any_", "not_"}:
            raise ValueError("a group with `any` has no other key but `not`; put keys into its conditions")

    def _check_operators(self) -> None:
        operators = self.operators
        if not operators:
            raise ValueError("a condition needs one of equals, in, matches, contains, at_least, at_most, exists")
        if len(operators) > 1 and operators != ("at_least", "at_most"):
            raise ValueError(f"a condition has one operator; {' and '.join(operators)} are {len(operators)}")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"no value is at least {self.at_least:g} and at most {self.at_most:g}")
        if self.in_ == ():
            raise ValueError("`in` needs at least one value")
        if self.exists is not None and (self.missing or self.all_):
            raise ValueError("`exists` asks for presence alone; leave out `missing` and `all`")
        if self.matches is not None:
            try:
                re.compile(self.matches)
            except re.error as error:
                raise ValueError(f"`matches` is no regular expression: {error}") from error

    def _check_tag(self) -> None:
        private = self.tag is not None and int(self.tag[1:5], 16) % 2 == 1
        if self.private_creator and not private:
            raise ValueError("`private_creator` goes with a private `tag` (its group is odd)")
        if self.tag and "x" in self.tag and not (private and self.private_creator):
            raise ValueError("a tag with xx is private and needs `private_creator`, which reserves its block")


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
    database: Literal[""] = ""
    """"" = SQLite in data_dir."""
    timezone: Literal["local"] = "local"
    """The zone of dates in DICOM headers that we write and of the age of studies: the machine's."""


class TlsSettings(Table):
    """[receive.tls]: a second, mutually authenticated port (PS3.15 B.12) beside the plain one."""

    host: str | None = None
    """Address to listen on; None: that of [receive]."""
    port: Port = 2762
    """IANA's dicom-tls."""
    certificate: FileName
    """PEM: our certificate, then those of intermediate CAs; relative to the configuration file, as the next two."""
    key: FileName
    """PEM, without a password."""
    ca: FileName
    """PEM: the CAs that sign the certificates of peers and ours."""


class ReceiveSettings(Table):
    """[receive]"""

    host: str = "127.0.0.1"
    port: Port = 11112
    max_associations: Annotated[int, Field(ge=1, le=10_000)] = 100
    max_associations_per_address: Annotated[int, Field(ge=1)] = 50
    max_pending: Annotated[int, Field(ge=1)] = 64
    """Connections that have not associated yet."""
    max_pdu: Annotated[int, Field(ge=4096, le=1 << 20)] = 131072
    """Bytes."""
    idle_timeout_s: Seconds = 300.0
    """An association that is silent so long is aborted."""
    min_rate: Annotated[int, Field(ge=0)] = 1000
    """Bytes per second that a sender keeps up inside an object; 0: no limit."""
    other_storage_classes: Literal["file", "reject"] = "file"
    """Private and unknown storage SOP classes."""
    tls: TlsSettings | None = None
    """None: no TLS port."""


class StorageSettings(Table):
    """[storage]"""

    on_conflict: Literal["replace_if_same_source", "keep_first", "reject"] = "replace_if_same_source"
    reserve_mb: Annotated[int, Field(ge=0)] = 512
    """Below this much free space no instance is accepted (0xA700)."""
    journal_mb: Annotated[int, Field(ge=0)] = 512
    """Write-ahead journal for small instances; 0: none."""
    retention_days: NotNegative = 30.0
    """Days after the last image until the images of a complete study are purged; 0: no limit."""
    quota_gb: NotNegative = 0.0
    """Gigabytes (1e9 bytes) of received images above which the oldest study is purged; 0: no limit."""
    high_water_percent: Annotated[float, Field(ge=0, le=100)] = 90.0
    """How full the disk may be before the oldest study is purged; 0: no limit."""
    keep_hours: NotNegative = 24.0
    """Nothing younger is purged, however full the disk is."""
    result_retention_days: NotNegative = 90.0
    """Days after a job ended until its results are purged, when all of them arrived; 0: no limit."""
    backup_dir: str = ""
    """Folder of the nightly copies of the database, relative to the configuration file; "": data_dir/backup."""
    backup_hour: Annotated[int, Field(ge=0, le=23)] = 3
    """Hour of the day from which on the copy is made."""
    backup_keep: Annotated[int, Field(ge=0)] = 7
    """Nightly copies that are kept; 0: none are made."""


class EngineSlots(Table):
    """[worker.engine_slots]: jobs at the same time on one engine, in all workers together."""

    onnxruntime: Annotated[int, Field(ge=1)] | None = None
    """None: as many as there are slots."""

    def limits(self) -> dict[str, int]:
        """Return the engines that have a limit."""
        return {name: count for name, count in self.model_dump().items() if count is not None}


class WorkerSettings(Table):
    """[worker]"""

    slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that infer at the same time, in one worker process."""
    engine_slots: EngineSlots = EngineSlots()
    lease_s: Seconds = 30.0
    """A worker that gives no sign of life for so long loses its job to another."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Of one job, the first included."""
    retry_base_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Wait before the second attempt; doubled before each later one."""


class SenderSettings(Table):
    """[sender]"""

    retry_base_s: Seconds = 5.0
    """Wait after the first failure; doubled after each later one."""
    retry_max_s: Seconds = 600.0
    """The longest wait between two tries."""
    timeout_s: Seconds = 30.0
    """For a connection, and for each answer of the destination."""
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
    tls: bool = False
    """We call it by TLS, and it is let in on the port of [receive.tls] only."""
    max_studies_per_hour: Annotated[int, Field(ge=1)] | None = None
    """Further studies of it are held until an administrator releases them; None: no limit."""
    pause_s: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """How long it may pause within a series or study; None: learned from what it sent before."""


class Profile(Table):
    """[destination.profile]: what a destination gets, in which form."""

    results: tuple[Literal["sr", "seg", "capture"], ...] = ("sr", "seg")
    """"capture" is accepted, and `Config.notes` says that this version makes none."""
    seg: Literal["binary"] = "binary"
    sr: Literal["comprehensive_3d"] = "comprehensive_3d"
    identity: Literal["source", "destination"] = "source"
    """"destination": results get the patient and order under which it knows the study; it is asked by C-FIND."""


class Destination(Table):
    """[[destination]]: who gets results."""

    name: Name
    peer: str
    profile: Profile = Profile()


class Complete(Table):
    """[route.complete]: when a study or series counts as complete."""

    quiet_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    """Seconds without a new image."""
    max_wait_s: Seconds | None = None
    """After the last image at the latest, even if an association still holds the study open; None: no cap."""
    expected_from: str | None = None
    """Name of a [[peer]] that is asked how many images it holds (C-FIND); None: nobody."""
    debounce_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """How long what comes late is collected, once a series was complete."""
    max_reruns: Annotated[int, Field(ge=0)] = 3
    """New jobs for one series because of late images; then it is flagged, not run."""


class Route(Table):
    """[[route]]: which studies go to which plugin, and whither its results."""

    name: Name
    plugin: str | None = None
    """None: the route forwards; what was received is sent to the destinations as it is."""
    destinations: tuple[str, ...] = ()
    """Names of [[destination]]; empty: results stay on the node."""
    enabled: bool = True
    priority: Literal["routine", "high", "stat"] = "routine"
    target_s: Seconds | None = None
    """From the last image to the result; None: 300 for stat, 900 for high, 3600 for routine."""
    start: Literal["series", "study"] = "series"
    """"series": each series as soon as it is complete; "study": one series of the complete study."""
    max_study_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """By Study Date; older studies (migrations, prefetched priors) are not processed."""
    report_not_processed: Literal[False] = False
    """"Not processed, because ..." as a result in the PACS; not made by this version."""
    study: Match = Match()
    series: SeriesMatch = SeriesMatch()
    complete: Complete = Complete()

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        if self.plugin is None and not self.destinations:
            raise ValueError("a route has a `plugin`, or forwards to `destinations`; this one has neither")
        return self


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

    def notes(self) -> tuple[str, ...]:
        """Return what is allowed and yet worth a word to the administrator, one sentence each."""
        notes = [
            f'destination "{destination.name}": "capture" is not made by this version; it gets the other results'
            for destination in self.destination
            if "capture" in destination.profile.results
        ]
        notes += [
            f'peer "{peer.name}": "commit" has no effect; storage commitment is not part of this version'
            for peer in self.peer
            if "commit" in peer.may
        ]
        if self.web != WebSettings():
            notes.append("[web] has no effect; the web pages are not part of this version")
        if not any(peer.hosts and "store" in peer.may for peer in self.peer):
            notes.append('no [[peer]] has `hosts` and may "store": every image is refused')
        if not self.route:
            notes.append("there is no [[route]]: studies are filed and nothing else happens to them")
        notes += [
            f'route "{route.name}" has no destinations: its results stay on the node'
            for route in self.route
            if not route.destinations
        ]
        used = {name for route in self.route for name in route.destinations}
        notes += [
            f'destination "{destination.name}" is named by no route'
            for destination in self.destination
            if destination.name not in used
        ]
        return tuple(notes)


def plain(table: Table) -> dict[str, Any]:
    """Return the table as TOML-like plain data, keys spelled as in the file."""
    return table.model_dump(mode="json", by_alias=True, exclude_none=True)
