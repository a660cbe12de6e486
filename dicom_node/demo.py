"""The demonstration: a real node, a stand-in PACS and a study, over real associations on loopback.

The node runs as it does in a hospital (`serve`, all roles, SQLite); the stand-in PACS is our own listener with a store
of its own. What is printed is read back from the SEG that the PACS received, and compared with the truth that lies
beside a phantom study (truth.json).
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.admin.inspection import Picture, draw_outlines
from dicom_node.app import Node, shipped
from dicom_node.clock import Clock, SystemClock
from dicom_node.config.schema import Peer, ReceiveSettings
from dicom_node.errors import DicomNodeError, UnreachableError
from dicom_node.filing import InstanceStore
from dicom_node.findings import Mask, Measurements
from dicom_node.imaging import Volume, crop_mask, measure
from dicom_node.imaging.mask import outline
from dicom_node.infer import PluginRegistry
from dicom_node.lifecycle import JOB_OPEN, JobState
from dicom_node.logs import Log
from dicom_node.reading import find_files, group_series, load_volume, read_masks
from dicom_node.receive import Listener
from dicom_node.study import Association, FiledInstance

CALLED_AE = "DICOM_NODE"
START_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 600.0
SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
"""PS3.4 B.5."""

TRUTH = "truth.json"
CENTRE_TOLERANCE_MM = 1.0
VOLUME_TOLERANCE = 0.15
"""Of the true volume; a sphere of 8 mm has some hundred voxels, whose counting alone may err by 5 %."""
SMALLEST_MM = 8.0
"""Objects below this diameter may be missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: what was found beside what is there; either may be missing."""

    number: int | None
    centre_lps_mm: tuple[float, float, float] | None
    volume_ml: float | None
    diameter_mm: float | None
    mean: float | None
    true: Mapping[str, Any] | None

    @property
    def centre_error_mm(self) -> float | None:
        """Return the distance between the found and the true centre."""
        if self.true is None or self.centre_lps_mm is None:
            return None
        return float(np.linalg.norm(np.subtract(self.centre_lps_mm, self.true["centre_lps_mm"])))

    @property
    def volume_error(self) -> float | None:
        """Return (found - true) / true."""
        if self.true is None or self.volume_ml is None:
            return None
        return self.volume_ml / float(self.true["volume_ml"]) - 1.0

    @property
    def agrees(self) -> bool:
        """Return whether found and true are the same thing within the tolerances; small objects may be missed."""
        if self.centre_error_mm is None or self.volume_error is None:
            return self.number is None and self.true is not None and self.true["diameter_mm"] < SMALLEST_MM
        return self.centre_error_mm <= CENTRE_TOLERANCE_MM and abs(self.volume_error) <= VOLUME_TOLERANCE


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """One segment of the SEG that came back."""

    number: int
    mask: Mask
    measurements: Measurements


def compare(found: Sequence[Row], truth: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return one row per object: every true object with the found one nearest to it (within 10 mm), then the rest."""
    rest = list(found)
    rows = []
    for true in truth:
        near = min(rest, key=lambda row: _distance(row, true), default=None)
        if near is None or _distance(near, true) > 10.0:
            rows.append(Row(number=None, centre_lps_mm=None, volume_ml=None, diameter_mm=None, mean=None, true=true))
            continue
        rest.remove(near)
        rows.append(
            Row(
                number=near.number,
                centre_lps_mm=near.centre_lps_mm,
                volume_ml=near.volume_ml,
                diameter_mm=near.diameter_mm,
                mean=near.mean,
                true=true,
            )
        )
    return rows + rest


def _distance(row: Row, true: Mapping[str, Any]) -> float:
    assert row.centre_lps_mm is not None
    return float(np.linalg.norm(np.subtract(row.centre_lps_mm, true["centre_lps_mm"])))


