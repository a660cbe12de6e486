"""predict: from a volume on any grid to findings on that grid, with a network whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.clock import ManualClock
from dicom_node.engines import Signature, TensorSpec
from dicom_node.errors import EngineError, ModelMismatchError, NotApplicableError, RefusedInputError
from dicom_node.findings import Findings
from dicom_node.imaging import Grid, Prepared
from dicom_node.predict import check_signature, predict, run_model
from tests.unit.imaging_case import Ramp, blob, dice, make_grid, make_manifest, make_volume, rotations

CENTRES = ((13.0, -7.0, 30.0), (-11.0, -5.0, 33.0))
RADII = (8.0, 5.0)


def _two_blobs(grid: Grid) -> NDArray[np.float32]:
    return np.maximum(*(blob(grid, centre, radius) for centre, radius in zip(CENTRES, RADII, strict=True)))


def _predict(array: NDArray[Any], grid: Grid, engine: Ramp | None = None, **tables: Any) -> Findings:
    return predict({"ct": make_volume(array, grid)}, make_manifest(**tables), engine or Ramp(), clock=ManualClock())


@settings(max_examples=12, deadline=None)
@given(
    rotation=rotations(),
    spacing=st.tuples(st.floats(0.8, 1.3), st.floats(0.8, 1.3), st.floats(0.9, 2.0)),
    shear=st.floats(-0.3, 0.3),
    mode=st.sampled_from(["whole", "window"]),
)
def test_findings_lie_where_the_bodies_are(
    rotation: NDArray[np.float64], spacing: tuple[float, float, float], shear: float, mode: str
) -> None:
    """Two bodies in an oblique, sheared, anisotropic stack: each found once, in its place, on the source grid."""
    shape = tuple(int(64 / step) for step in reversed(spacing))
    grid = make_grid(shape, spacing, rotation=rotation, shear=shear)  # type: ignore[arg-type]
    array = _two_blobs(grid)
    inference = {"mode": "whole"} if mode == "whole" else {"mode": "window", "window": [32, 32, 32]}
    answer = _predict(array, grid, inference=inference)
    assert answer.outcome == "result"
    assert [finding.number for finding in answer.findings] == [1, 2]
    for finding, centre in zip(answer.findings, CENTRES, strict=True):
        assert np.linalg.norm(np.subtract(finding.measurements.centroid_lps_mm, centre)) < 0.6
        assert finding.probability is not None
        assert 0.5 < finding.probability <= 1
    together = answer.findings[0].mask.on_grid(grid.shape) | answer.findings[1].mask.on_grid(grid.shape)
    assert dice(together, array >= 50) >= 0.95


def test_answer_carries_what_made_it() -> None:
    """Frames, affine, notes, engine, digests and the measured time of the network alone."""
    grid = make_grid((30, 64, 64))
    clock = ManualClock()

    class Slow(Ramp):
        def run(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
            clock.advance(2.5)
            return super().run(inputs)

    manifest = make_manifest()
    volume = make_volume(_two_blobs(grid), grid)
    answer = predict({"ct": volume}, manifest, Slow(), clock=clock)
    assert answer.frames == volume.frames
    assert np.array_equal(answer.affine_lps, grid.affine_lps)
    assert answer.shape == grid.shape
    assert answer.provenance.duration_s == 2.5
    assert answer.provenance.engine == "ramp fp32"
    assert (answer.provenance.plugin, answer.provenance.plugin_version) == ("ramp", "1.2.3")
    assert answer.provenance.model_sha256 == "0" * 64
    assert answer.provenance.spec_sha256 == manifest.spec_sha256()
    finding = answer.findings[0]
    assert finding.tracking_identifier == "Object 1"
    assert finding.contour[0] == finding.contour[-1]
    assert len(finding.contour) > 10


def test_nothing_found_is_a_result() -> None:
    """An empty answer is an outcome of its own."""
    grid = make_grid()
    answer = _predict(np.zeros(grid.shape), grid)
    assert (answer.outcome, answer.reason, answer.findings) == ("nothing_found", None, ())


def test_implausible_result_is_withheld_with_its_reason() -> None:
    """The gate keeps the result back and says why."""
    grid = make_grid((30, 64, 64))
    answer = _predict(_two_blobs(grid), grid, plausibility={"max_findings": 1})
    assert answer.outcome == "withheld"
    assert answer.reason == "there are 2 findings; at most 1 are plausible"


def test_implausible_input_never_reaches_the_network() -> None:
    """An image unlike the training's is withheld before inference."""
    grid, engine = make_grid((30, 64, 64)), Ramp()
    answer = _predict(_two_blobs(grid), grid, engine, plausibility={"source_mean": [0.5, 1.0]})
    assert answer.outcome == "withheld"
    assert "the prepared image has a mean of" in (answer.reason or "")
    assert engine.shapes == []


