"""Certificates: a quorum's signatures over one vote, in a form that a stranger can check.

One object serves four purposes: prepared (kind PREPARE), committed, stable and attested. In a
prepared certificate the primary's PRE-PREPARE signature counts as its vote, over the same
digest, so that certificate is Q signatures of two kinds (consensus.md 1.2).

The bitmap says who signed; the signatures follow in ascending order of index. Verification
checks ranges before it uses an index and counts distinct bits, never signatures
(CometBFT ASA-2024-011, GHSA-hrhf-2vcr-ghch).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import SIGNATURE_BYTES, Reader
from shoal.consensus.quorum import MAX_VALIDATORS
from shoal.consensus.validators import Validators, Verifier, Verify
from shoal.consensus.votes import Vote, VoteKind, vote_bytes

_HEADER = struct.Struct(">BQQQ32sI")
CERTIFIED_KINDS = (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE, VoteKind.ATTEST)


@dataclass(frozen=True, slots=True)
class Certificate:
    """Signatures of `signers` (ascending validator indices), in the same order, over one digest."""

    kind: VoteKind
    epoch: int
    view: int
    sequence: int
    digest: bytes
    signers: tuple[int, ...]
    signatures: tuple[bytes, ...]

    @property
    def bitmap(self) -> int:
        return sum(1 << signer for signer in self.signers)

    def to_bytes(self) -> bytes:
        header = _HEADER.pack(
            self.kind, self.epoch, self.view, self.sequence, self.digest, self.bitmap
        )
        return header + b"".join(self.signatures)


def read_certificate(reader: Reader) -> Certificate:
    """Take one certificate off the reader; raises ConsensusError on a kind or bitmap we refuse."""
    kind, epoch, view, sequence, digest, bitmap = reader.unpack(_HEADER)
    if kind not in CERTIFIED_KINDS:
        raise ConsensusError("bad-certificate-kind", str(kind))
    if bitmap >> MAX_VALIDATORS:
        raise ConsensusError("bad-bitmap", hex(bitmap))
    signers = tuple(index for index in range(MAX_VALIDATORS) if bitmap >> index & 1)
    signatures = tuple(reader.take(SIGNATURE_BYTES) for _ in signers)
    return Certificate(VoteKind(kind), epoch, view, sequence, digest, signers, signatures)


def parse_certificate(data: bytes) -> Certificate:
    """The certificate that these bytes are; raises ConsensusError. Inverse of to_bytes."""
    reader = Reader(data)
    certificate = read_certificate(reader)
    reader.end()
    return certificate


def certify(kind: VoteKind, votes: Iterable[Vote]) -> Certificate:
    """Put votes that agree in everything but their signer into one certificate."""
    by_signer = {vote.signer: vote for vote in votes}
    signers = tuple(sorted(by_signer))
    first = by_signer[signers[0]]
    return Certificate(
        kind=kind,
        epoch=first.epoch,
        view=first.view,
        sequence=first.sequence,
        digest=first.digest,
        signers=signers,
        signatures=tuple(by_signer[signer].signature for signer in signers),
    )


def signed_kind(certificate: Certificate, signer: int, validators: Validators) -> VoteKind:
    """The kind that this signer signed: in a prepared certificate the primary pre-prepared."""
    prepared = certificate.kind is VoteKind.PREPARE
    if prepared and signer == validators.primary(certificate.view):
        return VoteKind.PRE_PREPARE
    return certificate.kind


def check_certificate(certificate: Certificate, verifier: Verifier) -> None:
    """Raise ConsensusError unless the certificate proves what it says (consensus.md 1.9)."""
    validators = verifier.validators
    signers = certificate.signers
    if certificate.epoch != validators.epoch:
        raise ConsensusError("wrong-epoch", str(certificate.epoch))
    if len(certificate.signatures) != len(signers) or list(signers) != sorted(set(signers)):
        raise ConsensusError("bad-bitmap")
    if not signers or signers[0] < 0 or signers[-1] >= validators.n:
        raise ConsensusError("unknown-signer")
    if len(signers) < validators.quorum:
        raise ConsensusError("no-quorum", f"{len(signers)} of {validators.quorum}")
    if certificate.kind is VoteKind.PREPARE:
        if validators.primary(certificate.view) not in signers:
            raise ConsensusError("no-pre-prepare")
    elif certificate.kind is VoteKind.STABLE and certificate.view != 0:
        raise ConsensusError("stable-has-no-view")
    for signer, signature in zip(signers, certificate.signatures, strict=True):
        message = vote_bytes(
            signed_kind(certificate, signer, validators),
            mesh_id=validators.mesh_id,
            epoch=certificate.epoch,
            view=certificate.view,
            sequence=certificate.sequence,
            digest=certificate.digest,
        )
        if not verifier.check(signer, message, signature):
            raise ConsensusError("bad-signature", f"signer {signer} of a certificate")


def verify_certificate(certificate: Certificate, validators: Validators, verify: Verify) -> None:
    """The same check for a caller without a Verifier at hand; raises ConsensusError."""
    check_certificate(certificate, Verifier(validators, verify))
