"""Publishing: an exported model and its digest go into the plugin's folder, with a reference case computed anew.

The reference case is one Enhanced CT file, a part of a phantom, and what the plugin found in it; the node's self-test
and our tests compute it again. No torch.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from dicom_node.clock import Clock
from dicom_node.errors import UsageError
from dicom_node.findings import Findings
from dicom_node.predict import predict
from dicom_node.reading import load_volume
from dicom_node.reading.synthetic import write_series
from model_build.evaluation import open_plugin
from model_build.phantoms import make_phantom

__all__ = ["MAX_BYTES", "REFERENCE_CASE", "REFERENCE_IMAGE", "describe_findings", "publish", "write_reference"]

MAX_BYTES = 2_000_000
"""Of a model that is committed."""
REFERENCE_IMAGE, REFERENCE_CASE = "input.dcm", "case.json"
REFERENCE_SEED = 2
"""Seven objects, a rod and a plate."""
_PART_VOXELS = (56, 88, 88)
"""(Z, Y, X) of the reference image: 98 x 97 x 97 mm, the phantom without its rim of air, under 1 MB."""
_TOLERANCES = {"centre_mm": 0.1, "volume": 0.01}


def publish(model: Path, plugin: Path, *, clock: Clock) -> str:
    """Put the model into the plugin's folder, write its digest into plugin.toml, renew the reference case.

    Returns
    -------
    The sha256 of the model.

    Raises
    ------
    UsageError
        The model is larger than `MAX_BYTES`, or plugin.toml has no sha256 line to renew.
    """
    content = model.read_bytes()
    if len(content) > MAX_BYTES:
        raise UsageError(f"{model.name} has {len(content)} bytes; a committed model has at most {MAX_BYTES}")
    digest = hashlib.sha256(content).hexdigest()
    manifest_path = plugin / "plugin.toml"
    text, n_lines = re.subn(
        r'^sha256 = "[0-9a-f]{64}"$', f'sha256 = "{digest}"', manifest_path.read_text(encoding="utf-8"), flags=re.M
    )
    if n_lines != 1:
        raise UsageError(f"{manifest_path.name} has {n_lines} sha256 lines, not one")
    target = plugin / "1" / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    if model.resolve() != target.resolve():
        shutil.copyfile(model, target)
    manifest_path.write_text(text, encoding="utf-8")
    write_reference(plugin, clock=clock)
    return digest


def write_reference(plugin: Path, *, clock: Clock) -> Path:
    """Write reference/input.dcm and reference/case.json, what the plugin as it stands finds in it."""
    folder = plugin / "reference"
    folder.mkdir(exist_ok=True)
    image = _write_image(folder / REFERENCE_IMAGE)
    manifest, engine = open_plugin(plugin)
    series = manifest.input_series[0]
    volume = load_volume([image], policy=series.policy)
    findings = predict({series.role: volume}, manifest, engine, clock=clock)
    case = {
        "input": REFERENCE_IMAGE,
        "made_from": {"phantom_seed": REFERENCE_SEED, "orientation": "axial"},
        "model_sha256": manifest.model[0].sha256,
        "spec_sha256": manifest.spec_sha256(),
        "tolerances": _TOLERANCES,
        **describe_findings(findings),
    }
    path = folder / REFERENCE_CASE
    path.write_text(json.dumps(case, indent=2) + "\n", encoding="utf-8")
    return path


def describe_findings(findings: Findings) -> dict[str, object]:
    """Return outcome and findings as the reference case keeps them: mm and ml."""
    return {
        "outcome": findings.outcome,
        "findings": [
            {
                "number": each.number,
                "label": each.label,
                "centre_lps_mm": [round(value, 3) for value in each.measurements.centroid_lps_mm],
                "volume_ml": round(each.measurements.volume_ml, 4),
                "n_voxels": each.measurements.n_voxels,
            }
            for each in findings.findings
        ],
    }


def _write_image(path: Path) -> Path:
    """Write the middle of the reference phantom as one Enhanced CT file."""
    phantom = make_phantom(REFERENCE_SEED, orientation="axial", in_plane_mm=(1.1, 1.1), slice_mm=(1.75, 1.75))
    start = [(size - part) // 2 for size, part in zip(phantom.array.shape, _PART_VOXELS, strict=True)]
    part = tuple(slice(first, first + size) for first, size in zip(start, _PART_VOXELS, strict=True))
    affine = phantom.affine_lps.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(start[::-1])
    root = f"2.25.{REFERENCE_SEED}"
    with tempfile.TemporaryDirectory() as folder:
        (written,) = write_series(
            Path(folder),
            phantom.array[part],
            affine,
            headers={
                "PatientID": f"QA-PHANTOM-{REFERENCE_SEED}",
                "StudyDescription": "QA phantom",
                "SeriesDescription": "QA PHANTOM",
            },
            study_instance_uid=f"{root}.1",
            series_instance_uid=f"{root}.2",
            frame_of_reference_uid=f"{root}.3",
            uid_root=root,
            enhanced=True,
        )
        shutil.copyfile(written, path)
    return path
