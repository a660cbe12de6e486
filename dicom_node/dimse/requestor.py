"""One association that we ask for, from the call to its release; one request is outstanding at a time.

It knows nothing of files and verdicts: a request goes out, the peer's answer or None comes back, and after None the
association is over.
Sources: DICOM PS3.8 9.2 (state machine), 7.2 (release), PS3.7 9.1.1 (C-STORE), 9.1.2 (C-FIND), 9.1.5 (C-ECHO).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

from dicom_node.clock import Clock, SystemClock
from dicom_node.config.schema import Address
from dicom_node.dimse import pdu, proposal
from dicom_node.dimse.command import Command, echo_request, find_request, store_request
from dicom_node.dimse.connection import Connection, ConnectionLostError, Identifier, connected
from dicom_node.dimse.envelope import Envelope
from dicom_node.dimse.proposal import Accepted, Agreement, Proposed
from dicom_node.errors import UnreachableError


class RejectedAssociationError(UnreachableError):
    """The peer rejects the association; check both AE titles and its list of known peers."""

    def __init__(self, message: str, *, is_transient: bool) -> None:
        self.is_transient = is_transient
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Whom we call, as whom, and how long we wait."""

    address: Address
    called_ae: str
    calling_ae: str
    timeout_s: float
    """For the connection, for each answer, and for the peer to take something of what we send."""
    tls: ssl.SSLContext | None = None
    largest_identifier: int = 0
    """Bytes of the largest data set that an answer may bring; 0: none may."""
    clock: Clock = field(default_factory=SystemClock)

    def __str__(self) -> str:
        """Return who and where."""
        return f"{self.called_ae} at {self.address.host}:{self.address.port}"


class Requestor:
    """An open association; `associated` makes it."""

    def __init__(self, connection: Connection, agreement: Agreement) -> None:
        self._connection = connection
        self._envelope = Envelope(agreement.max_pdu)
        self._max_pdu = agreement.max_pdu
        self.contexts = agreement.contexts
        self.is_open = True

    def echo(self, context: Accepted, *, message_id: int) -> Command | None:
        """Ask whether the peer is there; return its answer, None when none comes and the association is over."""
        command_set = echo_request(message_id)
        try:
            self._connection.send(pdu.command_pdus(context.context_id, command_set, 0))
            return self._answer(message_id)
        except ConnectionLostError:
            self.abort()
            return None

    def find(self, context: Accepted, identifier: bytes, *, message_id: int) -> Iterator[tuple[Command, bytes | None]]:
        """Send a query; give each answer with its identifier, encoded, until the one that ends it.

        An answer is pending while it brings an identifier (PS3.4 C.4.1.1.4). When the answers stop before the last
        one, the association is over.
        """
        command_set = find_request(message_id, context.sop_class_uid)
        try:
            for block in (
                pdu.command_pdus(context.context_id, command_set, self._max_pdu),
                *self._data(context, identifier),
            ):
                self._connection.send(block)
            while (answer := self._answer(message_id)) is not None:
                if not answer.has_data_set:
                    yield answer, None
                    return
                message = self._connection.receive()
                if not isinstance(message, Identifier):
                    self.abort()
                    return
                yield answer, message.content
        except ConnectionLostError:
            self.abort()

    def _data(self, context: Accepted, content: bytes) -> Iterator[bytes]:
        for piece, is_last in pdu.pieces(memoryview(content), self._max_pdu):
            yield pdu.data_head(context.context_id, len(piece), is_command=False, is_last=is_last) + piece

    def store(
        self,
        context: Accepted,
        sop_instance_uid: str,
        descriptor: int,
        offset: int,
        length: int,
        *,
        message_id: int,
    ) -> Command | None:
        """Send a data set as it lies in an open file; return the answer, None when none comes and it is over.

        Raises
        ------
        OSError
            When the file cannot be read; the association was aborted, for the peer holds half a message.
        """
        command_set = store_request(message_id, context.sop_class_uid, sop_instance_uid)
        try:
            for block in self._envelope.blocks(command_set, descriptor, offset, length, context_id=context.context_id):
                self._connection.send(block)
            return self._answer(message_id)
        except ConnectionLostError:
            self.abort()
            return None
        except OSError:
            self.abort()
            raise

    def release(self) -> None:
        """End the association in order, or by force when the peer does not answer."""
        if not self.is_open:
            return
        self.is_open = False
        try:
            self._connection.send(pdu.RELEASE_RQ)
            message = self._connection.receive()
            if isinstance(message, pdu.Control) and message.kind is pdu.PduType.RELEASE_RQ:
                self._connection.send(pdu.RELEASE_RP)  # collision: both ask, both answer (PS3.8 9.2, Sta9 and Sta11)
                self._connection.receive()
        except ConnectionLostError:
            self._connection.abort()
        finally:
            self._connection.close()

    def abort(self) -> None:
        """End the association at once."""
        if self.is_open:
            self.is_open = False
            self._connection.abort()

    def _answer(self, message_id: int) -> Command | None:
        message = self._connection.receive()
        match message:
            case Command(is_response=True, message_id_responded_to=number) if number == message_id:
                return message
            case pdu.Control(kind=pdu.PduType.RELEASE_RQ):
                self._connection.send(pdu.RELEASE_RP)
                self.is_open = False
                self._connection.close()
            case pdu.Control(kind=pdu.PduType.ABORT):
                self.is_open = False
                self._connection.close()
            case _:  # an answer to another request, a request, or a PDU of negotiation
                self.is_open = False
                self._connection.abort(pdu.AbortReason.UNEXPECTED_PDU)
        return None


