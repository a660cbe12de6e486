"""Claims on what our receiver chooses when a real sender, dcmtk's, offers several transfer syntaxes in one context."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import peers
from tests.integration.receiving import (
    EXPLICIT,
    IMPLICIT,
    MR,
    dicom_file,
    encode_data_set,
    running_node,
    small_data_set,
)

JPEG, J2K, J2K_LOSSLESS, RLE = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
)
BIG = "1.2.840.10008.1.2.2"


def profile(folder: Path, syntaxes: list[str]) -> Path:
    """Write a configuration of storescu: one context of MR that offers these syntaxes, in this order."""
    lines = ["[[TransferSyntaxes]]", "[Several]"]
    lines += [f"TransferSyntax{number} = {syntax}" for number, syntax in enumerate(syntaxes, 1)]
    lines += ["[[PresentationContexts]]", "[Offered]", f"PresentationContext1 = {MR}\\Several"]
    path = folder / "storescu.cfg"
    path.write_text("\n".join([*lines, "[[Profiles]]", "[Default]", "PresentationContexts = Offered", ""]), "ascii")
    return path


@pytest.mark.parametrize(
    ("offered", "name"),
    [
        ([JPEG, J2K_LOSSLESS, IMPLICIT, EXPLICIT], "LittleEndianExplicit"),
        ([JPEG, BIG, IMPLICIT], "LittleEndianImplicit"),
        ([J2K, J2K_LOSSLESS, BIG], "BigEndianExplicit"),
        ([JPEG, J2K, J2K_LOSSLESS], "JPEG2000LosslessOnly"),
        ([J2K, RLE, JPEG], "RLELossless"),
        ([JPEG, J2K], "JPEG2000"),
        ([JPEG], "JPEGBaseline"),
    ],
)
def test_the_least_harmful_syntax_is_taken(tmp_path: Path, offered: list[str], name: str) -> None:
    """Uncompressed before lossless before lossy, whatever the sender's order."""
    peers.require_peer("dcmtk")
    path = dicom_file(tmp_path / "x", encode_data_set(small_data_set()))
    with running_node(tmp_path / "store") as node:
        titles = ["-aec", "NODE", "-aet", "CT1", "127.0.0.1", str(node.address.port), str(path)]
        done = subprocess.run(
            ["storescu", "-d", "-xf", str(profile(tmp_path, offered)), "Default", *titles],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,  # dcmtk sends only what it can encode; the negotiation is what counts here
        )
    accepted = [line.split("=")[-1] for line in (done.stdout + done.stderr).splitlines() if "Accepted Transfer" in line]
    assert [name] == accepted
