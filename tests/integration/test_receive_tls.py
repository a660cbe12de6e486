"""Claims on the TLS port of the receiver: who comes in, what arrives, and that nobody waits for anybody's handshake."""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.clock import ManualClock
from dicom_node.config.schema import Address, Peer
from dicom_node.dimse import RejectedAssociationError, echo, pdu, send_files
from dicom_node.dimse.tls import CertificateFiles, Certificates, client_context
from dicom_node.errors import UnreachableError
from dicom_node.logs import Log
from dicom_node.receive.connection import Connection
from tests import peers
from tests.integration.receiving import dicom_file, encode_data_set, small_data_set
from tests.integration.test_connection import Limits, Remembering
from tests.peers.certificates import Authority, authority
from tests.peers.require import find_program
from tests.torture.hostile import (
    ABORT,
    RELEASE_RP,
    Receiver,
    associate,
    association_request,
    calling,
    echo_message,
    is_honest_served,
    read_all,
    read_status,
    running_receiver,
    store_message,
    surprises,
)

TLS_ALERT = 21
"""The type of a record with which OpenSSL answers the end of its input."""
PEERS = (
    Peer(name="plain", ae_title="CT1", hosts=("127.0.0.0/8",)),
    Peer(name="safe", ae_title="SAFE", hosts=("127.0.0.0/8",), tls=True),
)
LARGE = encode_data_set(small_data_set(n_pixels=2_600_000))
"""5 MB."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A receiver with a TLS port, the CA it trusts, and the clock by which it looks at its certificates."""

    receiver: Receiver
    authority: Authority
    files: CertificateFiles
    clock: ManualClock

    def client(self, name: str = "client") -> ssl.SSLContext:
        """Return the context of a client whose certificate the CA signed."""
        return client_context(self.authority.issue(name))

    def address(self, port: int) -> Address:
        """Return where a port is."""
        return Address(host="127.0.0.1", port=port)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Return a running receiver; no thread of it may end by an exception."""
    signing = authority(tmp_path / "ca")
    files, clock = signing.issue("node"), ManualClock(datetime.now(UTC))
    certificates = Certificates(files, clock=clock, log=Log("tls"))

    def wrap(plain: socket.socket) -> ssl.SSLSocket:
        return certificates.server().wrap_socket(plain, server_side=True, do_handshake_on_connect=False)

    with surprises() as found, running_receiver(tmp_path / "store", peers=PEERS, tls=wrap) as receiver:
        yield Place(receiver=receiver, authority=signing, files=files, clock=clock)
    assert [] == found


@contextmanager
def by_tls(place: Place, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """Open a connection to the TLS port."""
    with calling(place.receiver.tls_port) as plain, context.wrap_socket(plain) as connection:
        yield connection


def dcmtk(program: str, files: CertificateFiles, port: int, *more: str) -> int:
    """Run a sender of dcmtk with TLS; return its exit status."""
    peers.require_peer("dcmtk")
    found = find_program(program)
    assert found is not None
    tls = ["+tls", str(files.key), str(files.certificate), "+cf", str(files.ca)]
    command = [found, "-aet", "CT1", "-aec", "NODE", *tls, "127.0.0.1", str(port), *more]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


# Who comes in


def test_dcmtk_echoes_and_stores(place: Place, tmp_path: Path) -> None:
    """Mutual TLS with a sender that others wrote; what is filed is what it sent."""
    data_set = encode_data_set(small_data_set())
    path = dicom_file(tmp_path / "x.dcm", data_set)
    files = place.authority.issue("scanner")
    assert 0 == dcmtk("echoscu", files, place.receiver.tls_port)
    assert 0 == dcmtk("storescu", files, place.receiver.tls_port, str(path))
    assert [hashlib.sha256(data_set).hexdigest()] == place.receiver.filed_digests()


def test_our_sender_stores_five_megabytes_as_they_are(place: Place, tmp_path: Path) -> None:
    """Byte for byte, through records of 16 kB."""
    path = dicom_file(tmp_path / "x.dcm", LARGE)
    (result,) = send_files(
        [path],
        place.address(place.receiver.tls_port),
        called_ae="NODE",
        calling_ae="SAFE",
        timeout_s=20,
        tls=place.client(),
    )
    assert 0 == result.status
    assert [hashlib.sha256(LARGE).hexdigest()] == place.receiver.filed_digests()


def test_a_peer_of_tls_is_refused_on_the_plain_port(place: Place) -> None:
    """`tls = true`: let in through the TLS port alone; one without it may use both."""
    plain, safe = place.address(place.receiver.port), place.address(place.receiver.tls_port)
    with pytest.raises(RejectedAssociationError) as caught:
        echo(plain, called_ae="NODE", calling_ae="SAFE", timeout_s=20)
    assert not caught.value.is_transient
    assert echo(safe, called_ae="NODE", calling_ae="SAFE", timeout_s=20, tls=place.client()).is_success
    assert echo(safe, called_ae="NODE", calling_ae="CT1", timeout_s=20, tls=place.client()).is_success
    assert echo(plain, called_ae="NODE", calling_ae="CT1", timeout_s=20).is_success


def test_a_certificate_lets_nobody_in_without_its_title(place: Place) -> None:
    """TLS says that a CA trusts somebody; the list of peers says who may come."""
    with pytest.raises(RejectedAssociationError):
        echo(
            place.address(place.receiver.tls_port),
            called_ae="NODE",
            calling_ae="STRANGER",
            timeout_s=20,
            tls=place.client(),
        )


def test_a_foreign_ca_is_refused(place: Place, tmp_path: Path) -> None:
    """A certificate of another CA, or none: no association, whoever it says it is, and others come in."""
    foreign = authority(tmp_path / "foreign", "foreign-ca").issue("intruder")
    mixed = CertificateFiles(certificate=foreign.certificate, key=foreign.key, ca=place.files.ca)
    address = place.address(place.receiver.tls_port)
    with pytest.raises(UnreachableError):
        echo(address, called_ae="NODE", calling_ae="SAFE", timeout_s=20, tls=client_context(mixed))
    assert 0 != dcmtk("echoscu", mixed, place.receiver.tls_port)
    without = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    without.check_hostname = False
    without.load_verify_locations(place.files.ca)
    with pytest.raises(UnreachableError):
        echo(address, called_ae="NODE", calling_ae="SAFE", timeout_s=20, tls=without)
    assert echo(address, called_ae="NODE", calling_ae="SAFE", timeout_s=20, tls=place.client()).is_success


def test_a_renewed_certificate_counts_from_the_next_connection_on(place: Place) -> None:
    """Files replaced while an association is open: that one goes on, the next one is shown the new certificate."""
    context = place.client()
    with by_tls(place, context) as before:
        associate(before)
        place.authority.issue("node")
        place.clock.advance(2)  # beyond how long a look at the files is believed
        with by_tls(place, context) as after:
            associate(after)
            assert _serial(before) != _serial(after)
            for connection in (before, after):
                connection.sendall(echo_message())
                assert 0 == read_status(connection)


def _serial(connection: ssl.SSLSocket) -> object:
    return (connection.getpeercert() or {})["serialNumber"]


# How it is served


def test_the_states_are_those_of_the_plain_port(place: Place) -> None:
    """Echo, store in many fragments, a breach of the protocol, release: the same answers through TLS."""
    with by_tls(place, place.client()) as connection:
        associate(connection)
        connection.sendall(echo_message() + store_message(max_pdu=50) + pdu.RELEASE_RQ)
        assert [0, 0] == [read_status(connection), read_status(connection)]
        assert [RELEASE_RP] == read_all(connection)


def test_a_peer_that_goes_away_leaves_nothing(place: Place, tmp_path: Path) -> None:
    """The connection cut within an object, without TLS's farewell: no part, no thread."""
    with by_tls(place, place.client()) as connection:
        associate(connection)
        connection.sendall(store_message(LARGE)[:3_000_000])
        assert peers.eventually(lambda: bool(list(tmp_path.rglob("*.part"))), timeout_s=10)
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    assert peers.eventually(lambda: not list(tmp_path.rglob("*.part")), timeout_s=10)
    assert [] == place.receiver.filed_digests()


