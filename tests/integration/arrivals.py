"""Recorded schedules of arrival, played to the real reception, records and decision on a clock that is moved.

A schedule is a list of what happens at the port, second by second. `play` gives when each series was decided, and
whether that was early: before the last of its images that belongs to the same sending. Beside it stand fixed timers.
`python -m tests.integration.arrivals` writes the table of docs/completeness.md; a test compares.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, TypeAlias

from dicom_node.config import Config, parse_toml
from dicom_node.config.live import Live, Rules
from dicom_node.gathering import Expectations
from dicom_node.indexing import Reception
from dicom_node.indexing.rows import Indexing
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.pipeline import Decision
from dicom_node.records import Decisions
from dicom_node.study import Arrival, Association, FiledInstance, InstanceDescription
from tests.integration.records_case import OWNER, START, Records, image

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "completeness.md"
RATE_S: Final = 0.05
"""Between two images of a scanner."""
STEP_S: Final = 0.2
"""Between two questions of the worker, as `app` has it."""

Kind: TypeAlias = Literal["open", "image", "echo", "release", "abort", "kill", "restart", "force"]
Header: TypeAlias = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One thing at the port, `at` seconds after the start."""

    at: float
    kind: Kind
    association: str = ""
    ae: str = "CT1"
    study: str = ""
    series: str = ""
    number: int = 0
    n_claimed: int | None = None
    """What GE's "images in series" says."""


Schedule: TypeAlias = Sequence[Happening]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A schedule and what it is played with."""

    name: str
    schedule: Schedule
    known_sender: bool = True
    """Three ordinary studies of the same sender, six series, came before."""
    before: Schedule = ()
    """What came before that, instead."""
    settings: str = ""
    """Keys of [route.complete]."""
    peer: str = ""
    """Keys of the sender's [[peer]]."""
    held: Mapping[str, int] | None = None
    """What the asked PACS holds of each series."""
    late: frozenset[str] = frozenset()
    """Series whose second sending is late by nature: nobody could have waited for it."""
    unwhole: frozenset[str] = frozenset()
    """Series that never become whole."""

    @property
    def is_whole(self) -> bool:
        """Whether something vouches for its series: a sender that is known, or a count."""
        is_counted = self.held is not None or any(one.n_claimed for one in self.schedule)
        return self.known_sender or bool(self.before) or is_counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One decision about a series."""

    series: str
    at: float
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a case gave."""

    starts: tuple[Start, ...]
    images: Mapping[str, tuple[float, ...]]
    """When each image of a series came first."""

    def waits(self, case: Case) -> list[float]:
        """Return the seconds from the last image of each whole series to its last decision."""
        return [
            max(start.at for start in self.starts if start.series == series) - times[-1]
            for series, times in self.images.items()
            if series not in case.unwhole | case.late
        ]

    def n_early(self, case: Case) -> int:
        """Return how many decisions had to be made again, because images of the same sending came after them."""
        return len(self.starts) - sum(2 if series in case.late else 1 for series in self.images)

    def timer_early(self, case: Case, timer_s: float, of_study: Mapping[str, str] | None = None) -> int:
        """Return how many series, or (with `of_study`) studies, a fixed timer closes before their last image."""
        groups: dict[str, list[float]] = {}
        for series, times in self.images.items():
            if series not in case.late:
                groups.setdefault(of_study[series] if of_study else series, []).extend(times)
        return sum(
            any(after - before >= timer_s for before, after in zip(sorted(times), sorted(times)[1:], strict=False))
            for times in groups.values()
        )


# The port


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent(Arrival):
    described: tuple[FiledInstance, InstanceDescription]


class _Store:
    """As much of the instance store as reception asks for: what is durable and not released survives a kill."""

    def __init__(self) -> None:
        self.unreleased: dict[Path, _Sent] = {}

    def release(self, arrival: Arrival) -> None:
        self.unreleased.pop(arrival.path, None)

    def leftovers(self) -> list[Arrival]:
        return [_without_association(one) for one in self.unreleased.values()]

    def shelve(self, arrival: Arrival) -> FiledInstance:
        assert isinstance(arrival, _Sent)
        return arrival.described[0]


def _without_association(sent: _Sent) -> _Sent:
    filed, description = sent.described
    return replace(sent, described=(replace(filed, association=None), description))


class _Indexing(Indexing):
    """The real indexing, of instances that are described already."""

    def _index_arrivals(self, arrivals: Sequence[Arrival]) -> None:
        self._studies.index([one.described for one in arrivals if isinstance(one, _Sent)])

    def _adopt_shelf(self) -> None:
        """Leave it: there is none."""


