"""One TCP or TLS connection to a peer that we call: every wait has an end on the monotonic clock.

Sending waits while the peer takes something within the limit of time, however large the object is: a line may be slow.
An answer has to be complete within the limit, which begins anew as long as the kernel still gets rid of what we sent:
it may hold some megabytes. Whatever goes wrong is one error, `ConnectionLostError`, and the
connection is of no use after it.

Nagle's algorithm is off and acknowledgements are not delayed (`TCP_QUICKACK`, which the kernel takes back on its own):
a peer with Nagle on that answers in two writes would else wait 40 ms for each object.
Sources: DICOM PS3.8 9.2 (state machine), PS3.7 6.3 (command sets).
"""

from __future__ import annotations

import fcntl
import socket
import ssl
import struct
import termios
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from dicom_node.clock import Clock
from dicom_node.dimse import pdu
from dicom_node.dimse.command import LARGEST_COMMAND_BYTES, Command, decoded
from dicom_node.dimse.proposal import MAX_PDU


@dataclass(frozen=True, slots=True)
class Identifier:
    """The data set of an answer, encoded as its presentation context says."""

    content: bytes


Message: TypeAlias = Command | Identifier | pdu.Control
_RECEIVE_BYTES = 1 << 14
"""Answers have some hundred bytes."""


class ConnectionLostError(Exception):
    """The connection broke, stayed silent for too long, or the peer broke the protocol."""


class Connection:
    """Bytes out, messages in.

    Parameters
    ----------
    stream
        A connected socket, which belongs to this object from now on.
    timeout_s
        Longest silence of the peer while we send, and longest wait for a whole answer.
    largest_identifier
        Bytes of the largest data set that an answer may bring; 0: nothing that we ask for is answered with one.
    """

    def __init__(self, stream: socket.socket, *, timeout_s: float, clock: Clock, largest_identifier: int = 0) -> None:
        self._stream = stream
        self._timeout_s = timeout_s
        self._clock = clock
        self._parser = pdu.Parser(MAX_PDU)
        self._buffer = memoryview(bytearray(_RECEIVE_BYTES))
        self._command = bytearray()
        self._largest_identifier = largest_identifier
        self._identifier: bytearray | None = None
        """What has come of the data set that the last command set announced; None when it announced none."""
        self._inbox: deque[Message] = deque()

    def send(self, data: bytes | memoryview) -> None:
        """Send everything.

        Raises
        ------
        ConnectionLostError
            When the peer takes nothing for too long, or is gone.
        """
        left = memoryview(data)
        try:
            self._stream.settimeout(self._timeout_s)
            while left:
                left = left[self._stream.send(left) :]
        except OSError as error:
            raise ConnectionLostError(str(error)) from error

    def receive(self) -> Message:
        """Return the next command set, data set or PDU, which has to come in time.

        Raises
        ------
        ConnectionLostError
            When none comes, or the peer breaks the protocol: it has been told then.
        """
        try:
            while not self._inbox:
                self._wait()
        except OSError as error:
            raise ConnectionLostError(str(error)) from error
        except pdu.ProtocolError as error:
            self.abort(error.reason)
            raise ConnectionLostError(str(error)) from error
        return self._inbox.popleft()

    def abort(self, reason: pdu.AbortReason | None = None) -> None:
        """Tell the peer that it is over, and close; with a reason it is the peer's breach of the protocol."""
        with suppress(OSError):  # it is gone, or takes nothing: nobody is left to be told
            self._stream.settimeout(0)
            self._stream.send(pdu.abort(0) if reason is None else pdu.abort(2, reason))
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._stream.close()

    def _wait(self) -> None:
        """Receive until something is in the inbox, or the time is over and nothing that we sent was taken in it."""
        deadline, unsent = self._clock.monotonic() + self._timeout_s, _unsent_bytes(self._stream)
        while not self._inbox and (left_s := deadline - self._clock.monotonic()) > 0:
            with suppress(TimeoutError):
                self._take(left_s)
        if not self._inbox and not _unsent_bytes(self._stream) < unsent:
            raise TimeoutError("no answer came in time")

    def _take(self, wait_s: float) -> None:
        """Receive once and put what it completes into the inbox."""
        self._stream.settimeout(wait_s)
        count = self._stream.recv_into(self._buffer)
        if not count:
            raise ConnectionError("the peer closed the connection")
        _no_delayed_acknowledgement(self._stream)
        for event in self._parser.feed(self._buffer[:count]):
            if isinstance(event, pdu.Control):
                self._inbox.append(event)
            else:
                self._gather(event)

    def _gather(self, fragment: pdu.Fragment) -> None:
        """Add a piece of a command set, or of the data set that one announced."""
        if not fragment.is_command:
            self._gather_identifier(fragment)
            return
        if self._identifier is not None:
            raise pdu.ProtocolError(pdu.AbortReason.UNEXPECTED_PDU, "a command set came before its data set")
        self._command += fragment.payload
        if len(self._command) > LARGEST_COMMAND_BYTES:
            raise pdu.ProtocolError(pdu.AbortReason.INVALID_PARAMETER, "a command set grows beyond all measure")
        if fragment.is_last:
            content, self._command = self._command, bytearray()
            command = decoded(content)
            if command.has_data_set and self._largest_identifier:
                self._identifier = bytearray()
            self._inbox.append(command)

    def _gather_identifier(self, fragment: pdu.Fragment) -> None:
        if self._identifier is None:
            raise pdu.ProtocolError(pdu.AbortReason.UNEXPECTED_PDU, "a data set came as an answer")
        self._identifier += fragment.payload
        if len(self._identifier) > self._largest_identifier:
            raise pdu.ProtocolError(pdu.AbortReason.INVALID_PARAMETER, "a data set grows beyond all measure")
        if fragment.is_last:
            self._inbox.append(Identifier(bytes(self._identifier)))
            self._identifier = None


def connected(
    host: str, port: int, *, timeout_s: float, clock: Clock, tls: ssl.SSLContext | None = None
) -> socket.socket:
    """Return a socket that is connected to one of the host's addresses, with TLS when a context is given.

    Raises
    ------
    socket.gaierror, UnicodeError
        When the name does not resolve, or cannot be one.
    ssl.SSLError
        When both sides do not agree on TLS.
    OSError
        When no connection is made in time.
    """
    deadline = clock.monotonic() + timeout_s
    failure: OSError = TimeoutError("no connection was made in time")
    for family, kind, protocol, _name, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        left_s = deadline - clock.monotonic()
        if left_s <= 0:
            break
        stream = socket.socket(family, kind, protocol)
        try:
            stream.settimeout(left_s)
            stream.connect(address)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _no_delayed_acknowledgement(stream)
            return stream if tls is None else tls.wrap_socket(stream, server_hostname=host)
        except ssl.SSLError:
            stream.close()
            raise
        except OSError as error:
            stream.close()
            failure = error
    raise failure


def _unsent_bytes(stream: socket.socket) -> int:
    """Return how much of what we sent the peer's machine has not confirmed (SIOCOUTQ, tcp(7))."""
    return int(struct.unpack("i", fcntl.ioctl(stream, termios.TIOCOUTQ, bytes(4)))[0])


def _no_delayed_acknowledgement(stream: socket.socket) -> None:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
