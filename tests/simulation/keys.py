"""Signatures for simulated nodes: keyed BLAKE2 as a rule, real Ed25519 in some schedules.

The fake is unforgeable inside the simulation, because verification looks the secret up by the
public key and adversaries are only ever given their own signer.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.consensus.records import Join
from shoal.consensus.validators import Sign


class Keyring:
    """Makes identities from names, and verifies what they sign."""

    def __init__(self, seed: str, *, real: bool) -> None:
        self._seed = seed
        self._real = real
        self._secrets: dict[bytes, bytes] = {}

    def identity(self, name: str) -> tuple[bytes, Sign]:
        """(public key, sign function), the same for the same name."""
        secret = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        if self._real:
            private = Ed25519PrivateKey.from_private_bytes(secret)
            return private.public_key().public_bytes_raw(), private.sign
        public = hashlib.sha256(b"public" + secret).digest()
        self._secrets[public] = secret
        return public, _fake_signer(secret)

    def verify(self, public: bytes, message: bytes, signature: bytes) -> bool:
        if self._real:
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
            except (InvalidSignature, ValueError):
                return False
            return True
        secret = self._secrets.get(public)
        return secret is not None and _fake_signer(secret)(message) == signature


def _fake_signer(secret: bytes) -> Callable[[bytes], bytes]:
    def sign(message: bytes) -> bytes:
        return hashlib.blake2b(message, key=secret, digest_size=64).digest()

    return sign


def make_join(keyring: Keyring, mesh_id: bytes, number: int) -> Join:
    """A valid Join of a member of its own for each number."""
    public, sign = keyring.identity(f"joiner{number}")
    unsigned = Join(
        member=public,
        address=f"host{number}:7400",
        shard_tokens=10 + number,
        share_permille=500,
        time_ms=1 + number,
    )
    return replace(unsigned, signature=sign(unsigned.signed_bytes(mesh_id)))
