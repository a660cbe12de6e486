"""DICOM TLS without a network: its keys in config.toml, and what is said about certificates before they serve."""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.clock import ManualClock
from dicom_node.config import Config, parse_toml
from dicom_node.config.checks import CONFIG_CHECKS
from dicom_node.config.schema import TlsSettings
from dicom_node.dimse.tls import (
    CertificateError,
    CertificateFiles,
    Certificates,
    client_context,
    examine,
    handshake_reason,
    server_context,
)
from dicom_node.errors import ConfigError
from dicom_node.logs import Log
from tests.peers.certificates import SERVER_ONLY, Authority, authority, lock, rsa_key

FILES = 'certificate = "node.pem"\nkey = "node.key"\nca = "ca.pem"\n'
TLS_PEER = '[[peer]]\nname = "ct"\nae_title = "CT"\ntls = true\n'


def _checked(text: str) -> Config:
    return parse_toml(text, Path("config.toml"), Config, CONFIG_CHECKS)


# ---------------------------------------------------------------------------------------------------- config.toml


def test_without_the_table_there_is_no_tls_port() -> None:
    """A node that was just unpacked listens without TLS, and calls nobody by it."""
    config = _checked('[[peer]]\nname = "ct"\nae_title = "CT"\n')
    assert (None, False) == (config.receive.tls, config.peer[0].tls)


def test_three_files_make_a_tls_port() -> None:
    """Port and host have defaults: dicom-tls, and the host of [receive]."""
    tls = _checked(f"[receive.tls]\n{FILES}{TLS_PEER}").receive.tls
    assert tls is not None
    assert (2762, None, "node.pem", "node.key", "ca.pem") == (tls.port, tls.host, tls.certificate, tls.key, tls.ca)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[receive.tls]\ncertificate = "a"\nkey = "b"', '1: [receive.tls] needs the key "ca"'),
        (f"[receive.tls]\n{FILES}cas = 1", '5: unknown key "cas" in [receive.tls]; did you mean "ca"?'),
        (f"[receive.tls]\n{FILES}port = 0", '5: "port" in [receive.tls] must be at least 1, not 0'),
        (
            f"[receive.tls]\n{FILES.replace('node.key', '')}",
            '3: "key" in [receive.tls] must have at least 1 characters',
        ),
        (
            f"[receive.tls]\n{FILES}port = 11112",
            "5: port 11112 is that of [receive] already; TLS listens on another one",
        ),
        (
            f"[receive]\nport = 2762\n[receive.tls]\n{FILES}",
            "3: port 2762 is that of [receive] already; TLS listens on another one",
        ),
        (TLS_PEER, '4: [[peer]] "ct" needs the table [receive.tls]: its certificate is ours'),
        ("[receive]\nmax_pending = 0", '2: "max_pending" in [receive] must be at least 1, not 0'),
        (
            "[receive]\nmax_associations_per_address = 0",
            '2: "max_associations_per_address" in [receive] must be at least 1, not 0',
        ),
        ("[receive]\nmin_rate = -1", '2: "min_rate" in [receive] must be at least 0, not -1'),
        ("[storage]\njournal_mb = -1", '2: "journal_mb" in [storage] must be at least 0, not -1'),
        (
            '[receive]\nother_storage_classes = "keep"',
            '2: "other_storage_classes" in [receive] must be "file" or "reject", not the text "keep"',
        ),
    ],
)
def test_each_mistake_has_its_line(text: str, problem: str) -> None:
    """The keys of TLS and of the limits fail as plainly as the others."""
    with pytest.raises(ConfigError) as caught:
        _checked(text)
    assert [f"config.toml:{problem}"] == str(caught.value).splitlines()


def test_one_port_on_two_addresses_is_no_clash() -> None:
    """The plain port may stay on loopback while TLS has the same number on a network card."""
    tls = _checked(f'[receive]\nport = 2762\n[receive.tls]\nhost = "10.0.0.1"\n{FILES}').receive.tls
    assert tls is not None
    assert "10.0.0.1" == tls.host


# -------------------------------------------------------------------------------------------------------- contexts

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR_START = datetime(2026, 1, 1, tzinfo=UTC)
FOUR_SUITES = {
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
}


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    """Return a CA of the year 2026 and after."""
    return authority(tmp_path, starts=YEAR_START)


@pytest.fixture
def files(ca: Authority) -> CertificateFiles:
    """Return files of ours that are well."""
    return ca.issue("node", starts=YEAR_START)