def test_an_empty_image_is_withheld_where_the_manifest_has_a_gate() -> None:
    """What cannot be scaled has no body: withheld by a plugin that asks for one, refused by another."""
    grid, engine = make_grid((30, 64, 64)), Ramp()
    step = {"kind": "normalise", "method": "min_max"}
    tables = {"preprocess": {"spec_version": 1, "step": [step]}}
    check = {"measure": "body_volume_ml", "low": 1.0, "because": "a body is there"}
    gate = {"body_above": 0.5, "check": [check]}
    answer = _predict(np.zeros(grid.shape), grid, engine, plausibility=gate, **tables)
    assert answer.outcome == "withheld"
    assert (answer.reason or "").startswith("the image cannot be prepared: ")
    assert engine.shapes == []
    with pytest.raises(RefusedInputError):
        _predict(np.zeros(grid.shape), grid, engine, **tables)


def test_a_flagged_result_is_delivered_with_its_note() -> None:
    """Checks before and after the network that only flag: the result stands, and its notes say what was noticed."""
    grid = make_grid((30, 64, 64))
    before = {"measure": "body_volume_ml", "high": 1.0, "action": "flag", "because": "a body is small"}
    after = {"measure": "mask_sphericity", "high": 0.1, "action": "flag", "because": "an object is a plate"}
    answer = _predict(_two_blobs(grid), grid, plausibility={"body_above": 0.5, "check": [before, after]})
    assert (answer.outcome, answer.reason) == ("result", None)
    assert [note.partition(":")[0] for note in answer.notes] == ["flagged", "flagged"]
    assert "the body has a volume of 2 ml; at most 1 ml is plausible: a body is small" in answer.notes[0]
    assert "the sphericity of the mask" in answer.notes[1]


@pytest.mark.parametrize(
    ("postprocess", "n_findings"),
    [
        ({"split": True}, 2),
        ({"split": False}, 1),
        ({"split": True, "keep": "largest"}, 1),
        ({"split": True, "min_volume_mm3": 1000.0}, 1),
        ({"split": True, "min_volume_mm3": 5000.0}, 0),
        ({"split": True, "min_mean_contrast": 20.0}, 2),
        ({"split": True, "min_mean_contrast": 90.0}, 0),
        ({"split": True, "threshold": 0.999}, 2),
        ({"split": True, "threshold": 0.99999}, 0),
    ],
)
def test_postprocessing_keeps(postprocess: dict[str, Any], n_findings: int) -> None:
    """Each rule of [postprocess] does what its name says."""
    grid = make_grid((40, 64, 64))
    assert n_findings == len(_predict(_two_blobs(grid), grid, postprocess=postprocess).findings)


def test_classes_that_exclude_each_other_do_not_overlap() -> None:
    """Argmax: the background wins where the network prefers it, and outside the prepared field."""
    grid = make_grid((30, 64, 64))
    array = _two_blobs(grid)
    answer = _predict(
        array,
        grid,
        Ramp(classes=2),
        output=[
            {
                "tensor": "logits",
                "role": "logits",
                "activation": "softmax",
                "exclusive": True,
                "classes": ["background", "Object"],
            }
        ],
        preprocess={
            "spec_version": 1,
            "step": [
                {"kind": "crop_foreground", "above": 40.0},
                {"kind": "normalise", "method": "linear", "low": 0.0, "high": 100.0},
            ],
        },
        postprocess={},
    )
    assert [finding.label for finding in answer.findings] == ["Object"]
    assert dice(answer.findings[0].mask.on_grid(grid.shape), array >= 50) >= 0.99


