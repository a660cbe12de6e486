"""Fixtures of the acceptance tests: a node beside a real PACS, and phantom studies made once a session."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from dicom_node.reading import find_files, group_series
from tests import peers
from tests.acceptance.site import Site
from tests.acceptance.variants import Variant, slices_around_object, write_variant


@dataclass(frozen=True)
class Study:
    """A study on disk."""

    folder: Path
    uid: str
    truth: list[dict[str, Any]]


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Study]:
    """Return the maker of phantom studies: `phantom(seed, *options)`; the same call makes one study only once."""
    made: dict[tuple[object, ...], Study] = {}

    def make(seed: int, *options: str) -> Study:
        if (seed, *options) not in made:
            folder = tmp_path_factory.mktemp(f"phantom-{seed}")
            command = [sys.executable, "-m", "model_build", "phantom", "--out", str(folder), "--seed", str(seed)]
            subprocess.run([*command, *options], check=True, capture_output=True)
            series, _ = group_series(find_files(folder))
            truth = json.loads((folder / "truth.json").read_text())["objects"]
            made[seed, *options] = Study(folder=folder / "dicom", uid=series[0].study_instance_uid, truth=truth)
        return made[seed, *options]

    return make


@pytest.fixture(scope="session")
def real_t1(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Return the real T1 of every second slice: 192 classic MR instances."""
    folder = tmp_path_factory.mktemp("t1")
    with tarfile.open(shared_data / "datalad_t1" / "t1_every_second_slice.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    series = [one for one in group_series(find_files(folder))[0] if one.images]
    dicom = series[0].images[0].path.parent
    return Study(folder=dicom, uid=series[0].study_instance_uid, truth=[])


@pytest.fixture
def small_study(phantom: Callable[..., Study], tmp_path: Path) -> Callable[..., Variant]:
    """Return the maker of small studies: `small_study(change)`; each call gives a study of its own."""
    large = phantom(3001)
    slices = slices_around_object(large.folder, large.truth)
    numbers = count()

    def make(change: Callable[[list[Dataset]], Iterable[Dataset]] = lambda slices: slices) -> Variant:
        return write_variant(slices, tmp_path / f"study-{next(numbers)}", change)

    return make


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Return a factory of nodes; each is stopped at the end of the test."""
    sites: list[Site] = []

    def make(*, pacs: peers.Orthanc, plugins: tuple[str, ...] = ("qa_phantom",), **settings: Any) -> Site:
        sites.append(Site(tmp_path / f"node-{len(sites)}", pacs_port=pacs.dicom_port, plugins=plugins, **settings))
        return sites[-1]

    yield make
    for one in sites:
        one.stop()
