"""One association on pynetdicom's classes, with the data set streamed to the disk while it arrives.

Stock pynetdicom either keeps the object in memory twice and more (256 MB for one of 105 MB) or spools it into the
system's temporary folder, often a memory disk, from where it would be copied. Here the provider hands every fragment on
as it comes, byte for byte; memory does not depend on the object. A refusing disk is remembered, the rest of the data
set is drained, and the association survives.

Everything that leans on pynetdicom's inside is in this module: `receive_primitive`, `_serve_request`, `run_reactor`,
`_create_association` and the two timers of the upper layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, Final, Protocol

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_ECHO, C_STORE
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket, RequestHandler

from dicom_node.clock import Clock
from dicom_node.errors import DicomNodeError
from dicom_node.receive.access import OpenAssociation
from dicom_node.receive.faces import Incoming

_ERROR_COMMENT_LENGTH: Final = 64
"""VR LO (PS3.7 Annex E, (0000,0902))."""
_MOST_WAITING: Final = 2
"""Requests that may wait unanswered: the window is one, so more is a peer that does not wait for us."""


class RefusalError(Exception):
    """A C-STORE that ends without success: the status for the peer, and why."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


class Host(Protocol):
    """What an association asks of the listener."""

    clock: Clock

    def begin(self, assoc: ReceivingAssociation, request: C_STORE_RQ, context_id: int) -> Incoming:
        """Open the place for an object whose command set has arrived."""
        ...

    def moved(self, assoc: ReceivingAssociation) -> None:
        """Hear that data arrived."""
        ...

    def store(self, assoc: ReceivingAssociation, request: C_STORE, data_set: DataSetSink) -> tuple[int, str]:
        """File what arrived; return the status and, unless it is success, why. Never raises."""
        ...

    def ended(self, assoc: ReceivingAssociation) -> None:
        """Hear that the association is over, however it ended. Never raises."""
        ...


class DataSetSink(BytesIO):
    """Takes the place of the buffer in which pynetdicom collects a data set, and passes the bytes on.

    It is a BytesIO because pynetdicom's message says so; its own buffer stays empty.
    """

    def __init__(self, begin: Callable[[], Incoming], moved: Callable[[], None]) -> None:
        super().__init__()
        self._begin = begin
        self._moved = moved
        self.incoming: Incoming | None = None
        self.error: Exception | None = None

    def write(self, data: Any, /) -> int:
        """Pass a fragment on; after an error only swallow it, so that the peer can finish and hear a status."""
        if self.error is None:
            try:
                if self.incoming is None:
                    self.incoming = self._begin()
                self.incoming.write((data,))
                self._moved()
            except Exception as error:  # boundary: runs in the thread of the upper layer, the answer tells
                self.error = error
        return len(data)

    def discard(self) -> None:
        """Throw away what arrived."""
        if self.incoming is not None:
            self.incoming.abort()


class _Provider(DIMSEServiceProvider):
    """Puts a sink under every message."""

    def __init__(self, assoc: ReceivingAssociation, host: Host) -> None:
        super().__init__(assoc)
        self._receiving = assoc
        self._host = host
        self._sinks: list[DataSetSink] = []

    def receive_primitive(self, primitive: Any) -> None:
        if self.message is None:
            if self.msg_queue.qsize() > _MOST_WAITING:
                self.dul.event_queue.put("Evt19")
                return
            self.message = message = DIMSEMessage()
            sink = DataSetSink(lambda: self._opened(message), lambda: self._host.moved(self._receiving))
            message.data_set = sink
            self._sinks = [other for other in self._sinks if other.incoming is not None and not other.closed]
            self._sinks.append(sink)
        super().receive_primitive(primitive)

    def discard_all(self) -> None:
        """Throw away what was never answered."""
        for sink in self._sinks:
            sink.discard()

    def _opened(self, message: DIMSEMessage) -> Incoming:
        if not isinstance(message, C_STORE_RQ) or message.context_id is None:
            raise DicomNodeError("only C-STORE carries a data set here")
        return self._host.begin(self._receiving, message, message.context_id)


