"""Evidence: two signed statements that no honest validator or member makes.

Evidence proves itself: whoever holds the keys of the epoch that it names can check it, with no
judgement and no timing in it. So its operation is valid by its bytes alone, and every replica
evicts whom it proves to lie (consensus.md 3.3). An honest node cannot be accused, because what it
signs is durable before it is sent: asked again it says the same.

Three kinds: two votes for one place in the log, two VIEW-CHANGEs for one view, and two statements
of some other part of the node (deltas of one number, two processes with one key) that only that
part can read. Those come with a reader, since this folder knows nothing of deltas or links.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import ID_BYTES, Reader, blob, u8
from shoal.consensus.validators import Validators, Verifier
from shoal.consensus.votes import Vote, VoteKind, read_vote

# A VIEW-CHANGE of 31 validators with sixteen prepared certificates is about 35 KiB.
MAX_STATEMENT_BYTES = 128 * 1024
# The sets of this many epochs, the current one included, are remembered for evidence.
EVIDENCE_EPOCHS = 4


class Proof(IntEnum):
    """What the two statements are."""

    VOTES = 1
    VIEW_CHANGES = 2
    STATEMENTS = 3


@dataclass(frozen=True, slots=True)
class Evict:
    """`member` made both statements, so it goes and does not come back."""

    member: bytes
    proof: Proof
    first: bytes
    second: bytes

    def fields(self) -> bytes:
        return self.member + u8(self.proof) + blob(self.first) + blob(self.second)


@dataclass(frozen=True, slots=True)
class Statement:
    """A signed statement, its signature checked: `author` may say one `content` per `place`."""

    author: bytes
    place: bytes
    content: bytes


# Reads a statement of another part of the node; None where it is none or its signature is wrong.
ReadStatement = Callable[[bytes], Statement | None]


def read_evict(reader: Reader) -> Evict:
    """Take one eviction off the reader; raises ConsensusError."""
    member, number = reader.take(ID_BYTES), reader.u8()
    if number not in Proof.__members__.values():
        raise ConsensusError("unknown-evidence", str(number))
    first, second = reader.blob(MAX_STATEMENT_BYTES), reader.blob(MAX_STATEMENT_BYTES)
    return Evict(member, Proof(number), first, second)


def evidence_of_votes(first: Vote, second: Vote, key: bytes) -> Evict:
    """Two votes of one signer for one place, in an order that does not depend on who saw what."""
    one, other = sorted((first.to_bytes(), second.to_bytes()))
    return Evict(key, Proof.VOTES, one, other)


def check_evidence(evict: Evict, verifier: Verifier, view_change: ReadStatement) -> str | None:
    """Why the evidence proves nothing; None when it does.

    `view_change` reads VIEW-CHANGEs (messages.py depends on this module, not the reverse).
    """
    if evict.first >= evict.second:
        return "evidence-not-canonical"
    match evict.proof:
        case Proof.VOTES:
            statements = [_read_vote(data, verifier) for data in (evict.first, evict.second)]
        case Proof.VIEW_CHANGES:
            statements = [view_change(data) for data in (evict.first, evict.second)]
        case Proof.STATEMENTS:
            read = verifier.read_statement
            statements = [read(data) if read else None for data in (evict.first, evict.second)]
    first, second = statements
    if first is None or second is None:
        return "evidence-invalid"
    if (first.author, first.place) != (second.author, second.place):
        return "evidence-of-two-things"
    if first.author != evict.member:
        return "evidence-of-somebody-else"
    return "evidence-of-nothing" if first.content == second.content else None


def set_of(epoch: int, verifier: Verifier) -> Validators | None:
    """The voting set of a recent epoch, as far as evidence reaches back."""
    return next((known for known in verifier.recent if known.epoch == epoch), None)


def _read_vote(data: bytes, verifier: Verifier) -> Statement | None:
    try:
        reader = Reader(data)
        kind = reader.u8()
        if kind not in VoteKind.__members__.values():
            return None
        vote = read_vote(VoteKind(kind), reader)
        reader.end()
    except ConsensusError:
        return None
    validators = set_of(vote.epoch, verifier)
    if validators is None or not 0 <= vote.signer < validators.n:
        return None
    key = validators.keys[vote.signer]
    if not verifier.verify(key, vote.signed_bytes(validators.mesh_id), vote.signature):
        return None
    return Statement(key, data[:25], vote.digest)
