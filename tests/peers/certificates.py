"""A CA for tests, and certificates that are good or wrong in one way. Keys live in the test's own folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from dicom_node.dimse.tls import CertificateFiles

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

BOTH_SIDES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
SERVER_ONLY = (ExtendedKeyUsageOID.SERVER_AUTH,)


def elliptic_key() -> PrivateKey:
    """Return a key on P-256: made in no time."""
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key(bits: int = 2048) -> PrivateKey:
    """Return an RSA key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A CA with its files in one folder, where the certificates that it signs are written, too."""

    folder: Path
    name: str
    certificate: x509.Certificate
    key: PrivateKey
    parent: Authority | None = None

    @property
    def file(self) -> Path:
        """The PEM file with its certificate."""
        return self.folder / f"{self.name}.pem"

    def issue(
        self,
        name: str,
        *,
        starts: datetime | None = None,
        days: float = 365,
        usage: Sequence[ObjectIdentifier] = BOTH_SIDES,
        key: PrivateKey | None = None,
    ) -> CertificateFiles:
        """Write a certificate with its key and return where; `starts`: an hour ago by default."""
        key = key or elliptic_key()
        certificate = _signed(name, key, self, starts=starts, days=days, usage=usage)
        files = CertificateFiles(
            certificate=self.folder / f"{name}.pem", key=self.folder / f"{name}.key", ca=_root(self).file
        )
        chain = [certificate, *([self.certificate] if self.parent else [])]
        _written(files.certificate, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain))
        _written(files.key, _pem_key(key), mode=0o600)
        return files


def authority(
    folder: Path,
    name: str = "test-ca",
    *,
    starts: datetime | None = None,
    days: float = 3650,
    parent: Authority | None = None,
) -> Authority:
    """Return a new CA, signed by itself or by `parent`."""
    folder.mkdir(parents=True, exist_ok=True)
    key = elliptic_key()
    certificate = _signed(name, key, parent, starts=starts, days=days, usage=())
    made = Authority(folder=folder, name=name, certificate=certificate, key=key, parent=parent)
    _written(made.file, certificate.public_bytes(serialization.Encoding.PEM))
    return made


def lock(key: Path, password: bytes) -> None:
    """Put a password on a key file."""
    opened = serialization.load_pem_private_key(key.read_bytes(), None)
    protected = opened.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password),
    )
    _written(key, protected, mode=0o600)


def _root(one: Authority) -> Authority:
    return one if one.parent is None else _root(one.parent)


def _signed(
    name: str,
    key: PrivateKey,
    issuer: Authority | None,
    *,
    starts: datetime | None,
    days: float,
    usage: Sequence[ObjectIdentifier],
) -> x509.Certificate:
    """Return a certificate; one without `usage` is a CA's."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    starts = starts or datetime.now(UTC) - timedelta(hours=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=not usage, path_length=None), critical=True)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(issuer.key if issuer else key, hashes.SHA256())


def _pem_key(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _written(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file as an administrator should: beside, then renamed."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.chmod(mode)
    beside.replace(path)
