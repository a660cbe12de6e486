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

    def __post_init__(self) -> None:
        if min(self.spacing_mm) <= 0:
            raise ValueError(f"spacing_mm {self.spacing_mm}: lengths are above 0")


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
    above: float
    """In the unit of the array at this step."""
    margin_voxels: int = 0
    largest_component: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Limit the values to an interval."""

    __pydantic_config__ = _STRICT
    kind: Literal["clip"] = "clip"
    low: float
    high: float


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

    def __post_init__(self) -> None:
        has_interval = self.low is not None and self.high is not None
        if self.method in ("linear", "percentile"):
            if not has_interval or not self.low < self.high:  # type: ignore[operator]
                raise ValueError(f"method {self.method!r} needs `low` and `high`, low below high")
        elif self.low is not None or self.high is not None:
            raise ValueError(f"method {self.method!r} takes neither `low` nor `high`")
        if self.method == "percentile" and not (0 <= self.low and self.high <= 100):  # type: ignore[operator]
            raise ValueError("percentiles lie between 0 and 100")
        if self.method == "linear" and self.mask_above is not None:
            raise ValueError("method 'linear' takes no `mask_above`")
        if self.method == "z_score" and self.clip:
            raise ValueError("method 'z_score' takes no `clip`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad:
    """Pad each axis at its end until its length is a multiple of `divisor`."""

    __pydantic_config__ = _STRICT
    kind: Literal["pad"] = "pad"
    divisor: int
    value: float | Literal["minimum"] = "minimum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoise:
    """Median filter."""

    __pydantic_config__ = _STRICT
    kind: Literal["denoise"] = "denoise"
    size_voxels: int = 3


Step: TypeAlias = Orient | Resample | Fit | CropForeground | Clip | Normalise | Pad | Denoise
