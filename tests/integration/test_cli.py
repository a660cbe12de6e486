"""The commands as people and scripts meet them: words, keys, exit statuses; never a traceback for a user's mistake."""

from __future__ import annotations

import getpass
import json
import re
import socket
from datetime import datetime

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForPresentation, EnhancedSRStorage, MediaStorageDirectoryStorage

from dicom_node.ids import process_identity
from dicom_node.reading.synthetic import write_series
from dicom_node.records import Decisions, NewDecision
from dicom_node.reload import SERVING
from tests import peers
from tests.integration.cli_case import CommandLine, head_mr
from tests.integration.records_case import STUDY, Records, image, new_job, results_of

pytestmark = [  # pynetdicom drops a socket that got no peer
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

INSPECT_KEYS = {"series_instance_uid", "modality", "n_instances", "volume", "refused", "notes", "plugins"}
VOLUME_KEYS = {"shape", "spacing_mm", "affine_lps", "dtype", "min", "max", "mean"}
MEASURE_KEYS = {
    *("label", "volume_ml", "volume_mesh_ml", "diameter_3d_mm", "diameter_long_mm", "diameter_short_mm"),
    *("surface_mm2", "sphericity", "mean", "sd", "min", "max", "median", "centroid_lps_mm"),
    *("major_axis_mm", "minor_axis_mm", "least_axis_mm", "asphericity", "elongation", "flatness"),
    *("border_irregularity", "solidity", "variance", "p5", "p10", "p25", "p75", "p90", "p95", "n_voxels"),
    *("slice_range", "intensity_unit", "name", "notes", "measurements"),
}
STUDY_KEYS = {
    *("study_instance_uid", "state", "n_series", "n_instances"),
    *("first_received", "last_received", "decisions", "jobs"),
}
JOB_KEYS = {
    *("id", "plugin", "study_instance_uid", "state", "priority", "attempts", "generation", "superseded_by"),
    *("engine", "reason", "queued_at", "finished_at"),
}


@pytest.fixture
def dicom_node(tmp_path, monkeypatch, capsys) -> CommandLine:
    """Return the command line of a node whose folder is fresh; nobody listens at its PACS."""
    return CommandLine(tmp_path, peers.free_port(), peers.free_port(), monkeypatch, capsys)


@pytest.fixture
def records(dicom_node) -> Records:
    """Return the records of that node: one study, a decision that made a job, one that did not."""
    data = dicom_node.folder / "var"
    data.mkdir()
    records = Records(data / "records.sqlite")
    records.studies.index([image(1), image(2)])
    matched = NewDecision(route="brain", outcome="matched", reason="all conditions hold", job=new_job(records))
    refused = NewDecision(route="chest", outcome="not_matched", reason="Modality is MR, not CT")
    Decisions(records.database, records.jobs).decide(STUDY, None, 1, [matched, refused], config_digest="c0")
    return records


# Files


def test_inspect_says_what_the_node_sees(dicom_node, tmp_path):
    """Keys, shape, spacing, statistics, and for each plugin whether it would take the series and why not."""
    head_mr(tmp_path / "study")
    said = dicom_node("inspect", tmp_path / "study", "--json")
    (series,) = said.json
    assert (0, INSPECT_KEYS, VOLUME_KEYS) == (said.status, set(series), set(series["volume"]))
    assert ("1.2.3.1", "MR", 4, None) == tuple(
        series[key] for key in ("series_instance_uid", "modality", "n_instances", "refused")
    )
    assert ([4, 8, 8], [3.0, 2.0, 1.0]) == (series["volume"]["shape"], series["volume"]["spacing_mm"])
    assert (0.0, 255.0, 127.5) == tuple(series["volume"][key] for key in ("min", "max", "mean"))
    assert {"brain_mask", "qa_phantom"} <= set(series["plugins"])
    verdict = series["plugins"]["qa_phantom"]
    assert {"eligible", "reason"} == set(verdict)
    assert verdict["eligible"] is False
    assert "Modality" in verdict["reason"]


def test_inspect_names_each_file_that_is_none(dicom_node, tmp_path):
    """Truncated images and a text each get a reason; a DICOMDIR is no file of interest; the good series is shown."""
    files = head_mr(tmp_path / "study")
    cut = head_mr(tmp_path / "study" / "cut", series="1.2.3.2")[1]
    cut.write_bytes(cut.read_bytes()[:-50])
    (tmp_path / "study" / "notes.txt").write_text("see the other folder", encoding="utf-8")
    (tmp_path / "study" / "header.dcm").write_bytes(files[0].read_bytes()[:300])
    ds = pydicom.dcmread(files[0])
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MediaStorageDirectoryStorage
    del ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, ds.PixelData
    ds.save_as(tmp_path / "study" / "DICOMDIR")
    said = dicom_node("inspect", tmp_path / "study", "--json")
    assert 0 == said.status
    assert [INSPECT_KEYS] * len(said.json) == [set(entry) for entry in said.json]
    shown = {entry["series_instance_uid"]: entry for entry in said.json if entry["series_instance_uid"]}
    assert (None, True) == (shown["1.2.3.1"]["refused"], shown["1.2.3.1"]["volume"] is not None)
    assert (None, True) == (shown["1.2.3.2"]["volume"], bool(shown["1.2.3.2"]["refused"]))
    nameless = [entry["refused"] for entry in said.json if not entry["series_instance_uid"]]
    assert ["notes.txt", "header.dcm"] == [reason.partition(":")[0] for reason in nameless]
    assert 0 == dicom_node("inspect", tmp_path / "study").status


def test_inspect_says_what_images_are_that_make_no_volume(dicom_node, tmp_path):
    """A radiograph is refused by its name, and what its pixels measure is said; a report is named, too."""
    for file in head_mr(tmp_path / "study", slices=1):
        ds = pydicom.dcmread(file)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        ds.Modality, ds.ImagerPixelSpacing = "DX", [0.2, 0.2]
        del ds.PixelSpacing
        ds.save_as(file)
    (path,) = head_mr(tmp_path / "study" / "report", slices=1, series="1.2.3.2")
    ds = pydicom.dcmread(path)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedSRStorage
    del ds.PixelData
    ds.save_as(path)
    radiograph, report = dicom_node("inspect", tmp_path / "study", "--json").json
    assert (None, "not read as a volume: a digital radiograph (DX): a projection, no slice of a volume") == (
        radiograph["volume"],
        radiograph["refused"],
    )
    at_detector = "pixels are 0.2 x 0.2 mm at the detector (Imager Pixel Spacing): everything in the patient is smaller"
    assert [f"{at_detector} than it measures"] == radiograph["notes"]
    assert "the series has no images; it holds: Enhanced SR" == report["refused"]


def test_inspect_shows_a_single_slice_that_no_plugin_takes(dicom_node, tmp_path):
    """People see it, with its depth as a hint; a plugin for volumes does not get it."""
    head_mr(tmp_path / "study", slices=1)
    (series,) = dicom_node("inspect", tmp_path / "study", "--json").json
    assert ([1, 8, 8], None) == (series["volume"]["shape"], series["refused"])
    assert ["a single slice: that it reaches 3 mm is what SliceThickness says, a hint"] == series["notes"]
    assert {False} == {verdict["eligible"] for verdict in series["plugins"].values()}


def test_inspect_asks_each_plugin_by_its_own_policy(dicom_node, tmp_path):
    """Seventy slices with one missing: refused for everybody, and by brain_mask for that very reason."""
    files = head_mr(tmp_path / "study", slices=70)
    files[30].unlink()
    (series,) = dicom_node("inspect", tmp_path / "study", "--json").json
    assert series["refused"].startswith("a slice is missing")
    verdict = series["plugins"]["brain_mask"]
    assert (False, series["refused"]) == (verdict["eligible"], verdict["reason"])


def test_inspect_writes_the_volume(dicom_node, tmp_path):
    """The NIfTI holds the voxels, x first, with L and P turned to R and A."""
    head_mr(tmp_path / "study")
    assert 0 == dicom_node("inspect", tmp_path / "study", "--volume", tmp_path / "volume.nii.gz").status
    written = nibabel.load(tmp_path / "volume.nii.gz")
    assert (8, 8, 4) == written.shape
    np.testing.assert_allclose(np.diag([-1.0, -2.0, 3.0, 1.0]), written.affine)


def test_measure_knows_a_box(dicom_node, tmp_path):
    """Every key of a mask's label; a box of 2 x 3 x 2 voxels of 6 mm3 is 0.072 ml."""
    head_mr(tmp_path / "study")
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[2:4, 2:5, 1:3] = 3
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([-1.0, -2.0, 3.0, 1.0])), tmp_path / "mask.nii.gz")
    said = dicom_node("measure", tmp_path / "mask.nii.gz", "--image", tmp_path / "study", "--json")
    (label,) = said.json
    assert (0, MEASURE_KEYS, 3) == (said.status, set(label), label["label"])
    assert pytest.approx(0.072) == label["volume_ml"]
    assert pytest.approx([2.5, 6.0, 4.5]) == label["centroid_lps_mm"]
    assert "0.072" in dicom_node("measure", tmp_path / "mask.nii.gz", "--image", tmp_path / "study").out


