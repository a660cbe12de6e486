"""The contract of a plugin: its manifest plugin.toml (schema version 1), as frozen values.

A plugin is a folder; its manifest says which series it wants, how a tensor is made of them, how the output becomes
findings, and what those are called. A standard task needs no code. What this version does not implement has no field
here, so it is refused by name. `read_manifest` is the one way in.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from dicom_node.config.schema import SeriesMatch, Table
from dicom_node.imaging.appearance import MEASURES
from dicom_node.imaging.footprint import Shape, peak_bytes, planned
from dicom_node.imaging.geometry import Grid
from dicom_node.imaging.sliding import PadMode, held_voxels
from dicom_node.imaging.stacks import ReadPolicy, StackPreference
from dicom_node.imaging.steps import GreyFromColour, Step

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


class StackChoice(Table):
    """An entry of `stack` in [[input_series]]: which of several stacks in one series is meant, by one mark."""

    keyword: Annotated[str, Field(min_length=1)]
    """Keyword of the mark that sets stacks apart, such as EchoTime, DiffusionBValue or ComplexImageComponent."""
    prefer: Literal["smallest", "largest"] | None = None
    """Of the values that there are."""
    equals: str | float | None = None
    """A series without a stack of this value is refused."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.prefer is None) == (self.equals is None):
            raise ValueError("an entry of `stack` has `prefer` or `equals`, one of them")
        return self


class InputSeries(SeriesMatch):
    """[[input_series]]: which series fills a role."""

    role: str
    required: Literal[True] = True
    min_slices: Annotated[int, Field(ge=1)] = 2
    """Of the stack that is read; 1 takes single slices too."""
    stacks: Literal["choose", "refuse"] = "choose"
    """Of a series that holds several stacks: read one, chosen by `stack`, else the first of those with most slices,
    and say so; or refuse it."""
    stack: tuple[StackChoice, ...] = ()
    """In turn, before the number of slices counts."""
    missing_slices: Literal["refuse"] | Annotated[int, Field(ge=1, le=16)] = "refuse"
    """How many missing slices of a stack, in all, are interpolated; the result says which."""

    @property
    def policy(self) -> ReadPolicy:
        """Return what may become this role's volume."""
        return ReadPolicy(
            stacks=self.stacks,
            preferences=tuple(
                StackPreference(
                    keyword=one.keyword,
                    prefer=one.prefer,
                    equals=None if one.equals is None else f"{one.equals}",
                )
                for one in self.stack
            ),
            missing_slices=0 if self.missing_slices == "refuse" else self.missing_slices,
            min_slices=self.min_slices,
        )


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
    axes: Literal["NCDHW", "NCHW"] = "NCDHW"
    """Batch, channel, then the three array axes as the preprocessing left them; "NCHW" the last two (mode "slice")."""
    divisor: Annotated[int, Field(ge=1)] = 1
    """Each spatial axis is padded at its end to a multiple of this before a run; a window must be one already."""
    shape: Annotated[TensorShape | None, Field(exclude=True)] = None
    """With mode "whole": the sizes that come, batch and channel first. Changes no finding, so it is no part of the
    spec's digest. Windows say their shape themselves."""


class Preprocess(Table):
    """[preprocess]"""

    spec_version: Literal[1]
    step: tuple[Annotated[Step, Field(discriminator="kind")], ...]

    @model_validator(mode="after")
    def _colour_ends_first(self) -> Self:
        if any(isinstance(step, GreyFromColour) for step in self.step[1:]):
            raise ValueError('"grey_from_colour" is the first step: it is carried out while the images are read')
        return self

    @property
    def takes_colour(self) -> bool:
        """Return whether colour images are read, as their luma; without the step they are refused."""
        return bool(self.step) and isinstance(self.step[0], GreyFromColour)


