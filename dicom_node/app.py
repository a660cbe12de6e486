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
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dicom_node import ids, processes, roles
from dicom_node.clock import SystemClock
from dicom_node.config import Config, data_dir, find_config, load_config
from dicom_node.config.live import Live, Rules, merged
from dicom_node.errors import ConfigError, UsageError
from dicom_node.logs import Log, start_logging
from dicom_node.reload import SERVING, Reload

if TYPE_CHECKING:
    from dicom_node.admin import Admin
    from dicom_node.adoption import Adoption
    from dicom_node.backup import Nightly
    from dicom_node.config.schema import Destination, Peer
    from dicom_node.dimse.tls import Certificates
    from dicom_node.filing import InstanceStore, ResultStore
    from dicom_node.indexing import Index
    from dicom_node.infer import PluginRegistry
    from dicom_node.receive.listener import Wrap
    from dicom_node.records import Database, Decisions, Deliveries, Jobs, Pauses, Studies
    from dicom_node.retention import Retention

SHIPPED = Path(__file__).parent / "shipped"
"""What an installed wheel brings along; in a checkout the same folders stand at its top."""
STEP_S = 0.2
"""Pause of a loop that found nothing to do."""
WATCH_S = 2.0
PURGE_S = 60.0
"""Between two looks for what may be purged; days and gigabytes do not change faster."""


class Role(StrEnum):
    """What a process does."""

    ALL = "all"
    RECEIVER = "receiver"
    WORKER = "worker"
    SENDER = "sender"


class Node:
    """The parts of a node that one configuration describes."""

    def __init__(self, config_file: Path, config: Config | None = None) -> None:
        """`config`: what serves in place of what stands in the file."""
        self.config_file = config_file
        self.config: Config = config or load_config(config_file)
        self.rules = Live(Rules.of(self.config))
        self.data_dir = data_dir(self.config, config_file)
        self.clock = SystemClock()

    @property
    def has_records(self) -> bool:
        """Whether there is a database already; asking for `database` makes one."""
        return self.records_file.exists()

    @property
    def records_file(self) -> Path:
        """Where the records lie."""
        return self.data_dir / "records.sqlite"

    @cached_property
    def database(self) -> Database:
        """The records, migrated to this version."""
        from dicom_node.records import open_database

        self.data_dir.mkdir(parents=True, exist_ok=True)
        database = open_database(self.records_file, clock=self.clock)
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
    def pauses(self) -> Pauses:
        """What is paused."""
        from dicom_node.records import Pauses

        return Pauses(self.database)

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
    def retention(self) -> Retention:
        """What gives up images and results."""
        from dicom_node.records import Purges
        from dicom_node.retention import Retention, used_percent

        return Retention(
            Purges(self.database),
            received=self.store.disposal(),
            results=self.results.disposal(),
            settings=self.config.storage,
            used_percent=partial(used_percent, self.data_dir),
            clock=self.clock,
            log=Log("retention"),
        )

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

    def role(self, role: Role, stop: threading.Event, asked: threading.Event) -> roles.Role:
        """Return one role, ready to run until `stop` is set; `asked` makes it read the configuration again."""
        build: dict[Role, Callable[[threading.Event], roles.Role]] = {
            Role.RECEIVER: self._receiver,
            Role.WORKER: partial(self._worker, stop),
            Role.SENDER: self._sender,
        }
        return build[role](asked)

    def _reload(
        self, role: Role, asked: threading.Event, log: Log, on_swap: Callable[[Rules], object] = lambda _: None
    ) -> Reload:
        return Reload(
            self.config_file,
            self.rules,
            role=role,
            folder=self.data_dir / SERVING,
            asked=asked,
            on_swap=on_swap,
            clock=self.clock,
            log=log,
        )

    def _receiver(self, asked: threading.Event) -> roles.Role:
        from dicom_node.indexing import CALM_S, Indexer, Reception, RejectOtherContent
        from dicom_node.receive import Listener

        log = Log("receiver")
        indexer = Indexer(partial(_indexing, self.config_file, self.config))
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

        reload = self._reload(Role.RECEIVER, asked, log, lambda rules: listener.know(rules.config.peer))

        def before() -> None:
            reload.begin()
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
            reload.end()

        loops = [
            roles.Loop(name="index", step=reception.step_when_calm, idle_s=CALM_S / 4),
            roles.Loop(name="reload", step=reload.step, idle_s=STEP_S),
        ]
        return roles.LoopingRole(loops, log=log, before=before, after=after)

    def _tls_wrap(self) -> Wrap | None:
        """Return what makes TLS sockets of the TLS port's; certificates are read anew when they change."""
        if self.certificates is None:
            return None
        certificates = self.certificates
        return lambda plain: certificates.server().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)

    def _worker(self, stop: threading.Event, asked: threading.Event) -> roles.Role:
        from dicom_node import upkeep
        from dicom_node.gathering import Expectations
        from dicom_node.guard import FloodGuard
        from dicom_node.infer import Slots
        from dicom_node.pipeline import Decision, Work
        from dicom_node.reading import content_or_itself

        log = Log("worker")
        count = self.config.worker.slots
        slots = Slots(count, clock=self.clock)
        guard = FloodGuard(self.studies, self.rules, log=log)
        expectations = Expectations(self._held_by, clock=self.clock, log=log)
        decision = Decision(
            self.studies,
            self.decisions,
            rules=self.rules,
            registry=self.registry,
            clock=self.clock,
            log=log,
            lets_through=guard.lets_through,
            expectations=expectations,
        )
        compare = upkeep.Compare(self.studies.contents, content_of=content_or_itself, log=log)
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
        reload = self._reload(Role.WORKER, asked, log)

        def before() -> None:
            reload.begin()
            self.results.sweep()

        def after() -> None:
            slots.close()
            reload.end()

        loops = [
            roles.Loop(name="reload", step=reload.step, idle_s=STEP_S),
            roles.Loop(name="decide", step=decision.step, idle_s=STEP_S),
            roles.Loop(name="expect", step=expectations.step, idle_s=STEP_S),
            roles.Loop(name="compare", step=compare.step, idle_s=WATCH_S, gives_way=True),
            roles.Loop(name="watch", step=watch.step, idle_s=WATCH_S),
            roles.Loop(name="backup", step=self._nightly().step, idle_s=PURGE_S, gives_way=True),
            roles.Loop(name="purge", step=self.retention.step, idle_s=PURGE_S, gives_way=True),
            *(roles.Loop(name=f"slot-{number}", step=work.step, idle_s=STEP_S) for number in range(count)),
        ]
        return roles.LoopingRole(loops, log=log, before=before, after=after)

    def _held_by(self, name: str, study_uid: str) -> Mapping[str, int]:
        """Return how many instances a peer holds of each series of a study."""
        from dicom_node.dimse.find import count_instances

        peer = next(one for one in self.rules.current.config.peer if one.name == name)
        return count_instances(
            peer,
            study_uid,
            calling_ae=self.config.node.ae_titles[0],
            timeout_s=self.config.sender.timeout_s,
            tls=self.tls_for(peer),
        )

    def _nightly(self) -> Nightly:
        from dicom_node.backup import Nightly

        storage = self.config.storage
        folder = self.config_file.parent / storage.backup_dir if storage.backup_dir else self.data_dir / "backup"
        return Nightly(
            self.database,
            folder,
            hour=storage.backup_hour,
            keep=storage.backup_keep,
            clock=self.clock,
            log=Log("backup"),
        )

    def _adoption(self, destination: Destination, peer: Peer, log: Log) -> Adoption | None:
        """Return what gives results the identity that a destination knows, where its profile asks for it."""
        if destination.profile.identity == "source":
            return None
        from dicom_node.adoption import Adoption
        from dicom_node.dimse.find import find

        return Adoption(
            self.deliveries,
            self.results,
            destination=destination.name,
            ask=lambda keys: find(
                peer,
                "STUDY",
                keys,
                calling_ae=self.config.node.ae_titles[0],
                timeout_s=self.config.sender.timeout_s,
                tls=self.tls_for(peer),
            ),
            patience=self.config.sender.max_refusals,
            clock=self.clock,
            log=log,
        )

    def _sender(self, asked: threading.Event) -> roles.Role:
        log = Log("sender")
        reload = self._reload(Role.SENDER, asked, log)

        def sending() -> list[roles.Loop]:
            return [
                roles.Loop(name=f"send-{one.name}", step=partial(self._dispatch, one.name, log), idle_s=STEP_S)
                for one in self.rules.current.config.destination
            ]

        loops = [roles.Loop(name="reload", step=reload.step, idle_s=STEP_S)]
        return roles.LoopingRole(loops, log=log, before=reload.begin, after=reload.end, more=sending)

    def _dispatch(self, name: str, log: Log) -> bool:
        """Send what is due to a destination as the present rules describe it; nothing when they no longer name it."""
        from dicom_node import upkeep
        from dicom_node.pipeline import Dispatch

        config = self.rules.current.config
        destination = next((one for one in config.destination if one.name == name), None)
        if destination is None:
            return False
        peer = next(one for one in config.peer if one.name == destination.peer)
        dispatch = Dispatch(
            self.deliveries,
            destination=name,
            peer=peer,
            calling_ae=self.config.node.ae_titles[0],
            sender=upkeep.owner_name(),
            settings=self.config.sender,
            jitter=random.random,
            tls=partial(self.tls_for, peer),
            adoption=self._adoption(destination, peer, log),
            clock=self.clock,
            log=log,
        )
        return dispatch.step()