@pytest.mark.data
def test_measure_agrees_with_ibsi(dicom_node, shared_data, tmp_path):
    """The consensus values of the IBSI digital phantom, its voxels as a DICOM series and its mask as NIfTI."""
    folder = shared_data / "ibsi_digital_phantom" / "nifti"
    image = nibabel.load(folder / "image" / "phantom.nii.gz")
    write_series(
        tmp_path / "image",
        np.asanyarray(image.dataobj).T,
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine,
        modality="MR",
        study_instance_uid="1.2.3",
        series_instance_uid="1.2.3.1",
        frame_of_reference_uid="1.2.3.9",
        uid_root="1.2.3.5",
    )
    mask = folder / "mask" / "mask.nii.gz"
    said = dicom_node("measure", mask, "--image", tmp_path / "image", "--json")
    (label,) = said.json
    assert pytest.approx(0.592) == label["volume_ml"]
    assert pytest.approx(0.556, abs=0.004) == label["volume_mesh_ml"]
    assert pytest.approx(13.1, abs=0.1) == label["diameter_3d_mm"]
    assert (pytest.approx(2.15, abs=0.005), 1, 1, 6) == tuple(label[key] for key in ("mean", "median", "min", "max"))


@pytest.mark.data
def test_measure_counts_the_liver_of_dcmqi(dicom_node, shared_data):
    """The SEG and the NRRD that it was made from measure the same: 107098 voxels."""
    folder = shared_data / "dcmqi" / "data" / "segmentations"
    image = folder / "ct-3slice"
    by_seg, by_nrrd = (
        dicom_node("measure", folder / name, "--image", image, "--json").json[0]
        for name in ("liver.dcm", "liver_seg.nrrd")
    )
    affine = dicom_node("inspect", image, "--json").json[0]["volume"]["affine_lps"]
    voxel_ml = abs(np.linalg.det(np.array(affine)[:3, :3])) / 1000
    assert pytest.approx(107098 * voxel_ml, rel=1e-6) == by_seg["volume_ml"]
    assert (107098, 107098) == (by_seg["n_voxels"], by_nrrd["n_voxels"])
    numbers = {key for key, value in by_nrrd.items() if isinstance(value, float)}
    assert {key: by_seg[key] for key in numbers} == pytest.approx({key: by_nrrd[key] for key in numbers})
    assert by_seg["centroid_lps_mm"] == pytest.approx(by_nrrd["centroid_lps_mm"])
    assert "Liver" in by_seg["name"]