class Port:
    """The real reception over real records, fed by happenings."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._store = _Store()
        self._log = Log("arrivals")
        self._count = 0
        self.reception: Reception | None = self._new()

    def _new(self) -> Reception:
        index = _Indexing(self._store, self._records.studies, log=self._log).index  # type: ignore[arg-type]
        return Reception(
            self._store,  # type: ignore[arg-type]
            index,
            process=OWNER,
            clock=self._records.clock,
            log=self._log,
        )

    def happens(self, one: Happening) -> None:
        """Let it happen."""
        if one.kind == "kill":
            self.reception = None
        elif one.kind == "restart":
            self.reception = self._new()
            self.reception.recover()
        elif one.kind == "force":
            self._records.studies.force_complete(one.study)
        elif self.reception is not None:
            self._at_the_port(self.reception, one)

    def _at_the_port(self, reception: Reception, one: Happening) -> None:
        now = self._records.clock.now()
        if one.kind == "open":
            reception.opened(
                Association(
                    id=one.association,
                    calling_ae=one.ae,
                    called_ae="DICOM_NODE",
                    address="127.0.0.1",
                    peer=one.ae.lower(),
                    opened_at=now,
                )
            )
        elif one.kind == "image":
            reception.filed(one.association, self._sent(one, now))
        elif one.kind == "echo":
            reception.activity(one.association)
        else:
            reception.closed(one.association, "released" if one.kind == "release" else "aborted")

    def _sent(self, one: Happening, now: datetime) -> _Sent:
        header: dict[str, Mapping[str, Any]] = {"00080060": {"vr": "CS", "Value": ["CT"]}}
        if one.n_claimed is not None:
            header["00250010"] = {"vr": "LO", "Value": ["GEMS_SERS_01"]}
            header["00251007"] = {"vr": "SL", "Value": [one.n_claimed]}
        filed, description = image(
            one.number, study=one.study, series=one.series, at=now, association=one.association, header=header
        )
        filed = replace(filed, calling_ae=one.ae)
        self._count += 1
        path = Path(f"{self._count}")
        sent = _Sent(
            meta=None,  # type: ignore[arg-type]
            received_at=now,
            path=path,
            offset=0,
            size_bytes=0,
            record_offset=None,
            described=(filed, description),
        )
        self._store.unreleased[path] = sent
        return sent


# Playing

CONFIG = """
[[peer]]
name = "pacs"
ae_title = "ORTHANC"
address = "127.0.0.1:4242"
[[peer]]
name = "ct1"
ae_title = "CT1"
{peer}
[[route]]
name = "any"
plugin = "none"
[route.complete]
{settings}
"""


def play(case: Case) -> Outcome:
    """Play a case from its first to its last happening, and on until everything is decided."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        records = Records(path)
        begin = 0.0
        if case.before or case.known_sender:
            content, begin = _after(case.before or tuple(_history()))
            records.database.close()
            path.write_bytes(content)
            records.clock.advance(begin)
        _Player(records, case, folder).play([_later(one, begin) for one in case.schedule])
        return _outcome(records, case, begin)


