"""What the writer of synthetic DICOM puts on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset

from dicom_node.reading.synthetic import write_series

ROOT = "2.25.777"
ARRAY = np.arange(4 * 3 * 5, dtype=np.float32).reshape(4, 3, 5) - 20


def _affine(angle: float = 0.4, tilt: float = 0.0) -> np.ndarray[Any, Any]:
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.7, 0.9, 2.5])
    affine[1, 2] += tilt
    affine[:3, 3] = (-10.25, 20.5, 1 / 3)
    return affine


def _write(folder: Path, affine: np.ndarray[Any, Any] | None = None, **options: Any) -> list[Path]:
    uids = {
        "study_instance_uid": ROOT + ".1",
        "series_instance_uid": ROOT + ".2",
        "frame_of_reference_uid": ROOT + ".3",
        "uid_root": ROOT,
    }
    return write_series(folder, ARRAY, _affine() if affine is None else affine, **(uids | options))


def _values(ds: FileDataset) -> np.ndarray[Any, Any]:
    return ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_classic_instance_holds_the_slice_its_position_names(tmp_path: Path, modality: str) -> None:
    """Position, orientation, spacing and values of every file agree with the affine and the array."""
    affine = _affine()
    order = (2, 0, 3, 1)
    paths = _write(tmp_path, modality=modality, order=order)
    assert 4 == len(paths)
    for number, (path, z) in enumerate(zip(paths, order, strict=True), 1):
        ds = pydicom.dcmread(path)
        assert number == ds.InstanceNumber
        np.testing.assert_allclose(affine @ (0, 0, z, 1), [*ds.ImagePositionPatient, 1], atol=1e-7)
        row, column = np.reshape(ds.ImageOrientationPatient, (2, 3)).astype(float)
        np.testing.assert_allclose(affine[:3, 0], row * ds.PixelSpacing[1], atol=1e-7)
        np.testing.assert_allclose(affine[:3, 1], column * ds.PixelSpacing[0], atol=1e-7)
        np.testing.assert_array_equal(ARRAY[z], _values(ds))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_enhanced_object_holds_every_slice_as_a_frame(tmp_path: Path, modality: str) -> None:
    """One file; its frames follow `order`, each with its own position."""
    affine, order = _affine(), (3, 1, 0, 2)
    (path,) = _write(tmp_path, modality=modality, order=order, enhanced=True)
    ds = pydicom.dcmread(path)
    assert 4 == ds.NumberOfFrames
    rescale = ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    for frame, z in enumerate(order):
        groups = ds.PerFrameFunctionalGroupsSequence[frame]
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose((affine @ (0, 0, z, 1))[:3], position, atol=1e-7)
        values = ds.pixel_array[frame] * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
        np.testing.assert_array_equal(ARRAY[z], values)


@settings(max_examples=25, deadline=None)
@given(
    slope=st.floats(0.1, 4),
    intercept=st.floats(-2000, 2000),
    angle=st.floats(-3, 3),
    tilt=st.floats(-1, 1),
)
def test_values_survive_any_rescale_to_half_a_step(
    tmp_path_factory: pytest.TempPathFactory, slope: float, intercept: float, angle: float, tilt: float
) -> None:
    """The modality LUT gives back what was written, to half a slope, however the stack lies."""
    slope, intercept = round(slope, 4), round(intercept, 4)
    folder = tmp_path_factory.mktemp("series")
    paths = _write(folder, _affine(angle, tilt), rescale_slope=slope, rescale_intercept=intercept)
    for z, path in enumerate(paths):
        assert np.abs(_values(pydicom.dcmread(path)) - ARRAY[z]).max() <= slope / 2 + 1e-6


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    """Nothing is random and no clock is read."""
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_two_series_of_one_root_share_no_instance_uid(tmp_path: Path) -> None:
    """A SOP Instance UID names one slice of one series."""
    paths = _write(tmp_path / "a") + _write(tmp_path / "b", series_instance_uid=ROOT + ".9")
    assert 8 == len({pydicom.dcmread(path).SOPInstanceUID for path in paths})


def test_headers_override_and_none_leaves_out(tmp_path: Path) -> None:
    """A test can make the header say what the positions contradict, or nothing."""
    headers = {"PatientName": "Other^Name", "SliceThickness": 9.0, "PixelSpacing": None}
    ds = pydicom.dcmread(_write(tmp_path, headers=headers)[0])
    assert ("Other^Name", 9.0, False) == (str(ds.PatientName), ds.SliceThickness, "PixelSpacing" in ds)


def test_tilted_stack_declares_the_distance_along_its_normal(tmp_path: Path) -> None:
    """Slice Thickness is measured along the normal, not along the sheared step."""
    ds = pydicom.dcmread(_write(tmp_path, _affine(tilt=1.0))[0])
    assert pytest.approx(2.5) == ds.SliceThickness


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (ARRAY[0], {}, "Z, Y, X"),
        (ARRAY + 40_000, {"rescale_intercept": 0.0}, "int16"),
        (ARRAY, {"order": (0, 4)}, "outside"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, array: np.ndarray[Any, Any], options: dict[str, Any], words: str
) -> None:
    """Nothing is clipped or wrapped in silence."""
    uids = dict.fromkeys(("study_instance_uid", "series_instance_uid", "frame_of_reference_uid", "uid_root"), ROOT)
    with pytest.raises(ValueError, match=words):
        write_series(tmp_path, array, _affine(), **(uids | options))


@pytest.mark.parametrize("enhanced", [False, True])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dciodvfy_finds_no_error(
    tmp_path: Path, modality: str, enhanced: bool, dciodvfy: Callable[[Path], list[str]]
) -> None:
    """The headers are valid by the standard, so a peer that complains complains about us."""
    assert [] == dciodvfy(_write(tmp_path, modality=modality, enhanced=enhanced)[0])
