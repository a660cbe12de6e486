"""Volumes that call themselves a T1-weighted head: phantoms and other parts of the body.

Synthetic ones need no data. Arrays have the axes (towards S, towards P, towards L), values as a scanner of MR gives
them: not negative, a few hundred. Everything is drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.imaging import Grid, Volume
from model_build.phantoms import make_phantom
from tests.unit.imaging_case import make_grid, make_volume, world

STEP_MM = 1.5
SHAPE = (150, 160, 150)
"""225 x 240 x 225 mm."""

Array = NDArray[np.float32]


def _grid() -> Grid:
    return make_grid(SHAPE, (STEP_MM, STEP_MM, STEP_MM), centre_lps=(0.0, 0.0, 0.0))


def _where() -> NDArray[np.float64]:
    """Return (x, y, z) in LPS mm about the centre, (Z, Y, X, 3)."""
    return world(_grid())


def _ellipsoid(radii: tuple[float, float, float], centre: tuple[float, float, float] = (0, 0, 0)) -> NDArray[np.bool_]:
    return np.asarray((((_where() - centre) / radii) ** 2).sum(axis=-1) <= 1)


def _head_shape() -> NDArray[np.bool_]:
    """Return a head's outline: an ellipsoid of 152 x 196 x 220 mm and a neck."""
    at = _where()
    neck = (np.hypot(at[..., 0], at[..., 1] - 10) <= 55) & (at[..., 2] < -50)
    return _ellipsoid((76, 98, 100), (0, 0, 10)) | neck


def _texture(seed: int, sigma_mm: float) -> Array:
    """Return correlated noise of mean 0 and standard deviation 1."""
    noise = np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma_mm / STEP_MM) if sigma_mm else noise
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def _noisy(array: NDArray[Any], sd: float = 12.0, seed: int = 1) -> Array:
    """Return the magnitude of the array with complex noise, as an MR has it (Rician)."""
    rng = np.random.default_rng(seed)
    real = np.asarray(array, dtype=np.float32) + sd * rng.standard_normal(array.shape).astype(np.float32)
    return np.hypot(real, sd * rng.standard_normal(array.shape).astype(np.float32))


def ball() -> Array:
    """A ball of water of 17 cm."""
    return _noisy(600.0 * _ellipsoid((85, 85, 85)))


def clean_ball() -> Array:
    """The same without any noise."""
    return 600.0 * _ellipsoid((85, 85, 85)).astype(np.float32)


def shaded_ball() -> Array:
    """A ball whose coil is nearer to one side."""
    return _noisy(_ellipsoid((85, 85, 85)) * (500 + 3.0 * _where()[..., 1]))


def head_shaped_water() -> Array:
    """A head's outline filled with one value."""
    return _noisy(600.0 * _head_shape())


def box() -> Array:
    """A block of 15 x 19 x 18 cm."""
    return _noisy(600.0 * np.all(np.abs(_where()) <= (75, 95, 90), axis=-1))


def acr_cylinder() -> Array:
    """A cylinder of 19 x 15 cm with plates, a grid and holes, like the ACR's phantom for MR."""
    at = _where()
    x, y, z = at[..., 0], at[..., 1], at[..., 2]
    image = 700.0 * ((np.hypot(x, y) <= 95) & (np.abs(z) <= 74))
    image[(np.abs(z - 40) < 5) & (np.abs(x) < 70) & (np.abs(y) < 70) & ((x % 14 < 3) | (y % 14 < 3))] = 0
    image[(np.abs(z + 50) < 8) & (np.abs(x) < 60) & (np.abs(y) < 20) & (x % 6 < 3)] = 0
    image[(np.abs(z) < 4) & (np.abs(x) < 80)] = 150
    for k in range(10):
        angle = 2 * np.pi * k / 10
        centre = 50 * np.cos(angle), 50 * np.sin(angle)
        image[(np.abs(z - 10) < 4) & (np.hypot(x - centre[0], y - centre[1]) < 7)] = 350
    return _noisy(image)


def noise() -> Array:
    """Nothing but noise in the whole field."""
    return _noisy(np.zeros(SHAPE), 200.0)


def noise_head() -> Array:
    """A head's outline of white noise."""
    return _noisy(_head_shape() * (500 + 200 * _texture(2, 0)))


def blobs_head() -> Array:
    """A head's outline of clouds about as large as gyri."""
    return _noisy(_head_shape() * np.clip(500 + 200 * _texture(3, 4.0), 0, None))


def fine_blobs_head() -> Array:
    """A head's outline of clouds as fine as the cortex."""
    return _noisy(_head_shape() * np.clip(500 + 200 * _texture(4, 2.0), 0, None))


def coarse_blobs_head() -> Array:
    """A head's outline of large clouds."""
    return _noisy(_head_shape() * np.clip(500 + 200 * _texture(5, 12.0), 0, None))


def patches_head() -> Array:
    """A head's outline of constant patches."""
    rng = np.random.default_rng(6)
    seeds = rng.integers(0, SHAPE, size=(150, 3))
    marks = np.ones(SHAPE, dtype=bool)
    marks[tuple(seeds.T)] = False
    _, nearest = ndimage.distance_transform_edt(marks, return_indices=True)
    values = rng.uniform(150, 900, size=SHAPE).astype(np.float32)
    return _noisy(_head_shape() * values[tuple(nearest)])