def read_truth(study_dir: Path) -> list[dict[str, Any]] | None:
    """Return the true objects of a phantom study, or None where the study is not a phantom."""
    file = study_dir / TRUTH
    if not file.is_file():
        return None
    objects: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["objects"]
    return objects


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Arrivals:
    """The events of the stand-in PACS: it counts what arrived. Implements receive.ReceiveEvents."""

    def __init__(self) -> None:
        self.instances: list[FiledInstance] = []
        self.changed = threading.Condition()

    def opened(self, association: Association) -> None:
        """Take note of nothing."""

    def filed(self, association_id: str, instance: FiledInstance) -> None:  # noqa: ARG002 - the protocol's name
        """Keep the instance."""
        with self.changed:
            self.instances.append(instance)
            self.changed.notify_all()

    def activity(self, association_id: str) -> None:
        """Take note of nothing."""

    def closed(self, association_id: str, how: str) -> None:
        """Take note of nothing."""


CONFIG = """\
# Made by `dicom-node demo`: a node and its stand-in PACS on loopback.
[node]
ae_titles = ["{node_ae}"]
data_dir = "node"

[receive]
port = {node_port}

[plugins]
paths = []

[[peer]]
name = "scanner"
ae_title = "SCANNER"
hosts = ["127.0.0.1/32"]
may = ["echo", "store"]

[[peer]]
name = "pacs"
ae_title = "PACS"
hosts = ["127.0.0.1/32"]
address = "127.0.0.1:{pacs_port}"
may = ["echo"]

[[destination]]
name = "pacs"
peer = "pacs"
"""

ROUTE = """
[[route]]
name = "{plugin}"
plugin = "{plugin}"
destinations = ["pacs"]
[route.complete]
quiet_s = 1
"""


class Serving:
    """A `dicom-node serve` of our own, as a process."""

    def __init__(self, config_file: Path, log_file: Path, *, clock: Clock) -> None:
        self._clock = clock
        self._log_file = log_file
        with log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "serve", "--config", str(config_file)], stdout=log, stderr=log
            )

    def wait_for_port(self, port: int, timeout_s: float) -> None:
        """Return when the node listens.

        Raises
        ------
        UnreachableError
            When it ended, or does not listen in time; the message names its log.
        """
        deadline = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < deadline and self._process.poll() is None:
            with socket.socket() as probe:
                probe.settimeout(0.5)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            self._clock.sleep(0.1)
        raise UnreachableError(f"the node does not listen on port {port}; its log: {self._log_file}")

    def stop(self) -> None:
        """Drain and end the node."""
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class StandInPacs:
    """A PACS of one association and one folder: our own listener with a store of its own."""

    def __init__(self, folder: Path, *, clock: Clock) -> None:
        self._store = InstanceStore(folder, clock=clock, reserve_bytes=0)
        self._arrivals = Arrivals()
        self._listener = Listener(
            ReceiveSettings(port=free_port()),
            ["PACS"],
            [Peer(name="node", ae_title=CALLED_AE, hosts=(ip_network("127.0.0.1/32"),), may=("echo", "store"))],
            store=self._store,
            events=self._arrivals,
            clock=clock,
            log=Log("stand-in-pacs"),
        )
        self._listener.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listener.port

    def stop(self) -> None:
        """Close the port."""
        self._listener.stop(1.0)

    def results(self) -> list[FiledInstance]:
        """Return what arrived, in its order."""
        return list(self._arrivals.instances)


