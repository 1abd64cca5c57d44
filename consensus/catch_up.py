"""Retransmission and state transfer: PBFT assumes reliable links, and there are none.

Every replica says with STATUS where it stands; whoever knows better answers with what is missing
(Castro's thesis, 5.2): decided operations with their certificates, a snapshot with its stability
certificate, the NEW-VIEW, its own VIEW-CHANGEs (of older views too), its own votes, operation
bytes. Nothing in an answer is believed because a peer says so: a height counts only with a
certificate (CometBFT CVE-2025-24371).

Answers are larger than questions, so each peer is answered at most once per T0 / 4, unless it
has executed more since the last answer.
"""

from dataclasses import replace
from typing import TypeVar

from shoal.consensus.certificate import check_certificate
from shoal.consensus.epoch_change import announce_ready, own_ready
from shoal.consensus.errors import ConsensusError
from shoal.consensus.execution import (
    execute_ready,
    install_snapshot,
    on_stability_certificate,
)
from shoal.consensus.messages import (
    MAX_LINKS,
    MAX_WANTED,
    OBSERVER,
    SLOT_COMMITTED,
    SLOT_PREPARED,
    SLOT_PROPOSED,
    STATUS_DOMAIN,
    CommitProof,
    Epochs,
    PrePrepare,
    Request,
    Stability,
    Status,
    sealed_bytes,
)
from shoal.consensus.pacemaker import is_restless
from shoal.consensus.records import operation_digest
from shoal.consensus.state import Core
from shoal.consensus.votes import VoteKind

T = TypeVar("T")

MAX_ANSWERED_PEERS = 1024
# Decided operations in one answer, in bytes; at least one is always sent.
ANSWER_BYTES = 1024 * 1024
# Pending operations that are sent again with each STATUS of a restless replica: the oldest, since
# that is what the progress timer guards and so what everybody has to have heard of.
REQUESTS_PER_STATUS = 2


def on_status_timer(core: Core) -> None:
    """Say where we stand, and say again what may have been lost."""
    core.broadcast(build_status(core))
    if not is_restless(core):
        return
    if core.safety is not None and not core.active:
        core.broadcast(core.own_view_changes[core.view])
    announce_ready(core)
    for _, waiting in core.pending.items()[:REQUESTS_PER_STATUS]:
        core.broadcast(Request(waiting.data))


def ask(core: Core, peer: bytes) -> None:
    """Tell this peer where we stand, since it may have what we lack; not too often."""
    if core.now_ms - core.asked.get(peer, -core.config.timeout_ms) >= core.config.timeout_ms // 4:
        _note(core.asked, peer, core.now_ms)
        core.send(peer, build_status(core))


def build_status(core: Core) -> Status:
    """What we hold and what we lack, signed unless we only observe."""
    slots = bytes(
        _slot_flags(core, sequence)
        for sequence in range(core.executed + 1, core.low + core.window + 1)
    )
    status = Status(
        epoch=core.validators.epoch,
        proved=core.epochs.last,
        view=core.view,
        active=core.active,
        executed=core.executed,
        low=core.low,
        view_changes=sum(
            1 << signer for signer, theirs in core.view_changes.items() if core.view in theirs
        ),
        slots=slots,
        wanted=tuple(_wanted(core)),
        signer=core.safety.me if core.safety is not None else OBSERVER,
    )
    if core.safety is None:
        return status
    return replace(status, signature=core.safety.seal(STATUS_DOMAIN, status.body()))


def _slot_flags(core: Core, sequence: int) -> int:
    proposed = core.proposal(sequence) is not None
    certificate = core.prepared.get(sequence)
    prepared = certificate is not None and certificate.view == core.view
    return (
        SLOT_PROPOSED * proposed
        | SLOT_PREPARED * prepared
        | SLOT_COMMITTED * (sequence in core.committed)
    )


def _wanted(core: Core) -> list[bytes]:
    """Digests of operations that we shall have to execute and do not hold."""
    digests = {certificate.digest for certificate in core.committed.values()}
    digests |= {proposal.digest for proposal in core.open_proposals().values()}
    return sorted(digest for digest in digests if core.body(digest) is None)[:MAX_WANTED]


