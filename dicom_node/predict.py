"""The one way from image to finding: volumes, a manifest and an engine go in, findings on the source grid come out.

Used by the child that infers, by the commands and by `model_build`, so that training, evaluation and the clinic cannot
drift apart. Above `imaging` and `engines`, below everything that knows of jobs. It never opens a file, and judges no
image that the manifest does not allow.

Order: size, tensors, gate on the source, preprocessing, gate on the input, network, way back to the source grid slab
by slab, classes, components (size, holes, contrast, largest), measurements, gate on the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dicom_node.clock import Clock
from dicom_node.engines import Engine, TensorSpec
from dicom_node.errors import EngineError, ModelMismatchError, NotApplicableError, RefusedInputError
from dicom_node.findings import Finding, Findings, Mask, Outcome, Provenance
from dicom_node.imaging.appearance import view_of
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.mask import components, crop_mask, filled, mean_contrast, outline, union
from dicom_node.imaging.measure import measure
from dicom_node.imaging.plausibility import (
    Doubt,
    doubts_about_input,
    doubts_about_result,
    doubts_about_source,
    flags,
    withheld_because,
)
from dicom_node.imaging.preprocess import Box, Prepared, box_on, pad_to_multiple, prepare, to_source
from dicom_node.imaging.sliding import slide
from dicom_node.imaging.volume import Volume
from dicom_node.plugin_api import BACKGROUND, Manifest, OutputTensor, Postprocess

_SLAB_VOXELS = 2_000_000
"""Source voxels brought back at a time, every class together."""


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
        A role has no volume, or the volume has more voxels than the plugin takes.
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
    started = clock.monotonic()
    probability = run_model(prepared, manifest, engine)
    provenance = _provenance(manifest, engine, clock.monotonic() - started)
    findings = find(probability, prepared.grid, volume, manifest)
    doubts += doubts_about_result(bounds, findings, volume.grid, view)
    return _answer(doubts, findings, volume, provenance)


def run_model(prepared: Prepared, manifest: Manifest, engine: Engine) -> NDArray[np.float32]:
    """Return the probability of each class on the prepared grid, float32, (K, A0, A1, A2), 0 to 1.

    Raises
    ------
    RefusedInputError
        More windows are needed than the manifest allows.
    EngineError
        The runtime failed, or the answer is not finite.
    """
    tensor, output, inference = manifest.input[0], manifest.output[0], manifest.inference

    def run(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = engine.run({tensor.tensor: np.ascontiguousarray(batch)})[output.tensor]
        if logits.shape != (len(batch), len(output.classes), *batch.shape[2:]):
            raise ModelMismatchError(f"output {output.tensor!r} has the shape {logits.shape} for {batch.shape}")
        if not np.isfinite(logits).all():
            raise EngineError(f"output {output.tensor!r} holds values that are not finite")
        return _activated(logits, output)

    array = prepared.array[np.newaxis]
    if inference.window is not None:
        return slide(
            array,
            run,
            window=inference.window,
            overlap=inference.overlap,
            blend=inference.blend,
            batch=inference.batch,
            max_windows=inference.max_windows,
        )
    padded = pad_to_multiple(array, tensor.divisor, float(array.min()))
    z, y, x = prepared.array.shape
    (probability,) = run(padded[np.newaxis])
    return np.asarray(probability[:, :z, :y, :x])


def find(probability: NDArray[np.float32], prepared: Grid, volume: Volume, manifest: Manifest) -> tuple[Finding, ...]:
    """Return the findings in a probability (K, A0, A1, A2) on the prepared grid, classes in the manifest's order."""
    output, postprocess = manifest.output[0], manifest.postprocess
    findings: list[Finding] = []
    for channel, mask in _class_masks(probability, prepared, volume.grid, output, postprocess.threshold):
        for part in _parts(mask, volume, postprocess):
            measurements = measure(part, volume)
            findings.append(
                Finding(
                    number=len(findings) + 1,
                    label=output.classes[channel],
                    mask=part,
                    measurements=measurements,
                    contour=outline(part, measurements.diameter_long.slice_index),
                    probability=_mean_inside(part, probability[channel], prepared, volume.grid),
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
    spatial = window or (None, None, None)
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
    n_voxels = math.prod(volume.grid.shape)
    if n_voxels > manifest.limits.max_voxels:
        raise NotApplicableError(f"the volume has {n_voxels} voxels; the plugin takes {manifest.limits.max_voxels}")
    if not np.isfinite(volume.array).all():
        raise RefusedInputError("the image holds values that are not finite")
    return volume


def _activated(logits: NDArray[np.float32], output: OutputTensor) -> NDArray[np.float32]:
    """Return the probabilities of logits (N, K, ...)."""
    if output.activation == "sigmoid":
        # The same as 1 / (1 + exp(-x)), and cannot overflow.
        return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits), dtype=np.float32)
    if output.activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
    return logits


