"""Augmentation: an image and its label, changed together and at random, the same for the same generator. Pure.

Geometry is one affine about the centre of the patch, applied once: what is turned, scaled and shifted in turn would be
blurred three times. Lengths count: angles and scales are meant in mm, so that an anisotropic patch is turned and not
sheared. Intensities are changed in the network's unit (after `prepare`), the label never.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

__all__ = ["Augmentation", "augment"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How much of what; the zeros and empty defaults change nothing."""

    flip_axes: tuple[int, ...] = ()
    """Array axes that are mirrored with a chance of one half; none where left and right differ."""
    rotate_degrees: float = 0.0
    """Largest angle about each axis (3-D) or in the plane (2-D)."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Above 1: things become larger."""
    crop: tuple[int, ...] | None = None
    """Shape that is cut out at random; None: the whole patch."""
    shift: float = 0.0
    """Largest offset added to the intensities."""
    gain: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    """Largest standard deviation of white noise."""
    gamma: tuple[float, float] = (1.0, 1.0)
    """Exponent over the patch's own range."""


def augment(
    rng: np.random.Generator,
    image: FloatArray,
    label: NDArray[np.generic] | None,
    how: Augmentation,
    *,
    spacing_mm: tuple[float, ...] | None = None,
    label_order: int = 0,
) -> tuple[FloatArray, NDArray[np.generic] | None]:
    """Return image and label, changed alike; both are new arrays.

    Parameters
    ----------
    image
        (Z, Y, X) or (Y, X), float32.
    label
        Of the same shape: class numbers (`label_order` 0) or filled fractions (1); None for a class of the whole.
    spacing_mm
        Of the array axes; None: equal.

    Raises
    ------
    ValueError
        Image and label differ in shape, or the crop is larger than the image.
    """
    if label is not None and label.shape != image.shape:
        raise ValueError(f"an image {image.shape} and a label {label.shape}")
    flips = tuple(axis for axis in how.flip_axes if rng.random() < 0.5)
    image = np.flip(image, flips)
    label = None if label is None else np.flip(label, flips)
    matrix = _matrix(rng, image.ndim, how, np.asarray(spacing_mm or (1.0,) * image.ndim))
    if not np.allclose(matrix, np.eye(image.ndim)):
        image = np.asarray(_moved(image, matrix, 1), dtype=np.float32)
        label = None if label is None else _moved(label, matrix, label_order)
    if how.crop is not None:
        box = _box(rng, image.shape, how.crop)
        image, label = image[box], None if label is None else label[box]
    return _intensities(rng, np.array(image, dtype=np.float32), how), None if label is None else label.copy()


def _matrix(
    rng: np.random.Generator, n_axes: int, how: Augmentation, spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the matrix from output to input index, about the centre."""
    turn = np.eye(n_axes)
    planes = [(0, 1)] if n_axes == 2 else [(0, 1), (0, 2), (1, 2)]
    for first, second in planes:
        angle = np.deg2rad(rng.uniform(-how.rotate_degrees, how.rotate_degrees))
        one = np.eye(n_axes)
        one[first, first] = one[second, second] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    factor = float(np.exp(rng.uniform(*np.log(how.scale))))
    return np.asarray(np.diag(1 / spacing) @ turn @ np.diag(spacing) / factor)


def _moved(array: NDArray[np.generic], matrix: NDArray[np.float64], order: int) -> NDArray[np.generic]:
    centre = (np.array(array.shape) - 1) / 2
    mode = "nearest" if order else "constant"
    return np.asarray(affine_transform(array, matrix, offset=centre - matrix @ centre, order=order, mode=mode))


def _box(rng: np.random.Generator, shape: tuple[int, ...], crop: tuple[int, ...]) -> tuple[slice, ...]:
    if len(crop) != len(shape) or any(part > whole for part, whole in zip(crop, shape, strict=True)):
        raise ValueError(f"{crop} cannot be cut out of {shape}")
    starts = [int(rng.integers(whole - part + 1)) for part, whole in zip(crop, shape, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(starts, crop, strict=True))


def _intensities(rng: np.random.Generator, image: FloatArray, how: Augmentation) -> FloatArray:
    gamma = float(np.exp(rng.uniform(*np.log(how.gamma))))
    low, high = float(image.min()), float(image.max())
    if gamma != 1.0 and high > low:
        image = ((image - low) / (high - low)) ** np.float32(gamma) * (high - low) + low
    image = image * np.float32(rng.uniform(*how.gain)) + np.float32(rng.uniform(-how.shift, how.shift))
    if how.noise:
        image = image + rng.uniform(0, how.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image, dtype=np.float32)