def on_status(core: Core, link: bytes, status: Status) -> None:
    """STATUS from a validator, by its signature, or from an observer, by the link it came on."""
    if status.epoch > core.epoch:
        # The peer is in an epoch that we have not reached: it can tell us how we get there.
        ask(core, link)
        raise ConsensusError("later-epoch", str(status.epoch))
    if status.epoch < core.epoch:
        # Signed by a set that is history. What we send proves itself, so the link's word will do.
        if link != core.config.me and _may_answer(core, link, status):
            _send_epochs(core, link, status)
        return
    validators = core.validators
    peer = link
    if status.signer != OBSERVER:
        message = sealed_bytes(STATUS_DOMAIN, validators.mesh_id, status.body())
        if not core.verifier.check(status.signer, message, status.signature):
            raise ConsensusError("bad-signature", "status")
        peer = validators.keys[status.signer]
    if peer == core.config.me or not _may_answer(core, peer, status):
        return
    if status.executed == core.start and core.ready is not None:
        core.send(peer, Epochs((), core.ready))
    _send_decisions(core, peer, status)
    if status.signer == OBSERVER or core.safety is None:
        return
    own = own_ready(core)
    if own is not None and status.executed == core.start and core.ready is None:
        core.send(peer, own)
    _send_view_help(core, peer, status)
    _send_votes(core, peer, status)
    _send_bodies(core, peer, status)
    if status.executed > core.executed or status.low > core.low or status.view > core.view:
        core.send(peer, build_status(core))


def _may_answer(core: Core, peer: bytes, status: Status) -> bool:
    """Whether this peer's turn has come again; if so it is noted that it was answered now."""
    last_ms, last_executed = core.answered.get(peer, (-core.config.timeout_ms, -1))
    progressed = last_executed < status.executed <= core.executed
    if core.now_ms - last_ms < core.config.timeout_ms // 4 and not progressed:
        return False
    _note(core.answered, peer, (core.now_ms, status.executed))
    return True


def _note(table: dict[bytes, T], peer: bytes, value: T) -> None:
    """Keep what is to be known of this peer, and of the last so many others."""
    table.pop(peer, None)
    table[peer] = value
    if len(table) > MAX_ANSWERED_PEERS:
        del table[next(iter(table))]


def _send_epochs(core: Core, peer: bytes, status: Status) -> None:
    """To a peer in an earlier epoch: what was decided there, and the way into the next ones."""
    if status.executed + 1 in core.decisions:
        link = core.epochs.link(status.epoch + 1)
        _send_proofs(core, peer, range(status.executed + 1, link.record.start + 1))
        core.send(peer, Epochs((link,)))
        return
    # One message holds only so many links, so they go on from the last that the peer has.
    proved = min(max(status.epoch, status.proved), core.epochs.last)
    until = min(core.epochs.last, proved + MAX_LINKS)
    if until > proved:
        core.send(peer, Epochs(tuple(map(core.epochs.link, range(proved + 1, until + 1)))))
    if status.executed < core.low and until >= core.epoch and core.stability is not None:
        core.send(peer, Stability(core.stability, core.snapshot))


def _send_decisions(core: Core, peer: bytes, status: Status) -> None:
    """Commit proofs from where the peer stands; a snapshot first where those are gone."""
    position = status.executed
    if position < core.executed and position + 1 not in core.decisions:
        assert core.stability is not None
        core.send(peer, Stability(core.stability, core.snapshot))
        position = core.low
    elif status.low < core.low <= position and core.stability is not None:
        core.send(peer, Stability(core.stability))
    _send_proofs(core, peer, range(position + 1, position + core.window + 1))


def _send_proofs(core: Core, peer: bytes, sequences: range) -> None:
    """The decisions at these sequences, as far as they are here and one answer reaches."""
    size = 0
    for sequence in sequences:
        decision = core.decisions.get(sequence)
        if decision is None or size > ANSWER_BYTES:
            return
        size += len(decision.operation)
        core.send(peer, CommitProof(decision.operation, decision.certificate))


