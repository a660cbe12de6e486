"""How fast filed objects are forwarded, beside dcmtk's storescu and stock pynetdicom, to the same receivers.

    python benchmarks/send.py [--quick] [--rounds N] [--scratch FOLDER]

500 CT slices of 0.526 MB go to dcmtk's storescp, once as a null sink (--ignore) and once as it writes files. What is
timed is one association with everything in it: for us the call of `send_files`, for storescu the whole program, which
starts in some milliseconds, for pynetdicom from `associate` to `release`. The whole command `dicom-node send`, with the
start of Python, stands beside them as a figure; so does a receiver as shipped, with Nagle on, which answers in two
writes. After each run every object must have been answered with success, and the writing receiver must hold them all.
Ratios are storescu's time / our time within a round; above 1 we are faster.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from pynetdicom import AE
from pynetdicom.presentation import build_context

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, KINDS, Corpus, make_corpus
from benchmarks.measure import Report, Target, interleaved, paired_ratios, spread
from benchmarks.node import AE_TITLE, CLI, CONFIG
from benchmarks.peers import META_BYTES, send
from benchmarks.processes import Program
from dicom_node.config.schema import Address
from dicom_node.dimse import Verdict, send_files
from tests.peers import free_port

SCRATCH = Path(__file__).resolve().parents[1] / "var"
TIMEOUT_S = 60.0
AT_LEAST = 0.8
"""Of storescu's rate, as the receiver's issue asks."""
PYNETDICOM_TIMEOUT_S = 5.0
PYNETDICOM_TRIES = 5
MAX_PDU = "131072"
OURS, DCMTK, PYNETDICOM = "ours", "storescu", "pynetdicom"
SINKS: Mapping[str, tuple[tuple[str, ...], bool]] = MappingProxyType(
    {
        "null": (("--ignore", "-pdu", MAX_PDU), False),
        "files": (("--bit-preserving", "-pdu", MAX_PDU), False),
        "small_pdus": (("--ignore",), False),
        "nagle": (("--ignore", "-pdu", MAX_PDU), True),
    }
)
"""Sink -> options of storescp, and whether it leaves Nagle on; `small_pdus`: 16 kB, its default."""
JUDGED = ("null", "files")


class Sink(Program):
    """A running storescp."""

    def __init__(self, name: str, folder: Path) -> None:
        options, has_nagle = SINKS[name]
        self.out = folder / "out"
        self.out.mkdir(parents=True)
        port = free_port()
        command = ["storescp", *options, "-od", str(self.out), str(port)]
        environment = {} if has_nagle else {"TCP_NODELAY": "1"}
        super().__init__(command, log=folder / "log", port=port, environment=environment)

    def check(self, name: str, corpus: Corpus) -> None:
        """Refuse a run whose objects are not all there.

        Raises
        ------
        RuntimeError
            When something is missing, or not whole.
        """
        sizes = [path.stat().st_size for path in self.out.iterdir()]
        whole = corpus.data_set_bytes <= sum(sizes) <= corpus.data_set_bytes + len(sizes) * META_BYTES
        if name == "files" and not (len(sizes) == len(corpus.files) and whole):
            raise RuntimeError(f"the receiver holds {len(sizes)} objects, {sum(sizes)} bytes\n{self.last_words()}")


def ours(corpus: Corpus, sink: Sink, _folder: Path) -> float:
    """Return the seconds of our sender."""
    address = Address(host="127.0.0.1", port=sink.port)
    start = time.perf_counter()
    results = list(send_files(corpus.files, address, called_ae=AE_TITLE, calling_ae="STORESCU", timeout_s=TIMEOUT_S))
    seconds = time.perf_counter() - start
    if not all(result.verdict is Verdict.STORED for result in results):
        raise RuntimeError(f"not everything was stored: {results[-1].reason}")
    return seconds


def dcmtk(corpus: Corpus, sink: Sink, folder: Path) -> float:
    """Return the seconds of storescu, with Nagle off."""
    return send(corpus, sink, associations=1, folder=folder)


def pynetdicom(corpus: Corpus, sink: Sink, _folder: Path) -> float:
    """Return the seconds of stock pynetdicom.

    On a busy machine one of its associations in some thousand objects gets no answer; such a run is made again.
    """
    contexts = [build_context(corpus.sop_class_uid, EXPLICIT_VR_LITTLE_ENDIAN)]
    for _ in range(PYNETDICOM_TRIES):
        ae = AE(ae_title="STORESCU")
        ae.dimse_timeout = PYNETDICOM_TIMEOUT_S
        start = time.perf_counter()
        assoc = ae.associate("127.0.0.1", sink.port, contexts=contexts, ae_title=AE_TITLE, max_pdu=int(MAX_PDU))
        statuses = [assoc.send_c_store(path).get("Status") for path in corpus.files if assoc.is_established]
        assoc.release()
        seconds = time.perf_counter() - start
        if statuses == [0] * len(corpus.files):
            return seconds
        sys.stderr.write(f"pynetdicom lost its association after {len(statuses)} objects\n")
    raise RuntimeError(f"pynetdicom did not come through\n{sink.last_words()}")


def command(corpus: Corpus, sink: Sink, folder: Path) -> float:
    """Return the seconds of `dicom-node send`, from its start to its end."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(ae_title=AE_TITLE, port=free_port(), max_associations=10), encoding="utf-8")
    where = ["--host", "127.0.0.1", "--port", str(sink.port), "--called", AE_TITLE]
    start = time.perf_counter()
    subprocess.run(
        [*CLI, "send", "--config", str(config), *where, str(corpus.files[0].parent)], check=True, capture_output=True
    )
    return time.perf_counter() - start


