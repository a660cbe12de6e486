"""Everything is built here, from one configuration, and nowhere else.

A `Node` holds what commands need; `run_role` adds the loops of one role. Parts are imported and made when they are
first asked for, so that `jobs list` opens a database and nothing more, and the receiver loads no inference runtime.
"""

from __future__ import annotations

import contextlib
import os
import random
import ssl
import sys
import threading
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import ids, processes, roles
from dicom_node.clock import SystemClock
from dicom_node.config import Config, data_dir, find_config, load_config
from dicom_node.errors import UsageError
from dicom_node.logs import Log, start_logging

if TYPE_CHECKING:
    from dicom_node.admin import Admin
    from dicom_node.config.schema import Peer
    from dicom_node.dimse.tls import Certificates
    from dicom_node.filing import InstanceStore, ResultStore
    from dicom_node.indexing import Index
    from dicom_node.infer import PluginRegistry
    from dicom_node.receive.listener import Wrap
    from dicom_node.records import Database, Decisions, Deliveries, Jobs, Studies

SHIPPED = Path(__file__).parent / "shipped"
"""What an installed wheel brings along; in a checkout the same folders stand at its top."""
STEP_S = 0.2
"""Pause of a loop that found nothing to do."""
WATCH_S = 2.0


class Role(StrEnum):
    """What a process does."""

    ALL = "all"
    RECEIVER = "receiver"
    WORKER = "worker"
    SENDER = "sender"


class Node:
    """The parts of a node that one configuration describes."""

    def __init__(self, config_file: Path) -> None:
        self.config_file = config_file
        self.config: Config = load_config(config_file)
        self.data_dir = data_dir(self.config, config_file)
        self.clock = SystemClock()

    @cached_property
    def database(self) -> Database:
        """The records, migrated to this version."""
        from dicom_node.records import open_database

        self.data_dir.mkdir(parents=True, exist_ok=True)
        database = open_database(self.data_dir / "records.sqlite", clock=self.clock)
        database.migrate()
        return database

    @cached_property
    def studies(self) -> Studies:
        """Studies and associations."""
        from dicom_node.records import Studies

        return Studies(self.database, on_conflict=self.config.storage.on_conflict)

    @cached_property
    def jobs(self) -> Jobs:
        """The queue."""
        from dicom_node.records import Jobs

        return Jobs(self.database)

    @cached_property
    def decisions(self) -> Decisions:
        """What rules said."""
        from dicom_node.records import Decisions

        return Decisions(self.database, self.jobs)

    @cached_property
    def deliveries(self) -> Deliveries:
        """Results under way."""
        from dicom_node.records import Deliveries

        return Deliveries(self.database)

    @cached_property
    def store(self) -> InstanceStore:
        """Received instances."""
        from dicom_node.filing import InstanceStore

        storage = self.config.storage
        return InstanceStore(
            self.data_dir / "received",
            clock=self.clock,
            reserve_bytes=storage.reserve_mb << 20,
            journal_bytes=storage.journal_mb << 20,
        )

    @cached_property
    def certificates(self) -> Certificates | None:
        """Our certificate and whom we trust; None without [receive.tls]."""
        from dicom_node.dimse.tls import CertificateFiles, Certificates

        settings = self.config.receive.tls
        if settings is None:
            return None
        return Certificates(CertificateFiles.of(settings, self.config_file.parent), clock=self.clock, log=Log("tls"))

    @cached_property
    def results(self) -> ResultStore:
        """Our results."""
        from dicom_node.filing import ResultStore

        return ResultStore(self.data_dir / "results")

    @cached_property
    def registry(self) -> PluginRegistry:
        """The plugins of the configured paths, then the shipped ones."""
        from dicom_node.infer import PluginRegistry

        configured = [self.config_file.parent / path for path in self.config.plugins.paths]
        return PluginRegistry([*configured, shipped("plugins")], self.data_dir / "models")

    @cached_property
    def installation(self) -> ids.Installation:
        """Which installation this is; its UID is made once and kept in data_dir."""
        file = self.data_dir / "installation_uid"
        if not file.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_text(ids.new_uid(), encoding="ascii")
            with contextlib.suppress(FileExistsError):  # the first of several processes wins
                os.link(part, file)
            part.unlink()
        uid = file.read_text(encoding="ascii").strip()
        return ids.Installation(uid=uid, serial_number=uid.rpartition(".")[2][-12:])

    @cached_property
    def admin(self) -> Admin:
        """What commands may do."""
        from dicom_node.admin import Admin

        return Admin(self)

    def tls_for(self, peer: Peer) -> ssl.SSLContext | None:
        """Return with what a peer is called: our certificate and whom we trust, or None without TLS."""
        return self.certificates.client() if peer.tls and self.certificates is not None else None

    def role(self, role: Role, stop: threading.Event) -> roles.Role:
        """Return one role, ready to run until `stop` is set."""
        build = {Role.RECEIVER: self._receiver, Role.WORKER: lambda: self._worker(stop), Role.SENDER: self._sender}
        return build[role]()

    def _receiver(self) -> roles.Role:
        from dicom_node.indexing import CALM_S, Indexer, Reception, RejectOtherContent
        from dicom_node.receive import Listener

        log = Log("receiver")
        indexer = Indexer(partial(_indexing, self.config_file))
        reception = Reception(self.store, indexer.index, process=ids.process_identity(), clock=self.clock, log=log)
        listener = Listener(
            self.config.receive,
            self.config.node.ae_titles,
            self.config.peer,
            store=self.store,
            events=reception,
            clock=self.clock,
            log=log,
            policy=RejectOtherContent(self.store) if self.config.storage.on_conflict == "reject" else None,
            tls=self._tls_wrap(),
        )

        def before() -> None:
            indexer.start()
            reception.recover()
            self.store.start()
            processes.settle()
            listener.start()

        def after() -> None:
            listener.stop(roles.DRAIN_S / 2)
            reception.drain()
            indexer.stop()
            self.store.stop()

        loops = [roles.Loop(name="index", step=reception.step_when_calm, idle_s=CALM_S / 4)]
        return roles.LoopingRole(loops, log=log, before=before, after=after)

    def _tls_wrap(self) -> Wrap | None:
        """Return what makes TLS sockets of the TLS port's; certificates are read anew when they change."""
        if self.certificates is None:
            return None
        certificates = self.certificates
        return lambda plain: certificates.server().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)

    def _worker(self, stop: threading.Event) -> roles.Role:
        from dicom_node import upkeep
        from dicom_node.infer import Slots
        from dicom_node.pipeline import Decision, Work

        log = Log("worker")
        count = self.config.worker.slots
        slots = Slots(count, clock=self.clock)
        decision = Decision(
            self.studies, self.decisions, config=self.config, registry=self.registry, clock=self.clock, log=log
        )
        work = Work(
            self.jobs,
            worker=upkeep.owner_name(),
            settings=self.config.worker,
            registry=self.registry,
            slots=slots,
            results=self.results,
            installation=self.installation,
            stopping=stop,
            clock=self.clock,
            log=log,
        )
        watch = upkeep.Watch(self.jobs, self.deliveries, log=log)
        loops = [
            roles.Loop(name="decide", step=decision.step, idle_s=STEP_S),
            roles.Loop(name="watch", step=watch.step, idle_s=WATCH_S),
            *(roles.Loop(name=f"slot-{number}", step=work.step, idle_s=STEP_S) for number in range(count)),
        ]
        return roles.LoopingRole(loops, log=log, before=self.results.sweep, after=slots.close)

    def _sender(self) -> roles.Role:
        from dicom_node import upkeep
        from dicom_node.pipeline import Dispatch

        log = Log("sender")
        peers = {peer.name: peer for peer in self.config.peer}
        loops = [
            roles.Loop(
                name=f"send-{destination.name}",
                step=Dispatch(
                    self.deliveries,
                    destination=destination.name,
                    peer=peers[destination.peer],
                    calling_ae=self.config.node.ae_titles[0],
                    sender=upkeep.owner_name(),
                    settings=self.config.sender,
                    jitter=random.random,
                    tls=partial(self.tls_for, peers[destination.peer]),
                    clock=self.clock,
                    log=log,
                ).step,
                idle_s=STEP_S,
            )
            for destination in self.config.destination
        ]
        return roles.LoopingRole(loops, log=log)


