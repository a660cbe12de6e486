"""DICOM TLS: what both sides of a connection must show, from the files of [receive.tls], read anew when they change.

The profile is "BCP 195 RFC 8996, 9325 TLS" (DICOM PS3.15 B.12), which asks for what RFC 9325 recommends; B.9 to B.11
(BCP 195, Non-Downgrading, Extended) are its retired predecessors. Authentication is always mutual. The name in a
certificate is not compared with an address: devices are addressed by numbers that their certificates do not carry. So
the CA decides who gets in, and the list of peers who may do what.

Nothing here opens a socket, and no sentence quotes from a private key.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from dicom_node.clock import Clock
from dicom_node.config.schema import TlsSettings
from dicom_node.errors import DicomNodeError
from dicom_node.logs import Log

EXPIRES_SOON: Final = timedelta(days=30)

_CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    ":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:@SECLEVEL=2"
)
"""Of TLS 1.2: the four that RFC 9325 4.2 recommends; TLS 1.3 has no weak ones. Level 2 of OpenSSL refuses keys and
signatures of less than 112 bits of strength (RSA 2048, curves of 224), as RFC 9325 4.5 does."""
_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which Python does not name: `examine` judges dates by the time it is given."""
_LOOK_S: Final = 1.0
"""How long a look at the files is believed."""

_UNUSABLE: Final[Mapping[str, str]] = {
    "KEY_VALUES_MISMATCH": "does not belong to the key in {key}; take the pair that was made together",
    "NO_CERTIFICATE_ASSIGNED": "does not belong to the key in {key}; take the pair that was made together",
    "EE_KEY_TOO_SMALL": "its key is too short; RSA needs 2048 bits, an elliptic curve 224",
}
"""Reason of OpenSSL -> what is wrong with our certificate."""

_NOT_SIGNED: Final = frozenset({18, 19, 20, 21})
_INVALID_PURPOSE: Final = 26
"""Results of a verification (X509_V_ERR_...): a chain that ends in no known CA; an extended key usage that forbids."""

_VERIFY_WORDS: Final[Mapping[int, str]] = {
    **dict.fromkeys(_NOT_SIGNED, "the peer's certificate is not signed by a CA of `ca` in [receive.tls]"),
    9: "the peer's certificate is not valid yet; compare the clocks",
    10: "the peer's certificate has expired",
    _INVALID_PURPOSE: "the peer's certificate is not made for this side of a connection; see its extended key usage",
}
_HANDSHAKE_WORDS: Final[Mapping[str, str]] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate",
    "UNSUPPORTED_PROTOCOL": "the peer offers no TLS from version 1.2 on",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer accepts no TLS from version 1.2 on",
    "NO_SHARED_CIPHER": "the peer offers no cipher suite of PS3.15 B.12",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer accepts none of our cipher suites, or misses a certificate",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS, perhaps plain DICOM",
    "HTTP_REQUEST": "the peer speaks HTTP",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not know the CA of our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer misses our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refuses our certificate for this side of a connection",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate",
}


class CertificateError(DicomNodeError):
    """The files of [receive.tls] cannot serve; `dicom-node check` says what is wrong."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Where our certificate, its key and the CAs lie; all PEM."""

    certificate: Path
    key: Path
    ca: Path

    @classmethod
    def of(cls, settings: TlsSettings, folder: Path) -> CertificateFiles:
        """Return the files that `settings` name; relative ones lie in `folder`, that of the configuration file."""
        return cls(certificate=folder / settings.certificate, key=folder / settings.key, ca=folder / settings.ca)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateReport:
    """What peers will think of the files."""

    subject: str
    """Of our certificate."""
    not_after: datetime | None
    """When our certificate expires, aware, in UTC; None when its extended key usage keeps it from being tried."""
    is_current: bool
    """Whether now lies within the dates of our certificate, as far as they are known."""
    problems: tuple[str, ...]
    """Why connections will fail, one sentence each with its remedy."""
    notes: tuple[str, ...]
    """What will not last."""


def server_context(files: CertificateFiles) -> ssl.SSLContext:
    """Return the context of the TLS port.

    Raises
    ------
    CertificateError
        When a file cannot be read or used, or certificate and key do not belong together.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    # No tickets: a resumed session would not show its certificate again, which may have expired meanwhile.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def client_context(files: CertificateFiles) -> ssl.SSLContext:
    """Return the context for calling peers, with the certificate of the TLS port.

    In TLS 1.3 a client has shaken hands before the peer judges its certificate: a refusal comes with the first read.

    Raises
    ------
    CertificateError
        As `server_context` does.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, files)


