"""Chest CT phantoms with nodules of known place, size and kind. Everything follows from the seed; nothing is a patient.

Anatomy is smooth, so its distances are computed on a coarse grid and interpolated to each plane by two matrix products:
a study of 200 slices takes seconds on one core. Vessels and nodules are drawn into their own windows, nodules by
supersampling. Then the `scanner` makes an image of it. `shifted` asks for another scanner, with the same chests.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_node.ids import derived_uid
from dicom_node.reading.synthetic import write_series
from model_build.phantoms.anatomy import (
    Anatomy,
    Capsule,
    Distance,
    clearance_mm,
    points_in,
    random_anatomy,
    random_vessels,
)
from model_build.phantoms.nodules import Attachment, Nodule, Texture, nodule_parts, random_nodule, sampled
from model_build.phantoms.qa import StudyFiles
from model_build.phantoms.scanner import SCANNER, SHIFTED_SCANNER, Acquisition, acquire, acquisition
from model_build.phantoms.solids import rotation_from

__all__ = ["ChestPhantom", "make_chest", "nodule_occupancy", "write_chest"]

FloatArray = NDArray[np.float32]
DIAMETER_MM = (4.0, 30.0)
N_NODULES = (1, 6)
GAP_MM = 6.0
"""Between nodules."""
CLEAR_MM = 2.0
"""Between a free nodule and pleura or vessels."""
_COARSE_MM = 3.0
_TRIES = 300
_AIR, _FAT, _SOFT, _BONE = -1000.0, -100.0, 45.0, 380.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ChestPhantom:
    """An imaged chest and the truth about it: `array` float32 HU (Z, Y, X), affine voxel (x, y, z) -> LPS mm."""

    seed: int
    shifted: bool
    array: FloatArray
    affine_lps: NDArray[np.float64]
    acquisition: Acquisition
    anatomy: Anatomy
    nodules: tuple[Nodule, ...]

    def truth(self) -> dict[str, object]:
        """Return what truth.json says, without the UIDs: lengths mm, volumes ml."""
        return {
            "seed": self.seed,
            "shifted": self.shifted,
            "acquisition": dataclasses.asdict(self.acquisition),
            "objects": [
                {
                    "number": each.number,
                    "texture": each.texture,
                    "attachment": each.attachment,
                    "centre_lps_mm": [round(value, 3) for value in each.centre_lps_mm],
                    "diameter_mm": round(each.diameter_mm, 3),
                    "volume_ml": round(each.volume_ml, 5),
                    "hu": round(each.hu, 1),
                }
                for each in self.nodules
            ],
        }


def make_chest(seed: int, *, shifted: bool = False, empty: bool = False) -> ChestPhantom:
    """Return the chest of `seed`: the same for the same arguments.

    Parameters
    ----------
    shifted
        Taken by the other scanner; the same chest with the same nodules.
    empty
        No nodule: the right answer is an explicit "nothing found".
    """
    body_rng, scan_rng = (np.random.default_rng([seed, stream]) for stream in (1, 3 if shifted else 2))
    anatomy = random_anatomy(body_rng)
    vessels = random_vessels(body_rng, anatomy)
    nodules = () if empty else _place(body_rng, anatomy, vessels)
    clutter = _clutter(body_rng, anatomy, nodules)
    how = acquisition(scan_rng, SHIFTED_SCANNER if shifted else SCANNER)
    shape, affine, planes_affine = _grids(anatomy, how)
    planes = _background(body_rng, anatomy, (shape[0] * how.oversampling, *shape[1:]), planes_affine)
    for piece in (*vessels, *clutter):
        _draw_capsule(planes, planes_affine, piece)
    for nodule in nodules:
        window, whole, core = nodule_parts(nodule, anatomy.lungs, planes.shape, planes_affine)
        part = planes[window]
        part += whole * np.maximum(nodule.hu - part, 0)
        part += core * np.maximum(nodule.core_hu - part, 0)
    return ChestPhantom(
        seed=seed,
        shifted=shifted,
        array=acquire(scan_rng, planes, how),
        affine_lps=affine,
        acquisition=how,
        anatomy=anatomy,
        nodules=nodules,
    )


def write_chest(phantom: ChestPhantom, folder: Path, *, uid_root: str, acquired_at: datetime) -> StudyFiles:
    """Write the series into `folder`/dicom and `folder`/truth.json beside it; every UID comes from `uid_root`."""
    study_uid, series_uid = (derived_uid(uid_root, f"chest/{level}") for level in ("study", "series"))
    date, time = acquired_at.strftime("%Y%m%d"), acquired_at.strftime("%H%M%S")
    how = phantom.acquisition
    instances = write_series(
        folder / "dicom",
        np.clip(phantom.array, -1024, 3071),
        phantom.affine_lps,
        headers={
            "PatientID": f"CHEST-PHANTOM-{phantom.seed}",
            "StudyDescription": "Chest phantom",
            "SeriesDescription": "CHEST PHANTOM",
            "Manufacturer": "Test object",
            "ManufacturerModelName": how.scanner,
            "ConvolutionKernel": how.kernel,
            "SliceThickness": how.thickness_mm,
            **{f"{level}Date": date for level in ("Study", "Series", "Acquisition", "Content")},
            **{f"{level}Time": time for level in ("Study", "Series", "Acquisition", "Content")},
        },
        frame_of_reference_uid=derived_uid(uid_root, "chest/frame_of_reference"),
        uid_root=uid_root,
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
    )
    uids = {"study_instance_uid": study_uid, "series_instance_uid": series_uid}
    truth = folder / "truth.json"
    truth.write_text(json.dumps(phantom.truth() | uids, indent=2) + "\n", encoding="utf-8")
    return StudyFiles(
        folder=folder,
        instances=tuple(instances),
        truth=truth,
        study_instance_uid=study_uid,
        series_instance_uid=series_uid,
    )


def nodule_occupancy(phantom: ChestPhantom, shape: tuple[int, int, int], affine_lps: NDArray[np.float64]) -> FloatArray:
    """Return the fraction 0..1 of each voxel of any grid (Z, Y, X) that lies in a nodule: what a network learns."""
    filled = np.zeros(shape, dtype=np.float32)
    for nodule in phantom.nodules:
        window, whole, _ = nodule_parts(nodule, phantom.anatomy.lungs, shape, affine_lps)
        filled[window] = np.maximum(filled[window], whole)
    return filled


def _grids(anatomy: Anatomy, how: Acquisition) -> tuple[tuple[int, int, int], NDArray[np.float64], NDArray[np.float64]]:
    """Return the shape of the image, its affine, and the affine of the planes that are rendered for it."""
    steps = (how.distance_mm, how.pixel_mm, how.pixel_mm)
    z, y, x = (int(np.ceil((high - low) / step)) for (low, high), step in zip(anatomy.box_mm, steps, strict=True))
    affine: NDArray[np.float64] = np.diag([how.pixel_mm, how.pixel_mm, how.distance_mm, 1.0])
    affine[:3, 3] = [low for low, _ in anatomy.box_mm][::-1]
    planes = affine.copy()
    step = how.distance_mm / how.oversampling
    planes[2, 2] = step
    # A slice lies in the middle of its planes, as the scanner takes them together.
    planes[2, 3] -= step * (how.oversampling - 1) / 2
    return (z, y, x), affine, planes


def _place(rng: np.random.Generator, anatomy: Anatomy, vessels: list[Capsule]) -> tuple[Nodule, ...]:
    """Return nodules at places of their kind, measured; the largest is 1."""
    placed: list[Nodule] = []
    for _ in range(int(rng.integers(*N_NODULES, endpoint=True))):
        diameter = float(np.exp(rng.uniform(*np.log(DIAMETER_MM))))
        texture: Texture = "part_solid" if diameter >= 8 and rng.random() < 0.35 else "solid"
        kinds: tuple[Attachment, ...] = ("free", "pleural", "vessel")
        attachment = kinds[int(rng.choice(3, p=(0.45, 0.3, 0.25)))]
        nodule = random_nodule(rng, diameter, texture, attachment, rotation_from(rng.normal(size=4)))
        for _ in range(_TRIES):
            origin = _candidate(rng, anatomy, vessels, nodule)
            if origin is None or any(_near(origin, nodule, other) for other in placed):
                continue
            moved = dataclasses.replace(nodule, origin_lps_mm=_vector(origin))
            volume, centre, share = sampled(moved, anatomy.lungs)
            moved = dataclasses.replace(moved, volume_ml=volume, centre_lps_mm=centre)
            if share > 0.45 and moved.diameter_mm >= DIAMETER_MM[0]:
                placed.append(moved)
                break
    ordered = sorted(placed, key=lambda each: -each.volume_ml)
    return tuple(dataclasses.replace(each, number=number) for number, each in enumerate(ordered, 1))


def _near(origin: NDArray[np.float64], nodule: Nodule, other: Nodule) -> bool:
    distance = float(np.linalg.norm(origin - other.origin_lps_mm))
    return distance < nodule.reach_mm + other.reach_mm + GAP_MM


def _candidate(
    rng: np.random.Generator, anatomy: Anatomy, vessels: list[Capsule], nodule: Nodule
) -> NDArray[np.float64] | None:
    """Return a place where a nodule of this kind may lie, or None when this draw gave none."""
    radius, reach = nodule.diameter_mm / 2, nodule.reach_mm
    if nodule.attachment == "vessel":
        thin = [each for each in vessels if 0.8 <= each.radius_mm <= 3.0]
        piece = thin[int(rng.integers(len(thin)))]
        start, end = np.asarray(piece.start), np.asarray(piece.end)
        side = np.cross(end - start, rng.normal(size=3))
        side /= np.linalg.norm(side)
        origin = start + rng.uniform(0.2, 0.8) * (end - start) + side * (piece.radius_mm + 0.75 * radius)
        return origin if float(anatomy.lungs(origin)) < -(reach + CLEAR_MM) else None
    if nodule.attachment == "pleural":
        points = points_in(rng, anatomy.lungs, anatomy, 500)
        depths = -anatomy.lungs(points)
        at_wall = np.abs(depths + anatomy.cavity(points)) < 1e-6  # not at the dome, the heart or the mediastinum
        fitting = points[at_wall & (depths >= 0.15 * radius) & (depths <= 0.6 * radius)]
        return fitting[0] if len(fitting) else None
    origin = points_in(rng, anatomy.lungs, anatomy, 1)[0]
    if -float(anatomy.lungs(origin)) < reach + CLEAR_MM:
        return None
    clear = clearance_mm(vessels, origin)
    # Around a large nodule there is no place without the finest vessels; they end at it.
    return origin if clear >= min(reach, 6.0) + CLEAR_MM / 2 else None


def _clutter(rng: np.random.Generator, anatomy: Anatomy, nodules: tuple[Nodule, ...]) -> list[Capsule]:
    """Return what must not be found: scars, and dots too small to count, away from nodules."""
    pieces = []
    for long in (True,) * int(rng.integers(0, 3)) + (False,) * int(rng.integers(0, 5)):
        start = points_in(rng, anatomy.lungs, anatomy, 1, deeper_mm=4.0)[0]
        way = rng.normal(size=3)
        end = start + way / np.linalg.norm(way) * (rng.uniform(12, 28) if long else 0.0)
        if float(anatomy.lungs(end)) > -2 or any(
            np.linalg.norm((start + end) / 2 - each.origin_lps_mm) < each.reach_mm + 20 for each in nodules
        ):
            continue
        radius = float(rng.uniform(0.7, 1.2))
        pieces.append(Capsule(start=_vector(start), end=_vector(end), radius_mm=radius, hu=20.0))
    return pieces


def _background(
    rng: np.random.Generator, anatomy: Anatomy, shape: tuple[int, int, int], affine: NDArray[np.float64]
) -> FloatArray:
    """Return the HU of each plane without vessels and nodules."""
    axes = [affine[2 - axis, 3] + np.arange(n) * affine[2 - axis, 2 - axis] for axis, n in enumerate(shape)]
    coarse = [np.arange(each[0] - _COARSE_MM, each[-1] + 2 * _COARSE_MM, _COARSE_MM) for each in axes]
    points = np.stack(np.meshgrid(*coarse, indexing="ij")[::-1], axis=-1)
    planes = _Planes.of(coarse, axes)
    array = np.full(shape, _AIR, dtype=np.float32)
    width = 1.2 * affine[0, 0]
    layers: tuple[tuple[Distance, float], ...] = (
        (anatomy.table, -150.0),
        (anatomy.body, _FAT),
        (anatomy.muscle, _SOFT),
        (anatomy.sternum, _BONE / 2),
        (anatomy.ribs, _BONE),
        (anatomy.lungs, anatomy.lung_hu),
        (anatomy.heart_margin, _SOFT),
        (anatomy.aorta, _SOFT + 5),
        (anatomy.vertebrae, _BONE * 0.7),
        (anatomy.airways, -980.0),
    )
    for distance, hu in layers:
        for z, margin in planes.near(distance(points).astype(np.float32)):
            array[z] += np.clip(0.5 - margin / width, 0, 1) * (hu - array[z])
    # Within the lungs: heavier to the back, mottled, and parted by fissures.
    mottle = _smooth(rng.standard_normal(points.shape[:3]).astype(np.float32)) * 14
    extra = mottle + anatomy.gravity_hu * (points[..., 1] / (2 * anatomy.half_depth)).astype(np.float32)
    within = planes.near(anatomy.lungs(points).astype(np.float32))
    fissure = anatomy.fissures(points).astype(np.float32)
    for z, margin in within:
        inside = np.clip(0.5 - margin / width, 0, 1) * (array[z] < -600)
        sheet = np.clip(1.0 - np.abs(planes.plane(fissure, z)) / width, 0, 1)
        array[z] += inside * (planes.plane(extra, z) + 230 * sheet)
    return array


@dataclass(frozen=True, eq=False, kw_only=True)
class _Planes:
    """Linear interpolation from a coarse grid to single planes of a fine one."""

    rows: FloatArray
    columns: FloatArray
    below: NDArray[np.intp]
    above: FloatArray
    """Share of the coarse plane above."""

    @classmethod
    def of(cls, coarse: list[NDArray[np.float64]], fine: list[NDArray[np.float64]]) -> _Planes:
        place = (fine[0] - coarse[0][0]) / _COARSE_MM
        below = place.astype(np.intp)
        return cls(
            rows=_weights(coarse[1], fine[1]),
            columns=_weights(coarse[2], fine[2]),
            below=below,
            above=(place - below).astype(np.float32),
        )

    def plane(self, values: FloatArray, z: int) -> FloatArray:
        """Return plane z (Y, X) of coarse values (Z, Y, X)."""
        below, share = self.below[z], self.above[z]
        return np.asarray(self.rows @ ((1 - share) * values[below] + share * values[below + 1]) @ self.columns.T)

    def near(self, values: FloatArray) -> Iterator[tuple[int, FloatArray]]:
        """Yield the planes of signed distances that the body reaches."""
        reached = values.min(axis=(1, 2)) < _COARSE_MM
        for z in range(len(self.below)):
            if reached[self.below[z]] or reached[self.below[z] + 1]:
                yield z, self.plane(values, z)


def _weights(coarse: NDArray[np.float64], fine: NDArray[np.float64]) -> FloatArray:
    """Return (fine, coarse) weights of linear interpolation."""
    place = (fine - coarse[0]) / _COARSE_MM
    below = place.astype(np.intp)
    weights = np.zeros((len(fine), len(coarse)), dtype=np.float32)
    rows = np.arange(len(fine))
    weights[rows, below] = 1 - (place - below)
    weights[rows, below + 1] = place - below
    return weights


def _smooth(values: FloatArray) -> FloatArray:
    """Return noise of standard deviation 1 that changes over about a centimetre."""
    for axis in range(3):
        near = np.roll(values, 1, axis) + np.roll(values, -1, axis)
        values = np.asarray((near + 2 * values) / 4, dtype=np.float32)
    return np.asarray(values / values.std(), dtype=np.float32)


def _draw_capsule(planes: FloatArray, affine: NDArray[np.float64], piece: Capsule) -> None:
    """Brighten the planes where the piece lies; thinner than a voxel, it fills the share that it has of one."""
    spacing = np.diag(affine)[:3]
    ends = np.array([piece.start, piece.end])
    low = np.floor((ends.min(axis=0) - piece.radius_mm - affine[:3, 3]) / spacing - 1).astype(int)[::-1]
    high = np.ceil((ends.max(axis=0) + piece.radius_mm - affine[:3, 3]) / spacing + 2).astype(int)[::-1]
    window = tuple(slice(max(0, a), max(0, min(b, n))) for a, b, n in zip(low, high, planes.shape, strict=True))
    grid = np.meshgrid(*(np.arange(part.start, part.stop) for part in window), indexing="ij")
    points = np.stack(grid[::-1], axis=-1) * spacing + affine[:3, 3]
    width = float(spacing.mean())
    thin = min(1.0, (2 * piece.radius_mm / width) ** 2)
    filled = thin * np.clip(0.5 - piece.margin_mm(points) / width, 0, 1)
    part = planes[window]
    part += (filled * np.maximum(piece.hu - part, 0)).astype(np.float32)


def _vector(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
