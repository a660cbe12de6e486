"""A peer of raw bytes, which does what no library would: it accepts an association and follows a script."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from dicom_node.dimse import pdu
from dicom_node.dimse.command import Command, decoded, response

Script = Callable[["Wire"], None]


@dataclass
class Wire:
    """The peer's side of a connection after the association was accepted."""

    stream: socket.socket
    parser: pdu.Parser = field(default_factory=lambda: pdu.Parser(1 << 18))
    controls: list[pdu.Control] = field(default_factory=list)
    data_bytes: int = 0
    message_ids: list[int | None] = field(default_factory=list)
    _command: bytearray = field(default_factory=bytearray)

    def message(self) -> Command | None:
        """Read until a message is complete; None when a control PDU or the end came instead."""
        command = None
        while received := self.stream.recv(1 << 18):
            for event in self.parser.feed(memoryview(received)):
                if isinstance(event, pdu.Control):
                    self.controls.append(event)
                    return None
                if event.is_command:
                    self._command += event.payload
                    if event.is_last:
                        command, self._command = decoded(self._command), bytearray()
                else:
                    self.data_bytes += len(event.payload)
                if event.is_last and command is not None and event.is_command != command.has_data_set:
                    return command
        return None

    def command(self, command_set: bytes) -> None:
        """Send a command set in the context of the request."""
        self.stream.sendall(pdu.command_pdus(1, command_set, 0))

    def answer(self, status: int = 0) -> None:
        """Answer the next request."""
        request = self.message()
        assert request is not None
        self.message_ids.append(request.message_id)
        self.command(response(request, status))


@contextmanager
def scripted(script: Script, *, max_pdu: int = 16384) -> Iterator[tuple[int, list[Wire]]]:
    """Run a peer that accepts one association, its first context alone, and follows the script."""
    wires: list[Wire] = []

    def serve(server: socket.socket) -> None:
        stream, _ = server.accept()
        with stream:
            stream.settimeout(20)
            wire = Wire(stream)
            wires.append(wire)
            _accept(wire, max_pdu)
            with suppress(OSError):  # we hung up: what was to be shown has been
                script(wire)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield server.getsockname()[1], wires
        thread.join(20)


def _accept(wire: Wire, max_pdu: int) -> None:
    assert wire.message() is None
    asked = A_ASSOCIATE_RQ()
    asked.decode(wire.controls.pop().content)
    primitive = asked.to_primitive()
    contexts = primitive.presentation_context_definition_list
    for context in contexts:
        context.result, context.transfer_syntax = 0 if context.context_id == 1 else 4, context.transfer_syntax[:1]
    primitive.presentation_context_definition_results_list = contexts
    primitive.result, primitive.result_source = 0, 1
    primitive.user_information[0].maximum_length_received = max_pdu
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(primitive)
    wire.stream.sendall(answer.encode())
