"""What must be true after every step of every honest node, whatever happened before.

The checker sees what a node would see in production: the messages that leave, the rows that
are durable at that moment, the effects. It keeps one memory across all nodes and all restarts.
What is true of a replica's state as such is in replica_state.py.
"""

from collections.abc import Mapping

from shoal.consensus.certificate import parse_certificate
from shoal.consensus.effects import Decided, Evidence, Restored
from shoal.consensus.ledger import Executed, Result
from shoal.consensus.messages import Candidate, NewView, PrePrepare, ViewChange
from shoal.consensus.records import Checkpoint
from shoal.consensus.replica import Replica
from shoal.consensus.validators import Validators, Verify
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation import rows as durable
from tests.simulation.decoded import decode
from tests.simulation.replica_state import StateChecker, Violation
from tests.simulation.verifier import certificate_problem

__all__ = ["Checker", "Violation"]

# First bytes of the messages that on_send has something to say about: votes, view changes.
SIGNED_ONCE = frozenset({*map(int, VoteKind), 7, 8})
LOG_VOTES = (VoteKind.PRE_PREPARE, VoteKind.PREPARE, VoteKind.COMMIT)


class Checker:
    """Remembers everything that was said and decided, and compares."""

    def __init__(self, validators: Validators, verify: Verify, byzantine: frozenset[int]) -> None:
        self.validators = validators
        self.verify = verify
        self.byzantine = byzantine
        self.state = StateChecker(validators, verify, self.problem_of)
        self._votes: dict[tuple[int, VoteKind, int, int], bytes] = {}
        self._commits: dict[int, dict[int, int]] = {}
        self._left: dict[int, int] = {}
        self._changes: dict[tuple[int, int], bytes] = {}
        self._decided: dict[int, tuple[bytes, Result]] = {}
        self._executed_at: dict[bytes, int] = {}
        self._ledgers: dict[int, bytes] = {}
        self._position: dict[int, int] = {}
        self._compared: dict[int, int] = {}
        self._problems: dict[bytes, str | None] = {}
        self._settled_by: dict[bytes, int] = {}

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise Violation(what)

    def on_send(self, node: int, data: bytes, rows: Mapping[str, bytes]) -> None:
        """An honest node lets this message out while these rows are durable."""
        message = decode(data)
        match message:
            case Vote():
                self._on_vote(node, message, rows)
            case PrePrepare(vote, _) | Candidate(vote, _):
                self._on_vote(node, vote, rows)
            case ViewChange():
                self._on_view_change(node, message, data, rows)
            case NewView():
                self._on_new_view(node, message)
            case _:
                pass

    def _on_vote(self, node: int, vote: Vote, rows: Mapping[str, bytes]) -> None:
        self.require(vote.signer == node, "a node sends only its own votes")
        self._once(node, vote.kind, vote.view, vote.sequence, vote.digest)
        kept = durable.vote_digest(rows, vote.kind, vote.view, vote.sequence) == vote.digest
        settled = vote.kind <= VoteKind.STABLE and vote.sequence <= self._settled(rows)
        self.require(kept or settled, f"{vote.kind.name} before its row")
        if vote.kind in LOG_VOTES:
            self.require(vote.view >= self._left.get(node, 0), "a vote in a view that was left")
        if vote.kind is not VoteKind.COMMIT:
            return
        if not settled:
            proof = durable.prepared_certificate(rows, vote.sequence)
            self.require(proof is not None, "COMMIT without a durable prepared certificate")
            certificate = parse_certificate(proof or b"")
            same = (certificate.view, certificate.digest) == (vote.view, vote.digest)
            self.require(same, "COMMIT with another prepared certificate")
            self._prove(proof or b"")
        theirs = self._commits.setdefault(node, {})
        theirs[vote.sequence] = max(theirs.get(vote.sequence, 0), vote.view)

    def _settled(self, rows: Mapping[str, bytes]) -> int:
        """The watermark that is durable in these rows."""
        proof = durable.stability_certificate(rows)
        if proof is None:
            return 0
        known = self._settled_by.get(proof)
        if known is None:
            known = self._settled_by[proof] = parse_certificate(proof).sequence
        return known

    def _once(self, node: int, kind: VoteKind, view: int, sequence: int, digest: bytes) -> None:
        key = (node, kind, view, sequence)
        known = self._votes.setdefault(key, digest)
        if known != digest:
            raise Violation(f"double vote {kind.name} view {view} sequence {sequence}")

    def _on_view_change(
        self, node: int, change: ViewChange, data: bytes, rows: Mapping[str, bytes]
    ) -> None:
        # Own ones only; older ones may be repeated, so only the newest one moves the mark.
        self.require(change.signer == node, "a node sends only its own VIEW-CHANGEs")
        self.require(durable.has_left_for(rows, change.view), "VIEW-CHANGE before its row")
        known = self._changes.setdefault((node, change.view), data)
        self.require(known == data, "two different VIEW-CHANGEs for one view")
        if change.view <= self._left.get(node, 0):
            return
        self._left[node] = change.view
        proved = {proof.sequence: proof.view for proof in change.prepared}
        for sequence, view in self._commits.get(node, {}).items():
            if sequence > change.low:
                self.require(proved.get(sequence, -1) >= view, "VIEW-CHANGE hides a COMMIT")

    def _on_new_view(self, node: int, message: NewView) -> None:
        if message.signer != node:
            return
        start = max(change.low for change in message.view_changes)
        for sequence, (digest, _) in enumerate(message.proposals, start + 1):
            self._once(node, VoteKind.PRE_PREPARE, message.view, sequence, digest)

    def on_decided(self, node: int, decided: Decided) -> None:
        sequence, digest = decided.sequence, decided.certificate.digest
        position = self._position.get(node, 0)
        self.require(sequence <= position + 1, "a gap in what a node was told")
        self._position[node] = max(position, sequence)
        known = self._decided.setdefault(sequence, (digest, decided.result))
        self.require(known == (digest, decided.result), f"agreement broken at {sequence}")
        if isinstance(decided.result, Executed) and decided.operation_bytes:
            first = self._executed_at.setdefault(digest, sequence)
            self.require(first == sequence, "an operation was executed twice")
        self._prove(decided.certificate.to_bytes())
        if isinstance(decided.operation, Checkpoint):
            self._prove(decided.operation.attestation.to_bytes())

    def on_restored(self, node: int, restored: Restored) -> None:
        sequence = restored.ledger.sequence
        self._prove(restored.certificate.to_bytes())
        self.require(sequence >= self._position.get(node, 0), "state transfer went backwards")
        self._position[node] = sequence
        self._same_ledger(sequence, restored.ledger.digest())

    def on_evidence(self, evidence: Evidence) -> None:
        liar = self.validators.keys.index(evidence.signer)
        self.require(liar in self.byzantine, f"false accusation: {evidence.kind}")

    def on_started(self, node: int, applied: int) -> None:
        self._position[node] = applied
        self.state.on_started(node)

    def after_message(self, node: int, data: bytes, replica: Replica) -> None:
        """What an honest replica made of a message that it was sent."""
        self.state.after_message(node, data, replica)

    def after_step(self, node: int, replica: Replica) -> None:
        """State that can be compared at any time: sizes, timers, views, ledgers."""
        core = self.state.after_step(node, replica)
        if core.executed != self._compared.get(node):
            self._compared[node] = core.executed
            self._same_ledger(core.executed, core.ledger.digest())

    def _same_ledger(self, sequence: int, digest: bytes) -> None:
        known = self._ledgers.setdefault(sequence, digest)
        self.require(known == digest, f"ledgers differ at {sequence}")

    def problem_of(self, data: bytes) -> str | None:
        """Why these bytes of a certificate prove nothing, found out once for equal bytes."""
        if data not in self._problems:
            self._problems[data] = certificate_problem(
                data,
                mesh_id=self.validators.mesh_id,
                epoch=self.validators.epoch,
                keys=self.validators.keys,
                verify=self.verify,
            )
        return self._problems[data]

    def _prove(self, data: bytes) -> None:
        problem = self.problem_of(data)
        self.require(problem is None, f"certificate does not verify: {problem}")
