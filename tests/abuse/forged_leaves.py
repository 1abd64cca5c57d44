"""Leaves as no honest node makes them, and a TLS client that does what gRPC's would not."""

import socket
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.node.certificates import Leaf, host_name
from shoal.node.identity import Identity, id_text


def forge(
    signer: Identity,
    *,
    issuer: bytes | None = None,
    names: list[str] | None = None,
    start_s: float = -60.0,
    end_s: float = 3600.0,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.CLIENT_AUTH,
    ed25519: bool = False,
    self_signed: bool = False,
    intermediate: bool = False,
) -> Leaf:
    """A leaf signed by `signer`, in its own name unless told otherwise; times are from now."""
    key: Any = Ed25519PrivateKey.generate() if ed25519 else ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    names = [host_name(signer.node_id)] if names is None else names
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(_name(id_text(issuer or signer.node_id)))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(seconds=start_s))
        .not_valid_after(now + timedelta(seconds=end_s))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=True)
    chain = b""
    if self_signed:
        certificate = builder.sign(key, hashes.SHA256())
    elif intermediate:
        middle = ec.generate_private_key(ec.SECP256R1())
        certificate, chain = _under(signer, middle, builder)
    else:
        certificate = signer.certify(builder)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Leaf(pem, certificate.public_bytes(Encoding.PEM) + chain, 0.0, 0.0)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _under(
    signer: Identity, middle: ec.EllipticCurvePrivateKey, builder: x509.CertificateBuilder
) -> tuple[x509.Certificate, bytes]:
    """The leaf under an authority that the identity made, and that authority's certificate."""
    now = datetime.now(UTC)
    authority = signer.certify(
        x509.CertificateBuilder()
        .subject_name(_name(id_text(signer.node_id)))
        .issuer_name(_name(id_text(signer.node_id)))
        .public_key(middle.public_key())
        .serial_number(2)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return builder.sign(middle, hashes.SHA256()), authority.public_bytes(Encoding.PEM)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def _literal(name: bytes, value: bytes) -> bytes:
    # A header that is neither compressed nor remembered (RFC 7541, 6.2.2).
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_bytes(path: bytes) -> bytes:
    """An HTTP/2 connection's first bytes and one gRPC call with an empty message (RFC 9113)."""
    headers = b"".join(
        _literal(name, value)
        for name, value in (
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path),
            (b":authority", b"node"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, b"")
        + _frame(1, 4, 1, headers)
        + _frame(0, 1, 1, bytes(5))
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a call over a raw TLS connection."""

    version: str | None
    resumed: bool | None
    heard: bytes


class RawClient:
    """Speaks TLS with the standard library, so that it can resume and go back to older versions."""

    def __init__(self, leaf: Leaf, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.maximum_version = newest
        self._context.set_alpn_protocols(["h2"])
        with _files(leaf) as (certificate, key):
            self._context.load_cert_chain(certificate, key)
        self.session: ssl.SSLSession | None = None

    def call(self, address: str, path: bytes) -> Answer:
        """Make one call, resuming the session of the one before; what came back, unread."""
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=5) as connection,
            self._context.wrap_socket(connection, session=self.session) as secured,
        ):
            heard = b""
            secured.sendall(call_bytes(path))
            secured.settimeout(1.0)
            try:
                while data := secured.recv(4096):
                    heard += data
            except OSError:
                # It says no more; or it has hung up with an alert.
                pass
            self.session = secured.session
            return Answer(secured.version(), secured.session_reused, heard)


@contextmanager
def _files(leaf: Leaf) -> Iterator[tuple[Path, Path]]:
    # The standard library reads certificates from files only.
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "certificate", Path(folder) / "key"
        certificate.write_bytes(leaf.certificate)
        key.write_bytes(leaf.key)
        yield certificate, key
