"""What an instance costs between file and row, and what a million rows cost the node: nothing, if all is well.

    python benchmarks/index.py [--quick] [--rows N] [--rounds N] [--files FOLDER ...] [--scratch FOLDER]

Times are per instance and of one thread. The 1,000,000 rows of a large database are written by bulk inserts into the
tables themselves (two minutes), and look as a hospital's do: studies of several series, UIDs in a vendor's style,
planes, digests and paths of their real length. Batches in the large and in the empty database take turns, so that the
ratio is one of pairs. `--files` describes real files too, one line for each folder.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from pydicom import dcmread
from sqlalchemy import insert

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, KINDS, make_corpus, make_template
from benchmarks.measure import Report, Target, interleaved, paired_ratios, spread
from benchmarks.node import RunningNode
from benchmarks.peers import send
from dicom_node.clock import ManualClock
from dicom_node.errors import UndecodableError
from dicom_node.reading import describe, describe_bytes, find_files
from dicom_node.records import Studies, open_database
from dicom_node.records.database import Database
from dicom_node.records.schema import instance, series, study
from dicom_node.study import FiledInstance, Frame, InstanceDescription

SCRATCH: Final = Path(__file__).resolve().parents[1] / "var"
"""In the checkout, ignored by git: a temporary folder may lie in memory, where a commit costs nothing."""
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
BATCH: Final = 256
ROUND: Final = 10 * BATCH
"""Instances that are indexed in each round, as one study."""
LONG_SERIES: Final = 40 * BATCH
LONG_SERIES_ROUNDS: Final = 9
INSTANCES_OF_STUDY: Final = 500
SERIES_OF_STUDY: Final = 5
DESCRIBE_MS: Final = 1.0
INDEX_MS: Final = 0.3
LARGE_AT_LEAST: Final = 0.9
"""The rate with a large database as a part of the rate with an empty one."""
LONG_AT_LEAST: Final = 0.8
"""The rate at the end of a long series as a part of that at its beginning; looser, for few runs."""
START_S: Final = 10.0
"""From the command to the open port, Python's own start included."""
NODE_OBJECTS: Final = 400
NODE_ROUNDS: Final = 7
HEADER_ELEMENTS: Final = (150, 300)
_CT: Final = "1.2.840.10008.5.1.4.1.1.2"
_AXIAL: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_INSERTED_AT_ONCE: Final = 20
"""Studies written by one statement while a large database is built."""

Item = tuple[FiledInstance, InstanceDescription]


