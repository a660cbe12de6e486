"""Studies made from a phantom: a small region around its largest object, under new UIDs, changed as a test asks.

Small, because these tests ask how a study is treated and not what is found in it; one object is in it all the same,
so that there are a segmentation and a report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

EXTENT_MM = 63.0
"""Along each axis: one window of the network, and just not too small for the plausibility gate."""


@dataclass(frozen=True)
class Variant:
    """A study on disk, slice by slice along its normal."""

    folder: Path
    uid: str
    series_uid: str
    files: list[Path]
    sop_instance_uids: list[str]


def slices_around_object(dicom: Path, truth: list[dict[str, Any]]) -> list[Dataset]:
    """Return the slices of a phantom around its largest object, in order along the normal, each cut out around it."""
    largest = max(truth, key=lambda one: float(one["volume_ml"]))
    centre = np.array(largest["centre_lps_mm"], float)
    datasets = [pydicom.dcmread(path) for path in sorted(dicom.iterdir())]
    along_row, along_column = np.array(datasets[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(along_row, along_column)
    datasets.sort(key=lambda one: float(normal @ np.array(one.ImagePositionPatient, float)))
    distance = [abs(float(normal @ (np.array(one.ImagePositionPatient, float) - centre))) for one in datasets]
    first, second = (np.array(one.ImagePositionPatient, float) for one in datasets[:2])
    step_mm = float(normal @ (second - first))
    chosen = _span(float(np.argmin(distance)), len(datasets), step_mm)
    return [_cut(one, centre, along_row, along_column) for one in datasets[chosen]]


def _cut(dataset: Dataset, centre: Any, along_row: Any, along_column: Any) -> Dataset:
    position, pixels = np.array(dataset.ImagePositionPatient, float), dataset.pixel_array
    rows_mm, columns_mm = map(float, dataset.PixelSpacing)
    rows = _span(float(along_column @ (centre - position)) / rows_mm, dataset.Rows, rows_mm)
    columns = _span(float(along_row @ (centre - position)) / columns_mm, dataset.Columns, columns_mm)
    moved = position + along_column * rows.start * rows_mm + along_row * columns.start * columns_mm
    dataset.ImagePositionPatient = [f"{value:.6f}" for value in moved]
    cut = np.ascontiguousarray(pixels[rows, columns])
    dataset.Rows, dataset.Columns = cut.shape
    dataset.PixelData = cut.tobytes()
    return dataset


def _span(centre: float, size: int, step_mm: float) -> slice:
    count = min(size, math.ceil(EXTENT_MM / step_mm))
    start = min(max(round(centre) - count // 2, 0), size - count)
    return slice(start, start + count)


def write_variant(
    slices: Iterable[Dataset],
    folder: Path,
    change: Callable[[list[Dataset]], Iterable[Dataset]] = lambda slices: slices,
) -> Variant:
    """Write the slices as a new study of one series, after `change`, which may change, drop and add instances."""
    study_uid, series_uid = generate_uid(), generate_uid()
    copies = [pydicom.Dataset.from_json(one.to_json()) for one in slices]
    for copy in copies:
        copy.StudyInstanceUID, copy.SeriesInstanceUID = study_uid, series_uid
        copy.SOPInstanceUID = generate_uid()
        copy.file_meta = pydicom.dataset.FileMetaDataset()
        copy.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    folder.mkdir(parents=True)
    files, uids = [], []
    for number, dataset in enumerate(change(copies), 1):
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        files.append(folder / f"IM{number:04d}.dcm")
        uids.append(str(dataset.SOPInstanceUID))
        pydicom.dcmwrite(files[-1], dataset, enforce_file_format=True)
    return Variant(folder=folder, uid=study_uid, series_uid=series_uid, files=files, sop_instance_uids=uids)
