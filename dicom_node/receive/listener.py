"""The listener: C-ECHO and C-STORE on one port. Bytes go into an `Incoming` of the store, facts to `ReceiveEvents`.

Success is answered only after the instance is durable and its events took note of it. A sender never waits for anything
further downstream. Nothing here reads pixels, decides what is done with a study, or touches records.

Statuses of C-STORE (PS3.4 Table B.2-1, PS3.7 Annex C): 0xA700 the disk refuses; 0xA900 the data set is another instance
than the request says, or lacks a UID; 0xC000 no data set in its transfer syntax; 0x0111 the policy keeps another
version; 0x0117 a UID that is none; 0x0124 the peer may not store; 0x0110 a defect of ours.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

from pynetdicom import AE, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node import ids
from dicom_node.clock import Clock
from dicom_node.config.schema import Peer, ReceiveSettings
from dicom_node.dimse import acceptable_contexts, status
from dicom_node.dimse.identify import identify
from dicom_node.errors import RefusedInputError, StorageError, UndecodableError
from dicom_node.logs import Log
from dicom_node.receive.access import CONGESTED, NO_ROOM, Denied, OpenAssociation, admit, is_known_address, may
from dicom_node.receive.association import DataSetSink, ReceivingAssociation, ReceivingHandler, RefusalError
from dicom_node.receive.faces import Incoming, Store
from dicom_node.study import Association, FiledInstance, InstanceMeta

How: TypeAlias = Literal["released", "aborted", "lost"]
"""How an association ended: by agreement, by an abort of either side, or because the connection went away."""

Policy: TypeAlias = Callable[[InstanceMeta, str], str | None]
"""Gets an instance and the digest of its data set; returns None to file it, or why it is rejected (0x0111)."""

ACSE_TIMEOUT_S: Final = 30.0
"""For association requests, and for the peer to close after a rejection or release (ARTIM, PS3.8 9.1.5)."""
_LAST_WORD_S: Final = 5.0
"""How long `stop` waits for aborted associations to end."""


class ReceiveEvents(Protocol):
    """What the listener tells, from the associations' threads: implementations are safe to use from many."""

    def opened(self, association: Association) -> None:
        """Hear of an association before its peer does. An exception rejects it, as temporary congestion."""
        ...

    def filed(self, association_id: str, instance: FiledInstance) -> None:
        """Take note of a durable instance; success is answered afterwards. An exception is answered as a failure."""
        ...

    def activity(self, association_id: str) -> None:
        """Hear that data arrived; called for every fragment, so cheap."""
        ...

    def closed(self, association_id: str, how: How) -> None:
        """Hear that the association is over; after its last `filed`, exactly once per `opened`."""
        ...


