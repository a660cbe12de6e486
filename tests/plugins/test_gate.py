"""The gate of both plugins: what is no head does not reach the brain mask, what is no phantom not the QA phantom.

What must be withheld before the network is shown with an engine that fails when it is asked. Long tests walk through
every impostor, every head and every real volume.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_node.clock import ManualClock, SystemClock
from dicom_node.config import read_table
from dicom_node.engines import Engine, OnnxRuntimeEngine, Signature, TensorSpec, load_model
from dicom_node.errors import GeometryError, RefusedInputError, UndecodableError
from dicom_node.findings import Findings
from dicom_node.imaging import Grid, Volume, prepare
from dicom_node.imaging.appearance import view_of
from dicom_node.imaging.plausibility import doubts_about_input, doubts_about_source
from dicom_node.plugin_api import Manifest
from dicom_node.predict import predict
from dicom_node.reading import find_files, group_series, load_volume, read_nifti
from model_build.data import volume_of
from model_build.evaluation import open_plugin
from model_build.phantoms import make_phantom
from tests.plugins import heads, impostors
from tests.unit.imaging_case import Ramp, make_volume

PLUGINS = Path(__file__).parents[2] / "plugins"
BRAIN = read_table(PLUGINS / "brain_mask" / "plugin.toml", Manifest)
PHANTOM = read_table(PLUGINS / "qa_phantom" / "plugin.toml", Manifest)

QUICK = ("ball", "shells_head", "fine_blobs_head")
"""Impostors of the tests that run every time: a phantom, a drawn head, and a texture like a brain's."""
AFTER = ("textured_shells_head",)
"""Impostors that only their mask gives away."""
TURNED = (
    ("brainchop", "upside down"),
    ("xa30", "back to front"),
    ("brainchop", "only the face"),
    ("datalad", "only the face"),
    ("brainchop", "60 % of its height"),
)
"""Changes after which a brain may still be seen whole: only these heads are known to be withheld."""


class Unasked(Ramp):
    """A network of the manifest's tensors that must not be asked."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(classes=len(manifest.output[0].classes), tensor=manifest.input[0].tensor)
        window = manifest.inference.window or (None, None, None)
        channels = len(manifest.output[0].classes)
        self.signature = Signature(
            inputs=(TensorSpec(name=manifest.input[0].tensor, dtype="float32", shape=(None, 1, *window)),),
            outputs=(TensorSpec(name=manifest.output[0].tensor, dtype="float32", shape=(None, channels, *window)),),
        )

    def run(self, inputs: object) -> dict[str, np.ndarray]:
        """Fail."""
        raise AssertionError("the network was asked about what the gate must keep from it")


def _judged(volume: Volume, manifest: Manifest, engine: Engine | None = None) -> Findings:
    role = manifest.input_series[0].role
    return predict({role: volume}, manifest, engine or Unasked(manifest), clock=ManualClock())


def _outcome(volume: Volume, manifest: Manifest, engine: Engine | None = None) -> str:
    """Return the outcome; "refused" where the image is so empty that its intensities cannot be scaled."""
    try:
        return _judged(volume, manifest, engine).outcome
    except RefusedInputError:
        return "refused"


def _reasons_against(volume: Volume, manifest: Manifest) -> tuple[str, ...]:
    """Return every doubt before the network."""
    bounds = manifest.plausibility
    assert bounds.body_above is not None
    prepared = prepare(volume, manifest.preprocess.step)
    view = view_of(prepared, bounds.body_above)
    doubts = doubts_about_source(bounds, volume) + doubts_about_input(bounds, float(prepared.array.mean()), view)
    return tuple(doubt.reason for doubt in doubts)


def _read(shared_data: Path, folder: Path, head: str) -> Volume:
    """Return a real T1-weighted head."""
    if head == "brainchop":
        array, affine = read_nifti(shared_data / "brainchop_t1" / "t1_crop.nii.gz")
        return make_volume(array, Grid(shape=array.shape, affine_lps=affine), modality="MR")
    if head == "datalad":
        with tarfile.open(shared_data / "datalad_t1" / "t1_every_second_slice.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        return load_volume([path for path in find_files(folder) if path.suffix == ".dcm"])
    return load_volume([path for path in find_files(shared_data / "dcm_qa_xa30_T1_enhanced") if path.suffix == ".dcm"])


@pytest.fixture(scope="module", params=["brainchop", "datalad", "xa30"])
def head(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """Return each real T1-weighted head in turn."""
    return _read(shared_data, tmp_path_factory.mktemp("head"), request.param)


@pytest.fixture(scope="module")
def network(shared_data: Path) -> Iterator[OnnxRuntimeEngine]:
    """Return the brain mask's network."""
    model = load_model(shared_data / "models" / BRAIN.model[0].file, BRAIN.model[0].sha256)
    engine = OnnxRuntimeEngine.load(model, threads=0)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", QUICK)
def test_impostor_never_reaches_the_network(name: str) -> None:
    """A phantom, a drawn head and a textured outline are withheld with a number and a bound."""
    answer = _judged(impostors.synthetic(name), BRAIN)
    assert answer.outcome == "withheld"
    assert "plausible" in (answer.reason or "")