def _class_masks(
    probability: NDArray[np.float32], prepared: Grid, source: Grid, output: OutputTensor, threshold: float
) -> Iterator[tuple[int, Mask]]:
    """Yield (channel, mask on the source grid) of every class that is found, the background left out."""
    channels = [channel for channel, label in enumerate(output.classes) if label != BACKGROUND]
    # A class that wins somewhere has at least an equal share there.
    least = 1 / len(output.classes) if output.exclusive else threshold
    box = _box_above(probability[channels].max(axis=0) >= least, prepared, source)
    if box is None:
        return
    shape = tuple(part.stop - part.start for part in box)
    held = {channel: np.zeros(shape, dtype=bool) for channel in channels}
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2] * len(output.classes)))
    for start in range(0, shape[0], step):
        place = slice(start, min(start + step, shape[0]))
        slab = (slice(box[0].start + place.start, box[0].start + place.stop), box[1], box[2])
        if output.exclusive:
            every = np.stack([to_source(each, prepared, source, slab) for each in probability])
            # Outside the prepared field every class is 0: nobody wins there.
            winner = np.where(every.max(axis=0) > 0, every.argmax(axis=0), -1)
            for channel in channels:
                held[channel][place] = winner == channel
        else:
            for channel in channels:
                held[channel][place] = to_source(probability[channel], prepared, source, slab) >= threshold
    offset = (box[0].start, box[1].start, box[2].start)
    for channel in channels:
        mask = crop_mask(held[channel], offset)
        if mask is not None:
            yield channel, mask


def _box_above(possible: NDArray[np.bool_], prepared: Grid, source: Grid) -> Box | None:
    """Return the box of the source outside which no interpolated value can be above the threshold."""
    bounds = crop_mask(possible)
    if bounds is None:
        return None
    z, y, x = (slice(at, at + size) for at, size in zip(bounds.offset, bounds.array.shape, strict=True))
    box = box_on(source, prepared, (z, y, x))
    return box if all(part.stop > part.start for part in box) else None


def _parts(mask: Mask, volume: Volume, postprocess: Postprocess) -> tuple[Mask, ...]:
    """Return what is left of a class after the post-processing, each a finding, largest first."""
    # A hair below: a component of exactly the least volume stays, whatever the rounding.
    min_voxels = math.ceil(postprocess.min_volume_mm3 / volume.grid.voxel_volume_mm3 - 1e-6)
    parts = components(mask, postprocess.connectivity, min_voxels=max(1, min_voxels))
    if postprocess.fill_holes:
        parts = tuple(filled(part) for part in parts)
    if (least := postprocess.min_mean_contrast) is not None:
        parts = tuple(part for part in parts if mean_contrast(part, volume) > least)
    if postprocess.keep == "largest":
        parts = parts[:1]
    return parts if postprocess.split or not parts else (union(parts),)


def _mean_inside(mask: Mask, probability: NDArray[np.float32], prepared: Grid, source: Grid) -> float:
    z, y, x = (slice(at, at + size) for at, size in zip(mask.offset, mask.array.shape, strict=True))
    inside = to_source(probability, prepared, source, (z, y, x))[mask.array]
    return float(np.clip(inside.mean(dtype=np.float64), 0.0, 1.0))


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