def test_infer_refuses_in_words_and_that_is_no_failure(dicom_node, tmp_path):
    """A study that the plugin declines: outcome, reason, no file, exit status 0."""
    head_mr(tmp_path / "study")
    said = dicom_node("infer", "qa_phantom", tmp_path / "study", "--out", tmp_path / "out", "--json")
    assert (0, {"outcome", "reason", "findings", "files", "notes"}) == (said.status, set(said.json))
    assert ("refused", [], []) == (said.json["outcome"], said.json["findings"], said.json["files"])
    assert "Modality" in said.json["reason"]
    assert not (tmp_path / "out").exists()
    assert "refused: " in dicom_node("infer", "qa_phantom", tmp_path / "study", "--out", tmp_path / "out").out


# Records


def test_studies_list_has_its_keys(dicom_node, records):
    """Keys as promised, UIDs as text, times with their zone."""
    (study,) = dicom_node("studies", "list", "--json").json
    assert STUDY_KEYS <= set(study)
    assert (STUDY, "complete", 1, 2, 2, 1) == tuple(
        study[key] for key in ("study_instance_uid", "state", "n_series", "n_instances", "decisions", "jobs")
    )
    assert datetime.fromisoformat(study["last_received"]).tzinfo is not None
    assert STUDY in dicom_node("studies", "list").out


