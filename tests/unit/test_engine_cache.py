"""Engines on disk: found by all that they depend on, and only when this node wrote them whole."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_node.engines import ShapeRange
from dicom_node.engines.cache import CacheKey, EngineCache

RANGE = ShapeRange(tensor="image", least=(1, 8), usual=(2, 8), most=(4, 8))
KEY = CacheKey(
    model_sha256="a" * 64,
    profile=(RANGE,),
    precision="fp32",
    flags={"tf32": "False"},
    builder="tensorrt 11.4.0.106",
    driver="580.95.05",
    gpu="NVIDIA L4",
    compute_capability="8.9",
)
OTHERS: dict[str, Any] = {
    "model_sha256": "b" * 64,
    "profile": (replace(RANGE, most=(8, 8)),),
    "precision": "tf32",
    "flags": {"tf32": "True"},
    "builder": "tensorrt 11.5.0.1",
    "driver": "590.1",
    "gpu": "NVIDIA L40",
    "compute_capability": "9.0",
}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    """Return a cache that holds one engine."""
    found = EngineCache(tmp_path / "engines")
    found.put(KEY, b"engine")
    return found


def test_engine_is_found_again(cache: EngineCache, tmp_path: Path) -> None:
    """The same key finds it, in another process too; nobody else may read or write it."""
    assert b"engine" == cache.get(KEY)
    assert b"engine" == EngineCache(tmp_path / "engines").get(replace(KEY, flags=dict(KEY.flags)))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "engines").iterdir()}
    assert {0o600} == modes
    assert 0o700 == stat.S_IMODE((tmp_path / "engines").stat().st_mode)


def test_every_part_of_the_key_is_tried() -> None:
    """The table above changes each field of the key."""
    assert set(OTHERS) == set(CacheKey.__dataclass_fields__)


@pytest.mark.parametrize("part", OTHERS)
def test_each_part_of_the_key_makes_another_engine(cache: EngineCache, part: str) -> None:
    """A difference anywhere means to build anew; the old engine stays for the old key."""
    other = replace(KEY, **{part: OTHERS[part]})
    assert cache.get(other) is None
    cache.put(other, b"other")
    assert (b"engine", b"other") == (cache.get(KEY), cache.get(other))


def _engine(folder: Path) -> Path:
    return folder / f"{KEY.digest()}.engine"


def _spoil_engine(folder: Path) -> None:
    _engine(folder).write_bytes(b"enginf")


def _spoil_sidecar(folder: Path) -> None:
    sidecar = folder / f"{KEY.digest()}.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "driver": "1"}))


def _cut_sidecar(folder: Path) -> None:
    (folder / f"{KEY.digest()}.json").write_text("{")


def _lose_sidecar(folder: Path) -> None:
    (folder / f"{KEY.digest()}.json").unlink()


def _open_to_all(folder: Path) -> None:
    _engine(folder).chmod(0o666)


def _link_elsewhere(folder: Path) -> None:
    target = folder.parent / "foreign"
    _engine(folder).rename(target)
    _engine(folder).symlink_to(target)


def _give_away(folder: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(_engine(folder), 65534, -1)


@pytest.mark.parametrize(
    "harm",
    [_spoil_engine, _spoil_sidecar, _cut_sidecar, _lose_sidecar, _open_to_all, _link_elsewhere, _give_away],
)
def test_damaged_or_foreign_engine_is_none(cache: EngineCache, tmp_path: Path, harm: Any) -> None:
    """Engine files are native code: what this node did not write whole is built anew, and replaced."""
    harm(tmp_path / "engines")
    assert cache.get(KEY) is None
    cache.put(KEY, b"anew")
    assert b"anew" == cache.get(KEY)


def test_no_folder_keeps_nothing() -> None:
    """Without a folder there is nothing to find, and nothing is written."""
    cache = EngineCache(None)
    cache.put(KEY, b"engine")
    assert cache.get(KEY) is None
