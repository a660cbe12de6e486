"""Which plugins are here: folders with a manifest, their model files, and whether those are what they should be.

A plugin folder is found by its name in the configured paths. Weights that are not shipped lie in
`<models_dir>/<plugin id>/` and come there by `install`, which takes only the bytes that the manifest names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dicom_node.config import read_table
from dicom_node.errors import ConfigError, ModelMismatchError, NotFoundError, PluginError
from dicom_node.plugin_api import Manifest

MANIFEST = "plugin.toml"
VERDICTS = "engines.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plugin that can be named in a route."""

    manifest: Manifest
    folder: Path
    model_path: Path
    verdicts_path: Path
    """What comparisons of engines found (`model-build compare`); need not be there."""

    @property
    def id(self) -> str:
        """Return the name that routes use."""
        return self.manifest.plugin.id

    @property
    def model_sha256(self) -> str:
        """Return the digest that the model file must have."""
        return self.manifest.model[0].sha256

    def defect(self) -> str | None:
        """Return what keeps the plugin from running, in words; None when its model file is the declared one."""
        if not self.model_path.is_file():
            remedy = (
                f"run `dicom-node plugins install {self.id} --from DIR`" if self.manifest.model[0].installed else ""
            )
            return f"the model file {self.model_path.name} is missing" + (f"; {remedy}" if remedy else "")
        found = file_sha256(self.model_path)
        if found != self.model_sha256:
            return f"{self.model_path.name} has sha256 {found}, the manifest declares {self.model_sha256}"
        return self.spec_defect()

    def spec_defect(self) -> str | None:
        """Return in words that the spec is not the one that was published with the model; None: it is, or none was.

        What was published is what the reference case was computed with (`model-build publish`).
        """
        case = self.folder / "reference" / "case.json"
        try:
            published = json.loads(case.read_text(encoding="utf-8"))["spec_sha256"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return f"reference/{case.name} of {self.id} cannot be read; publish the plugin again"
        found = self.manifest.spec_sha256()
        if found == published:
            return None
        return f"{MANIFEST} of {self.id} describes the spec {found}; the model was published with {published}"


class PluginRegistry:
    """The plugins of the configured paths; a broken one is kept with its defect and stops no other."""

    def __init__(self, paths: Iterable[Path], models_dir: Path) -> None:
        """Read every manifest below `paths`; the first folder that has a plugin's name wins."""
        self._models_dir = models_dir
        plugins: dict[str, Plugin] = {}
        broken: dict[str, str] = {}
        for path in paths:
            for folder in sorted(path.iterdir()) if path.is_dir() else ():
                if not (folder / MANIFEST).is_file() or folder.name in plugins or folder.name in broken:
                    continue
                try:
                    plugins[folder.name] = read_plugin(folder, models_dir)
                except (ConfigError, PluginError) as error:
                    broken[folder.name] = str(error)
        self._plugins = plugins
        self.broken: Mapping[str, str] = MappingProxyType(broken)

    def __iter__(self) -> Iterator[Plugin]:
        return iter(self._plugins.values())

    def get(self, plugin_id: str) -> Plugin:
        """Return the plugin of that id.

        Raises
        ------
        PluginError
            When its manifest is wrong; the message says where.
        NotFoundError
            When no path has a folder of that name.
        """
        if plugin_id in self.broken:
            raise PluginError(f"plugin {plugin_id} cannot be used: {self.broken[plugin_id]}")
        if plugin_id not in self._plugins:
            known = ", ".join(sorted(self._plugins)) or "none"
            raise NotFoundError(f"no plugin is called {plugin_id!r}; known here: {known}")
        return self._plugins[plugin_id]

    def install(self, plugin_id: str, source: Path) -> Path:
        """Copy the weights of a plugin from the folder `source`, if they are the declared ones; return where they lie.

        Raises
        ------
        NotFoundError
            When `source` has no file of the declared name.
        ModelMismatchError
            When the file is another one: nothing is copied.
        """
        plugin = self.get(plugin_id)
        model = plugin.manifest.model[0]
        if not model.installed:
            raise PluginError(f"plugin {plugin_id} ships its model; there is nothing to install")
        wanted = source / Path(model.file).name
        if not wanted.is_file():
            raise NotFoundError(f"{source} has no file {wanted.name}")
        content = wanted.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != model.sha256:
            raise ModelMismatchError(f"{wanted.name} has sha256 {found}, plugin {plugin_id} wants {model.sha256}")
        _write_durably(plugin.model_path, content)
        return plugin.model_path


def read_plugin(folder: Path, models_dir: Path) -> Plugin:
    """Return the plugin in `folder`.

    Raises
    ------
    ConfigError
        When plugin.toml is wrong, with file and line.
    PluginError
        When its id is not the folder's name, or its model path leaves the folder.
    """
    manifest = read_table(folder / MANIFEST, Manifest)
    if manifest.plugin.id != folder.name:
        raise PluginError(f"{folder.name}/{MANIFEST}: id {manifest.plugin.id!r} is not the folder's name")
    model = manifest.model[0]
    home = models_dir / folder.name if model.installed else folder
    model_path = (home / model.file).resolve()
    if not model_path.is_relative_to(home.resolve()):
        raise PluginError(f"{folder.name}/{MANIFEST}: model file {model.file!r} lies outside the plugin")
    return Plugin(
        manifest=manifest,
        folder=folder,
        model_path=model_path,
        verdicts_path=models_dir / folder.name / VERDICTS,
    )


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.chmod(0o444)
    part.rename(path)
