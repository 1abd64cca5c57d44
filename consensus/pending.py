"""Operations that wait to be ordered, oldest first, within bounds.

An operation is held by every validator that heard of it, not only by the primary: each starts
its timer, so a primary that ignores it loses its view (consensus.md 1.6). The bounds are per
origin (the member, or the proposer of a checkpoint) and in all, in number and in bytes.
"""

from dataclasses import dataclass

from shoal.consensus.changes import Approve
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import Evict
from shoal.consensus.records import Checkpoint, Join, Leave, Null, Operation

MAX_PENDING = 1024
MAX_PENDING_PER_ORIGIN = 8
MAX_PENDING_BYTES = 16 * 1024 * 1024


def origin(operation: Operation) -> bytes:
    """Who answers for the operation, and so against whose share of the queue it counts."""
    match operation:
        case Checkpoint(record, _):
            return record.proposer
        case Join(invitation=invitation) if invitation is not None:
            # Newcomers are as many as anybody likes to make up; who let them in is one.
            return b"invited/" + invitation.inviter
        case Join() | Leave():
            return operation.member
        case Evict():
            # Not the accused's own share: it could keep that full.
            return b"evict/" + operation.member
        case Approve():
            return operation.validator
        case Null():
            return b""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One pending operation."""

    operation: Operation
    data: bytes


class Pending:
    """A queue in order of arrival, addressed by operation digest."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, Waiting] = {}
        self._bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def items(self) -> list[tuple[bytes, Waiting]]:
        """(digest, operation) pairs, oldest first."""
        return list(self._waiting.items())

    def oldest(self) -> bytes | None:
        return next(iter(self._waiting), None)

    def body(self, digest: bytes) -> bytes | None:
        waiting = self._waiting.get(digest)
        return waiting.data if waiting else None

    def add(self, digest: bytes, operation: Operation, data: bytes) -> None:
        """Raises ConsensusError("queue-full") where a bound would be crossed."""
        whose = origin(operation)
        theirs = sum(origin(waiting.operation) == whose for waiting in self._waiting.values())
        full = len(self._waiting) >= MAX_PENDING or self._bytes + len(data) > MAX_PENDING_BYTES
        if full or theirs >= MAX_PENDING_PER_ORIGIN:
            raise ConsensusError("queue-full")
        self._waiting[digest] = Waiting(operation, data)
        self._bytes += len(data)

    def discard(self, digest: bytes) -> None:
        waiting = self._waiting.pop(digest, None)
        if waiting is not None:
            self._bytes -= len(waiting.data)
