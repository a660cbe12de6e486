"""The command line in this process, and a node's folder with a configuration: for the tests of the commands."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_node.cli import main
from dicom_node.reading.synthetic import write_series

CONFIG = """
[node]
ae_titles = ["DICOM_NODE"]

[receive]
port = {port}

[[peer]]
name = "scanner"
ae_title = "STORESCU"
hosts = ["127.0.0.1"]

[[peer]]
name = "pacs"
ae_title = "PACS"
hosts = ["127.0.0.1"]
address = "127.0.0.1:{pacs_port}"

[[destination]]
name = "pacs"
peer = "pacs"

[sender]
timeout_s = 5

[[route]]
name = "qa"
plugin = "qa_phantom"
destinations = ["pacs"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Return what `--json` printed."""
        return json.loads(self.out)


class CommandLine:
    """`dicom-node WORD...` with the configuration of one folder."""

    def __init__(
        self, folder: Path, port: int, pacs_port: int, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.port = port
        self.pacs_port = pacs_port
        self.config_file = folder / "config.toml"
        self.config_file.write_text(CONFIG.format(port=port, pacs_port=pacs_port), encoding="utf-8")
        self._patch = patch
        self._capture = capture
        patch.setenv("DICOM_NODE_CONFIG", str(self.config_file))

    def __call__(self, *words: str | Path) -> Said:
        """Run a command as the installed script does."""
        self._patch.setattr(sys, "argv", ["dicom-node", *map(str, words)])
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capture.readouterr()
        assert "Traceback" not in captured.err
        code = ended.value.code
        return Said(status=code if isinstance(code, int) else int(code is not None), out=captured.out, err=captured.err)


def head_mr(folder: Path, *, slices: int = 4, study: str = "1.2.3", series: str = "1.2.3.1") -> list[Path]:
    """Write a small MR series, which the shipped routes do not want."""
    array = np.arange(slices * 8 * 8, dtype=np.float32).reshape(slices, 8, 8)
    return write_series(
        folder,
        array,
        np.diag([1.0, 2.0, 3.0, 1.0]),
        modality="MR",
        headers={"SeriesDescription": "T1 head"},
        study_instance_uid=study,
        series_instance_uid=series,
        frame_of_reference_uid=f"{study}.9",
        uid_root=f"{series}.5",
    )
