"""Certificates: a quorum's signatures over one vote, in a form that a stranger can check.

One object serves five purposes: prepared (kind PREPARE), committed, stable, attested, ready. In a
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
CERTIFIED_KINDS = (
    VoteKind.PREPARE,
    VoteKind.COMMIT,
    VoteKind.STABLE,
    VoteKind.ATTEST,
    VoteKind.READY,
)


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


def possible_proposers(certificate: Certificate, validators: Validators) -> list[int]:
    """Whose PRE-PREPARE a prepared certificate may hold.

    What is new at a sequence is proposed by the primary whose turn it is there; what a NEW-VIEW
    carries over is proposed by the validator that starts the view. Which of them it was does not
    matter for safety, since each backup prepares one digest per view and sequence.
    """
    view, sequence = certificate.view, certificate.sequence
    either = {validators.primary(view, sequence), validators.leader(view)}
    return sorted(either & set(certificate.signers))


def _check_signatures(
    certificate: Certificate, verifier: Verifier, proposer: int | None = None
) -> None:
    for signer, signature in zip(certificate.signers, certificate.signatures, strict=True):
        message = vote_bytes(
            VoteKind.PRE_PREPARE if signer == proposer else certificate.kind,
            mesh_id=verifier.validators.mesh_id,
            epoch=certificate.epoch,
            view=certificate.view,
            sequence=certificate.sequence,
            digest=certificate.digest,
        )
        if not verifier.check(signer, message, signature):
            raise ConsensusError("bad-signature", f"signer {signer} of a certificate")


def _check_prepared(certificate: Certificate, verifier: Verifier) -> None:
    proposers = possible_proposers(certificate, verifier.validators)
    if not proposers:
        raise ConsensusError("no-pre-prepare")
    for proposer in proposers:
        try:
            _check_signatures(certificate, verifier, proposer)
            return
        except ConsensusError:
            if proposer == proposers[-1]:
                raise


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
    if certificate.kind in (VoteKind.STABLE, VoteKind.READY) and certificate.view != 0:
        raise ConsensusError("stable-has-no-view")
    if certificate.kind is VoteKind.PREPARE:
        _check_prepared(certificate, verifier)
    else:
        _check_signatures(certificate, verifier)


def verify_certificate(certificate: Certificate, validators: Validators, verify: Verify) -> None:
    """The same check for a caller without a Verifier at hand; raises ConsensusError."""
    check_certificate(certificate, Verifier(validators, verify))
