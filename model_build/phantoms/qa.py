"""The QA phantom: a CT of a water cylinder whose spheres and ellipsoids have exactly known place, size and density.

Like the test objects of a physics department: it measures a whole chain of scanner, network, node and archive, and is
nothing clinical. Everything follows from the seed. Beside the objects lie things that must *not* be reported: bright
rods and plates, inserts lighter than water, air holes, dots below the resolution. Lengths mm, densities HU, positions
LPS. No torch here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_node.ids import derived_uid
from dicom_node.reading.synthetic import write_series
from model_build.phantoms.solids import Rotation, Solid, Vector, occupancy, rotation_from, segment_distance_mm

__all__ = ["Orientation", "Phantom", "PhantomObject", "StudyFiles", "make_phantom", "object_occupancy", "write_study"]

Orientation: TypeAlias = Literal["axial", "oblique"]
Kind: TypeAlias = Literal["sphere", "ellipsoid"]

AIR_HU, WATER_HU = -1000.0, 0.0
RADIUS_MM, HALF_LENGTH_MM = 48.0, 48.0
"""Of the water cylinder."""
FIELD_MM = 144.0
"""Edge of the imaged cube: holds the cylinder in every orientation (diagonal 135.8 mm) and a rim of air."""
GAP_MM = 4.0
"""Least distance between any two solids and from the wall: two findings never touch."""
NOISE_SD_HU = (12.0, 16.0)
OBJECT_HU = (40.0, 120.0)
FAINTEST_SMALL_HU = 75.0
"""Of an object of 8 mm; it falls to 40 HU at 16 mm. Test objects pair size and contrast in the same way: what is both
small and faint tells of the noise and not of the chain."""
BAR_HU = (250.0, 900.0)
N_OBJECTS = (5, 9)
SMALL_DIAMETER_MM, LARGE_DIAMETER_MM = (9.0, 24.0), (24.0, 36.0)
"""Of the smallest axis, the small ones spread evenly over its logarithm; one object in five is large."""
IN_PLANE_MM, SLICE_MM = (0.8, 1.1), (1.0, 1.5)
_NOISE_KERNEL = np.array([0.1, 1.0, 0.1])
"""Along each axis: neighbours correlate by a fifth. With a half, the noise alone would move the volume of a faint 8 mm
sphere by more than what is asked of the measurement."""
_IDENTITY: Rotation = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomObject:
    """A sphere or an ellipsoid that must be found."""

    number: int
    """1-based, the largest first."""
    kind: Kind
    centre_lps_mm: Vector
    semi_axes_mm: Vector
    rotation: Rotation
    hu: float
    """Above water, in HU."""
    volume_ml: float

    @property
    def diameter_mm(self) -> float:
        """Return the longest diameter."""
        return 2 * max(self.semi_axes_mm)

    @property
    def smallest_diameter_mm(self) -> float:
        """Return the shortest diameter: what decides whether it must be found."""
        return 2 * min(self.semi_axes_mm)


@dataclass(frozen=True, eq=False, kw_only=True)
class Phantom:
    """An imaged phantom and the truth about it.

    `array` is float32 HU, (Z, Y, X); `affine_lps` 4x4 voxel (x, y, z) -> LPS mm; `slice_order[k]` is the slice that
    instance k + 1 shows.
    """

    seed: int
    orientation: Orientation
    array: NDArray[np.float32]
    affine_lps: NDArray[np.float64]
    slice_order: tuple[int, ...]
    objects: tuple[PhantomObject, ...]
    distractors: tuple[Solid, ...]

    def truth(self) -> dict[str, object]:
        """Return what truth.json says, without the UIDs."""
        return {
            "seed": self.seed,
            "orientation": self.orientation,
            "spacing_mm": [round(float(value), 6) for value in np.linalg.norm(self.affine_lps[:3, :3], axis=0)[::-1]],
            "objects": [
                {
                    "number": each.number,
                    "kind": each.kind,
                    "centre_lps_mm": [round(value, 4) for value in each.centre_lps_mm],
                    "semi_axes_mm": [round(value, 4) for value in each.semi_axes_mm],
                    "diameter_mm": round(each.diameter_mm, 4),
                    "smallest_diameter_mm": round(each.smallest_diameter_mm, 4),
                    "volume_ml": round(each.volume_ml, 6),
                    "hu": round(each.hu, 2),
                }
                for each in self.objects
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFiles:
    """A phantom study on disk."""

    folder: Path
    instances: tuple[Path, ...]
    truth: Path
    study_instance_uid: str
    series_instance_uid: str


def make_phantom(
    seed: int,
    *,
    orientation: Orientation = "oblique",
    empty: bool = False,
    in_plane_mm: tuple[float, float] = IN_PLANE_MM,
    slice_mm: tuple[float, float] = SLICE_MM,
) -> Phantom:
    """Return the phantom of `seed`: the same for the same arguments.

    Parameters
    ----------
    orientation
        "oblique": cylinder and slice stack turned at random and independently, instances in random order; "axial":
        the cylinder lies along the slice axis and the instances are in order.
    empty
        Distractors only: the right answer is an explicit "nothing found".
    in_plane_mm, slice_mm
        Ranges of the pixel spacing and of the distance between slices.
    """
    rng = np.random.default_rng(seed)
    affine, shape = _random_grid(rng, orientation, in_plane_mm, slice_mm)
    middle = affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2) + affine[:3, 3]
    turned = rotation_from(rng.normal(size=4)) if orientation == "oblique" else _IDENTITY
    cylinder = Solid(
        shape="cylinder",
        centre_lps_mm=_vector(middle + rng.uniform(-2, 2, 3)),
        half_mm=(RADIUS_MM, RADIUS_MM, HALF_LENGTH_MM),
        rotation=turned,
        hu=WATER_HU,
    )
    solids = [] if empty else _place(rng, cylinder, _random_objects(rng), [])
    distractors = _place(rng, cylinder, _random_distractors(rng), solids)
    array = _render([cylinder, *solids, *distractors], shape, affine)
    array += rng.uniform(*NOISE_SD_HU) * _correlated_noise(rng, shape)
    order = rng.permutation(shape[0]) if orientation == "oblique" else np.arange(shape[0])
    return Phantom(
        seed=seed,
        orientation=orientation,
        array=array,
        affine_lps=affine,
        slice_order=tuple(int(z) for z in order),
        objects=_numbered(solids),
        distractors=tuple(distractors),
    )


def object_occupancy(
    objects: tuple[PhantomObject, ...], shape: tuple[int, int, int], affine_lps: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return the fraction 0..1 of each voxel of any grid (Z, Y, X) that lies in an object: what a network learns."""
    filled = np.zeros(shape, dtype=np.float32)
    for each in objects:
        solid = Solid(
            shape="ellipsoid",
            centre_lps_mm=each.centre_lps_mm,
            half_mm=each.semi_axes_mm,
            rotation=each.rotation,
            hu=each.hu,
        )
        window, part = occupancy(solid, shape, affine_lps)
        filled[window] += part
    return filled


