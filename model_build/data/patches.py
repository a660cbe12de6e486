"""Training pairs from phantoms: preprocessed by the node's own steps, so that the network sees what it will see.

A patch is a cube of one prepared phantom, turned and mirrored at random; its target is the filled fraction of each
voxel, computed from the objects themselves on the prepared grid. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_node.imaging.preprocess import prepare
from dicom_node.imaging.steps import Step
from dicom_node.imaging.volume import Volume
from model_build.phantoms import Phantom, make_phantom, object_occupancy
from model_build.plan import Patches
from model_build.volumes import volume_from_array

__all__ = ["Example", "draw_batch", "make_example", "volume_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Example:
    """One prepared phantom, (Z, Y, X); float16 and uint8 because many are held in memory."""

    image: NDArray[np.float16]
    filled: NDArray[np.uint8]
    """Filled fraction times 255."""
    objects: NDArray[np.float64]
    """(n, 3): array indices of the objects' centres, the largest first."""
    distractors: NDArray[np.float64]
    """(n, 3): array indices of the distractors' centres."""


def volume_of(phantom: Phantom) -> Volume:
    """Return the phantom as the volume that reading its series would give, unrounded."""
    return volume_from_array(phantom.array, phantom.affine_lps, modality="CT")


def make_example(seed: int, steps: Sequence[Step]) -> Example:
    """Return the prepared phantom of `seed` with its target."""
    phantom = make_phantom(seed)
    prepared = prepare(volume_of(phantom), steps)
    filled = object_occupancy(phantom.objects, prepared.grid.shape, prepared.grid.affine_lps)

    def indices(centres: Sequence[tuple[float, float, float]]) -> NDArray[np.float64]:
        return prepared.grid.to_voxel(np.array(centres, dtype=np.float64).reshape(-1, 3))[:, ::-1]

    return Example(
        image=prepared.array.astype(np.float16),
        filled=np.rint(filled * 255).astype(np.uint8),
        objects=indices([each.centre_lps_mm for each in phantom.objects]),
        distractors=indices([each.centre_lps_mm for each in phantom.distractors]),
    )


def draw_batch(
    rng: np.random.Generator, examples: Sequence[Example], patches: Patches
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return images and targets of one step, each (batch, 1, edge, edge, edge) float32."""
    images: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float32]] = []
    for _ in range(patches.batch):
        example = examples[int(rng.integers(len(examples)))]
        box = _draw_box(rng, example, patches)
        turn = _Turn(axes=rng.permutation(3), flips=np.flatnonzero(rng.random(3) < 0.5))
        images.append(turn.of(example.image[box]).astype(np.float32))
        targets.append(turn.of(example.filled[box]).astype(np.float32) / np.float32(255))
    return np.stack(images)[:, None], np.stack(targets)[:, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Turn:
    """One of the 48 ways to lay a cube on itself: the phantom has no up."""

    axes: NDArray[np.int64]
    flips: NDArray[np.int64]

    def of(self, cube: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the cube, turned."""
        return np.flip(cube.transpose(self.axes), axis=tuple(self.flips))


def _draw_box(rng: np.random.Generator, example: Example, patches: Patches) -> tuple[slice, slice, slice]:
    """Return a cube of the example: around an object, around a distractor, or anywhere."""
    shape, edge = np.array(example.image.shape), patches.edge
    kind = rng.random()
    if kind < patches.at_objects and len(example.objects):
        # The later of two draws: objects are sorted by size, and the small ones are the hard ones.
        near = example.objects[rng.integers(len(example.objects), size=2).max()]
    elif kind < patches.at_objects + patches.at_distractors and len(example.distractors):
        near = example.distractors[rng.integers(len(example.distractors))]
    else:
        near = rng.uniform(0, shape, 3)
    centre = near + rng.uniform(-edge / 4, edge / 4, 3)
    start = np.clip(np.rint(centre - edge / 2).astype(int), 0, np.maximum(shape - edge, 0))
    z, y, x = (slice(int(first), int(first) + edge) for first in start)
    return z, y, x
