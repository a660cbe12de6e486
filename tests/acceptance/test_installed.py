"""A wheel in an empty environment, used from another folder: what an administrator gets who never sees the repository.

Slow once (half a minute to two): the environment is made with everything that pip has to fetch for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import peers
from tests.acceptance.site import CONFIG
from tests.peers.require import find_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the commands of an environment that holds the wheel and what it asks for, nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    wheels = folder / "wheels"
    quiet = ["--quiet", "--disable-pip-version-check"]
    pip_wheel = [sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-w", str(wheels), str(ROOT)]
    subprocess.run(pip_wheel, check=True)
    venv.create(folder / "env", with_pip=True)
    commands = folder / "env" / "bin"
    (wheel,) = wheels.glob("dicom_node-*.whl")
    pip_install = [str(commands / "python"), "-m", "pip", "install", *quiet]
    subprocess.run([*pip_install, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    return commands


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return the function that runs `dicom-node` in an empty folder, as nobody's environment has it."""

    def call(*words: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(installed / "dicom-node"), *words],
            cwd=tmp_path,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return call


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write a configuration into the empty folder, where the command finds it by itself."""
    file = tmp_path / "config.toml"
    file.write_text(CONFIG.format(port=peers.free_port(), pacs_port=peers.free_port()), encoding="utf-8")
    return file


def _environment() -> dict[str, str]:
    """Return the environment without what would lead to the checkout or to another configuration."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DICOM_NODE_CONFIG")}


def test_the_installed_code_is_not_the_checkout(installed, tmp_path):
    """What follows proves the wheel."""
    code = "import dicom_node, model_build; print(dicom_node.__file__, model_build.__file__)"
    command = [str(installed / "python"), "-c", code]
    out = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=True).stdout
    assert all(str(installed.parent) in file for file in out.split())


@pytest.mark.usefixtures("config")
def test_check_finds_the_node_well(run, tmp_path):
    """Exit status 0, and data_dir lies beside the configuration."""
    done = run("check", "--json")
    assert 0 == done.returncode, done.stderr
    assert all(entry["ok"] for entry in json.loads(done.stdout))
    assert (tmp_path / "var" / "records.sqlite").is_file()


def test_misspelt_key_is_named_with_its_line_and_the_nearest_key(run, config):
    """Exit status 2; file, line, key, table and the word that was meant, and nothing else."""
    text = config.read_text(encoding="utf-8").replace("[receive]\n", "[receive]\nmax_asociations = 5\n")
    config.write_text(text, encoding="utf-8")
    line = text.splitlines().index("max_asociations = 5") + 1
    done = run("check")
    said = f'config.toml:{line}: unknown key "max_asociations" in [receive]; did you mean "max_associations"?\n'
    assert (2, "", said) == (done.returncode, done.stdout, done.stderr)


@pytest.mark.usefixtures("config")
def test_plugins_come_along_and_pass_their_selftest(run):
    """The phantom plugin is ready with its reference case; the brain says what it lacks."""
    plugins = {entry["id"]: entry for entry in json.loads(run("plugins", "list", "--json").stdout)}
    assert plugins["qa_phantom"]["ready"] is True
    assert "plugins install brain_mask" in plugins["brain_mask"]["reason"]
    done = run("plugins", "selftest", "--json")
    assert (0, [("qa_phantom", True)]) == (done.returncode, [(e["id"], e["ok"]) for e in json.loads(done.stdout)])


def test_serve_answers_an_echo_and_drains_on_sigterm(installed, config, tmp_path):
    """`serve` in the folder of its configuration listens, answers dcmtk, and ends with 0 when it is told to."""
    peers.require_peer("dcmtk")
    decoy = tmp_path / "dicom_node" / "__init__.py"  # what lies in the folder by chance must not run
    decoy.parent.mkdir()
    decoy.write_text("raise SystemExit('code of the folder ran')", encoding="utf-8")
    echoscu = find_program("echoscu")
    port = config.read_text(encoding="utf-8").split("port = ")[1].split()[0]
    log = tmp_path / "serve.log"
    with log.open("wb") as stream:
        serving = subprocess.Popen(
            [str(installed / "dicom-node"), "serve"], cwd=tmp_path, env=_environment(), stdout=stream, stderr=stream
        )
    try:
        echo = [echoscu, "-aec", "DICOM_NODE", "-aet", "STORESCU", "127.0.0.1", port]
        answers = lambda: subprocess.run(echo, capture_output=True, check=False).returncode == 0  # noqa: E731
        assert peers.eventually(answers, timeout_s=90, every_s=0.5), log.read_text()
        serving.terminate()
        started = time.monotonic()
        assert 0 == serving.wait(60), log.read_text()
        assert time.monotonic() - started < 45
    finally:
        serving.kill()
        serving.wait()
    assert "Traceback" not in log.read_text()


def test_demo_finds_what_is_in_its_own_phantom(run, tmp_path):
    """Without repository and configuration: a phantom, a node, a PACS, results that agree with the truth."""
    done = run("demo", "--json")
    assert 0 == done.returncode, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["objects"]
    assert all(row["agrees"] for row in report["objects"])
    names = [Path(file).name for file in report["files"]]
    assert {"seg", "sr", "overlay"} == {name.replace("_", "-").partition("-")[0] for name in names}
    assert all((tmp_path / file).is_file() for file in report["files"])
