"""Scanners that keep books: what they sent, what was answered with Success, and with which bytes.

They send as real ones do: one object at a time, and after a lost association again what was not acknowledged. The
objects are copies of three templates that differ in their SOP Instance UID: small and medium ones go through the
journal, large ones into files of their own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from benchmarks import upper_layer
from benchmarks.corpus import KINDS, Kind, Template, make_template

SUCCESS: Final = 0x0000
OUT_OF_RESOURCES: Final = 0xA700
DUPLICATE: Final = 0x0111
CONGESTION: Final = (2, 3, 1)
"""Rejected, transient; by the presentation provider; temporary congestion (PS3.8 9.3.4)."""
CALLED: Final = "DICOM_NODE"
CALLING: Final = "STORESCU"
ANSWER_S: Final = 20.0

SMALL, MEDIUM, LARGE = "tiny", "ct", "large"
_LARGE: Final = Kind(name=LARGE, modality="CT", shape=(4, 512, 512), count=1, quick_count=1)
"""2.1 MB: more than any record of the journal takes."""
_CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h."""
_ASSOCIATE_AC: Final = 0x02
_ASSOCIATE_RJ: Final = 0x03


@functools.cache
def template(name: str) -> Template:
    """Return the object of which all of one kind are copies."""
    return make_template(_LARGE if name == LARGE else KINDS[name], seed="torture")


def kinds() -> list[str]:
    """Return the names of the templates; the presentation context of each is 2 * its place + 1."""
    return [SMALL, MEDIUM, LARGE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One version of an instance: copy number `serial` of a template, whose last byte is `variant`."""

    kind: str
    serial: int
    variant: int = 0

    @property
    def sop_instance_uid(self) -> str:
        return template(self.kind).uid(self.serial)

    def data_set(self) -> bytes:
        """Return the bytes that are sent."""
        content = bytearray(template(self.kind).content)
        template(self.kind).patch(content, self.serial)
        content[-1] ^= self.variant
        return bytes(content[template(self.kind).data_set_offset :])

    def digest(self) -> str:
        """Return SHA-256 of the bytes that are sent."""
        return hashlib.sha256(self.data_set()).hexdigest()


def mixed(first: int, step: int) -> Iterator[Object]:
    """Give new objects without end: most are small, one in ten medium, one in forty large."""
    for count in range(1 << 30):
        kind = LARGE if count % 40 == 20 else MEDIUM if count % 10 == 5 else SMALL
        yield Object(kind=kind, serial=first + count * step)


class Scanner:
    """One association after the other, one object at a time, and a book of what became of each.

    Parameters
    ----------
    host, port
        Of the node.
    namespace
        Name of the network namespace from which it calls; None: the one that it lives in.
    answer_s
        Silence after which it gives an association up.
    """

    def __init__(
        self, port: int, *, host: str = "127.0.0.1", namespace: str | None = None, answer_s: float = ANSWER_S
    ) -> None:
        self._address = host, port
        self._namespace = namespace
        self._answer_s = answer_s
        self._association: upper_layer.Association | None = None
        self.sent: dict[tuple[str, str], Object] = {}
        """(SOP Instance UID, digest) of all whose first byte left, acknowledged or not."""
        self.acknowledged: dict[tuple[str, str], Object] = {}
        """(SOP Instance UID, digest) of all that were answered with Success."""
        self.answers: list[int] = []
        """Every status that came, in order."""
        self.rejections: list[tuple[int, int, int]] = []
        """Result, source and reason of every rejection."""
        self.losses = 0
        """Associations that ended without our doing, or were not had."""

    def __enter__(self) -> Self:
        """Send; the first object opens the association."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave without a word, unless it was released."""
        self.close()

    def store(self, one: Object) -> int | None:
        """Send an object and return the status; None when there was no association or it was lost."""
        data_set = one.data_set()
        version = one.sop_instance_uid, hashlib.sha256(data_set).hexdigest()
        try:
            association = self._association or self._associate()
            self._association = association
            self.sent[version] = one
            association.context_id = 2 * kinds().index(one.kind) + 1
            status = association.store(
                memoryview(data_set),
                sop_class_uid=template(one.kind).sop_class_uid,
                sop_instance_uid=one.sop_instance_uid,
            )
        except OSError:
            self.losses += 1
            self.close()
            return None
        self.answers.append(status)
        if status == SUCCESS:
            self.acknowledged[version] = one
        return status

    def store_until_success(self, one: Object, stop: threading.Event, *, pause_s: float = 0.05) -> bool:
        """Send an object again and again until it is acknowledged, or `stop` is set; return whether it was."""
        while self.store(one) != SUCCESS:
            if stop.wait(pause_s):
                return False
        return True

    def release(self) -> None:
        """End the association by agreement."""
        if self._association is not None:
            upper_layer.release(self._association.connection)
        self.close()

    def close(self) -> None:
        """Leave without a word."""
        if self._association is not None:
            self._association.connection.close()
            self._association = None

    def _associate(self) -> upper_layer.Association:
        contexts = {
            2 * place + 1: (template(kind).sop_class_uid, "1.2.840.10008.1.2.1") for place, kind in enumerate(kinds())
        }
        request = upper_layer.associate_request(called=CALLED, calling=CALLING, contexts=contexts)
        with _inside(self._namespace):
            connection = socket.create_connection(self._address, timeout=self._answer_s)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request)
            kind, length = struct.unpack(">BxI", _exactly(connection, 6))
            content = _exactly(connection, length)
            if kind == _ASSOCIATE_RJ:
                self.rejections.append((content[1], content[2], content[3]))
            if kind != _ASSOCIATE_AC:
                raise ConnectionRefusedError(f"the association was not accepted: PDU type {kind}")
        except OSError:
            connection.close()
            raise
        return upper_layer.Association(connection)


class SendingThread(threading.Thread):
    """A scanner that sends object after object in the background, each until it is acknowledged."""

    def __init__(self, scanner: Scanner, objects: Iterator[Object], *, pause_s: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.scanner = scanner
        self._objects = objects
        self._pause_s = pause_s
        self._stop_sending = threading.Event()

    def run(self) -> None:
        """Send until told to stop."""
        for one in self._objects:
            if not self.scanner.store_until_success(one, self._stop_sending) or self._stop_sending.wait(self._pause_s):
                return

    def stop(self) -> None:
        """End after the answer that is under way, and leave without a word."""
        self._stop_sending.set()
        self.join()
        self.scanner.close()


@contextmanager
def sending(port: int, *, count: int = 4, first: int = 0, pause_s: float = 0.0) -> Iterator[list[Scanner]]:
    """Run so many scanners at once, each with objects of its own."""
    threads = [SendingThread(Scanner(port), mixed(first + number, count), pause_s=pause_s) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield [thread.scanner for thread in threads]
    finally:
        for thread in threads:
            thread.stop()


@contextmanager
def _inside(namespace: str | None) -> Iterator[None]:
    """Put the present thread into a network namespace: a socket made there stays there."""
    if namespace is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        for descriptor in (there, home):
            if libc.setns(descriptor, _CLONE_NEWNET):
                raise PermissionError(ctypes.get_errno(), "a thread cannot enter a network namespace here")
            if descriptor == there:
                yield
    finally:
        os.close(there)
        os.close(home)


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        piece = connection.recv(count - len(content))
        if not piece:
            raise ConnectionResetError("the peer closed the connection")
        content += piece
    return content