def test_study_is_shown_with_its_reasons(dicom_node, records):
    """Each decision with its reason in words, for people and scripts."""
    shown = dicom_node("studies", "show", STUDY, "--json").json
    assert ["all conditions hold", "Modality is MR, not CT"] == [one["reason"] for one in shown["decisions"]]
    assert "Modality is MR, not CT" in dicom_node("studies", "show", STUDY).out


def test_jobs_list_and_show(dicom_node, records):
    """The queue with every promised key, and one job with its events."""
    (job,) = dicom_node("jobs", "list", "--json").json
    assert JOB_KEYS <= set(job)
    assert ("brain_mask", STUDY, "queued", 0) == tuple(
        job[key] for key in ("plugin", "study_instance_uid", "state", "generation")
    )
    assert datetime.fromisoformat(job["queued_at"]).tzinfo is not None
    shown = dicom_node("jobs", "show", str(job["id"]), "--json").json
    assert {"events", "attempts_made", "results", "deliveries"} <= set(shown)
    assert "brain_mask" in dicom_node("jobs", "show", str(job["id"])).out


def test_job_is_cancelled_and_queued_again(dicom_node, records):
    """Cancel and retry say what happened; the second cancel of a cancelled job is an error in words."""
    assert (0, "job 1 is cancelled\n") == (lambda said: (said.status, said.out))(dicom_node("jobs", "cancel", "1"))
    again = dicom_node("jobs", "cancel", "1")
    assert 1 == again.status
    assert "cancelled" in again.err
    assert (0, "job 1 is queued\n") == (lambda said: (said.status, said.out))(dicom_node("jobs", "retry", "1"))
    assert "queued" == dicom_node("jobs", "list", "--json").json[0]["state"]


@pytest.mark.parametrize(
    ("words", "said", "state"),
    [
        (("hold", "1", "--comment", "wait"), "job 1 is held", "held"),
        (("priority", "1", "stat", "--comment", "wait"), "job 1 is queued, priority stat", "queued"),
        (("cancel", "1", "--comment", "wait"), "job 1 is cancelled", "cancelled"),
    ],
)
def test_jobs_are_steered_with_a_comment(dicom_node, records, words, said, state):
    """The command says what came of it; account and comment stand in the events."""
    done = dicom_node("jobs", *words)
    assert (0, f"{said}\n") == (done.status, done.out)
    shown = dicom_node("jobs", "show", "1", "--json").json
    assert state == shown["state"]
    assert getpass.getuser() in shown["events"][-1]["actor"]
    assert shown["events"][-1]["reason"].endswith("wait")


def test_held_job_is_released(dicom_node, records):
    """And what is not held cannot be: exit status 1, in words."""
    assert 1 == dicom_node("jobs", "release", "1").status
    dicom_node("jobs", "hold", "1")
    assert "job 1 is queued\n" == dicom_node("jobs", "release", "1", "--comment", "go").out
    assert 3 == dicom_node("jobs", "hold", "99").status
    assert 2 == dicom_node("jobs", "priority", "1", "urgent").status


def test_deliveries_are_held_sent_again_and_skipped(dicom_node, records):
    """Each act with its comment in the job's events."""
    job = records.jobs.claim("w1", 30.0)
    records.jobs.file_results(
        job.id, job.token, results_of(job.result_uids), outcome="result", engine="onnxruntime", duration_s=1.5
    )
    for act, state in (("hold", "held"), ("retry", "queued"), ("skip", "skipped")):
        assert f"delivery 1 is {state}\n" == dicom_node("deliveries", act, "1", "--comment", "upgrade").out
    events = dicom_node("jobs", "show", "1", "--json").json["events"]
    assert ["delivery_hold", "delivery_retry", "delivery_skip"] == [one["event"] for one in events[-3:]]
    assert {"delivery 1 to pacs; upgrade"} == {one["reason"] for one in events[-3:]}