@pytest.mark.data
def test_real_head_is_let_through(shared_data: Path, tmp_path: Path) -> None:
    """Nothing speaks against a real head before the network runs."""
    assert _reasons_against(_read(shared_data, tmp_path, "xa30"), BRAIN) == ()


@pytest.mark.data
def test_real_head_is_no_phantom(shared_data: Path, tmp_path: Path) -> None:
    """The QA phantom's plugin keeps a patient from its network, whatever the header says."""
    answer = _judged(_read(shared_data, tmp_path, "xa30"), PHANTOM)
    assert answer.outcome == "withheld"
    assert "water" in (answer.reason or "")


def test_phantom_is_let_through() -> None:
    """Nothing speaks against the phantom before the network runs."""
    assert _reasons_against(volume_of(make_phantom(3)), PHANTOM) == ()


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(impostors.SYNTHETIC) - set(QUICK) - set(AFTER)))
def test_every_impostor_is_withheld_before_the_network(name: str) -> None:
    """Phantoms of many kinds, limbs, spines and noise."""
    assert _outcome(impostors.synthetic(name), BRAIN) in ("withheld", "refused")


@pytest.mark.data
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", AFTER)
def test_drawn_head_is_withheld_for_its_mask(network: OnnxRuntimeEngine, name: str) -> None:
    """A head of nested ellipsoids with a folded texture: its "brain" has neither bone above it nor a white core."""
    answer = _judged(impostors.synthetic(name), BRAIN, network)
    assert answer.outcome == "withheld"
    assert "of the mask" in (answer.reason or "")


@pytest.mark.long
def test_the_qa_phantom_is_no_head() -> None:
    """Enlarged to the size of a head and stored as an MR."""
    assert _judged(impostors.qa_phantom_as_head(), BRAIN).outcome == "withheld"


@pytest.mark.data
@pytest.mark.long
@pytest.mark.parametrize("change", heads.ALLOWED)
def test_head_is_let_through_however_it_was_taken(head: Volume, change: str) -> None:
    """Noise, shading, turns, a short neck, other contrast and size: no doubt before the network."""
    assert _reasons_against(heads.ALLOWED[change](head), BRAIN) == ()


@pytest.mark.data
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("change", sorted(set(heads.TAMPERED) - {change for _, change in TURNED}))
def test_tampered_head_is_withheld(head: Volume, network: OnnxRuntimeEngine, change: str) -> None:
    """Halves, wrong axes, wrong contrast, scrambled slices: withheld before or after the network."""
    assert _outcome(heads.TAMPERED[change](head), BRAIN, network) in ("withheld", "refused")


@pytest.mark.data
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "change"), TURNED)
def test_turned_or_cut_head_is_withheld(
    shared_data: Path, tmp_path: Path, network: OnnxRuntimeEngine, name: str, change: str
) -> None:
    """A wrong axis or a missing brain is seen by where the mask lies and how high it is."""
    volume = heads.TAMPERED[change](_read(shared_data, tmp_path, name))
    assert _outcome(volume, BRAIN, network) == "withheld"


@pytest.mark.data
@pytest.mark.long
def test_no_real_series_but_a_head_is_a_head(shared_data: Path) -> None:
    """Every volume of the real data that is no T1-weighted head, given to the brain mask under any header."""
    taken = {
        name
        for name, volume in _every_volume(shared_data)
        if not name.startswith("dcm_qa_xa30") and not _withheld(volume, BRAIN)
    }
    assert taken == set()


@pytest.mark.data
@pytest.mark.long
def test_no_real_series_is_a_phantom(shared_data: Path) -> None:
    """Every volume of the real data, given to the QA phantom's plugin under any header."""
    taken = {name for name, volume in _every_volume(shared_data) if not _withheld(volume, PHANTOM)}
    assert taken == set()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1000, 1001, 1002, 7000])
def test_the_plugin_takes_its_own_phantoms(seed: int) -> None:
    """From seed to findings, nothing withheld; without objects, nothing found."""
    manifest, engine = open_plugin(PLUGINS / "qa_phantom")
    for empty in (False, True):
        answer = predict({"ct": volume_of(make_phantom(seed, empty=empty))}, manifest, engine, clock=SystemClock())
        assert (answer.outcome, answer.reason) == ("nothing_found" if empty else "result", None)


def _every_volume(shared_data: Path) -> Iterator[tuple[str, Volume]]:
    """Yield (first file, volume) of every series that makes a volume."""
    files = [path for path in find_files(shared_data) if path.suffix in ("", ".dcm")]
    for series in group_series(files)[0]:
        try:
            volume = load_volume([image.path for image in series.images])
        except (GeometryError, UndecodableError):
            continue
        yield str(series.images[0].path.relative_to(shared_data)), volume


def _withheld(volume: Volume, manifest: Manifest) -> bool:
    """Say whether the gate keeps the volume from the network."""
    try:
        return bool(_reasons_against(volume, manifest))
    except RefusedInputError:
        return True