class Inference(Table):
    """[inference]: the whole volume in one run, windows that overlap, or the slices of the first array axis."""

    mode: Literal["whole", "window", "slice"]
    window: tuple[int, int, int] | None = None
    """Voxels along the three array axes; mode "window" only."""
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    blend: Literal["constant", "gaussian"] = "gaussian"
    batch: Annotated[int, Field(ge=1)] = 1
    """Windows or slices in one run."""
    max_windows: Annotated[int, Field(ge=1)] = 4096
    """Of windows, or slices, in all."""
    pad_mode: PadMode = "minimum"
    """What lies beyond an array that is shorter than the window or no multiple of the divisor: its least value, 0, its
    last voxel repeated ("edge"), or its mirror image ("reflect")."""
    tta_axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()
    """Array axes (0 to 2) along which the image is mirrored, alone and together; the mean of all answers counts."""

    @model_validator(mode="after")
    def _window_goes_with_mode(self) -> Self:
        if (self.mode == "window") != (self.window is not None):
            raise ValueError('`window` is given with mode = "window", and only then')
        if len(set(self.tta_axes)) != len(self.tta_axes) or (self.mode == "slice" and 0 in self.tta_axes):
            raise ValueError("`tta_axes` are named once each; a network that sees one slice has no axis 0")
        return self

    @property
    def window_overlap(self) -> float:
        """Return by how much neighbouring windows overlap; slices do not."""
        return 0.0 if self.mode == "slice" else self.overlap


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
    """MiB. An image that would take more is refused before the network runs."""
    max_voxels: Annotated[int, Field(gt=0)] = 512 * 512 * 2000
    """Of the source volume."""


class PlausibilityCheck(Table):
    """[[plausibility.check]]: one thing measured of the image or of the findings, and what is plausible."""

    measure: str
    """A name of `imaging.appearance.MEASURES`; those that begin with "mask" are measured after the network."""
    low: float | None = None
    high: float | None = None
    action: Literal["withhold", "flag"] = "withhold"
    """"flag": the result is delivered, with the reason as a note in its report."""
    because: Annotated[str, Field(min_length=1)]
    """What the bound stands for; ends the sentence that people read."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.measure not in MEASURES:
            raise ValueError(f"there is no measure {self.measure!r}; there are {', '.join(MEASURES)}")
        if self.low is None and self.high is None:
            raise ValueError(f"measure {self.measure!r} needs `low`, `high` or both")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"measure {self.measure!r}: low is above high")
        return self


class TrainingStatistics(Table):
    """[plausibility.statistics]: the intensities of the training images, made by `model-build statistics`."""

    percentiles: tuple[Annotated[float, Field(ge=0, le=100)], ...] = Field(min_length=1)
    """Of the values inside the body, each divided by their median."""
    mean: tuple[float, ...]
    sd: tuple[Annotated[float, Field(gt=0)], ...]
    max_distance: Annotated[float, Field(gt=0)]
    """Root mean square of the deviations, in standard deviations."""
    action: Literal["withhold", "flag"] = "withhold"

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not len(self.percentiles) == len(self.mean) == len(self.sd):
            raise ValueError("`percentiles`, `mean` and `sd` have one number each for every percentile")
        return self


class Plausibility(Table):
    """[plausibility]: bounds outside which a result is withheld or flagged, in physical units."""

    total_volume_ml: tuple[float, float] | None = None
    """Of all findings together; an explicit "nothing found" is not measured by it."""
    min_findings: Annotated[int, Field(ge=0)] = 0
    """1: what is looked for is always there, so nothing found is withheld."""
    max_findings: Annotated[int, Field(ge=1)] | None = None
    min_distinct_values: Annotated[int, Field(ge=2)] | None = None
    """Of the source volume: a drawing has few, a scanner's noise has many."""
    source_extent_mm: tuple[float, float] | None = None
    """Shortest and longest allowed extent of the source volume along its slice axis."""
    source_mean: tuple[float, float] | None = None
    """Allowed mean of the preprocessed tensor: training statistics."""
    refuse_touching_border: bool = False
    """Withhold when a mask touches the first or last slice or an edge of the field of view."""
    body_above: float | None = None
    """What is brighter in the prepared image is the body; `check` and `statistics` need it."""
    check: tuple[PlausibilityCheck, ...] = ()
    statistics: TrainingStatistics | None = None

    @model_validator(mode="after")
    def _body_is_defined(self) -> Self:
        if (self.body_above is None) == bool(self.check or self.statistics):
            raise ValueError("`body_above` is given with [[plausibility.check]] or statistics, and only then")
        if len({check.measure for check in self.check}) != len(self.check):
            raise ValueError("each measure is checked once")
        return self


class Quality(Table):
    """[quality]: a rule of plugins/ that is done, or exempt with its reason."""

    rule: dict[str, str] = Field(default_factory=dict)


