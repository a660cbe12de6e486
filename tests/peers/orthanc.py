"""A real PACS: Debian's Orthanc on free loopback ports, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.peers.ports import free_port
from tests.peers.require import find_program, require_peer

Modality = tuple[str, str, int]
"""AE title, host, port."""

READY_S = 30.0

_FORWARD_LUA = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, {modality})
end
"""
"""Sends every instance on, whoever it came from: the PACS that makes loops."""


class Orthanc:
    """One running Orthanc; a context manager that stops it by its process id.

    Parameters
    ----------
    folder
        Where configuration, log and database go.
    modalities
        Symbolic name -> whom Orthanc may call.
    forward_to
        Name of a modality that gets every instance that arrives.
    extra
        Keys laid over the configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ORTHANC",
        modalities: Mapping[str, Modality] | None = None,
        forward_to: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        require_peer("orthanc")
        self.folder = folder
        self.ae_title = ae_title
        self.dicom_port = free_port()
        self.http_port = free_port()
        self.log = folder / "orthanc.log"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        scripts = []
        if forward_to is not None:
            script = folder / "forward.lua"
            script.write_text(_FORWARD_LUA.format(modality=json.dumps(forward_to)), encoding="utf-8")
            scripts.append(str(script))
        settings = self._settings(modalities or {}, scripts) | dict(extra or {})
        (folder / "orthanc.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")

    def _settings(self, modalities: Mapping[str, Modality], lua_scripts: list[str]) -> dict[str, Any]:
        return {
            "Name": "TESTPACS",
            "DicomAet": self.ae_title,
            "DicomPort": self.dicom_port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
            "DicomAlwaysAllowGet": True,
            "UnknownSopClassAccepted": True,
            "StorageCommitmentReportsSize": 100,
            "OverwriteInstances": True,
            "DicomModalities": {name: list(modality) for name, modality in modalities.items()},
            "ExecuteLuaEnabled": False,
            "LuaScripts": lua_scripts,
            "JobsHistorySize": 10,
        }

    def start(self) -> Self:
        """Start Orthanc (again, on the same ports and data) and wait until it answers."""
        program = find_program("Orthanc")
        assert program is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self.folder / "orthanc.json")],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "TCP_NODELAY": "1"},  # dcmtk waits 40 ms a message otherwise
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                self.rest("/system")
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
            else:
                return self
        self.stop()
        raise RuntimeError(f"Orthanc did not come up:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """End it; its data stay."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()  # an orderly end takes it seconds, and nobody reads this database again
        self.stop()

    def raw(self, path: str, *, body: bytes | None = None, method: str | None = None) -> bytes:
        """Return the bytes that the REST interface answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def rest(self, path: str, *, body: object = None, method: str | None = None) -> Any:
        """Return what the REST interface answers, decoded from JSON (None when it answers nothing)."""
        data = None if body is None else json.dumps(body).encode()
        answer = self.raw(path, body=data, method=method)
        return json.loads(answer) if answer.strip() else None

    def add_modality(self, name: str, ae_title: str, host: str, port: int) -> None:
        """Let Orthanc call `ae_title` at `host:port` under `name`."""
        self.rest(f"/modalities/{name}", body={"AET": ae_title, "Host": host, "Port": port}, method="PUT")

    def instances(self, **query: str) -> list[dict[str, Any]]:
        """Return what Orthanc says of each instance (`ID`, `MainDicomTags`, ...) that `query` (keyword=value) finds."""
        if query:
            found = self.rest("/tools/find", body={"Level": "Instance", "Expand": True, "Query": query})
        else:
            found = self.rest("/instances?expand")
        assert isinstance(found, list)
        return found

    def objects(self, study_instance_uid: str, modality: str) -> list[str]:
        """Return the Orthanc IDs of the instances that the study holds in one modality."""
        query = {"StudyInstanceUID": study_instance_uid, "Modality": modality}
        series = self.rest("/tools/find", body={"Level": "Series", "Expand": True, "Query": query})
        return [orthanc_id for one in series for orthanc_id in one["Instances"]]

    def fetch(self, orthanc_id: str, to: Path) -> Path:
        """Write the instance's file, as Orthanc holds it, to `to`."""
        to.write_bytes(self.raw(f"/instances/{orthanc_id}/file"))
        return to
