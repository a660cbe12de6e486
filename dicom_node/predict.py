"""The one way from image to finding: volumes, a manifest and an engine go in, findings on the source grid come out.

Used by the child that infers, by the commands and by `model_build`, so that training, evaluation and the clinic cannot
drift apart. Above `imaging` and `engines`, below everything that knows of jobs. It never opens a file, and judges no
image that the manifest does not allow.

Order: size, tensors, gate on the source, preprocessing, gate on the input, network, way back to the source grid slab
by slab, classes, components (size, holes, contrast, largest), measurements, gate on the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dicom_node.clock import Clock
from dicom_node.engines import Engine, TensorSpec
from dicom_node.errors import EngineError, ModelMismatchError, NotApplicableError, RefusedInputError
from dicom_node.findings import Finding, Findings, Mask, Outcome, Provenance, on_images
from dicom_node.imaging.appearance import view_of
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.inverse import class_masks
from dicom_node.imaging.mask import components, filled, mean_contrast, outline, union
from dicom_node.imaging.measure import measure
from dicom_node.imaging.plausibility import (
    Doubt,
    doubts_about_input,
    doubts_about_result,
    doubts_about_source,
    flags,
    withheld_because,
)
from dicom_node.imaging.preprocess import Prepared, prepare
from dicom_node.imaging.sliding import Network, Region, pad_at_end, slide
from dicom_node.imaging.volume import Volume
from dicom_node.plugin_api import BACKGROUND, Manifest, OutputTensor, Postprocess


class Runs(Protocol):
    """What of an `Engine` answers."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return every output by name."""
        ...


def predict(volumes: Mapping[str, Volume], manifest: Manifest, engine: Engine, *, clock: Clock) -> Findings:
    """Return what the plugin finds.

    Parameters
    ----------
    volumes
        The volume of each input role.
    engine
        Made of the model that the manifest names, its digest verified (`engines.load_model`).

    Raises
    ------
    NotApplicableError
        A role has no volume, or the volume has more voxels than the plugin takes, or would take more memory.
    RefusedInputError
        The image holds values that are not finite, or cannot be prepared and the manifest has no gate that says so.
    ModelMismatchError
        The model's tensors are not those of the manifest.
    EngineError
        The runtime failed, or the network's answer is not finite.
    """
    check_signature(manifest, engine)
    volume = _checked_volume(volumes, manifest)
    bounds = manifest.plausibility
    doubts = doubts_about_source(bounds, volume)
    if withheld_because(doubts):
        return _answer(doubts, (), volume, _provenance(manifest, engine, 0.0))
    try:
        prepared = prepare(volume, manifest.preprocess.step)
    except RefusedInputError as error:
        if bounds.body_above is None:
            raise
        # Nearly empty, as a small test object in a large field: what has no body is no patient.
        doubts += (Doubt(reason=f"the image cannot be prepared: {error.reason}"),)
        return _answer(doubts, (), volume, _provenance(manifest, engine, 0.0))
    view = None if bounds.body_above is None else view_of(prepared, bounds.body_above)
    doubts += doubts_about_input(bounds, float(prepared.array.mean(dtype=np.float64)), view)
    if withheld_because(doubts):
        return _answer(doubts, (), volume, _provenance(manifest, engine, 0.0))
    network_bytes = engine.memory_bytes({manifest.input[0].tensor: manifest.run_shape(prepared.grid.shape)})
    if reason := manifest.too_large(volume.grid, prepared=prepared.grid.shape, network_bytes=network_bytes):
        raise NotApplicableError(reason)
    timed = _Timed(engine, clock)
    findings = find(run_model(prepared, manifest, timed), prepared.grid, volume, manifest)
    doubts += doubts_about_result(bounds, findings, volume.grid, view)
    return _answer(doubts, findings, volume, _provenance(manifest, engine, timed.duration_s))


