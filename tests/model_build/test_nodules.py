"""How findings in chest phantoms are judged, and what is frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dicom_node.clock import ManualClock
from dicom_node.errors import UsageError
from model_build.cli import app
from model_build.data.preview import PREVIEW, preview_sheet
from model_build.evaluation import nodules
from model_build.evaluation.baseline import find_by_threshold
from model_build.evaluation.detection import Detection, StudyResult, Target, match
from model_build.evaluation.nodules import Answer, NoduleEvaluation, evaluate_nodules, targets_of
from model_build.evaluation.plots import plot
from model_build.evaluation.report import nodule_report
from model_build.phantoms.chest import make_chest
from model_build.phantoms.frozen import CHEST_SEEDS, FROZEN, code_of, fingerprint
from model_build.volumes import volume_from_array


@pytest.mark.parametrize("generator", sorted(FROZEN))
def test_generator_is_the_frozen_one(generator: str) -> None:
    """Whoever changes what a phantom looks like says so: models trained on it must be judged again."""
    assert FROZEN[generator] == fingerprint(generator)


def test_only_what_is_computed_counts() -> None:
    """Comments, docstrings and layout change no fingerprint; a number, a word and a block do."""
    source = 'def f(x):\n    """Say."""\n    if x:\n        x = 1\n    return "a"\n'
    same = 'def f( x ):  # why\n\n    """Say it better."""\n    if x:\n        x = 1\n    return "a"\n'
    assert code_of(source) == code_of(same)
    for other in ("x = 2", 'x = 1\n        return "a"', "x  =1; x = 1"):
        assert code_of(source) != code_of(source.replace("x = 1", other))
    assert code_of(source) != code_of(source.replace('"a"', '"b"'))


def test_seeds_of_the_parts_are_disjoint() -> None:
    """No study is learned from and judged on; the test has room for the 200 nodules that are asked for."""
    parts = list(CHEST_SEEDS.values())
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert len(CHEST_SEEDS["test_empty"]) >= 20


def test_baseline_finds_a_ball_in_a_box_of_lung() -> None:
    """A ball of 10 mm is found where it is; a rod of the same width is not, nor a ball in the wall."""
    array = np.full((40, 100, 100), -1000.0, dtype=np.float32)
    array[:, 10:90, 10:90] = 40.0
    array[:, 18:82, 18:82] = -850.0
    z, y, x = np.meshgrid(*(np.arange(n) for n in array.shape), indexing="ij")
    array[(2 * (z - 20)) ** 2 + (1.5 * (y - 40)) ** 2 + (1.5 * (x - 60)) ** 2 < 25] = 30.0
    array[18:21, 60:64, 25:75] = 30.0
    array[(2 * (z - 30)) ** 2 + (1.5 * (y - 84)) ** 2 + (1.5 * (x - 60)) ** 2 < 25] = 30.0
    (found,) = find_by_threshold(volume_from_array(array, np.diag([1.5, 1.5, 2.0, 1.0]), modality="CT"))
    assert pytest.approx((90.0, 60.0, 40.0), abs=0.5) == found.centre_lps_mm
    assert pytest.approx(np.pi / 6, rel=0.1) == found.volume_ml


def test_evaluation_walks_through_dicom_and_counts_what_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finder that knows the truth finds all of it in what was read back; one that withholds finds nothing."""
    chest = make_chest(3)
    monkeypatch.setattr(nodules, "make_chest", lambda *_, **__: chest)
    targets = targets_of(chest)

    def all_knowing(volume: object) -> Answer:
        assert abs(float(volume.array[:, :8, :8].mean()) + 1000) < 5  # type: ignore[attr-defined]
        return Answer(
            detections=tuple(
                Detection(centre_lps_mm=each.centre_lps_mm, volume_ml=1.1 * each.volume_ml, confidence=0.9)
                for each in targets
            )
        )

    values = evaluate_nodules(all_knowing, [3], clock=ManualClock()).as_json()
    assert (1, 0, 0) == (values["studies"], values["nodule_free"], values["withheld"])
    assert 1.0 == values["recall"]["value"]  # type: ignore[index]
    assert pytest.approx(0.1) == values["volume_agreement"]["bias"]  # type: ignore[index]
    assert fingerprint("chest") == values["generator"]["sha256"]  # type: ignore[index]
    withheld = evaluate_nodules(lambda _: Answer(detections=(), withheld=True), [3], clock=ManualClock())
    assert (1, 0.0) == (withheld.n_withheld, withheld.as_json()["recall"]["value"])  # type: ignore[index]


