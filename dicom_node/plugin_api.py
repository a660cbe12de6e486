"""The contract of a plugin: its manifest plugin.toml (schema version 1), as frozen values.

A plugin is a folder; its manifest says which series it wants, how a tensor is made of them, how the output becomes
findings, and what those are called. A standard task needs no code. What this version does not implement has no field
here, so it is refused by name. `read_manifest` is the one way in.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from dicom_node.config.schema import SeriesMatch, Table
from dicom_node.imaging.steps import Step

if TYPE_CHECKING:
    from dicom_node.engines.base import ShapeRange

EngineName: TypeAlias = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]

Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

BACKGROUND = "background"
"""The class that makes no segment."""


class PluginTable(Table):
    """[plugin]"""

    id: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]
    """Equals the folder's name."""
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    """What radiologists read as the algorithm's name."""
    intended_use: Annotated[str, Field(min_length=1)]
    task: Literal["segmentation"]
    demonstrator: bool
    """True: nothing clinical; results say so."""


class InputSeries(SeriesMatch):
    """[[input_series]]: which series fills a role."""

    role: str
    required: Literal[True] = True
    min_slices: Annotated[int, Field(ge=1)] = 2


class TensorShape(Table):
    """shape of [[input]]: what an engine with built-in shapes (TensorRT) is built for."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    """What is made fastest."""
    max: tuple[int, ...]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if not len(self.min) == len(self.opt) == len(self.max) or not all(
            0 < a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ValueError("shape needs 0 < min <= opt <= max along each axis, batch and channel included")
        return self


class InputTensor(Table):
    """[[input]]: one input tensor of the model."""

    tensor: str
    roles: tuple[str, ...] = Field(min_length=1, max_length=1)
    """The role that fills each channel; one channel in this version."""
    dtype: Literal["float32"] = "float32"
    axes: Literal["NCDHW"] = "NCDHW"
    """Batch, channel, then the three array axes as the preprocessing left them."""
    divisor: Annotated[int, Field(ge=1)] = 1
    """Each spatial axis is padded at its end to a multiple of this before a run; a window must be one already."""
    shape: Annotated[TensorShape | None, Field(exclude=True)] = None
    """With mode "whole": the sizes that come, batch and channel first. Changes no finding, so it is no part of the
    spec's digest. Windows say their shape themselves."""


class Preprocess(Table):
    """[preprocess]"""

    spec_version: Literal[1]
    step: tuple[Annotated[Step, Field(discriminator="kind")], ...]


class Inference(Table):
    """[inference]: the whole volume in one run, or windows that overlap."""

    mode: Literal["whole", "window"]
    window: tuple[int, int, int] | None = None
    """Voxels along the three array axes; mode "window" only."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    blend: Literal["constant", "gaussian"] = "gaussian"
    batch: Annotated[int, Field(ge=1)] = 1
    max_windows: Annotated[int, Field(ge=1)] = 4096

    @model_validator(mode="after")
    def _window_goes_with_mode(self) -> Self:
        if (self.mode == "window") != (self.window is not None):
            raise ValueError('`window` is given with mode = "window", and only then')
        return self


class OutputTensor(Table):
    """[[output]]: one output tensor of the model; its channels are the classes."""

    tensor: str
    role: Literal["logits", "probability"]
    activation: Literal["none", "sigmoid", "softmax"]
    exclusive: bool
    """True: one class a voxel (argmax); False: a threshold for each class, masks may overlap."""
    classes: tuple[str, ...] = Field(min_length=1)
    """Label of each channel; "background" makes no segment."""

    @model_validator(mode="after")
    def _makes_probabilities(self) -> Self:
        if (self.role == "logits") == (self.activation == "none"):
            raise ValueError('logits need an activation, "sigmoid" or "softmax"; a probability has "none"')
        if len(self.classes) == 1 and (self.exclusive or self.activation == "softmax"):
            raise ValueError("one class alone is neither exclusive nor a softmax")
        if len(set(self.classes)) != len(self.classes) or set(self.classes) == {BACKGROUND}:
            raise ValueError("classes are named once each, and one of them is not the background")
        return self


class Postprocess(Table):
    """[postprocess]"""

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of each class's probability on the source grid; only where no output is exclusive."""
    min_volume_mm3: Annotated[float, Field(ge=0)] = 0.0
    connectivity: Literal[6, 18, 26] = 26
    keep: Literal["all", "largest"] = "all"
    """Of the connected components of a class."""
    split: bool = False
    """True: each component is a finding of its own; False: one finding a class."""
    fill_holes: bool = False
    min_mean_contrast: float | None = None
    """A component is kept only if its mean exceeds that of a two-voxel shell around it by this much, in the unit of the
    modality."""


class Code(Table):
    """A coded concept (PS3.3 Table 8.8-1)."""

    value: str = Field(max_length=16)
    scheme: str
    meaning: str = Field(max_length=64)


class Segment(Table):
    """[[segment]]: what a class is called."""

    label: str = Field(max_length=64)
    category: Code
    """CID 7150 Segmentation Property Category."""
    type: Code
    anatomy: Code | None = None
    colour: tuple[int, int, int]
    """Recommended display colour, sRGB 0..255."""