def handshake_reason(error: OSError) -> str:
    """Return in words why a handshake failed, or the first read after it; for logs, and for who called the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        known = _VERIFY_WORDS.get(error.verify_code)
        return known or f"the peer's certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "the peer did not finish the handshake in time"
    if isinstance(error, ssl.SSLError) and error.reason in _HANDSHAKE_WORDS:
        return _HANDSHAKE_WORDS[error.reason]
    if isinstance(error, ConnectionError | ssl.SSLEOFError):
        return "the peer ended the connection during the handshake"
    return f"the handshake failed: {_code(error)}"


class Certificates:
    """The contexts of the files as they are now: renewed files count from the next connection on.

    Safe to use from many threads. New files that cannot serve, or whose certificate is not valid now, are reported once
    and change nothing.

    Raises
    ------
    CertificateError
        When the files cannot serve at the start. What only peers may refuse is a warning.
    """

    def __init__(self, files: CertificateFiles, *, clock: Clock, log: Log) -> None:
        self._files = files
        self._clock = clock
        self._log = log
        self._lock = threading.Lock()
        self._looked_s = clock.monotonic()
        self._seen = _state(files)
        self._server, self._client = server_context(files), client_context(files)
        for problem in examine(files, clock.now()).problems:
            log.warning("certificate.doubtful", reason=problem)

    def server(self) -> ssl.SSLContext:
        """Return the context for a connection that comes in."""
        with self._lock:
            self._look()
            return self._server

    def client(self) -> ssl.SSLContext:
        """Return the context for a connection that goes out."""
        with self._lock:
            self._look()
            return self._client

    def reload(self) -> None:
        """Look at the files now, however short ago the last look was."""
        with self._lock:
            self._looked_s = self._clock.monotonic() - _LOOK_S
            self._look()

    def _look(self) -> None:
        """Replace the contexts when the files have changed since the last look."""
        if self._clock.monotonic() - self._looked_s < _LOOK_S:
            return
        self._looked_s = self._clock.monotonic()
        state = _state(self._files)  # before they are read: what changes meanwhile shows at the next look
        if state == self._seen:
            return
        self._seen = state
        try:
            server, client = server_context(self._files), client_context(self._files)
            report = examine(self._files, self._clock.now())
            if not report.is_current:
                raise CertificateError("; ".join(report.problems))
        except CertificateError as error:
            self._log.error("certificate.kept_back", reason=str(error))
            return
        self._server, self._client = server, client
        self._log.info("certificate.renewed", file=str(self._files.certificate))


def examine(files: CertificateFiles, now: datetime) -> CertificateReport:
    """Try the files as a peer that trusts the same CAs would, in memory, and judge their dates by `now`.

    Raises
    ------
    CertificateError
        When a file cannot be read or used, or certificate and key do not belong together.
    """
    problems, notes = [], []
    own: Mapping[str, Any] = {}
    try:
        own = _shown(replace(files, ca=files.certificate), ssl.VERIFY_X509_PARTIAL_CHAIN)
        _shown(files)
    except ssl.SSLError as error:
        problems.append(_refusal(files, error))
    outdated = _outdated(f"{files.certificate}", own, now)
    problems += outdated
    notes += [] if outdated else _expiring(f"{files.certificate}", own, now)
    _judge_authorities(files, own, now, problems, notes)
    return CertificateReport(
        subject=_subject(own),
        not_after=_time(own, "notAfter"),
        is_current=not outdated,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _context(protocol: int, files: CertificateFiles) -> ssl.SSLContext:
    """Return a context of the profile with our certificate, for either side."""
    _check_pem(files.certificate, b"CERTIFICATE-----", "certificate")
    _check_pem(files.key, b"PRIVATE KEY-----", "private key")
    _check_pem(files.ca, b"CERTIFICATE-----", "certificate")
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION  # RFC 9325 3.3 and 3.5
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except (ssl.SSLError, OSError) as error:
        words = _UNUSABLE.get(_code(error), "cannot be used together with {key}: " + _code(error))
        raise CertificateError(f"{files.certificate}: {words.format(key=files.key)}") from error
    try:
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError) as error:
        raise CertificateError(f"{files.ca}: a certificate in it is damaged: {_code(error)}") from error
    return context


def _check_pem(path: Path, mark: bytes, what: str) -> None:
    """Refuse a file that holds nothing of the kind, before OpenSSL says less."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror}; see [receive.tls]") from error
    if mark not in content:
        raise CertificateError(f"{path}: holds no {what} in PEM form; convert it, and see [receive.tls]")