def associated(call: Call, contexts: list[Proposed]) -> Requestor:
    """Return an association with the peer; it may have accepted none of `contexts`.

    Raises
    ------
    UnreachableError
        When there is no connection, or no answer.
    RejectedAssociationError
        When the peer rejects the association.
    """
    connection = Connection(
        _stream(call), timeout_s=call.timeout_s, clock=call.clock, largest_identifier=call.largest_identifier
    )
    try:
        connection.send(proposal.request(contexts, called_ae=call.called_ae, calling_ae=call.calling_ae))
        answer = connection.receive()
        if isinstance(answer, pdu.Control) and answer.kind is pdu.PduType.ASSOCIATE_AC:
            return Requestor(connection, proposal.agreement(answer.content, contexts))
    except (ConnectionLostError, pdu.ProtocolError) as error:
        connection.abort()
        cause = error.__cause__
        if isinstance(cause, ssl.SSLError):  # TLS 1.3: the peer judges our certificate after its handshake is done
            raise _no_tls(call, cause) from error
        raise _silent(call) from error
    except BaseException:
        connection.close()
        raise
    connection.close()
    if isinstance(answer, pdu.Control) and answer.kind is pdu.PduType.ASSOCIATE_RJ:
        is_transient, words = proposal.rejection(answer.content)
        raise RejectedAssociationError(
            f"{call} rejects the association: {words}; check AE titles and its list of peers",
            is_transient=is_transient,
        )
    raise _silent(call)


def _stream(call: Call) -> socket.socket:
    host, port = call.address.host, call.address.port
    try:
        return connected(host, port, timeout_s=call.timeout_s, clock=call.clock, tls=call.tls)
    except (socket.gaierror, UnicodeError) as error:
        raise UnreachableError(f"{host} is no address that this machine knows") from error
    except ssl.SSLError as error:
        raise _no_tls(call, error) from error
    except OSError as error:
        raise UnreachableError(f"{call} does not answer; check its address, its port and the network") from error


def _no_tls(call: Call, error: ssl.SSLError) -> UnreachableError:
    return UnreachableError(f"{call} and this node do not agree on TLS ({error.reason}); check both certificates")


def _silent(call: Call) -> UnreachableError:
    return UnreachableError(f"{call} takes the connection but does not answer the association request")
