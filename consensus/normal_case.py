"""The normal case of PBFT (section 4.2): pre-prepare, prepare, commit.

One function per transition. Each checks everything before it changes anything, so refusing is
free of side effects; each ends by asking whether the next transition is now possible.

What a PREPARE says is "I hold this operation and have promised this slot to it", never "I like
it": validity is the deterministic, stateless part alone (ADR 0002).
"""

from shoal.consensus.certificate import certify
from shoal.consensus.errors import ConsensusError
from shoal.consensus.execution import execute_ready
from shoal.consensus.messages import PrePrepare
from shoal.consensus.records import NULL_DIGEST, operation_digest, parse_operation
from shoal.consensus.state import Core
from shoal.consensus.validity import validate
from shoal.consensus.view_start import give_up_on
from shoal.consensus.votes import Vote, VoteKind, require_signature

# COMMITs of this many views are kept per signer and slot, the highest ones.
COMMIT_VIEWS_PER_SIGNER = 4


def propose(core: Core) -> None:
    """As primary, give pending operations the next free sequences up to the horizon.

    Where the ledger says that the epoch is to end, what is left of it is filled with nothing.
    """
    if core.safety is None or not core.active or not _is_our_turn(core):
        return
    in_flight = {proposal.digest for proposal in core.open_proposals().values()}
    for digest, waiting in core.pending.items():
        if not _is_our_turn(core):
            return
        if digest not in in_flight and digest in core.pending:
            _propose_one(core, digest, waiting.data)
    while core.ledger.boundary >= core.next_sequence and _is_our_turn(core):
        _propose_one(core, NULL_DIGEST, b"")


def _is_our_turn(core: Core) -> bool:
    """Whether the next free sequence may be proposed now, and by us."""
    assert core.safety is not None
    sequence = core.next_sequence
    return (
        core.in_window(sequence)
        and sequence <= core.horizon
        and core.proposer(sequence) == core.safety.me
    )


def _propose_one(core: Core, digest: bytes, operation: bytes) -> None:
    assert core.safety is not None
    sequence = core.next_sequence
    core.next_sequence += 1
    vote = core.safety.vote(VoteKind.PRE_PREPARE, view=core.view, sequence=sequence, digest=digest)
    core.keep_body(sequence, digest, operation)
    core.persist(f"accept/{sequence}", vote.to_bytes())
    core.slot(sequence).proposal = vote
    core.broadcast(PrePrepare(vote, operation))
    check_prepared(core, sequence)


def on_pre_prepare(core: Core, message: PrePrepare) -> None:
    """PRE-PREPARE from the primary of our view: promise it the slot, and say so."""
    vote = message.vote
    _require_current(core, vote)
    if vote.signer != core.proposer(vote.sequence):
        raise ConsensusError("not-the-primary")
    if operation_digest(message.operation) != vote.digest:
        raise ConsensusError("digest-mismatch")
    require_signature(vote, core.verifier)
    known = core.proposal(vote.sequence)
    if known is not None:
        if known.digest != vote.digest:
            _depose(core, known, vote)
            raise ConsensusError("equivocation")
        core.keep_body(vote.sequence, vote.digest, message.operation)
        execute_ready(core)
        return
    if vote.sequence <= core.plan_end:
        raise ConsensusError("not-in-the-new-view")
    if vote.sequence > core.horizon:
        _defer(core, message)
        return
    decision = core.decisions.get(vote.sequence)
    if decision is not None and decision.certificate.digest != vote.digest:
        raise ConsensusError("decided-otherwise")
    # What is pending has been found valid in this epoch already.
    reason = None
    if vote.digest not in core.pending:
        reason = validate(parse_operation(message.operation), core.verifier)
    if reason is not None:
        raise ConsensusError("invalid-proposal", reason)
    core.keep_body(vote.sequence, vote.digest, message.operation)
    core.persist(f"accept/{vote.sequence}", vote.to_bytes())
    accept(core, vote)


def _defer(core: Core, message: PrePrepare) -> None:
    """Keep a checked proposal until it is due; a second one says what it always says."""
    vote, slot = message.vote, core.slot(message.vote.sequence)
    if slot.deferred is not None and slot.deferred.vote.view == vote.view:
        if slot.deferred.vote.digest != vote.digest:
            _depose(core, slot.deferred.vote, vote)
            raise ConsensusError("equivocation")
        return
    slot.deferred = message


def take_deferred(core: Core) -> None:
    """PRE-PREPAREs that came before we had executed the stability point below them."""
    for sequence, slot in sorted(core.slots.items()):
        message = slot.deferred
        if message is not None and sequence <= core.horizon:
            slot.deferred = None
            try:
                on_pre_prepare(core, message)
            except ConsensusError as error:
                core.refused[error.reason] += 1


def _depose(core: Core, known: Vote, other: Vote) -> None:
    core.accuse("equivocating-primary", other.signer, known, other)
    give_up_on(core, other.signer)


def _require_current(core: Core, vote: Vote) -> None:
    """Proposals count only in the view that we are in, and only inside the window."""
    if vote.view != core.view or not core.active:
        raise ConsensusError("other-view", f"{vote.view}, ours is {core.view}")
    if not core.in_window(vote.sequence):
        raise ConsensusError("outside-window", str(vote.sequence))


