"""Routes, requirements and series views for the tests of routing, made as the node makes them."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset

from dicom_node.config import Config, parse_toml
from dicom_node.config.schema import Condition, Route
from dicom_node.plugin_api import InputSeries
from dicom_node.study import SeriesView, StudyView

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
MR_ONLY = '[route.series]\nmatch = [{ keyword = "Modality", equals = "MR" }]\n'


def header(**values: object) -> dict[str, dict[str, Any]]:
    """Return a DICOM JSON header, made by pydicom as the reader makes it."""
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return dict(ds.to_json_dict())


def series(uid: str = "1.1", n_images: int = 20, spacing: float | None = 1.0, **values: object) -> SeriesView:
    """Return an MR series of two days before NOW; `values` are attributes of its header."""
    return SeriesView(
        series_instance_uid=uid,
        header=header(**{"Modality": "MR", "StudyDate": "20260308", **values}),
        n_images=n_images,
        n_instances=max(n_images, 1),
        calling_ae="CT1 ",
        called_ae="DICOM_NODE",
        slice_spacing_mm=spacing,
        image_digests=tuple((f"{uid}.{number}", f"{number:064x}") for number in range(n_images)),
    )


def study(*views: SeriesView) -> StudyView:
    """Return a study of these series."""
    return StudyView(study_instance_uid="1", series=views, first_received=NOW, last_received=NOW)


def route(text: str = "", plugin: str = "p") -> Route:
    """Return the route of a configuration, read as from its file."""
    whole = f'[[route]]\nname = "r"\nplugin = "{plugin}"\n{text}'
    return parse_toml(whole, Path("config.toml"), Config).route[0]


def condition(text: str) -> Condition:
    """Return a condition, written as the inline table of a file."""
    return Condition.model_validate(tomllib.loads(f"c = {text}")["c"])


def requirement(**values: object) -> InputSeries:
    """Return a plugin's requirement of at least two slices."""
    return InputSeries.model_validate({"role": "image", "min_slices": 2, **values})