def _indexing(config_file: Path, config: Config) -> Index:
    """Return what indexes, in the process that does nothing else; the file may have been broken since."""
    from dicom_node.indexing.rows import Indexing

    start_logging()
    node = Node(config_file, config)
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


def open_draft(config: Path | None) -> Node:
    """Return a node whose rules are those of `config`, to try them, and whose records are the node's own.

    A draft that lies beside its records is a node itself. Any other is what the node that is found without --config
    would serve by after a reload of the draft.

    Raises
    ------
    ConfigError
        As `open_node` does.
    """
    file = find_config(config, os.environ, Path.cwd())
    draft = Node(file)
    if draft.has_records or config is None:
        return draft
    try:
        home = Node(find_config(None, os.environ, Path.cwd()))
    except ConfigError:
        return draft
    return Node(home.config_file, merged(home.config, draft.config)) if home.has_records else draft


def run_role(config: Path | None, role: Role) -> None:
    """Run one role in this process until SIGTERM."""
    if role is Role.RECEIVER:
        processes.keep_out(*processes.CODECS)
    start_logging()
    stop = roles.stop_on_signals()
    asked = roles.asked_on_hangup()  # before the file is read: no change is missed
    node = open_node(config)
    with processes.serving(node.data_dir):
        node.role(role, stop, asked).run(stop)


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
    with processes.serving(node.data_dir):
        node.database.close()  # migrated before the roles start side by side
    log = Log("serve")
    for note in node.config.notes():
        log.info("config.note", reason=note)
    serve = [sys.executable, "-P", "-m", "dicom_node", "serve"]  # -P: not the code of the present folder
    command = [*serve, "--config", str(node.config_file.absolute()), "--role"]
    supervisor = roles.Supervisor(command, [Role.RECEIVER, Role.WORKER, Role.SENDER], clock=node.clock, log=log)
    return supervisor.run(roles.stop_on_signals(), roles.asked_on_hangup())
