"""The typed steps between a source volume and a network's tensor: plain values, in the order in which they run.

`preprocess` carries them out and undoes the geometric ones. They are written in plugin.toml as [[preprocess.step]]
tables whose `kind` names the class; an unknown key is refused when the manifest is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

_STRICT = {"extra": "forbid"}
"""Read by pydantic when plugin_api validates a manifest; this module itself does not know pydantic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orient:
    """Permute and flip the voxel axes to the nearest of the wanted directions; no interpolation."""

    __pydantic_config__ = _STRICT
    kind: Literal["orient"] = "orient"
    axes: str
    """Direction in which each *array* axis increases, first axis first, of L R (x), P A (y), S I (z): "SPL" is a
    DICOM-like axial (Z, Y, X) array; "LIA" is FreeSurfer's conformed order."""

    def __post_init__(self) -> None:
        if len(self.axes) != 3 or any(len(set(pair) & set(self.axes)) != 1 for pair in ("LR", "PA", "SI")):
            raise ValueError(f'axes {self.axes!r}: one letter each of L or R, P or A, S or I, for example "SPL"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Resample:
    """Interpolate onto a right-angled grid over the same field of view; shear (gantry tilt) is taken out."""

    __pydantic_config__ = _STRICT
    kind: Literal["resample"] = "resample"
    spacing_mm: tuple[float, float, float]
    """Along the three array axes after `orient`."""
    order: Literal[0, 1, 3] = 1
    anti_alias: bool = False
    """Smooth with a Gaussian before shrinking by more than 1.5."""
    align: Literal["source", "patient"] = "source"
    """Directions of the new axes: those of the array, or the nearest ones of the patient, so that an oblique
    acquisition comes out straight."""
    coarse_order: Literal[0, 1] | None = None
    """Order along an axis whose spacing is far larger than both others (thick slices), where splines would ring: as
    nnU-Net does. None: `order` along every axis."""
    coarse_ratio: float = 3.0
    """How many times the larger of the other two spacings makes an axis coarse."""

    def __post_init__(self) -> None:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}: lengths are above 0")
        if self.coarse_order is not None and self.coarse_order >= self.order:
            raise ValueError(f"coarse_order {self.coarse_order} is below order {self.order}, or it says nothing")
        if self.coarse_ratio <= 1:
            raise ValueError(f"coarse_ratio {self.coarse_ratio:g}: a coarse axis has the larger spacing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Crop or pad each axis symmetrically to a fixed shape, the centre kept."""

    __pydantic_config__ = _STRICT
    kind: Literal["fit"] = "fit"
    shape: tuple[int, int, int]
    value: float | Literal["minimum"] = "minimum"


@dataclass(frozen=True, slots=True, kw_only=True)
class CropForeground:
    """Crop to the bounding box of what lies above a threshold, plus a margin: the head, the body, the phantom."""

    __pydantic_config__ = _STRICT
    kind: Literal["crop_foreground"] = "crop_foreground"
    above: float | Literal["otsu"]
    """In the unit of the array at this step; "otsu": the threshold that parts its values best in two (Otsu 1979)."""
    margin_voxels: int = 0
    largest_component: bool = False
    opening_voxels: int = 0
    """Before the largest component is chosen, what is thinner than twice this is cut off: the table from the body."""

    def __post_init__(self) -> None:
        if min(self.margin_voxels, self.opening_voxels) < 0:
            raise ValueError("margin_voxels and opening_voxels are 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Limit the values to an interval."""

    __pydantic_config__ = _STRICT
    kind: Literal["clip"] = "clip"
    low: float
    high: float
    by: Literal["value", "percentile"] = "value"
    """What `low` and `high` are: values, or percentiles (0..100) of the array."""
    mask_above: float | None = None
    """Percentiles over voxels above this value only; None: over all."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.by == "percentile" and not (self.low >= 0 and self.high <= 100):
            raise ValueError("percentiles lie between 0 and 100")
        if self.by == "value" and self.mask_above is not None:
            raise ValueError("a clip by value takes no `mask_above`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalise:
    """Scale the values: by fixed numbers, or by statistics of the array."""

    __pydantic_config__ = _STRICT
    kind: Literal["normalise"] = "normalise"
    method: Literal["linear", "percentile", "min_max", "z_score"]
    low: float | None = None
    """linear: the value that becomes 0; percentile: the percentile (0..100) that becomes 0."""
    high: float | None = None
    """linear: the value that becomes 1; percentile: the percentile that becomes 1."""
    clip: bool = False
    """Limit the result to 0..1 (linear, percentile, min_max)."""
    mask_above: float | None = None
    """Statistics over voxels above this value only; None: over all."""
    scope: Literal["volume", "slice", "mask"] = "volume"
    """"volume": one scale for all voxels; "slice": each slice of the first array axis by its own statistics (without
    contrast it becomes 0); "mask": as "volume", but what does not lie above `mask_above` becomes 0."""
    exclude_padding: bool = False
    """Statistics leave out the voxels at the array's minimum: pixel padding, and what `resample` and `fit` put around
    the images."""

    def __post_init__(self) -> None:
        if self.method == "linear" and (self.scope == "slice" or self.exclude_padding):
            raise ValueError("method 'linear' has no statistics, so neither scope = \"slice\" nor `exclude_padding`")
        if self.scope == "mask" and self.mask_above is None:
            raise ValueError('scope = "mask" needs `mask_above`')
        has_interval = self.low is not None and self.high is not None
        if self.method in ("linear", "percentile"):
            if not has_interval or not self.low < self.high:  # type: ignore[operator]
                raise ValueError(f"method {self.method!r} needs `low` and `high`, low below high")
        elif self.low is not None or self.high is not None:
            raise ValueError(f"method {self.method!r} takes neither `low` nor `high`")
        if self.method == "percentile" and not (0 <= self.low and self.high <= 100):  # type: ignore[operator]
            raise ValueError("percentiles lie between 0 and 100")
        if self.method == "linear" and self.mask_above is not None and self.scope != "mask":
            raise ValueError("method 'linear' takes no `mask_above`")
        if self.method == "z_score" and self.clip:
            raise ValueError("method 'z_score' takes no `clip`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad:
    """Pad each axis until its length is at least that of `shape` and a multiple of `divisor`."""

    __pydantic_config__ = _STRICT
    kind: Literal["pad"] = "pad"
    divisor: int = 1
    value: float | Literal["minimum", "edge", "reflect"] = "minimum"
    """What is put there: a number, the array's minimum, its last voxel repeated, or its mirror image."""
    shape: tuple[int, int, int] | None = None
    side: Literal["end", "both"] = "end"
    """Where: after the last voxel, or half of it before the first (the odd one at the end)."""

    def __post_init__(self) -> None:
        if self.divisor < 1 or min(self.shape or (1,)) < 1:
            raise ValueError("divisor and shape are 1 or more")
        if self.divisor == 1 and self.shape is None:
            raise ValueError("a pad has a `divisor` or a `shape`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoise:
    """Median filter over a cube."""

    __pydantic_config__ = _STRICT
    kind: Literal["denoise"] = "denoise"
    size_voxels: int = 3
    """Edge of the cube, odd: an even one would shift the image by half a voxel."""

    def __post_init__(self) -> None:
        if self.size_voxels < 1 or self.size_voxels % 2 == 0:
            raise ValueError(f"size_voxels {self.size_voxels} is not odd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enhance:
    """Change the contrast between the array's least and largest value; the result is 0 to 1."""

    __pydantic_config__ = _STRICT
    kind: Literal["enhance"] = "enhance"
    method: Literal["clahe", "gamma"]
    """"clahe": equalise the histogram of tiles, contrast limited (Zuiderveld 1994), 256 grey values; "gamma": raise the
    value, scaled to 0..1, to the power of `gamma`."""
    gamma: float = 1.0
    clip_limit: float = 0.01
    """clahe: the largest part of a tile's voxels that one grey value may count, 0 to 1; 1 limits nothing."""
    tiles: int = 8
    """clahe: tiles along each axis."""
    scope: Literal["volume", "slice"] = "volume"
    """Least and largest value, and tiles, of the whole array or of each slice of the first array axis."""

    def __post_init__(self) -> None:
        if self.gamma <= 0 or not 0 < self.clip_limit <= 1 or self.tiles < 1:
            raise ValueError("gamma and tiles are above 0, clip_limit lies between 0 and 1")
        if self.method == "clahe" and self.gamma != 1.0:
            raise ValueError("method 'clahe' takes no `gamma`")
        if self.method == "gamma" and self.gamma == 1.0:
            raise ValueError("method 'gamma' needs a `gamma` other than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class GreyFromColour:
    """Take colour images too: their luma, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), is the grey value.

    Carried out while the images are read, so it stands first; grey images stay as they are.
    """

    __pydantic_config__ = _STRICT
    kind: Literal["grey_from_colour"] = "grey_from_colour"


Step: TypeAlias = Orient | Resample | Fit | CropForeground | Clip | Normalise | Pad | Denoise | Enhance | GreyFromColour
