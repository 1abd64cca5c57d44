"""From one voting set to the next (consensus.md 3.3).

The ledger decides that an epoch ends, and executes up to the stability point where it does. When
a quorum of the old set has certified the ledger there, that certificate is two things: the last
stability point of the old epoch, and the proof of the new one. Everybody then forgets the votes,
views and timers of the old epoch: nothing said there can count again (FISCO FIB-137).

The new epoch starts in view 0 once a quorum of the new set has said READY, that it holds this
very ledger. Until then nobody votes in it, so no timer runs against validators that are still
fetching their state, and whoever left the set knows when it is not needed any more.
"""

from shoal.consensus.certificate import Certificate, certify, check_certificate
from shoal.consensus.effects import EpochStarted
from shoal.consensus.epochs import EpochLink
from shoal.consensus.errors import ConsensusError
from shoal.consensus.evidence import EVIDENCE_EPOCHS
from shoal.consensus.messages import Epochs
from shoal.consensus.safety import SafetyRules
from shoal.consensus.state import PREFIX, Core
from shoal.consensus.validators import Verifier
from shoal.consensus.validity import validate
from shoal.consensus.votes import Vote, VoteKind, require_signature


def voting_in(core: Core, number: int) -> tuple[Verifier, SafetyRules | None]:
    """The means to check an epoch's votes, and to make our own where we are one of its set."""
    validators = core.epochs.validators(number)
    verifier = Verifier(
        validators,
        core.verifier.verify,
        recent=core.epochs.recent(number, EVIDENCE_EPOCHS),
        read_statement=core.config.read_statement,
    )
    index = validators.index(core.config.me)
    if index is None:
        return verifier, None
    safety = SafetyRules(
        sign=core.sign,
        validators=validators,
        me=index,
        prefix=PREFIX,
        persist=core.outbox.persist,
    )
    return verifier, safety


def learn_epoch(core: Core, link: EpochLink) -> None:
    """Keep a proved epoch for good, if it is new to us."""
    number = link.record.number
    if number > core.epochs.last:
        assert link.certificate.sequence == link.record.start, "an epoch starts where it is proved"
        core.epochs.append(link)
        core.persist(f"epoch/{number:08d}", link.to_bytes())
    assert core.epochs.record(number) == link.record, "two epochs of one number were certified"


def begin_epoch(core: Core, link: EpochLink) -> None:
    """The watermark has reached an epoch's first ledger: leave the old one behind for good."""
    learn_epoch(core, link)
    if core.safety is not None:
        core.safety.retire()
    core.verifier, core.safety = voting_in(core, link.record.number)
    _forget_everything(core)
    core.accused.clear()
    drop_settled(core)
    # A checkpoint is attested, and a change approved, by the set of one epoch.
    for digest, waiting in core.pending.items():
        if validate(waiting.operation, core.verifier) is not None:
            core.pending.discard(digest)
    core.outbox.add(EpochStarted(core.validators, link.record.parameters))
    # Those that were not in the old set learn of it here; the link is all that they need.
    core.broadcast(Epochs((core.epochs.link(core.epoch),)))
    announce_ready(core)


def _forget_everything(core: Core) -> None:
    """Votes, views and timers of the old epoch; decisions stay, for those who follow."""
    core.view, core.active, core.backoff = 0, True, 0
    core.persist("view", None)
    core.persist("new-view", None)
    core.persist("ready", None)
    for view in core.own_view_changes:
        core.persist(f"view-change/{view}", None)
    for sequence in core.slots:
        core.persist(f"accept/{sequence}", None)
    for sequence in core.prepared:
        core.persist(f"prepared/{sequence}", None)
    for sequence in [s for s in core.body_sequences if s > core.low]:
        for digest in sorted(core.body_sequences.pop(sequence)):
            core.persist(f"op/{sequence}/{digest.hex()}", None)
    core.slots, core.prepared, core.committed = {}, {}, {}
    core.snapshots, core.stable_votes = {}, {}
    core.own_view_changes, core.view_changes = {}, {}
    core.new_view, core.plan, core.plan_end, core.new_view_timer_view = None, {}, 0, 0
    core.ready_votes, core.ready = {}, None
    core.guard = None
    core.outbox.cancel_timer("progress")
    core.outbox.cancel_timer("new-view")
    core.next_sequence = core.executed + 1


def drop_settled(core: Core) -> None:
    """Forget pending operations whose turn has passed; nobody needs to order those."""
    for digest, waiting in core.pending.items():
        if core.ledger.check(waiting.operation, digest) is not None:
            core.pending.discard(digest)


def announce_ready(core: Core) -> None:
    """As a validator of this epoch that has not started: say that we hold its first ledger."""
    vote = own_ready(core)
    if vote is not None and not core.started:
        core.broadcast(vote)
        _count_ready(core, vote)


def own_ready(core: Core) -> Vote | None:
    """Our READY for this epoch; None where we do not vote, and in epoch 0, which needs none."""
    if core.safety is None or core.epoch == 0:
        return None
    link = core.epochs.link(core.epoch)
    return core.safety.vote(
        VoteKind.READY, view=0, sequence=core.start, digest=link.certificate.digest
    )


def on_ready(core: Core, vote: Vote) -> None:
    """READY from a validator of this epoch."""
    require_signature(vote, core.verifier)
    if core.epoch == 0 or vote.view != 0 or vote.sequence != core.start:
        raise ConsensusError("not-the-start", str(vote.sequence))
    if vote.digest != core.epochs.link(core.epoch).certificate.digest:
        raise ConsensusError("ready-with-another-ledger")
    if vote.signer in core.ready_votes:
        return
    own = own_ready(core)
    if own is not None:
        # It may not have been in this epoch yet when we said so.
        core.send(core.validators.keys[vote.signer], own)
    _count_ready(core, vote)


def _count_ready(core: Core, vote: Vote) -> None:
    core.ready_votes[vote.signer] = vote
    if core.ready is None and len(core.ready_votes) >= core.validators.quorum:
        _start(core, certify(VoteKind.READY, core.ready_votes.values()))


def _start(core: Core, certificate: Certificate) -> None:
    core.ready = certificate
    core.persist("ready", certificate.to_bytes())


def on_epochs(core: Core, message: Epochs) -> None:
    """Proofs of epochs: keep what follows from what we know.

    The certificate that proves the next epoch is also the last stability point of ours;
    execution.follow_epochs adopts it after the step.
    """
    for link in message.links:
        if link.record.number <= core.epochs.last:
            continue
        core.epochs.check(link, core.verifier.verify)
        learn_epoch(core, link)
    ready = message.ready
    if ready is not None and ready.epoch == core.epoch and not core.started:
        claim = (VoteKind.READY, core.start, core.epochs.link(core.epoch).certificate.digest)
        if (ready.kind, ready.sequence, ready.digest) != claim:
            raise ConsensusError("ready-of-something-else")
        check_certificate(ready, core.verifier)
        _start(core, ready)
