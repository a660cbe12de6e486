"""The chest phantom's truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model_build.phantoms import cache
from model_build.phantoms.anatomy import clearance_mm, points_in, random_anatomy, random_vessels
from model_build.phantoms.chest import CLEAR_MM, ChestPhantom, _place, make_chest, nodule_occupancy
from model_build.phantoms.nodules import Nodule, nodule_parts, random_nodule, sampled
from model_build.phantoms.scanner import SCANNER, SHIFTED_SCANNER, Acquisition, acquire, acquisition

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def _everywhere(points: np.ndarray) -> np.ndarray:
    return np.full(points.shape[:-1], -1.0)


@pytest.fixture(scope="module")
def chest() -> ChestPhantom:
    """Return one chest."""
    return make_chest(1)


def _ball(diameter: float) -> Nodule:
    nodule = random_nodule(np.random.default_rng(0), diameter, "solid", "free", IDENTITY)
    return dataclasses.replace(nodule, radii_mm=(diameter / 2,) * 3, waves=())


def test_ball_has_the_volume_of_a_ball() -> None:
    """Counted finely to 0.5 %; in voxels of any grid, turned and anisotropic, to 1.5 %."""
    ball = _ball(9.0)
    truth = np.pi / 6 * 9**3 / 1000
    volume, centre, share = sampled(ball, _everywhere)
    assert pytest.approx(truth, rel=0.005) == volume
    assert pytest.approx((0.0, 0.0, 0.0), abs=0.02) == centre
    assert 1.0 == share
    affine = np.array([[0.6, -0.5, 0.0, 0.3], [0.5, 0.6, 0.0, 0.1], [0.0, 0.0, 1.7, 0.2], [0.0, 0.0, 0.0, 1.0]])
    affine[:3, 3] -= affine[:3, :3] @ (19.5, 19.5, 6.5)
    _, whole, core = nodule_parts(ball, _everywhere, (14, 40, 40), affine)
    assert pytest.approx(truth, rel=0.015) == float(whole.sum()) * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert 0.0 == core.max()


def test_nodule_ends_at_the_pleura() -> None:
    """Of a ball that lies half outside the lung half is nodule, and its centre moves inwards by 3/8 of the radius."""
    volume, centre, share = sampled(_ball(16.0), lambda points: points[..., 0])
    assert pytest.approx(np.pi / 12 * 16**3 / 1000, rel=0.01) == volume
    assert pytest.approx(0.5, abs=0.01) == share
    assert pytest.approx(-3.0, abs=0.1) == centre[0]


def test_core_lies_within_the_nodule() -> None:
    """A part-solid nodule's core has the share's cube of its volume."""
    nodule = dataclasses.replace(_ball(20.0), texture="part_solid", core_share=0.5)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -14.5
    _, whole, core = nodule_parts(nodule, _everywhere, (30, 30, 30), affine)
    assert (core <= whole).all()
    assert pytest.approx(0.125, abs=0.005) == float(core.sum() / whole.sum())


def test_scanner_changes_no_nodule(chest: ChestPhantom) -> None:
    """The shifted study is the same chest: equal nodules, another image of thicker slices and more noise."""
    shifted = make_chest(1, shifted=True)
    assert chest.nodules == shifted.nodules
    assert shifted.acquisition.distance_mm > chest.acquisition.distance_mm
    air = [float(each.array[:, 2:30, 2:30].std()) for each in (chest, shifted)]
    assert air[1] > 1.4 * air[0]


@pytest.mark.long
def test_seed_decides_everything(chest: ChestPhantom) -> None:
    """The same seed gives the same image, bit by bit."""
    np.testing.assert_array_equal(chest.array, make_chest(1).array)


def test_image_shows_each_nodule_at_its_place(chest: ChestPhantom) -> None:
    """The mean of the full voxels inside is the nodule's density, and lung, soft tissue and air have theirs."""
    assert len(chest.nodules) >= 3
    whole = nodule_occupancy(chest, chest.array.shape, chest.affine_lps)
    inverse = np.linalg.inv(chest.affine_lps)
    for nodule in chest.nodules:
        if nodule.diameter_mm < 8 or nodule.texture != "solid":
            continue
        window, part, _ = nodule_parts(nodule, chest.anatomy.lungs, chest.array.shape, chest.affine_lps)
        inner = chest.array[window][part > 0.999]
        z, y, x = np.rint((inverse @ [*nodule.centre_lps_mm, 1])[2::-1]).astype(int)
        assert whole[z, y, x] == 1.0
        assert abs(float(np.median(inner)) - nodule.hu) < 12
    voxel_ml = abs(np.linalg.det(chest.affine_lps[:3, :3])) / 1000
    total = sum(each.volume_ml for each in chest.nodules)
    assert pytest.approx(total, rel=0.01) == float(whole.sum()) * voxel_ml
    # -1000 of air; the corner in front of the chest.
    assert abs(float(chest.array[:, :8, :8].mean()) + 1000) < 5


