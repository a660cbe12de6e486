"""What the plausibility gate of a plugin is held against: intensities and appearance of images that it is meant for.

Each image is prepared by the plugin's own steps and seen as the gate sees it. The result is the table that goes into
plugin.toml as [plausibility.statistics], and the range of every measure, from which bounds of [[plausibility.check]]
are chosen by hand: their margin is a matter of anatomy, not of the few images at hand. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dicom_node.errors import UsageError
from dicom_node.imaging import Volume, prepare
from dicom_node.imaging.appearance import MEASURES, ImageMeasure, percentiles_of, view_of
from dicom_node.plugin_api import Manifest, TrainingStatistics
from dicom_node.reading import find_files, group_series, load_volume, read_nifti
from model_build.volumes import volume_from_array

__all__ = ["PERCENTILES", "Appearance", "appearance_of", "as_toml", "read_image", "statistics_of"]

PERCENTILES = (5.0, 10.0, 25.0, 75.0)
"""Of the body; their median is 1 by definition. Those above hang on fat near the coil, and on what a phantom holds."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Appearance:
    """One image as the gate sees it."""

    name: str
    percentiles: tuple[float, ...]
    """At `PERCENTILES`, over the median."""
    measures: dict[str, float]
    """Of the image, before any network."""


def appearance_of(name: str, volume: Volume, manifest: Manifest) -> Appearance:
    """Return what the gate of the manifest sees of a volume.

    Raises
    ------
    UsageError
        The manifest does not say what the body is, or the image has none.
    """
    above = manifest.plausibility.body_above
    if above is None:
        raise UsageError(f"{manifest.plugin.id}: [plausibility] has no body_above, so there is nothing to measure")
    view = view_of(prepare(volume, manifest.preprocess.step), above)
    percentiles = percentiles_of(view, PERCENTILES)
    if not np.isfinite(percentiles).all():
        raise UsageError(f"{name}: nothing lies above body_above = {above:g} in the prepared image")
    return Appearance(
        name=name,
        percentiles=tuple(float(value) for value in percentiles),
        measures={key: float(each.of(view)) for key, each in MEASURES.items() if isinstance(each, ImageMeasure)},
    )


def read_image(path: Path) -> Volume:
    """Return the volume of a NIfTI file (an MR, only its grid is known) or of a folder of one series.

    Raises
    ------
    UsageError
        The folder holds no series, or several.
    """
    if path.name.endswith((".nii", ".nii.gz")):
        array, affine = read_nifti(path)
        return volume_from_array(array.astype(np.float32), affine, modality="MR")
    series = [each for each in group_series(find_files(path))[0] if each.images]
    if len(series) != 1:
        raise UsageError(f"{path.name} holds {len(series)} series with images; name the folder of one")
    return load_volume([image.path for image in series[0].images])


def statistics_of(appearances: Iterable[Appearance], *, max_distance: float, least_sd: float) -> TrainingStatistics:
    """Return the statistics of these images; no spread is below `least_sd`, for few images make too narrow a gate.

    Raises
    ------
    UsageError
        There are fewer than two images.
    """
    found = np.array([each.percentiles for each in appearances])
    if len(found) < 2:
        raise UsageError("statistics need at least two images")
    return TrainingStatistics(
        percentiles=PERCENTILES,
        mean=tuple(round(float(value), 3) for value in found.mean(axis=0)),
        sd=tuple(round(max(least_sd, float(value)), 3) for value in found.std(axis=0, ddof=1)),
        max_distance=max_distance,
    )


def as_toml(statistics: TrainingStatistics) -> str:
    """Return the table as it stands in plugin.toml."""

    def numbers(values: Sequence[float]) -> str:
        return "[" + ", ".join(f"{value:g}" if value % 1 else f"{value:.1f}" for value in values) + "]"

    return "\n".join(
        [
            "[plausibility.statistics]",
            f"percentiles = {numbers(statistics.percentiles)}",
            f"mean = {numbers(statistics.mean)}",
            f"sd = {numbers(statistics.sd)}",
            f"max_distance = {statistics.max_distance:g}",
        ]
    )
