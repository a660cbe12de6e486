"""How fast, how small and how idle the receiver is, beside dcmtk, Orthanc and stock pynetdicom at equal durability.

    python benchmarks/receive.py [--quick] [--rounds N] [--only ct/1 tiny/8 ...] [--scratch FOLDER]

Times are wall clock from the start of the first storescu to the end of the last; after each run the receiver is asked
what it holds, and a run that lost or doubled anything ends the measurement. Every receiver runs once with a few other
objects before it is timed. Ratios are peer time / our time within a round; above 1 we are faster. The targets are the
ones under "Must show" of the receiver's issue. dcmtk's durability is that of fsync_preload.c.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, KINDS, Corpus, make_corpus
from benchmarks.measure import Report, Target, interleaved, paired_ratios, spread
from benchmarks.node import AE_TITLE, RunningNode
from benchmarks.peers import RECEIVERS, Ours, build_preload, send, start_receiver
from benchmarks.processes import cpu_s, disk_class, peak_mb
from benchmarks.upper_layer import associate, release

SCRATCH = Path(__file__).resolve().parents[1] / "var"
"""In the checkout, ignored by git: a temporary folder may lie in memory, where durability costs nothing."""
WARM_OBJECTS = 16
NEEDED_BYTES = 40 << 30
"""Everything is kept until the end (files made where others were just deleted are slow), some 30 GB in full."""
QUICK_NEEDED_BYTES = 6 << 30
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
IDLE_ASSOCIATIONS = 200
IDLE_S = 10.0
SETTLE_S = 2.0
OURS, NAGLE = "ours", "ours, Nagle on"
PEERS = tuple(name for name in RECEIVERS if name != OURS)

AGAINST: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        **{("dcmtk", kind): 0.95 for kind in KINDS},
        ("orthanc", "ct"): 3.0,
        ("orthanc", "mr"): 2.5,
        ("orthanc", "tiny"): 1.8,
        **{("pynetdicom", kind): 2.5 for kind in KINDS},
    }
)
"""(peer, kind of object) -> how many times its time must be of ours, at least."""
TINY_AGAINST_DCMTK = 1.25
"""Of tiny objects over at least four associations, where commits can be grouped."""
NAGLE_AT_LEAST = 0.8
MEMORY_MB_AT_MOST = 80.0
IDLE_PERCENT_AT_MOST = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of object over so many associations at once."""

    kind: str
    associations: int

    def __str__(self) -> str:
        """Return the name under which figures stand."""
        return f"{self.kind}/{self.associations}"

    def at_least(self, peer: str) -> float | None:
        """Return the ratio that is asked for against a peer, None when none is."""
        if (peer, self.kind) == ("dcmtk", "tiny") and self.associations >= 4:
            return TINY_AGAINST_DCMTK
        return AGAINST.get((peer, self.kind))


CASES = (
    *(Case(kind=kind, associations=number) for kind in ("ct", "mr", "tiny") for number in (1, 4, 8)),
    Case(kind="multiframe", associations=1),
)


class Bench:
    """Corpora and a scratch folder; each run gets a folder of its own below it."""

    def __init__(self, scratch: Path, *, quick: bool, preload: Path) -> None:
        self.scratch = scratch
        self._quick = quick
        self._preload = preload
        self._corpora: dict[tuple[str, bool], Corpus] = {}
        self._runs = 0

    def corpus(self, kind: str, *, warm: bool = False) -> Corpus:
        """Return the corpus of a kind, or the few other objects that warm a receiver up; made at the first call."""
        if (kind, warm) not in self._corpora:
            full = KINDS[kind].quick_count if self._quick else KINDS[kind].count
            count, seed = (min(WARM_OBJECTS, full), "warm") if warm else (full, "measured")
            self._corpora[kind, warm] = make_corpus(KINDS[kind], self.scratch / "corpora", count=count, seed=seed)
        return self._corpora[kind, warm]

    def folder(self, name: str) -> Path:
        """Return a path where nothing is yet."""
        self._runs += 1
        return self.scratch / f"run-{self._runs:04d}-{name}"

    def time_run(self, receiver: str, case: Case, *, has_nagle: bool = False) -> float:
        """Return the seconds that a receiver takes for a case.

        Raises
        ------
        RuntimeError
            When a sender fails, or the receiver does not hold exactly what was sent.
        """
        corpus, warm = self.corpus(case.kind), self.corpus(case.kind, warm=True)
        journal = self.scratch / "journal"
        with start_receiver(receiver, self.folder(receiver), preload=self._preload, journal=journal) as running:
            send(warm, running, associations=case.associations, folder=self.scratch)
            os.sync()  # what earlier runs left in memory is nobody's burden now
            seconds = send(corpus, running, associations=case.associations, folder=self.scratch, has_nagle=has_nagle)
            stored = running.stored(len(corpus.files) + len(warm.files))
            if not stored.is_all_of(corpus, warm):
                raise RuntimeError(
                    f"{receiver} does not hold what was sent of {case}: {stored}\n{running.last_words()}"
                )
        return seconds