@pytest.mark.parametrize("seed", range(8))
def test_nodules_lie_as_their_kind_says(seed: int) -> None:
    """Within the lung, 4 to 30 mm and a wave; pleural ones touch the wall, free ones keep their distance."""
    rng = np.random.default_rng([seed, 1])
    anatomy = random_anatomy(rng)
    vessels = random_vessels(rng, anatomy)
    for nodule in _place(rng, anatomy, vessels):
        origin = np.asarray(nodule.origin_lps_mm)
        assert 4.0 <= nodule.diameter_mm <= 31.0
        assert float(anatomy.lungs(np.asarray(nodule.centre_lps_mm))) < 0
        assert nodule.texture == "solid" or nodule.diameter_mm > 6
        depth = -float(anatomy.lungs(origin))
        nearest = min(float(each.margin_mm(origin)) for each in vessels)
        assert pytest.approx(nearest) == clearance_mm(vessels, origin)
        if nodule.attachment == "pleural":
            assert pytest.approx(-depth) == float(anatomy.cavity(origin))
            assert depth < nodule.reach_mm
        else:
            assert depth >= nodule.reach_mm + CLEAR_MM
            assert (nearest <= nodule.reach_mm) if nodule.attachment == "vessel" else (nearest > 3)


def test_vessels_fill_both_lungs() -> None:
    """From both hila, thinner from branch to branch, no end outside; every tenth of a lung has one within 25 mm."""
    rng = np.random.default_rng(5)
    anatomy = random_anatomy(rng)
    vessels = random_vessels(rng, anatomy, ends=120)
    assert 2 * (2 * 120 - 1) == len(vessels)
    assert 2 == sum(each.radius_mm == 5.0 for each in vessels)
    ends = np.array([each.end for each in vessels])
    places = points_in(rng, anatomy.lungs, anatomy, 200, deeper_mm=6)
    nearest = np.linalg.norm(places[:, None] - ends[None], axis=-1).min(axis=1)
    assert nearest.max() < 45
    assert np.mean(nearest < 25) > 0.95


def _how(**changes: float) -> Acquisition:
    how = acquisition(np.random.default_rng(0), SCANNER)
    plain = dataclasses.replace(how, pixel_mm=1.0, distance_mm=1.0, thickness_mm=1.0, blur_mm=1.5, noise_hu=1e-3)
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]  # numbers only


def test_kernel_keeps_density_and_slices_average_their_thickness() -> None:
    """Blur moves no density; a slice of 4 mm every 2 mm is the mean of the planes it covers; centres stay in place."""
    planes = np.zeros((24, 41, 41), dtype=np.float32)
    planes[:, 20, 20] = 1000.0
    image = acquire(np.random.default_rng(0), planes.copy(), _how())
    assert pytest.approx(1000, rel=0.01) == float(image[12].sum())
    assert pytest.approx(1000 / (2 * np.pi * 1.5**2), rel=0.03) == float(image[12, 20, 20])
    step = np.zeros((24, 9, 9), dtype=np.float32)
    step[12:] = 100.0
    thick = acquire(np.random.default_rng(0), step, _how(distance_mm=2.0, thickness_mm=4.0))
    assert 12 == len(thick)
    profile = thick.mean(axis=(1, 2))
    assert pytest.approx([0, 0, 25, 75, 100, 100], abs=1) == profile[3:9].tolist()


def test_sharp_kernel_overshoots_and_noise_is_as_strong_as_said() -> None:
    """An edge gets a brim; the standard deviation of a flat field is the acquisition's."""
    edge = np.zeros((4, 40, 40), dtype=np.float32)
    edge[:, :, 20:] = 100.0
    assert acquire(np.random.default_rng(0), edge.copy(), _how(edge=0.6)).max() > 103
    assert acquire(np.random.default_rng(0), edge.copy(), _how()).max() < 101
    flat = acquire(np.random.default_rng(0), np.zeros((6, 64, 64), dtype=np.float32), _how(noise_hu=30.0))
    assert pytest.approx(30.0, rel=0.02) == float(flat.std())
    assert SHIFTED_SCANNER.noise_hu[0] > SCANNER.noise_hu[1]


def test_cached_chest_is_the_rendered_one(chest: ChestPhantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth to the last digit, values in whole HU; rendered once, and again only when the file is broken."""
    small = dataclasses.replace(chest, array=chest.array[60:64])
    rendered: list[int] = []

    def render(seed: int, *, shifted: bool, empty: bool) -> ChestPhantom:
        rendered.append(seed)
        return small

    monkeypatch.setattr(cache, "make_chest", render)
    first, second = (cache.cached_chest(tmp_path, 1) for _ in range(2))
    assert [1] == rendered
    np.testing.assert_array_equal(first.array, second.array)
    assert (chest.nodules, chest.acquisition, chest.anatomy) == (second.nodules, second.acquisition, second.anatomy)
    assert np.abs(second.array - np.clip(small.array, -1024, 3071)).max() <= 0.5
    np.testing.assert_array_equal(chest.affine_lps, second.affine_lps)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    cache.cached_chest(tmp_path, 1)
    cache.cached_chest(tmp_path, 1, shifted=True)
    assert [1, 1, 1] == rendered
