"""The committed QA phantom plugin, on phantoms that its network never saw: the whole way from DICOM to findings."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from dicom_node.clock import SystemClock
from dicom_node.config import read_table
from dicom_node.plugin_api import Manifest
from dicom_node.predict import predict
from dicom_node.reading import load_volume
from model_build.evaluation import evaluate, open_plugin, predict_phantom
from model_build.phantoms import make_phantom
from model_build.plan import read_plan
from model_build.publish import MAX_BYTES, describe_findings

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "plugins" / "qa_phantom"
FIRST_SEED, N_SEEDS = 1000, 20
"""Of the acceptance test; the training's seeds begin at 100,000."""


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Return the committed manifest."""
    return read_table(PLUGIN / "plugin.toml", Manifest)


def test_model_is_the_declared_one_and_small(manifest: Manifest) -> None:
    """The committed file has the manifest's sha256 and at most 2 MB."""
    content = (PLUGIN / manifest.model[0].file).read_bytes()
    assert manifest.model[0].sha256 == hashlib.sha256(content).hexdigest()
    assert len(content) <= MAX_BYTES


def test_reference_case_is_computed_again(manifest: Manifest) -> None:
    """What the plugin finds in its reference image is what the case says, for this model and this specification."""
    case = json.loads((PLUGIN / "reference" / "case.json").read_text(encoding="utf-8"))
    assert (manifest.model[0].sha256, manifest.spec_sha256()) == (case["model_sha256"], case["spec_sha256"])
    _, engine = open_plugin(PLUGIN)
    volume = load_volume([PLUGIN / "reference" / case["input"]])
    actual = json.loads(json.dumps(describe_findings(predict({"ct": volume}, manifest, engine, clock=SystemClock()))))
    assert case["outcome"] == actual["outcome"] == "result"
    assert len(case["findings"]) == len(actual["findings"])
    for expected, found in zip(case["findings"], actual["findings"], strict=True):
        assert expected["label"] == found["label"]
        np.testing.assert_allclose(
            found["centre_lps_mm"], expected["centre_lps_mm"], atol=case["tolerances"]["centre_mm"]
        )
        np.testing.assert_allclose(found["volume_ml"], expected["volume_ml"], rtol=case["tolerances"]["volume"])


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_phantom_without_objects_is_an_explicit_nothing(manifest: Manifest, orientation: str) -> None:
    """Bars, plates, air, light inserts and dots are no findings, and the answer says that nothing was found."""
    _, engine = open_plugin(PLUGIN)
    phantom = make_phantom(4, orientation=orientation, empty=True)  # type: ignore[arg-type]  # one of the two
    findings = predict_phantom(phantom, manifest, engine, clock=SystemClock())
    assert ("nothing_found", ()) == (findings.outcome, findings.findings)


def test_axial_phantoms_hold_the_targets() -> None:
    """The orientation that a physicist would choose first is no exception."""
    assert [] == evaluate(PLUGIN, range(2000, 2002), clock=SystemClock(), orientation="axial").failures()


def test_unseen_oblique_phantoms_hold_the_targets() -> None:
    """Three of the twenty seeds of the acceptance test."""
    evaluation = evaluate(PLUGIN, range(FIRST_SEED, FIRST_SEED + 3), clock=SystemClock())
    assert [] == evaluation.failures()
    assert 1.0 == evaluation.figures()["recall"]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_twenty_unseen_oblique_phantoms_hold_the_targets() -> None:
    """Every object found, nothing else, centre within 1 mm, volume error median 3 %, p90 8 %, none above 15 %."""
    evaluation = evaluate(PLUGIN, range(FIRST_SEED, FIRST_SEED + N_SEEDS), clock=SystemClock())
    assert [] == evaluation.failures()
    assert 1.0 == evaluation.figures()["recall"]


def test_evaluation_seeds_are_not_trained_on() -> None:
    """The plan's seeds and those of the acceptance test have none in common."""
    data = read_plan(REPOSITORY / "model_build" / "plans" / "qa_phantom.toml").data
    trained = range(data.first_seed, data.first_seed + data.phantoms)
    assert not set(trained) & set(range(FIRST_SEED, FIRST_SEED + N_SEEDS))


@pytest.mark.parametrize(
    ("description", "is_phantom"),
    [
        ("QA PHANTOM", True),
        ("qa phantom", True),
        ("Daily QA-Phantom 1.0", True),
        ("Abdomen 2.0", False),
        ("PHANTOM LIMB", False),
        ("AQUA PHANTOMS", False),
    ],
)
def test_only_a_series_that_calls_itself_the_phantom_is_taken(
    manifest: Manifest, description: str, is_phantom: bool
) -> None:
    """A patient's CT never matches by accident."""
    modality, named = manifest.input_series[0].match
    assert ("Modality", "CT") == (modality.keyword, modality.equals)
    assert named.any_ is not None
    assert {"SeriesDescription", "StudyDescription"} == {each.keyword for each in named.any_}
    assert [is_phantom] * 2 == [bool(re.search(each.matches or "", description)) for each in named.any_]
