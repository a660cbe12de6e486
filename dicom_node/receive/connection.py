"""One connection from its first byte to its last, in a thread of its own: the upper layer and C-STORE, without polling.

Bytes go from the socket into one fixed buffer, from there in place through the parser, and from the buffer into the
`Incoming` of the object; each response is one send. The states are those of PS3.8 9.2 that an acceptor passes which
never releases on its own: await the request (Sta2), transfer (Sta6), await the end of the connection (Sta13).

What this never does: decide who may come in or what is filed. That is asked of its `Host`.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, Protocol

from dicom_node.clock import Clock
from dicom_node.dimse import command, pdu
from dicom_node.dimse.command import Command
from dicom_node.dimse.pdu import AbortReason, Control, Event, Fragment, Parser, PduType, ProtocolError
from dicom_node.receive.access import Denied
from dicom_node.receive.faces import How, Incoming
from dicom_node.receive.negotiation import AcceptedContext, Contexts, Proposal, negotiated, rejected, titles
from dicom_node.receive.pace import Pace

ASSOCIATE_TIMEOUT_S: Final = 30.0
"""From the connection to the end of a whole association request, TLS included (ARTIM, PS3.8 9.1.5)."""
CLOSE_TIMEOUT_S: Final = 5.0
"""How long the peer may take to close after a rejection, release or abort."""
SEND_TIMEOUT_S: Final = 30.0
"""A peer that does not take a response for so long is gone."""
_TICK_S: Final = 2.0
"""Deadlines are looked at this often while nothing comes."""
_REQUEST_BUFFER_BYTES: Final = 1 << 12
_BUFFER_BYTES: Final = 1 << 17
_USER: Final = 0
_PROVIDER: Final = 2
_UNRECOGNISED_OPERATION: Final = 0x0211
"""PS3.7 C.5.24: a service that we do not have."""


class RefusalError(Exception):
    """A C-STORE that ends without success: the status for the peer, and why."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        super().__init__(reason)


class Settings(Protocol):
    """What a connection needs of the configuration."""

    @property
    def max_pdu(self) -> int:
        """Bytes that we take in one P-DATA-TF."""
        ...

    @property
    def idle_timeout_s(self) -> float:
        """Silence that ends an association."""
        ...

    @property
    def min_rate(self) -> int:
        """Bytes a second that a sender keeps up inside an object."""
        ...

    @property
    def other_storage_classes(self) -> str:
        """What to do with private and unknown storage classes: file or reject them."""
        ...


class Host(Protocol):
    """What a connection asks and tells; the listener. Two of them may refuse; nothing raises but `begin`."""

    def expects(self, connection: Connection, calling_ae: str, called_ae: str) -> Denied | None:
        """Let a caller ask for an association, or say why not: by its titles and its address alone."""
        ...

    def admit(self, connection: Connection, asked: Proposal) -> Denied | None:
        """Let an association in, or say why not."""
        ...

    def begin(self, connection: Connection, request: Command, context: AcceptedContext) -> Incoming:
        """Open the place for an object whose command set has arrived. Raises RefusalError or our errors."""
        ...

    def moved(self, connection: Connection) -> None:
        """Hear that data arrived."""
        ...

    def store(
        self, connection: Connection, request: Command, incoming: Incoming | None, error: Exception | None
    ) -> tuple[int, str]:
        """File what arrived; return the status and, unless it is success, why."""
        ...

    def echo(self, connection: Connection) -> int:
        """Return the status of a C-ECHO."""
        ...

    def released(self, connection: Connection) -> None:
        """Hear that the peer wants no more of the association: before it is told so, its place is free."""
        ...

    def ended(self, connection: Connection, how: How, reason: str) -> None:
        """Hear that the connection is over, however it ended."""
        ...


class _Over(Exception):  # noqa: N818  (no error: the end of a conversation)
    """The connection ends now."""

    def __init__(self, how: How, reason: str = "") -> None:
        self.how: How = how
        super().__init__(reason)


class _Message:
    """A request under way: its command set, and of a C-STORE where its data set goes."""

    def __init__(self, context_id: int, context: AcceptedContext) -> None:
        self.context_id = context_id
        self.context = context
        self.command_set = bytearray()
        self.command: Command | None = None
        self.incoming: Incoming | None = None
        self.error: Exception | None = None