def test_files_lie_beside_the_configuration() -> None:
    """Relative names do not depend on the working folder; absolute ones stand."""
    settings = TlsSettings(certificate="tls/node.pem", key="node.key", ca="/etc/ssl/ca.pem")
    expected = CertificateFiles(
        certificate=Path("/etc/dicom-node/tls/node.pem"),
        key=Path("/etc/dicom-node/node.key"),
        ca=Path("/etc/ssl/ca.pem"),
    )
    assert expected == CertificateFiles.of(settings, Path("/etc/dicom-node"))


@pytest.mark.parametrize("context_of", [server_context, client_context])
def test_both_sides_keep_the_profile(
    context_of: Callable[[CertificateFiles], ssl.SSLContext], files: CertificateFiles
) -> None:
    """PS3.15 B.12: TLS 1.2 and 1.3, the suites of RFC 9325 4.2, mutual, no renegotiation, no compression."""
    context = context_of(files)
    assert ssl.TLSVersion.TLSv1_2 == context.minimum_version
    assert ssl.TLSVersion.MAXIMUM_SUPPORTED == context.maximum_version
    assert ssl.CERT_REQUIRED == context.verify_mode
    suites = [suite for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.2"]
    assert FOUR_SUITES == {suite["name"] for suite in suites}
    wanted = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    assert wanted == context.options & wanted


def test_the_server_hands_out_no_tickets(files: CertificateFiles) -> None:
    """Neither of TLS 1.2 nor of 1.3."""
    context = server_context(files)
    assert ssl.OP_NO_TICKET == context.options & ssl.OP_NO_TICKET
    assert 0 == context.num_tickets


def _without(name: str) -> Callable[[CertificateFiles, Authority], CertificateFiles]:
    def spoil(files: CertificateFiles, _ca: Authority) -> CertificateFiles:
        getattr(files, name).unlink()
        return files

    return spoil


def _with(name: str, content: str) -> Callable[[CertificateFiles, Authority], CertificateFiles]:
    def spoil(files: CertificateFiles, _ca: Authority) -> CertificateFiles:
        getattr(files, name).write_text(content)
        return files

    return spoil


def _locked(files: CertificateFiles, _ca: Authority) -> CertificateFiles:
    lock(files.key, b"secret")
    return files


HALF = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
UNUSABLE = {
    "no certificate": (_without("certificate"), "node.pem: cannot be read: No such file or directory"),
    "no key": (_without("key"), "node.key: cannot be read: No such file or directory"),
    "no ca": (_without("ca"), "test-ca.pem: cannot be read: No such file or directory"),
    "certificate in DER": (_with("certificate", "0\x82"), "node.pem: holds no certificate in PEM form; convert it"),
    "key that is none": (_with("key", HALF), "node.key: holds no private key in PEM form; convert it"),
    "empty ca": (_with("ca", ""), "test-ca.pem: holds no certificate in PEM form; convert it"),
    "damaged ca": (_with("ca", HALF), "test-ca.pem: a certificate in it is damaged: "),
    "damaged certificate": (_with("certificate", HALF), "node.pem: cannot be used together with "),
    "foreign key": (
        lambda files, ca: replace(files, key=ca.issue("other").key),
        "node.pem: does not belong to the key in ",
    ),
    "key of another kind": (
        lambda files, ca: replace(files, key=ca.issue("other", key=rsa_key()).key),
        "node.pem: does not belong to the key in ",
    ),
    "short key": (
        lambda _files, ca: ca.issue("short", key=rsa_key(1024)),
        "short.pem: its key is too short; RSA needs 2048 bits",
    ),
    "key with a password": (_locked, "the private key of [receive.tls] has a password; nobody is there to type it"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_files_that_cannot_serve_are_named(fault: str, files: CertificateFiles, ca: Authority) -> None:
    """Each way to get the files wrong has its own sentence, from either context and from the examination."""
    spoil, sentence = UNUSABLE[fault]
    spoilt = spoil(files, ca)
    for use in (server_context, client_context, lambda files: examine(files, NOW)):
        with pytest.raises(CertificateError) as caught:
            use(spoilt)
        assert sentence in str(caught.value)
        assert 2 == caught.value.exit_code


# ------------------------------------------------------------------------------------------------------ examination


def test_a_good_certificate_has_no_fault(files: CertificateFiles) -> None:
    """Signed by the CA, made for both sides, valid for long."""
    report = examine(files, NOW)
    assert ("node", YEAR_START + timedelta(days=365), True) == (report.subject, report.not_after, report.is_current)
    assert ((), ()) == (report.problems, report.notes)


def test_an_intermediate_ca_is_followed(ca: Authority, tmp_path: Path) -> None:
    """Its certificate stands behind ours in the same file."""
    intermediate = authority(tmp_path, "ward-ca", starts=YEAR_START, parent=ca)
    assert () == examine(intermediate.issue("node", starts=YEAR_START), NOW).problems


@pytest.mark.parametrize(
    ("now", "problem"),
    [
        (datetime(2027, 1, 2, tzinfo=UTC), "node.pem: expired on 2027-01-01; renew it"),
        (datetime(2025, 12, 31, tzinfo=UTC), "node.pem: not valid before 2026-01-01 00:00 UTC; check this machine's"),
    ],
)
def test_dates_are_judged_by_the_clock_that_is_passed_in(files: CertificateFiles, now: datetime, problem: str) -> None:
    """Before its first and after its last day a certificate is refused by every peer."""
    report = examine(files, now)
    assert not report.is_current
    assert problem in report.problems[0]


@pytest.mark.parametrize(
    ("before", "notes"),
    [
        (timedelta(days=31), []),
        (timedelta(days=30), []),
        (timedelta(days=30) - timedelta(seconds=1), ["expires on 2027-01-01, in 29 days; renew it"]),
        (timedelta(), ["expires on 2027-01-01, in 0 days; renew it"]),
        (timedelta(seconds=-1), []),
    ],
)
def test_expiry_within_30_days_is_noted(files: CertificateFiles, before: timedelta, notes: list[str]) -> None:
    """Time to renew; afterwards it is a problem and no note any more."""
    report = examine(files, YEAR_START + timedelta(days=365) - before)
    assert notes == [note.partition("node.pem: ")[2] for note in report.notes]


def test_a_certificate_of_another_ca_is_a_problem(files: CertificateFiles, tmp_path: Path) -> None:
    """Peers that know our CA alone would refuse us."""
    other = authority(tmp_path / "other", "other-ca", starts=YEAR_START)
    (problem,) = examine(replace(files, ca=other.file), NOW).problems
    assert "node.pem: not signed by a CA in " in problem
    assert "add that of its CA there" in problem


def test_a_missing_intermediate_ca_is_a_problem(ca: Authority, tmp_path: Path) -> None:
    """The chain breaks where its certificate is not shown."""
    intermediate = authority(tmp_path, "ward-ca", starts=YEAR_START, parent=ca)
    files = intermediate.issue("node", starts=YEAR_START)
    first, end, _ = files.certificate.read_text().partition("-----END CERTIFICATE-----\n")
    files.certificate.write_text(first + end)
    (problem,) = examine(files, NOW).problems
    assert "intermediate CAs to node.pem" in problem


def test_an_expired_intermediate_ca_is_a_problem(ca: Authority, tmp_path: Path) -> None:
    """The chain breaks there, however long our own certificate lasts."""
    intermediate = authority(tmp_path, "ward-ca", starts=YEAR_START, days=100, parent=ca)
    files = intermediate.issue("node", starts=YEAR_START)
    expected = f"the CA ward-ca in {files.certificate}: expired on 2026-04-11; renew it"
    assert (expected,) == examine(files, NOW).problems


def test_a_certificate_for_servers_alone_is_a_problem(ca: Authority) -> None:
    """We listen and we call: its extended key usage must allow both."""
    (problem,) = examine(ca.issue("node", starts=YEAR_START, usage=SERVER_ONLY), NOW).problems
    assert "server and client authentication" in problem


def test_an_expired_ca_is_a_problem_when_there_is_no_other(tmp_path: Path) -> None:
    """Nobody could be admitted; beside a valid CA the old one is a note."""
    old = authority(tmp_path, "old-ca", starts=YEAR_START, days=100)
    files = old.issue("node", starts=YEAR_START)
    (problem,) = examine(files, NOW).problems
    assert problem.startswith(f"the CA old-ca in {old.file}: expired on 2026-04-11")
    new = authority(tmp_path, "new-ca", starts=YEAR_START)
    old.file.write_bytes(old.file.read_bytes() + new.file.read_bytes())
    report = examine(files, NOW)
    assert ((), (problem,)) == (report.problems, report.notes)


def test_a_node_starts_with_an_expired_certificate_and_says_so(
    files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain port must not suffer: peers refuse the certificate, and the log says why."""
    caplog.set_level(logging.INFO)
    Certificates(files, clock=ManualClock(datetime(2028, 1, 1, tzinfo=UTC)), log=Log("receiver"))
    (line,) = [json.loads(record.getMessage()) for record in caplog.records]
    assert "certificate.doubtful" == line["action"]
    assert "expired on 2027-01-01" in line["reason"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), "the peer did not finish the handshake in time"),
        (ConnectionResetError(104, "reset"), "the peer ended the connection during the handshake"),
        (OSError(113, "No route to host"), "the handshake failed: No route to host"),
    ],
)
def test_a_failed_handshake_has_its_reason(error: OSError, reason: str) -> None:
    """What is no error of TLS is told as well."""
    assert reason == handshake_reason(error)
