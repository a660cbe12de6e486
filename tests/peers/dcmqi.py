"""Readers that others wrote: dcmqi, in an environment of its own under `.peers/`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers.require import DCMQI_BIN, require_peer


def segimage2itkimage(seg: Path, folder: Path) -> list[Path]:
    """Write each segment of a SEG as NRRD into `folder`; return the files, ordered by segment number.

    `meta.json` beside them names the segments.
    """
    require_peer("dcmqi")
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(DCMQI_BIN / "segimage2itkimage"), "--inputDICOM", str(seg), "--outputDirectory", str(folder)]
    done = subprocess.run([*command, "-t", "nrrd"], capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return sorted(folder.glob("*.nrrd"), key=lambda path: int(path.stem.split("-")[-1]))


def tid1500reader(sr: Path, to: Path) -> Path:
    """Write the measurements of a TID 1500 report as JSON to `to`."""
    require_peer("dcmqi")
    command = [str(DCMQI_BIN / "tid1500reader"), "--inputDICOM", str(sr), "--outputMetadata", str(to)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return to