def test_an_end_while_the_socket_is_wrapped_is_not_lost(tmp_path: Path) -> None:
    """The plain socket is none any more and the other not yet there: no handshake is begun that nobody ends."""
    files = authority(tmp_path / "ca").issue("node")
    context = Certificates(files, clock=ManualClock(), log=Log("tls")).server()

    def wrap(plain: socket.socket) -> ssl.SSLSocket:
        wrapped = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        connection.end()
        return wrapped

    host = Remembering()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        plain = listening.accept()[0]
        connection = Connection(plain, "127.0.0.1", host=host, settings=Limits(), clock=ManualClock(), tls=wrap)
        thread = threading.Thread(target=connection.run)
        thread.start()
        assert host.is_over.wait(5)
        thread.join()
    assert ("lost", "the node stops") == (host.how, host.reason)


def test_stopping_ends_an_association_and_a_handshake(place: Place) -> None:
    """An abort for the one, the end of the connection for the other; neither is waited for."""
    with by_tls(place, place.client()) as connection, calling(place.receiver.tls_port) as silent:
        associate(connection)
        began_at = time.monotonic()
        place.receiver.listener.stop(drain_s=0)
        assert 5 > time.monotonic() - began_at
        assert [ABORT] == read_all(connection)
        assert set(read_all(silent)) <= {TLS_ALERT}
    place.receiver.listener.start()  # so that the fixture has something to stop


def test_silent_clients_block_nobody(place: Place) -> None:
    """Thirty that never shake hands, and an honest sender on either port within a second."""
    with ExitStack() as silent:
        for _ in range(30):
            silent.enter_context(calling(place.receiver.tls_port))
        began_at = time.monotonic()
        assert is_honest_served(place.receiver.port)
        with by_tls(place, place.client()) as connection:
            associate(connection, association_request(calling="SAFE"))
            connection.sendall(store_message())
            assert 0 == read_status(connection)
        assert 2 > time.monotonic() - began_at


def test_many_senders_share_the_port(place: Place) -> None:
    """Eight at once, each its own handshake and objects: all stored."""
    statuses: list[int | None] = []

    def send(context: ssl.SSLContext) -> None:
        with by_tls(place, context) as connection:
            associate(connection)
            for _ in range(5):
                connection.sendall(store_message(encode_data_set(small_data_set(n_pixels=50_000))))
                statuses.append(read_status(connection))

    threads = [threading.Thread(target=send, args=(place.client(f"client-{number}"),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [0] * 40 == statuses


def test_the_port_without_certificates_is_closed(tmp_path: Path) -> None:
    """No certificates, no TLS port: the plain one serves alone."""
    with running_receiver(tmp_path) as receiver:
        assert is_honest_served(receiver.port)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", receiver.tls_port or 1), timeout=5)
