"""What must be true after every step of every honest node, whatever happened before.

The checker sees what a node would see in production: the messages that leave, the rows that
are durable at that moment, the effects. It keeps one memory across all nodes and all restarts.
What is true of a replica's state as such is in replica_state.py.
"""

from collections.abc import Iterable, Mapping

from shoal.consensus.certificate import parse_certificate
from shoal.consensus.effects import Decided, EpochStarted, Evidence, Restored
from shoal.consensus.evidence import Evict
from shoal.consensus.ledger import Executed, Result
from shoal.consensus.messages import Candidate, NewView, PrePrepare, ViewChange
from shoal.consensus.records import Checkpoint
from shoal.consensus.replica import Replica
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation import rows as durable
from tests.simulation.book import EpochBook
from tests.simulation.decoded import decode
from tests.simulation.replica_state import StateChecker, Violation
from tests.simulation.roll import Roll

__all__ = ["Checker", "Violation"]

LOG_VOTES = (VoteKind.PRE_PREPARE, VoteKind.PREPARE, VoteKind.COMMIT)
# What certifies something at a sequence of the log. READY is about the end of the epoch before.
OF_THE_LOG = (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE)


class Checker:
    """Remembers everything that was said and decided, and compares.

    `keys` are the nodes' in the order of their numbers, `byzantine` the numbers of the liars,
    `founders` the members of the genesis.
    """

    def __init__(
        self,
        book: EpochBook,
        keys: tuple[bytes, ...],
        byzantine: frozenset[int],
        founders: Iterable[bytes],
    ) -> None:
        self.book = book
        self.keys = keys
        self.byzantine = byzantine
        self.roll = Roll(founders, book.mesh_id, book.verify)
        self.state = StateChecker(book, self.problem_of)
        self._epochs: dict[int, int] = {}
        self._votes: dict[tuple[int, VoteKind, int, int, int], bytes] = {}
        self._commits: dict[int, dict[int, int]] = {}
        self._left: dict[int, tuple[int, int]] = {}
        self._changes: dict[tuple[int, int, int], bytes] = {}
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

    def on_link(self, number: int, link: bytes) -> None:
        """Somebody lives in this epoch, or a later one: its proof is worked through once."""
        problem = self.book.add(number, link)
        self.require(problem is None, f"epoch {number}: {problem}")

    def on_epoch(
        self,
        node: int,
        started: EpochStarted,
        link: bytes | None,
        rows: Mapping[str, bytes],
        *,
        honest: bool,
    ) -> None:
        """A node says that it is in this epoch now: one set per number, and never backwards.

        What it voted in earlier ones is not kept, or rows would pile up for ever.
        """
        validators = started.validators
        if link is not None:
            self.on_link(validators.epoch, link)
        page = self.book.page(validators.epoch)
        self.require(page is not None, "an epoch that nobody proved")
        same = page is not None and page.keys == validators.keys
        self.require(same, f"two sets for epoch {validators.epoch}")
        if not honest:
            return
        before = self._epochs.get(node, 0)
        self.require(validators.epoch >= before, "an epoch went backwards")
        if validators.epoch > before:
            self._epochs[node] = validators.epoch
            self._commits.pop(node, None)
        oldest = durable.oldest_vote_epoch(rows)
        kept = oldest is not None and oldest < validators.epoch
        self.require(not kept, "rows of an epoch that is over")

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

    def _is(self, node: int, epoch: int, signer: int) -> bool:
        """Whether this index of this epoch is this node; nobody else's votes are its own."""
        return self.book.key(epoch, signer) == self.keys[node]

    def _on_vote(self, node: int, vote: Vote, rows: Mapping[str, bytes]) -> None:
        mine = self._is(node, vote.epoch, vote.signer)
        self.require(mine, "a node sends only its own votes, in epochs whose set it is in")
        self._once(node, vote.kind, vote.epoch, vote.view, vote.sequence, vote.digest)
        kept = durable.vote_digest(rows, vote) == vote.digest
        settled = durable.has_link(rows, vote.epoch + 1) or (
            vote.kind <= VoteKind.STABLE and vote.sequence <= self._settled(rows)
        )
        self.require(kept or settled, f"{vote.kind.name} before its row")
        if vote.kind in LOG_VOTES:
            where = (vote.epoch, vote.view)
            self.require(where >= self._left.get(node, (0, 0)), "a vote in a view that was left")
            entered = durable.has_link(rows, vote.epoch + 1) or durable.may_vote_in(rows, vote.view)
            self.require(entered, "a vote in a view that was not entered")
            self._in_its_time(node, vote, rows)
        if vote.kind is not VoteKind.COMMIT:
            return
        if not settled:
            proof = durable.prepared_certificate(rows, vote.sequence)
            self.require(proof is not None, "COMMIT without a durable prepared certificate")
            certificate = parse_certificate(proof or b"")
            same = (certificate.epoch, certificate.view, certificate.digest) == (
                vote.epoch,
                vote.view,
                vote.digest,
            )
            self.require(same, "COMMIT with another prepared certificate")
            self._prove(proof or b"")
        if vote.epoch == self._epochs.get(node, 0):
            theirs = self._commits.setdefault(node, {})
            theirs[vote.sequence] = max(theirs.get(vote.sequence, 0), vote.view)

    def _in_its_time(self, node: int, vote: Vote, rows: Mapping[str, bytes]) -> None:
        """The barrier: an epoch that has started, and no vote beyond an open stability point."""
        interval, executed = self.book.interval, self._position.get(node, 0)
        horizon = (executed // interval + 1) * interval
        self.require(vote.sequence <= horizon, "a vote beyond a stability point not yet executed")
        problem = self.book.problem_at(vote.epoch, vote.sequence)
        self.require(problem is None, f"{vote.kind.name}: {problem}")
        page = self.book.page(vote.epoch)
        over = durable.has_link(rows, vote.epoch + 1)
        if vote.epoch and page is not None and executed <= page.start and not over:
            ready = durable.ready_certificate(rows)
            self.require(ready is not None, "a vote before its epoch has started")
            certificate = parse_certificate(ready or b"")
            claim = (certificate.kind, certificate.epoch, certificate.sequence)
            right = claim == (VoteKind.READY, vote.epoch, page.start)
            self.require(right, "an epoch started by something else than its READY quorum")
            self._prove(ready or b"")

    def _settled(self, rows: Mapping[str, bytes]) -> int:
        """The watermark that is durable in these rows."""
        proof = durable.stability_certificate(rows)
        if proof is None:
            return 0
        known = self._settled_by.get(proof)
        if known is None:
            known = self._settled_by[proof] = parse_certificate(proof).sequence
        return known

    def _once(
        self, node: int, kind: VoteKind, epoch: int, view: int, sequence: int, digest: bytes
    ) -> None:
        key = (node, kind, epoch, view, sequence)
        known = self._votes.setdefault(key, digest)
        if known != digest:
            raise Violation(f"double vote {kind.name} view {view} sequence {sequence}")

    def _on_view_change(
        self, node: int, change: ViewChange, data: bytes, rows: Mapping[str, bytes]
    ) -> None:
        # Own ones only; older ones may be repeated, so only the newest one moves the mark.
        mine = self._is(node, change.epoch, change.signer)
        self.require(mine, "a node sends only its own VIEW-CHANGEs")
        over = durable.has_link(rows, change.epoch + 1)
        self.require(over or durable.has_left_for(rows, change.view), "VIEW-CHANGE before its row")
        known = self._changes.setdefault((node, change.epoch, change.view), data)
        self.require(known == data, "two different VIEW-CHANGEs for one view")
        if (change.epoch, change.view) <= self._left.get(node, (0, 0)):
            return
        self._left[node] = (change.epoch, change.view)
        if change.epoch != self._epochs.get(node, 0):
            return
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
        executed = isinstance(decided.result, Executed)
        self.roll.follow(sequence, decided.operation, executed=executed)
        if executed and decided.operation_bytes:
            first = self._executed_at.setdefault(digest, sequence)
            self.require(first == sequence, "an operation was executed twice")
        self._prove(decided.certificate.to_bytes())
        if isinstance(decided.operation, Checkpoint):
            self._prove(decided.operation.attestation.to_bytes())
        if isinstance(decided.operation, Evict) and isinstance(decided.result, Executed):
            self._lied(decided.operation.member, "an honest node was evicted")

    def on_restored(self, node: int, restored: Restored) -> None:
        sequence = restored.ledger.sequence
        self._prove(restored.certificate.to_bytes())
        self.require(sequence >= self._position.get(node, 0), "state transfer went backwards")
        self._position[node] = sequence
        self._same_ledger(sequence, restored.ledger.digest())

    def on_evidence(self, evidence: Evidence) -> None:
        self._lied(evidence.signer, f"false accusation: {evidence.kind}")

    def _lied(self, key: bytes, otherwise: str) -> None:
        self.require(key in {self.keys[liar] for liar in self.byzantine}, otherwise)

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
            if core.executed == self.roll.sequence:
                self.roll.require_same(core.ledger.members)

    def _same_ledger(self, sequence: int, digest: bytes) -> None:
        known = self._ledgers.setdefault(sequence, digest)
        self.require(known == digest, f"ledgers differ at {sequence}")

    def problem_of(self, data: bytes) -> str | None:
        """Why these bytes of a certificate prove nothing, found out once for equal bytes.

        They are checked with the set of the epoch that they name, and where that epoch had a say.
        """
        if data not in self._problems:
            certificate = parse_certificate(data)
            problem = self.book.problem_of(data)
            if problem is None and certificate.kind in OF_THE_LOG:
                problem = self.book.problem_at(certificate.epoch, certificate.sequence)
            if problem == "unknown epoch":
                return problem
            self._problems[data] = problem
        return self._problems[data]

    def _prove(self, data: bytes) -> None:
        problem = self.problem_of(data)
        self.require(problem is None, f"certificate does not verify: {problem}")
