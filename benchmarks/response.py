"""How long a scanner waits for the answer to a C-STORE while everything else runs on the same disk.

    python benchmarks/response.py [--quick] [--seconds S] [--senders N] [--gbit-per-s G] [--scratch FOLDER]

Eight senders keep one association each and send CT slices, every one a new instance, paced to 1 Gbit/s in sum. Beside
them runs a whole `dicom-node serve`: it indexes what arrives, a QA phantom study comes every few seconds and is
inferred, and another process deletes the files of older studies at the rate at which new ones arrive. The response time
is from the first byte of a request to its answer. A sender that is behind its schedule sends at once; the rate that was
kept is a target of its own, for a slower load would prove less.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread

from benchmarks.corpus import EXPLICIT_VR_LITTLE_ENDIAN, KINDS, Template, make_template, read_template
from benchmarks.measure import Report, Target, percentile
from benchmarks.node import AE_TITLE, RunningNode
from benchmarks.processes import cpu_s, disk_class
from benchmarks.upper_layer import Association, associate, release

SCRATCH = Path(__file__).resolve().parents[1] / "var"
SUCCESS = 0x0000
SECONDS, QUICK_SECONDS = 60.0, 10.0
PHANTOM_EVERY_S = 4.0
"""An inference of the phantom takes longer than that on two cores: there is always one under way."""
PHANTOM_SEED = "20261120"
P99_MS_AT_MOST = 100.0
RATE_AT_LEAST = 0.95
SPARE_BYTES = 10 << 30
SPARE_S = 5.0
"""So much longer than the measurement lasts the deletion of old files."""
WARM_UP_S = 180.0
_NUMBER_DIGITS = 6

ROUTE = """
[[route]]
name = "phantom"
plugin = "qa_phantom"
[route.complete]
quiet_s = 1
"""

PURGE = """
import sys, time
from pathlib import Path
pause_s = 1 / float(sys.argv[2])
due = time.monotonic()
for path in sorted(Path(sys.argv[1]).iterdir()):
    path.unlink()
    due += pause_s
    time.sleep(max(0.0, due - time.monotonic()))
