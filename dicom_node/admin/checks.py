"""`dicom-node check`: what must be well before a node serves, each with the word that helps."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dicom_node.config import Config
from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from dicom_node.admin.node import Parts


def local(node: Parts) -> list[dict[str, Any]]:
    """Return the checks that need nobody else: configuration, disk, database, port, routes and models."""
    found = [_entry("configuration", True, f"{node.config_file}")]
    found += [_entry("configuration", True, f"note: {note}") for note in node.config.notes()]
    found.append(_disk(node))
    database = node.database.check()
    found.append(_entry("database", database.integrity == "ok", f"{database.version}, integrity {database.integrity}"))
    if database.warning:
        found.append(_entry("database", True, f"note: {database.warning}"))
    found.append(_port(node.config))
    found += _plugins(node)
    return found


def network(config: Config, greet: Callable[[str], object]) -> list[dict[str, Any]]:
    """Return whether each peer that has an address answers C-ECHO; `greet` raises when it does not."""
    found = []
    for peer in config.peer:
        if peer.address is None:
            continue
        what = f"peer {peer.name}"
        try:
            greet(peer.name)
        except DicomNodeError as error:
            found.append(_entry(what, False, str(error)))
        else:
            found.append(_entry(what, True, f"answers at {peer.address.host}:{peer.address.port}"))
    return found


def _disk(node: Parts) -> dict[str, Any]:
    node.data_dir.mkdir(parents=True, exist_ok=True)
    free_mb = shutil.disk_usage(node.data_dir).free >> 20
    reserve_mb = node.config.storage.reserve_mb
    return _entry("disk", free_mb > reserve_mb, f"{free_mb} MB free in {node.data_dir}, reserve {reserve_mb} MB")


def taken_port(config: Config) -> str | None:
    """Return why the port cannot be bound, in words; None when it can."""
    address = (config.receive.host, config.receive.port)
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return f"{address[0]}:{address[1]}: {error.strerror or error}"
    return None


def _port(config: Config) -> dict[str, Any]:
    """Say whether the port can be bound, or is taken by what may be this very node."""
    taken = taken_port(config)
    if taken is not None:
        return _entry("port", True, f"note: {taken}; fine when this node is serving")
    return _entry("port", True, f"{config.receive.host}:{config.receive.port} is free")


def _plugins(node: Parts) -> list[dict[str, Any]]:
    """Say whether every plugin that an enabled route names can run."""
    found = []
    for route in node.config.route:
        if not route.enabled:
            continue
        what = f"route {route.name}"
        try:
            defect = node.registry.get(route.plugin).defect()
        except DicomNodeError as error:
            defect = str(error)
        found.append(_entry(what, defect is None, f"{route.plugin}: {defect or 'model verified'}"))
    return found


def _entry(what: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "detail": detail}
