"""Signatures for simulated nodes: a memory of what was signed as a rule, real Ed25519 in some.

The fake is unforgeable inside the simulation: a signature is valid when the key's own signer
made it for this very message, and adversaries are only ever given the signers of liars.
"""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.consensus.validators import Sign


class Keyring:
    """Makes identities from names, and verifies what they sign."""

    def __init__(self, seed: str, *, real: bool) -> None:
        self._seed = seed
        self._real = real
        # Fake: signature -> (public key, message). Real: those found valid before.
        self._signed: dict[bytes, tuple[bytes, bytes]] = {}

    def identity(self, name: str) -> tuple[bytes, Sign]:
        """(public key, sign function), the same for the same name."""
        secret = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        if self._real:
            private = Ed25519PrivateKey.from_private_bytes(secret)
            return private.public_key().public_bytes_raw(), private.sign
        public = hashlib.sha256(b"public" + secret).digest()
        return public, self._fake_signer(public, secret)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        if self._signed.get(signature) == (public, message):
            return True
        if not self._real:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        self._signed[signature] = (public, message)
        return True

    def _fake_signer(self, public: bytes, secret: bytes) -> Sign:
        def sign(message: bytes) -> bytes:
            signature = hashlib.blake2b(message, key=secret, digest_size=64).digest()
            self._signed[signature] = (public, message)
            return signature

        return sign