def _indexing(config_file: Path) -> Index:
    """Return what indexes, in the process that does nothing else."""
    from dicom_node.indexing.rows import Indexing

    start_logging()
    node = Node(config_file)
    return Indexing(node.store, node.studies, log=Log("indexer")).index


def shipped(name: str) -> Path:
    """Return a file or folder that comes with the node, in a wheel or in a checkout."""
    inside = SHIPPED / name
    return inside if inside.exists() else Path(__file__).parents[1] / name


def open_node(config: Path | None) -> Node:
    """Return the node that --config, $DICOM_NODE_CONFIG, ./config.toml or /etc/dicom-node/config.toml describes.

    Raises
    ------
    ConfigError
        When there is no such file, or it is wrong; every problem is named with its line.
    """
    return Node(find_config(config, os.environ, Path.cwd()))


def run_role(config: Path | None, role: Role) -> None:
    """Run one role in this process until SIGTERM."""
    if role is Role.RECEIVER:
        processes.keep_out(*processes.CODECS)
    start_logging()
    stop = roles.stop_on_signals()
    open_node(config).role(role, stop).run(stop)


def supervise(config: Path | None) -> int:
    """Run every role as a process until SIGTERM; return the exit status of the node.

    Raises
    ------
    UsageError
        When something else has the port: roles that are started again and again would hide it in the log.
    """
    from dicom_node.admin.checks import taken_port

    start_logging()
    node = open_node(config)
    taken = taken_port(node.config)
    if taken is not None:
        raise UsageError(f"the node cannot listen on {taken}; is it serving already? [receive] port in config.toml")
    node.database.close()  # migrated before the roles start side by side
    log = Log("serve")
    for note in node.config.notes():
        log.info("config.note", reason=note)
    serve = [sys.executable, "-P", "-m", "dicom_node", "serve"]  # -P: not the code of the present folder
    command = [*serve, "--config", str(node.config_file.absolute()), "--role"]
    supervisor = roles.Supervisor(command, [Role.RECEIVER, Role.WORKER, Role.SENDER], clock=node.clock, log=log)
    return supervisor.run(roles.stop_on_signals())