class Model(Table):
    """[[model]]: the weights."""

    file: str
    """Relative to the plugin's folder, or, where `installed` is true, to data_dir/models/<plugin id>."""
    sha256: Sha256
    source: str
    licence: str
    precision: Literal["fp32"] = "fp32"
    installed: bool = False
    """Not shipped: `dicom-node plugins install` brings the file."""


class Runtime(Table):
    """[runtime]"""

    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    """What may serve, once it was compared with the reference (`model-build compare`); jobs count for the first. The
    reference, onnxruntime, is among them: it serves when no other can."""
    tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-3
    """Greatest difference of an engine's output from the reference's, as a part of the reference's greatest value."""
    threads: Annotated[int, Field(ge=0)] = 0
    """0: the machine's cores, shared out among the slots; more than a slot's share are never used."""

    @model_validator(mode="after")
    def _keeps_the_reference(self) -> Self:
        if "onnxruntime" not in self.engines or len(set(self.engines)) != len(self.engines):
            raise ValueError('engines are named once each, and "onnxruntime", the reference, is one of them')
        return self


class Limits(Table):
    """[limits]: what one job may cost; the child that goes over is ended."""

    time_s: Annotated[float, Field(gt=0)]
    ram_mb: Annotated[int, Field(gt=0)]
    max_voxels: Annotated[int, Field(gt=0)] = 512 * 512 * 2000
    """Of the source volume."""


class Plausibility(Table):
    """[plausibility]: bounds outside which a result is withheld, in physical units."""

    total_volume_ml: tuple[float, float] | None = None
    """Of all findings together; an explicit "nothing found" is not measured by it."""
    max_findings: Annotated[int, Field(ge=1)] | None = None
    source_extent_mm: tuple[float, float] | None = None
    """Shortest and longest allowed extent of the source volume along its slice axis."""
    source_mean: tuple[float, float] | None = None
    """Allowed mean of the preprocessed tensor: training statistics."""
    refuse_touching_border: bool = False
    """Withhold when a mask touches the first or last slice or an edge of the field of view."""


class Quality(Table):
    """[quality]: a rule of plugins/ that is done, or exempt with its reason."""

    rule: dict[str, str] = Field(default_factory=dict)


class InferenceSpec(Table):
    """Everything between file and finding, as one value that is hashed into provenance (ARCHITECTURE, decision 8)."""

    input: tuple[InputTensor, ...]
    preprocess: Preprocess
    inference: Inference
    output: tuple[OutputTensor, ...]
    postprocess: Postprocess
    plausibility: Plausibility

    def sha256(self) -> str:
        """Return the digest of the spec: the same for the same meaning, however plugin.toml is laid out."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


class Manifest(Table):
    """plugin.toml."""

    schema_version: Literal[1]
    plugin: PluginTable
    input_series: tuple[InputSeries, ...] = Field(min_length=1, max_length=1)
    input: tuple[InputTensor, ...] = Field(min_length=1, max_length=1)
    preprocess: Preprocess
    inference: Inference
    output: tuple[OutputTensor, ...] = Field(min_length=1, max_length=1)
    postprocess: Postprocess = Postprocess()
    segment: tuple[Segment, ...] = Field(min_length=1)
    model: tuple[Model, ...] = Field(min_length=1, max_length=1)
    runtime: Runtime = Runtime()
    limits: Limits
    plausibility: Plausibility = Plausibility()
    quality: Quality = Quality()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        roles = {series.role for series in self.input_series}
        for tensor in self.input:
            for role in tensor.roles:
                if role not in roles:
                    raise ValueError(f"input {tensor.tensor!r}: no [[input_series]] has the role {role!r}")
        labels = {segment.label for segment in self.segment}
        for output in self.output:
            for label in output.classes:
                if label != BACKGROUND and label not in labels:
                    raise ValueError(f"output {output.tensor!r}: no [[segment]] has the label {label!r}")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for output in self.output:
            if output.exclusive and "threshold" in self.postprocess.model_fields_set:
                raise ValueError(f"output {output.tensor!r} is exclusive (argmax), so `threshold` would be ignored")
        window = self.inference.window
        for tensor in self.input:
            if window is not None and any(edge % tensor.divisor for edge in window):
                raise ValueError(f"input {tensor.tensor!r}: window {window} is no multiple of {tensor.divisor}")
        return self

    @property
    def spec(self) -> InferenceSpec:
        """Return what happens between file and finding."""
        return InferenceSpec(
            input=self.input,
            preprocess=self.preprocess,
            inference=self.inference,
            output=self.output,
            postprocess=self.postprocess,
            plausibility=self.plausibility,
        )

    def spec_sha256(self) -> str:
        """Return the digest of the spec."""
        return self.spec.sha256()

    def shape_ranges(self) -> tuple[ShapeRange, ...]:
        """Return what an engine with built-in shapes is built for: the windows, or `shape`; none where none is said."""
        # The runtimes stay out of programs that only read manifests.
        from dicom_node.engines.base import ShapeRange

        window, batch = self.inference.window, self.inference.batch
        ranges = []
        for each in self.input:
            if window is not None:
                one, many = ((size, len(each.roles), *window) for size in (1, batch))
                ranges.append(ShapeRange(tensor=each.tensor, least=one, usual=many, most=many))
            elif (shape := each.shape) is not None:
                ranges.append(ShapeRange(tensor=each.tensor, least=shape.min, usual=shape.opt, most=shape.max))
        return tuple(ranges)
