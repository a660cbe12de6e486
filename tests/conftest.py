"""Fixtures that every folder of tests shares: real data, free ports, and the foreign programs of `tests.peers`.

A fixture that names a peer skips its test where the peer is absent, or fails it with CI=true.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import peers

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def log_restored() -> Iterator[None]:
    """Give back the loggers as they were: a command that serves points them at the standard error of its test."""
    names = ("dicom_node", "pynetdicom", "pydicom", "highdicom")
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    propagate = logging.getLogger("dicom_node").propagate
    yield
    for name, (level, handlers) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).handlers[:] = handlers
    logging.getLogger("dicom_node").propagate = propagate


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data; mark its tests `data`."""
    if not SHARED_DATA.is_dir():
        pytest.skip("real data are absent: the folder ../shared/data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Return the function that finds a free loopback port; each call gives another."""
    return peers.free_port


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Callable[..., peers.Orthanc]]:
    """Return a factory of running PACS; its keywords are those of `tests.peers.Orthanc`."""
    with ExitStack() as running:
        count = 0

        def start(**settings: Any) -> peers.Orthanc:
            nonlocal count
            count += 1
            return running.enter_context(peers.Orthanc(tmp_path / f"orthanc-{count}", **settings))

        yield start


@pytest.fixture(scope="session")
def storescu() -> Callable[..., peers.SendReport]:
    """Return dcmtk's sender: `storescu(paths or folder, port, called=..., calling=...)`."""
    peers.require_peer("dcmtk")
    return peers.storescu


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """Return the validator of every object: `dciodvfy(path)` gives its error lines."""
    peers.require_peer("dciodvfy")
    return peers.dciodvfy


@pytest.fixture(scope="session")
def pixelmed_sr_errors() -> Callable[[Path], list[str]]:
    """Return the validator of SR templates: `pixelmed_sr_errors(path)` gives its error lines; half a minute each."""
    peers.require_peer("pixelmed")
    return peers.pixelmed_sr_errors


@pytest.fixture(scope="session")
def dcmqi_segimage2itkimage() -> Callable[[Path, Path], list[Path]]:
    """Return the foreign reader of SEG: `dcmqi_segimage2itkimage(seg, folder)` gives one NRRD a segment."""
    peers.require_peer("dcmqi")
    return peers.segimage2itkimage