"""
"""Deletes the files of a folder one by one, so many a second."""


@dataclass(slots=True)
class Answers:
    """What the senders measured; each thread has its own."""

    response_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """How far behind its schedule each object was sent."""
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """Associations that ended before their time, in words."""

    def add(self, other: Answers) -> None:
        """Take in what another thread measured."""
        self.response_s += other.response_s
        self.late_s += other.late_s
        self.statuses += other.statuses
        self.broken += other.broken


class PacedSender(threading.Thread):
    """One association that sends an object every `every_s` seconds until `until`, each a new instance.

    Parameters
    ----------
    serials
        Numbers of the instances that this sender may use: first, and step.
    start_at, until
        On the monotonic clock.
    """

    def __init__(
        self, port: int, template: Template, *, serials: tuple[int, int], every_s: float, start_at: float, until: float
    ) -> None:
        super().__init__()
        self.answers = Answers()
        self._port, self._template = port, template
        self._serial, self._step = serials
        self._every_s, self._start_at, self._until = every_s, start_at, until

    def run(self) -> None:
        """Send on schedule."""
        contexts = {1: (self._template.sop_class_uid, EXPLICIT_VR_LITTLE_ENDIAN)}
        try:
            with associate(self._port, called=AE_TITLE, calling="STORESCU", contexts=contexts) as connection:
                self._send_on_schedule(Association(connection))
                release(connection)
        except (OSError, ValueError) as error:
            self.answers.broken.append(f"{type(error).__name__}: {error}")

    def _send_on_schedule(self, association: Association) -> None:
        content = bytearray(self._template.content)
        data_set = memoryview(content)[self._template.data_set_offset :]
        due = self._start_at
        while max(due, time.monotonic()) < self._until:
            self._template.patch(content, self._serial)
            time.sleep(max(0.0, due - time.monotonic()))
            started = time.monotonic()
            status = association.store(
                data_set,
                sop_class_uid=self._template.sop_class_uid,
                sop_instance_uid=self._template.uid(self._serial),
            )
            self.answers.response_s.append(time.monotonic() - started)
            self.answers.late_s.append(max(0.0, started - due))
            self.answers.statuses[status] += 1
            self._serial += self._step
            due += self._every_s


class Phantoms(threading.Thread):
    """Sends a QA phantom study every few seconds, each a new one, so that inference never pauses.

    Before it is started, `send_study` may be called to warm the node up.
    """

    def __init__(self, port: int, files: Sequence[Path]) -> None:
        super().__init__()
        self.images = 0
        """Sent and answered with Success."""
        self.broken: list[str] = []
        self.until = 0.0
        """On the monotonic clock; set before the start."""
        self._port = port
        self._studies = 0
        self._templates = [read_template(path) for path in files]
        first = dcmread(files[0], stop_before_pixels=True)
        self._uids = (str(first.StudyInstanceUID), str(first.SeriesInstanceUID))

    def run(self) -> None:
        """Send study after study."""
        try:
            while time.monotonic() < self.until:
                started = time.monotonic()
                self.send_study()
                time.sleep(max(0.0, PHANTOM_EVERY_S - (time.monotonic() - started)))
        except (OSError, ValueError) as error:
            self.broken.append(f"{type(error).__name__}: {error}")

    def send_study(self) -> None:
        """Send one new study.

        Raises
        ------
        ValueError
            When an image is not answered with Success.
        """
        contexts = {1: (self._templates[0].sop_class_uid, EXPLICIT_VR_LITTLE_ENDIAN)}
        with associate(self._port, called=AE_TITLE, calling="STORESCU", contexts=contexts) as connection:
            association = Association(connection)
            for template in self._templates:
                data_set = memoryview(self._copy(template))[template.data_set_offset :]
                uid = template.uid(self.images)
                status = association.store(data_set, sop_class_uid=template.sop_class_uid, sop_instance_uid=uid)
                if status != SUCCESS:
                    raise ValueError(f"an image of the phantom was answered with {status:04X}")
                self.images += 1
            release(connection)
        self._studies += 1

    def _copy(self, template: Template) -> bytearray:
        content = bytearray(template.content)
        template.patch(content, self.images)
        for uid in self._uids:
            new = f"{uid[:-_NUMBER_DIGITS]}{self._studies:0{_NUMBER_DIGITS}d}"
            content = content.replace(uid.encode("ascii"), new.encode("ascii"))
        return content


def make_phantom(folder: Path) -> list[Path]:
    """Write a QA phantom study and return its images."""
    command = [sys.executable, "-P", "-m", "model_build", "phantom", "--out", str(folder), "--seed", PHANTOM_SEED]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return sorted((folder / "dicom").iterdir())


def make_old_files(folder: Path, *, count: int, size_bytes: int) -> None:
    """Make the files of an older study."""
    folder.mkdir()
    for number in range(count):
        with (folder / f"{number:06d}.dcm").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    os.sync()


@contextmanager
def purging(folder: Path, *, count: int, size_bytes: int, per_s: float) -> Iterator[None]:
    """Make the files of an older study, and delete them beside what runs, so many a second."""
    make_old_files(folder, count=count, size_bytes=size_bytes)
    process = subprocess.Popen([sys.executable, "-c", PURGE, str(folder), str(per_s)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def send_all(port: int, template: Template, phantoms: Phantoms, options: argparse.Namespace) -> Answers:
    """Run all senders and the phantoms to their end and return what was answered."""
    size_bytes = len(template.content) - template.data_set_offset
    every_s = options.senders * size_bytes * 8 / (options.gbit_per_s * 1e9)
    start_at = time.monotonic() + 1.0
    until = start_at + options.seconds
    senders = [
        PacedSender(
            port,
            template,
            serials=(number, options.senders),
            every_s=every_s,
            start_at=start_at + every_s * number / options.senders,
            until=until,
        )
        for number in range(options.senders)
    ]
    phantoms.until = until
    for thread in (*senders, phantoms):
        thread.start()
    for thread in (*senders, phantoms):
        thread.join()
    answers = Answers(broken=list(phantoms.broken))
    for sender in senders:
        answers.add(sender.answers)
    return answers


def warm_up(node: RunningNode, phantoms: Phantoms) -> None:
    """Send one phantom and wait for its job: engines are loaded, the steady state of a node has begun.

    Raises
    ------
    RuntimeError
        When the job does not end well.
    """
    phantoms.send_study()
    deadline = time.monotonic() + WARM_UP_S
    while _count_jobs(node, "done") < 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the phantom was not inferred\n{node.last_words()}")
        time.sleep(0.5)


def _count_jobs(node: RunningNode, *states: str) -> int:
    return sum(job["state"] in states for job in node.ask("jobs", "list"))


def judge(report: Report, answers: Answers, *, size_bytes: int, options: argparse.Namespace) -> None:
    """Put the figures of the answers into the report, and the targets."""
    response_ms = [seconds * 1e3 for seconds in answers.response_s] or [float("inf")]
    refused = sum(count for status, count in answers.statuses.items() if status != SUCCESS)
    sent_gbit_per_s = answers.statuses.total() * size_bytes * 8 / 1e9 / options.seconds
    percentiles = {name: percentile(response_ms, value) for name, value in (("p50", 50), ("p99", 99), ("max", 100))}
    report.figures |= {f"response_{name}_ms": value for name, value in percentiles.items()}
    report.figures |= {
        "objects": answers.statuses.total(),
        "gbit_per_s": sent_gbit_per_s,
        "late_p99_ms": percentile([seconds * 1e3 for seconds in answers.late_s] or [float("inf")], 99),
        "refused": refused,
        "broken_associations": len(answers.broken),
    }
    report.add_table(
        "C-STORE response time", tuple(f"{name} ms" for name in percentiles), [tuple(percentiles.values())]
    )
    if answers.broken:
        report.add_table("Associations that broke", ("error",), [(words,) for words in answers.broken])
    report.targets += [
        Target(name="p99 of the response time, ms", value=percentiles["p99"], at_most=P99_MS_AT_MOST),
        Target(name="refusals and broken associations", value=refused + len(answers.broken), at_most=0),
        Target(name="share of the paced rate", value=sent_gbit_per_s / options.gbit_per_s, at_least=RATE_AT_LEAST),
    ]


def measure(scratch: Path, report: Report, options: argparse.Namespace) -> None:
    """Run the node, the senders and the purge, and fill the report."""
    template = make_template(KINDS["ct"])
    size_bytes = len(template.content) - template.data_set_offset
    per_s = options.gbit_per_s * 1e9 / 8 / size_bytes
    old, count = scratch / "old", int(per_s * (options.seconds + SPARE_S))
    with RunningNode(scratch / "node", role="all", more=ROUTE) as node:
        phantoms = Phantoms(node.port, make_phantom(scratch / "phantom"))
        warm_up(node, phantoms)
        with purging(old, count=count, size_bytes=size_bytes, per_s=per_s):
            before = cpu_s(node.pid)
            answers = send_all(node.port, template, phantoms, options)
            cores = (cpu_s(node.pid) - before) / options.seconds
            purged = count - sum(1 for _ in old.iterdir())
        inferred = _count_jobs(node, "running", "delivering", "done") - 1
        stored = answers.statuses[SUCCESS] + phantoms.images
        indexed = node.wait_for_instances(stored)
    judge(report, answers, size_bytes=size_bytes, options=options)
    report.figures |= {"node_cpu_cores": cores, "inferred": inferred, "purged": purged}
    report.targets += [
        # A load that was not there proves nothing.
        Target(name="jobs begun meanwhile", value=inferred, at_least=1),
        Target(name="files purged meanwhile", value=purged, at_least=count / 2),
        Target(name="stored and not indexed", value=abs(stored - indexed), at_most=0),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, report, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS:g} s instead of {SECONDS:g} s")
    parser.add_argument("--seconds", type=float, help="how long")
    parser.add_argument("--senders", type=int, default=8, help="associations that send at once")
    parser.add_argument("--gbit-per-s", type=float, default=1.0, help="of all senders together")
    parser.add_argument("--scratch", type=Path, default=SCRATCH, help="a folder on the disk that is measured")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    options.scratch.mkdir(parents=True, exist_ok=True)
    needed = int(options.gbit_per_s * 1e9 / 8 * options.seconds * 2) + SPARE_BYTES
    if shutil.disk_usage(options.scratch).free < needed:
        raise SystemExit(f"{needed >> 30} GB are needed in {options.scratch}; name another folder with --scratch")
    report = Report(benchmark="response")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.scratch) as folder:
        file_system, durable_write_ms = disk_class(Path(folder))
        report.figures |= {"file_system": file_system, "durable_write_ms": durable_write_ms}
        measure(Path(folder), report, options)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