def test_array_is_padded_to_the_divisor_for_the_run() -> None:
    """The network sees multiples of the divisor; the answer does not."""
    grid, engine = make_grid((30, 61, 50)), Ramp()
    tensor = {"tensor": "image", "roles": ["ct"], "divisor": 16}
    prepared = Prepared(array=_two_blobs(grid) / np.float32(100), grid=grid)
    (region,) = run_model(prepared, make_manifest(input=[tensor]), engine)
    probability = region.values
    assert engine.shapes == [(1, 1, 32, 64, 64)]
    assert probability.shape == (1, 30, 61, 50)
    assert np.array_equal(probability[0] >= 0.5, prepared.array >= 0.5)


@pytest.mark.parametrize(("mode", "at_end"), [("minimum", -0.5), ("zero", 0.0), ("edge", 0.75), ("reflect", 0.5)])
def test_what_lies_beyond_the_array_is_as_declared(mode: str, at_end: float) -> None:
    """The network sees the image's minimum, zero, its edge or its mirror image there."""
    seen: list[NDArray[Any]] = []

    class Watched(Ramp):
        def run(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
            seen.append(inputs["image"][0, 0])
            return super().run(inputs)

    tensor = {"tensor": "image", "roles": ["ct"], "divisor": 4}
    array = np.full((4, 4, 3), -0.5, dtype=np.float32)
    array[2, 2] = (0.25, 0.5, 0.75)
    prepared = Prepared(array=array, grid=make_grid((4, 4, 3)))
    manifest = make_manifest(input=[tensor], inference={"mode": "whole", "pad_mode": mode})
    list(run_model(prepared, manifest, Watched()))
    assert seen[0].shape == (4, 4, 4)
    assert seen[0][2, 2].tolist() == [0.25, 0.5, 0.75, at_end]


class Flat(Ramp):
    """The same network for single slices; it tells how many it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.signature = Signature(
            inputs=(TensorSpec(name="image", dtype="float32", shape=(None, 1, None, None)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(None, 1, None, None)),),
        )


SLICES = {
    "input": [{"tensor": "image", "roles": ["ct"], "axes": "NCHW", "divisor": 16}],
    "inference": {"mode": "slice", "batch": 8},
}


def test_slices_give_what_the_whole_gives() -> None:
    """A network of two dimensions sees slice after slice, padded to its divisor, in batches; nothing else changes."""
    grid, engine = make_grid((30, 61, 50)), Flat()
    array = _two_blobs(grid)
    flat, whole = _predict(array, grid, engine, **SLICES), _predict(array, grid)
    assert engine.shapes == [(8, 1, 64, 64)] * 3 + [(6, 1, 64, 64)]
    assert [one.mask.offset for one in flat.findings] == [one.mask.offset for one in whole.findings]
    for one, other in zip(flat.findings, whole.findings, strict=True):
        assert np.array_equal(one.mask.array, other.mask.array)
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_network_of_slices_is_declared_as_such() -> None:
    """Axes and mode go together, and so do axes and the model's own tensor."""
    with pytest.raises(ValueError, match='axes "NCHW" go with'):
        make_manifest(input=SLICES["input"])
    with pytest.raises(ValueError, match='axes "NCHW" go with'):
        make_manifest(inference=SLICES["inference"])
    with pytest.raises(ModelMismatchError, match="the manifest declares image"):
        check_signature(make_manifest(**SLICES), Ramp())
    check_signature(make_manifest(**SLICES), Flat())


def test_mirrored_answers_are_averaged() -> None:
    """A network that leans to one side is straightened along the axes that are named, and along no other."""

    class Leaning(Ramp):
        def run(self, inputs: Any) -> dict[str, NDArray[np.float32]]:
            (image,) = inputs.values()
            self.shapes.append(image.shape)
            logits = np.zeros_like(image)
            logits[..., 0] += 8.0  # the first column
            logits[:, :, 0] -= 8.0  # the first slice
            return {"logits": logits}

    prepared = Prepared(array=np.zeros((4, 6, 8), dtype=np.float32), grid=make_grid((4, 6, 8)))
    engine = Leaning()
    manifest = make_manifest(inference={"mode": "whole", "tta_axes": [1, 2]})
    (region,) = run_model(prepared, manifest, engine)
    answer = region.values[0]
    assert len(engine.shapes) == 4
    assert answer[2] == pytest.approx(answer[2, ::-1, ::-1], abs=1e-6)
    assert answer[2, 3, 0] == pytest.approx(0.75, abs=1e-3)
    assert answer[0, 3, 4] < 0.01
    assert answer[3, 3, 4] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "inference",
    [
        {"mode": "whole", "tta_axes": [0, 0]},
        {"mode": "whole", "tta_axes": [3]},
        {"mode": "whole", "pad_mode": "wrap"},
    ],
)
def test_senseless_inference_is_refused(inference: dict[str, Any]) -> None:
    """What cannot be meant is an error when the manifest is read."""
    with pytest.raises(ValueError, match="inference"):
        make_manifest(inference=inference)


