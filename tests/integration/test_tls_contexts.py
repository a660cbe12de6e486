"""DICOM TLS against others: dcmtk on the far side of our contexts, and everybody who must not come in."""

from __future__ import annotations

import json
import logging
import re
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.x509 import load_pem_x509_certificates
from pynetdicom import AE, evt

from dicom_node.admin.checks import taken_port
from dicom_node.app import open_node
from dicom_node.clock import ManualClock
from dicom_node.config import Config
from dicom_node.config.schema import ReceiveSettings, TlsSettings
from dicom_node.dimse.contexts import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dicom_node.dimse.tls import CertificateFiles, Certificates, client_context, handshake_reason, server_context
from dicom_node.logs import Log
from dicom_node.reading.synthetic import write_series
from tests import peers
from tests.peers.certificates import SERVER_ONLY, Authority, authority, rsa_key
from tests.peers.require import find_program

NEXT_S = 1.0
"""After so long the files are looked at again."""
PATIENCE_S = 20.0
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


@dataclass(slots=True)
class Door:
    """A TLS port that shakes hands, says which certificate came, and lets the caller go."""

    context: Callable[[], ssl.SSLContext]
    port: int = 0
    refusals: list[str] = field(default_factory=list)
    guests: list[str] = field(default_factory=list)

    def serve(self, listening: socket.socket) -> None:
        """Take callers one after the other until the listening socket is closed."""
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_S)
            with connection:
                self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        try:
            with self.context().wrap_socket(connection, server_side=True) as guest:
                certificate = guest.getpeercert() or {}
                self.guests.append(certificate["subject"][0][0][1])
                guest.sendall(b"hello")
                guest.recv(1)
        except OSError as error:
            self.refusals.append(handshake_reason(error))


@contextmanager
def open_door(context: Callable[[], ssl.SSLContext]) -> Iterator[Door]:
    """Run a door on a loopback port."""
    door = Door(context)
    listening = socket.create_server(("127.0.0.1", 0))
    door.port = listening.getsockname()[1]
    thread = threading.Thread(target=door.serve, args=(listening,))
    thread.start()
    try:
        yield door
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(PATIENCE_S)


def shown_certificate(port: int, context: ssl.SSLContext) -> int:
    """Connect, hear "hello", and return the serial number of the certificate that the server showed."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
        context.wrap_socket(plain) as connection,
    ):
        assert b"hello" == connection.recv(5)
        certificate = connection.getpeercert() or {}
        return int(str(certificate["serialNumber"]), 16)


def refused_connection(port: int, context: ssl.SSLContext) -> str:
    """Connect, be refused, and return why in our words."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                said = connection.recv(5)
        except OSError as error:
            return handshake_reason(error)
    raise AssertionError(f"let in, and heard {said!r}")


def tls_options(files: CertificateFiles) -> list[str]:
    """Return the arguments of a program of dcmtk; it takes the key first."""
    return ["+tls", str(files.key), str(files.certificate), "+cf", str(files.ca)]


def echoscu(port: int, options: list[str]) -> tuple[int, str]:
    """Let dcmtk greet; return its exit status and what it said."""
    peers.require_peer("dcmtk")
    program = find_program("echoscu")
    assert program is not None
    command = [program, "-v", "-aet", "CT1", "-aec", "NODE", *options, "127.0.0.1", str(port)]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S * 3, check=False)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


@contextmanager
def dicom_server(context: ssl.SSLContext, stored: list[bytes]) -> Iterator[int]:
    """Run pynetdicom's own server behind our context; yield its port."""
    ae = AE("NODE")
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(CT_IMAGE, EXPLICIT_VR_LITTLE_ENDIAN)

    def keep(event: evt.Event) -> int:
        stored.append(event.request.DataSet.getvalue())
        return 0x0000

    handlers = [(evt.EVT_C_STORE, keep)]
    port = peers.free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, ssl_context=context, evt_handlers=handlers)
    try:
        yield port
    finally:
        server.shutdown()