SENDERS: Mapping[str, Callable[[Corpus, Sink, Path], float]] = MappingProxyType(
    {OURS: ours, DCMTK: dcmtk, PYNETDICOM: pynetdicom}
)


def compare(report: Report, corpus: Corpus, folder: Path, rounds: int) -> None:
    """Time every sender to every sink, and judge ours against storescu."""
    rows = []
    for sink in SINKS:
        # As shipped both sides of dcmtk wait 40 ms for each object: our own figure says that we do not.
        names = (OURS,) if sink == "nagle" else tuple(SENDERS)
        times: dict[str, list[float]] = {name: [] for name in names}
        for number, name in interleaved(names, rounds):
            times[name].append(_timed(sink, SENDERS[name], corpus, folder / f"{sink}-{number}-{name}"))
        sys.stderr.write(f"{sink} measured\n")
        rows.append([sink, *(spread(times[name]) if name in times else "" for name in SENDERS)])
        for name, seconds in times.items():
            report.figures[f"{sink}/{name}_s"] = spread(seconds).median
            if name != OURS:
                report.figures[f"{sink}/{name}_ratio"] = spread(paired_ratios(times[OURS], seconds)).median
        report.figures[f"{sink}/ours_mb_per_s"] = corpus.data_set_bytes / 1e6 / spread(times[OURS]).median
        if sink in JUDGED:
            ratio = report.figures[f"{sink}/{DCMTK}_ratio"]
            assert isinstance(ratio, float)
            report.targets.append(Target(name=f"rate of storescu, {sink}", value=ratio, at_least=AT_LEAST))
    whole = [_timed("null", command, corpus, folder / f"command-{number}") for number in range(rounds)]
    report.figures["null/command_s"] = spread(whole).median
    report.add_table("Wall time in s, median [lowest-highest]", ("receiver", *SENDERS), rows)


def _timed(name: str, sender: Callable[[Corpus, Sink, Path], float], corpus: Corpus, folder: Path) -> float:
    with Sink(name, folder) as sink:
        seconds = sender(corpus, sink, folder)
        sink.check(name, corpus)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller corpus, one round: does it work at all?")
    parser.add_argument("--rounds", type=int, help="runs of each sender; default 5, quick 1")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="a folder on the disk that is measured")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (1 if options.quick else 5)
    options.scratch.mkdir(parents=True, exist_ok=True)
    report = Report(benchmark="send")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as folder:
        kind = KINDS["ct"]
        corpus = make_corpus(kind, Path(folder), count=kind.quick_count if options.quick else kind.count)
        report.figures |= {"rounds": rounds, "objects": len(corpus.files)}
        compare(report, corpus, Path(folder), rounds)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
