"""`plugins selftest`: a plugin's reference case, computed again by the very way that serves.

The case lies in the plugin's folder: reference/case.json names the input, the findings that were computed when the
model was published, and how far a value may differ. A plugin whose input may not be shipped has none, and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dicom_node.clock import Clock
from dicom_node.errors import DicomNodeError
from dicom_node.findings import Findings
from dicom_node.infer import Plugin, Request, Slots

CASE = "reference/case.json"


def selftest(plugin: Plugin, *, slots: Slots, clock: Clock) -> dict[str, Any]:
    """Return whether the plugin still finds what its reference case says: id, ok, detail, duration in seconds."""
    file = plugin.folder / CASE
    if not file.is_file():
        return {"id": plugin.id, "ok": True, "detail": "ships no reference case", "duration_s": 0.0}
    case = json.loads(file.read_text(encoding="utf-8"))
    started = clock.monotonic()
    try:
        role = plugin.manifest.input_series[0].role
        findings = slots.run(plugin, Request(paths={role: (file.parent / case["input"],)}))
        difference = _difference(case, findings, plugin)
    except DicomNodeError as error:
        difference = str(error)
    return {
        "id": plugin.id,
        "ok": difference is None,
        "detail": difference or f"{len(case['findings'])} findings as published",
        "duration_s": clock.monotonic() - started,
    }


def _difference(case: Mapping[str, Any], findings: Findings, plugin: Plugin) -> str | None:
    """Return the first thing that is not as published, in words."""
    if case["model_sha256"] != plugin.model_sha256:
        return "the case was made with another model; publish the plugin again"
    if case["spec_sha256"] != plugin.manifest.spec_sha256():
        return "the case was made with another specification; publish the plugin again"
    if findings.outcome != case["outcome"]:
        return f"outcome {findings.outcome}, published was {case['outcome']}"
    if len(findings.findings) != len(case["findings"]):
        return f"{len(findings.findings)} findings, published were {len(case['findings'])}"
    tolerances = case["tolerances"]
    for found, published in zip(findings.findings, case["findings"], strict=True):
        moved_mm = math.dist(found.measurements.centroid_lps_mm, published["centre_lps_mm"])
        if moved_mm > tolerances["centre_mm"]:
            return f"finding {found.number} lies {moved_mm:.2f} mm from where it was published"
        change = found.measurements.volume_ml / published["volume_ml"] - 1
        if abs(change) > tolerances["volume"]:
            return f"finding {found.number} has a volume {change:+.1%} from the published one"
    return None