class Listener:
    """The DICOM port of the node.

    Parameters
    ----------
    ae_titles
        The titles that we answer to.
    peers
        Whom we know; nobody else is let in.
    policy
        Decides on instances before they are filed; None files everything.
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
    ) -> None:
        self.clock = clock
        self._settings = settings
        self._ae_titles = tuple(ae_titles)
        self._peers = tuple(peers)
        self._instances = store
        self._events = events
        self._log = log
        self._policy = policy
        self._open: dict[str, ReceivingAssociation] = {}
        self._changed = threading.Condition()
        self._draining = False
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._running().server_address[1])

    def start(self) -> None:
        """Bind the port and begin to accept.

        Raises
        ------
        OSError
            When the port cannot be bound.
        """
        ae = AE(ae_title=self._ae_titles[0])
        ae.implementation_class_uid = ids.IMPLEMENTATION_CLASS_UID
        ae.implementation_version_name = ids.IMPLEMENTATION_VERSION_NAME
        ae.maximum_pdu_size = self._settings.max_pdu
        ae.maximum_associations = 1 << 30  # counted here: connections that never speak do not take an honest place
        ae.acse_timeout = ACSE_TIMEOUT_S
        ae.network_timeout = self._settings.idle_timeout_s
        server = _Server(
            ae,
            (self._settings.host, self._settings.port),
            ae.ae_title,
            [],  # no context is offered to all: each association gets its own
            evt_handlers=[(evt.EVT_REQUESTED, self._requested), (evt.EVT_C_ECHO, self._echo)],
            request_handler=ReceivingHandler,
            host=self,
        )
        ae._servers.append(server)  # where its shutdown looks
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="listener", daemon=True)
        self._thread.start()
        self._log.info("listening", address=self._settings.host, port=self.port)

    def stop(self, drain_s: float) -> None:
        """Close the port, let open associations finish for at most `drain_s` seconds, then abort them."""
        self._draining = True
        self._running().shutdown()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout=drain_s)
            left = list(self._open.values())
        for assoc in left:
            assoc.abort()
        with self._changed:
            self._changed.wait_for(lambda: not self._open, timeout=_LAST_WORD_S)
        self._log.info("stopped_listening", count=len(left))

    def admits_address(self, address: str) -> bool:
        """Return whether any peer may call from this address; asked before a thread is made."""
        if is_known_address(self._peers, address):
            return True
        self._log.warning("refused_address", address=address)
        return False

    def begin(self, assoc: ReceivingAssociation, request: C_STORE_RQ, context_id: int) -> Incoming:
        """Open the place for an object whose command set has arrived."""
        opened = _admitted(assoc)
        if not may(opened.peer, "store"):
            raise RefusalError(status.NOT_AUTHORIZED, "this peer may not store")
        context = assoc._accepted_cx.get(context_id)
        if context is None:
            raise RefusalError(status.SOP_CLASS_NOT_SUPPORTED, "the presentation context was not accepted")
        command = request.command_set
        sop_class_uid = str(command.get("AffectedSOPClassUID", ""))
        if sop_class_uid != str(context.abstract_syntax):
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "the SOP class is not that of the presentation context")
        meta = InstanceMeta(
            sop_class_uid=sop_class_uid,
            sop_instance_uid=str(command.get("AffectedSOPInstanceUID", "")),
            transfer_syntax_uid=str(context.transfer_syntax[0]),
            calling_ae=opened.row.calling_ae,
            called_ae=opened.row.called_ae,
            association=opened.row.id,
        )
        try:
            return self._instances.begin(meta)
        except RefusedInputError as error:
            raise RefusalError(_INVALID_SOP_INSTANCE, str(error)) from error

    def moved(self, assoc: ReceivingAssociation) -> None:
        """Pass on that data arrived."""
        self._events.activity(_admitted(assoc).row.id)

    def store(self, assoc: ReceivingAssociation, request: C_STORE, data_set: DataSetSink) -> tuple[int, str]:
        """File what arrived; return the status and, unless it is success, why."""
        opened = _admitted(assoc)
        try:
            self._events.filed(opened.row.id, self._commit(data_set))
            return status.SUCCESS, ""
        except Exception as error:  # boundary: one request; whatever it was, the association lives on
            data_set.discard()
            answer = _refusal(error)
            self._log.warning(
                "refused_instance",
                association=opened.row.id,
                peer=opened.peer.name,
                sop_instance_uid=str(request.AffectedSOPInstanceUID),
                status=f"0x{answer.status:04X}",
                reason=answer.reason,
                error=type(error).__name__,
            )
            return answer.status, answer.reason

    def ended(self, assoc: ReceivingAssociation) -> None:
        """Report the end of an admitted association."""
        opened = assoc.opened
        if opened is None:
            return
        how: How = "released" if assoc.is_released else "lost" if assoc.was_lost else "aborted"
        try:
            self._events.closed(opened.row.id, how)
        except Exception as error:  # boundary: one association; the sweep of orphans finds its row
            self._log.error("unrecorded_end", association=opened.row.id, error=type(error).__name__)
        self._log.info("association_closed", association=opened.row.id, peer=opened.peer.name, outcome=how)
        with self._changed:
            self._open.pop(opened.row.id, None)
            self._changed.notify_all()

    def _commit(self, data_set: DataSetSink) -> FiledInstance:
        """Check what arrived against what was announced, and make it durable."""
        if data_set.error is not None:
            raise data_set.error
        incoming = data_set.incoming
        if incoming is None:
            raise RefusalError(status.CANNOT_UNDERSTAND, "no data set came with the request")
        with incoming.data_set() as view:
            identity = identify(view, incoming.meta.transfer_syntax_uid)
        if identity.sop_class_uid != incoming.meta.sop_class_uid:
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "SOP Class UID differs between request and data set")
        if identity.sop_instance_uid != incoming.meta.sop_instance_uid:
            raise RefusalError(status.DATA_SET_DOES_NOT_MATCH, "SOP Instance UID differs between request and data set")
        rejected = self._policy(incoming.meta, incoming.digest) if self._policy else None
        if rejected is not None:
            raise RefusalError(status.DUPLICATE_SOP_INSTANCE, rejected)
        return incoming.commit()

    def _requested(self, event: evt.Event) -> None:
        """Admit or reject, before pynetdicom negotiates."""
        assoc = event.assoc
        assert isinstance(assoc, ReceivingAssociation)
        try:
            denied = self._admitted_or_denied(assoc)
        except Exception as error:  # boundary: one association; without a record of it nothing is accepted
            self._log.error("unrecorded_association", error=type(error).__name__)
            denied = CONGESTED
        if denied is not None:
            assoc.acse.send_reject(denied.result, denied.source, denied.diagnostic)
            assoc.kill()

    def _admitted_or_denied(self, assoc: ReceivingAssociation) -> Denied | None:
        proposal = assoc.requestor.primitive
        assert proposal is not None
        calling_ae, called_ae = proposal.calling_ae_title.strip(), proposal.called_ae_title.strip()
        address = str(assoc.requestor.address)
        peer = admit(
            self._peers, calling_ae=calling_ae, called_ae=called_ae, address=address, ae_titles=self._ae_titles
        )
        if isinstance(peer, Peer):
            row = Association(
                id=ids.new_uid(),
                calling_ae=calling_ae,
                called_ae=called_ae,
                address=address,
                peer=peer.name,
                opened_at=self.clock.now(),
            )
            denied = self._opened(assoc, OpenAssociation(row=row, peer=peer))
        else:
            denied = peer
        self._log.info(
            "association_rejected" if denied else "association_opened",
            association=None if denied else assoc.opened and assoc.opened.row.id,
            calling_ae=calling_ae,
            called_ae=called_ae,
            address=address,
            reason=denied.reason if denied else None,
        )
        if denied is None:
            proposed = [str(context.abstract_syntax) for context in assoc.requestor.requested_contexts]
            assoc.acceptor.supported_contexts = acceptable_contexts(proposed)
        return denied

    def _opened(self, assoc: ReceivingAssociation, opened: OpenAssociation) -> Denied | None:
        """Take a place among the open associations and tell the events."""
        with self._changed:
            if self._draining:
                return CONGESTED
            if len(self._open) >= self._settings.max_associations:
                return NO_ROOM
            self._open[opened.row.id] = assoc
        try:
            self._events.opened(opened.row)
        except BaseException:
            with self._changed:
                del self._open[opened.row.id]
            raise
        assoc.opened = opened
        return None

    def _echo(self, event: evt.Event) -> int:
        assoc = event.assoc
        assert isinstance(assoc, ReceivingAssociation)
        return status.SUCCESS if may(_admitted(assoc).peer, "echo") else status.SOP_CLASS_NOT_SUPPORTED

    def _running(self) -> _Server:
        if self._server is None:
            raise RuntimeError("the listener was not started")
        return self._server


_INVALID_SOP_INSTANCE: Final = 0x0117
"""PS3.7 Annex C.5.8: the UID violates the construction rules."""


class _Server(ThreadedAssociationServer):
    """Accepts connections from known addresses only, and without the wait of Nagle's algorithm."""

    request_queue_size = 128
    """Backlog: a burst of associations, one per image, is ordinary."""
    daemon_threads = True

    def __init__(self, *arguments: Any, host: Listener, **keywords: Any) -> None:
        self.host = host
        super().__init__(*arguments, **keywords)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if not self.host.admits_address(str(client_address[0])):
            return False
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  (the base class prints a traceback)
        self.host._log.error("connection_failed", address=str(client_address[0]))


def _admitted(assoc: ReceivingAssociation) -> OpenAssociation:
    if assoc.opened is None:
        raise RuntimeError("data from a peer that was not admitted")
    return assoc.opened


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
