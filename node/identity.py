"""Who a node is: one Ed25519 key pair. The public key is the node's id.

Every signature covers a domain tag first, so that bytes signed for one purpose can never be
shown as if they had been signed for another (consensus.md 1.9). The private key leaves this
module only as signatures.
"""

import base64
import binascii
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from shoal.node.errors import DamagedError, UserError

ID_BYTES = 32
SIGNATURE_BYTES = 64
LINK_DOMAIN = b"SHOAL-LINK\x01"


def short(node_id: bytes) -> str:
    """Return the first eight hex digits of an id: enough for a person to tell members apart."""
    return node_id.hex()[:8]


def id_text(node_id: bytes) -> str:
    """An id in 52 lower-case characters, which fit into a label of a DNS name; hex would not."""
    return base64.b32encode(node_id).decode().rstrip("=").lower()


def parse_id_text(text: str) -> bytes:
    """The id that `id_text` wrote; raises ValueError for any other text, be it as similar."""
    try:
        node_id = base64.b32decode(text.upper() + "====")
    except binascii.Error:
        node_id = b""
    if len(node_id) != ID_BYTES or id_text(node_id) != text:
        raise ValueError("not a node id in 52 characters of base32")
    return node_id


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` (64 bytes) over `message` was made by `public_key` (32 bytes)."""
    # libsodium: half the time of OpenSSL's Ed25519, and most of what a vote costs is this. It
    # accepts nothing that OpenSSL would not (keys of small order are refused as well).
    if len(public_key) != ID_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        return False
    return True


class Identity:
    """A node's key pair."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.node_id: bytes = key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `message`, which begins with its domain."""
        return self._key.sign(message)

    def certify(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a certificate. What is signed begins with a DER tag, which no domain begins with."""
        return builder.sign(self._key, None)

    def encrypted(self, passphrase: bytes) -> bytes:
        """The key as PKCS8 in PEM, to be read with the passphrase only."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )

    @classmethod
    def decrypted(cls, pem: bytes, passphrase: bytes) -> "Identity":
        """The key of `encrypted`; raises ValueError for a wrong passphrase or another content."""
        try:
            key = serialization.load_pem_private_key(pem, password=passphrase)
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(str(error)) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("not an Ed25519 key")
        return cls(key)

    @classmethod
    def generate(cls) -> "Identity":
        """A new key that is nowhere but in memory."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> "Identity":
        """Make a new key and write it to `path`, readable by its owner only.

        Raises UserError where a key is there already: overwriting one would lose an identity.
        """
        identity = cls.generate()
        identity.write(path)
        return identity

    def write(self, path: Path) -> None:
        """Write the key to a new file, readable by its owner only; raises UserError."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UserError(f"{path} exists already; a node's key is never overwritten") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read the key at `path`; raises UserError when missing, open to others or damaged."""
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            pem = path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"no identity key at {path}; make a node with `shoal init` or `shoal join`"
            ) from None
        except OSError as error:
            raise UserError(f"the identity key {path} cannot be read: {error.strerror}") from None
        if mode & 0o077:
            raise UserError(f"the identity key {path} is open to others; run: chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            raise DamagedError(
                f"the identity key {path} is damaged; restore it from your backup"
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise DamagedError(f"the identity key {path} is not an Ed25519 key")
        return cls(key)


def link_proof_bytes(mesh_id: bytes, signer: bytes, other: bytes, nonce: bytes) -> bytes:
    """Return what `signer` signs to prove to `other`, who chose `nonce`, that it holds its key."""
    return LINK_DOMAIN + mesh_id + signer + other + nonce