@pytest.mark.parametrize(
    ("kind", "name"), [("plugin", "qa_phantom"), ("route", "qa"), ("destination", "pacs")], ids=lambda word: word
)
def test_pause_is_seen_and_ends(dicom_node, records, kind, name):
    """`check` shows what is paused; a name that nobody knows, and a resume of what is not paused, end with 3."""
    assert f"{kind} {name} is paused\n" == dicom_node("pause", kind, name, "--comment", "upgrade").out
    shown = [one["detail"] for one in dicom_node("check", "--json").json if one["what"] == f"{kind} {name}"]
    assert 1 == sum(bool(re.match(r"note: paused since .* by .*: upgrade", one)) for one in shown)
    assert f"{kind} {name} goes on\n" == dicom_node("resume", kind, name).out
    assert 3 == dicom_node("resume", kind, name).status
    unknown = dicom_node("pause", kind, "nobody")
    assert (3, True) == (unknown.status, name in unknown.err)


def test_deliveries_and_reprocessing(dicom_node, records):
    """Filed results appear as deliveries; `reprocess` makes a new generation."""
    job = records.jobs.claim("w1", 30.0)
    records.jobs.file_results(
        job.id, job.token, results_of(job.result_uids), outcome="result", engine="onnxruntime", duration_s=1.5
    )
    deliveries = dicom_node("deliveries", "list", "--json").json
    assert {("seg", "pacs", "queued"), ("sr", "pacs", "queued")} == {
        (one["kind"], one["destination"], one["state"]) for one in deliveries
    }
    assert "pacs" in dicom_node("deliveries", "list").out
    made = dicom_node("studies", "reprocess", STUDY, "--json").json
    assert {"jobs": [2]} == made
    assert {1: 2, 2: None} == {job["id"]: job["superseded_by"] for job in dicom_node("jobs", "list", "--json").json}


def test_study_is_purged_by_hand(dicom_node, records):
    """Not while a job is open; `--yes` spares the question, without it nothing happens; rows stay."""
    said = dicom_node("studies", "purge", STUDY, "--yes")
    assert (1, True) == (said.status, "job 1 is queued" in said.err)
    records.jobs.cancel(1, "no more")
    assert 1 == dicom_node("studies", "purge", STUDY).status
    assert "complete" == dicom_node("studies", "show", STUDY, "--json").json["state"]
    assert {"study_instance_uid": STUDY, "purged": 2} == dicom_node("studies", "purge", STUDY, "--yes", "--json").json
    shown = dicom_node("studies", "show", STUDY, "--json").json
    assert ("purged", 2, 1) == (shown["state"], shown["n_instances"], len(shown["jobs"]))
    assert 3 == dicom_node("studies", "purge", "9.9", "--yes").status
    said = dicom_node("studies", "reprocess", STUDY)
    assert (1, True) == (said.status, "send the study again" in said.err)


# Rules


@pytest.mark.parametrize("what", ["file", "folder"])
def test_route_is_explained_for_files(dicom_node, tmp_path, what):
    """Each rule and condition for a file and for a folder, as if they had just arrived."""
    files = head_mr(tmp_path / "study")
    said = dicom_node("route", "explain", files[0] if what == "file" else tmp_path / "study")
    assert 0 == said.status
    assert 'route "qa" -> qa_phantom' in said.out
    assert "[ ] plugin" in said.out
    assert 'found: "MR"' in said.out


def test_route_is_explained_for_a_stored_study(dicom_node, records):
    """A Study Instance UID is looked up in the records."""
    said = dicom_node("route", "explain", STUDY, "--json")
    (rule,) = said.json
    assert (0, "qa") == (said.status, rule["route"])


# Plugins and check


def test_plugins_are_listed_and_checked(dicom_node):
    """What can run and what keeps the others from it; `check` ends with 1 because of those."""
    plugins = {entry["id"]: entry for entry in dicom_node("plugins", "list", "--json").json}
    assert {"qa_phantom", "brain_mask"} <= set(plugins)
    said = dicom_node("plugins", "check")
    assert 1 == said.status
    assert "brain_mask" in said.out