class _Timed:
    """An engine whose time alone is counted: its answers are worked on between its runs."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self.duration_s = 0.0

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        started = self._clock.monotonic()
        outputs = self._engine.run(inputs)
        self.duration_s += self._clock.monotonic() - started
        return outputs


def run_model(prepared: Prepared, manifest: Manifest, engine: Runs) -> Iterator[Region]:
    """Return the probability of each class on the prepared grid, 0 to 1, region by region (`imaging.sliding`).

    Raises
    ------
    RefusedInputError
        More windows are needed than the manifest allows; at once, before anything has run.
    EngineError
        The runtime failed, or the answer is not finite; while regions are read.
    """
    tensor, inference = manifest.input[0], manifest.inference
    array = prepared.array[np.newaxis]
    run = _network(manifest, engine)
    if inference.mode == "whole":
        return _whole(array, run, manifest)
    window = inference.window
    if window is None:  # mode "slice": one slice, padded to what the network divides it by
        height, width = (size + -size % tensor.divisor for size in prepared.array.shape[1:])
        window = (1, height, width)
    return slide(
        array,
        run,
        window=window,
        overlap=inference.window_overlap,
        blend=inference.blend,
        batch=inference.batch,
        max_windows=inference.max_windows,
        pad_mode=inference.pad_mode,
    )


def _whole(array: NDArray[np.float32], run: Network, manifest: Manifest) -> Iterator[Region]:
    ends = [-size % manifest.input[0].divisor for size in array.shape[1:]]
    (probability,) = run(pad_at_end(array, ends, manifest.inference.pad_mode)[np.newaxis])
    z, y, x = array.shape[1:]
    yield Region(start=(0, 0, 0), values=probability[:, :z, :y, :x])


def _network(manifest: Manifest, engine: Runs) -> Network:
    """Return the network as a function from images (N, C, A0, A1, A2) to probabilities (N, K, A0, A1, A2)."""
    tensor, output = manifest.input[0], manifest.output[0]
    flat = tensor.axes == "NCHW"

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        images = batch[:, :, 0] if flat else batch
        logits = engine.run({tensor.tensor: np.ascontiguousarray(images)})[output.tensor]
        if logits.shape != (len(images), len(output.classes), *images.shape[2:]):
            raise ModelMismatchError(f"output {output.tensor!r} has the shape {logits.shape} for {images.shape}")
        if not np.isfinite(logits).all():
            raise EngineError(f"output {output.tensor!r} holds values that are not finite")
        probability = _activated(logits, output)
        return probability[:, :, np.newaxis] if flat else probability

    return _mirrored(run, manifest.inference.tta_axes)


def _mirrored(run: Network, axes: Sequence[int]) -> Network:
    """Return the network that gives the mean of its answers to the image mirrored along every choice of `axes`."""
    if not axes:
        return run
    choices = [choice for n in range(len(axes) + 1) for choice in combinations(axes, n)]

    def run_all(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        total: NDArray[np.float32] | None = None
        for choice in choices:
            spatial = tuple(axis + 2 for axis in choice)
            answer = np.flip(run(np.flip(batch, spatial)), spatial)
            total = answer.copy() if total is None else np.add(total, answer, out=total)
        assert total is not None  # the empty choice is always there
        return np.divide(total, len(choices), out=total)

    return run_all


def find(regions: Iterable[Region], prepared: Grid, volume: Volume, manifest: Manifest) -> tuple[Finding, ...]:
    """Return the findings in probabilities on the prepared grid, classes in the manifest's order."""
    output, postprocess = manifest.output[0], manifest.postprocess
    found = class_masks(
        regions,
        prepared,
        volume.grid,
        channels=[channel for channel, label in enumerate(output.classes) if label != BACKGROUND],
        exclusive=output.exclusive,
        threshold=postprocess.threshold,
    )
    findings: list[Finding] = []
    for one in found:
        for part in _parts(one.mask, volume, postprocess):
            measurements = measure(part, volume)
            findings.append(
                Finding(
                    number=len(findings) + 1,
                    label=output.classes[one.channel],
                    mask=part,
                    measurements=measurements,
                    contour=outline(part, measurements.diameter_long.slice_index),
                    probability=one.mean_inside(part),
                )
            )
    return tuple(findings)


def check_signature(manifest: Manifest, engine: Engine) -> None:
    """Refuse an engine whose tensors are not those of the manifest.

    Raises
    ------
    ModelMismatchError
        Names the tensor, what was declared and what the model has.
    """
    tensor, output, window = manifest.input[0], manifest.output[0], manifest.inference.window
    signature = engine.signature
    spatial: tuple[int | None, ...] = (None, None) if tensor.axes == "NCHW" else window or (None, None, None)
    _check_tensors("input", signature.inputs, tensor.tensor, (None, len(tensor.roles), *spatial))
    _check_tensors("output", signature.outputs, output.tensor, (None, len(output.classes), *spatial), others=True)


