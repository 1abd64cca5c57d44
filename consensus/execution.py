"""After the commit: execute in order, vote STABLE, move the watermark (PBFT 4.2 end, 4.3).

A stability point is PBFT's own log checkpoint: after every K-th sequence each replica signs the
digest of its ledger, and Q such signatures let everybody forget the log up to there. The word
checkpoint is the model's alone.

Two traps live here. A replica that restarts after executing such a sequence must make its STABLE
vote again, or a mesh with exactly Q alive never moves its window; and a stability certificate
counts even for a replica that never voted for it.
"""

from shoal.consensus.certificate import (
    Certificate,
    certify,
    check_certificate,
    verify_certificate,
)
from shoal.consensus.effects import Decided, Restored
from shoal.consensus.epoch_change import begin_epoch, drop_settled
from shoal.consensus.epochs import EpochLink
from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import blob, u8
from shoal.consensus.ledger import Executed, Ledger, Result, ledger_digest, split_snapshot
from shoal.consensus.records import parse_operation
from shoal.consensus.state import Core, Decision
from shoal.consensus.votes import Vote, VoteKind, require_signature

# STABLE votes are kept for this many sequences per signer, the highest ones.
STABLE_VOTES_PER_SIGNER = 4


def result_bytes(result: Result) -> bytes:
    """How a result is stored beside its commit certificate."""
    return u8(0) if isinstance(result, Executed) else u8(1) + blob(result.reason.encode())


def execute_ready(core: Core) -> None:
    """Execute committed operations in sequence order, as far as their bytes are here."""
    while (certificate := core.committed.get(core.executed + 1)) is not None:
        body = core.body(certificate.digest)
        if body is None:
            return
        _execute(core, certificate, body)


def _execute(core: Core, certificate: Certificate, body: bytes) -> None:
    sequence = certificate.sequence
    operation = parse_operation(body)
    result = core.ledger.execute(sequence, operation, certificate.digest)
    del core.committed[sequence]
    core.decisions[sequence] = Decision(certificate, body, result)
    core.keep_body(sequence, certificate.digest, body)
    core.persist(f"commit/{sequence}", certificate.to_bytes() + result_bytes(result))
    core.outbox.add(Decided(sequence, operation, body, certificate, result))
    core.next_sequence = max(core.next_sequence, sequence + 1)
    drop_settled(core)
    if sequence % core.interval == 0:
        reach_stability_point(core)


def reach_stability_point(core: Core) -> None:
    """The ledger has reached a multiple of K: keep it, and vote for its digest (PBFT 4.3)."""
    sequence = core.executed
    core.keep_snapshot()
    announce_stable(core, sequence)
    if core.target is not None and core.target.sequence <= sequence:
        adopt_stability(core, core.target)


def announce_stable(core: Core, sequence: int) -> None:
    """Send STABLE for a ledger of ours; after a restart this makes the lost vote again."""
    if core.safety is not None and sequence in core.snapshots:
        digest = ledger_digest(core.snapshots[sequence])
        vote = core.safety.vote(VoteKind.STABLE, view=0, sequence=sequence, digest=digest)
        core.broadcast(vote)
        _count_stable(core, vote)


def on_stable(core: Core, vote: Vote) -> None:
    """A STABLE vote: remember it, and move the watermark once Q agree."""
    if vote.sequence <= core.low:
        return
    if vote.sequence % core.interval or vote.view != 0:
        raise ConsensusError("not-a-stability-point", str(vote.sequence))
    require_signature(vote, core.verifier)
    known = core.stable_votes.get(vote.signer, {}).get(vote.sequence)
    if known is not None and known.digest != vote.digest:
        core.accuse("stable-equivocation", vote.signer, known, vote)
        raise ConsensusError("equivocation")
    _count_stable(core, vote)


def _count_stable(core: Core, vote: Vote) -> None:
    theirs = core.stable_votes.setdefault(vote.signer, {})
    theirs[vote.sequence] = vote
    if len(theirs) > STABLE_VOTES_PER_SIGNER:
        del theirs[min(theirs)]
    equal = [
        votes[vote.sequence]
        for votes in core.stable_votes.values()
        if vote.sequence in votes and votes[vote.sequence].digest == vote.digest
    ]
    if len(equal) >= core.validators.quorum:
        adopt_stability(core, certify(VoteKind.STABLE, equal))


