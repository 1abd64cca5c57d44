"""What must be true after every step of every honest node, whatever happened before.

The checker sees what a node would see in production: the messages that leave, the rows that
are durable at that moment, the effects. It keeps one memory across all nodes and all restarts.
"""

from collections.abc import Mapping

from shoal.consensus.certificate import parse_certificate
from shoal.consensus.effects import Decided, Evidence, Restored
from shoal.consensus.ledger import Executed, Result
from shoal.consensus.messages import Candidate, NewView, PrePrepare, ViewChange, decode
from shoal.consensus.pacemaker import open_slot
from shoal.consensus.records import Checkpoint
from shoal.consensus.replica import Replica
from shoal.consensus.validators import Validators, Verify
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.verifier import certificate_problem

LOG_VOTES = (VoteKind.PRE_PREPARE, VoteKind.PREPARE, VoteKind.COMMIT)


class Violation(AssertionError):
    """An invariant does not hold."""


class Checker:
    """Remembers everything that was said and decided, and compares."""

    def __init__(self, validators: Validators, verify: Verify, byzantine: frozenset[int]) -> None:
        self.validators = validators
        self.verify = verify
        self.byzantine = byzantine
        # Every epoch's keys, as the nodes themselves came to know them: all must agree.
        self.sets = {0: validators.keys}
        self._epochs: dict[int, int] = {}
        self._votes: dict[tuple[int, VoteKind, int, int, int], bytes] = {}
        self._commits: dict[int, dict[int, int]] = {}
        self._left: dict[int, int] = {}
        self._views: dict[int, tuple[int, int]] = {}
        self._decided: dict[int, tuple[bytes, Result]] = {}
        self._executed_at: dict[bytes, int] = {}
        self._ledgers: dict[int, bytes] = {}
        self._position: dict[int, int] = {}
        self._compared: dict[int, int] = {}
        self._proved: set[bytes] = set()

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            raise Violation(what)

    def on_send(self, node: int, data: bytes, rows: Mapping[str, bytes]) -> None:
        """An honest node lets this message out while these rows are durable."""
        message = decode(data)
        match message:
            case PrePrepare(vote, _) | Candidate(vote, _):
                self._on_vote(node, vote, rows)
            case Vote():
                self._on_vote(node, message, rows)
            case ViewChange():
                self._on_view_change(node, message, rows)
            case NewView():
                self._on_new_view(node, message)
            case _:
                pass

    def _on_vote(self, node: int, vote: Vote, rows: Mapping[str, bytes]) -> None:
        self.require(self._is(node, vote.epoch, vote.signer), "a node sends only its own votes")
        self._once(node, vote.kind, vote.epoch, vote.view, vote.sequence, vote.digest)
        attests = vote.kind in (VoteKind.ATTEST, VoteKind.CANDIDATE)
        family = "attestor" if attests else "replica"
        settled = self._settled(rows) if family == "replica" else 0
        row = rows.get(f"{family}/vote/{vote.epoch}/{int(vote.kind)}/{vote.view}/{vote.sequence}")
        durable = row is not None and row[:32] == vote.digest
        self.require(durable or vote.sequence <= settled, f"{vote.kind.name} before its row")
        if vote.kind in LOG_VOTES:
            self.require(vote.view >= self._left.get(node, 0), "a vote in a view that was left")
        if vote.kind is VoteKind.COMMIT and vote.sequence > settled:
            proof = rows.get(f"replica/prepared/{vote.sequence}")
            self.require(proof is not None, "COMMIT without a durable prepared certificate")
            certificate = parse_certificate(proof or b"")
            same = (certificate.view, certificate.digest) == (vote.view, vote.digest)
            self.require(same, "COMMIT with another prepared certificate")
            self._prove(certificate.to_bytes())
        if vote.kind is VoteKind.COMMIT:
            theirs = self._commits.setdefault(node, {})
            theirs[vote.sequence] = max(theirs.get(vote.sequence, 0), vote.view)

    def _settled(self, rows: Mapping[str, bytes]) -> int:
        stable = rows.get("replica/stable")
        return parse_certificate(stable).sequence if stable is not None else 0

    def _is(self, node: int, epoch: int, signer: int) -> bool:
        """Whether this index of this epoch is this node (node numbers are those of epoch 0)."""
        return self.sets[epoch][signer] == self.validators.keys[node]

    def on_epoch(self, node: int, validators: Validators) -> None:
        known = self.sets.setdefault(validators.epoch, validators.keys)
        self.require(known == validators.keys, f"two sets for epoch {validators.epoch}")
        before = self._epochs.get(node, 0)
        self.require(validators.epoch >= before, "an epoch went backwards")
        if validators.epoch > before:
            self._epochs[node] = validators.epoch
            self._left.pop(node, None)
            self._commits.pop(node, None)

    def _once(
        self, node: int, kind: VoteKind, epoch: int, view: int, sequence: int, digest: bytes
    ) -> None:
        key = (node, kind, epoch, view, sequence)
        known = self._votes.setdefault(key, digest)
        self.require(known == digest, f"double vote {kind.name} view {view} sequence {sequence}")

    def _on_view_change(self, node: int, change: ViewChange, rows: Mapping[str, bytes]) -> None:
        # Own ones only; older ones may be repeated, so only the newest one moves the mark.
        self.require(
            self._is(node, change.epoch, change.signer), "a node sends only its own VIEW-CHANGEs"
        )
        row = rows.get("replica/view", bytes(10))
        entered = int.from_bytes(row[:8], "big") >= change.view and row[8] == 1
        durable = entered or f"replica/view-change/{change.view}" in rows
        self.require(durable, "VIEW-CHANGE before its row")
        if change.view <= self._left.get(node, 0):
            return
        self._left[node] = change.view
        proved = {proof.sequence: proof.view for proof in change.prepared}
        for sequence, view in self._commits.get(node, {}).items():
            if sequence > change.low:
                self.require(proved.get(sequence, -1) >= view, "VIEW-CHANGE hides a COMMIT")

    def _on_new_view(self, node: int, message: NewView) -> None:
        if not self._is(node, message.epoch, message.signer):
            return
        start = max(change.low for change in message.view_changes)
        for sequence, (digest, _) in enumerate(message.proposals, start + 1):
            self._once(node, VoteKind.PRE_PREPARE, message.epoch, message.view, sequence, digest)

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

    def after_step(self, node: int, replica: Replica) -> None:
        """State that can be compared at any time: views, watermarks, ledgers, sizes."""
        core = replica._core
        where = (core.epoch, core.view)
        self.require(where >= self._views.get(node, (0, 0)), "a view went backwards")
        self._views[node] = where
        self.require(core.low <= core.executed, "watermark above what was executed")
        low, high = core.low, core.low + core.window
        for log in (core.slots, core.prepared):
            if log:
                self.require(low < min(log) and max(log) <= high, "log outside the window")
        self.require(len(core.committed) <= 3 * core.window, "too much kept")
        if core.active:
            waits = bool(core.pending or core.ledger.boundary) or open_slot(core) is not None
            between = not core.started or core.ledger.epoch.number != core.epoch
            waits = waits and core.safety is not None and not between
            runs = "progress" in core.outbox.timers
            self.require(waits == runs, "the progress timer runs exactly while something waits")
        if core.executed != self._compared.get(node):
            self._compared[node] = core.executed
            self._same_ledger(core.executed, core.ledger.digest())

    def _same_ledger(self, sequence: int, digest: bytes) -> None:
        known = self._ledgers.setdefault(sequence, digest)
        self.require(known == digest, f"ledgers differ at {sequence}")

    def _prove(self, data: bytes) -> None:
        if data in self._proved:
            return
        epoch = int.from_bytes(data[1:9], "big")
        problem = certificate_problem(
            data,
            mesh_id=self.validators.mesh_id,
            epoch=epoch,
            keys=self.sets[epoch],
            interval=self.validators.interval,
            verify=self.verify,
        )
        self.require(problem is None, f"certificate does not verify: {problem}")
        self._proved.add(data)