def accept(core: Core, proposal: Vote) -> None:
    """Take a checked proposal into its slot and send PREPARE, unless we are the primary."""
    sequence = proposal.sequence
    slot = core.slot(sequence)
    slot.proposal = proposal
    if core.safety is not None and proposal.signer != core.safety.me:
        vote = core.safety.vote(
            VoteKind.PREPARE, view=proposal.view, sequence=sequence, digest=proposal.digest
        )
        slot.prepares[core.safety.me] = vote
        core.broadcast(vote)
    check_prepared(core, sequence)


def adopt_plan(core: Core) -> None:
    """Treat the NEW-VIEW's proposals as PRE-PREPAREs (PBFT 4.4), as far as the window reaches.

    They are not validated again: a value that a quorum may have committed must go through
    whatever we think of it. Slots that we executed already are agreed on again for those who
    have not, and not executed again.
    """
    for sequence, (digest, signature) in sorted(core.plan.items()):
        if core.proposal(sequence) is not None or not core.in_window(sequence):
            continue
        if sequence > core.horizon:
            break
        decision = core.decisions.get(sequence)
        if decision is not None and decision.certificate.digest != digest:
            # A NEW-VIEW that came too late to matter, or another of the same liar's, can say
            # something else than was decided in a later view, or in this one. In no later view.
            assert decision.certificate.view >= core.view, "agreement is broken"
            continue
        primary = core.validators.leader(core.view)
        epoch = core.validators.epoch
        accept(
            core,
            Vote(VoteKind.PRE_PREPARE, epoch, core.view, sequence, digest, primary, signature),
        )


def on_prepare(core: Core, vote: Vote) -> None:
    """PREPARE from a backup, of our view or of one that we have not entered yet."""
    if vote.view < core.view:
        raise ConsensusError("old-view")
    if not core.in_window(vote.sequence):
        raise ConsensusError("outside-window", str(vote.sequence))
    if vote.view == core.view and core.active and vote.signer == core.proposer(vote.sequence):
        raise ConsensusError("primary-does-not-prepare")
    certified = core.prepared.get(vote.sequence)
    if certified is not None and (certified.view, certified.digest) == (vote.view, vote.digest):
        # One more than was needed; its signature would prove nothing new.
        return
    require_signature(vote, core.verifier)
    slot = core.slot(vote.sequence)
    known = slot.prepares.get(vote.signer)
    if known is not None and known.view >= vote.view:
        if known.view == vote.view and known.digest != vote.digest:
            core.accuse("prepare-equivocation", vote.signer, known, vote)
            raise ConsensusError("equivocation")
        return
    slot.prepares[vote.signer] = vote
    check_prepared(core, vote.sequence)


def check_prepared(core: Core, sequence: int) -> None:
    """prepared(v, s, d): the PRE-PREPARE and Q - 1 PREPAREs that agree; then send COMMIT."""
    slot = core.slot(sequence)
    proposal = core.proposal(sequence)
    if core.safety is None or not core.active or proposal is None:
        return
    known = core.prepared.get(sequence)
    if known is not None and known.view == core.view:
        return
    equal = [
        vote
        for signer, vote in sorted(slot.prepares.items())
        if (vote.view, vote.digest) == (proposal.view, proposal.digest)
        and signer != proposal.signer
    ]
    needed = core.validators.quorum - 1
    if len(equal) < needed:
        return
    certificate = certify(VoteKind.PREPARE, [proposal, *equal[:needed]])
    core.prepared[sequence] = certificate
    core.persist(f"prepared/{sequence}", certificate.to_bytes())
    commit = core.safety.vote(
        VoteKind.COMMIT, view=core.view, sequence=sequence, digest=proposal.digest
    )
    core.broadcast(commit)
    _count_commit(core, commit)


def on_commit(core: Core, vote: Vote) -> None:
    """COMMIT of any view: Q of them prove the decision, whatever view we are in by now."""
    if not core.in_window(vote.sequence):
        raise ConsensusError("outside-window", str(vote.sequence))
    if _decided_digest(core, vote.sequence) == vote.digest:
        return
    require_signature(vote, core.verifier)
    known = core.slot(vote.sequence).commits.get(vote.signer, {}).get(vote.view)
    if known is not None:
        if known.digest != vote.digest:
            core.accuse("commit-equivocation", vote.signer, known, vote)
            raise ConsensusError("equivocation")
        return
    _count_commit(core, vote)


def _decided_digest(core: Core, sequence: int) -> bytes | None:
    """What is known to be decided at this sequence, executed or not."""
    decision = core.decisions.get(sequence)
    certificate = decision.certificate if decision else core.committed.get(sequence)
    return certificate.digest if certificate else None


def _count_commit(core: Core, vote: Vote) -> None:
    commits = core.slot(vote.sequence).commits
    theirs = commits.setdefault(vote.signer, {})
    theirs[vote.view] = vote
    if len(theirs) > COMMIT_VIEWS_PER_SIGNER:
        del theirs[min(theirs)]
    if vote.sequence <= core.executed or vote.sequence in core.committed:
        return
    equal = [
        votes[vote.view]
        for _, votes in sorted(commits.items())
        if vote.view in votes and votes[vote.view].digest == vote.digest
    ]
    if len(equal) >= core.validators.quorum:
        core.committed[vote.sequence] = certify(VoteKind.COMMIT, equal)
        execute_ready(core)