@contextmanager
def storescp(folder: Path, files: CertificateFiles) -> Iterator[int]:
    """Run dcmtk's receiver on a TLS port; yield the port."""
    peers.require_peer("dcmtk")
    program = find_program("storescp")
    assert program is not None
    port = peers.free_port()
    folder.mkdir()
    process = subprocess.Popen(
        [program, "-od", str(folder), *tls_options(files), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert peers.eventually(lambda: _listens(port))
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _one_slice(folder: Path) -> list[Path]:
    """Write a CT of one slice."""
    return write_series(
        folder,
        np.zeros((1, 16, 16)),
        np.eye(4),
        study_instance_uid="1.2.3.1",
        series_instance_uid="1.2.3.2",
        frame_of_reference_uid="1.2.3.3",
        uid_root="1.2.3",
    )


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """Return the CA of the house."""
    return authority(tmp_path / "tls")


@pytest.fixture
def node(ca: Authority) -> CertificateFiles:
    """Return the files of the node, with an RSA key as most have."""
    return ca.issue("node", key=rsa_key())


@pytest.fixture
def scanner(ca: Authority) -> CertificateFiles:
    """Return the files of an honest peer."""
    return ca.issue("scanner")


# ------------------------------------------------------------------------------------------------- who comes in


def test_dcmtk_echoes_and_stores_through_our_port(
    node: CertificateFiles, ca: Authority, tmp_path: Path, storescu: Callable[..., peers.SendReport]
) -> None:
    """Tools that others wrote, with a certificate of the same CA, do over TLS what they do without."""
    scanner = ca.issue("scanner", key=rsa_key())
    (image,) = _one_slice(tmp_path / "study")
    stored: list[bytes] = []
    with dicom_server(server_context(node), stored) as port:
        status, said = echoscu(port, tls_options(scanner))
        assert 0 == status, said
        storescu([image], port, called="NODE", calling="CT1", options=tls_options(scanner))
    (data_set,) = stored
    assert image.read_bytes().endswith(data_set)


def test_we_call_dcmtk(node: CertificateFiles, scanner: CertificateFiles, tmp_path: Path) -> None:
    """Our context and certificate satisfy a receiver that asks for one."""
    ae = AE("NODE")
    ae.add_requested_context(VERIFICATION)
    with storescp(tmp_path / "received", scanner) as port:
        assoc = ae.associate("127.0.0.1", port, tls_args=(client_context(node), None))
        assert assoc.is_established
        assert 0x0000 == assoc.send_c_echo().Status
        assoc.release()


@pytest.mark.parametrize(
    ("version", "suites"),
    [
        (ssl.TLSVersion.TLSv1_2, {"ECDHE-RSA-AES256-GCM-SHA384"}),
        (ssl.TLSVersion.TLSv1_3, {"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"}),
    ],
)
def test_both_versions_of_the_profile_are_spoken(
    node: CertificateFiles, scanner: CertificateFiles, version: ssl.TLSVersion, suites: set[str]
) -> None:
    """TLS 1.2 with the first suite of RFC 9325 4.2, and TLS 1.3."""
    ours, theirs = server_context(node), client_context(scanner)
    theirs.minimum_version = theirs.maximum_version = version
    with open_door(lambda: ours) as door:
        plain = socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S)
        with theirs.wrap_socket(plain) as connection:
            cipher = connection.cipher()
    assert cipher is not None
    assert cipher[0] in suites


def test_without_a_limit_tls_1_3_is_spoken(node: CertificateFiles, scanner: CertificateFiles) -> None:
    """Two sides that can do both take the newer (PS3.15 B.12: shall prefer)."""
    ours = server_context(node)
    with open_door(lambda: ours) as door:
        plain = socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S)
        with client_context(scanner).wrap_socket(plain) as connection:
            assert "TLSv1.3" == connection.version()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_resumed(node: CertificateFiles, scanner: CertificateFiles, version: ssl.TLSVersion) -> None:
    """Every connection shows its certificate: one that has expired meanwhile does not slip in."""
    ours, theirs = server_context(node), client_context(scanner)
    theirs.maximum_version = version
    session, resumed = None, []
    with open_door(lambda: ours) as door:
        for _ in range(2):
            plain = socket.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S)
            with theirs.wrap_socket(plain, session=session) as connection:
                assert b"hello" == connection.recv(5)
                session = connection.session
                resumed.append(connection.session_reused)
    assert [False, False] == resumed


