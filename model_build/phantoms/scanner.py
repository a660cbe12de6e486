"""A CT scanner for phantoms: what becomes of true densities on their way into an image. Pure.

Three things blur and disturb: the reconstruction kernel (a Gaussian in the plane of the slice, sharp ones with an
overshoot at edges), the thickness of the slice (the mean over a slab, which may be thicker than the distance between
slices), and noise whose grain is the kernel's. Noise grows where the body is wide, as the square root of what the
beam loses: shoulders are noisier than the apex of the lung.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

__all__ = ["SCANNER", "SHIFTED_SCANNER", "Acquisition", "Scanner", "acquire", "acquisition"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """Ranges from which each study draws its acquisition."""

    name: str
    kernel: str
    pixel_mm: tuple[float, float]
    distance_mm: tuple[float, float]
    """Between slices."""
    overlap: tuple[float, float]
    """Slice thickness over the distance between slices: above 1 slices overlap."""
    blur_mm: tuple[float, float]
    """Standard deviation of the kernel."""
    edge: tuple[float, float]
    """Overshoot: how much of what the kernel took away from edges is put back, doubled."""
    noise_hu: tuple[float, float]
    """Standard deviation in soft tissue."""


SCANNER = Scanner(
    name="Phantom CT A",
    kernel="STANDARD",
    pixel_mm=(0.75, 0.95),
    distance_mm=(1.0, 1.5),
    overlap=(1.0, 1.0),
    blur_mm=(0.55, 0.75),
    edge=(0.0, 0.0),
    noise_hu=(14.0, 24.0),
)
SHIFTED_SCANNER = Scanner(
    name="Phantom CT B",
    kernel="SHARP",
    pixel_mm=(0.6, 0.75),
    distance_mm=(1.8, 2.5),
    overlap=(1.0, 1.3),
    blur_mm=(0.45, 0.6),
    edge=(0.4, 0.8),
    noise_hu=(30.0, 45.0),
)
"""Another kernel, thicker slices, twice the noise: what a model that learned one scanner by heart fails on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """How one study was taken; lengths mm, noise HU."""

    scanner: str
    kernel: str
    pixel_mm: float
    distance_mm: float
    thickness_mm: float
    blur_mm: float
    edge: float
    noise_hu: float

    @property
    def oversampling(self) -> int:
        """Return how many planes are rendered a slice: planes of at most 1.3 mm make a thick slice."""
        return max(1, int(np.ceil(self.distance_mm / 1.3)))


def acquisition(rng: np.random.Generator, scanner: Scanner) -> Acquisition:
    """Return one way to scan, drawn from the scanner's ranges."""
    distance = round(float(rng.uniform(*scanner.distance_mm)), 3)
    return Acquisition(
        scanner=scanner.name,
        kernel=scanner.kernel,
        pixel_mm=round(float(rng.uniform(*scanner.pixel_mm)), 3),
        distance_mm=distance,
        thickness_mm=round(distance * float(rng.uniform(*scanner.overlap)), 3),
        blur_mm=float(rng.uniform(*scanner.blur_mm)),
        edge=float(rng.uniform(*scanner.edge)),
        noise_hu=float(rng.uniform(*scanner.noise_hu)),
    )


def acquire(rng: np.random.Generator, planes: FloatArray, how: Acquisition) -> FloatArray:
    """Return the image (Z, Y, X) in HU of true densities, `oversampling` planes a slice; `planes` is used up.

    The first slice is centred on the first `oversampling` planes.
    """
    slices = _slices(planes, how)
    sigma = how.blur_mm / how.pixel_mm
    sharp = _kernel(slices, sigma, how.edge)
    sharp += _noise(rng, sharp.shape, how, sigma) * _loss(slices)
    return sharp


def _slices(planes: FloatArray, how: Acquisition) -> FloatArray:
    """Return the mean of the planes that each slice covers, by how much of a plane it covers.

    Slice k is centred on its group of `oversampling` planes, whatever its thickness.
    """
    n = how.oversampling
    width = how.thickness_mm * n / how.distance_mm
    if n == 1 and abs(width - 1) < 0.01:
        return planes
    index = np.arange(len(planes))
    slices = np.empty((len(planes) // n, *planes.shape[1:]), dtype=np.float32)
    for k in range(len(slices)):
        centre = k * n + (n - 1) / 2
        share = np.minimum(index + 0.5, centre + width / 2) - np.maximum(index - 0.5, centre - width / 2)
        used = np.flatnonzero(share > 0)
        slices[k] = np.tensordot((share[used] / share[used].sum()).astype(np.float32), planes[used], 1)
    return slices


def _kernel(slices: FloatArray, sigma: float, edge: float) -> FloatArray:
    """Return the slices blurred in their plane, with the overshoot of a sharp kernel."""
    out = np.empty_like(slices)
    for z, plane in enumerate(slices):
        out[z] = _blur(plane, sigma)
        if edge:
            out[z] += edge * (out[z] - _blur(out[z], 1.6 * sigma))
    return out


def _blur(plane: FloatArray, sigma: float) -> FloatArray:
    blurred = gaussian_filter1d(plane, sigma, axis=0, mode="nearest", truncate=3)
    return np.asarray(gaussian_filter1d(blurred, sigma, axis=1, mode="nearest", truncate=3))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], how: Acquisition, sigma: float) -> FloatArray:
    """Return noise of the kernel's grain with the acquisition's standard deviation; slices are independent."""
    noise = np.empty(shape, dtype=np.float32)
    grain = 0.7 * sigma if how.edge else 1.1 * sigma
    for z in range(shape[0]):
        plane = _blur(rng.standard_normal(shape[1:], dtype=np.float32), grain)
        noise[z] = plane * (how.noise_hu / float(plane.std()))
    return noise


def _loss(slices: FloatArray) -> FloatArray:
    """Return (Z, 1, 1): how much noisier each slice is than the mean one, after the width of the body in it."""
    wide = (slices > -500).sum(axis=(1, 2)).astype(np.float64)
    loss = np.sqrt(np.clip(wide / max(float(wide.mean()), 1.0), 0.5, 2.0))
    return np.asarray(loss[:, None, None], dtype=np.float32)
