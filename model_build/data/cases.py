"""Folders -> cases: an image series, its patient, and the label that belongs to it. Everything through `reading`.

What is taken: DICOM series with SEG, RTSTRUCT or SR objects that refer to them; NIfTI images with label maps beside
them (`labels/NAME`, `NAME_seg`, nnU-Net's `NAME_0000` and `NAME`); classes from a CSV or from the names of the first
folders. What does not fit is a `Problem` in words, never silence: the caller decides whether to go on without it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import UsageError
from dicom_node.imaging.volume import Volume
from dicom_node.reading import SeriesFiles, find_files, group_series, load_volume, read_headers, read_masks, read_nifti
from model_build.data.structures import contour_masks, measured_groups, referenced_series
from model_build.volumes import volume_from_array

__all__ = ["Case", "ClassLabel", "Facts", "MaskLabel", "Problem", "find_cases"]

LABEL_MODALITIES = ("SEG", "RTSTRUCT", "SR")
_LABEL_SUFFIX = re.compile(r"[_-](seg|mask|label|labels|gt)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")
_CSV_KEYS = ("path", "series_instance_uid", "study_instance_uid", "patient_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What could not become a case, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLabel:
    """Files that say which voxels; read on the grid of the image when they are asked for."""

    kind: Literal["SEG", "RTSTRUCT", "SR", "NIFTI"]
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassLabel:
    """One class for the whole case."""

    name: str


Label: TypeAlias = MaskLabel | ClassLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the data card counts; empty or None where the header is silent."""

    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    kernel: str = ""
    slice_thickness_mm: float | None = None

    @property
    def scanner(self) -> str:
        """Return maker and model."""
        return " ".join(part for part in (self.manufacturer, self.model) if part) or "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One labelled image. `id` is its Series Instance UID, or its path below the folder for NIfTI."""

    id: str
    patient: str
    """Equal for all cases of a patient; never printed. Without a Patient ID it is the study, then the case itself."""
    patient_known: bool
    study: str
    images: tuple[Path, ...]
    label: Label | None
    facts: Facts

    def load(self) -> Volume:
        """Return the volume.

        Raises
        ------
        RefusedInputError
            The files cannot be decoded or make no volume.
        """
        if self.is_nifti:
            array, affine = read_nifti(self.images[0])
            return volume_from_array(array, affine, modality=self.facts.modality)
        return load_volume(self.images)

    def masks(self, volume: Volume) -> dict[str, NDArray[np.bool_]]:
        """Return the masks of a case with a `MaskLabel`, by label, each bool (Z, Y, X) on the volume's grid.

        Raises
        ------
        RefusedInputError
            A label file does not lie on the image's grid, or cannot be read.
        """
        if not isinstance(self.label, MaskLabel):
            return {}
        found: dict[str, NDArray[np.bool_]] = {}
        for path in self.label.paths:
            if self.label.kind == "RTSTRUCT":
                masks = contour_masks(read_headers([path])[0], volume)
            elif self.label.kind == "SR":
                masks = {}
            else:
                masks = {str(k): mask for k, mask in read_masks(path, volume.grid, self._frames(volume)).items()}
            for name, mask in masks.items():
                found[name] = found[name] | mask if name in found else mask
        return found

    def lesions(self) -> list[dict[str, object]]:
        """Return what the SR says of each measured group: finding, tracking identifier, measurements with units."""
        if not isinstance(self.label, MaskLabel) or self.label.kind != "SR":
            return []
        return [group for path in self.label.paths for group in measured_groups(read_headers([path])[0])]

    @property
    def is_nifti(self) -> bool:
        """Return whether the image is a NIfTI file."""
        return self.images[0].name.lower().endswith((".nii", ".nii.gz"))

    def _frames(self, volume: Volume) -> Any:
        return None if self.is_nifti else volume.frames


