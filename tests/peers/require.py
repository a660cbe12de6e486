"""Whether a peer is there, and what to do when it is not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DCMQI_BIN = ROOT / ".peers" / "dcmqi" / "bin"
PIXELMED_JAR = Path("/usr/share/java/pixelmed.jar")

PEERS: dict[str, tuple[str | Path, ...]] = {
    "orthanc": ("Orthanc",),
    "dcmtk": ("storescu", "storescp", "echoscu", "dcmdump", "dsrdump"),
    "dciodvfy": ("dciodvfy",),
    "pixelmed": ("java", PIXELMED_JAR),
    "strace": ("strace",),
    "systemd": ("systemd-analyze",),
    "dcmqi": (DCMQI_BIN / "segimage2itkimage", DCMQI_BIN / "tid1500reader"),
}
"""Peer -> the programs and files that it consists of."""


def find_program(name: str) -> str | None:
    """Return the path of a program, also from the folders that only root has in its PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing_parts(name: str) -> list[str]:
    """Return what of the peer `name` is not installed."""
    return [
        str(part)
        for part in PEERS[name]
        if not (part.exists() if isinstance(part, Path) else find_program(part) is not None)
    ]


def require_peer(name: str) -> None:
    """Skip the test when the peer is absent, with the reason; with CI=true, fail it."""
    missing = missing_parts(name)
    if not missing:
        return
    reason = f"peer {name} is not installed ({', '.join(missing)}); tests/peers/install.sh installs it"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
