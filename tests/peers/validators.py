"""Validators that others wrote: dciodvfy for every object, PixelMed for the templates of structured reports."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers.require import find_program, require_peer

PIXELMED_TIMEOUT_S = 240.0
"""It compiles its style sheets each time: 31 s alone on a slow core, more when cores are shared."""


def dciodvfy(path: Path) -> list[str]:
    """Return the error lines of `dciodvfy -new`; none means that the object keeps its IOD."""
    require_peer("dciodvfy")
    program = find_program("dciodvfy")
    assert program is not None
    done = subprocess.run([program, "-new", str(path)], capture_output=True, timeout=120, check=False)
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("Error")]
    return errors or ([f"exit status {done.returncode}", *lines] if done.returncode else [])


def pixelmed_sr_errors(path: Path) -> list[str]:
    """Return the error lines of PixelMed's DicomSRValidator for one structured report.

    Raises
    ------
    AssertionError
        When the validator did not get as far as a verdict; its exit status means nothing.
    """
    require_peer("pixelmed")
    # Its XPath expressions are larger than the JDK's default limits (JAXP0801003).
    limits = [f"-Djdk.xml.xpath{name}Limit=0" for name in ("TotalOp", "ExprOp", "ExprGrp")]
    class_path = ":".join(map(str, sorted(Path("/usr/share/java").glob("*.jar"))))
    command = ["java", *limits, "-cp", class_path, "com.pixelmed.validate.DicomSRValidator", str(path)]
    done = subprocess.run(command, capture_output=True, timeout=PIXELMED_TIMEOUT_S, check=False)
    output = (done.stdout + done.stderr).decode(errors="replace")
    assert "Root Template Validation Complete" in output, output[-4000:]
    return [line for line in output.splitlines() if line.startswith("Error")]