# ---------------------------------------------------------------------------------------------- who stays outside


def _anonymous(files: CertificateFiles) -> ssl.SSLContext:
    """Return a client that trusts the server and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.ca)
    return context


def _lax(files: CertificateFiles, ciphers: str, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a client with a good certificate and bad habits."""
    context = _anonymous(files)
    context.set_ciphers(ciphers)
    context.load_cert_chain(files.certificate, files.key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which is the point
        context.minimum_version = context.maximum_version = version
    return context


def _of_another_ca(house: Authority) -> CertificateFiles:
    """Return what a stranger shows who trusts the house."""
    return replace(authority(house.folder.parent / "other", "other-ca").issue("stranger"), ca=house.file)


HOUR_AGO, TOMORROW = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(days=1)

NO_COMMON_SUITE = "the peer accepts none of our cipher suites, or misses a certificate"

NOT_ADMITTED: dict[str, tuple[Callable[[Authority], ssl.SSLContext], str, str]] = {
    "no certificate": (
        lambda ca: _anonymous(ca.issue("x")),
        "the peer shows no certificate",
        "the peer misses our certificate",
    ),
    "another CA": (
        lambda ca: client_context(_of_another_ca(ca)),
        "the peer's certificate is not signed by a CA of `ca` in [receive.tls]",
        "the peer does not know the CA of our certificate",
    ),
    "expired": (
        lambda ca: client_context(ca.issue("x", starts=HOUR_AGO, days=1 / 48)),
        "the peer's certificate has expired",
        "the peer says that our certificate has expired",
    ),
    "not valid yet": (
        lambda ca: client_context(ca.issue("x", starts=TOMORROW)),
        "the peer's certificate is not valid yet; compare the clocks",
        "the peer refuses our certificate",
    ),
    "made for servers": (
        lambda ca: client_context(ca.issue("x", usage=SERVER_ONLY)),
        "the peer's certificate is not made for this side of a connection; see its extended key usage",
        "the peer refuses our certificate for this side of a connection",
    ),
    "TLS 1.1": (
        lambda ca: _lax(ca.issue("x"), "ALL:@SECLEVEL=0", ssl.TLSVersion.TLSv1_1),
        "the peer offers no TLS from version 1.2 on",
        "the peer accepts no TLS from version 1.2 on",
    ),
    "no forward secrecy": (
        lambda ca: _lax(ca.issue("x"), "AES256-GCM-SHA384", ssl.TLSVersion.TLSv1_2),
        "the peer offers no cipher suite of PS3.15 B.12",
        NO_COMMON_SUITE,
    ),
    "CBC": (
        lambda ca: _lax(ca.issue("x"), "ECDHE-RSA-AES128-SHA", ssl.TLSVersion.TLSv1_2),
        "the peer offers no cipher suite of PS3.15 B.12",
        NO_COMMON_SUITE,
    ),
    "finite fields": (
        lambda ca: _lax(ca.issue("x"), "DHE-RSA-AES256-GCM-SHA384", ssl.TLSVersion.TLSv1_2),
        "the peer offers no cipher suite of PS3.15 B.12",
        NO_COMMON_SUITE,
    ),
    "no encryption": (
        lambda ca: _lax(ca.issue("x"), "NULL-SHA256:@SECLEVEL=0", ssl.TLSVersion.TLSv1_2),
        "the peer offers no cipher suite of PS3.15 B.12",
        NO_COMMON_SUITE,
    ),
    "a short key": (
        lambda ca: _lax(ca.issue("x", key=rsa_key(1024)), "ALL:@SECLEVEL=0", ssl.TLSVersion.TLSv1_2),
        "the peer's certificate is refused: EE certificate key too weak",
        "the peer refuses our certificate",
    ),
}
"""Fault -> what the caller brings, why we refuse it, and what the caller hears, in our words on either side."""


@pytest.mark.parametrize("fault", NOT_ADMITTED)
def test_who_must_not_come_in_is_refused_in_words(fault: str, node: CertificateFiles, ca: Authority) -> None:
    """Each fault is refused by the handshake, the log can say why, and the next honest peer is served."""
    stranger, reason, heard = NOT_ADMITTED[fault]
    ours, honest = server_context(node), ca.issue("honest")
    with open_door(lambda: ours) as door:
        assert heard == refused_connection(door.port, stranger(ca))
        assert peers.eventually(lambda: len(door.refusals) == 1)
        assert [reason] == door.refusals
        shown_certificate(door.port, client_context(honest))
    assert ["honest"] == door.guests


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(lambda _ca: ["+tla", "-ic"], id="no certificate"),
        pytest.param(lambda ca: tls_options(_of_another_ca(ca)), id="another CA"),
        pytest.param(lambda ca: [*tls_options(ca.issue("old")), "+pa"], id="the retired AES profile"),
        pytest.param(lambda _ca: [], id="no TLS at all"),
    ],
)
def test_dcmtk_without_what_it_takes_gets_no_echo(
    node: CertificateFiles, ca: Authority, options: Callable[[Authority], list[str]]
) -> None:
    """The same tool that gets its echo with a good certificate is refused without."""
    ours = server_context(node)
    with open_door(lambda: ours) as door:
        status, _said = echoscu(door.port, options(ca))
        assert peers.eventually(lambda: len(door.refusals) == 1)
    assert 0 != status
    assert [] == door.guests


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "the peer ended the connection during the handshake"),
        (b"GET / HTTP/1.1\r\n\r\n", "the peer speaks HTTP"),
        (
            bytes([1, 0, 0, 0, 0, 200, *bytes(200)]),
            "the peer does not speak TLS, perhaps plain DICOM",
        ),
    ],
)
def test_what_is_no_tls_is_recognised(node: CertificateFiles, sent: bytes, reason: str) -> None:
    """A port scan, a browser and a sender that was not told of TLS leave a line that says so."""
    ours = server_context(node)
    with open_door(lambda: ours) as door:
        with socket.create_connection(("127.0.0.1", door.port)) as plain:
            plain.sendall(sent)
            with suppress(OSError):  # it may be thrown out already
                plain.shutdown(socket.SHUT_WR)
            assert peers.eventually(lambda: len(door.refusals) == 1)
        assert [reason] == door.refusals


