"""Claims on admission: title and address together, nobody by default."""

from __future__ import annotations

import pytest

from dicom_node.config.schema import Peer
from dicom_node.receive import Denied, admit
from dicom_node.receive.access import is_known_address, may

CT = Peer(name="ct", ae_title="CT1", hosts=("10.20.0.0/16",))
MR = Peer(name="mr", ae_title="MR1", hosts=("10.30.0.5/32", "fd00::/8"), may=("echo",))
MR_NEW = Peer(name="mr-new", ae_title="MR1", hosts=("10.30.0.6/32",))
PACS = Peer(name="pacs", ae_title="PACS", address="10.0.0.1:104")
PEERS = (CT, MR, MR_NEW, PACS)


def ask(calling_ae: str, address: str, called_ae: str = "NODE") -> Peer | Denied:
    """Knock at a node with two titles."""
    return admit(PEERS, calling_ae=calling_ae, called_ae=called_ae, address=address, ae_titles=("NODE", "AI"))


@pytest.mark.parametrize(
    ("calling_ae", "address", "called_ae", "expected"),
    [
        ("CT1", "10.20.3.4", "NODE", CT),
        ("CT1 ", "10.20.3.4", " AI", CT),  # titles are padded on the wire
        ("MR1", "10.30.0.5", "NODE", MR),
        ("MR1", "10.30.0.6", "NODE", MR_NEW),
        ("MR1", "fd12::1", "NODE", MR),
        ("CT1", "::ffff:10.20.3.4", "NODE", CT),
    ],
)
def test_known_title_from_its_address_is_admitted(
    calling_ae: str, address: str, called_ae: str, expected: Peer
) -> None:
    """The peer whose title and address both fit is the one that calls."""
    assert expected == ask(calling_ae, address, called_ae)


@pytest.mark.parametrize(
    ("calling_ae", "address", "called_ae", "diagnostic", "reason"),
    [
        ("CT1", "10.20.3.4", "OTHER", 7, "called AE title not recognised"),
        ("CT1", "10.20.3.4", "node", 7, "called AE title not recognised"),
        ("CT2", "10.20.3.4", "NODE", 3, "calling AE title not recognised"),
        ("", "10.20.3.4", "NODE", 3, "calling AE title not recognised"),
        ("CT1", "10.21.0.1", "NODE", 3, "calling AE title known, but not from this address"),
        ("MR1", "10.20.3.4", "NODE", 3, "calling AE title known, but not from this address"),
        ("PACS", "10.0.0.1", "NODE", 3, "calling AE title known, but not from this address"),
        ("CT1", "not an address", "NODE", 3, "calling AE title known, but not from this address"),
    ],
)
def test_everybody_else_is_denied(calling_ae: str, address: str, called_ae: str, diagnostic: int, reason: str) -> None:
    """Rejected for good by the service user, with the code of PS3.8 Table 9-21 and a reason for the log."""
    expected = Denied(result=1, source=1, diagnostic=diagnostic, reason=reason)
    assert expected == ask(calling_ae, address, called_ae)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("10.20.255.255", True), ("fd00::7", True), ("10.0.0.1", False), ("127.0.0.1", False), ("", False)],
)
def test_addresses_of_no_peer_are_unknown(address: str, expected: bool) -> None:
    """Only networks in some peer's `hosts` may connect; a peer that we only call opens nothing."""
    assert expected == is_known_address(PEERS, address)


def test_without_peers_nobody_comes_in() -> None:
    """Default deny."""
    assert not is_known_address((), "127.0.0.1")


def test_a_peer_may_what_it_may() -> None:
    """Services are allowed one by one."""
    assert [True, True, True, False] == [may(CT, "echo"), may(CT, "store"), may(MR, "echo"), may(MR, "store")]