def find_cases(
    root: Path, *, classes: Path | None = None, folder_classes: bool = False
) -> tuple[list[Case], list[Problem]]:
    """Return the cases below a folder, sorted by id, and what did not fit.

    Parameters
    ----------
    classes
        CSV with a column `label` and at least one of path, series_instance_uid, study_instance_uid, patient_id.
    folder_classes
        The names of the first folders below `root` are the classes.

    Raises
    ------
    UsageError
        The folder is not there, or the CSV lacks its columns.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is no folder")
    if classes is not None and folder_classes:
        raise UsageError("classes come from a CSV or from folders, not from both")
    files = find_files(root)
    nifti = [path for path in files if path.name.lower().endswith((".nii", ".nii.gz"))]
    others = [path for path in files if path not in set(nifti) and path.suffix.lower() not in (".csv", ".json", ".txt")]
    problems: list[Problem] = []
    cases = _dicom_cases(others, root, problems) + _nifti_cases(nifti, root, problems)
    if classes is not None:
        cases = _with_csv(cases, classes, root, problems)
    elif folder_classes:
        cases = [_with_folder(case, root, problems) for case in cases]
    return sorted(cases, key=lambda case: case.id), problems


def _dicom_cases(files: Sequence[Path], root: Path, problems: list[Problem]) -> list[Case]:
    """Return a case for each image series; labels go to the series that they refer to."""
    series, unreadable = group_series(files)
    problems += [Problem(what=_below(each.path, root), reason=each.reason) for each in unreadable]
    images = [each for each in series if each.images]
    known = {each.series_instance_uid for each in images}
    taken = {image.path for each in images for image in each.images} | {each.path for each in unreadable}
    labels: dict[str, list[tuple[str, Path]]] = {}
    for path in files:
        if path in taken:
            continue
        header = read_headers([path])[0]
        modality = str(header.get("Modality", ""))
        if modality not in LABEL_MODALITIES:
            continue
        wanted = referenced_series(header) & known
        siblings = [each for each in images if each.study_instance_uid == str(header.get("StudyInstanceUID", ""))]
        if not wanted and len(siblings) == 1:
            wanted = {siblings[0].series_instance_uid}
        if not wanted:
            reason = f"this {modality} refers to no image series that is here"
            problems.append(Problem(what=_below(path, root), reason=reason))
        for uid in sorted(wanted):
            labels.setdefault(uid, []).append((modality, path))
    return [_dicom_case(each, labels.get(each.series_instance_uid, []), problems) for each in images]


def _dicom_case(series: SeriesFiles, labels: Sequence[tuple[str, Path]], problems: list[Problem]) -> Case:
    kinds = {kind for kind, _ in labels}
    label: Label | None = None
    for kind in LABEL_MODALITIES:  # voxels are worth more than contours, contours more than words
        if kind in kinds:
            paths = tuple(path for each, path in labels if each == kind)
            label = MaskLabel(kind=kind, paths=paths)  # type: ignore[arg-type]  # one of the three
            break
    if len(kinds) > 1:
        reason = f"has labels of several kinds ({', '.join(sorted(kinds))}); the first of SEG, RTSTRUCT, SR is taken"
        problems.append(Problem(what=series.series_instance_uid, reason=reason))
    # Anonymised files may have no UID; reading makes one series of each such folder.
    identity = series.series_instance_uid or f"{series.images[0].path.parent.name} (no UID)"
    first = series.descriptions[0]
    patient = "\0".join((first.issuer_of_patient_id, first.patient_id)) if first.patient_id else ""
    thickness = _value(series.header, "00180050")
    return Case(
        id=identity,
        patient=patient or series.study_instance_uid or identity,
        patient_known=bool(patient),
        study=series.study_instance_uid or identity,
        images=tuple(image.path for image in series.images),
        label=label,
        facts=Facts(
            modality=series.modality,
            manufacturer=_value(series.header, "00080070"),
            model=_value(series.header, "00081090"),
            kernel=_value(series.header, "00181210"),
            slice_thickness_mm=float(thickness) if thickness else None,
        ),
    )


def _value(header: Mapping[str, Mapping[str, Any]], tag: str) -> str:
    """Return the first value of an attribute of DICOM JSON as text."""
    values = header.get(tag, {}).get("Value", ())
    return str(values[0]).strip() if values and values[0] is not None else ""


def _nifti_cases(paths: Sequence[Path], root: Path, problems: list[Problem]) -> list[Case]:
    """Return a case for each NIfTI image; label maps are recognised by folder or by name."""
    labels: dict[str, Path] = {}
    images = []
    for path in paths:
        name = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
        if path.parent.name.lower().startswith("label") or _LABEL_SUFFIX.search(name):
            labels[_CHANNEL.sub("", _LABEL_SUFFIX.sub("", name))] = path
        else:
            images.append((name, path))
    cases = []
    for name, path in images:
        label = labels.pop(_CHANNEL.sub("", name), None)
        cases.append(
            Case(
                id=_below(path, root),
                patient=_CHANNEL.sub("", name),
                patient_known=False,
                study=_CHANNEL.sub("", name),
                images=(path,),
                label=MaskLabel(kind="NIFTI", paths=(label,)) if label else None,
                facts=Facts(),
            )
        )
    for path in labels.values():
        problems.append(Problem(what=_below(path, root), reason="a label map without an image of its name"))
    return cases


def _with_csv(cases: list[Case], table: Path, root: Path, problems: list[Problem]) -> list[Case]:
    """Return the cases with the class of the row that names them; a row may name one case, a study or a patient."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    keys = [key for key in _CSV_KEYS if key in columns]
    if "label" not in columns or not keys:
        raise UsageError(f"{table.name} needs a column label and one of {', '.join(_CSV_KEYS)}")
    named: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        found = [case for case in cases if all(_answers(case, key, row[key], root) for key in keys if row[key])]
        if not found or not any(row[key] for key in keys):
            problems.append(Problem(what=f"{table.name}:{number}", reason="names no image that is here"))
            continue
        for case in found:
            named.setdefault(case.id, []).append(row["label"].strip())
    labelled = []
    for case in cases:
        classes = set(named.get(case.id, ()))
        if len(classes) > 1:
            problems.append(Problem(what=case.id, reason=f"{table.name} gives it several classes"))
        labelled.append(_labelled(case, ClassLabel(name=classes.pop()) if len(classes) == 1 else None))
    return labelled


def _answers(case: Case, key: str, value: str, root: Path) -> bool:
    if key == "path":
        wanted = (root / value).resolve()
        return any(path.resolve() == wanted or wanted in path.resolve().parents for path in case.images)
    if key == "patient_id":
        return case.patient_known and case.patient.split("\0")[1] == value.strip()
    return value.strip() == (case.id if key == "series_instance_uid" else case.study)


def _with_folder(case: Case, root: Path, problems: list[Problem]) -> Case:
    folders = {path.relative_to(root).parts[0] for path in case.images if len(path.relative_to(root).parts) > 1}
    if len(folders) == 1:
        return _labelled(case, ClassLabel(name=folders.pop()))
    reason = "lies in several class folders" if folders else "lies in no class folder"
    problems.append(Problem(what=case.id, reason=reason))
    return _labelled(case, None)


def _labelled(case: Case, label: Label | None) -> Case:
    return replace(case, label=label)


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