def write_study(phantom: Phantom, folder: Path, *, uid_root: str, acquired_at: datetime) -> StudyFiles:
    """Write the series into `folder`/dicom and `folder`/truth.json beside it.

    Parameters
    ----------
    uid_root
        Every UID of the study is derived from it.
    acquired_at
        Becomes the date and time of study, series and content.
    """
    study_instance_uid = derived_uid(uid_root, "phantom/study")
    series_instance_uid = derived_uid(uid_root, "phantom/series")
    date, time = acquired_at.strftime("%Y%m%d"), acquired_at.strftime("%H%M%S")
    instances = write_series(
        folder / "dicom",
        phantom.array,
        phantom.affine_lps,
        headers={
            "PatientID": f"QA-PHANTOM-{phantom.seed}",
            "StudyDescription": "QA phantom",
            "SeriesDescription": "QA PHANTOM",
            "Manufacturer": "Test object",
            "ManufacturerModelName": "QA phantom",
            "StudyDate": date,
            "SeriesDate": date,
            "AcquisitionDate": date,
            "ContentDate": date,
            "StudyTime": time,
            "SeriesTime": time,
            "AcquisitionTime": time,
            "ContentTime": time,
        },
        study_instance_uid=study_instance_uid,
        series_instance_uid=series_instance_uid,
        frame_of_reference_uid=derived_uid(uid_root, "phantom/frame_of_reference"),
        uid_root=uid_root,
        order=phantom.slice_order,
    )
    uids = {"study_instance_uid": study_instance_uid, "series_instance_uid": series_instance_uid}
    truth = folder / "truth.json"
    truth.write_text(json.dumps(phantom.truth() | uids, indent=2) + "\n", encoding="utf-8")
    return StudyFiles(folder=folder, instances=tuple(instances), truth=truth, **uids)