def test_colour_is_taken_only_where_the_first_step_says_so() -> None:
    """Grey from colour happens while reading, so it cannot stand behind a step that runs on what was read."""
    colour, clip = {"kind": "grey_from_colour"}, {"kind": "clip", "low": 0.0, "high": 9.0}
    for step, takes_colour in (([], False), ([clip], False), ([colour], True), ([colour, clip], True)):
        assert make_manifest(preprocess={"spec_version": 1, "step": step}).preprocess.takes_colour == takes_colour
    with pytest.raises(ValueError, match="is the first step"):
        make_manifest(preprocess={"spec_version": 1, "step": [clip, colour]})


FIRST_STEPS = [
    {"kind": "orient", "axes": "SPL"},
    {"kind": "resample", "spacing_mm": [1.0, 1.0, 1.0], "order": 3},
    {"kind": "crop_foreground", "above": 1.0},
    {"kind": "fit", "shape": [9, 9, 9]},
    {"kind": "clip", "low": 0.0, "high": 9.0},
    {"kind": "denoise"},
    {"kind": "normalise", "method": "z_score"},
    {"kind": "pad", "divisor": 4},
]


def test_later_fields_leave_old_digests_alone() -> None:
    """A manifest that does not use what came after the first version keeps its digest; one that does has another."""

    def digest(**changes: Any) -> str:
        tables = {
            "preprocess": {"spec_version": 1, "step": FIRST_STEPS},
            "inference": {"mode": "window", "window": [8, 8, 8]},
            "plausibility": {"max_findings": 3},
        }
        return make_manifest(**(tables | changes)).spec_sha256()

    first = digest()
    assert first == "a500a576dbfe4cb74998cb3ffec5465f9e28020c71b240b6f23f586789c09f02"
    assert first == digest(inference={"mode": "window", "window": [8, 8, 8], "pad_mode": "minimum", "overlap": 0.25})
    later = [
        {"inference": {"mode": "window", "window": [8, 8, 8], "tta_axes": [1]}},
        {"inference": {"mode": "window", "window": [8, 8, 8], "pad_mode": "edge"}},
        {"preprocess": {"spec_version": 1, "step": [*FIRST_STEPS[:-1], {"kind": "pad", "divisor": 4, "side": "both"}]}},
        {"preprocess": {"spec_version": 1, "step": [*FIRST_STEPS, {"kind": "enhance", "method": "clahe"}]}},
    ]
    assert len({first, *(digest(**changes) for changes in later)}) == 5


def test_missing_role_is_named() -> None:
    """No volume for a role: not applicable, and which."""
    with pytest.raises(NotApplicableError, match="'ct'"):
        predict({}, make_manifest(), Ramp(), clock=ManualClock())