def _evaluation() -> NoduleEvaluation:
    def target(x: float, diameter: float, kind: str) -> Target:
        return Target(centre_lps_mm=(x, 0, 0), diameter_mm=diameter, volume_ml=1.0, kind=kind)

    def found(x: float, confidence: float, volume: float) -> Detection:
        return Detection(centre_lps_mm=(x, 0, 0), volume_ml=volume, confidence=confidence)

    small, large = target(0, 5, "solid/free"), target(50, 12, "part_solid/pleural")
    studies = (
        StudyResult(study="1", matches=match([small, large], [found(0, 0.9, 1.2), found(50, 0.8, 0.9)])),
        StudyResult(study="2", matches=match([small], [found(90, 0.7, 1.0)])),
        StudyResult(study="3", matches=()),
    )
    return NoduleEvaluation(shifted=True, studies=studies, n_withheld=0, seconds_per_study=1.0)


def test_figures_by_size_and_kind() -> None:
    """Counted by hand: half of the small ones, the large one, one false finding in three studies."""
    values = json.loads(json.dumps(_evaluation().as_json()))
    assert [0.5, None, 1.0] == [values["recall_by_size_mm"][name]["value"] for name in ("4-6", "6-10", "> 10")]
    assert 0.5 == values["recall_by_kind"]["solid/free"]["value"]
    assert pytest.approx(1 / 3) == values["false_positives_per_study"]["value"]
    assert pytest.approx(0.2) == values["volume_error_by_size_mm"]["4-6"]["bias"]["value"]
    assert pytest.approx(0.1) == values["volume_error_by_size_mm"]["> 10"]["median_absolute"]["value"]
    assert (3, 1, True) == (values["studies"], values["nodule_free"], values["generator"]["shifted"])


def test_report_says_what_the_json_says() -> None:
    """Every figure has its row, both plots stand in the file, and nothing of it is fetched from elsewhere."""
    html = nodule_report(_evaluation().as_json(), "Nodules <of> x")
    assert "Nodules &lt;of&gt; x" in html
    assert 2 == html.count("<svg")
    assert "<td>recall 4-6 mm</td><td>0.500</td>" in html
    assert "the shifted scanner" in html
    assert "src=" not in html
    assert "nan" not in html


def test_plot_shows_each_point_and_leaves_out_what_is_not_finite() -> None:
    """Dots are circles, lines one path, levels dashed; larger is to the right and above."""
    svg = plot("t", "x", "y", lines=[[(0, 0), (1, 1)]], dots=[(0, 0), (1, 2), (float("nan"), 1)], levels=[0.5])
    assert (2, 1) == (svg.count("<circle"), svg.count("stroke-dasharray"))
    first, second = ([float(word.split('"')[1]) for word in line.split()[1:3]] for line in svg.splitlines()[-3:-1])
    assert second[0] > first[0]
    assert second[1] < first[1]
    assert plot("empty", "x", "y").endswith("</svg>")


def test_preview_begins_with_the_image_as_it_is() -> None:
    """Twelve tiles; the first is the image with its label's border in red, the others differ."""
    image = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    label = np.zeros((32, 32), dtype=np.uint8)
    label[10:20, 10:20] = 1
    sheet = preview_sheet(image, label, PREVIEW, seed=1)
    assert (3 * 36 - 4, 4 * 36 - 4, 3) == sheet.shape
    first = sheet[:32, :32]
    assert [255, 40, 40] == first[10, 15].tolist()
    assert int(image[15, 15] * 255) == first[15, 15, 0]
    assert 36 == int((first == (255, 40, 40)).all(axis=-1).sum())
    assert not np.array_equal(first, sheet[:32, 36:68])


def test_commands_refuse_what_does_not_go_together(tmp_path: Path) -> None:
    """A plugin or the baseline; a chest is axial; only a chest can be shifted."""
    for arguments in (
        ["evaluate-nodules"],
        ["evaluate-nodules", "--baseline", "--part", "train"],
        ["phantom", "--out", str(tmp_path), "--shifted"],
        ["phantom", "--out", str(tmp_path), "--kind", "chest", "--orientation", "axial"],
    ):
        assert isinstance(CliRunner().invoke(app, arguments).exception, UsageError), arguments
    assert [] == list(tmp_path.iterdir())


def test_chest_command_writes_what_the_baseline_is_judged_on(tmp_path: Path) -> None:
    """The study lies in dicom/, its truth beside it, and its header names scanner, kernel and thickness."""
    import pydicom

    arguments = ["phantom", "--out", str(tmp_path), "--kind", "chest", "--seed", "5", "--empty", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--date", "20260131", "--uid-root", "2.25.9"])
    assert 0 == done.exit_code, done.exception
    truth = json.loads((tmp_path / "truth.json").read_text(encoding="utf-8"))
    ds = pydicom.dcmread(next((tmp_path / "dicom").glob("*.dcm")))
    how = truth["acquisition"]
    assert (how["scanner"], how["kernel"]) == (ds.ManufacturerModelName, ds.ConvolutionKernel)
    assert (how["thickness_mm"], "CHEST PHANTOM") == (ds.SliceThickness, ds.SeriesDescription)
    assert [] == truth["objects"]
