"""The brain mask on real heads: volumes and a mask that another chain made, within the plugin's own limits.

The weights are not in the repository; they lie with the real data. Each run goes through the child process that the
node uses, so going over the manifest's time or memory fails the test.
"""

from __future__ import annotations

import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node.clock import SystemClock
from dicom_node.config import read_table
from dicom_node.engines import OnnxRuntimeEngine, load_model
from dicom_node.errors import ModelMismatchError
from dicom_node.findings import Findings
from dicom_node.imaging import Grid, Volume
from dicom_node.infer import InferenceChild, Plugin, Request, read_plugin
from dicom_node.plugin_api import Manifest
from dicom_node.predict import check_signature, predict
from dicom_node.reading import find_files, read_masks, read_nifti
from tests.unit.imaging_case import dice, make_grid, make_volume

FOLDER = Path(__file__).parents[2] / "plugins" / "brain_mask"
EXPECTED = tomllib.loads((FOLDER / "reference" / "expected.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def plugin(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Plugin:
    """Return the plugin with its weights installed from the real data."""
    models = tmp_path_factory.mktemp("models")
    (models / "brain_mask").mkdir()
    (models / "brain_mask" / "mindgrab.onnx").write_bytes((shared_data / "models" / "mindgrab.onnx").read_bytes())
    return read_plugin(FOLDER, models)


@pytest.fixture(scope="module")
def child(plugin: Plugin) -> Iterator[InferenceChild]:
    """Return the process that infers, warm between the tests."""
    child = InferenceChild(plugin, threads=0, clock=SystemClock())
    yield child
    child.stop()


def _brain(answer: Findings) -> np.ndarray:
    assert (answer.outcome, answer.reason) == ("result", None)
    (brain,) = answer.findings
    assert brain.label == "Brain"
    assert len(brain.contour) > 50
    return brain.mask.on_grid(answer.shape)


@pytest.mark.data
@pytest.mark.long  # the acceptance test of the whole path holds the same head to the same reference
@pytest.mark.timeout(900)
def test_classic_t1_agrees_with_the_reference(child: InferenceChild, shared_data: Path, tmp_path: Path) -> None:
    """192 oblique slices whose headers lie about their spacing: Dice >= 0.98, 1938 ml +- 2 %, and the same centre."""
    with tarfile.open(shared_data / "datalad_t1" / "t1_every_second_slice.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    paths = tuple(path for path in find_files(tmp_path) if path.suffix == ".dcm")
    answer = child.run(Request(paths={"t1": paths}))
    grid = Grid(shape=answer.shape, affine_lps=answer.affine_lps)
    # Refused unless it lies on this very grid.
    reference = read_masks(shared_data / "datalad_t1" / "mindgrab_reference_mask.nii.gz", grid)[1]
    brain = _brain(answer)
    expected = EXPECTED["classic"]
    assert dice(brain, reference) >= expected["dice"]
    found = answer.findings[0].measurements
    assert found.volume_ml == pytest.approx(expected["volume_ml"], rel=expected["volume_tolerance"])
    assert found.centroid_lps_mm == pytest.approx(expected["centroid_lps_mm"], abs=expected["centroid_tolerance_mm"])


@pytest.mark.data
@pytest.mark.long
@pytest.mark.timeout(900)
def test_enhanced_t1_has_its_volume(child: InferenceChild, shared_data: Path) -> None:
    """One enhanced file of 96 sagittal frames with bright surface fat: 1694.9 ml +- 2 %."""
    paths = tuple(path for path in find_files(shared_data / "dcm_qa_xa30_T1_enhanced") if path.suffix == ".dcm")
    answer = child.run(Request(paths={"t1": paths}))
    _brain(answer)
    expected = EXPECTED["enhanced"]
    volume_ml = answer.findings[0].measurements.volume_ml
    assert volume_ml == pytest.approx(expected["volume_ml"], rel=expected["volume_tolerance"])


@pytest.mark.data
@pytest.mark.long
@pytest.mark.timeout(900)
def test_conformed_t1_has_the_volume_of_its_makers(plugin: Plugin, shared_data: Path) -> None:
    """The network's makers' own example, conformed by them: 1612.6 ml +- 1 %."""
    array, affine = read_nifti(shared_data / "brainchop_t1" / "t1_crop.nii.gz")
    volume: Volume = make_volume(array, Grid(shape=array.shape, affine_lps=affine), modality="MR")
    engine = OnnxRuntimeEngine.load(load_model(plugin.model_path, plugin.model_sha256), threads=0)
    answer = predict({"t1": volume}, plugin.manifest, engine, clock=SystemClock())
    _brain(answer)
    expected = EXPECTED["conformed"]
    volume_ml = answer.findings[0].measurements.volume_ml
    assert volume_ml == pytest.approx(expected["volume_ml"], rel=expected["volume_tolerance"])


@pytest.mark.data
def test_only_the_declared_weights_fit(plugin: Plugin, shared_data: Path) -> None:
    """The installed file is the declared one, its tensors are the manifest's; a sibling network is refused."""
    assert plugin.defect() is None
    engine = OnnxRuntimeEngine.load(load_model(plugin.model_path, plugin.model_sha256), threads=1)
    check_signature(plugin.manifest, engine)
    # A head of 190 x 250 x 220 voxels took 2.1 GB; the estimate is what admission plans with.
    assert 1.5e9 < engine.memory_bytes({"input": (1, 1, 190, 250, 220)}) < 3.1e9
    # However little a crop leaves out, no head is refused for its memory.
    grid, largest = make_grid((256, 512, 512), (0.5, 0.5, 1.0)), (256, 256, 256)
    network_bytes = engine.memory_bytes({"input": plugin.manifest.run_shape(largest)})
    assert plugin.manifest.too_large(grid, prepared=largest, network_bytes=network_bytes) is None
    with pytest.raises(ModelMismatchError, match="model11_gw_ae"):
        load_model(shared_data / "models" / "model11_gw_ae.onnx", plugin.model_sha256)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Return the manifest alone: no weights are needed to read it."""
    return read_table(FOLDER / "plugin.toml", Manifest)


@pytest.mark.parametrize(
    ("description", "is_taken"),
    [
        ("anat-T1w", True),
        ("anat-T1w_acq-tfl", True),
        ("T1 MPRAGE sag", True),
        ("t1_mprage_sag_p2_iso", True),
        ("MP2RAGE_UNI", True),
        ("Ax 3D BRAVO", True),
        ("SAG FSPGR 3D", True),
        ("T1 FLAIR tra", False),
        ("t2_space_dark-fluid_sag", False),
        ("T2w", False),
        ("AAHead_Scout T1", False),
        ("T1map_sag", False),
        ("T1rho", False),
        ("DTI 64 dir", False),
        ("THST10", False),
    ],
)
def test_names_of_t1_are_known(manifest: Manifest, description: str, is_taken: bool) -> None:
    """What a T1-weighted head is called at the scanner is taken; its neighbours in the protocol are not."""
    _, names, others, _ = manifest.input_series[0].match
    assert names.any_ is not None
    wanted, refused = names.any_[0].matches, others.matches
    assert wanted is not None
    assert refused is not None
    assert is_taken == (re.search(wanted, description) is not None and re.search(refused, description) is None)


def test_it_says_what_it_is_not(manifest: Manifest) -> None:
    """The demonstrator says so in its manifest and in its model card."""
    assert manifest.plugin.demonstrator
    assert "Not for clinical use" in manifest.plugin.intended_use
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for word in ("not for clinical use", "MIT", "neuroneural/brainchop", manifest.model[0].sha256):
        assert word in card