class _MonotonicTimer(Timer):
    """pynetdicom's timer on the monotonic clock: a jump of the wall clock neither aborts nor immortalises anybody."""

    def __init__(self, timeout: float | None, clock: Clock) -> None:
        super().__init__(timeout)
        self._clock = clock

    def start(self) -> None:
        self._start_time = self._clock.monotonic()
        self._end_time = None

    def stop(self) -> None:
        self._end_time = self._clock.monotonic()

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1
        if self._start_time is None:
            return self.timeout
        end = self._clock.monotonic() if self._end_time is None else self._end_time
        return self.timeout - (end - self._start_time)


class ReceivingAssociation(Association):
    """An acceptor whose C-STORE requests go to the listener, whatever their SOP class."""

    def __init__(self, ae: Any, host: Host) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self._host = host
        self.opened: OpenAssociation | None = None
        """Set by the listener when it admits the peer."""
        self.was_lost = False
        """The connection went away without release or abort."""
        self.dimse: _Provider = _Provider(self, host)
        self.dul._idle_timer = _MonotonicTimer(self.network_timeout, host.clock)
        self.dul.artim_timer = _MonotonicTimer(self.acse_timeout, host.clock)

    def run_reactor(self) -> None:
        """Run the association to its end, then throw away what was not answered and report."""
        try:
            super().run_reactor()
        finally:
            self.dul.join(timeout=5)
            if not self.dul.is_alive():
                self.dimse.discard_all()
            self._host.ended(self)

    def _serve_request(self, msg: Any, context_id: int) -> None:
        # A request without its UIDs is refused with a status: one broken object must not end the whole study.
        if isinstance(msg, C_STORE) and msg.MessageID is not None and context_id in self._accepted_cx:
            self._store(msg, context_id)
        elif isinstance(msg, C_ECHO):
            super()._serve_request(msg, context_id)
        else:
            self.abort()

    def _store(self, request: C_STORE, context_id: int) -> None:
        sink = request.DataSet
        assert isinstance(sink, DataSetSink)
        status, reason = self._host.store(self, request, sink)
        sink.close()
        response = C_STORE()
        response.MessageIDBeingRespondedTo = request.MessageID
        response.AffectedSOPInstanceUID = request.AffectedSOPInstanceUID
        response.AffectedSOPClassUID = request.AffectedSOPClassUID
        response.Status = status
        if reason:
            response.ErrorComment = reason[:_ERROR_COMMENT_LENGTH]  # type: ignore[assignment]  # declared as None
        self.dimse.send_msg(response, context_id)


class ReceivingHandler(RequestHandler):
    """Makes our association for each connection.

    The contexts are not copied per connection, as pynetdicom does (33 ms of CPU): the listener sets those that a peer
    proposed and that we take.
    """

    def _create_association(self) -> ReceivingAssociation:
        host: Host = self.server.host  # type: ignore[attr-defined]  # given by our server class
        assoc = ReceivingAssociation(self.ae, host)
        assoc._server = self.server
        # pynetdicom finds its acceptors by this name.
        assoc.name = f"AcceptorThread@{self.client_address[0]}:{self.client_address[1]}"
        assoc.set_socket(AssociationSocket(assoc, client_socket=self.request))
        assoc.acceptor.maximum_length = self.ae.maximum_pdu_size
        assoc.acceptor.ae_title = self.server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        assoc.requestor.address_info = self.remote
        handlers: Mapping[Any, Any] = self.server._handlers
        for event, bound in handlers.items():
            for handler, arguments in [bound] if event.is_intervention else bound:
                if handler is not None:
                    assoc.bind(event, handler, arguments)
        assoc.bind(evt.EVT_ACSE_RECV, _note_loss)
        return assoc


def _note_loss(event: Any) -> None:
    """Remember that the end came from the transport: pynetdicom tells it as an A-P-ABORT."""
    if isinstance(event.primitive, A_P_ABORT):
        event.assoc.was_lost = True