@cache
def _after(schedule: Schedule) -> tuple[bytes, float]:
    """Return the records that a schedule leaves behind, and when that was."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        records = Records(path)
        _Player(records, Case(name="before", schedule=schedule), folder).play(schedule)
        records.clock.advance(600)
        records.database.close()
        return path.read_bytes(), records.clock.monotonic()


def _later(one: Happening, by: float) -> Happening:
    return replace(one, at=one.at + by)


class _Player:
    def __init__(self, records: Records, case: Case, folder: str) -> None:
        self._records = records
        self._port = Port(records)
        log = Log("arrivals")
        config = parse_toml(CONFIG.format(peer=case.peer, settings=case.settings), Path("config.toml"), Config)
        self._expectations = Expectations(lambda _peer, _study: case.held or {}, clock=records.clock, log=log)
        self._decision = Decision(
            records.studies,
            Decisions(records.database, records.jobs),
            rules=Live(Rules.of(config)),
            registry=PluginRegistry([], Path(folder) / "models"),
            clock=records.clock,
            log=log,
            expectations=self._expectations,
        )

    def play(self, schedule: Sequence[Happening]) -> None:
        """Step through the schedule; where nothing is open, jump to the next happening."""
        clock = self._records.clock
        waiting = sorted(schedule, key=lambda one: one.at)
        position, last = 0, -1e9
        while True:
            now = clock.monotonic()
            while position < len(waiting) and waiting[position].at <= now + 1e-9:
                self._port.happens(waiting[position])
                position, last = position + 1, now
            self._step()
            following = waiting[position].at if position < len(waiting) else None
            is_open = bool(self._records.studies.open_studies())
            if following is None and not is_open and now - last > 5:
                return
            pause = STEP_S if now - last < 8 else 1.0 if now - last < 100 else 2.0
            if not is_open and now - last > 5 and following is not None:
                pause = following - now
            clock.advance(min(pause, following - now) if following is not None else pause)

    def _step(self) -> None:
        if self._port.reception is not None:
            while self._port.reception.step_when_calm():
                pass
        self._expectations.step()
        self._decision.step()


def _outcome(records: Records, case: Case, shift: float) -> Outcome:
    images: dict[str, dict[int, float]] = {}
    for one in case.schedule:
        if one.kind == "image":
            images.setdefault(one.series, {}).setdefault(one.number, one.at)
    decisions = Decisions(records.database, records.jobs)
    starts = []
    for uid in {one.study for one in case.schedule if one.kind == "image"}:
        for row in decisions.list(uid):
            if row.series_instance_uid is not None and row.route == "any":
                at = (row.decided_at - START).total_seconds() - shift
                starts.append(Start(series=row.series_instance_uid, at=at, evidence=row.evidence or ""))
    return Outcome(
        starts=tuple(sorted(starts, key=lambda one: one.at)),
        images={series: tuple(sorted(times.values())) for series, times in images.items()},
    )


# Schedules


def images(
    at: float,
    association: str,
    series: str,
    numbers: Sequence[int],
    *,
    study: str = "1",
    ae: str = "CT1",
    every_s: float = RATE_S,
    n_claimed: int | None = None,
) -> list[Happening]:
    """Return images one after the other."""
    return [
        Happening(
            at=at + index * every_s,
            kind="image",
            association=association,
            ae=ae,
            study=study,
            series=f"{study}.{series}",
            number=number,
            n_claimed=n_claimed,
        )
        for index, number in enumerate(numbers)
    ]


def association(
    at: float,
    id_: str,
    *parts: Callable[[float], list[Happening]],
    ae: str = "CT1",
    end: Literal["release", "abort", "none"] = "release",
) -> list[Happening]:
    """Return an association with its parts one after the other, each given the second at which it begins."""
    happenings = [Happening(at=at, kind="open", association=id_, ae=ae)]
    now = at + 0.05
    for part in parts:
        happenings += part(now)
        now = happenings[-1].at + RATE_S
    if end != "none":
        happenings.append(Happening(at=now + 0.01, kind=end, association=id_, ae=ae))
    return happenings


def one_series(id_: str, series: str, numbers: Sequence[int], **how: Any) -> Callable[[float], list[Happening]]:
    """Return a part of an association: images of one series."""
    return lambda at: images(at, id_, series, numbers, **how)


def pause(seconds: float) -> Callable[[float], list[Happening]]:
    """Return a part of an association in which nothing happens."""
    return lambda at: [Happening(at=at + seconds, kind="echo", association="nobody")]


def _history(n: int = 3, *, gateway: bool = False) -> list[Happening]:
    """Return ordinary studies of CT1: two series, one association each study, released."""
    happenings = []
    for number in range(n):
        id_, study = f"h{number}", f"1.900.{number}"
        parts = [one_series(id_, str(series), range(1, 7), study=study) for series in (1, 2)]
        happenings += association(number * 60.0, id_, *parts, end="none" if gateway else "release")
    return happenings


WHOLE = range(1, 61)
THIRDS = (range(1, 21), range(21, 41), range(41, 61))


def _three_associations(pause_s: float) -> Schedule:
    happenings = []
    for number in range(3):
        at = number * (3.2 + pause_s)
        happenings += association(at, f"a{number}", one_series(f"a{number}", str(number), WHOLE))
    return happenings


def _cut(
    pause_s: float, parts: Sequence[Sequence[int]], *, n_claimed: int | None = None, study: str = "1", at: float = 0
) -> list[Happening]:
    happenings = []
    for number, part in enumerate(parts):
        id_ = f"{study}a{number}"
        happenings += association(
            at + number * (1.2 + pause_s), id_, one_series(id_, "1", part, n_claimed=n_claimed, study=study)
        )
    return happenings


def _cut_before(pause_s: float) -> Schedule:
    """Return six studies of the same sender, each series cut the same way, far apart."""
    return [
        one
        for number in range(6)
        for one in _cut(pause_s, THIRDS, study=f"1.800.{number}", at=number * (4 * pause_s + 900.0))
    ]


def _per_image(every_s: float, n_claimed: int | None = None) -> Schedule:
    return [
        one
        for number in range(1, 31)
        for one in association(
            number * every_s, f"a{number}", one_series(f"a{number}", "1", [number], n_claimed=n_claimed)
        )
    ]


def _gateway() -> Schedule:
    """Return one association from morning to evening: eight studies of two series, one every hour."""
    happenings = [Happening(at=0, kind="open", association="all-day")]
    for number in range(8):
        at = 5 + number * 3600.0
        for series in ("1", "2"):
            happenings += images(at, "all-day", series, WHOLE, study=f"1.{number}")
            at = happenings[-1].at + RATE_S
    happenings += [Happening(at=120.0 * turn, kind="echo", association="all-day") for turn in range(1, 240)]
    return sorted(happenings, key=lambda one: one.at)


def _shuffled() -> Schedule:
    """Return two studies over one association, image by image in turn."""
    happenings = [Happening(at=0, kind="open", association="a")]
    for index, number in enumerate(WHOLE):
        for which in (1, 2):
            happenings += images(0.1 + (2 * index + which) * RATE_S, "a", "1", [number], study=f"1.{which}")
    return [*happenings, Happening(at=happenings[-1].at + RATE_S, kind="release", association="a")]


def _killed() -> Schedule:
    """Return a study in whose middle the receiver is killed; the sender comes again with all of it."""
    first = association(0, "a", one_series("a", "1", range(1, 36)), end="none")
    again = association(40, "b", one_series("b", "1", WHOLE))
    return [
        *first,
        Happening(at=1.9, kind="kill"),
        Happening(at=7, kind="restart"),
        *again,
    ]


CASES: Final[tuple[Case, ...]] = (
    Case(
        name="one association, three series",
        schedule=association(0, "a", *(one_series("a", str(series), WHOLE) for series in (1, 2, 3))),
    ),
    Case(
        name="the same, of a sender that nobody knows",
        known_sender=False,
        schedule=association(0, "a", *(one_series("a", str(series), WHOLE) for series in (1, 2, 3))),
    ),
    *(
        Case(name=f"3 associations, a series each, pauses of {pause_s} s", schedule=_three_associations(pause_s))
        for pause_s in (5, 30, 120)
    ),
    *(
        Case(
            name=f"a series cut into 3 associations, pauses of {pause_s} s; the scanner counts its images",
            schedule=_cut(pause_s, THIRDS, n_claimed=60),
            known_sender=False,
        )
        for pause_s in (5, 30, 120)
    ),
    *(
        Case(
            name=f"the same, in order, pauses of {pause_s} s; a sender that has done so before",
            schedule=_cut(pause_s, THIRDS),
            before=tuple(_cut_before(pause_s)),
        )
        for pause_s in (5, 30, 120)
    ),
    Case(
        name="the same, in order, pauses of 120 s; pause_s = 150",
        schedule=_cut(120, THIRDS),
        known_sender=False,
        peer="pause_s = 150",
    ),
    Case(
        name="the same, in order, pauses of 120 s; the PACS says how many it holds",
        schedule=_cut(120, THIRDS),
        known_sender=False,
        settings='expected_from = "pacs"',
        held={"1.1": 60},
    ),
    Case(name="one association per image, 4 a second", schedule=_per_image(0.25), known_sender=False),
    Case(name="one association per image, one in 4 s", schedule=_per_image(4.0), known_sender=False),
    Case(name="one association per image, one in 8 s", schedule=_per_image(8.0), known_sender=False),
    Case(name="the same, and the scanner counts its images", schedule=_per_image(8.0, 30), known_sender=False),
    Case(name="a gateway's association, open all day", schedule=_gateway(), before=tuple(_history(gateway=True))),
    Case(name="the same, of a gateway that nobody knows", schedule=_gateway(), known_sender=False),
    Case(name="two studies shuffled", schedule=_shuffled()),
    Case(
        name="a reconstruction 20 minutes late",
        schedule=[
            *association(0, "a", one_series("a", "1", WHOLE)),
            *association(1200, "b", one_series("b", "2", WHOLE)),
        ],
    ),
    Case(
        name="ten slices of a series 20 minutes late",
        late=frozenset({"1.1"}),
        schedule=[
            *association(0, "a", one_series("a", "1", range(1, 51))),
            *association(1200, "b", one_series("b", "1", range(51, 61))),
        ],
    ),
    Case(
        name="a truncated end: aborted after 40 of 60, sent again after 45 s",
        schedule=[
            *association(0, "a", one_series("a", "1", range(1, 41)), end="abort"),
            *association(45, "b", one_series("b", "1", WHOLE)),
        ],
    ),
    Case(
        name="a truncated end: aborted after 40 of 60, for ever",
        unwhole=frozenset({"1.1"}),
        schedule=[*association(0, "a", one_series("a", "1", range(1, 41)), end="abort")],
    ),
    Case(
        name="a truncated end: released after 40 of 60, which the scanner counts; the rest after 90 s",
        known_sender=False,
        schedule=[
            *association(0, "a", one_series("a", "1", range(1, 41), n_claimed=60)),
            *association(92, "b", one_series("b", "1", range(41, 61), n_claimed=60)),
        ],
    ),
    Case(
        name="slices missing in between; they come after 60 s",
        schedule=[
            *association(0, "a", one_series("a", "1", [*range(1, 20), *range(26, 61)])),
            *association(63, "b", one_series("b", "1", range(20, 26))),
        ],
    ),
    Case(
        name="a stalled series: 100 s of silence on an open association",
        schedule=association(
            0, "a", one_series("a", "1", range(1, 31)), pause(100), one_series("a", "1", range(31, 61))
        ),
    ),
    Case(
        name="a re-send of everything from the PACS, 10 minutes later",
        schedule=[
            *association(0, "a", one_series("a", "1", WHOLE)),
            *association(600, "b", one_series("b", "1", WHOLE, ae="ORTHANC"), ae="ORTHANC"),
        ],
    ),
    Case(name="kill -9 of the receiver in mid-study; the sender comes again after 40 s", schedule=_killed()),
)

UNTOLD: Final[tuple[Case, ...]] = tuple(
    Case(
        name=f"a series cut into 3 associations in order, pauses of {pause_s} s, of a sender that nobody knows",
        schedule=_cut(pause_s, THIRDS),
        known_sender=False,
    )
    for pause_s in (5, 30, 120)
)
"""Nothing tells that more is to come: no number, no gap, no habit, no setting."""


# The table

TIMERS: Final = (
    ("mercure, series (60 s)", 60.0, False),
    ("mercure, study (960 s)", 960.0, True),
    ("Orthanc (60 s)", 60.0, False),
)
"""Name, seconds after the last image, and whether they count for the study: the defaults of their configurations."""

HEAD: Final = """\
# When is everything here? Measured on recorded schedules

