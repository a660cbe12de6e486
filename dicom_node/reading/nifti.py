"""NIfTI and NRRD: arrays in and out for tools that do not speak DICOM, always in our axes and in LPS.

NIfTI's patient axes are RAS, ours are LPS: x and y change sign in the affine, the voxels stay where they are. NRRD says
its space in the header.

Sources: NIfTI-1 (nifti1.h, method 3: sform), NRRD 5 "space" and "space directions" (teem.sourceforge.net/nrrd).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

from dicom_node.errors import GeometryError, UndecodableError
from dicom_node.imaging.geometry import Affine
from dicom_node.imaging.volume import Volume

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LPS_DIRECTIONS = {"left": (0, 1.0), "right": (0, -1.0), "posterior": (1, 1.0), "anterior": (1, -1.0)}
_LPS_DIRECTIONS |= {"superior": (2, 1.0), "inferior": (2, -1.0)}
_NIFTI_ERRORS = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    nibabel.wrapstruct.WrapStructError,
    EOFError,
    OSError,
    ValueError,
    zlib.error,
)
_NRRD_ERRORS = (nrrd.NRRDError, EOFError, LookupError, StopIteration, TypeError, ValueError, zlib.error)
_INITIALS = {name[0].upper(): name for name in _LPS_DIRECTIONS}


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1, float32, in RAS mm; the name ends in .nii or .nii.gz."""
    affine_ras = _RAS_TO_LPS @ volume.grid.affine_lps
    image = nibabel.Nifti1Image(volume.array.transpose(2, 1, 0), affine_ras)  # type: ignore[no-untyped-call]
    # A quaternion cannot hold a sheared stack: the sform is the truth, in scanner coordinates (code 1).
    image.set_qform(affine_ras, code=0)  # type: ignore[no-untyped-call]
    image.set_sform(affine_ras, code=1)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")  # type: ignore[no-untyped-call]
    nibabel.save(image, path)


def read_nifti(path: Path) -> tuple[NDArray[Any], Affine]:
    """Return the array (Z, Y, X) of a NIfTI file, scaled as its header says, and its affine, voxel (x, y, z) -> LPS mm.

    Raises
    ------
    UndecodableError
        When the file is no NIfTI file.
    GeometryError
        When it has not three dimensions, or no affine.
    """
    try:
        image = nibabel.load(path)
        array = np.asanyarray(image.dataobj)  # type: ignore[attr-defined]
    except FileNotFoundError:
        raise
    except _NIFTI_ERRORS as error:
        raise UndecodableError(f"{path.name} cannot be read as NIfTI ({type(error).__name__})") from error
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a subclass
        raise UndecodableError(f"{path.name} is no NIfTI file")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise GeometryError(f"{path.name} has {array.ndim} dimensions; three are needed")
    if not (image.header["sform_code"] or image.header["qform_code"]):
        raise GeometryError(f"{path.name} has neither sform nor qform: where its voxels lie is not known")
    return array.transpose(2, 1, 0), _RAS_TO_LPS @ np.asarray(image.affine, dtype=np.float64)


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Layer:
    """One label map of an NRRD file; segments of different layers may overlap."""

    array: NDArray[Any]
    """(Z, Y, X)."""
    names: Mapping[int, str]
    """Of its labels, where the file names them (Slicer's .seg.nrrd)."""


def read_nrrd(path: Path) -> tuple[NDArray[Any], Affine]:
    """Return the array (Z, Y, X) of an NRRD file and its affine, voxel (x, y, z) -> LPS mm.

    Raises
    ------
    UndecodableError
        When the file is no NRRD file.
    GeometryError
        When it has not three spatial axes, or says no space, directions or origin.
    """
    layers, affine = read_nrrd_layers(path)
    if len(layers) > 1:
        raise GeometryError(f"{path.name} has {len(layers)} layers; one is needed")
    return layers[0].array, affine


def read_nrrd_layers(path: Path) -> tuple[tuple[Layer, ...], Affine]:
    """Return the layers of an NRRD file, one where it has no axis of layers, and its affine as `read_nrrd` does.

    Raises
    ------
    UndecodableError
        When the file is no NRRD file.
    GeometryError
        When it has not three spatial axes, or says no space, directions or origin.
    """
    try:
        array, header = nrrd.read(str(path))
    except _NRRD_ERRORS as error:
        raise UndecodableError(f"{path.name} cannot be read as NRRD ({type(error).__name__})") from error
    try:
        directions, spatial = _directions(header.get("space directions"), array.ndim)
        affine = np.eye(4)
        affine[:3, :3] = directions.T  # one row an axis
        affine[:3, 3] = header["space origin"]
    except (LookupError, TypeError, ValueError) as error:
        raise GeometryError(f"{path.name} has no three axes with directions and an origin in patient space") from error
    affine = _to_lps(str(header.get("space", "")), path) @ affine
    if not np.all(np.isfinite(affine)):
        raise GeometryError(f"{path.name} has no three axes with directions and an origin in patient space")
    names = _segment_names(header)
    # Layers first, then x, y, z as they are stored.
    stacked = array[None] if array.ndim == 3 else np.moveaxis(array, _list_axis(spatial), 0)
    return tuple(
        Layer(array=layer.transpose(2, 1, 0), names=names.get(number, {})) for number, layer in enumerate(stacked)
    ), affine


def _directions(given: Any, n_axes: int) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Return the directions (3, 3) of the spatial axes and which axes these are; one of four may be a list."""
    rows = [None if row is None or not np.all(np.isfinite(row)) else row for row in given]
    spatial = tuple(axis for axis, row in enumerate(rows) if row is not None)
    directions = np.array([rows[axis] for axis in spatial], dtype=np.float64)
    if n_axes not in (3, 4) or len(rows) != n_axes or directions.shape != (3, 3):
        raise ValueError("not three spatial axes")
    return directions, spatial


def _list_axis(spatial: tuple[int, ...]) -> int:
    return next(axis for axis in range(4) if axis not in spatial)


def _segment_names(header: Mapping[str, Any]) -> dict[int, dict[int, str]]:
    """Return, by layer and label, the names that Slicer writes as Segment<i>_Name."""
    names: dict[int, dict[int, str]] = {}
    for number in range(len(header)):
        key = f"Segment{number}_"
        try:
            layer, label = int(header.get(f"{key}Layer", 0)), int(header[f"{key}LabelValue"])
        except (KeyError, ValueError):
            continue
        names.setdefault(layer, {})[label] = str(header.get(f"{key}Name", ""))
    return names


def _to_lps(space: str, path: Path) -> Affine:
    """Return the 4x4 matrix from a named NRRD space to LPS."""
    words = [_INITIALS.get(letter, "") for letter in space] if space.isupper() else space.lower().split("-")
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, word in enumerate(words[:3]):
        if word in _LPS_DIRECTIONS:
            row, sign = _LPS_DIRECTIONS[word]
            matrix[row, axis] = sign
    if len(words) != 3 or abs(np.linalg.det(matrix)) != 1:
        raise GeometryError(f"{path.name} is in the space {space!r}; a named patient space (LPS, RAS ...) is needed")
    return matrix
