"""The outcome of a demonstration: for people in 120 columns, for scripts with stable keys. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dicom_node.demo.compare import Found, Row, TrueObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How the demonstration went."""

    rows: tuple[Row, ...]
    has_truth: bool
    jobs: tuple[Mapping[str, Any], ...]
    """As `jobs list --json` has them."""
    duration_s: float
    """From the first byte sent until the last result was in the PACS."""
    files: tuple[Path, ...]

    @property
    def agrees(self) -> bool:
        """Return whether every job ended with results, and those agree with the truth where there is one."""
        well = bool(self.jobs) and all(job["state"] == "done" for job in self.jobs)
        return well and (not self.has_truth or all(row.agrees for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Return the report with stable keys for `--json`."""
        return {
            "agrees": self.agrees,
            "duration_s": self.duration_s,
            "objects": [
                {
                    "found": asdict(row.found) if row.found else None,
                    "true": asdict(row.true) if row.true else None,
                    "centre_error_mm": row.centre_error_mm,
                    "volume_error": row.volume_error,
                    "verdict": row.verdict if self.has_truth else None,
                    "agrees": row.agrees if self.has_truth else None,
                }
                for row in self.rows
            ],
            "jobs": [{key: job[key] for key in ("id", "plugin", "state", "reason")} for job in self.jobs],
            "files": [str(file) for file in self.files],
        }


def lines(report: Report) -> list[str]:
    """Return the report for people: one row an object, the truth beside it; time to result; the files."""
    page = [
        f"job {job['id']} {job['plugin']}: {job['state']}" + (f" ({job['reason']})" if job["reason"] else "")
        for job in report.jobs
    ]
    page += ["", *(_with_truth(report.rows) if report.has_truth else _found_alone(report.rows))]
    page += ["", f"time to result {report.duration_s:.1f} s"]
    page += [f"wrote {file}" for file in report.files]
    if report.has_truth:
        page.append("findings and truth agree" if report.agrees else "findings and truth DISAGREE")
    return page


def _with_truth(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["nothing was found, and there is nothing to find"]
    wide = f"{'centre, LPS mm':>20} {'ml':>6} {'mm':>5}"
    page = [
        f"{'':>3}  {'FOUND':<33}   TRUTH",
        f"{'no.':>3}  {wide}   {'kind':<9} {wide}  {'off, mm':>7} {'volume':>7}",
    ]
    for row in rows:
        found = f"{row.found.number:>3}  {_size(row.found)}" if row.found else f"{'-':>3}  {'':>33}"
        true = f"{row.true.kind:<9} {_size(row.true)}" if row.true else f"{'-':<9} {'':>33}"
        errors = f"{'':>15}"
        if row.centre_error_mm is not None and row.volume_error is not None:
            errors = f"{row.centre_error_mm:7.2f} {row.volume_error:+7.1%}"
        page.append(f"{found}   {true}  {errors}  {row.verdict if row.agrees else row.verdict.upper()}")
    return page


def _found_alone(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["nothing was found"]
    page = [f"{'no.':>3}  {'centre, LPS mm':>20} {'ml':>6} {'mm':>5} {'mean':>8}"]
    return page + [f"{row.found.number:>3}  {_size(row.found)} {row.found.mean:8.1f}" for row in rows if row.found]


def _size(thing: Found | TrueObject) -> str:
    """Return centre, volume and longest diameter, 33 characters."""
    centre = " ".join(f"{value:6.1f}" for value in thing.centre_lps_mm)
    return f"{centre} {thing.volume_ml:6.2f} {thing.diameter_mm:5.1f}"
