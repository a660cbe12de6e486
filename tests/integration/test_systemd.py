"""The systemd units, checked by systemd itself against the program under test."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers import require_peer

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
ROLES = {
    "dicom-node-receiver.service": "receiver",
    "dicom-node-sender.service": "sender",
    "dicom-node-worker@.service": "worker",
}
INSTALLED_PROGRAM = "/usr/bin/dicom-node"
PROGRAM = Path(sys.prefix) / "bin" / "dicom-node"
HIGHEST_EXPOSURE = 2.0
"""A unit without any hardening has 9.2."""


def require_program() -> None:
    """Fail when the package under test is not installed."""
    if not PROGRAM.exists():
        pytest.fail(f"{PROGRAM} is not there; install the package: make test does")


@pytest.fixture
def rendered(tmp_path: Path) -> Path:
    """Return a folder with the units, their ExecStart pointing to the program under test."""
    require_program()
    for unit in UNITS.iterdir():
        if unit.suffix in {".service", ".target"}:
            text = unit.read_text(encoding="utf-8").replace(INSTALLED_PROGRAM, str(PROGRAM))
            # A documentation file is there only after an installation.
            (tmp_path / unit.name).write_text(re.sub(r"(?m)^Documentation=.*\n", "", text), encoding="utf-8")
    return tmp_path


def _exec_start(service: str) -> list[str]:
    text = (UNITS / service).read_text(encoding="utf-8")
    (line,) = re.findall(r"(?m)^ExecStart=(.*)$", text)
    return shlex.split(line)


def test_each_role_has_its_unit() -> None:
    """There is one service per role, and nothing else."""
    assert sorted(ROLES) == SERVICES


def test_the_target_wants_every_role() -> None:
    """Starting the target starts each role once."""
    target = (UNITS / "dicom-node.target").read_text(encoding="utf-8")
    (wants,) = re.findall(r"(?m)^Wants=(.*)$", target)
    assert sorted(ROLES) == sorted(re.sub(r"@\d+", "@", unit) for unit in wants.split())


def test_systemd_accepts_every_unit(rendered: Path) -> None:
    """`systemd-analyze verify` has nothing to say about any unit."""
    require_peer("systemd")
    instances = [str(rendered / name.replace("@.", "@1.")) for name in SERVICES]
    (rendered / "dicom-node-worker@1.service").write_bytes((rendered / "dicom-node-worker@.service").read_bytes())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *instances, str(rendered / "dicom-node.target")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "dicom-node" in line]
    assert [] == ours
    assert done.returncode == 0


def test_systemd_refuses_an_unknown_line(rendered: Path) -> None:
    """The verdict above can be bad: a misspelt directive is reported."""
    require_peer("systemd")
    unit = rendered / "dicom-node-receiver.service"
    unit.write_text(unit.read_text(encoding="utf-8").replace("PrivateTmp=", "PrivatTmp="), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "PrivatTmp" in done.stdout + done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_exposure_stays_low(service: str) -> None:
    """`systemd-analyze security` gives each unit at most 2.0."""
    require_peer("systemd")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / service)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= HIGHEST_EXPOSURE, done.stdout


@pytest.fixture(scope="module")
def serve_help() -> str:
    """Return what `dicom-node serve --help` says when it is called as a unit calls it."""
    require_program()
    arguments = _exec_start("dicom-node-receiver.service")[1:]
    done = subprocess.run(
        [PROGRAM, *arguments, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("service", "role"), sorted(ROLES.items()))
def test_the_command_line_of_the_unit_exists(service: str, role: str, serve_help: str) -> None:
    """The program knows the command, the options and the role that the unit starts it with."""
    expected = [INSTALLED_PROGRAM, "serve", "--role", role, "--config", "/etc/dicom-node/config.toml"]
    assert expected == _exec_start(service)
    assert [] == [word for word in ("--role", "--config", role) if word not in serve_help]


@pytest.mark.parametrize("service", SERVICES)
def test_every_hardening_line_stands_below_its_reason(service: str) -> None:
    """No group of lines in [Service] goes without a comment."""
    text = (UNITS / service).read_text(encoding="utf-8")
    body = text.partition("[Service]")[2].partition("[Install]")[0]
    groups = [group.strip() for group in re.split(r"(?m)^# --- .*$|\n\n", body) if group.strip()]
    assert [] == [group for group in groups[1:] if not group.startswith("#") and "Kernel" not in group]