def _refuse_password() -> NoReturn:
    raise CertificateError("the private key of [receive.tls] has a password; nobody is there to type it when we start")


def _code(error: OSError) -> str:
    """Return OpenSSL's word for an error, never its position in a source file."""
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return reason or type(error).__name__


def _shown(files: CertificateFiles, flags: int = 0) -> Mapping[str, Any]:
    """Shake hands with ourselves, whatever the date, and return our certificate as a peer sees it."""
    client, server = client_context(files), server_context(files)
    for context in (client, server):
        context.verify_flags |= flags | _NO_CHECK_TIME
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(to_client, to_server)
    waiting = [caller, server.wrap_bio(to_server, to_client, server_side=True)]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    return caller.getpeercert() or {}


def _refusal(files: CertificateFiles, error: ssl.SSLError) -> str:
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else None
    if code in _NOT_SIGNED:
        remedy = f"add that of its CA there, and those of intermediate CAs to {files.certificate.name}"
        return f"{files.certificate}: not signed by a CA in {files.ca}; {remedy}"
    if code == _INVALID_PURPOSE:
        remedy = "ask for one whose extended key usage names server and client authentication"
        return f"{files.certificate}: not made for both sides of a connection; {remedy}"
    words = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else _code(error)
    return f"{files.certificate}: peers will refuse it: {words}"


def _judge_authorities(
    files: CertificateFiles, own: Mapping[str, Any], now: datetime, problems: list[str], notes: list[str]
) -> None:
    """Add what the dates of the CAs mean: one old CA in a bundle is no harm, none that is valid admits nobody."""
    known = [(f"the CA {_subject(ca)} in {files.ca}", ca) for ca in _cas(files.ca)]
    ours = [ca for ca in _cas(files.certificate) if ca.get("serialNumber") != own.get("serialNumber")]
    intermediate = [(f"the CA {_subject(ca)} in {files.certificate}", ca) for ca in ours]
    outdated = [sentence for name, ca in known for sentence in _outdated(name, ca, now)]
    (problems if len(outdated) == len(known) else notes).extend(outdated)
    problems += [sentence for name, ca in intermediate for sentence in _outdated(name, ca, now)]
    notes += [sentence for name, ca in known + intermediate for sentence in _expiring(name, ca, now)]


def _cas(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the certificates of CAs in a file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    yield from context.get_ca_certs()


def _outdated(name: str, certificate: Mapping[str, Any], now: datetime) -> list[str]:
    """Return that the certificate is not valid now, in one sentence, or nothing."""
    begins, ends = _time(certificate, "notBefore"), _time(certificate, "notAfter")
    if ends is not None and ends < now:
        return [f"{name}: expired on {ends:%Y-%m-%d}; renew it"]
    if begins is not None and begins > now:
        return [f"{name}: not valid before {begins:%Y-%m-%d %H:%M} UTC; check this machine's clock, or wait"]
    return []


def _expiring(name: str, certificate: Mapping[str, Any], now: datetime) -> list[str]:
    """Return that the certificate will soon expire, in one sentence, or nothing."""
    ends = _time(certificate, "notAfter")
    if ends is None or not now <= ends < now + EXPIRES_SOON:
        return []
    return [f"{name}: expires on {ends:%Y-%m-%d}, in {(ends - now).days} days; renew it"]


def _time(certificate: Mapping[str, Any], key: str) -> datetime | None:
    text = certificate.get(key)
    return None if text is None else datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)


def _subject(certificate: Mapping[str, Any]) -> str:
    """Return the common name; of a certificate without one, all that its subject says."""
    parts = dict(pair for group in certificate.get("subject", ()) for pair in group)
    return str(parts.get("commonName") or ", ".join(map(str, parts.values())) or "without a name")


def _state(files: CertificateFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what changes when a file is written or replaced; None stands for one that is not there."""
    found: list[tuple[int, int, int] | None] = []
    for path in (files.certificate, files.key, files.ca):
        try:
            stat = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return tuple(found)
