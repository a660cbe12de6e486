"""What a distance between pixels means in images that are no slices: at the detector, in the patient, or unknown. Pure.

A projection magnifies: what lies nearer to the tube is larger at the detector than it is. Imager Pixel Spacing is at
the detector's front plane, always. Pixel Spacing may be the same number again, which says nothing, or a calibrated
one: by geometry (at some depth that the operator meant) or by a fiducial of known size.

Sources: DICOM PS3.3 10.7.1.1 (Pixel Spacing), 10.7.1.2 (Pixel Spacing Calibration Type), 10.7.1.3 (order of values);
Imager Pixel Spacing (0018,1164), Estimated Radiographic Magnification Factor (0018,1114).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dicom_node.imaging.geometry import SPACING_TOLERANCE

Spacing = tuple[float, float]
"""Distance between rows, distance between columns, mm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSpacing:
    """The spacing that holds for a two-dimensional image."""

    rows_mm: float
    columns_mm: float
    where: Literal["patient", "calibrated", "detector", "unknown"]
    """`patient`: in the plane that was imaged. `calibrated`: right for what lies at the depth of the calibration.
    `detector`: at its front plane, so everything in the patient is smaller. `unknown`: nobody says."""
    how: str
    """Which attribute it comes from and what it means, in words."""

    def in_words(self) -> str:
        """Return one sentence for a person."""
        return f"pixels are {self.rows_mm:.4g} x {self.columns_mm:.4g} mm {self.how}"


def projection_spacing(
    pixel_spacing_mm: Spacing | None,
    imager_pixel_spacing_mm: Spacing | None,
    *,
    calibration: str = "",
    magnification: float | None = None,
) -> PlaneSpacing | None:
    """Return the spacing of a projection radiograph; None where no attribute gives one.

    Parameters
    ----------
    calibration
        Pixel Spacing Calibration Type: GEOMETRY, FIDUCIAL, or empty.
    magnification
        Estimated Radiographic Magnification Factor: size at the detector by size in the patient.
    """
    pixel, imager = pixel_spacing_mm, imager_pixel_spacing_mm
    if calibration in ("GEOMETRY", "FIDUCIAL") and pixel is not None:
        by = "for known geometry" if calibration == "GEOMETRY" else "by an object of known size"
        how = f"(Pixel Spacing, calibrated {by}: right at the depth that was calibrated)"
        return _spacing(pixel, "calibrated", how)
    if pixel is not None and imager is not None and not _same(pixel, imager):
        how = (
            f"(Pixel Spacing, corrected from {imager[0]:.4g} x {imager[1]:.4g} mm at the detector; nothing says how, "
            "so it is right at some depth only)"
        )
        return _spacing(pixel, "calibrated", how)
    if imager is not None and magnification is not None and magnification > 0:
        how = f"in the patient (Imager Pixel Spacing by the estimated magnification of {magnification:g})"
        return _spacing((imager[0] / magnification, imager[1] / magnification), "calibrated", how)
    if imager is not None:
        how = "at the detector (Imager Pixel Spacing): everything in the patient is smaller than it measures"
        return _spacing(imager, "detector", how)
    if pixel is not None:
        how = "(Pixel Spacing, with neither Imager Pixel Spacing nor calibration: whether in the patient is unknown)"
        return _spacing(pixel, "unknown", how)
    return None


def scanned_spacing(nominal_mm: Spacing | None, pixel_spacing_mm: Spacing | None) -> PlaneSpacing | None:
    """Return the spacing of a secondary capture: on the medium that was scanned, or what its maker believed."""
    if pixel_spacing_mm is not None:
        return _spacing(pixel_spacing_mm, "unknown", "(Pixel Spacing of a secondary capture: as good as its maker)")
    if nominal_mm is not None:
        return _spacing(nominal_mm, "unknown", "on the film that was scanned (Nominal Scanned Pixel Spacing)")
    return None


def _same(one: Spacing, other: Spacing) -> bool:
    return all(abs(a - b) <= SPACING_TOLERANCE * b for a, b in zip(one, other, strict=True))


def _spacing(
    spacing_mm: Spacing, where: Literal["patient", "calibrated", "detector", "unknown"], how: str
) -> PlaneSpacing:
    return PlaneSpacing(rows_mm=spacing_mm[0], columns_mm=spacing_mm[1], where=where, how=how)