def test_wrong_weights_are_not_installed(dicom_node, tmp_path):
    """A file of the right name with other bytes: exit status 1, both digests, nothing copied."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mindgrab.onnx").write_bytes(b"other")
    said = dicom_node("plugins", "install", "brain_mask", "--from", tmp_path / "weights")
    assert 1 == said.status
    assert 2 == len(re.findall(r"\b[0-9a-f]{64}\b", said.err))
    assert not list((tmp_path / "var").rglob("mindgrab.onnx"))


def test_check_says_what_is_well(dicom_node):
    """Configuration, disk, database, port and models; the peers only when asked for."""
    said = dicom_node("check", "--json")
    assert (0, True) == (said.status, all(entry["ok"] for entry in said.json))
    assert {"configuration", "disk", "database", "port"} <= {entry["what"] for entry in said.json}
    network = dicom_node("check", "--network", "--json")
    assert 1 == network.status
    assert ["peer pacs"] == [entry["what"] for entry in network.json if not entry["ok"]]


# What users get wrong


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("inspect", "nowhere"), 3, "nowhere does not exist"),
        (("measure", "nowhere.nii", "--image", "nowhere"), 3, "nowhere does not exist"),
        (("infer", "qa_phantom", "nowhere", "--out", "out"), 3, "nowhere does not exist"),
        (("infer", "brain_msk", "nowhere", "--out", "out"), 3, "no plugin is called 'brain_msk'"),
        (("send", "nowhere", "--to", "pacs"), 3, "nowhere does not exist"),
        (("send", "nowhere"), 2, "say where to send"),
        (("send", "nowhere", "--to", "elsewhere"), 3, "no [[destination]] is called 'elsewhere'"),
        (("echo", "elsewhere"), 3, "no [[peer]] is called 'elsewhere'"),
        (("echo", "scanner"), 2, "has no `address`"),
        (("echo", "pacs"), 4, "PACS at 127.0.0.1"),
        (("studies", "show", "1.2.9"), 3, "1.2.9"),
        (("studies", "reprocess", "1.2.9"), 3, "1.2.9"),
        (("route", "explain", "1.2.9"), 3, "1.2.9"),
        (("jobs", "show", "99"), 3, "99"),
        (("jobs", "retry", "99"), 3, "99"),
        (("jobs", "cancel", "ninety"), 2, "'JOB'"),
        (("plugins", "selftest", "brain_msk"), 3, "brain_msk"),
        (("plugins", "install", "brain_mask", "--from", "nowhere"), 3, "nowhere has no file"),
        (("plugins", "install", "qa_phantom", "--from", "nowhere"), 1, "nothing to install"),
        (("check", "--config", "nowhere.toml"), 2, "nowhere.toml"),
        (("check", "--config", "."), 2, "there is no such file"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_mistakes_get_a_sentence_and_a_status(dicom_node, tmp_path, monkeypatch, words, status, said):
    """2 usage or configuration, 3 not found, 4 unreachable, 1 failed; a sentence on standard error, nothing else."""
    monkeypatch.chdir(tmp_path)
    ended = dicom_node(*words)
    assert (status, "") == (ended.status, ended.out)
    assert said in ended.err


def test_no_configuration_is_said_so(dicom_node, tmp_path, monkeypatch):
    """Without a file anywhere the message names the places that were looked at."""
    monkeypatch.delenv("DICOM_NODE_CONFIG")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    said = dicom_node("jobs", "list")
    assert 2 == said.status
    assert "config.toml" in said.err


def test_misspelt_key_is_named_with_its_line(dicom_node):
    """File, line, key, table and the word that was meant."""
    text = dicom_node.config_file.read_text(encoding="utf-8").replace("[receive]", "[receive]\nmax_asociations = 5")
    dicom_node.config_file.write_text(text, encoding="utf-8")
    line = text.splitlines().index("max_asociations = 5") + 1
    said = dicom_node("check")
    wanted = f'config.toml:{line}: unknown key "max_asociations" in [receive]; did you mean "max_associations"?\n'
    assert (2, "", wanted) == (said.status, said.out, said.err)


def test_serve_refuses_a_port_that_is_taken(dicom_node):
    """A sentence with the address before any role starts."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", dicom_node.port))
        other.listen()
        said = dicom_node("serve")
    assert 2 == said.status
    assert f"cannot listen on 127.0.0.1:{dicom_node.port}" in said.err