def shells_head() -> Array:
    """Skin, bone, fluid, grey and white matter as nested ellipsoids, ventricles and eyes (after Shepp and Logan)."""
    image = 500.0 * _head_shape()
    for shrink, value in ((5, 60.0), (12, 200.0), (15, 420.0), (19, 620.0)):
        image[_ellipsoid((76 - shrink, 98 - shrink, 90 - shrink), (0, 0, 18))] = value
    for side in (-1, 1):
        image[_ellipsoid((8, 25, 12), (12 * side, 0, 25))] = 180
        image[_ellipsoid((12, 12, 12), (32 * side, -80, -20))] = 150
    return _noisy(image)


def textured_shells_head() -> Array:
    """Nested ellipsoids with clouds as fine as the cortex in their brain."""
    image = shells_head()
    brain = _ellipsoid((76 - 15, 98 - 15, 90 - 15), (0, 0, 18))
    return np.where(brain, np.clip(image + 120 * _texture(7, 2.5), 0, None), image)


def checkerboard() -> Array:
    """A ball of cubes of 9 mm, bright and less bright."""
    cubes = (np.floor(_where() / 9).sum(axis=-1) % 2) * 300 + 350
    return _noisy(_ellipsoid((85, 95, 85)) * cubes)


def ramp_head() -> Array:
    """A head's outline whose value rises from side to side, with stripes."""
    return _noisy(_head_shape() * np.clip(500 + 3 * _where()[..., 0] + 100 * np.sin(_where()[..., 1]), 0, None))


def mirrored_fake_head() -> Array:
    """Skin, bone and a bright core under a darker rim, with clouds as fine as the cortex, the same on both sides.

    All that the checks before the network ask of a head, and no anatomy.
    """
    clouds = _texture(11, 3.0)
    clouds = (clouds + clouds[..., ::-1]) / np.sqrt(2)
    image = np.where(_head_shape(), 500 + 120 * clouds, 0.0)
    image[_ellipsoid((71, 93, 88), (0, 0, 14))] = 90
    brain = _ellipsoid((64, 84, 68), (0, 0, 20))
    depth = np.clip(1 - np.sqrt((((_where() - (0, 0, 20)) / (64, 84, 68)) ** 2).sum(axis=-1)), 0, 1)
    image = np.where(brain, 330 + 500 * np.minimum(depth, 0.4) + 90 * clouds, image)
    return _noisy(np.clip(image, 0, None))


def two_cylinders() -> Array:
    """Two thighs with bone and fat."""
    at = _where()
    image = np.zeros(SHAPE)
    for side in (-1, 1):
        radius = np.hypot(at[..., 0] - 56 * side, at[..., 1])
        for limit, value in ((54, 800.0), (46, 320.0), (14, 60.0), (9, 700.0)):
            image[radius <= limit] = value
    return _noisy(image + (image == 320) * 30 * _texture(8, 3.0))


def knee() -> Array:
    """One limb with two bones and a gap between them."""
    at = _where()
    x, y, z = at[..., 0], at[..., 1], at[..., 2]
    radius = np.hypot(x, y)
    image = np.select([radius <= 55, radius <= 63], [300.0, 750.0], 0.0)
    image[(np.hypot(x, y - 10) <= 22 + 14 * np.exp(-((z / 30) ** 2))) & (np.abs(z) > 3)] = 650
    image[np.abs(z) <= 3] *= 0.4
    return _noisy(image + (image == 300) * 40 * _texture(9, 3.0))


def spine() -> Array:
    """Vertebrae and discs in a trunk that fills the field."""
    at = _where()
    x, y, z = at[..., 0], at[..., 1], at[..., 2]
    image = np.where(np.hypot(x / 1.3, y) <= 95, 250.0, 0.0) + 60 * _texture(10, 5.0) * (np.hypot(x / 1.3, y) <= 95)
    column = np.hypot(x, y - 25) <= 22
    image[column] = np.where(z[column] % 36 < 28, 600, 200)
    image[np.hypot(x, y - 55) <= 9] = 150
    return _noisy(np.clip(image, 0, None))


def qa_phantom_as_head(seed: int = 1000) -> Volume:
    """The commissioning phantom, enlarged to the size of a head, its HU as an MR would store them."""
    phantom = make_phantom(seed, orientation="axial")
    affine = phantom.affine_lps.copy()
    affine[:3] *= 1.7
    grid = Grid(shape=phantom.array.shape, affine_lps=affine)  # type: ignore[arg-type]
    return make_volume(np.clip(phantom.array + 1024, 0, None), grid, modality="MR")


SYNTHETIC: Mapping[str, Callable[[], Array]] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            *(ball, clean_ball, shaded_ball, head_shaped_water, box, acr_cylinder, noise, noise_head, blobs_head),
            *(fine_blobs_head, coarse_blobs_head, patches_head, shells_head, textured_shells_head, two_cylinders),
            *(knee, spine, checkerboard, ramp_head, mirrored_fake_head),
        )
    }
)


def synthetic(name: str) -> Volume:
    """Return the impostor of that name as an MR volume."""
    return make_volume(SYNTHETIC[name](), _grid(), modality="MR")