class DemoFailedError(DicomNodeError):
    """The demonstration did not come to its end; see the node's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the demonstration went."""

    rows: tuple[Row, ...]
    has_truth: bool
    jobs: tuple[Mapping[str, Any], ...]
    duration_s: float
    """From the first byte sent until the last result was in the PACS."""
    files: tuple[Path, ...]

    @property
    def agrees(self) -> bool:
        """Return whether every job ended with results, and those agree with the truth where there is one."""
        well = bool(self.jobs) and all(job["state"] == "done" for job in self.jobs)
        return well and (not self.has_truth or all(row.agrees for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Return the report with stable keys for `--json`."""
        return {
            "agrees": self.agrees,
            "duration_s": self.duration_s,
            "objects": [
                {
                    "number": row.number,
                    "centre_lps_mm": row.centre_lps_mm,
                    "volume_ml": row.volume_ml,
                    "diameter_mm": row.diameter_mm,
                    "mean": row.mean,
                    "true": row.true,
                    "centre_error_mm": row.centre_error_mm,
                    "volume_error": row.volume_error,
                    "agrees": row.agrees,
                }
                for row in self.rows
            ],
            "jobs": [{key: job[key] for key in ("id", "plugin", "state", "reason")} for job in self.jobs],
            "files": [str(file) for file in self.files],
        }


def run_demo(study_dir: Path | None, out: Path, *, say: Callable[[str], None]) -> Report:
    """Send a study through a node into a stand-in PACS and report what came back.

    Parameters
    ----------
    study_dir
        The study, with truth.json beside its files if it is a phantom; None makes a new phantom in `out`/study.
    out
        Gets the results (seg.dcm, sr.dcm), the pictures, and the folders of the node and of the PACS.

    Raises
    ------
    DemoFailedError
        When something was not stored or no result came back; the node's log says why.
    """
    clock = SystemClock()
    out.mkdir(parents=True, exist_ok=True)
    study = study_dir or _new_phantom(out / "study")
    pacs = StandInPacs(out / "pacs", clock=clock)
    node = Node(_write_config(out, pacs.port))
    serving = Serving(node.config_file, out / "node.log", clock=clock)
    try:
        port = node.config.receive.port
        serving.wait_for_port(port, START_TIMEOUT_S)
        say(f"node on port {port}, stand-in PACS on port {pacs.port}")
        started = clock.monotonic()
        sent = node.admin.send_to([study], host="127.0.0.1", port=port, called_ae=CALLED_AE, calling_ae="SCANNER")
        refused = [item for item in sent if not item["stored"]]
        if refused:
            raise DemoFailedError(f"{len(refused)} of {len(sent)} instances were not stored: {refused[0]['reason']}")
        say(f"sent {len(sent)} instances in {clock.monotonic() - started:.1f} s")
        jobs = _finished_jobs(node, clock)
        duration_s = clock.monotonic() - started
    finally:
        serving.stop()
        pacs.stop()
    volume, found = _read_back(study, pacs.results())
    files = [*_copies(pacs.results(), out), *_pictures(volume, found, out)]
    truth = read_truth(study)
    rows = [_row(finding) for finding in found]
    report = Report(
        rows=tuple(compare(rows, truth) if truth is not None else rows),
        has_truth=truth is not None,
        jobs=tuple(jobs),
        duration_s=duration_s,
        files=tuple(files),
    )
    for line in lines(report):
        say(line)
    return report


def lines(report: Report) -> list[str]:
    """Return the report as a table for people: one row an object, the truth beside it."""
    found_head = f"{'found at, LPS mm':>24} {'ml':>8} {'mm':>6} {'mean':>6}"
    head = f"{'':>3} {found_head}   {'true centre, LPS mm':>24} {'ml':>8} {'mm':>6}  {'off by':>8} {'volume':>7}"
    page = [
        f"job {job['id']} {job['plugin']}: {job['state']}" + (f" ({job['reason']})" if job["reason"] else "")
        for job in report.jobs
    ]
    page += ["", head]
    for row in report.rows:
        number = "-" if row.number is None else str(row.number)
        found = f"{'not found':>47}"
        if row.centre_lps_mm is not None:
            found = f"{_point(row.centre_lps_mm):>24} {row.volume_ml:8.2f} {row.diameter_mm:6.1f} {row.mean:6.1f}"
        true = ""
        if row.true is not None:
            centre, volume_ml, diameter_mm = (row.true[key] for key in ("centre_lps_mm", "volume_ml", "diameter_mm"))
            true = f"{_point(centre):>24} {volume_ml:8.2f} {diameter_mm:6.1f}"
        verdict = ""
        if row.centre_error_mm is not None and row.volume_error is not None:
            verdict = f"  {row.centre_error_mm:5.2f} mm {row.volume_error:+7.1%}"
        page.append(
            f"{number:>3} {found}   {true}{verdict}" + ("" if row.agrees or not report.has_truth else "  DISAGREES")
        )
    page += ["", f"time to result {report.duration_s:.1f} s"]
    page += [f"wrote {file}" for file in report.files]
    if report.has_truth:
        page.append("findings and truth agree" if report.agrees else "findings and truth DISAGREE")
    return page


def _point(position: Sequence[float]) -> str:
    return " ".join(f"{value:7.1f}" for value in position)


def _new_phantom(folder: Path) -> Path:
    """Make a QA phantom by the model builder's command; the node itself never imports model_build."""
    made = subprocess.run(
        [sys.executable, "-m", "model_build", "phantom", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise DemoFailedError(f"the phantom could not be made: {made.stderr.strip()}")
    return folder


def _write_config(out: Path, pacs_port: int) -> Path:
    """Write the demonstration's config.toml: a route for each shipped plugin that can run here."""
    models = out / "node" / "models"
    ready = [plugin.id for plugin in PluginRegistry([shipped("plugins")], models) if plugin.defect() is None]
    text = CONFIG.format(node_ae=CALLED_AE, node_port=free_port(), pacs_port=pacs_port)
    file = out / "config.toml"
    file.write_text(text + "".join(ROUTE.format(plugin=plugin) for plugin in ready), encoding="utf-8")
    return file


def _finished_jobs(node: Node, clock: Clock) -> list[dict[str, Any]]:
    """Return the jobs when each of them has ended and the study is decided."""
    deadline = clock.monotonic() + JOB_TIMEOUT_S
    while clock.monotonic() < deadline:
        jobs = node.admin.jobs()
        studies = node.admin.studies()
        if studies and all(study["state"] == "complete" for study in studies):
            if not jobs:
                reasons = {row.reason for study in studies for row in node.decisions.list(study["study_instance_uid"])}
                raise DemoFailedError("no route took the study: " + " ".join(sorted(reasons)))
            if all(JobState(job["state"]) not in JOB_OPEN for job in jobs):
                return jobs
        clock.sleep(0.2)
    raise DemoFailedError(f"no result within {JOB_TIMEOUT_S:g} s; see node.log")


def _read_back(study: Path, arrived: Sequence[FiledInstance]) -> tuple[Volume, list[Measured]]:
    """Return the source volume, and every segment of the SEG that the PACS got, measured on it."""
    series = [files for files in group_series(find_files(study))[0] if files.images]
    volume = load_volume([image.path for image in max(series, key=lambda files: len(files.images)).images])
    found = []
    for seg in arrived:
        if seg.sop_class_uid != SEGMENTATION_STORAGE:
            continue
        for number, array in sorted(read_masks(seg.path, volume.grid, volume.frames).items()):
            mask = crop_mask(array)
            if mask is not None:
                found.append(Measured(number=number, mask=mask, measurements=measure(mask, volume)))
    return volume, found


def _row(found: Measured) -> Row:
    measurements = found.measurements
    return Row(
        number=found.number,
        centre_lps_mm=measurements.centroid_lps_mm,
        volume_ml=measurements.volume_ml,
        diameter_mm=measurements.diameter_3d_mm,
        mean=measurements.mean,
        true=None,
    )


def _copies(arrived: Sequence[FiledInstance], out: Path) -> list[Path]:
    """Copy what the PACS got under names that people find."""
    files = []
    for instance in arrived:
        kind = "seg" if instance.sop_class_uid == SEGMENTATION_STORAGE else "sr"
        files.append(out / f"{kind}-{instance.sop_instance_uid[-8:]}.dcm")
        shutil.copyfile(instance.path, files[-1])
    return files


def _pictures(volume: Volume, found: Sequence[Measured], out: Path) -> list[Path]:
    """Draw the outline of each segment on the slice of its longest diameter."""
    pictures = [
        Picture(number=one.number, slice_index=index, contour=outline(one.mask, index))
        for one in found
        for index in [one.measurements.diameter_long.slice_index]
    ]
    return draw_outlines(volume, pictures, out)