Written by `python -m tests.integration.arrivals`; `tests/integration/test_arrivals.py` compares. Each schedule is
played to the real reception, records and decision on a clock that is moved; images come 20 a second, rows follow their
files in batches as they do in a running node, and the worker asks five times a second. The sender is one that has sent
six ordinary series before, unless the line says otherwise. Settings are the defaults, unless it says otherwise.

"Start" is the time from the last image of a series to the decision about it: median, and the longest. "Early" counts
decisions that had to be made again because images of the same sending came after them. The fixed timers start 60 s or
960 s after the last image, always; what is counted of them is how often such a pause lies within a sending.

"""


def line_of(case: Case, outcome: Outcome) -> str:
    """Return the line of the table of a case."""
    waits = outcome.waits(case)
    of_study = {one.series: one.study for one in case.schedule if one.kind == "image"}
    timers = [str(outcome.timer_early(case, timer_s, of_study if whole else None)) for _, timer_s, whole in TIMERS]
    shown = f"{median(waits):.1f} s, {max(waits):.1f} s" if waits else "-"
    by = ", ".join(sorted({start.evidence for start in outcome.starts}))
    cells = [case.name, str(len(outcome.images)), shown, str(outcome.n_early(case)), by, *timers]
    return "| " + " | ".join(cells) + " |"


def table() -> str:
    """Return the document."""
    titles = ["schedule", "series", "start", "early", "decided by", *(f"{name}: early" for name, _, _ in TIMERS)]
    rule = "|" + "---|" * len(titles)
    played = [(case, play(case)) for case in CASES]
    told = [wait for case, outcome in played for wait in outcome.waits(case)]
    whole = [wait for case, outcome in played if case.is_whole for wait in outcome.waits(case)]
    return "\n".join(
        [
            HEAD + "| " + " | ".join(titles) + " |",
            rule,
            *(line_of(case, outcome) for case, outcome in played),
            "",
            f"Over all of these {len(told)} series: start after {median(told):.1f} s in the median. Over the",
            f"{len(whole)} of senders that are known, or whose images are counted: {median(whole):.1f} s.",
            "",
            "## What nothing tells",
            "",
            "Here the quiet time of 5 s is all there is. The series is decided, what comes then opens it again, and",
            "the job that read too little is superseded; from the sixth such series on the habit is known.",
            "",
            "| " + " | ".join(titles) + " |",
            rule,
            *(line_of(case, play(case)) for case in UNTOLD),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(table())
