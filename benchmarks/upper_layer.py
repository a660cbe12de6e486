"""Just enough of the DICOM upper layer, by hand, to be a sender that costs next to nothing.

A benchmark that paces 1 Gbit/s or holds 200 associations must not spend the CPU that it measures: data sets are never
encoded or copied here, `sendmsg` gathers them with the heads of their PDUs. Trusts its peer; the node does not use it.

Sources: DICOM PS3.8 9.3 (PDUs), PS3.7 9.3.1 (C-STORE), 6.3.1 (command sets are Implicit VR Little Endian).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dicom_node.ids import IMPLEMENTATION_CLASS_UID

__all__ = ["Association", "associate", "associate_request", "release", "store_command"]

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
MAX_PDU_BYTES = 131072
TIMEOUT_S = 60.0
_ASSOCIATE_RQ, _ASSOCIATE_AC, _P_DATA, _RELEASE_RQ = 0x01, 0x02, 0x04, 0x05
_HEAD = struct.Struct(">BxI")
"""PDU type, length of what follows."""
_PDV = struct.Struct(">IBB")
"""Length of what follows, presentation context ID, message control header."""
_LAST_COMMAND, _DATA, _LAST_DATA = 0x03, 0x00, 0x02
_MAX_BUFFERS = 512
"""Of one `sendmsg`; Linux takes 1024 (IOV_MAX)."""

Contexts = Mapping[int, tuple[str, str]]
"""Presentation context ID, odd -> abstract syntax, transfer syntax."""


def _item(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(content)) + content


def associate_request(*, called: str, calling: str, contexts: Contexts) -> bytes:
    """Return an A-ASSOCIATE-RQ PDU (PS3.8 9.3.2)."""
    items = _item(0x10, APPLICATION_CONTEXT)
    for context_id, (abstract_syntax, transfer_syntax) in contexts.items():
        syntaxes = _item(0x30, abstract_syntax.encode("ascii")) + _item(0x40, transfer_syntax.encode("ascii"))
        items += _item(0x20, bytes((context_id, 0, 0, 0)) + syntaxes)
    user = _item(0x51, struct.pack(">I", MAX_PDU_BYTES)) + _item(0x52, IMPLEMENTATION_CLASS_UID.encode("ascii"))
    items += _item(0x50, user)
    titles = f"{called:<16}{calling:<16}".encode("ascii")
    content = struct.pack(">H2x", 1) + titles + bytes(32) + items
    return _HEAD.pack(_ASSOCIATE_RQ, len(content)) + content


def associate(port: int, *, called: str, calling: str, contexts: Contexts) -> socket.socket:
    """Return a connection to a loopback port over which an association is established.

    Raises
    ------
    ConnectionError
        When the peer rejects, aborts or goes away.
    """
    connection = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(associate_request(called=called, calling=calling, contexts=contexts))
        kind, content = _receive_pdu(connection)
        if kind != _ASSOCIATE_AC:
            raise ConnectionError(f"the association was not accepted: PDU type {kind}, {content[:4].hex()}")
    except BaseException:
        connection.close()
        raise
    return connection


def release(connection: socket.socket) -> None:
    """Release the association and wait for the answer."""
    connection.sendall(_HEAD.pack(_RELEASE_RQ, 4) + bytes(4))
    _receive_pdu(connection)


def store_command(*, sop_class_uid: str, sop_instance_uid: str, message_id: int) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    elements = _element(0x0002, _padded(sop_class_uid)) + _element(0x0100, struct.pack("<H", 0x0001))
    elements += _element(0x0110, struct.pack("<H", message_id)) + _element(0x0700, struct.pack("<H", 0))
    elements += _element(0x0800, struct.pack("<H", 0x0001)) + _element(0x1000, _padded(sop_instance_uid))
    return _element(0x0000, struct.pack("<I", len(elements))) + elements


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value


def _padded(uid: str) -> bytes:
    return uid.encode("ascii") + b"\0" * (len(uid) % 2)


def _receive_exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            raise ConnectionError("the peer closed the connection")
        content += piece
    return content


def _receive_pdu(connection: socket.socket) -> tuple[int, bytes]:
    kind, length = _HEAD.unpack(_receive_exactly(connection, _HEAD.size))
    return kind, _receive_exactly(connection, length)


def response_status(command: bytes) -> int:
    """Return the status of a C-STORE-RSP command set.

    Raises
    ------
    ValueError
        When it has none.
    """
    at = 0
    while at + 8 <= len(command):
        _, number, length = struct.unpack_from("<HHI", command, at)
        if number == 0x0900:
            return int(struct.unpack_from("<H", command, at + 8)[0])
        at += 8 + length
    raise ValueError("a response without status")


@dataclass(slots=True)
class Association:
    """An established association that stores objects of one presentation context, one at a time."""

    connection: socket.socket
    context_id: int = 1
    message_id: int = 0

    def store(self, data_set: memoryview, *, sop_class_uid: str, sop_instance_uid: str) -> int:
        """Send one object and return the status that is answered.

        Raises
        ------
        ConnectionError
            When the peer aborts or goes away.
        """
        self.message_id = self.message_id % 0xFFFF + 1
        command = store_command(
            sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, message_id=self.message_id
        )
        buffers: list[bytes | memoryview] = [self._head(len(command), _LAST_COMMAND), command]
        room = MAX_PDU_BYTES - _PDV.size
        for at in range(0, len(data_set), room):
            piece = data_set[at : at + room]
            is_last = at + room >= len(data_set)
            buffers += [self._head(len(piece), _LAST_DATA if is_last else _DATA), piece]
        for first in range(0, len(buffers), _MAX_BUFFERS):
            self._send_all(buffers[first : first + _MAX_BUFFERS])
        kind, content = _receive_pdu(self.connection)
        if kind != _P_DATA:
            raise ConnectionError(f"PDU type {kind} instead of a response")
        return response_status(content[_PDV.size :])

    def _head(self, length: int, control: int) -> bytes:
        """Return the heads of a P-DATA-TF PDU with one PDV of `length` bytes (PS3.8 9.3.5)."""
        return _HEAD.pack(_P_DATA, length + _PDV.size) + _PDV.pack(length + 2, self.context_id, control)

    def _send_all(self, buffers: list[bytes | memoryview]) -> None:
        left = sum(map(len, buffers))
        sent = self.connection.sendmsg(buffers)
        if sent < left:  # rare: the kernel took a part
            self.connection.sendall(b"".join(buffers)[sent:])
