"""The administrator's side of a running node: what happened, why, and what to do about it.

Every method returns plain values with the keys that `--json` promises. It reads and writes records; it never touches a
socket except to greet or send, and never a file except to look at it.

What reads images, talks DICOM or infers is imported by the methods that do so: `jobs list` answers without it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dicom_node.admin.queue import QueueAdmin, account
from dicom_node.clock import Clock
from dicom_node.config import Config
from dicom_node.config.schema import Address, Peer
from dicom_node.errors import NotFoundError, UnreachableError, UsageError
from dicom_node.ids import Installation
from dicom_node.logs import Log
from dicom_node.processes import behind
from dicom_node.study import StudyView

if TYPE_CHECKING:
    from dicom_node.filing import InstanceStore
    from dicom_node.infer import PluginRegistry
    from dicom_node.records import Database, Decisions, Deliveries, Jobs, Pauses, Studies
    from dicom_node.retention import Retention


class Parts(Protocol):
    """What administration needs of a node; `app.Node` has it."""

    @property
    def config_file(self) -> Path:
        """The file that was read."""
        ...

    @property
    def config(self) -> Config:
        """Its settings."""
        ...

    @property
    def data_dir(self) -> Path:
        """Where records, files and models lie."""
        ...

    @property
    def has_records(self) -> bool:
        """Whether there is a database already."""
        ...

    @property
    def clock(self) -> Clock:
        """Time."""
        ...

    def tls_for(self, peer: Peer) -> ssl.SSLContext | None:
        """Return with what a peer is called; None without TLS."""
        ...

    @property
    def database(self) -> Database:
        """The records."""
        ...

    @property
    def studies(self) -> Studies:
        """Studies and associations."""
        ...

    @property
    def jobs(self) -> Jobs:
        """The queue."""
        ...

    @property
    def decisions(self) -> Decisions:
        """What rules said."""
        ...

    @property
    def deliveries(self) -> Deliveries:
        """Results under way."""
        ...

    @property
    def pauses(self) -> Pauses:
        """What is paused."""
        ...

    @property
    def records_file(self) -> Path:
        """Where the records lie."""
        ...

    @property
    def store(self) -> InstanceStore:
        """Received instances."""
        ...

    @property
    def retention(self) -> Retention:
        """What gives up images."""
        ...

    @property
    def registry(self) -> PluginRegistry:
        """The plugins."""
        ...

    @property
    def installation(self) -> Installation:
        """Which installation this is."""
        ...


class Admin:
    """What an administrator may ask of a node."""

    def __init__(self, node: Parts) -> None:
        self._node = node
        self.queue = QueueAdmin(node, actor=account())

    # Studies, jobs, deliveries

    def studies(self) -> list[dict[str, Any]]:
        """Return every study, latest first."""
        return [asdict(row) for row in self._node.studies.list()]

    def study(self, study_uid: str) -> dict[str, Any]:
        """Return one study with its decisions and jobs in place of their counts."""
        row = asdict(self._node.studies.show(study_uid))
        decisions = [asdict(decision) for decision in self._node.decisions.list(study_uid)]
        jobs = [asdict(job) for job in self._node.jobs.list(study_uid=study_uid)]
        return {
            **row,
            "identities": [asdict(one) for one in self._node.studies.identities(study_uid)],
            "withdrawn": self._node.studies.withdrawn(study_uid),
            "decisions": decisions,
            "jobs": jobs,
        }

    def hold(self, study_uid: str, reason: str | None) -> None:
        """Keep a study from being processed, and what is there of results from leaving."""
        self._node.studies.hold(study_uid, reason or "held by an administrator")

    def release(
        self, study_uids: Sequence[str], *, peer: str | None = None, patient_id: str | None, is_same: bool
    ) -> list[dict[str, Any]]:
        """Let held studies go on; return which, and what that withdrew.

        Parameters
        ----------
        peer
            All that the rate of this [[peer]] holds, in place of named ones.
        patient_id, is_same
            Of a study with two patients: which is right, or that they are one.
        """
        if bool(study_uids) == (peer is not None):
            raise UsageError("name the studies to release, or --peer NAME for all that its rate holds")
        if peer is not None:
            titles = {one.name: one.ae_title for one in self._node.config.peer}
            if peer not in titles:
                raise NotFoundError(f"no [[peer]] is called {peer!r}; known: {', '.join(titles) or 'none'}")
            study_uids = self._node.studies.held_for_rate(titles[peer])
        return [
            {
                "study_instance_uid": uid,
                **asdict(self._node.studies.release(uid, patient_id=patient_id, is_same=is_same)),
            }
            for uid in study_uids
        ]

    def complete(self, study_uid: str) -> None:
        """Say that a study and its series are complete as they stand; the rules are asked at once.

        Raises
        ------
        NotFoundError
            When there is no such study.
        """
        self._node.studies.force_complete(study_uid)

    def reprocess(self, study_uid: str) -> list[int]:
        """Queue the study's jobs once more under new UIDs; return the numbers of the new jobs.

        Raises
        ------
        NotFoundError
            When there is no such study, or it never had a job.
        """
        self._node.studies.show(study_uid)
        made = list(self._node.jobs.reprocess_study(study_uid, actor=account()))
        if not made:
            raise NotFoundError(f"study {study_uid} has no job to repeat; `route explain` says why")
        return made

    def purge(self, study_uid: str) -> int:
        """Give up the images of a study now; its rows stay. Return how many instances that were.

        Raises
        ------
        NotFoundError
            When there is no such study.
        IllegalTransitionError
            When it is received or held, or a job or delivery of it is open.
        """
        return self._node.retention.purge(study_uid)

    def jobs(self) -> list[dict[str, Any]]:
        """Return every job, latest first."""
        return [asdict(row) for row in self._node.jobs.list()]

    def job(self, job_id: int) -> dict[str, Any]:
        """Return one job with its events, attempts, results and deliveries."""
        detail = self._node.jobs.show(job_id)
        return {
            **asdict(detail.job),
            "input_digest": detail.input_digest,
            "config_digest": detail.config_digest,
            "n_images": sum(len(images) for images in detail.input.roles.values()),
            "destinations": sorted(detail.destinations),
            "events": [asdict(event) for event in detail.events],
            "attempts_made": [asdict(attempt) for attempt in detail.attempts],
            "results": [asdict(result) for result in detail.results],
            "deliveries": [asdict(delivery) for delivery in detail.deliveries],
        }

    def deliveries(self) -> list[dict[str, Any]]:
        """Return every delivery, oldest first."""
        return [asdict(row) for row in self._node.deliveries.list()]

    # Rules

    def explain(self, study: str) -> list[dict[str, Any]]:
        """Return what each route decides about a file, a folder or a stored study, with every condition."""
        from dicom_node import routing
        from dicom_node.decision import origins

        now = self._node.clock.now()
        titles = origins(self._node.config)
        requirements = {plugin.id: plugin.manifest.input_series[0] for plugin in self._node.registry}
        explained = []
        for view in self._views(study):
            for decision in routing.apply_routes(view, self._node.config.route, requirements, now, origins=titles):
                explained.append({**routing.as_json(decision), "lines": routing.lines([decision])})
        return explained

    def _views(self, study: str) -> Sequence[StudyView]:
        if Path(study).exists():
            from dicom_node.admin import inspection

            return inspection.study_views(Path(study), self._node.clock.now())
        self._require_records(f"there is no study {study}")
        return [self._node.studies.view(study)]

    def replay(self, days: float, *, tell: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
        """Return what these rules would change for the studies of the last days; see admin.replay."""
        from dicom_node.admin.replay import replay

        if days <= 0:
            raise UsageError("--days is a number above 0")
        self._require_records("there is no history")
        return replay(self._node, days, tell=tell)

    def _require_records(self, what: str) -> None:
        """Never make a database only to find it empty: a draft often lies elsewhere than its node's records."""
        if not self._node.has_records:
            raise NotFoundError(
                f"{what}: {self._node.data_dir} holds no records; let $DICOM_NODE_CONFIG name the node's own file"
            )

    # Network

    def echo(self, name: str) -> dict[str, Any]:
        """Greet a peer.

        Raises
        ------
        UnreachableError
            When it does not answer, or not with success.
        """
        from dicom_node.dimse import echo

        peer = self._peer(name)
        assert peer.address is not None
        started = self._node.clock.monotonic()
        answer = echo(
            peer.address,
            called_ae=peer.ae_title,
            calling_ae=self._calling_ae,
            timeout_s=self._timeout_s,
            tls=self._node.tls_for(peer),
        )
        if not answer.is_success:
            raise UnreachableError(f"{name}: {answer.reason}")
        return {"peer": name, "ok": True, "duration_s": self._node.clock.monotonic() - started}

    def send(self, paths: Sequence[Path], *, destination: str) -> list[dict[str, Any]]:
        """Send files to a destination of the configuration."""
        for one in self._node.config.destination:
            if one.name == destination:
                peer = self._peer(one.peer)
                assert peer.address is not None
                return self._send(paths, peer.address, peer.ae_title, self._calling_ae, self._node.tls_for(peer))
        raise NotFoundError(f"no [[destination]] is called {destination!r}")

    def send_to(
        self, paths: Sequence[Path], *, host: str, port: int, called_ae: str, calling_ae: str | None = None
    ) -> list[dict[str, Any]]:
        """Send every file of `paths`, folders included; return one entry a file. `calling_ae`: ours by default."""
        return self._send(paths, Address(host=host, port=port), called_ae, calling_ae or self._calling_ae, None)

    def _send(
        self, paths: Sequence[Path], address: Address, called_ae: str, calling_ae: str, tls: ssl.SSLContext | None
    ) -> list[dict[str, Any]]:
        from dicom_node.admin import inspection
        from dicom_node.dimse import Verdict, send_files

        missing = [path for path in paths if not path.exists()]
        if missing:
            raise NotFoundError(f"{missing[0]} does not exist")
        files = [file for path in paths for file in inspection.dicom_files(path)]
        sent = send_files(
            files,
            address,
            called_ae=called_ae,
            calling_ae=calling_ae,
            timeout_s=self._timeout_s,
            tls=tls,
        )
        return [
            {
                "file": str(result.path),
                "sop_instance_uid": result.sop_instance_uid,
                "status": None if result.status is None else f"0x{result.status:04X}",
                "stored": result.verdict in (Verdict.STORED, Verdict.STORED_WITH_WARNING),
                "reason": result.reason,
            }
            for result in sent
        ]

    # Files

    def inspect(self, path: Path, *, nifti: Path | None = None) -> list[dict[str, Any]]:
        """Return what the node sees below `path`; see admin.inspection."""
        from dicom_node.admin import inspection

        return inspection.inspect(path, self._node.registry, nifti=nifti)

    def infer(self, plugin_id: str, path: Path, out: Path) -> dict[str, Any]:
        """Run a study through one plugin without the queue."""
        from dicom_node.admin import inspection
        from dicom_node.infer import Slots

        plugin = self._node.registry.get(plugin_id)
        slots = Slots(1, clock=self._node.clock)
        try:
            return inspection.infer(
                plugin, path, out, slots=slots, installation=self._node.installation, now=self._node.clock.now()
            )
        finally:
            slots.close()

    # Plugins

    def plugins(self) -> list[dict[str, Any]]:
        """Return every plugin of the configured paths, ready or not."""
        known = [
            {
                "id": plugin.id,
                "version": plugin.manifest.plugin.version,
                "name": plugin.manifest.plugin.name,
                "demonstrator": plugin.manifest.plugin.demonstrator,
                "model_sha256": plugin.model_sha256,
                "ready": plugin.defect() is None,
                "reason": plugin.defect(),
            }
            for plugin in self._node.registry
        ]
        broken = [
            {"id": name, "version": None, "name": None, "ready": False, "reason": reason}
            for name, reason in self._node.registry.broken.items()
        ]
        return sorted(known + broken, key=lambda entry: str(entry["id"]))

    def selftest(self, plugin_id: str | None) -> list[dict[str, Any]]:
        """Compute the reference case of one plugin, or of every plugin that can run, again."""
        from dicom_node.admin.selftest import selftest
        from dicom_node.infer import Slots

        registry = self._node.registry
        chosen = [registry.get(plugin_id)] if plugin_id else [one for one in registry if one.defect() is None]
        slots = Slots(1, clock=self._node.clock)
        try:
            return [selftest(plugin, slots=slots, clock=self._node.clock) for plugin in chosen]
        finally:
            slots.close()

    def install(self, plugin_id: str, source: Path) -> Path:
        """Copy a plugin's weights from `source` under data_dir."""
        return self._node.registry.install(plugin_id, source)

    # The node itself

    def check(self, *, network: bool) -> list[dict[str, Any]]:
        """Return what was checked, whether it is well, and the detail."""
        from dicom_node.admin import checks

        found = checks.local(self._node)
        return found + (checks.network(self._node.config, self.echo) if network else [])

    def backup(self, target: Path) -> dict[str, Any]:
        """Write a checked copy of the records to a new file; the node may serve meanwhile."""
        from dicom_node.backup import backup

        # Whoever runs it by hand waits a little longer, no scanner does.
        behind(lambda: backup(self._node.database, target, clock=self._node.clock))
        return {"file": str(target), "size_bytes": target.stat().st_size}

    def restore(self, source: Path) -> dict[str, Any]:
        """Put a copy in the place of the records, and keep the replaced ones; see dicom_node.backup."""
        from dicom_node.backup import restore

        node = self._node
        return asdict(
            restore(source, node.records_file, node.store, data_dir=node.data_dir, clock=node.clock, log=Log("restore"))
        )

    def migrate(self) -> dict[str, str]:
        """Bring the database up to this program's version; return what it was before.

        Raises
        ------
        UsageError
            When there is something to do and the node serves.
        """
        from dicom_node.processes import alone
        from dicom_node.records import open_database

        self._node.data_dir.mkdir(parents=True, exist_ok=True)
        database = open_database(self._node.records_file, clock=self._node.clock)
        try:
            before = database.check().schema
            if before != "current":
                with alone(self._node.data_dir):
                    database.migrate()
        finally:
            database.close()
        return {"before": before, "now": "current"}

    def _peer(self, name: str) -> Peer:
        for peer in self._node.config.peer:
            if peer.name == name:
                if peer.address is None:
                    raise UsageError(f"peer {name!r} has no `address`; it calls us, we cannot call it")
                return peer
        known = ", ".join(peer.name for peer in self._node.config.peer) or "none"
        raise NotFoundError(f"no [[peer]] is called {name!r}; known: {known}")

    @property
    def _calling_ae(self) -> str:
        return self._node.config.node.ae_titles[0]

    @property
    def _timeout_s(self) -> float:
        return self._node.config.sender.timeout_s