_FIRST_FIELDS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        table: frozenset(fields.split())
        for table, fields in {
            "spec": "input preprocess inference output postprocess plausibility",
            "input": "tensor roles dtype axes divisor",
            "preprocess": "spec_version step",
            "orient": "kind axes",
            "resample": "kind spacing_mm order anti_alias align",
            "fit": "kind shape value",
            "crop_foreground": "kind above margin_voxels largest_component",
            "clip": "kind low high",
            "normalise": "kind method low high clip mask_above",
            "pad": "kind divisor value",
            "denoise": "kind size_voxels",
            "inference": "mode window overlap blend batch max_windows",
            "output": "tensor role activation exclusive classes",
            "postprocess": "threshold min_volume_mm3 connectivity keep split fill_holes min_mean_contrast",
            "plausibility": "total_volume_ml max_findings source_extent_mm source_mean refuse_touching_border",
        }.items()
    }
)
"""Table of the spec, or kind of step -> the fields of the first version: these are digested whatever they say."""


def _meaning(table: str, said: Any, unusual: Any) -> Any:
    """Return what of a dumped table is digested: first fields always, later ones where they differ from the default."""
    if isinstance(said, list) and said and isinstance(said[0], dict):
        return [_meaning(table, one, other) for one, other in zip(said, unusual, strict=True)]
    if not isinstance(said, dict):
        return said
    first = _FIRST_FIELDS.get(said.get("kind", table) if table == "step" else table, frozenset(("kind",)))
    return {
        key: _meaning(key, value, unusual.get(key, value))
        for key, value in said.items()
        if key in first or key in unusual
    }


class InferenceSpec(Table):
    """Everything between file and finding, as one value that is hashed into provenance (ARCHITECTURE, decision 8)."""

    input: tuple[InputTensor, ...]
    preprocess: Preprocess
    inference: Inference
    output: tuple[OutputTensor, ...]
    postprocess: Postprocess
    plausibility: Plausibility

    def sha256(self) -> str:
        """Return the digest of the spec: the same for the same meaning, however plugin.toml is laid out.

        A field that came after the first version counts only where it is not at its default, so a manifest that does
        not use it keeps the digest under which its reference case and its past results are known.
        """
        said = self.model_dump(mode="json")
        unusual = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(_meaning("spec", said, unusual), sort_keys=True).encode()).hexdigest()


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
            if (tensor.axes == "NCHW") != (self.inference.mode == "slice"):
                raise ValueError(f'input {tensor.tensor!r}: axes "NCHW" go with mode = "slice", and only with it')
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

    def run_shape(self, prepared: Shape) -> tuple[int, ...]:
        """Return the shape of the tensor that one run of the network reads of a prepared array."""
        tensor, inference = self.input[0], self.inference
        padded = tuple(size + -size % tensor.divisor for size in prepared)
        if inference.mode == "slice":
            return inference.batch, len(tensor.roles), *padded[1:]
        return (inference.batch if inference.window else 1), len(tensor.roles), *(inference.window or padded)

    def memory_bytes(self, grid: Grid, *, prepared: Shape | None = None, network_bytes: int = 0) -> int:
        """Return about how much memory a job on a volume of `grid` takes at its peak, beside the process itself.

        Parameters
        ----------
        prepared
            Shape of the prepared array, once there is one; None: what the steps let expect.
        network_bytes
            Of one run with a tensor of `run_shape`; 0 where the model is not loaded, and the answer then is too low.
        """
        plan = planned(grid, self.preprocess.step)
        shape = prepared or plan.shape
        held = 0
        if shape is not None:
            run = self.inference
            window = (1, *shape[1:]) if run.mode == "slice" else run.window
            held = held_voxels(shape, window, run.window_overlap, run.batch) if window else math.prod(shape)
        return peak_bytes(
            grid.shape,
            preparing_bytes=plan.preparing_bytes,
            prepared=shape,
            n_classes=len(self.output[0].classes),
            held_voxels=held,
            network_bytes=network_bytes,
        )

    def too_large(self, grid: Grid, *, prepared: Shape | None = None, network_bytes: int = 0) -> str | None:
        """Return why a volume on `grid` is not read with [limits], None when it may be; see `memory_bytes`."""
        n_voxels = math.prod(grid.shape)
        if n_voxels > self.limits.max_voxels:
            return f"the volume has {n_voxels} voxels; the plugin takes {self.limits.max_voxels}"
        needed_mb = -(-self.memory_bytes(grid, prepared=prepared, network_bytes=network_bytes) // (1 << 20))
        if needed_mb > self.limits.ram_mb:
            return f"this image would take about {needed_mb} MB of memory; the plugin may use {self.limits.ram_mb} MB"
        return None

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
