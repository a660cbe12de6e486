"""Chest phantoms, rendered once: a training that looks at each of them many times reads them from files.

A file is named by the generator's fingerprint: another generator never meets the images of this one. Values are whole
HU, as a scanner stores them, the first time as well as every later time.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from model_build.phantoms.anatomy import Anatomy
from model_build.phantoms.chest import ChestPhantom, make_chest
from model_build.phantoms.frozen import fingerprint
from model_build.phantoms.nodules import Nodule
from model_build.phantoms.scanner import Acquisition

__all__ = ["cached_chest"]


def cached_chest(folder: Path, seed: int, *, shifted: bool = False, empty: bool = False) -> ChestPhantom:
    """Return `make_chest` of these arguments in whole HU, from its file in the folder, which is written when absent.

    A file that cannot be read is made anew; a half-written one never has the name.
    """
    name = f"chest-{fingerprint('chest')[:16]}-{seed}{'-shifted' * shifted}{'-empty' * empty}.npz"
    path = folder / name
    if path.exists():
        try:
            return _read(path)
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError):
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    _write(make_chest(seed, shifted=shifted, empty=empty), path)
    return _read(path)


def _write(phantom: ChestPhantom, path: Path) -> None:
    facts = {
        "seed": phantom.seed,
        "shifted": phantom.shifted,
        "acquisition": dataclasses.asdict(phantom.acquisition),
        "anatomy": dataclasses.asdict(phantom.anatomy),
        "nodules": [dataclasses.asdict(each) for each in phantom.nodules],
    }
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file,
            array=np.rint(np.clip(phantom.array, -1024, 3071)).astype(np.int16),
            affine=phantom.affine_lps,
            facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        )
    part.replace(path)


def _read(path: Path) -> ChestPhantom:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as values:
        facts: dict[str, Any] = json.loads(values["facts"].tobytes())
        array, affine = values["array"].astype(np.float32), values["affine"]
    return ChestPhantom(
        seed=facts["seed"],
        shifted=facts["shifted"],
        array=array,
        affine_lps=affine,
        acquisition=Acquisition(**_tuples(facts["acquisition"])),
        anatomy=Anatomy(**_tuples(facts["anatomy"])),
        nodules=tuple(Nodule(**_tuples(each)) for each in facts["nodules"]),
    )


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with tuples for lists, however deep: JSON knows no tuples."""

    def turned(value: Any) -> Any:
        return tuple(turned(each) for each in value) if isinstance(value, list) else value

    return {key: turned(value) for key, value in values.items()}