def _check_tensors(
    kind: str,
    declared: Sequence[TensorSpec],
    name: str,
    wanted: tuple[int | None, ...],
    *,
    others: bool = False,
) -> None:
    """Refuse when `name` is not among the tensors, is of another shape, or is not the only one (unless `others`)."""
    found = {spec.name: spec for spec in declared}
    if name not in found:
        raise ModelMismatchError(f"the model has no {kind} {name!r}; it has {', '.join(map(str, declared))}")
    if len(found) > 1 and not others:
        rest = ", ".join(repr(other) for other in found if other != name)
        raise ModelMismatchError(f"the model wants {kind}s that the manifest does not name: {rest}")
    spec = found[name]
    if spec.dtype != "float32":
        raise ModelMismatchError(f"{kind} {name!r} is {spec.dtype} in the model; the manifest declares float32")
    fits = len(spec.shape) == len(wanted) and all(
        has is None or has == size or (axis == 0 and size is None)
        for axis, (has, size) in enumerate(zip(spec.shape, wanted, strict=True))
    )
    if not fits:
        asked = TensorSpec(name=name, dtype="float32", shape=wanted)
        raise ModelMismatchError(f"{kind} of the model is {spec}; the manifest declares {asked}")


def _checked_volume(volumes: Mapping[str, Volume], manifest: Manifest) -> Volume:
    role = manifest.input[0].roles[0]
    if role not in volumes:
        raise NotApplicableError(f"there is no series for the input role {role!r}")
    volume = volumes[role]
    if reason := manifest.too_large(volume.grid):
        raise NotApplicableError(reason)
    if not np.isfinite(volume.array).all():
        raise RefusedInputError("the image holds values that are not finite")
    return volume


def _activated(logits: NDArray[np.float32], output: OutputTensor) -> NDArray[np.float32]:
    """Return the probabilities of logits (N, K, ...); beside the logits one array of their size is held."""
    if output.activation == "sigmoid":
        # The same as 1 / (1 + exp(-x)), and cannot overflow.
        values = np.tanh(0.5 * logits)
        values *= 0.5
        values += 0.5
        return np.asarray(values, dtype=np.float32)
    if output.activation == "softmax":
        values = logits - logits.max(axis=1, keepdims=True)
        np.exp(values, out=values)
        values /= values.sum(axis=1, keepdims=True)
        return np.asarray(values, dtype=np.float32)
    return logits


def _parts(mask: Mask, volume: Volume, postprocess: Postprocess) -> tuple[Mask, ...]:
    """Return what is left of a class after the post-processing, each a finding, largest first."""
    # A hair below: a component of exactly the least volume stays, whatever the rounding.
    min_voxels = math.ceil(postprocess.min_volume_mm3 / volume.grid.voxel_volume_mm3 - 1e-6)
    parts = components(mask, postprocess.connectivity, min_voxels=max(1, min_voxels))
    if postprocess.fill_holes:
        parts = tuple(filled(part) for part in parts)
    if (least := postprocess.min_mean_contrast) is not None:
        parts = tuple(part for part in parts if mean_contrast(part, volume) > least)
    # What no image shows is nobody's finding.
    parts = tuple(part for part in parts if on_images(part, volume.frames).array.any())
    if postprocess.keep == "largest":
        parts = parts[:1]
    return parts if postprocess.split or not parts else (union(parts),)


def _provenance(manifest: Manifest, engine: Engine, duration_s: float) -> Provenance:
    return Provenance(
        plugin=manifest.plugin.id,
        plugin_version=manifest.plugin.version,
        model_sha256=manifest.model[0].sha256,
        spec_sha256=manifest.spec_sha256(),
        engine=engine.fingerprint,
        duration_s=duration_s,
    )


def _answer(
    doubts: tuple[Doubt, ...], findings: tuple[Finding, ...], volume: Volume, provenance: Provenance
) -> Findings:
    reason = withheld_because(doubts)
    outcome: Outcome = "withheld" if reason else "result" if findings else "nothing_found"
    return Findings(
        outcome=outcome,
        reason=reason,
        findings=findings,
        frames=volume.frames,
        affine_lps=volume.grid.affine_lps,
        provenance=provenance,
        notes=volume.notes + flags(doubts),
    )
