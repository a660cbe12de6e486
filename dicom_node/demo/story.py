"""What happens in a demonstration, in order; it prints its progress through the `say` that it is given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dicom_node.admin.pictures import Drawn, draw_outlines
from dicom_node.app import Node
from dicom_node.clock import Clock, SystemClock
from dicom_node.demo.compare import Found, Row, TrueObject, compare
from dicom_node.demo.site import CALLED_AE, CONFIG_FILE, MARK, Serving, StandInPacs, write_config
from dicom_node.demo.table import Report, lines
from dicom_node.errors import DicomNodeError, UsageError
from dicom_node.imaging import Volume, crop_mask, measure
from dicom_node.lifecycle import JOB_OPEN, JobState
from dicom_node.reading import find_files, group_series, load_volume, read_masks
from dicom_node.study import FiledInstance

START_TIMEOUT_S = 60.0
JOB_TIMEOUT_S = 600.0
SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
"""PS3.4 B.5."""
TRUTH = "truth.json"
"""Lies in the folder of a phantom study, or beside the folder of its images."""


class DemoFailedError(DicomNodeError):
    """The demonstration did not come to its end; see the node's log."""


def run_demo(study_dir: Path | None, out: Path, *, say: Callable[[str], None]) -> Report:
    """Send a study through a node into a stand-in PACS and report what came back.

    Parameters
    ----------
    study_dir
        The study, with truth.json beside its files if it is a phantom; None makes a new phantom in `out`/made-study.
    out
        Gets the results (seg-*.dcm, sr-*.dcm), the pictures, and the folders of the node and of the PACS.

    Raises
    ------
    DemoFailedError
        When something was not stored or no result came back; the node's log says why.
    """
    clock = SystemClock()
    _make_room(out)
    study = study_dir or _new_phantom(out / "made-study")
    pacs = StandInPacs(out / "pacs", clock=clock)
    node = Node(write_config(out, pacs.port))
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
        say(f"sent {len(sent)} instances in {clock.monotonic() - started:.1f} s; waiting for results")
        jobs = _finished_jobs(node, clock)
        duration_s = clock.monotonic() - started
    finally:
        serving.stop()
        pacs.stop()
    found, pictures = _read_back(study, pacs.results(), out)
    truth = read_truth(study)
    report = Report(
        rows=tuple(compare(found, truth) if truth is not None else [Row(found=one, true=None) for one in found]),
        has_truth=truth is not None,
        jobs=tuple(jobs),
        duration_s=duration_s,
        files=(*_copies(pacs.results(), out), *pictures),
    )
    for line in lines(report):
        say(line)
    return report


def read_truth(study: Path) -> list[TrueObject] | None:
    """Return the true objects of a phantom study, or None where the study is not a phantom."""
    for file in (study / TRUTH, study.parent / TRUTH):
        if file.is_file():
            objects = json.loads(file.read_text(encoding="utf-8"))["objects"]
            return [_true_object(one) for one in objects]
    return None


def _true_object(written: dict[str, Any]) -> TrueObject:
    x, y, z = written["centre_lps_mm"]
    return TrueObject(
        kind=written["kind"],
        centre_lps_mm=(x, y, z),
        volume_ml=written["volume_ml"],
        diameter_mm=written["diameter_mm"],
        smallest_diameter_mm=written["smallest_diameter_mm"],
        hu=written["hu"],
    )


def _make_room(out: Path) -> None:
    """Make the folder, without what a demonstration before left in it: a node that knows the study makes no new job.

    Raises
    ------
    UsageError
        When something else lies there; nothing is deleted.
    """
    config = out / CONFIG_FILE
    if config.is_file() and config.read_text(encoding="utf-8").startswith(MARK):
        for folder in (out / "node", out / "pacs", out / "made-study"):
            shutil.rmtree(folder, ignore_errors=True)
        for pattern in ("seg-*.dcm", "sr-*.dcm", "overlay_slice_*.png"):
            for file in out.glob(pattern):
                file.unlink()
    elif any((out / name).exists() for name in (CONFIG_FILE, "node", "pacs", "made-study")):
        raise UsageError(f"{out} holds something else; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)


def _new_phantom(folder: Path) -> Path:
    """Make a QA phantom by the model builder's command; the node itself never imports model_build."""
    made = subprocess.run(
        [sys.executable, "-P", "-m", "model_build", "phantom", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise DemoFailedError(f"the phantom could not be made: {made.stderr.strip()}")
    return folder


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


def _read_back(study: Path, arrived: Sequence[FiledInstance], out: Path) -> tuple[list[Found], list[Path]]:
    """Return every segment that the PACS got, measured on the source images, and the pictures of them."""
    found: list[Found] = []
    drawn: list[Drawn] = []
    volume = _source(study)
    for seg in arrived:
        if seg.sop_class_uid != SEGMENTATION_STORAGE:
            continue
        for number, array in sorted(read_masks(seg.path, volume.grid, volume.frames).items()):
            mask = crop_mask(array)
            if mask is None:
                continue
            measured = measure(mask, volume)
            drawn.append(Drawn(number=number, mask=mask, slice_index=measured.diameter_long.slice_index))
            found.append(
                Found(
                    number=number,
                    centre_lps_mm=measured.centroid_lps_mm,
                    volume_ml=measured.volume_ml,
                    diameter_mm=measured.diameter_3d_mm,
                    mean=measured.mean,
                )
            )
    return found, draw_outlines(volume, drawn, out)


def _source(study: Path) -> Volume:
    """Return the volume of the study's largest series."""
    series = [files for files in group_series(find_files(study))[0] if files.images]
    return load_volume([image.path for image in max(series, key=lambda files: len(files.images)).images])


def _copies(arrived: Sequence[FiledInstance], out: Path) -> list[Path]:
    """Copy what the PACS got under names that people find."""
    files = []
    for instance in arrived:
        kind = "seg" if instance.sop_class_uid == SEGMENTATION_STORAGE else "sr"
        files.append(out / f"{kind}-{instance.sop_instance_uid[-8:]}.dcm")
        shutil.copyfile(instance.path, files[-1])
    return files
