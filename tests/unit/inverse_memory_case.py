"""A process of its own whose peak memory is measured: many classes through windows and back to an oblique source.

python inverse_memory_case.py EDGE CLASSES WINDOW      prints the peak in MB and how many classes were found
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_node.imaging import Prepared
from dicom_node.plugin_api import BACKGROUND
from dicom_node.predict import find, run_model
from tests.unit.imaging_case import make_grid, make_manifest, make_volume, rotation_about


class Columns:
    """A network whose class is a function of the voxel's value alone: bodies side by side, and a background."""

    def __init__(self, n_classes: int) -> None:
        self._levels = np.arange(n_classes, dtype=np.float32).reshape(1, -1, 1, 1, 1)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return logits that fall with the distance of the value from the level of each class."""
        (image,) = inputs.values()
        logits = np.subtract(image, self._levels)
        np.abs(logits, out=logits)
        logits *= -4
        return {"logits": logits}


def peak_mb() -> float:
    """Return the largest resident size that this process ever had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1000


def main(edge: int, n_classes: int, window: int) -> None:
    """Run it."""
    grid = make_grid((edge,) * 3)
    # Cubes of `cell` voxels, each of one class; a border of background.
    cell = max(4, edge // 12)
    place = np.arange(edge) // cell
    place = place.astype(np.float32)
    array = place[:, None, None] * 31 + place[None, :, None] * 7 + place[None, None, :]
    np.mod(array, n_classes, out=array)
    array[:3] = array[-3:] = 0
    source = make_grid((edge,) * 3, rotation=rotation_about(np.array([1.0, 2.0, 3.0]), 0.2))
    triple = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
    labels = [f"Class {number}" for number in range(1, n_classes)]
    manifest = make_manifest(
        inference={"mode": "window", "window": [window] * 3, "overlap": 0.25},
        output=[
            {
                "tensor": "logits",
                "role": "logits",
                "activation": "softmax",
                "exclusive": True,
                "classes": [BACKGROUND, *labels],
            }
        ],
        segment=[{"label": label, "category": triple, "type": triple, "colour": [9, 9, 9]} for label in labels],
        postprocess={"keep": "largest"},
    )
    prepared = Prepared(array=array, grid=grid)
    volume = make_volume(np.zeros(source.shape, dtype=np.float32), source)
    regions = run_model(prepared, manifest, Columns(n_classes))
    found = find(regions, grid, volume, manifest)
    sys.stdout.write(f"{peak_mb():.0f} {len(found)}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