class Connection:
    """One peer's connection.

    Parameters
    ----------
    tls
        Makes a TLS socket of a plain one, without shaking hands yet; None on a port without TLS.
    """

    def __init__(
        self,
        plain: socket.socket,
        address: str,
        *,
        host: Host,
        settings: Settings,
        clock: Clock,
        tls: Callable[[socket.socket], ssl.SSLSocket] | None = None,
    ) -> None:
        self.address = address
        self.is_encrypted = tls is not None
        self._socket = plain
        self._wrap = tls
        self._host = host
        self._settings = settings
        self._clock = clock
        self._contexts: Contexts = {}
        self._peer_max_pdu = 0
        self._message: _Message | None = None
        self._is_ending = False
        self._ends_at: float | None = clock.monotonic() + ASSOCIATE_TIMEOUT_S
        self._pace = Pace(idle_timeout_s=settings.idle_timeout_s, min_rate=settings.min_rate, now=clock.monotonic())
        self._parser = Parser(settings.max_pdu)

    def run(self) -> None:
        """Serve the peer until the connection is over; tell the host how it ended. Never raises."""
        how: How = "lost"
        reason = ""
        try:
            self._prepare()
            self._talk()
        except _Over as over:
            how, reason = over.how, str(over)
        except ProtocolError as error:
            how, reason = "aborted", str(error)
            self._say_goodbye(pdu.abort(_PROVIDER, error.reason))
        except (OSError, ssl.SSLError) as error:
            reason = f"the connection failed ({error.strerror or type(error).__name__})"
        finally:
            if self._message is not None and self._message.incoming is not None:
                self._message.incoming.abort()
            self._close()
            self._host.ended(self, how, reason)

    def end(self) -> None:
        """Make the connection end soon, from another thread: with an abort if it was associated."""
        self._is_ending = True
        if self.is_encrypted and self._ends_at is None:
            return  # its reader looks soon; OpenSSL answers the end of its input with an alert, and no abort after it
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_RD)  # TLS's own would pull the ground from its reader
        except OSError:
            return

    def _prepare(self) -> None:
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._wrap is not None:
            self._socket.settimeout(ASSOCIATE_TIMEOUT_S / 3)
            self._socket = tls = self._wrap(self._socket)
            if self._is_ending:  # `end` may have spoken to the plain socket, which is none any more
                raise _Over("lost", "the node stops")
            tls.do_handshake()
            tls.settimeout(self._tick_s)
            return
        # Timeouts of the system: Python's own would ask poll(2) before every call.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(self._tick_s))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))

    @property
    def _tick_s(self) -> float:
        return min(_TICK_S, self._settings.idle_timeout_s / 4)

    def _talk(self) -> None:
        """Read and serve; ends by one of the exceptions that `run` knows."""
        buffer = memoryview(bytearray(_REQUEST_BUFFER_BYTES))
        while True:
            count = self._receive(buffer)
            came_at = self._clock.monotonic()
            for event in self._parser.feed(buffer[:count]):
                self._take(event)
            now = self._clock.monotonic()
            is_inside = self._message is not None or not self._parser.is_between
            self._pace.moved(count, now, inside=is_inside, spent_s=now - came_at)
            self._check(now)
            if self._contexts and len(buffer) != _BUFFER_BYTES:
                buffer = memoryview(bytearray(_BUFFER_BYTES))

    def _receive(self, buffer: memoryview) -> int:
        """Return how many bytes came, after however many looks at the deadlines."""
        while True:
            if self._is_ending:
                self._abort("the node stops")
            try:
                count = self._socket.recv_into(buffer)
            except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
                self._check(self._clock.monotonic())
                continue
            if not count:
                if self._is_ending:
                    continue
                raise _Over("lost", "the peer closed the connection")
            # Linux forgets this after each acknowledgement; without it a sender with Nagle's algorithm waits 40 ms.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            return count

    def _check(self, now: float) -> None:
        """End the connection when one of its deadlines is over."""
        if self._ends_at is not None:
            if now > self._ends_at:
                raise _Over("lost", "no association was requested in time")
            return
        complaint = self._pace.complaint(now)
        if complaint is not None:
            self._abort(complaint)

    def _take(self, event: Event) -> None:
        if isinstance(event, Fragment):
            if self._ends_at is not None:
                raise ProtocolError(AbortReason.UNEXPECTED_PDU, "data came before an association")
            self._take_fragment(event)
            return
        match event.kind:
            case PduType.ASSOCIATE_RQ if self._ends_at is not None:
                self._associate(event)
            case PduType.RELEASE_RQ if self._ends_at is None and self._message is None:
                self._host.released(self)
                self._say_goodbye(pdu.RELEASE_RP)
                raise _Over("released")
            case PduType.ABORT:
                raise _Over("aborted" if self._ends_at is None else "lost", "the peer aborted")
            case _:
                raise ProtocolError(AbortReason.UNEXPECTED_PDU, f"{event.kind.name} came at the wrong time")

    def _associate(self, event: Control) -> None:
        # Titles first: to decode a whole request costs time, which a stranger should not have.
        self._refuse(self._host.expects(self, *titles(event.content)))
        takes_other_classes = self._settings.other_storage_classes == "file"
        asked, answer, contexts = negotiated(
            event.content, max_pdu=self._settings.max_pdu, takes_other_classes=takes_other_classes
        )
        self._refuse(self._host.admit(self, asked))
        self._contexts = contexts
        self._peer_max_pdu = asked.max_pdu
        self._ends_at = None
        self._pace.resume(self._clock.monotonic())
        self._socket.sendall(answer)

    def _refuse(self, denied: Denied | None) -> None:
        """Reject the association, if it is denied, and end."""
        if denied is not None:
            self._say_goodbye(rejected(denied))
            raise _Over("lost", denied.reason)

    def _take_fragment(self, fragment: Fragment) -> None:
        message = self._message
        if message is None:
            context = self._contexts.get(fragment.context_id)
            if context is None:
                raise ProtocolError(AbortReason.INVALID_PARAMETER, "data came under a context that was not accepted")
            message = self._message = _Message(fragment.context_id, context)
        if fragment.context_id != message.context_id or fragment.is_command != (message.command is None):
            raise ProtocolError(AbortReason.UNEXPECTED_PARAMETER, "messages are mixed with one another")
        if fragment.is_command:
            self._take_command(message, fragment)
        else:
            self._take_data(message, fragment)

    def _take_command(self, message: _Message, fragment: Fragment) -> None:
        message.command_set += fragment.payload
        if len(message.command_set) > command.LARGEST_COMMAND_BYTES:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a command set without end")
        if not fragment.is_last:
            return
        message.command = request = command.decoded(message.command_set)
        is_cancel = request.command_field == command.C_CANCEL_RQ  # has none of its own (PS3.7 9.3.2.3)
        if request.is_response or (request.message_id is None and not is_cancel):
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "a message that is no request, or has no Message ID")
        if not request.has_data_set:
            self._answer(message, request)
        elif request.command_field == command.C_STORE_RQ:
            try:
                message.incoming = self._host.begin(self, request, message.context)
            except Exception as error:  # boundary: the data are drained first, then the answer tells
                message.error = error

    def _take_data(self, message: _Message, fragment: Fragment) -> None:
        if message.incoming is not None and message.error is None:
            try:
                message.incoming.write((fragment.payload,))
            except Exception as error:  # boundary: the rest is drained, so that the association survives
                message.error = error
        self._host.moved(self)
        if fragment.is_last:
            assert message.command is not None
            self._answer(message, message.command)

    def _answer(self, message: _Message, request: Command) -> None:
        """Serve a whole message and send its response, at once."""
        if request.command_field == command.C_STORE_RQ:
            code, comment = self._host.store(self, request, message.incoming, message.error)
        elif request.command_field == command.C_ECHO_RQ and not request.has_data_set:
            code, comment = self._host.echo(self), ""
        elif request.command_field == command.C_CANCEL_RQ:
            self._message = None
            return
        else:
            code, comment = _UNRECOGNISED_OPERATION, "this node stores and echoes, nothing else"
        self._message = None
        response = command.response(request, code, comment)
        self._socket.sendall(pdu.command_pdus(message.context_id, response, self._peer_max_pdu))
        self._pace.resume(self._clock.monotonic())

    def _abort(self, reason: str) -> None:
        """End the association on our own account."""
        if self._ends_at is None:
            self._say_goodbye(pdu.abort(_USER))
            raise _Over("aborted", reason)
        raise _Over("lost", reason)

    def _say_goodbye(self, last: bytes) -> None:
        """Send the last PDU and wait for the peer to close (Sta13): closing first could cost it what we sent."""
        try:
            self._socket.sendall(last)
            self._socket.settimeout(CLOSE_TIMEOUT_S)
            closes_at = self._clock.monotonic() + CLOSE_TIMEOUT_S
            scrap = bytearray(_REQUEST_BUFFER_BYTES)
            while not self._is_ending and self._socket.recv_into(scrap) and self._clock.monotonic() < closes_at:
                continue
        except (OSError, ssl.SSLError):
            return

    def _close(self) -> None:
        try:
            self._socket.close()
        except OSError:
            return


def _timeval(seconds: float) -> bytes:
    """Return a struct timeval for setsockopt."""
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