def _send_view_help(core: Core, peer: bytes, status: Status) -> None:
    """The NEW-VIEW that the peer has missed, or our VIEW-CHANGEs that it waits for."""
    behind = status.view < core.view
    # Also when we have left that view: those who wait for it would wait for ever for the vote of
    # whoever died in it, and we have none to give for a view that we were in.
    last = core.new_view
    if last is not None and (status.view, status.active) < (last.view, True):
        core.send(peer, last)
    if core.active:
        return
    assert core.safety is not None
    if behind:
        core.send(peer, core.own_view_changes[core.view])
    # It may be stuck in a view that we have left already, for want of our vote to leave the one
    # before it: two in v and one in v + 1 wait for each other for ever at n = 4.
    older = core.own_view_changes.get(status.view)
    if not status.active and older is not None and not status.view_changes >> core.safety.me & 1:
        core.send(peer, older)


def _send_votes(core: Core, peer: bytes, status: Status) -> None:
    """Our own votes for the peer's open slots, and our STABLE votes that it may lack."""
    assert core.safety is not None
    for sequence in sorted(core.snapshots):
        stable = core.safety.recall(VoteKind.STABLE, view=0, sequence=sequence)
        if stable is not None and sequence > status.low:
            core.send(peer, stable)
    if not (core.active and status.active and status.view == core.view):
        return
    for offset, flags in enumerate(status.slots):
        sequence = status.executed + 1 + offset
        if core.proposal(sequence) is None or sequence in core.decisions:
            continue
        vote = core.safety.recall(VoteKind.PRE_PREPARE, view=core.view, sequence=sequence)
        if vote is not None and not flags & SLOT_PROPOSED and sequence not in core.plan:
            body = core.body(vote.digest)
            assert body is not None, "a primary holds what it proposed"
            core.send(peer, PrePrepare(vote, body))
        prepare = core.safety.recall(VoteKind.PREPARE, view=core.view, sequence=sequence)
        if prepare is not None and not flags & SLOT_PREPARED:
            core.send(peer, prepare)
        commit = core.safety.recall(VoteKind.COMMIT, view=core.view, sequence=sequence)
        if commit is not None and not flags & SLOT_COMMITTED:
            core.send(peer, commit)


def _send_bodies(core: Core, peer: bytes, status: Status) -> None:
    for digest in status.wanted:
        body = core.body(digest)
        if body:
            core.send(peer, Request(body))


def on_commit_proof(core: Core, link: bytes, message: CommitProof) -> None:
    """A decided operation: Q COMMIT signatures are enough, no vote of ours is needed."""
    certificate = message.certificate
    sequence = certificate.sequence
    if certificate.kind is not VoteKind.COMMIT:
        raise ConsensusError("not-a-commit-certificate")
    if sequence <= core.executed:
        return
    if certificate.epoch > core.epoch or sequence > core.executed + 2 * core.window:
        # The peer has come further than we have, or pretends to: a question costs little.
        ask(core, link)
        raise ConsensusError("outside-window", str(sequence))
    if operation_digest(message.operation) != certificate.digest:
        raise ConsensusError("digest-mismatch")
    check_certificate(certificate, core.verifier)
    core.epochs.require_within(certificate.epoch, sequence)
    known = core.committed.setdefault(sequence, certificate)
    assert known.digest == certificate.digest, "two quorums committed different operations"
    core.keep_body(sequence, certificate.digest, message.operation)
    execute_ready(core)


def on_stability(core: Core, message: Stability) -> None:
    """A stability certificate, perhaps with the ledger that it certifies."""
    certificate = message.certificate
    on_stability_certificate(core, certificate)
    if message.ledger and core.executed < certificate.sequence:
        install_snapshot(core, certificate, message.ledger)


def on_request(core: Core, operation: bytes) -> bool:
    """Take the bytes where a slot waits for them; True when that was all there was to do."""
    digest = operation_digest(operation)
    if digest not in _wanted(core):
        return False
    for sequence, certificate in sorted(core.committed.items()):
        if certificate.digest == digest:
            core.keep_body(sequence, digest, operation)
    for sequence, proposal in core.open_proposals().items():
        if proposal.digest == digest:
            core.keep_body(sequence, digest, operation)
    execute_ready(core)
    return True
