"""Real heads changed: as another scanner, coil or position would show them, and as no head may look.

Each change takes a volume and gives a new one; noise comes from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_node.imaging import Grid, Volume
from tests.unit.imaging_case import make_volume, rotation_about, world

Change: TypeAlias = Callable[[Volume], Volume]


def _made(volume: Volume, array: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Volume:
    shape = (array.shape[0], array.shape[1], array.shape[2])
    grid = Grid(shape=shape, affine_lps=volume.grid.affine_lps if affine is None else affine)
    return make_volume(array, grid, modality="MR")


def _middle(volume: Volume) -> NDArray[np.float64]:
    return volume.grid.to_world((np.array(volume.grid.shape[::-1]) - 1) / 2)


def _at(volume: Volume, axis: int) -> NDArray[np.float64]:
    """Return each voxel's place along an axis of LPS, about the middle, in mm."""
    return world(volume.grid)[..., axis] - _middle(volume)[axis]


def _bright(volume: Volume) -> float:
    return float(np.percentile(volume.array, 95))


def turned(axis: Sequence[float], degrees: float) -> Change:
    """Return the change that turns the head about an axis through its middle."""

    def change(volume: Volume) -> Volume:
        rotation = rotation_about(np.array(axis, dtype=float), float(np.radians(degrees)))
        affine = volume.grid.affine_lps.copy()
        affine[:3, :3] = rotation @ affine[:3, :3]
        affine[:3, 3] = rotation @ (affine[:3, 3] - _middle(volume)) + _middle(volume)
        return _made(volume, volume.array, affine)

    return change


def scaled(*factors: float) -> Change:
    """Return the change of size along x, y and z of LPS."""

    def change(volume: Volume) -> Volume:
        affine = volume.grid.affine_lps.copy()
        affine[:3] *= np.array(factors)[:, np.newaxis]
        return _made(volume, volume.array, affine)

    return change


def shaded(axis: int, amount: float) -> Change:
    """Return the change by a coil whose sensitivity grows by exp(amount) over 100 mm."""
    return lambda volume: _made(volume, volume.array * np.exp(amount * _at(volume, axis) / 100))


def noisy(share: float) -> Change:
    """Return the change by noise of this share of the bright tissue's value."""

    def change(volume: Volume) -> Volume:
        rng = np.random.default_rng(0)
        sd = share * _bright(volume)
        first, second = (sd * rng.standard_normal(volume.array.shape) for _ in range(2))
        return _made(volume, np.hypot(volume.array + first, second))

    return change


def contrast(gamma: float) -> Change:
    """Return the change of contrast: bright over dark to this power."""

    def change(volume: Volume) -> Volume:
        top = np.percentile(volume.array, 99.9)
        return _made(volume, np.clip(volume.array / top, 0, None) ** gamma * top)

    return change


def cut_below(keep_mm: float) -> Change:
    """Return the change that keeps this much from the vertex downwards."""

    def change(volume: Volume) -> Volume:
        up = _at(volume, 2)
        return _made(volume, np.where(up < _vertex(volume, up) - keep_mm, 0, volume.array))

    return change


def _vertex(volume: Volume, up: NDArray[np.float64]) -> float:
    return float(np.percentile(up[volume.array > 0.25 * _bright(volume)], 99.7))


def coarse(volume: Volume) -> Volume:
    """Return the head at about 2 mm."""
    steps = [max(1, round(2 / step)) for step in volume.grid.spacing_mm]
    smooth = ndimage.gaussian_filter(volume.array, [step / 2.355 if step > 1 else 0 for step in steps])
    affine = volume.grid.affine_lps.copy()
    affine[:3, :3] = affine[:3, :3] @ np.diag(steps[::-1])
    return _made(volume, smooth[tuple(slice(None, None, step) for step in steps)], affine)


def _mirrored(axis: int) -> Change:
    """Return the change of a header that has one axis of the patient the wrong way round."""

    def change(volume: Volume) -> Volume:
        affine = volume.grid.affine_lps.copy()
        affine[axis] *= -1
        return _made(volume, volume.array, affine)

    return change


def _on_its_side(volume: Volume) -> Volume:
    """Return the head whose header takes left for up."""
    return _made(volume, volume.array, volume.grid.affine_lps[[2, 1, 0, 3]])


def _inverted(volume: Volume) -> Volume:
    """Return fluid bright, white matter dark and fat black, as no T1 shows them."""
    top = np.percentile(volume.array, 99)
    inside = ndimage.binary_fill_holes(volume.array > 0.08 * top)
    return _made(volume, np.where(inside, np.clip(top - volume.array, 0, None), volume.array))


def _scrambled(volume: Volume) -> Volume:
    """Return an image with the head's spectrum and nobody's phase."""
    noise = np.fft.rfftn(np.random.default_rng(3).standard_normal(volume.array.shape))
    image = np.fft.irfftn(
        np.abs(np.fft.rfftn(volume.array)) * noise / np.abs(noise), s=volume.array.shape, axes=(0, 1, 2)
    )
    return _made(volume, np.clip(image, 0, None))


def _shuffled(volume: Volume) -> Volume:
    """Return the slices in any order."""
    return _made(volume, volume.array[np.random.default_rng(3).permutation(len(volume.array))])


def _blurred(volume: Volume) -> Volume:
    return _made(volume, ndimage.gaussian_filter(volume.array, [8 / step for step in volume.grid.spacing_mm]))


ALLOWED: Mapping[str, Change] = MappingProxyType(
    {
        "as it is": lambda volume: volume,
        "noise 5 %": noisy(0.05),
        "noise 10 %": noisy(0.10),
        "shaded left-right": shaded(0, 0.5),
        "shaded front-back": shaded(1, -0.5),
        "shaded head-feet": shaded(2, 0.5),
        "nodding 15": turned((1, 0, 0), 15),
        "nodding -15": turned((1, 0, 0), -15),
        "tilted 15": turned((0, 1, 0), 15),
        "turned -15": turned((0, 0, 1), -15),
        "170 mm from the vertex": cut_below(170),
        "2 mm": coarse,
        "flatter contrast": contrast(0.7),
        "steeper contrast": contrast(1.3),
        "intensities x 0.7": lambda volume: _made(volume, volume.array * 0.7),
        "intensities x 1.3": lambda volume: _made(volume, volume.array * 1.3),
        "smaller by 13 %": scaled(0.87, 0.87, 0.87),
        "larger by 8 %": scaled(1.08, 1.08, 1.08),
    }
)

TAMPERED: Mapping[str, Change] = MappingProxyType(
    {
        "inverted contrast": _inverted,
        "upside down": _mirrored(2),
        "back to front": _mirrored(1),
        "on its side": _on_its_side,
        "right half": lambda volume: _made(volume, np.where(_at(volume, 0) < 0, 0, volume.array)),
        "only the top": cut_below(75),
        "only the face": lambda volume: _made(
            volume, np.where(_at(volume, 2) > _vertex(volume, _at(volume, 2)) - 80, 0, volume.array)
        ),
        "scrambled phase": _scrambled,
        "shuffled slices": _shuffled,
        "blurred": _blurred,
        "60 % of its size": scaled(0.6, 0.6, 0.6),
        "135 % of its size": scaled(1.35, 1.35, 1.35),
        "60 % of its height": scaled(1.0, 1.0, 0.6),
    }
)
