"""Nuclear medicine: reconstructed tomograms are read where nothing is ambiguous, everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.errors import GeometryError
from dicom_node.reading import describe, load_volume
from dicom_node.reading.synthetic import write_series

ROOT = "1.2.826.0.1.3680043.10.511"
ARRAY = np.random.default_rng(9).integers(0, 900, (4, 6, 5)).astype(np.float32)
AFFINE = np.array([[2.0, 0, 0, -30], [0, -3.0, 0, 40], [0, 0, -4.0, 700], [0, 0, 0, 1]])
"""Rows to the left, columns to the front, so slices grow downwards along row x column."""


@pytest.fixture
def tomogram(tmp_path: Path) -> Callable[..., Path]:
    """Return the writer of an NM image of four frames; keywords go over its attributes, `change` last."""

    def write(change: Callable[[Dataset], object] | None = None, **values: Any) -> Path:
        (path,) = write_series(
            tmp_path / "nm", ARRAY, AFFINE, modality="MR", enhanced=True, study_instance_uid=f"{ROOT}.1",
            series_instance_uid=f"{ROOT}.2", frame_of_reference_uid=f"{ROOT}.3", uid_root=ROOT,
        )  # fmt: skip
        ds = dcmread(path)
        del ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence, ds.DimensionIndexSequence
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
        ds.Modality, ds.ImageType = "NM", ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
        detector = Dataset()
        detector.ImagePositionPatient, detector.ImageOrientationPatient = [-30, 40, 700], [1, 0, 0, 0, -1, 0]
        ds.DetectorInformationSequence = [detector]
        ds.PixelSpacing, ds.SpacingBetweenSlices, ds.SliceVector = [3, 2], 4, [1, 2, 3, 4]
        for keyword, value in values.items():
            setattr(ds, keyword, value)
        if change is not None:
            change(ds)
        ds.save_as(path)
        return path

    return write


def test_a_reconstructed_tomogram_is_read(tomogram: Callable[..., Path]) -> None:
    """Its frames follow behind each other along row x column; indexing sees them too."""
    path = tomogram()
    volume = load_volume([path])
    np.testing.assert_array_equal(ARRAY, volume.array)
    np.testing.assert_allclose(volume.grid.affine_lps, AFFINE, atol=1e-9)
    assert [1, 2, 3, 4] == [frame.frame_number for frame in volume.frames]
    assert volume.frames == describe(path).frames


def test_a_negative_spacing_stacks_in_front(tomogram: Callable[..., Path]) -> None:
    """The first frame is then the last slice along the normal (PS3.3 C.8.4.15)."""
    volume = load_volume([tomogram(SpacingBetweenSlices=-4)])
    np.testing.assert_array_equal(ARRAY[::-1], volume.array)
    np.testing.assert_allclose(volume.frames[3].position_mm, [-30, 40, 700])
    np.testing.assert_allclose(volume.frames[0].position_mm, [-30, 40, 712])


def test_slice_vector_says_where_each_frame_lies(tomogram: Callable[..., Path]) -> None:
    """Frames need not be in the order of the slices."""
    volume = load_volume([tomogram(SliceVector=[3, 1, 4, 2])])
    np.testing.assert_array_equal(ARRAY[[1, 3, 0, 2]], volume.array)


@pytest.mark.parametrize(
    "values",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "STATIC"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "RECON GATED TOMO"]},
        {"ImageType": ["ORIGINAL", "PRIMARY"]},
        {"SliceVector": [1, 2, 1, 2]},
        {"SpacingBetweenSlices": None},
        {"SpacingBetweenSlices": 0},
        {"PixelSpacing": None},
        {"change": lambda ds: ds.DetectorInformationSequence.append(Dataset())},
        {"change": lambda ds: ds.DetectorInformationSequence.clear()},
        {"change": lambda ds: ds.DetectorInformationSequence[0].__delitem__("ImagePositionPatient")},
        {"change": lambda ds: ds.DetectorInformationSequence[0].__delitem__("ImageOrientationPatient")},
    ],
    ids=[
        *("static", "gated", "unnamed", "doubled", "no distance", "no distance but 0", "no spacing"),
        *("two detectors", "no detector", "no position", "no orientation"),
    ],
)
def test_what_is_ambiguous_is_refused_by_name(tomogram: Callable[..., Path], values: dict[str, Any]) -> None:
    """Static, dynamic and gated images, several detectors, and whatever lacks distance or place."""
    with pytest.raises(GeometryError, match="nuclear medicine of the type .*only RECON TOMO of one detector is"):
        load_volume([tomogram(**values)])
