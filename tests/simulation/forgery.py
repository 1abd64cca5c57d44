"""Liars who know the protocol: wrong NEW-VIEWs with everything else right, and forged proofs.

A dumb mutator does not find these: a NEW-VIEW with too few VIEW-CHANGEs is refused for its O
already, unless O is worked out again to match (consensus.md 6.3). So everything is recomputed
and signed again after one thing has been made wrong.
"""

import hashlib
from dataclasses import replace

from shoal.consensus.certificate import Certificate
from shoal.consensus.messages import (
    Candidate,
    CommitProof,
    NewView,
    PrePrepare,
    Request,
    Stability,
    ViewChange,
    encode,
)
from shoal.consensus.records import NULL_DIGEST, Checkpoint, operation_bytes, operation_digest
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.adversary import Coalition, Liar, Sent, other_ledger
from tests.simulation.decoded import decode

SIGNATURE_BYTES = 64


def follows(changes: list[ViewChange]) -> tuple[int, list[bytes]]:
    """(min, digests of min + 1, ...): the set O of the paper, worked out here once more."""
    start = max((change.low for change in changes), default=0)
    best: dict[int, tuple[int, bytes]] = {}
    for change in changes:
        for proof in change.prepared:
            if proof.sequence not in best or best[proof.sequence][0] < proof.view:
                best[proof.sequence] = (proof.view, proof.digest)
    end = max([start, *best])
    return start, [best.get(s, (0, NULL_DIGEST))[1] for s in range(start + 1, end + 1)]


class NewViewForger(Liar):
    """Starts views that do not follow from what a quorum said, and leaves views with lies."""

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        self.coalition.hear(data)
        message = decode(data)
        if isinstance(message, NewView) and self.is_mine(message.epoch, message.signer):
            return [(0, encode(self._forge(message.epoch, message.view)))]
        if isinstance(message, ViewChange) and self.is_mine(message.epoch, message.signer):
            if self.rng.random() < 0.5:
                self.counts["newview"] += 1
                return [(0, encode(self._lie(message)))]
            return [(0, data)]
        if self.rng.random() < 0.15:
            return [(0, data), *self._unasked()]
        return [(0, data)]

    def _unasked(self) -> list[Sent]:
        """A NEW-VIEW that nobody waits for, for a view that some have left for already."""
        mine = [
            (epoch, view)
            for epoch, view in sorted(self.coalition.view_changes)
            if self._leads(epoch, view)
        ]
        return [(0, encode(self._forge(*mine[-1])))] if mine else []

    def _leads(self, epoch: int, view: int) -> bool:
        page = self.coalition.book.page(epoch)
        return page is not None and self.is_mine(epoch, view % len(page.keys))

    def _forge(self, epoch: int, view: int) -> NewView:
        """A NEW-VIEW for this view with one thing wrong, O matching and all signatures ours."""
        self.counts["newview"] += 1
        held = dict(sorted(self.coalition.view_changes.get((epoch, view), {}).items()))
        changes = list(held.values())
        page = self.coalition.book.page(epoch) or self.coalition.book.latest
        quorum = page.quorum
        self.rng.shuffle(changes)
        match self.rng.randrange(6):
            case 0:
                changes = changes[:quorum]
            case 1:
                changes = [self._lie(change) for change in changes][:quorum]
            case 2:
                # The ones that prepared the least: what was decided may not be among it.
                changes.sort(key=lambda change: len(change.prepared))
                changes = changes[: self.rng.randint(1, quorum - 1)]
            case 3:
                changes.sort(key=lambda change: len(change.prepared))
                fewer = changes[: max(1, quorum - 1)]
                changes = (fewer + fewer * quorum)[:quorum]
            case 4:
                changes = [replace(change, prepared=()) for change in changes][:quorum]
            case _:
                changes = changes[:quorum]
        changes = [self.coalition.seal_change(change) for change in changes]
        changes.sort(key=lambda change: change.signer)
        return self._sign(epoch, view, changes)

    def _sign(self, epoch: int, view: int, changes: list[ViewChange]) -> NewView:
        start, digests = follows(changes)
        if digests and self.rng.random() < 0.2:
            # Not what follows: another operation, or one slot less.
            decoy = operation_digest(self.rng.choice(self.coalition.decoys))
            digests = digests[:-1] if self.rng.random() < 0.5 else [decoy, *digests[1:]]
        me = self.coalition.index(self.me, epoch)
        assert me is not None, "only who leads a view forges its NEW-VIEW"
        proposals = []
        for sequence, digest in enumerate(digests[:16], start + 1):
            vote = Vote(VoteKind.PRE_PREPARE, epoch, view, sequence, digest, me, b"")
            proposals.append((digest, self.coalition.signed(vote).signature))
        return self.coalition.seal_new_view(
            NewView(epoch, view, me, tuple(changes), tuple(proposals))
        )

    def _lie(self, change: ViewChange) -> ViewChange:
        """Our own VIEW-CHANGE with something left out or made up; others' stay as they are."""
        if self.coalition.signer(change.epoch, change.signer) is None:
            return change
        low, view, epoch = change.low, change.view, change.epoch
        match self.rng.randrange(4):
            case 0:
                lie = replace(change, prepared=())
            case 1 if view > 0:
                sequence = low + self.rng.randint(1, self.coalition.window)
                forged = self._certificate(VoteKind.PREPARE, epoch, view - 1, sequence)
                kept = [proof for proof in change.prepared if proof.sequence < sequence]
                lie = replace(change, prepared=(*kept, forged))
            case 2:
                far = low + self.coalition.interval * self.rng.randint(1, 3)
                stable = self._certificate(VoteKind.STABLE, epoch, 0, far)
                lie = replace(change, low=far, stability=stable, prepared=())
            case _:
                lie = replace(change, prepared=change.prepared[1:])
        return self.coalition.seal_change(lie)

    def _certificate(self, kind: VoteKind, epoch: int, view: int, sequence: int) -> Certificate:
        """A quorum's worth of signatures, of which only the liars' own are real."""
        page = self.coalition.book.page(epoch) or self.coalition.book.latest
        n = len(page.keys)
        digest = operation_digest(self.rng.choice(self.coalition.decoys))
        chosen = {view % n, *self.coalition.ours(epoch)}
        others = [index for index in range(n) if index not in chosen]
        signers = sorted([*chosen, *others][: max(page.quorum, len(chosen))])
        signatures = []
        for signer in signers:
            vote = Vote(kind, epoch, view, sequence, digest, signer, b"")
            made = self.coalition.signed(vote).signature
            signatures.append(made or bytes(SIGNATURE_BYTES))
        return Certificate(kind, epoch, view, sequence, digest, tuple(signers), tuple(signatures))


