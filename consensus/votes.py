"""Votes: what a validator signs, and the exact bytes under the signature (consensus.md 1.9).

All votes share one 99-byte layout. The kind is part of it, so a PREPARE can never be replayed as
a COMMIT; mesh, epoch, view and sequence are part of it, so nothing can be replayed elsewhere.
The fields are reused rather than renamed: an ATTEST or CANDIDATE carries the attempt as its view
and the checkpoint height as its sequence; a STABLE belongs to no view and carries 0. A READY
says that a validator of a new epoch holds the ledger at which that epoch starts.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import Reader
from shoal.consensus.validators import Verifier

VOTE_DOMAIN = b"SHOAL-BFT\x01"
_SIGNED = struct.Struct(">10sB32sQQQ32s")
_WIRE = struct.Struct(">BQQQ32sB64s")
_WIRE_AFTER_KIND = struct.Struct(">QQQ32sB64s")


class VoteKind(IntEnum):
    PRE_PREPARE = 1
    PREPARE = 2
    COMMIT = 3
    STABLE = 4
    ATTEST = 5
    CANDIDATE = 6
    READY = 7


def vote_bytes(
    kind: VoteKind, *, mesh_id: bytes, epoch: int, view: int, sequence: int, digest: bytes
) -> bytes:
    """The 99 bytes that a vote of this kind signs."""
    return _SIGNED.pack(VOTE_DOMAIN, kind, mesh_id, epoch, view, sequence, digest)


@dataclass(frozen=True, slots=True)
class Vote:
    """One signed vote. `signer` is an index into the epoch's validators, `signature` 64 bytes."""

    kind: VoteKind
    epoch: int
    view: int
    sequence: int
    digest: bytes
    signer: int
    signature: bytes

    def signed_bytes(self, mesh_id: bytes) -> bytes:
        return _SIGNED.pack(
            VOTE_DOMAIN, self.kind, mesh_id, self.epoch, self.view, self.sequence, self.digest
        )

    def to_bytes(self) -> bytes:
        return _WIRE.pack(
            self.kind,
            self.epoch,
            self.view,
            self.sequence,
            self.digest,
            self.signer,
            self.signature,
        )

    def verified_by(self, verifier: Verifier) -> bool:
        message = self.signed_bytes(verifier.validators.mesh_id)
        return verifier.check(self.signer, message, self.signature)


def read_vote(kind: VoteKind, reader: Reader) -> Vote:
    """The rest of a vote whose kind byte has been read already."""
    return Vote(kind, *reader.unpack(_WIRE_AFTER_KIND))


def require_signature(vote: Vote, verifier: Verifier) -> None:
    """Raise ConsensusError unless the vote is of this epoch and really its signer's."""
    if vote.epoch != verifier.validators.epoch:
        raise ConsensusError("wrong-epoch", str(vote.epoch))
    if not vote.verified_by(verifier):
        raise ConsensusError("bad-signature", vote.kind.name.lower())
