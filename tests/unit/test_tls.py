"""DICOM TLS without a network: its keys in config.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_node.config import Config, parse_toml
from dicom_node.config.checks import CONFIG_CHECKS
from dicom_node.errors import ConfigError

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