def test_we_do_not_talk_to_a_receiver_of_another_ca(node: CertificateFiles, ca: Authority, tmp_path: Path) -> None:
    """A result goes to nobody whose certificate the house has not signed."""
    with storescp(tmp_path / "received", _of_another_ca(ca)) as port:
        reason = refused_connection(port, client_context(node))
    assert "the peer's certificate is not signed by a CA of `ca` in [receive.tls]" == reason


def test_a_receiver_that_does_not_know_our_ca_says_so(ca: Authority, scanner: CertificateFiles, tmp_path: Path) -> None:
    """The far side's refusal reaches our log in words, though in TLS 1.3 it comes after the handshake."""
    ours = _of_another_ca(ca)
    with storescp(tmp_path / "received", scanner) as port:
        reason = refused_connection(port, client_context(ours))
    assert "the peer does not know the CA of our certificate" == reason


def test_the_plain_port_is_recognised(node: CertificateFiles) -> None:
    """Calling a port without TLS by TLS is told as such."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=_answer_plainly, args=(listening,))
        answering.start()
        reason = refused_connection(listening.getsockname()[1], client_context(node))
        answering.join(PATIENCE_S)
    assert "the peer does not speak TLS, perhaps plain DICOM" == reason


def _answer_plainly(listening: socket.socket) -> None:
    """Answer as an AE without TLS does: with an A-ABORT (PS3.8 9.3.8)."""
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 1]))
        with suppress(ConnectionError):
            connection.recv(4096)


# --------------------------------------------------------------------------------------------------- renewed files


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that shows the present until it is moved."""
    return ManualClock(datetime.now(UTC))