def test_too_large_a_volume_is_refused() -> None:
    """max_voxels counts the source's voxels."""
    grid = make_grid((10, 10, 10))
    limits = {"time_s": 1.0, "ram_mb": 10, "max_voxels": 999}
    with pytest.raises(NotApplicableError, match="1000 voxels; the plugin takes 999"):
        _predict(np.zeros(grid.shape), grid, limits=limits)


def test_values_that_are_no_numbers_are_refused() -> None:
    """Not-a-number in the image is refused; in the answer it is the engine's fault."""
    grid = make_grid((10, 10, 10))
    array = np.zeros(grid.shape)
    array[3, 3, 3] = np.nan
    with pytest.raises(RefusedInputError, match="not finite"):
        _predict(array, grid)
    with pytest.raises(EngineError, match="not finite"):
        _predict(np.zeros(grid.shape), grid, Ramp(slope=np.inf))


def _signature(**changes: Any) -> Signature:
    tensors = {
        "name": "image",
        "dtype": "float32",
        "shape": (None, 1, None, None, None),
        "output": "logits",
        "classes": 1,
        "more": (),
    } | changes
    free = (None, None, None)
    return Signature(
        inputs=(
            TensorSpec(name=tensors["name"], dtype=tensors["dtype"], shape=tensors["shape"]),
            *(TensorSpec(name=name, dtype="float32", shape=(1,)) for name in tensors["more"]),
        ),
        outputs=(TensorSpec(name=tensors["output"], dtype="float32", shape=(None, tensors["classes"], *free)),),
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "picture"}, "no input 'image'; it has picture float32"),
        ({"output": "scores"}, "no output 'logits'; it has scores float32"),
        ({"dtype": "float16"}, "input 'image' is float16"),
        ({"shape": (None, 3, None, None, None)}, r"input of the model is image float32 \[\?, 3"),
        ({"shape": (None, 1, None, None)}, "declares image float32"),
        ({"shape": (None, 1, 64, 64, 64)}, r"\[\?, 1, 64, 64, 64\]"),
        ({"classes": 4}, r"output of the model is logits float32 \[\?, 4"),
        ({"more": ("spacing",)}, "does not name: 'spacing'"),
    ],
)
def test_tensor_that_the_manifest_does_not_declare_is_named(changes: dict[str, Any], words: str) -> None:
    """A model with other tensors is refused by their names, before any image is touched."""
    engine = Ramp()
    engine.signature = _signature(**changes)
    with pytest.raises(ModelMismatchError, match=words):
        check_signature(make_manifest(), engine)


@pytest.mark.parametrize("shape", [(None, 1, None, None, None), (1, 1, 64, 64, 64), (None, 1, 64, 64, 64)])
def test_fixed_window_may_be_fixed_in_the_model(shape: tuple[int | None, ...]) -> None:
    """A model of exactly the window's size, or of any size, fits window mode."""
    engine = Ramp()
    engine.signature = _signature(shape=shape)
    check_signature(make_manifest(inference={"mode": "window", "window": [64, 64, 64]}), engine)


@pytest.mark.parametrize(
    "tables",
    [
        {
            "inference": {"mode": "window", "window": [30, 32, 32]},
            "input": [{"tensor": "i", "roles": ["ct"], "divisor": 4}],
        },
        {
            "output": [
                {"tensor": "o", "role": "logits", "activation": "none", "exclusive": False, "classes": ["Object"]}
            ]
        },
        {
            "output": [
                {"tensor": "o", "role": "logits", "activation": "softmax", "exclusive": True, "classes": ["Object"]}
            ]
        },
        {
            "output": [
                {
                    "tensor": "o",
                    "role": "probability",
                    "activation": "none",
                    "exclusive": True,
                    "classes": ["background", "Object"],
                }
            ],
            "postprocess": {"threshold": 0.4},
        },
        {"postprocess": {"keep": "biggest"}},
    ],
)
def test_manifest_with_a_field_that_would_be_ignored_is_refused(tables: dict[str, Any]) -> None:
    """What cannot be meant is an error when the manifest is read, not silence when a patient is."""
    with pytest.raises(ValueError, match="validation error"):
        make_manifest(**tables)
