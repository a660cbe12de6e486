"""Free loopback ports for servers that cannot choose one themselves."""

from __future__ import annotations

import random
import socket

_BELOW_EPHEMERAL = range(20000, 32000)
"""The kernel hands out ports from 32768 on to outgoing connections; a port from there could be gone before its use."""


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on."""
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.choice(_BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no free loopback port")
