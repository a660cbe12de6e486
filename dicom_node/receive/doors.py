"""A port: accepts connections and hands them on at once, whatever they are. No handshake, no byte is read here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Final

from dicom_node.logs import Log

_BACKLOG: Final = 128
"""A burst of associations, one per image, is ordinary."""
_BREATH_S: Final = 0.1
"""After an accept that failed, for want of descriptors for example, before the next."""


class Door:
    """One listening socket and the thread that accepts.

    Parameters
    ----------
    come_in
        Gets each connection and the address it comes from; it must not block.
    """

    def __init__(self, host: str, port: int, come_in: Callable[[socket.socket, str], None], *, log: Log) -> None:
        self._host = host
        self._port = port
        self._come_in = come_in
        self._log = log
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._is_closing = threading.Event()

    @property
    def port(self) -> int:
        """The port that is listened on.

        Raises
        ------
        RuntimeError
            When the door is not open.
        """
        if self._socket is None:
            raise RuntimeError("the door is not open")
        return int(self._socket.getsockname()[1])

    def open(self) -> None:
        """Bind and begin to accept.

        Raises
        ------
        OSError
            When the port cannot be bound.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self._host, self._port))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._thread = threading.Thread(target=self._accept, args=(listening,), name="listener", daemon=True)
        self._thread.start()
        self._log.info("listening", address=self._host, port=self.port)

    def close(self) -> None:
        """Accept nothing more."""
        if self._socket is None or self._thread is None:
            return
        self._is_closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._socket.close()

    def _accept(self, listening: socket.socket) -> None:
        while not self._is_closing.is_set():
            try:
                connection, address = listening.accept()
            except OSError as error:
                if not self._is_closing.is_set():
                    self._log.error("connection_failed", error=error.strerror or type(error).__name__)
                    self._is_closing.wait(_BREATH_S)
                continue
            try:
                self._come_in(connection, str(address[0]))
            except (OSError, RuntimeError) as error:  # no thread to be had: the next one may fare better
                self._log.error("connection_failed", error=type(error).__name__)
                connection.close()