def test_a_file_where_a_folder_should_be_is_a_sentence(dicom_node, tmp_path):
    """What the operating system refuses is said with the path."""
    head_mr(tmp_path / "study")
    (tmp_path / "file").write_text("", encoding="utf-8")
    said = dicom_node("inspect", tmp_path / "study", "--volume", tmp_path / "file" / "volume.nii.gz")
    assert 1 == said.status
    assert "volume.nii.gz" in said.err


def test_send_stores_nothing_where_nobody_listens(dicom_node, tmp_path):
    """Exit status 4, and who does not answer."""
    head_mr(tmp_path / "study")
    said = dicom_node("send", tmp_path / "study", "--to", "pacs")
    assert 4 == said.status
    assert f"127.0.0.1:{dicom_node.pacs_port} does not answer" in said.err


def test_help_shows_names_in_brackets(dicom_node):
    """Markup does not swallow [[destination]]; a flag has no type beside it."""
    said = dicom_node("send", "--help")
    assert "[[destination]]" in said.out
    assert "<bool>" not in said.out


def test_check_names_a_route_that_its_plugin_excludes(dicom_node):
    """The condition's line, and what the plugin requires; disabled routes may rest."""
    text = dicom_node.config_file.read_text(encoding="utf-8")
    text += '[route.series]\nmatch = [\n  { keyword = "Modality", equals = "MR" },\n]\n'
    dicom_node.config_file.write_text(text, encoding="utf-8")
    line = text.splitlines().index('  { keyword = "Modality", equals = "MR" },') + 1
    wrong = [one for one in dicom_node("check", "--json").json if not one["ok"]]
    expected = (
        f'config.toml:{line}: {{ keyword = "Modality", equals = "MR" }} can never hold together with '
        'what qa_phantom requires: { keyword = "Modality", equals = "CT" }'
    )
    assert [("route qa", expected)] == [(one["what"], one["detail"]) for one in wrong]
    dicom_node.config_file.write_text(text.replace('"MR"', '"CT"'), encoding="utf-8")
    assert 0 == dicom_node("check").status


def test_a_typo_in_a_condition_ends_with_2(dicom_node):
    """File, line and what was meant, for a keyword and for a value."""
    text = dicom_node.config_file.read_text(encoding="utf-8")
    number = len(text.splitlines()) + 2
    for condition, message in (
        ('{ keyword = "Modalty", equals = "CT" }', 'unknown DICOM keyword "Modalty"; did you mean "Modality"?'),
        ('{ keyword = "Modality", equals = "ct" }', 'did you mean "CT"?'),
    ):
        dicom_node.config_file.write_text(f"{text}[route.series]\nmatch = [{condition}]\n", encoding="utf-8")
        said = dicom_node("check")
        assert (2, True, True) == (said.status, f"config.toml:{number}: " in said.err, message in said.err), said.err


def test_check_shows_what_a_running_process_refused_and_what_waits(dicom_node):
    """The old rules serve: not well, with the reason; a key that waits for a restart is a note."""
    folder = dicom_node.folder / "var" / SERVING
    folder.mkdir(parents=True)
    said = {
        "role": "worker",
        "process": str(process_identity()),
        "digest": "c0ffee",
        "since": "2026-01-01T00:00:00+00:00",
        "restart_needed": ["[receive] port"],
        "refused": ["config.toml:3: unknown key"],
        "refused_at": "2026-01-01T00:00:00+00:00",
    }
    (folder / "worker-1.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "worker-2.json").write_text("{", encoding="utf-8")
    found = dicom_node("check", "--json")
    assert (1, [(False, "the old rules serve; the file was refused: config.toml:3: unknown key")]) == (
        found.status,
        [(one["ok"], one["detail"]) for one in found.json if one["what"] == "rules of the worker"][:1],
    )
    assert (True, "note: restart needed: [receive] port") in [(one["ok"], one["detail"]) for one in found.json]
