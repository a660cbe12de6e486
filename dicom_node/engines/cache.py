"""Built engines on disk: found again by everything that went into them, never by what they are.

An engine file is native code, so only what this node built is ever loaded: an entry that somebody else may have
written, that is damaged, or whose key differs in any part counts as absent, and the engine is built anew. Beside each
`<key>.engine` lies `<key>.json`, which says in words what the key was made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dicom_node.engines.base import ShapeRange
from dicom_node.errors import StorageError

_FILE_MODE, _FOLDER_MODE = 0o600, 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Everything that an engine depends on; a difference in any part means another engine."""

    model_sha256: str
    profile: tuple[ShapeRange, ...]
    precision: str
    flags: Mapping[str, str]
    """What the builder was told: workspace, TF32, target."""
    builder: str
    """Name and version: no engine is read by another release."""
    driver: str
    gpu: str
    compute_capability: str

    def parts(self) -> dict[str, object]:
        """Return the key in plain values, as the sidecar keeps it."""
        return {
            "model_sha256": self.model_sha256,
            "profile": [asdict(each) for each in self.profile],
            "precision": self.precision,
            "flags": dict(self.flags),
            "builder": self.builder,
            "driver": self.driver,
            "gpu": self.gpu,
            "compute_capability": self.compute_capability,
        }

    def digest(self) -> str:
        """Return the name of the entry."""
        return hashlib.sha256(_canonical(self.parts()).encode()).hexdigest()


class EngineCache:
    """A folder of engines that this node built; None as the folder: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: CacheKey) -> bytes | None:
        """Return the engine of this key; None where there is none that this node wrote whole."""
        if self._folder is None:
            return None
        name = key.digest()
        sidecar, engine = (_own_bytes(self._folder / f"{name}.{kind}") for kind in ("json", "engine"))
        if sidecar is None or engine is None:
            return None
        try:
            told = json.loads(sidecar)
        except ValueError:
            return None
        wanted = {**key.parts(), "engine_sha256": hashlib.sha256(engine).hexdigest()}
        return engine if _canonical(told) == _canonical(wanted) else None

    def put(self, key: CacheKey, engine: bytes) -> None:
        """Keep an engine that was just built.

        Raises
        ------
        StorageError
            The folder cannot be written.
        """
        if self._folder is None:
            return
        name = key.digest()
        sidecar = {**key.parts(), "engine_sha256": hashlib.sha256(engine).hexdigest()}
        try:
            self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            _write(self._folder / f"{name}.engine", engine)
            # The sidecar last: an engine without it is none.
            _write(self._folder / f"{name}.json", json.dumps(sidecar, indent=2, sort_keys=True).encode())
        except OSError as error:
            raise StorageError(f"the engine cannot be kept: {error.strerror}") from error


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _own_bytes(path: Path) -> bytes | None:
    """Return what a file holds if it is a plain file of ours that nobody else may write; None otherwise."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        return stream.read() if is_ours else None


def _write(path: Path, content: bytes) -> None:
    """Replace a file by these bytes, at once and durably, readable by its owner alone."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
