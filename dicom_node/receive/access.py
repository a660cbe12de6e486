"""Who may associate, and what for: peers by AE title *and* address, default deny. Pure.

The wire gets one answer for an unknown title and for a known title from a foreign address; the log tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

from dicom_node.config.schema import Peer
from dicom_node.study import Association


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """An A-ASSOCIATE-RJ: the codes of PS3.8 Table 9-21, and our own words for the log."""

    result: int
    source: int
    diagnostic: int
    reason: str


_PERMANENT: Final = 1
_TRANSIENT: Final = 2
_SERVICE_USER: Final = 1
_PRESENTATION: Final = 3

NO_ROOM: Final = Denied(
    result=_TRANSIENT, source=_PRESENTATION, diagnostic=2, reason="as many associations as allowed are open"
)
"""Local limit exceeded: senders try again."""
CONGESTED: Final = Denied(
    result=_TRANSIENT, source=_PRESENTATION, diagnostic=1, reason="the node is stopping or cannot record associations"
)
"""Temporary congestion: senders try again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAssociation:
    """An admitted association and the peer behind it."""

    row: Association
    peer: Peer


def admit(
    peers: Sequence[Peer],
    *,
    calling_ae: str,
    called_ae: str,
    address: str,
    ae_titles: Sequence[str],
    is_encrypted: bool = False,
) -> Peer | Denied:
    """Return the peer that calls, or why it is denied; one with `tls` is let in through the TLS port alone."""
    if called_ae.strip() not in ae_titles:
        return _denied(diagnostic=7, reason="called AE title not recognised")
    titled = [peer for peer in peers if peer.ae_title == calling_ae.strip()]
    if not titled:
        return _denied(diagnostic=3, reason="calling AE title not recognised")
    here = [peer for peer in titled if _lies_in(peer, address)]
    for peer in here:
        if is_encrypted or not peer.tls:
            return peer
    if here:
        return _denied(diagnostic=3, reason="calling AE title known, but it has to call the TLS port")
    return _denied(diagnostic=3, reason="calling AE title known, but not from this address")


def is_known_address(peers: Sequence[Peer], address: str) -> bool:
    """Return whether any peer may call from `address`."""
    return any(_lies_in(peer, address) for peer in peers)


def may(peer: Peer, service: Literal["echo", "store"]) -> bool:
    """Return whether the peer may use a service."""
    return service in peer.may


def _denied(*, diagnostic: int, reason: str) -> Denied:
    return Denied(result=_PERMANENT, source=_SERVICE_USER, diagnostic=diagnostic, reason=reason)


def _lies_in(peer: Peer, address: str) -> bool:
    host = _parsed(address)
    return host is not None and any(host.version == network.version and host in network for network in peer.hosts)


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    """Return the address; one of IPv4 that comes through an IPv6 socket (::ffff:a.b.c.d) as what it is."""
    try:
        host = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return host.ipv4_mapped or host if isinstance(host, IPv6Address) else host