def compare(bench: Bench, report: Report, cases: Sequence[Case], rounds: int) -> None:
    """Time every receiver on every case, and judge ours against each peer."""
    rows = []
    for case in cases:
        times: dict[str, list[float]] = {name: [] for name in RECEIVERS}
        for _, name in interleaved(tuple(RECEIVERS), rounds):
            times[name].append(bench.time_run(name, case))
        sys.stderr.write(f"{case} measured\n")
        row: list[object] = [str(case)]
        megabytes = bench.corpus(case.kind).data_set_bytes / 1e6
        for name, seconds in times.items():
            report.figures[f"{case}/{name}_s"] = spread(seconds).median
            row.append(spread(seconds))
        report.figures[f"{case}/ours_mb_per_s"] = megabytes / spread(times[OURS]).median
        for peer in PEERS:
            _judge(report, case, peer, paired_ratios(times[OURS], times[peer]))
        row += [report.figures[f"{case}/{peer}_ratio"] for peer in PEERS]
        rows.append(row)
    headers = ["case", *(f"{name} s" for name in RECEIVERS), *(f"{peer} / ours" for peer in PEERS)]
    report.add_table("Wall time, median [lowest-highest], and peer time / our time", headers, rows)


def _judge(report: Report, case: Case, peer: str, ratios: Sequence[float]) -> None:
    found = spread(ratios)
    report.figures[f"{case}/{peer}_ratio"] = found.median
    report.figures[f"{case}/{peer}_ratio_low"] = found.low
    report.figures[f"{case}/{peer}_ratio_high"] = found.high
    at_least = case.at_least(peer)
    if at_least is not None:
        report.targets.append(Target(name=f"{case} against {peer}", value=found.median, at_least=at_least))


def compare_nagle(bench: Bench, report: Report, rounds: int) -> None:
    """Time our receiver with a sender that leaves Nagle on beside one that does not."""
    case = Case(kind="ct", associations=1)
    times: dict[str, list[float]] = {OURS: [], NAGLE: []}
    for _, name in interleaved((OURS, NAGLE), rounds):
        times[name].append(bench.time_run(OURS, case, has_nagle=name == NAGLE))
    ratio = spread(paired_ratios(times[NAGLE], times[OURS]))
    report.figures |= {"nagle_on_s": spread(times[NAGLE]).median, "nagle_off_s": spread(times[OURS]).median}
    report.targets.append(Target(name="speed with Nagle on", value=ratio.median, at_least=NAGLE_AT_LEAST))
    rows = [(name, spread(seconds)) for name, seconds in times.items()]
    report.add_table(f"{case}, a sender that leaves Nagle on", ("sender", "s"), rows)


def measure_memory(bench: Bench, report: Report) -> None:
    """Weigh our receiver after one multi-frame object of 105 MB: the process that receives, and with it its indexer."""
    corpus = bench.corpus("multiframe")
    with Ours(bench.folder("memory")) as running:
        report.figures["memory_start_mb"] = peak_mb(running.pid, is_tree=False)
        send(corpus, running, associations=1, folder=bench.scratch)
        if not running.stored(1).is_all_of(corpus):
            raise RuntimeError(f"the multi-frame object was not stored\n{running.last_words()}")
        peak = peak_mb(running.pid, is_tree=False)
        report.figures["memory_peak_with_indexer_mb"] = peak_mb(running.pid)
    report.figures["memory_peak_mb"] = peak
    report.targets.append(Target(name="peak memory on 105 MB, MB", value=peak, at_most=MEMORY_MB_AT_MOST))


def measure_idle(bench: Bench, report: Report) -> None:
    """Measure the CPU that silent associations cost, in percent of a core, and what they weigh."""
    with RunningNode(bench.folder("idle")) as running, idle_associations(running.port):
        time.sleep(SETTLE_S)
        before, start = cpu_s(running.pid), time.perf_counter()
        time.sleep(IDLE_S)
        percent = 100 * (cpu_s(running.pid) - before) / (time.perf_counter() - start)
        report.figures["idle_peak_mb"] = peak_mb(running.pid)
    report.figures["idle_percent"] = percent
    report.targets.append(
        Target(name=f"{IDLE_ASSOCIATIONS} idle associations, % of a core", value=percent, at_most=IDLE_PERCENT_AT_MOST)
    )


@contextmanager
def idle_associations(port: int) -> Iterator[list[socket.socket]]:
    """Hold associations open that say nothing; release them in the end."""
    contexts = {1: (CT_IMAGE_STORAGE, EXPLICIT_VR_LITTLE_ENDIAN)}
    with ExitStack() as open_sockets:
        sockets = []
        for _ in range(IDLE_ASSOCIATIONS):
            connection = associate(port, called=AE_TITLE, calling="STORESCU", contexts=contexts)
            sockets.append(open_sockets.enter_context(connection))
        yield sockets
        for connection in sockets:
            release(connection)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [str(case) for case in CASES]
    parser.add_argument("--quick", action="store_true", help="smaller corpora, one round: does it work at all?")
    parser.add_argument("--rounds", type=int, help="runs of each receiver on each case; default 5, quick 1")
    parser.add_argument("--only", nargs="+", choices=[*names, "nagle", "memory", "idle"], help="these parts alone")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="a folder on the disk that is measured")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    options = _arguments(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    wanted = options.only or [*(str(case) for case in CASES), "nagle", "memory", "idle"]
    options.scratch.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(options.scratch).free < (QUICK_NEEDED_BYTES if options.quick else NEEDED_BYTES):
        raise SystemExit(f"too little free space for the scratch folder {options.scratch}; name another with --scratch")
    report = Report(benchmark="receive")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as folder:
        scratch = Path(folder)
        file_system, durable_write_ms = disk_class(scratch)
        report.figures |= {"rounds": rounds, "file_system": file_system, "durable_write_ms": durable_write_ms}
        bench = Bench(scratch, quick=options.quick, preload=build_preload(scratch))
        compare(bench, report, [case for case in CASES if str(case) in wanted], rounds)
        if "nagle" in wanted:
            compare_nagle(bench, report, rounds)
        if "memory" in wanted:
            measure_memory(bench, report)
        if "idle" in wanted:
            measure_idle(bench, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