class Studio:
    """Makes studies as a scanner would: one seed, one sequence of UIDs."""

    def __init__(self, seed: int, *, scattered: bool = False) -> None:
        """`scattered`: SOP Instance UIDs as of writers that draw them at random (2.25), the worst for an index."""
        self._random = random.Random(seed)
        self._scattered = scattered
        self._made = 0

    def study(self, n_instances: int = INSTANCES_OF_STUDY, n_series: int = SERIES_OF_STUDY) -> list[Item]:
        """Return the instances of one study in the order they are received, series by series."""
        self._made += 1
        at = START + timedelta(minutes=self._made)
        root = f"1.3.12.2.1107.5.1.4.{self._random.randrange(10_000, 99_999)}.30000{at:%y%m%d%H%M%S}"
        study_uid = f"{root}{self._digits(14)}"
        items: list[Item] = []
        for number in range(n_series):
            series_uid = f"{root}{self._digits(14)}"
            sop_root = f"{root}{self._digits(8)}.{number}"
            for n in range(n_instances // n_series):
                sop_uid = f"2.25.{self._random.getrandbits(128)}" if self._scattered else f"{sop_root}.{n:05d}"
                received_at = at + timedelta(milliseconds=4 * len(items))
                items.append(self._instance(study_uid, series_uid, sop_uid, n, received_at))
        return items

    def _instance(self, study_uid: str, series_uid: str, sop_uid: str, n: int, received_at: datetime) -> Item:
        digest = f"{self._random.getrandbits(256):064x}"
        filed = FiledInstance(
            sop_instance_uid=sop_uid,
            sop_class_uid=_CT,
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            digest=digest,
            path=Path(f"/var/lib/dicom-node/store/{digest[:2]}/{digest[2:4]}/{digest[4:36]}/{digest[:48]}.dcm"),
            size_bytes=526_000,
            calling_ae="CT1",
            called_ae="DICOM_NODE",
            received_at=received_at,
            association=f"{received_at:%Y%m%d%H}",
        )
        frame = Frame(
            sop_instance_uid=sop_uid,
            frame_number=1,
            position_mm=(-249.51171875, -460.01171875, -1020.5 + 0.625 * n),
            orientation=_AXIAL,
            pixel_spacing_mm=(0.9765625, 0.9765625),
            rows=512,
            columns=512,
            frame_of_reference_uid=f"{study_uid}.1",
        )
        description = InstanceDescription(
            study_instance_uid=study_uid,
            series_instance_uid=series_uid,
            sop_instance_uid=sop_uid,
            sop_class_uid=_CT,
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            patient_id=study_uid[-8:],
            is_image=True,
            made_by_us=False,
            n_frames=1,
            header=_HEADER,
            frames=(frame,),
        )
        return filed, description

    def _digits(self, n: int) -> str:
        return "".join(self._random.choices("0123456789", k=n))


_HEADER: Final = {f"{0x00080000 + 2 * n:08X}": {"vr": "LO", "Value": ["some value of a header"]} for n in range(150)}
"""About 10 kB of JSON, as that of a CT slice."""


def fill(database: Database, studio: Studio, n_instances: int) -> None:
    """Write studies that were received and decided long ago, by bulk inserts."""
    left = n_instances
    while left > 0:
        studies = [studio.study() for _ in range(min(_INSERTED_AT_ONCE, -(-left // INSTANCES_OF_STUDY)))]
        left -= sum(map(len, studies))
        items = [item for one in studies for item in one]
        with database.begin() as connection:
            connection.execute(insert(study), [_study_row(one) for one in studies])
            of_series: dict[str, list[Item]] = {}
            for item in items:
                of_series.setdefault(item[1].series_instance_uid, []).append(item)
            connection.execute(insert(series), [_series_row(one) for one in of_series.values()])
            connection.execute(insert(instance), [_instance_row(*item) for item in items])


def _times(items: Sequence[Item]) -> dict[str, Any]:
    return {"first_received": items[0][0].received_at, "last_received": items[-1][0].received_at}


def _study_row(items: Sequence[Item]) -> dict[str, Any]:
    _, description = items[0]
    return {
        "study_instance_uid": description.study_instance_uid,
        "patient_id": description.patient_id,
        "state": "complete",
        "revision": 2,
        "decided_revision": 2,
    } | _times(items)


def _series_row(items: Sequence[Item]) -> dict[str, Any]:
    filed, description = items[0]
    return {
        "study_instance_uid": description.study_instance_uid,
        "series_instance_uid": description.series_instance_uid,
        "header": description.header,
        "header_sop_instance_uid": filed.sop_instance_uid,
        "calling_ae": filed.calling_ae,
        "called_ae": filed.called_ae,
        "n_images": len(items),
        "n_instances": len(items),
        "revision": 2,
        "decided_revision": 2,
        "last_association": filed.association,
        "n_runs": 1,
        "longest_pause_s": max(
            ((one.received_at - before.received_at).total_seconds() for (before, _), (one, _) in pairwise(items)),
            default=0.0,
        ),
    } | _times(items)


def _instance_row(filed: FiledInstance, description: InstanceDescription) -> dict[str, Any]:
    names = ("sop_instance_uid", "digest", "sop_class_uid", "transfer_syntax_uid", "size_bytes", "calling_ae")
    of_filed = {name: getattr(filed, name) for name in (*names, "called_ae", "association", "received_at")}
    said = ("study_instance_uid", "series_instance_uid", "is_image", "made_by_us", "n_frames", "patient_id")
    of_description = {name: getattr(description, name) for name in said}
    planes = [[list(frame.position_mm), list(frame.orientation)] for frame in description.frames]
    return of_filed | of_description | {"path": str(filed.path), "is_current": True, "planes": planes}


def batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Yield the items as the indexer takes them."""
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def index_ms(studies: Studies, items: Sequence[Item]) -> float:
    """Return the milliseconds that one instance costs when `items` are indexed batch by batch."""
    started = time.perf_counter()
    for batch in batches(items):
        studies.index(batch)
    return (time.perf_counter() - started) * 1e3 / len(items)


def describe_ms(paths: Sequence[Path], repeats: int = 5) -> float:
    """Return the milliseconds that `describe` takes: the best of the repeats of each file, median over the files."""
    best = []
    for path in paths:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            describe(path)
            times.append((time.perf_counter() - started) * 1e3)
        best.append(min(times))
    return median(best)


def synthetic_files(folder: Path) -> dict[str, Path]:
    """Return synthetic objects by name: those of the other benchmarks, and CT slices with headers of real length."""
    files = {}
    for kind in KINDS.values():
        files[kind.name] = folder / f"{kind.name}.dcm"
        files[kind.name].write_bytes(make_template(kind).content)
    for n_elements in HEADER_ELEMENTS:
        dataset = dcmread(files["ct"])
        for number in range(n_elements - len(dataset)):
            dataset.add_new(0x00191001 + number, "DS" if number % 2 else "LO", "1.25" if number % 2 else "some words")
        name = f"ct, {n_elements} elements"
        files[name] = folder / f"ct-{n_elements}.dcm"
        dataset.save_as(files[name])
    return files


def measure_describing(report: Report, folder: Path, real: Sequence[Path]) -> None:
    """Add what `describe` costs for each kind of synthetic object, and for the instances of each real folder."""
    cases = {name: [path] for name, path in synthetic_files(folder).items()}
    cases |= {str(one): instances for one in real if (instances := _instances(one))}
    rows = []
    for name, paths in cases.items():
        contents = [path.read_bytes() for path in paths[:1]]
        describe_bytes(contents[0])  # the first needs the dictionary
        started = time.perf_counter()
        describe_bytes(contents[0])
        in_memory_ms = (time.perf_counter() - started) * 1e3
        started = time.perf_counter()
        n_elements = len(describe(paths[0]).header)
        header_ms = (time.perf_counter() - started) * 1e3
        rows.append((name, len(paths), n_elements, describe_ms(paths), in_memory_ms, header_ms))
    columns = ("instance", "files", "elements kept", "describe ms", "from memory ms", "with header ms")
    report.add_table("Describing one instance", columns, rows)
    for name, _, _, ms, *_ in rows:
        report.figures[f"describe_ms/{name}"] = ms
        if "elements" in name:
            report.targets.append(Target(name=f"describe {name}, ms", value=ms, at_most=DESCRIBE_MS))


def _instances(folder: Path) -> list[Path]:
    found = []
    for path in find_files(folder)[:50]:
        try:
            describe(path)
        except UndecodableError:
            continue
        found.append(path)
    return found


def measure_indexing(report: Report, folder: Path, n_rows: int, rounds: int) -> None:
    """Add what a row costs in an empty database and in a large one."""
    large, empty = _database(folder / "large.sqlite"), _database(folder / "empty.sqlite")
    fill(large, Studio(1), n_rows)
    sources = {"empty": (Studies(empty), Studio(2)), "large": (Studies(large), Studio(3))}
    times: dict[str, list[float]] = {name: [] for name in sources}
    for number, name in interleaved(list(sources), rounds + 1):
        studies, studio = sources[name]
        ms = index_ms(studies, studio.study(ROUND))
        if number > 0:  # the first warms up
            times[name].append(ms)
    scattered = Studio(4, scattered=True)
    times["large, scattered UIDs"] = [index_ms(Studies(large), scattered.study(ROUND)) for _ in range(rounds)]
    report.add_table(
        f"Indexing one instance in batches of {BATCH}, {n_rows} rows in the large database",
        ("database", "ms [low-high]"),
        [(name, spread(values)) for name, values in times.items()],
    )
    large.close()
    empty.close()
    ratio = median(paired_ratios(times["large"], times["empty"]))
    report.figures |= {f"index_ms/{name}": median(values) for name, values in times.items()}
    for name in times:
        report.targets.append(Target(name=f"index, {name}, ms", value=median(times[name]), at_most=INDEX_MS))
    report.targets.append(Target(name="rate, large / empty", value=ratio, at_least=LARGE_AT_LEAST))


def measure_node(report: Report, folder: Path, rounds: int) -> None:
    """Add how a node with the large database starts and receives, beside one with an empty database."""
    corpus = [make_corpus(KINDS["mr"], folder, count=NODE_OBJECTS, seed=f"node-{number}") for number in range(rounds)]
    started: dict[str, float] = {}
    times: dict[str, list[float]] = {"empty": [], "large": []}
    with ExitStack() as stack:
        nodes = {}
        for name in times:
            begun = time.perf_counter()
            nodes[name] = stack.enter_context(RunningNode(folder / f"node-{name}", records=folder / f"{name}.sqlite"))
            started[name] = time.perf_counter() - begun
        for number, name in interleaved(list(nodes), rounds):
            begun = time.perf_counter()
            send(corpus[number], nodes[name], associations=1, folder=folder)
            times[name].append(time.perf_counter() - begun)
    report.figures |= {f"start_s/{name}": seconds for name, seconds in started.items()}
    report.figures |= {f"receive_s/{name}": median(values) for name, values in times.items()}
    report.targets.append(Target(name="start with the large database, s", value=started["large"], at_most=START_S))
    ratio = median(paired_ratios(times["large"], times["empty"]))
    report.targets.append(Target(name="receiving, large / empty", value=ratio, at_least=LARGE_AT_LEAST))


def measure_long_series(report: Report, folder: Path) -> None:
    """Add what a row costs in the first and in the last quarter of a series of 10,240 instances, of several in turn."""
    studies, studio = Studies(_database(folder / "long.sqlite")), Studio(9)
    quarter = LONG_SERIES // 4
    first, last = [], []
    for _ in range(LONG_SERIES_ROUNDS):
        items = studio.study(LONG_SERIES, 1)
        times = [index_ms(studies, items[start : start + quarter]) for start in range(0, LONG_SERIES, quarter)]
        first.append(times[0])
        last.append(times[-1])
    ratio = median(paired_ratios(last, first))
    report.figures |= {"long_series_ms/beginning": median(first), "long_series_ms/end": median(last)}
    report.targets.append(Target(name="rate, end / beginning of a series", value=ratio, at_least=LONG_AT_LEAST))


def _database(path: Path) -> Database:
    database = open_database(path, clock=ManualClock(START))
    database.migrate()
    return database


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows and ten rounds")
    parser.add_argument("--rows", type=int, default=None, help="of the large database")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--files", type=Path, nargs="*", default=(), metavar="FOLDER", help="real files to describe")
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    options = parser.parse_args(arguments)
    options.scratch.mkdir(parents=True, exist_ok=True)
    report = Report(benchmark="index")
    with TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as scratch:
        folder = Path(scratch)
        measure_describing(report, folder, options.files)
        rows = options.rows or (100_000 if options.quick else 1_000_000)
        measure_indexing(report, folder, rows, options.rounds or (10 if options.quick else 25))
        measure_node(report, folder, NODE_ROUNDS)
        measure_long_series(report, folder)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