class Forger(Liar):
    """Forges what others are known by: their votes, their quorums, the ledger that they certified.

    It turns PREPAREs that it heard into COMMITs of the same signers, adds votes in others' names
    to its own, orders checkpoints that nobody attested, and serves false snapshots.
    """

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        message = decode(data)
        if self.rng.random() < 0.4:
            return [(0, data)]
        self.counts["forge"] += 1
        match message:
            case Vote() if message.kind in (VoteKind.PREPARE, VoteKind.COMMIT):
                return [(0, data), *self._in_their_names(message)]
            case PrePrepare(vote, _):
                decoy = self.rng.choice(self.coalition.decoys)
                own = self.coalition.signed(replace(vote, digest=operation_digest(decoy)))
                # Votes of all for a proposal that only this target has seen.
                prepare = replace(own, kind=VoteKind.PREPARE)
                return [(0, encode(PrePrepare(own, decoy))), *self._in_their_names(prepare)]
            case Candidate(vote, record):
                wrong = replace(record, anchor_root=hashlib.sha256(record.anchor_root).digest())
                return [
                    (0, data),
                    (
                        0,
                        self._unattested(
                            vote,
                            Checkpoint(
                                wrong,
                                self._quorum(
                                    replace(vote, kind=VoteKind.ATTEST, digest=wrong.digest)
                                ),
                            ),
                        ),
                    ),
                ]
            case Stability(certificate, ledger) if ledger and self.rng.random() < 0.8:
                return [(0, encode(Stability(certificate, other_ledger(ledger))))]
            case CommitProof(_, certificate):
                decoy = self.rng.choice(self.coalition.decoys)
                other = replace(certificate, digest=operation_digest(decoy))
                return [(0, encode(CommitProof(decoy, other)))]
            case Stability(certificate, _):
                forged = replace(
                    certificate, sequence=certificate.sequence + self.coalition.interval
                )
                return [(0, data), (0, encode(Stability(forged)))]
            case _:
                return [(0, data)]

    def incoming(self, data: bytes) -> bool:
        self.coalition.hear(data)
        return True

    def _in_their_names(self, vote: Vote) -> list[Sent]:
        kinds = (VoteKind.PREPARE, VoteKind.COMMIT)
        made = [
            (0, encode(self.coalition.signed(replace(vote, kind=kind, signer=signer))))
            for kind in kinds
            for signer in range(self.coalition.n)
            if signer != vote.signer
        ]
        promoted = [
            (0, encode(replace(heard, kind=VoteKind.COMMIT)))
            for heard in map(_as_vote, list(self.coalition.heard)[-16:])
            if heard is not None and heard.kind is VoteKind.PREPARE
        ]
        return made + promoted

    def _quorum(self, vote: Vote) -> Certificate:
        signers = tuple(range(self.coalition.book.latest.quorum))
        signatures = tuple(
            self.coalition.signed(replace(vote, signer=signer)).signature for signer in signers
        )
        return Certificate(
            vote.kind, vote.epoch, vote.view, vote.sequence, vote.digest, signers, signatures
        )

    def _unattested(self, vote: Vote, checkpoint: Checkpoint) -> bytes:
        return encode(Request(operation_bytes(checkpoint)))


def _as_vote(data: bytes) -> Vote | None:
    if data[:1] != bytes([VoteKind.PREPARE]):
        return None
    message = decode(data)
    return message if isinstance(message, Vote) else None


__all__ = ["Coalition", "Forger", "NewViewForger", "follows"]