def on_stability_certificate(core: Core, certificate: Certificate) -> None:
    """A stability certificate from anywhere: valid is enough, our own vote is not needed."""
    if certificate.kind is not VoteKind.STABLE:
        raise ConsensusError("not-a-stability-certificate")
    if certificate.sequence % core.interval:
        raise ConsensusError("not-a-stability-point", str(certificate.sequence))
    if certificate.sequence > core.low:
        core.epochs.require_within(certificate.epoch, certificate.sequence)
        if certificate.epoch == core.epoch:
            check_certificate(certificate, core.verifier)
        else:
            # An epoch that is proved to us and that we have not reached yet.
            validators = core.epochs.validators(certificate.epoch)
            verify_certificate(certificate, validators, core.verifier.verify)
        adopt_stability(core, certificate)


def adopt_stability(core: Core, certificate: Certificate) -> None:
    """Move the low watermark there, or remember it as the place to catch up to."""
    sequence = certificate.sequence
    if sequence <= core.low:
        return
    if sequence > core.executed:
        if core.target is None or core.target.sequence < sequence:
            core.target = certificate
        return
    snapshot = core.snapshots.get(sequence)
    if snapshot is None:
        # Let go of since; a later certificate will do.
        return
    assert ledger_digest(snapshot) == certificate.digest, "our ledger differs from a quorum's"
    _move_watermark(core, certificate, snapshot)


def follow_epochs(core: Core) -> None:
    """Behind an epoch that is proved to us: go there if we hold its first ledger, or aim for it.

    Asked after every step and not only when the proof arrives: that may be before its ledger is
    executed here, in a message that is refused for what else is in it, or in an earlier process.
    """
    if core.epochs.last > core.epoch:
        adopt_stability(core, core.epochs.link(core.epoch + 1).certificate)


def _move_watermark(core: Core, certificate: Certificate, snapshot: bytes) -> None:
    sequence = certificate.sequence
    core.low, core.stability, core.snapshot = sequence, certificate, snapshot
    core.persist("stable", certificate.to_bytes())
    core.persist("snapshot", snapshot)
    if core.target is not None and core.target.sequence <= sequence:
        core.target = None
    if core.safety is not None:
        core.safety.forget(sequence)
    _forget_log(core, sequence)
    core.next_sequence = max(core.next_sequence, sequence + 1)
    epoch, body_digest = split_snapshot(snapshot)
    if epoch.number > core.epoch:
        begin_epoch(core, EpochLink(epoch, body_digest, certificate))


def _forget_log(core: Core, low: int) -> None:
    """Garbage collection up to the watermark; decisions stay a while longer for slow peers."""
    for sequence in [s for s in core.slots if s <= low]:
        del core.slots[sequence]
        core.persist(f"accept/{sequence}", None)
    for sequence in [s for s in core.prepared if s <= low]:
        del core.prepared[sequence]
        core.persist(f"prepared/{sequence}", None)
    core.snapshots = {s: data for s, data in core.snapshots.items() if s > low}
    core.committed = {s: proof for s, proof in core.committed.items() if s > low}
    for votes in core.stable_votes.values():
        for sequence in [s for s in votes if s <= low]:
            del votes[sequence]
    for sequence in [s for s in core.decisions if s <= low - core.config.retained]:
        del core.decisions[sequence]
        core.persist(f"commit/{sequence}", None)
    _forget_bodies(core, low)


def _forget_bodies(core: Core, low: int) -> None:
    for sequence in [s for s in core.body_sequences if s <= low]:
        decision = core.decisions.get(sequence)
        for digest in sorted(core.body_sequences[sequence]):
            if decision is None or decision.certificate.digest != digest:
                core.body_sequences[sequence].discard(digest)
                core.persist(f"op/{sequence}/{digest.hex()}", None)
        if not core.body_sequences[sequence]:
            del core.body_sequences[sequence]
    kept = {digest for digests in core.body_sequences.values() for digest in digests}
    core.bodies = {digest: body for digest, body in core.bodies.items() if digest in kept}


def install_snapshot(core: Core, certificate: Certificate, snapshot: bytes) -> None:
    """State transfer (PBFT 4.6.2): a certified ledger replaces ours, which is behind it."""
    sequence = certificate.sequence
    if ledger_digest(snapshot) != certificate.digest:
        raise ConsensusError("snapshot-differs")
    ledger = Ledger.restore(snapshot)
    assert ledger.sequence == sequence and ledger.mesh_id == core.ledger.mesh_id
    core.ledger = ledger
    # What was decided below is not ours to prove any more: there would be a gap in it.
    for decided in list(core.decisions):
        del core.decisions[decided]
        core.persist(f"commit/{decided}", None)
    core.outbox.add(Restored(Ledger.restore(snapshot), certificate))
    _move_watermark(core, certificate, snapshot)
    drop_settled(core)
    execute_ready(core)
