"""A sender that others wrote: dcmtk's storescu, offering exactly what its files need."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from tests.peers.require import find_program, require_peer

MAX_CONTEXTS = 128
"""Presentation context IDs are the odd numbers of one byte (PS3.8 9.3.2.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """How storescu ended, and what it said."""

    exit_status: int
    output: str


def _files(source: Path | Iterable[Path]) -> list[Path]:
    if isinstance(source, Path):
        return sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    return list(source)


def _contexts(files: list[Path]) -> list[tuple[str, str]]:
    """Return each pair (SOP class, transfer syntax) of the files that say so; storescu itself reports on others."""
    pairs = set()
    for path in files:
        try:
            meta = dcmread(path, specific_tags=[], stop_before_pixels=True).file_meta
            pairs.add((str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)))
        except (InvalidDicomError, AttributeError):
            continue
    assert len(pairs) <= MAX_CONTEXTS, "send in several batches"
    return sorted(pairs)


def _association_profile(pairs: list[tuple[str, str]]) -> str:
    """Return a dcmtk association configuration: without one storescu proposes neither SEG nor Comprehensive 3D SR."""
    syntaxes = sorted({syntax for _, syntax in pairs})
    lines = ["[[TransferSyntaxes]]"]
    for number, syntax in enumerate(syntaxes, 1):
        lines += [f"[Syntax{number}]", f"TransferSyntax1 = {syntax}"]
    lines += ["[[PresentationContexts]]", "[Offered]"]
    lines += [
        f"PresentationContext{number} = {sop_class}\\Syntax{syntaxes.index(syntax) + 1}"
        for number, (sop_class, syntax) in enumerate(pairs, 1)
    ]
    return "\n".join([*lines, "[[Profiles]]", "[Default]", "PresentationContexts = Offered", ""])


def storescu(
    source: Path | Iterable[Path],
    port: int,
    *,
    called: str = "DICOM_NODE",
    calling: str = "STORESCU",
    host: str = "127.0.0.1",
    options: Iterable[str] = (),
    check: bool = True,
    timeout_s: float = 120.0,
) -> SendReport:
    """Send files, or every file below a folder, over one association.

    Raises
    ------
    AssertionError
        With `check`, when storescu does not end with 0; it carries what storescu said.
    """
    require_peer("dcmtk")
    program = find_program("storescu")
    assert program is not None
    files = _files(source)
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "storescu.cfg"
        profile.write_text(_association_profile(_contexts(files)), encoding="ascii")
        offer = ["-xf", str(profile), "Default"] if _contexts(files) else []
        titles = ["-aec", called, "-aet", calling]
        command = [program, "-v", *offer, *titles, *options, host, str(port), *map(str, files)]
        done = subprocess.run(
            command,
            capture_output=True,
            env={**os.environ, "TCP_NODELAY": "1"},  # it waits 40 ms a message otherwise
            timeout=timeout_s,
            check=False,
        )
    report = SendReport(exit_status=done.returncode, output=(done.stdout + done.stderr).decode(errors="replace"))
    assert not check or report.exit_status == 0, report.output[-4000:]
    return report
