"""Certificates: a node's Ed25519 identity is the certificate authority of its own TLS leaf.

gRPC refuses Ed25519 keys in TLS, but accepts an Ed25519 authority above a P-256 leaf. So whoever
knows a node's id knows the only authority that its leaf may come from: everything in that
authority's certificate follows from the id, and each side builds it for itself. It never travels,
and nobody's signature is on it that anyone checks: it is trusted because it is in the list.

The authority may speak for one name, `<id>.mesh`; a leaf for somebody else's name is refused in
the handshake.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.node.errors import PeerError
from shoal.node.identity import Identity, id_text, parse_id_text, verify

LEAF_LIFETIME_S = 24 * 3600.0
# Part of the lifetime lies in the past, for clocks that are behind this one.
BACKDATED_S = 3600.0
# When so much of the lifetime is over, the next leaf is made.
ROTATE_AFTER = 2 / 3
# Anchors are made again when asked for, so this is only how many are kept ready.
_ANCHORS_KEPT = 4096
_LEAVES_KEPT = 1024
# What the library says of bytes that are no certificate, or one that no node makes.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
# Whose signature stands on an anchor does not matter, but one has to.
_NOBODY = Ed25519PrivateKey.generate()


def host_name(node_id: bytes) -> str:
    """The name in a node's leaf: what a client says it wants to talk to."""
    return f"{id_text(node_id)}.mesh"


def _name(node_id: bytes) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, id_text(node_id))])


def _only(usage: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{each: each == usage for each in _USAGES})


@lru_cache(maxsize=_ANCHORS_KEPT)
def trust_anchor(node_id: bytes) -> bytes:
    """The certificate, as PEM, under which only leaves of this node are valid.

    Raises ValueError where the id is no Ed25519 public key.
    """
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(node_id))
        .issuer_name(_name(node_id))
        .public_key(Ed25519PublicKey.from_public_bytes(node_id))
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_only("key_cert_sign"), critical=True)
        .add_extension(
            x509.NameConstraints([x509.DNSName(host_name(node_id))], None), critical=True
        )
        .sign(_NOBODY, None)
    )
    return certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a node shows in a handshake; times are seconds since 1970."""

    key: bytes
    certificate: bytes
    not_after: float
    rotate_at: float


def issue_leaf(identity: Identity, now: float) -> Leaf:
    """Make a fresh P-256 key and certify it for `LEAF_LIFETIME_S` from an hour before `now`.

    now: seconds since 1970. The key is only ever in memory.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    start = datetime.fromtimestamp(int(now - BACKDATED_S), UTC)
    end = start + timedelta(seconds=LEAF_LIFETIME_S)
    name = x509.DNSName(host_name(identity.node_id))
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(_name(identity.node_id))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_only("digital_signature"), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
    )
    return Leaf(
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate=identity.certify(builder).public_bytes(Encoding.PEM),
        not_after=end.timestamp(),
        rotate_at=start.timestamp() + LEAF_LIFETIME_S * ROTATE_AFTER,
    )


@dataclass(frozen=True, slots=True)
class Presented:
    """What a leaf says once it has been checked: whose it is and when it counts (since 1970, s)."""

    node_id: bytes
    not_before: float
    not_after: float


@lru_cache(maxsize=_LEAVES_KEPT)
def read_leaf(pem: bytes) -> Presented:
    """Whose leaf this is, by the signature on it; raises PeerError("bad-certificate").

    The handshake has checked the chain already. This is the second look that does not depend on
    the library's rules for chains and names: one issuer, one name, one signature.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        (issuer,) = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        node_id = parse_id_text(str(issuer.value))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        signed, signature = certificate.tbs_certificate_bytes, certificate.signature
    except _UNREADABLE as error:
        raise PeerError("bad-certificate", str(error) or type(error).__name__) from None
    if list(names) != [x509.DNSName(host_name(node_id))]:
        raise PeerError("bad-certificate", "a leaf for another name than its issuer's")
    if not verify(node_id, signed, signature):
        raise PeerError("bad-certificate", "the signature of a leaf")
    return Presented(
        node_id,
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )
