"""The view change of PBFT (section 4.4), with every check of consensus.md 1.4.

A VIEW-CHANGE says what its sender prepared; Q of them together must contain whatever may have
been committed, since any two quorums share an honest replica. The new primary's NEW-VIEW shows
those Q messages and proposes, for each slot between the highest stability point and the highest
prepared slot, the certificate of the highest view, or the null operation. It is a pure function
of the messages, so every backup computes it again and compares, slot for slot.

Timers (see pacemaker.py): the new-view timer starts once, when Q VIEW-CHANGEs for our view are
first held. Starting it earlier makes views run away from each other; starting it again when
another VIEW-CHANGE arrives lets a repeated message hold up the change for ever.
"""

from dataclasses import replace

from shoal.consensus.certificate import Certificate, check_certificate
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import (
    NEW_VIEW_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    NewView,
    ViewChange,
    encode,
    sealed_bytes,
)
from shoal.consensus.normal_case import adopt_plan
from shoal.consensus.pacemaker import view_timeout_ms
from shoal.consensus.records import NULL_DIGEST
from shoal.consensus.state import Core
from shoal.consensus.view_start import follow_to, forget_own, leave_view, persist_view
from shoal.consensus.votes import Vote, VoteKind


def on_view_change(core: Core, change: ViewChange) -> None:
    """VIEW-CHANGE from a peer: check it and keep it; Replica._settle draws the conclusions."""
    if change.view < core.view or (change.view == core.view and core.active):
        raise ConsensusError("old-view")
    if core.safety is None:
        return
    require_view_change(core, change)
    known = core.view_changes.get(change.signer, {}).get(change.view)
    if known is not None:
        if known.body() != change.body():
            core.accuse("view-change-equivocation", change.signer, known, change)
            raise ConsensusError("equivocation")
        return
    _remember(core, change)


def require_view_change(core: Core, change: ViewChange) -> None:
    """All that makes a VIEW-CHANGE count; raises ConsensusError before anything is changed."""
    validators = core.validators
    if change.epoch != validators.epoch:
        raise ConsensusError("wrong-epoch")
    message = sealed_bytes(VIEW_CHANGE_DOMAIN, validators.mesh_id, change.body())
    if not core.verifier.check(change.signer, message, change.signature):
        raise ConsensusError("bad-signature", "view-change")
    proof = change.stability
    if change.low % core.interval or change.low < core.start:
        raise ConsensusError("not-a-stability-point", str(change.low))
    if (proof is None) != (change.low == core.start):
        raise ConsensusError("stability-proof-missing")
    if proof is not None:
        if proof.kind is not VoteKind.STABLE or proof.sequence != change.low:
            raise ConsensusError("stability-proof-of-something-else")
        check_certificate(proof, core.verifier)
    last = change.low
    for certificate in change.prepared:
        if certificate.kind is not VoteKind.PREPARE or certificate.view >= change.view:
            raise ConsensusError("prepared-proof-of-something-else")
        if not last < certificate.sequence <= change.low + core.window:
            raise ConsensusError("prepared-out-of-order")
        last = certificate.sequence
        check_certificate(certificate, core.verifier)


def _remember(core: Core, change: ViewChange) -> None:
    """Keep, per signer, the VIEW-CHANGE for our own view and the one for the highest view."""
    theirs = core.view_changes.setdefault(change.signer, {})
    theirs[change.view] = change
    highest = max(theirs)
    for view in [v for v in theirs if v not in (core.view, highest)]:
        del theirs[view]


def join_others(core: Core) -> None:
    """f + 1 validators in higher views: at least one is honest, so go with the lowest of them."""
    while True:
        higher = [max(theirs) for theirs in core.view_changes.values() if max(theirs) > core.view]
        if len(higher) < core.validators.weak:
            return
        follow_to(core, min(higher))


def held_view_changes(core: Core) -> dict[int, ViewChange]:
    """The VIEW-CHANGEs for our own view, by signer in ascending order."""
    held = sorted(core.view_changes.items())
    return {signer: theirs[core.view] for signer, theirs in held if core.view in theirs}


def check_view_quorum(core: Core) -> None:
    """With Q VIEW-CHANGEs for our view: start the new-view timer, and the view if it is ours."""
    if core.active or core.safety is None:
        return
    held = held_view_changes(core)
    if len(held) < core.validators.quorum:
        return
    if core.new_view_timer_view != core.view:
        core.new_view_timer_view = core.view
        core.outbox.set_timer("new-view", core.now_ms + view_timeout_ms(core))
    if core.validators.leader(core.view) == core.safety.me:
        _start_view(core, held)


def _start_view(core: Core, held: dict[int, ViewChange]) -> None:
    """As the new primary: choose Q VIEW-CHANGEs, our own among them, and send NEW-VIEW."""
    assert core.safety is not None
    me = core.safety.me
    others = [change for signer, change in held.items() if signer != me]
    chosen = sorted(
        [held[me], *others[: core.validators.quorum - 1]], key=lambda change: change.signer
    )
    start, digests = plan_of(chosen)
    proposals = []
    for sequence, digest in enumerate(digests, start + 1):
        vote = core.safety.vote(
            VoteKind.PRE_PREPARE, view=core.view, sequence=sequence, digest=digest
        )
        proposals.append((digest, vote.signature))
    unsigned = NewView(core.validators.epoch, core.view, me, tuple(chosen), tuple(proposals))
    message = replace(unsigned, signature=core.safety.seal(NEW_VIEW_DOMAIN, unsigned.body()))
    core.broadcast(message)
    enter_view(core, message)


def plan_of(changes: list[ViewChange]) -> tuple[int, list[bytes]]:
    """(min, digests of min+1, min+2, ...): O of the paper, from the VIEW-CHANGEs alone."""
    start = max(change.low for change in changes)
    best: dict[int, Certificate] = {}
    for change in changes:
        for certificate in change.prepared:
            known = best.get(certificate.sequence)
            if known is None or known.view < certificate.view:
                best[certificate.sequence] = certificate
    end = max([start, *best])
    return start, [
        best[sequence].digest if sequence in best else NULL_DIGEST
        for sequence in range(start + 1, end + 1)
    ]


def on_new_view(core: Core, message: NewView) -> None:
    """NEW-VIEW: check the sender, then the proof, then every slot; enter it or move on."""
    if message.view < core.view or (message.view == core.view and core.active):
        raise ConsensusError("old-view")
    validators = core.validators
    if message.epoch != validators.epoch:
        raise ConsensusError("wrong-epoch")
    if message.signer != validators.leader(message.view):
        raise ConsensusError("not-the-primary")
    signed = sealed_bytes(NEW_VIEW_DOMAIN, validators.mesh_id, message.body())
    if not core.verifier.check(message.signer, signed, message.signature):
        raise ConsensusError("bad-signature", "new-view")
    try:
        require_new_view(core, message)
    except ConsensusError:
        # Signed by the primary and wrong: it is Byzantine. Only in our own view do we let that
        # move us, or it could drag us to any view that it is the primary of.
        core.accuse("invalid-new-view", message.signer, message, None)
        if message.view == core.view and core.safety is not None:
            leave_view(core, core.view + 1)
        raise
    enter_view(core, message)


def require_new_view(core: Core, message: NewView) -> None:
    """Q distinct valid VIEW-CHANGEs, and exactly the proposals that follow from them."""
    signers = [change.signer for change in message.view_changes]
    if signers != sorted(set(signers)) or len(signers) < core.validators.quorum:
        raise ConsensusError("no-quorum", "new-view")
    for change in message.view_changes:
        if change.view != message.view:
            raise ConsensusError("view-change-of-another-view")
        require_view_change(core, change)
    start, digests = plan_of(list(message.view_changes))
    if [digest for digest, _ in message.proposals] != digests:
        raise ConsensusError("new-view-differs")
    for sequence, (digest, signature) in enumerate(message.proposals, start + 1):
        vote = Vote(
            VoteKind.PRE_PREPARE,
            message.epoch,
            message.view,
            sequence,
            digest,
            message.signer,
            signature,
        )
        if not vote.verified_by(core.verifier):
            raise ConsensusError("bad-signature", "new-view proposal")


def enter_view(core: Core, message: NewView) -> None:
    """The view is active. What we may still lack below its first slot comes by catch-up."""
    assert message.view >= core.view, "views never go backwards"
    core.view, core.active = message.view, True
    core.guard = None
    core.outbox.cancel_timer("progress")
    core.outbox.cancel_timer("new-view")
    core.persist("new-view", encode(message))
    persist_view(core)
    load_plan(core, message)
    for view in [v for v in core.own_view_changes if v <= message.view]:
        forget_own(core, view)
    core.view_changes = {
        signer: later
        for signer, theirs in core.view_changes.items()
        if (later := {v: change for v, change in theirs.items() if v > message.view})
    }
    core.next_sequence = max(core.plan_end, core.executed, core.low) + 1
    for change in message.view_changes:
        if change.stability is not None and change.low > core.executed:
            core.target = change.stability
    adopt_plan(core)


def load_plan(core: Core, message: NewView) -> None:
    """The proposals of a checked NEW-VIEW, by sequence."""
    start, _ = plan_of(list(message.view_changes))
    core.new_view = message
    core.plan = dict(enumerate(message.proposals, start + 1))
    core.plan_end = start + len(message.proposals)


def on_new_view_timeout(core: Core) -> None:
    """Q validators wait and the new primary does not come: on to the next one."""
    if not core.active and core.safety is not None:
        leave_view(core, core.view + 1)