def _serial(files: CertificateFiles) -> int:
    return load_pem_x509_certificates(files.certificate.read_bytes())[0].serial_number


def _actions(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [json.loads(record.getMessage())["action"] for record in caplog.records]


def test_a_renewed_certificate_serves_the_next_handshake(
    node: CertificateFiles,
    ca: Authority,
    scanner: CertificateFiles,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No restart: connections that stand go on, the next one sees the new certificate, in both directions."""
    caplog.set_level(logging.INFO)
    certificates = Certificates(node, clock=clock, log=Log("receiver"))
    old, theirs = _serial(node), client_context(scanner)
    with open_door(certificates.server) as door:
        assert old == shown_certificate(door.port, theirs)
        before = certificates.client()
        ca.issue("node")
        assert old == shown_certificate(door.port, theirs)
        clock.advance(NEXT_S)
        assert old != shown_certificate(door.port, theirs)
        assert _serial(node) == shown_certificate(door.port, theirs)
        assert before is not certificates.client()
    assert ["certificate.renewed"] == _actions(caplog)


def test_reload_looks_at_once(node: CertificateFiles, ca: Authority, clock: ManualClock) -> None:
    """Whoever has just renewed the files need not wait."""
    certificates = Certificates(node, clock=clock, log=Log("receiver"))
    before = certificates.server()
    certificates.reload()
    assert before is certificates.server()
    ca.issue("node")
    certificates.reload()
    assert before is not certificates.server()


def _cut(files: CertificateFiles, ca: Authority) -> None:
    files.certificate.write_bytes(files.certificate.read_bytes()[:300])


def _foreign_key(files: CertificateFiles, ca: Authority) -> None:
    files.key.write_bytes(ca.issue("scanner").key.read_bytes())


def _away(files: CertificateFiles, ca: Authority) -> None:
    files.ca.unlink()


def _last_years(files: CertificateFiles, ca: Authority) -> None:
    ca.issue("node", starts=datetime.now(UTC) - timedelta(days=400))


@pytest.mark.parametrize("spoil", [_cut, _foreign_key, _away, _last_years])
def test_broken_files_change_nothing_and_are_reported_once(
    spoil: Callable[[CertificateFiles, Authority], None],
    node: CertificateFiles,
    ca: Authority,
    scanner: CertificateFiles,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A slip of the administrator does not close the port, and the repaired files count."""
    caplog.set_level(logging.INFO)
    certificates = Certificates(node, clock=clock, log=Log("receiver"))
    old, theirs, root = _serial(node), client_context(scanner), ca.file.read_bytes()
    with open_door(certificates.server) as door:
        spoil(node, ca)
        for _ in range(3):
            clock.advance(NEXT_S)
            assert old == shown_certificate(door.port, theirs)
        assert ["certificate.kept_back"] == _actions(caplog)
        ca.issue("node")
        ca.file.write_bytes(root)
        clock.advance(NEXT_S)
        assert _serial(node) == shown_certificate(door.port, theirs)
    assert ["certificate.kept_back", "certificate.renewed"] == _actions(caplog)


def test_a_withdrawn_ca_lets_nobody_in_any_more(
    node: CertificateFiles, ca: Authority, scanner: CertificateFiles, clock: ManualClock, tmp_path: Path
) -> None:
    """`ca` is read anew as well: who was welcome before is refused after."""
    certificates = Certificates(node, clock=clock, log=Log("receiver"))
    theirs = client_context(scanner)
    with open_door(certificates.server) as door:
        shown_certificate(door.port, theirs)
        node.ca.write_bytes(authority(tmp_path / "other", "other-ca").file.read_bytes())
        clock.advance(NEXT_S)
        refused_connection(door.port, theirs)
        assert peers.eventually(lambda: len(door.refusals) == 1)
    assert ["scanner"] == door.guests


def test_many_threads_get_whole_contexts(node: CertificateFiles, ca: Authority, clock: ManualClock) -> None:
    """While the files are renewed under load, every handshake ends well with one certificate or the other."""
    certificates = Certificates(node, clock=clock, log=Log("receiver"))
    theirs = client_context(ca.issue("scanner"))
    serials = {_serial(node)}
    seen: list[int] = []
    with open_door(certificates.server) as door:
        callers = [
            threading.Thread(target=lambda: seen.extend(shown_certificate(door.port, theirs) for _ in range(10)))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for _ in range(5):
            ca.issue("node")
            serials.add(_serial(node))
            certificates.reload()
        for caller in callers:
            caller.join(PATIENCE_S)
    assert 40 == len(seen)
    assert set() == set(seen) - serials


# ------------------------------------------------------------------------------------------------ dicom-node check


def _checked(folder: Path, files: CertificateFiles, port: int) -> list[tuple[bool, str]]:
    """Return what `dicom-node check` says about the certificate of this configuration."""
    names = "".join(f'{name} = "{getattr(files, name)}"\n' for name in ("certificate", "key", "ca"))
    config = folder / "config.toml"
    config.write_text(f"[receive]\nport = {peers.free_port()}\n[receive.tls]\nport = {port}\n{names}")
    found = open_node(config).admin.check(network=False)
    assert [f"127.0.0.1:{port} is free"] == [entry["detail"] for entry in found if entry["what"] == "TLS port"]
    return [(entry["ok"], entry["detail"]) for entry in found if entry["what"] == "TLS certificate"]


def test_check_shows_a_good_certificate(node: CertificateFiles, tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Whom it names and how long it lasts, in one line."""
    ((is_well, detail),) = _checked(tmp_path, node, free_port())
    assert is_well
    assert re.fullmatch(r"node, valid until \d{4}-\d\d-\d\d", detail)


@pytest.mark.parametrize(
    ("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True), (0o602, True)]
)
def test_check_warns_of_an_open_key(
    node: CertificateFiles, tmp_path: Path, free_port: Callable[[], int], mode: int, warned: bool
) -> None:
    """Everybody on the machine could pose as the node; a group that may only read is trusted."""
    node.key.chmod(mode)
    found = _checked(tmp_path, node, free_port())
    assert all(is_well for is_well, _ in found)
    assert warned == any(detail.startswith("warning: others can read or replace") for _, detail in found)


def test_check_fails_on_what_peers_will_refuse(ca: Authority, tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Expired, and files that do not go together, each in its own sentence; what ends soon is a note."""
    old = ca.issue("old", starts=datetime.now(UTC) - timedelta(days=20), days=10)
    soon = ca.issue("soon", days=10)
    ((is_well, detail),) = _checked(tmp_path, old, free_port())
    assert not is_well
    assert "old.pem: expired on " in detail
    ((is_well, detail),) = _checked(tmp_path, replace(soon, key=old.key), free_port())
    assert not is_well
    assert "does not belong to the key in" in detail
    (_, (is_well, note)) = _checked(tmp_path, soon, free_port())
    assert is_well
    assert re.search(r"^note: .*soon.pem: expires on .*, in 9 days; renew it$", note)


def test_a_taken_tls_port_is_found_before_the_roles_start(node: CertificateFiles, tmp_path: Path) -> None:
    """A node whose TLS port another program has does not begin to restart its receiver for ever."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        tls = TlsSettings(
            port=other.getsockname()[1], certificate=str(node.certificate), key=str(node.key), ca=str(node.ca)
        )
        config = Config(receive=ReceiveSettings(port=peers.free_port(), tls=tls))
        assert f"127.0.0.1:{tls.port}: Address already in use" == taken_port(config)
    assert None is taken_port(config)
