"""The listener: C-ECHO and C-STORE on one port. Bytes go into an `Incoming` of the store, facts to `ReceiveEvents`.

Success is answered only after the instance is durable and its events took note of it. A sender never waits for anything
further downstream. Nothing here reads pixels, decides what is done with a study, or touches records.

Statuses of C-STORE (PS3.4 Table B.2-1, PS3.7 Annex C): 0xA700 the disk refuses; 0xA900 the data set is another instance
than the request says, or lacks a UID; 0xC000 no data set in its transfer syntax; 0x0111 the policy keeps another
version; 0x0117 a UID that is none; 0x0122 a context for verification; 0x0124 the peer may not store; 0x0110 a defect of
ours.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from dicom_node import ids
from dicom_node.clock import Clock
from dicom_node.config.schema import Peer, ReceiveSettings
from dicom_node.dimse import status
from dicom_node.dimse.command import Command
from dicom_node.dimse.contexts import APPLICATION_CONTEXT, VERIFICATION
from dicom_node.dimse.identify import identify
from dicom_node.errors import RefusedInputError, StorageError, UndecodableError
from dicom_node.logs import Log
from dicom_node.receive.access import CONGESTED, Denied, OpenAssociation, admit, is_known_address, may
from dicom_node.receive.connection import Connection, RefusalError
from dicom_node.receive.doors import Door
from dicom_node.receive.faces import How, Incoming, Policy, ReceiveEvents, Store
from dicom_node.receive.gate import Gate, Visitor
from dicom_node.receive.negotiation import AcceptedContext, Proposal
from dicom_node.study import Arrival, Association, InstanceMeta

Wrap: TypeAlias = Callable[[socket.socket], ssl.SSLSocket]
"""Makes a TLS socket of an accepted one, without shaking hands yet."""

_LAST_WORD_S: Final = 10.0
"""How long `stop` waits for aborted associations to end."""
_INVALID_SOP_INSTANCE: Final = 0x0117
"""PS3.7 Annex C.5.8: the UID violates the construction rules."""
_WRONG_CONTEXT: Final = Denied(result=1, source=1, diagnostic=2, reason="another application context than DICOM's")


class Listener:
    """The DICOM ports of the node: one without TLS, one with, when certificates are given.

    Parameters
    ----------
    ae_titles
        The titles that we answer to.
    peers
        Whom we know; nobody else is let in.
    policy
        Decides on instances before they are filed; None files everything.
    tls
        Wraps the connections of the TLS port; asked anew for each, so that certificates may change.
    """

    def __init__(
        self,
        settings: ReceiveSettings,
        ae_titles: Sequence[str],
        peers: Sequence[Peer],
        *,
        store: Store,
        events: ReceiveEvents,
        clock: Clock,
        log: Log,
        policy: Policy | None = None,
        tls: Wrap | None = None,
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._ae_titles = tuple(ae_titles)
        self._peers = tuple(peers)
        self._instances = store
        self._events = events
        self._log = log
        self._policy = policy
        self._tls = tls
        self._gate = Gate(
            max_pending=settings.max_pending,
            max_associations=settings.max_associations,
            max_per_address=settings.max_associations_per_address,
        )
        self._doors: list[Door] = []
        self._connections: set[Connection] = set()
        self._open: dict[Connection, OpenAssociation] = {}
        self._changed = threading.Condition()
        self._draining = False

    @property
    def port(self) -> int:
        """The port without TLS that is listened on."""
        if not self._doors:
            raise RuntimeError("the listener was not started")
        return self._doors[0].port

    def start(self) -> None:
        """Bind the ports and listen.

        Raises
        ------
        OSError
            When a port cannot be bound.
        """
        self._draining = False
        settings = self._settings
        doors = [Door(settings.host, settings.port, self._come_in, log=self._log)]
        if settings.tls is not None and self._tls is not None:
            host = settings.tls.host or settings.host
            doors.append(Door(host, settings.tls.port, self._come_in_by_tls, log=self._log))
        for door in doors:
            door.open()
            self._doors.append(door)

    def stop(self, drain_s: float) -> None:
        """Close the ports, let open associations finish for at most `drain_s` seconds, then abort them."""
        self._draining = True
        for door in self._doors:
            door.close()
        self._doors.clear()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout=drain_s)
            left = len(self._open)
            connections = list(self._connections)
        for connection in connections:
            connection.end()
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, timeout=_LAST_WORD_S)
        self._log.info("stopped_listening", count=left)

    def know(self, peers: Sequence[Peer]) -> None:
        """Let in `peers` from now on; what is open goes on as it was let in."""
        self._peers = tuple(peers)

    # Connections

    def _come_in(self, plain: socket.socket, address: str) -> None:
        self._serve(plain, address, None)

    def _come_in_by_tls(self, plain: socket.socket, address: str) -> None:
        self._serve(plain, address, self._tls)

    def _serve(self, plain: socket.socket, address: str, tls: Wrap | None) -> None:
        """Give a connection from a known address a thread; close any other before a byte is read."""
        if not is_known_address(self._peers, address):
            self._log.warning("refused_address", address=address)
            plain.close()
            return
        connection = Connection(plain, address, host=self, settings=self._settings, clock=self._clock, tls=tls)
        self._show_out(self._gate.enter(connection))
        with self._changed:
            self._connections.add(connection)
        try:
            threading.Thread(target=connection.run, name=f"association@{address}", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self.ended(connection, "lost", "no thread could be started")
            raise

    # What connections ask: implements connection.Host

    def expects(self, connection: Connection, calling_ae: str, called_ae: str) -> Denied | None:
        """Let a caller ask for an association, or say why not: by its titles and its address alone."""
        peer = self._peer(connection, calling_ae, called_ae)
        if not isinstance(peer, Denied):
            return None
        self._log.info(
            "association_rejected",
            calling_ae=calling_ae,
            called_ae=called_ae,
            address=connection.address,
            reason=peer.reason,
        )
        return peer

    def admit(self, connection: Connection, asked: Proposal) -> Denied | None:
        """Let an association in, or say why not."""
        try:
            denied = self._admitted_or_denied(connection, asked)
        except Exception as error:  # boundary: one association; without a record of it nothing is accepted
            self._log.error("unrecorded_association", error=type(error).__name__)
            denied = CONGESTED
        opened = self._open.get(connection)
        self._log.info(
            "association_rejected" if denied else "association_opened",
            association=opened.row.id if opened else None,
            calling_ae=asked.calling_ae,
            called_ae=asked.called_ae,
            address=connection.address,
            reason=denied.reason if denied else None,
        )
        return denied

    def begin(self, connection: Connection, request: Command, context: AcceptedContext) -> Incoming:
        """Open the place for an object whose command set has arrived."""
        opened = self._admitted(connection)
        if not may(opened.peer, "store"):
            raise RefusalError(status.NOT_AUTHORIZED, "this peer may not store")
        if context.abstract_syntax == VERIFICATION:
            raise RefusalError(status.SOP_CLASS_NOT_SUPPORTED, "nothing is stored under a context for verification")
        if request.sop_class_uid != context.abstract_syntax:
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "the SOP class is not that of the presentation context")
        meta = InstanceMeta(
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=context.transfer_syntax,
            calling_ae=opened.row.calling_ae,
            called_ae=opened.row.called_ae,
            association=opened.row.id,
        )
        try:
            return self._instances.begin(meta)
        except RefusedInputError as error:
            raise RefusalError(_INVALID_SOP_INSTANCE, str(error)) from error

    def moved(self, connection: Connection) -> None:
        """Pass on that data arrived."""
        self._events.activity(self._admitted(connection).row.id)

    def store(
        self, connection: Connection, request: Command, incoming: Incoming | None, error: Exception | None
    ) -> tuple[int, str]:
        """File what arrived; return the status and, unless it is success, why."""
        opened = self._admitted(connection)
        try:
            if error is not None:
                raise error
            self._events.filed(opened.row.id, self._commit(incoming))
            return status.SUCCESS, ""
        except Exception as failure:  # boundary: one request; whatever it was, the association lives on
            if incoming is not None:
                incoming.abort()
            answer = _refusal(failure)
            self._log.warning(
                "refused_instance",
                association=opened.row.id,
                peer=opened.peer.name,
                sop_instance_uid=request.sop_instance_uid,
                status=f"0x{answer.status:04X}",
                reason=answer.reason,
                error=type(failure).__name__,
            )
            return answer.status, answer.reason

    def echo(self, connection: Connection) -> int:
        """Return the status of a C-ECHO."""
        return status.SUCCESS if may(self._admitted(connection).peer, "echo") else status.SOP_CLASS_NOT_SUPPORTED

    def released(self, connection: Connection) -> None:
        """Free the place of an association; the peer may ask for the next as soon as it hears of it."""
        self._show_out(self._gate.release(connection))

    def ended(self, connection: Connection, how: How, reason: str) -> None:
        """Report the end of an admitted association, and forget the connection."""
        self._gate.leave(connection)
        opened = self._open.get(connection)
        if opened is not None:
            try:
                self._events.closed(opened.row.id, how)
            except Exception as error:  # boundary: one association; the sweep of orphans finds its row
                self._log.error("unrecorded_end", association=opened.row.id, error=type(error).__name__)
            self._log.info(
                "association_closed", association=opened.row.id, peer=opened.peer.name, outcome=how, reason=reason
            )
        with self._changed:
            self._open.pop(connection, None)
            self._connections.discard(connection)
            self._changed.notify_all()

    def _show_out(self, leaving: Visitor | None) -> None:
        """End the connection that had to go for another."""
        if isinstance(leaving, Connection):
            self._log.warning("ended_silent_connection", address=leaving.address)
            leaving.end()

    def _commit(self, incoming: Incoming | None) -> Arrival:
        """Check what arrived against what was announced, and make it durable."""
        if incoming is None:
            raise RefusalError(status.CANNOT_UNDERSTAND, "no data set came with the request")
        with incoming.data_set() as view:
            identity = identify(view, incoming.meta.transfer_syntax_uid)
        if identity.sop_class_uid != incoming.meta.sop_class_uid:
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "SOP Class UID differs between request and data set")
        if identity.sop_instance_uid != incoming.meta.sop_instance_uid:
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "SOP Instance UID differs between request and data set")
        rejected = self._policy(incoming.meta, incoming.digest()) if self._policy else None
        if rejected is not None:
            raise RefusalError(status.DUPLICATE_SOP_INSTANCE, rejected)
        return incoming.commit()

    def _admitted_or_denied(self, connection: Connection, asked: Proposal) -> Denied | None:
        if asked.application_context != APPLICATION_CONTEXT:
            return _WRONG_CONTEXT
        peer = self._peer(connection, asked.calling_ae, asked.called_ae)
        if isinstance(peer, Denied):
            return peer
        if self._draining or not self._instances.has_room():
            return CONGESTED
        denied = self._gate.associate(connection)
        if denied is not None:
            return denied
        row = Association(
            id=ids.new_uid(),
            calling_ae=asked.calling_ae,
            called_ae=asked.called_ae,
            address=connection.address,
            peer=peer.name,
            opened_at=self._clock.now(),
        )
        self._events.opened(row)
        with self._changed:
            self._open[connection] = OpenAssociation(row=row, peer=peer)
        return None

    def _peer(self, connection: Connection, calling_ae: str, called_ae: str) -> Peer | Denied:
        return admit(
            self._peers,
            calling_ae=calling_ae,
            called_ae=called_ae,
            address=connection.address,
            ae_titles=self._ae_titles,
            is_encrypted=connection.is_encrypted,
        )

    def _admitted(self, connection: Connection) -> OpenAssociation:
        opened = self._open.get(connection)
        if opened is None:
            raise RuntimeError("data from a peer that was not admitted")
        return opened


def _refusal(error: Exception) -> RefusalError:
    """Return what the peer hears about an error."""
    match error:
        case RefusalError():
            return error
        case StorageError():
            return RefusalError(status.OUT_OF_RESOURCES, str(error))
        case UndecodableError():
            return RefusalError(status.CANNOT_UNDERSTAND, str(error))
        case RefusedInputError():
            return RefusalError(status.DATA_SET_DOES_NOT_MATCH, str(error))
        case _:
            return RefusalError(status.PROCESSING_FAILURE, "the node failed; its log tells more")