def _random_grid(
    rng: np.random.Generator, orientation: Orientation, in_plane_mm: tuple[float, float], slice_mm: tuple[float, float]
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:
    """Return an affine and a shape (Z, Y, X) that cover the field, anywhere within 60 mm of the origin."""
    in_plane, distance = round(rng.uniform(*in_plane_mm), 3), round(rng.uniform(*slice_mm), 3)
    rotation = np.asarray(rotation_from(rng.normal(size=4)) if orientation == "oblique" else _IDENTITY)
    columns, slices = int(np.ceil(FIELD_MM / in_plane)), int(np.ceil(FIELD_MM / distance))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (in_plane, in_plane, distance)
    extent = np.array([columns - 1, columns - 1, slices - 1]) / 2
    affine[:3, 3] = rng.uniform(-60, 60, 3) - affine[:3, :3] @ extent
    return affine, (slices, columns, columns)


def _random_objects(rng: np.random.Generator) -> list[Solid]:
    """Return spheres and ellipsoids at the origin, the largest first, which makes them easiest to place."""
    solids = []
    for _ in range(int(rng.integers(*N_OBJECTS, endpoint=True))):
        bounds = np.log(LARGE_DIAMETER_MM if rng.random() < 0.2 else SMALL_DIAMETER_MM)
        smallest = float(np.exp(rng.uniform(*bounds))) / 2
        is_sphere = rng.random() < 0.5
        stretch = np.ones(3) if is_sphere else np.array([1.0, *rng.uniform(1.05, 1.6, 2)])
        half = np.minimum(smallest * stretch, LARGE_DIAMETER_MM[1] / 2)
        faintest = np.interp(2 * smallest, (8.0, 16.0), (FAINTEST_SMALL_HU, OBJECT_HU[0]))
        solids.append(_at_origin(rng, "ellipsoid", half, rng.uniform(faintest, OBJECT_HU[1]), turned=not is_sphere))
    return sorted(solids, key=lambda solid: -solid.volume_mm3)


def _random_distractors(rng: np.random.Generator) -> list[Solid]:
    """Return what must not be found: bright bars and plates, light inserts, air holes, dots below the resolution."""
    solids = []
    for _ in range(int(rng.integers(1, 3, endpoint=True))):
        radius, hu = rng.uniform(1.5, 4.0), rng.uniform(*BAR_HU)
        solids.append(_at_origin(rng, "cylinder", (radius, radius, rng.uniform(10, 30)), hu))
    for _ in range(int(rng.integers(0, 2, endpoint=True))):
        edges = (rng.uniform(1.0, 2.5), rng.uniform(4, 8), rng.uniform(8, 20))
        solids.append(_at_origin(rng, "box", edges, rng.uniform(*BAR_HU)))
    for _ in range(int(rng.integers(1, 3, endpoint=True))):
        solids.append(_at_origin(rng, "ellipsoid", np.full(3, rng.uniform(1.5, 5)), rng.uniform(-1000, -300)))
    for _ in range(int(rng.integers(0, 2, endpoint=True))):
        half = rng.uniform(4, 9) * rng.uniform(1, 1.4, 3)
        solids.append(_at_origin(rng, "ellipsoid", half, rng.uniform(-120, -40)))
    for _ in range(int(rng.integers(2, 6, endpoint=True))):
        solids.append(_at_origin(rng, "ellipsoid", np.full(3, rng.uniform(0.75, 1.25)), rng.uniform(40, 120)))
    return solids


def _at_origin(
    rng: np.random.Generator,
    shape: Literal["ellipsoid", "cylinder", "box"],
    half_mm: NDArray[np.float64] | Vector,
    hu: float,
    *,
    turned: bool = True,
) -> Solid:
    """Return a solid that is turned at random and not placed yet."""
    rotation = rotation_from(rng.normal(size=4)) if turned else _IDENTITY
    half = _vector(np.asarray(half_mm))
    return Solid(shape=shape, centre_lps_mm=(0.0, 0.0, 0.0), half_mm=half, rotation=rotation, hu=float(hu))


def _place(rng: np.random.Generator, cylinder: Solid, solids: list[Solid], taken: list[Solid]) -> list[Solid]:
    """Return the solids at free places inside the cylinder; one that finds none in 300 tries is left out."""
    placed: list[Solid] = []
    for solid in solids:
        for _ in range(300):
            own = rng.uniform(-1, 1, 3) * cylinder.half_mm
            centre = np.asarray(cylinder.rotation) @ own + cylinder.centre_lps_mm
            candidate = _moved(solid, centre)
            if _is_inside(candidate, cylinder) and all(
                segment_distance_mm(candidate, other) >= GAP_MM for other in [*taken, *placed]
            ):
                placed.append(candidate)
                break
    return placed


def _moved(solid: Solid, centre: NDArray[np.float64]) -> Solid:
    """Return the solid with its centre elsewhere."""
    return Solid(
        shape=solid.shape, centre_lps_mm=_vector(centre), half_mm=solid.half_mm, rotation=solid.rotation, hu=solid.hu
    )


def _is_inside(solid: Solid, cylinder: Solid) -> bool:
    """Return whether the capsule of the solid stays `GAP_MM` away from the wall; a cylinder is convex."""
    start, end, radius = solid.segment
    return bool(cylinder.margin_mm(np.stack([start, end])).max() <= -(radius + GAP_MM))


def _render(solids: list[Solid], shape: tuple[int, int, int], affine_lps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the HU of each voxel, partial volume included: later solids lie within the earlier ones' water."""
    array = np.full(shape, AIR_HU, dtype=np.float32)
    for solid in solids:
        window, part = occupancy(solid, shape, affine_lps)
        array[window] += part * (solid.hu - array[window])
    return array


def _correlated_noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return noise of standard deviation 1 whose neighbours correlate."""
    noise = rng.standard_normal([size + 2 for size in shape], dtype=np.float32)
    kernel = (_NOISE_KERNEL / np.linalg.norm(_NOISE_KERNEL)).astype(np.float32)
    for axis, size in enumerate(shape):
        before, here, after = (np.take(noise, range(start, start + size), axis=axis) for start in range(3))
        noise = kernel[0] * before + kernel[1] * here + kernel[2] * after
    return noise


def _numbered(solids: list[Solid]) -> tuple[PhantomObject, ...]:
    """Return the placed solids as objects, the largest first."""
    return tuple(
        PhantomObject(
            number=number,
            kind="sphere" if len(set(solid.half_mm)) == 1 else "ellipsoid",
            centre_lps_mm=solid.centre_lps_mm,
            semi_axes_mm=solid.half_mm,
            rotation=solid.rotation,
            hu=solid.hu,
            volume_ml=solid.volume_mm3 / 1000,
        )
        for number, solid in enumerate(sorted(solids, key=lambda solid: -solid.volume_mm3), 1)
    )


def _vector(values: NDArray[np.float64]) -> Vector:
    """Return three floats."""
    x, y, z = (float(value) for value in values)
    return x, y, z
