"""Volumes on any grid, bodies in millimetres, a network that anybody can compute: for tests from volume to findings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from dicom_node.engines import Signature, TensorSpec
from dicom_node.imaging import Grid, Volume
from dicom_node.plugin_api import Manifest
from dicom_node.study import Frame


def make_grid(
    shape: tuple[int, int, int] = (20, 24, 28),
    spacing_xyz: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    rotation: NDArray[np.float64] | None = None,
    shear: float = 0.0,
    centre_lps: tuple[float, float, float] = (5.0, -7.0, 30.0),
) -> Grid:
    """Return a grid about a centre; `shear` is how far the slice axis leans along y, as a fraction."""
    axes = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing_xyz)
    axes[:, 2] += shear * np.linalg.norm(axes[:, 2]) * axes[:, 1] / np.linalg.norm(axes[:, 1])
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.asarray(centre_lps) - axes @ ((np.array(shape[::-1]) - 1) / 2)
    return Grid(shape=shape, affine_lps=affine)


def make_volume(array: NDArray[Any], grid: Grid, *, modality: str = "CT") -> Volume:
    """Return a volume whose frames lie where the grid says."""
    x, y, z = grid.affine_lps[:3, :3].T
    row, column = x / np.linalg.norm(x), y / np.linalg.norm(y)
    frames = tuple(
        Frame(
            sop_instance_uid=f"2.25.{place + 1}",
            frame_number=1,
            position_mm=tuple((grid.affine_lps[:3, 3] + place * z).tolist()),
            orientation=(*row.tolist(), *column.tolist()),
            pixel_spacing_mm=(float(np.linalg.norm(y)), float(np.linalg.norm(x))),
            rows=grid.shape[1],
            columns=grid.shape[2],
            frame_of_reference_uid="2.25.9",
        )
        for place in range(grid.shape[0])
    )
    return Volume(array=np.asarray(array, dtype=np.float32), grid=grid, frames=frames, modality=modality)


def world(grid: Grid) -> NDArray[np.float64]:
    """Return the LPS position of every voxel centre, (Z, Y, X, 3)."""
    z, y, x = np.meshgrid(*(np.arange(size, dtype=float) for size in grid.shape), indexing="ij")
    return grid.to_world(np.stack([x, y, z], axis=-1))


def inside_ellipsoid(
    grid: Grid, centre: tuple[float, float, float], radii: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Return which voxel centres lie in an ellipsoid along the patient's axes."""
    return np.asarray((((world(grid) - centre) / radii) ** 2).sum(axis=-1) <= 1)


def blob(grid: Grid, centre: tuple[float, float, float], radius_mm: float, *, edge_mm: float = 3.0) -> NDArray[Any]:
    """Return a body that falls from 100 to 0 across its surface; it is 50 at `radius_mm`."""
    distance = np.linalg.norm(world(grid) - centre, axis=-1)
    return np.clip(50 + 50 * (radius_mm - distance) / edge_mm, 0, 100).astype(np.float32)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient."""
    return float(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))


def rotation_about(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the rotation by `angle` (radians) about `axis` (Rodrigues)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


@st.composite
def rotations(draw: st.DrawFn) -> NDArray[np.float64]:
    """Draw a rotation, mirrored or not: slices may be stacked either way."""
    axis = np.array([draw(st.floats(-1, 1)) for _ in range(2)] + [draw(st.floats(0.1, 1))])
    rotation = rotation_about(axis, draw(st.floats(0, 2 * np.pi)))
    return rotation @ np.diag([1.0, 1.0, draw(st.sampled_from([1.0, -1.0]))])


class Ramp:
    """An engine whose logits are known: `slope` * (image - `centre`) for the last class, 0 for the others."""

    def __init__(self, *, classes: int = 1, centre: float = 0.5, slope: float = 20.0, tensor: str = "image") -> None:
        self._classes, self._centre, self._slope = classes, centre, slope
        free = (None, None, None)
        self.signature = Signature(
            inputs=(TensorSpec(name=tensor, dtype="float32", shape=(None, 1, *free)),),
            outputs=(TensorSpec(name="logits", dtype="float32", shape=(None, classes, *free)),),
        )
        self.fingerprint = "ramp fp32"
        self.shapes: list[tuple[int, ...]] = []

    def memory_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return what the arrays take."""
        return 8 * sum(int(np.prod(shape)) for shape in shapes.values())

    def warm_up(self) -> None:
        """Do nothing: it is always warm."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Return the logits."""
        (image,) = inputs.values()
        self.shapes.append(image.shape)
        logits = np.zeros((image.shape[0], self._classes, *image.shape[2:]), dtype=np.float32)
        logits[:, -1] = self._slope * (image[:, 0] - self._centre)
        return {"logits": logits}

    def close(self) -> None:
        """Do nothing."""


def make_manifest(**tables: Any) -> Manifest:
    """Return a manifest whose network finds what is brighter than 50; `tables` replace whole tables."""
    triple = {"value": "52988006", "scheme": "SCT", "meaning": "Lesion"}
    base: dict[str, Any] = {
        "schema_version": 1,
        "plugin": {
            "id": "ramp",
            "version": "1.2.3",
            "name": "Ramp",
            "intended_use": "tests",
            "task": "segmentation",
            "demonstrator": True,
        },
        "input_series": [{"role": "ct"}],
        "input": [{"tensor": "image", "roles": ["ct"]}],
        "preprocess": {
            "spec_version": 1,
            "step": [
                {"kind": "orient", "axes": "SPL"},
                {"kind": "resample", "spacing_mm": [1.0, 1.0, 1.0]},
                {"kind": "normalise", "method": "linear", "low": 0.0, "high": 100.0},
            ],
        },
        "inference": {"mode": "whole"},
        "output": [
            {
                "tensor": "logits",
                "role": "logits",
                "activation": "sigmoid",
                "exclusive": False,
                "classes": ["Object"],
            }
        ],
        "postprocess": {"split": True},
        "segment": [{"label": "Object", "category": triple, "type": triple, "colour": [255, 0, 0]}],
        "model": [{"file": "1/model.onnx", "sha256": "0" * 64, "source": "tests", "licence": "Apache-2.0"}],
        "limits": {"time_s": 10.0, "ram_mb": 100},
    }
    return Manifest.model_validate(base | tables)
