"""The deterministic, stateless part of validity: why no replica should vote for an operation.

It depends on the operation's bytes and on the epoch alone, never on how far a replica has come,
so all honest replicas of an epoch answer alike (ADR 0002). What depends on the state is decided
when the operation executes, in ledger.py.
"""

from shoal.consensus.certificate import check_certificate
from shoal.consensus.changes import Approve
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import Evict, check_evidence
from shoal.consensus.messages import read_view_change_statement
from shoal.consensus.records import Checkpoint, Join, Leave, Null, Operation
from shoal.consensus.validators import Verifier
from shoal.consensus.votes import VoteKind


def validate(operation: Operation, verifier: Verifier) -> str | None:
    """Why no replica should vote for this operation whatever its state; None when it is fine."""
    mesh_id = verifier.validators.mesh_id
    match operation:
        case Checkpoint():
            return _validate_checkpoint(operation, verifier)
        case Join() if reason := _validate_invitation(operation, verifier):
            return reason
        case Join() | Leave():
            signed = operation.signed_bytes(mesh_id)
            valid = verifier.verify(operation.member, signed, operation.signature)
            return None if valid else "bad-signature"
        case Approve():
            if operation.epoch != verifier.validators.epoch:
                return "wrong-epoch"
            if operation.validator not in verifier.validators.keys:
                return "not-a-validator"
            signed = operation.signed_bytes(mesh_id)
            valid = verifier.verify(operation.validator, signed, operation.signature)
            return None if valid else "bad-signature"
        case Evict():
            return check_evidence(
                operation, verifier, lambda data: read_view_change_statement(data, verifier)
            )
        case Null():
            # Fills the log up to the end of an epoch; a primary that orders it for no reason
            # wastes the slot that it could have left empty.
            return None


def _validate_invitation(join: Join, verifier: Verifier) -> str | None:
    """Whether it was signed, by whoever it names; whether that is a member is for the ledger."""
    invitation = join.invitation
    if invitation is None:
        return None
    if invitation.mesh_id != verifier.validators.mesh_id:
        return "wrong-mesh"
    signed = invitation.signed_bytes()
    valid = verifier.verify(invitation.inviter, signed, invitation.signature)
    return None if valid else "bad-invitation-signature"


def _validate_checkpoint(operation: Checkpoint, verifier: Verifier) -> str | None:
    record, attestation = operation.record, operation.attestation
    validators = verifier.validators
    if record.mesh_id != validators.mesh_id:
        return "wrong-mesh"
    if record.proposer != validators.keys[validators.proposer(record.height, record.attempt)]:
        return "wrong-proposer"
    claim = (VoteKind.ATTEST, record.attempt, record.height, record.digest)
    proof = (attestation.kind, attestation.view, attestation.sequence, attestation.digest)
    if proof != claim:
        return "attestation-of-something-else"
    try:
        check_certificate(attestation, verifier)
    except ConsensusError as error:
        return error.reason
    return None
