"""What pixels of images that are no slices measure, and what those images are called."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.imaging.projection import projection_spacing, scanned_spacing
from dicom_node.reading.kinds import class_name, plane_note, refused_kind

ROOT = "1.2.840.10008.5.1.4.1.1"
AT_DETECTOR, CORRECTED = (0.2, 0.1), (0.16, 0.08)


def image(suffix: str, **values: Any) -> Dataset:
    """Return a data set of a SOP class with these attributes."""
    ds = Dataset()
    ds.SOPClassUID = f"{ROOT}.{suffix}"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("pixel", "imager", "calibration", "magnification", "where", "rows_mm", "words"),
    [
        (None, AT_DETECTOR, "", None, "detector", 0.2, "at the detector"),
        (AT_DETECTOR, AT_DETECTOR, "", None, "detector", 0.2, "everything in the patient is smaller"),
        (AT_DETECTOR, AT_DETECTOR, "FIDUCIAL", None, "calibrated", 0.2, "by an object of known size"),
        (CORRECTED, AT_DETECTOR, "GEOMETRY", 1.25, "calibrated", 0.16, "for known geometry"),
        (CORRECTED, AT_DETECTOR, "", None, "calibrated", 0.16, "corrected from 0.2 x 0.1 mm at the detector"),
        (None, AT_DETECTOR, "", 1.25, "calibrated", 0.16, "estimated magnification of 1.25"),
        (AT_DETECTOR, AT_DETECTOR, "", 1.25, "calibrated", 0.16, "estimated magnification of 1.25"),
        (None, AT_DETECTOR, "FIDUCIAL", None, "detector", 0.2, "at the detector"),
        (CORRECTED, None, "", 1.25, "unknown", 0.16, "whether in the patient is unknown"),
        (CORRECTED, None, "FIDUCIAL", None, "calibrated", 0.16, "right at the depth"),
    ],
)
def test_which_spacing_of_a_projection_holds(
    pixel: tuple[float, float] | None,
    imager: tuple[float, float] | None,
    calibration: str,
    magnification: float | None,
    where: str,
    rows_mm: float,
    words: str,
) -> None:
    """Equal spacings say nothing, unequal ones were corrected, a magnification is taken out (PS3.3 10.7.1.1)."""
    found = projection_spacing(pixel, imager, calibration=calibration, magnification=magnification)
    assert found is not None
    assert (where, pytest.approx(rows_mm), pytest.approx(rows_mm / 2)) == (found.where, found.rows_mm, found.columns_mm)
    assert words in found.in_words()


def test_without_spacing_there_is_none() -> None:
    """Nothing is made up, not even of a magnification alone."""
    assert projection_spacing(None, None, magnification=1.1) is None
    assert scanned_spacing(None, None) is None


@pytest.mark.parametrize(
    ("ds", "kind", "note"),
    [
        (
            image("1", ImagerPixelSpacing=[0.2, 0.1]),
            r"a computed radiograph \(CR\): a projection",
            "0.2 x 0.1 mm at the",
        ),
        (image("1.1"), r"digital radiograph \(DX\)", "nothing says"),
        (image("1.2.1", PixelSpacing=[0.2, 0.1]), r"a mammogram \(MG\)", "unknown"),
        (image("12.1", NumberOfFrames=40), r"an angiogram \(XA\) of 40 frames, which follow in time", "nothing says"),
        (image("12.2", PixelSpacing=[0, 0]), r"a fluoroscopy \(RF\)", "nothing says"),
        (image("6.1"), "an ultrasound image, whose place", "nothing says"),
        (image("3.1", NumberOfFrames=30), "an ultrasound cine of 30 frames", "nothing says"),
        (image("6.2", NumberOfFrames=30), "an enhanced ultrasound volume", None),
        (image("77.1.6"), "a whole slide image", None),
        (image("77.1.4"), "a photograph", None),
        (image("481.2"), "a radiotherapy dose", None),
        (image("481.1", ImagerPixelSpacing=[1, 1]), r"a radiotherapy image \(RTIMAGE\)", "at the detector"),
        (image("7", NominalScannedPixelSpacing=[0.3, 0.3]), None, "on the film that was scanned"),
        (image("7.4"), None, "nothing says"),
        *((image(suffix, PixelSpacing=[1, 1]), None, None) for suffix in ("2", "4.1", "128", "20", "13.1.3")),
        (Dataset(), None, None),
    ],
)
def test_what_is_no_slice_is_named(ds: Dataset, kind: str | None, note: str | None) -> None:
    """Each SOP class that makes no volume has its words; those that may have none."""
    refused, said = refused_kind(ds), plane_note(ds)
    assert re.search(kind, refused) if kind and refused else kind is refused
    assert note in said if note and said else note is said


def test_ultrasound_regions_count_only_in_centimetres() -> None:
    """A Doppler region measures seconds and velocities, not lengths."""
    depth, doppler = Dataset(), Dataset()
    depth.PhysicalUnitsXDirection = depth.PhysicalUnitsYDirection = 3
    depth.PhysicalDeltaX, depth.PhysicalDeltaY = 0.02, -0.03
    doppler.PhysicalUnitsXDirection, doppler.PhysicalUnitsYDirection = 4, 7
    doppler.PhysicalDeltaX = doppler.PhysicalDeltaY = 0.01
    note = plane_note(image("6.1", SequenceOfUltrasoundRegions=[depth, doppler]))
    assert note == "pixels are 0.3 x 0.2 mm in the plane of the beam (region calibration in 1 of 2 regions)"


def test_a_class_has_a_name() -> None:
    """The library's, or ours for what it does not know; a private one is its UID."""
    assert "RT Structure Set" == class_name(f"{ROOT}.481.3")
    assert "Label Map Segmentation" == class_name(f"{ROOT}.66.7")
    assert UID("1.2.3.4") == class_name("1.2.3.4")
    assert "no SOP class" == class_name("")
