"""`dicom-node check`: what must be well before a node serves, each with the word that helps."""

from __future__ import annotations

import shutil
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dicom_node.config import Config
from dicom_node.errors import DicomNodeError

if TYPE_CHECKING:
    from dicom_node.admin.node import Parts

_OPEN_TO_OTHERS: Final = stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH
"""Modes that a private key must not have. A group may read it (Debian's ssl-cert), and not replace it."""


def local(node: Parts) -> list[dict[str, Any]]:
    """Return the checks that need nobody else: configuration, disk, database, port, routes and models."""
    found = [_entry("configuration", True, f"{node.config_file}")]
    found += [_entry("configuration", True, f"note: {note}") for note in node.config.notes()]
    found.append(_disk(node))
    database = node.database.check()
    found.append(_entry("database", database.integrity == "ok", f"{database.version}, integrity {database.integrity}"))
    if database.warning:
        found.append(_entry("database", True, f"note: {database.warning}"))
    found += _pauses(node)
    found += _ports(node.config)
    found += _certificates(node)
    found += _plugins(node)
    found += _serving(node)
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
    """Return why a port of the configuration cannot be bound, in words; None when all can."""
    return next((taken for _, host, port in _wanted(config) if (taken := _taken(host, port)) is not None), None)


def _wanted(config: Config) -> list[tuple[str, str, int]]:
    """Return what each port is called, and host and number."""
    receive = config.receive
    ports = [("port", receive.host, receive.port)]
    if receive.tls is not None:
        ports.append(("TLS port", receive.tls.host or receive.host, receive.tls.port))
    return ports


def _taken(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}:{port}: {error.strerror or error}"
    return None


def _ports(config: Config) -> list[dict[str, Any]]:
    """Say whether each port can be bound, or is taken by what may be this very node."""
    found = []
    for what, host, port in _wanted(config):
        taken = _taken(host, port)
        words = f"note: {taken}; fine when this node is serving" if taken is not None else f"{host}:{port} is free"
        found.append(_entry(what, True, words))
    return found


def _certificates(node: Parts) -> list[dict[str, Any]]:
    """Say what peers will think of the files of [receive.tls]."""
    settings = node.config.receive.tls
    if settings is None:
        return []
    from dicom_node.dimse.tls import CertificateError, CertificateFiles, examine

    what = "TLS certificate"
    files = CertificateFiles.of(settings, node.config_file.absolute().parent)
    try:
        report = examine(files, node.clock.now())
    except CertificateError as error:
        return [_entry(what, False, str(error))]
    found = [_entry(what, False, problem) for problem in report.problems]
    if not found:
        found.append(_entry(what, True, f"{report.subject}, valid until {report.not_after:%Y-%m-%d}"))
    found += [_entry(what, True, f"note: {note}") for note in report.notes]
    if stat.S_IMODE(files.key.stat().st_mode) & _OPEN_TO_OTHERS:
        found.append(_entry(what, True, f"warning: others can read or replace the private key; chmod 600 {files.key}"))
    return found


def _plugins(node: Parts) -> list[dict[str, Any]]:
    """Say whether every plugin that an enabled route names can run."""
    found = []
    for route in node.config.route:
        if not route.enabled:
            continue
        what = f"route {route.name}"
        if route.plugin is None:
            found.append(_entry(what, True, f"forwards to {', '.join(route.destinations)}"))
            continue
        try:
            defect = node.registry.get(route.plugin).defect()
        except DicomNodeError as error:
            defect = str(error)
        found.append(_entry(what, defect is None, f"{route.plugin}: {defect or 'model verified'}"))
    return found + _at_odds(node)


def _at_odds(node: Parts) -> list[dict[str, Any]]:
    """Name the conditions of routes that what their plugins require contradicts: such a route never matches."""
    from dicom_node.config.impossible import contradiction, shown
    from dicom_node.config.locate import locate

    required = {plugin.id: plugin.manifest.input_series[0].match for plugin in node.registry}
    line_of = locate(node.config_file.read_text(encoding="utf-8-sig"))
    found = []
    for number, route in enumerate(node.config.route):
        wanted = route.series.match
        if not route.enabled or route.plugin not in required:
            continue
        # The plugin's come first: of a pair that clashes, the second is the route's.
        clash = contradiction([*required[route.plugin], *wanted], one_series=True)
        if clash is None:
            continue
        index = next((index for index, one in enumerate(wanted) if one is clash[1]), None)
        if index is not None:
            line = line_of(("route", number, "series", "match", index))
            words = f"{shown(clash[1])} can never hold together with what {route.plugin} requires: {shown(clash[0])}"
            found.append(_entry(f"route {route.name}", False, f"{node.config_file.name}:{line}: {words}"))
    return found


def _serving(node: Parts) -> list[dict[str, Any]]:
    """Say by which rules each process that runs now serves, and what it refused of the file."""
    from dicom_node.reload import SERVING, serving

    found = []
    for one in serving(node.data_dir / SERVING):
        what = f"rules of the {one.role}"
        found += [_entry(what, False, f"the old rules serve; the file was refused: {reason}") for reason in one.refused]
        if not one.refused:
            found.append(_entry(what, True, f"{one.digest[:12]} since {one.since.astimezone():%Y-%m-%d %H:%M:%S}"))
        found += [_entry(what, True, f"note: restart needed: {key}") for key in one.restart_needed]
    return found


def _pauses(node: Parts) -> list[dict[str, Any]]:
    """Say what an administrator has paused: forgotten pauses look like a broken node."""
    return [
        _entry(
            f"{one.kind} {one.name}",
            True,
            f"note: paused since {one.at:%Y-%m-%d %H:%M} UTC by {one.actor}: {one.reason}",
        )
        for one in node.pauses.list()
    ]


def _entry(what: str, ok: bool, detail: str) -> dict[str, Any]:
    return {"what": what, "ok": ok, "detail": detail}
