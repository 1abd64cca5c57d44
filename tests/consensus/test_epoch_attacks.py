"""What an adversary, or bad luck, might try while the voting set changes."""

from dataclasses import replace

import pytest

from shoal.consensus.certificate import Certificate
from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.effects import Received
from shoal.consensus.epochs import EpochLink
from shoal.consensus.ledger import Ledger, ledger_digest
from shoal.consensus.members import Member
from shoal.consensus.messages import (
    CommitProof,
    Epochs,
    PrePrepare,
    Stability,
    Status,
    ViewChange,
    encode,
)
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import Letter, Mesh, digest_of, is_vote
from tests.consensus.test_view_change import empty_change, proof_of, sealed_view


def parameters(number: int) -> Change:
    """A change that touches nobody, as the shortest way into another epoch."""
    return Change(ChangeKind.PARAMETERS, parameters=b"p%d" % number)


def proofs(mesh: Mesh, index: int) -> list[CommitProof]:
    return [CommitProof(d.operation_bytes, d.certificate) for d in mesh.decided[index]]


def links(mesh: Mesh, index: int) -> tuple[EpochLink, ...]:
    return tuple(mesh.core(index).epochs)


def late_by(epochs: int, n: int = 4, **settings: int) -> Mesh:
    """The last node was down while this many epochs passed."""
    mesh = Mesh(n, **settings)
    mesh.crash(n - 1)
    for number in range(epochs):
        mesh.decide(parameters(number))
    mesh.restart(n - 1)
    mesh.wire.clear()
    return mesh


def forged_ledger(mesh: Mesh, sequence: int) -> tuple[Certificate, bytes]:
    """What all validators of the first epoch could sign together, long after it has ended."""
    ledger = Ledger.restore(mesh.genesis.snapshot())
    ledger.members[bytes(32)] = Member("evil:1", 1, 1)
    ledger.sequence = sequence
    snapshot = ledger.snapshot()
    digest = ledger_digest(snapshot)
    signers = list(range(mesh.validators.n))
    stable = mesh.certificate(VoteKind.STABLE, signers, view=0, sequence=sequence, digest=digest)
    return stable, snapshot


def test_a_set_that_is_history_certifies_nothing_beyond_its_epoch() -> None:
    """Keys of validators that left long ago may have been stolen since."""
    mesh = Mesh(4)
    mesh.order([mesh.leave(3)])
    assert mesh.replicas[0].inspect().epoch == 1
    before = mesh.core(0).ledger.digest()
    stable, snapshot = forged_ledger(mesh, 40)
    mesh.give(0, Stability(stable, snapshot))
    assert mesh.core(0).ledger.digest() == before
    assert mesh.core(0).target is None
    assert mesh.refused(0)["outside-epoch"] == 1


def test_nor_does_it_for_a_late_replica_that_knows_where_the_epoch_ended() -> None:
    mesh = late_by(2, retained=0)
    mesh.give(3, Epochs(links(mesh, 0)))
    stable, snapshot = forged_ledger(mesh, 40)
    mesh.give(3, Stability(stable, snapshot))
    assert mesh.executed()[3] == 0
    assert mesh.refused(3)["outside-epoch"] == 1
    mesh.gossip(2)
    assert mesh.core(3).ledger.digest() == mesh.core(0).ledger.digest()


def test_a_replica_that_heard_of_later_epochs_first_still_takes_the_next_one() -> None:
    """It knows two links and aims for the second; the operations of the first epoch come next."""
    mesh = late_by(2)
    mesh.give(3, Epochs(links(mesh, 0)))
    for proof in proofs(mesh, 0):
        mesh.give(3, proof)
    assert mesh.executed()[3] == 8
    assert mesh.replicas[3].inspect().epoch == 2


def test_so_does_one_that_restarts_between_executing_the_boundary_and_its_proof() -> None:
    mesh = late_by(2)
    for proof in proofs(mesh, 0)[:4]:
        mesh.give(3, proof)
    assert (mesh.executed()[3], mesh.replicas[3].inspect().epoch) == (4, 0)
    mesh.restart(3)
    assert (mesh.executed()[3], mesh.replicas[3].inspect().epoch) == (4, 0)
    mesh.wire.clear()
    mesh.gossip(3)
    assert mesh.executed() == [8] * 4
    assert mesh.replicas[3].inspect().epoch == 2


def test_so_does_one_that_knew_the_link_before_it_restarted() -> None:
    mesh = late_by(2)
    for proof in proofs(mesh, 0)[:3]:
        mesh.give(3, proof)
    mesh.give(3, Epochs(links(mesh, 0)))
    mesh.restart(3)
    mesh.give(3, proofs(mesh, 0)[3])
    assert (mesh.executed()[3], mesh.replicas[3].inspect().epoch) == (4, 1)


def test_a_bad_link_does_not_make_the_good_one_before_it_worthless() -> None:
    """A liar sends a true link with a false one behind it, so that the message is refused."""
    mesh = late_by(2)
    good, other = links(mesh, 0)
    mesh.give(3, Epochs((good, replace(other, body_digest=bytes(32)))))
    assert mesh.refused(3) == {"epoch-proof-of-something-else": 1}
    for proof in proofs(mesh, 0)[:4]:
        mesh.give(3, proof)
    assert mesh.replicas[3].inspect().epoch == 1


def test_somebody_more_epochs_behind_than_one_message_holds_catches_up() -> None:
    mesh = Mesh(1, spare=1, retained=0)
    mesh.crash(1)
    for number in range(40):
        mesh.decide(parameters(number))
    mesh.restart(1)
    mesh.gossip(5)
    assert mesh.replicas[1].inspect().epoch == 40
    assert mesh.core(1).ledger.digest() == mesh.core(0).ledger.digest()


@pytest.mark.parametrize("sequence", [3, 8])
def test_an_epoch_does_not_start_anywhere_else(sequence: int) -> None:
    mesh = late_by(1)
    (link,) = links(mesh, 0)
    forged = replace(link, record=replace(link.record, start=sequence))
    mesh.give(3, Epochs((forged,)))
    assert mesh.core(3).epochs.last == 0
    assert not mesh.core(3).evictions


def test_a_new_view_of_the_old_epoch_arrives_too_late() -> None:
    mesh = Mesh(4)
    old = sealed_view(mesh, proof_of(mesh, [1, 2, 3]))
    old_change = empty_change(mesh, 2, 1)
    mesh.decide(parameters(1))
    for index in range(4):
        mesh.give(index, old)
        mesh.give(index, old_change)
        assert mesh.refused(index)["wrong-epoch"] >= 2
        inspection = mesh.replicas[index].inspect()
        assert (inspection.epoch, inspection.view, inspection.active) == (1, 0, True)


def test_a_new_view_while_the_boundary_is_executed_but_not_stable_holds_nothing_up() -> None:
    """STABLE votes are lost, the old primary is dropped, and only then the votes come through."""
    mesh = Mesh(4)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(parameters(1), index))
    mesh.deliver(lambda x: is_vote(x, VoteKind.STABLE))
    assert mesh.executed() == [4] * 4
    assert {mesh.replicas[i].inspect().epoch for i in range(4)} == {0}
    for index in range(4):
        assert "progress" not in mesh.core(index).outbox.timers, "no primary could do anything"
    for index in (0, 2, 3):
        mesh.give(index, sealed_view(mesh, proof_of(mesh, [1, 2, 3])))
        assert mesh.replicas[index].inspect().view == 1
    mesh.gossip(2)
    for index in range(4):
        inspection = mesh.replicas[index].inspect()
        assert (inspection.epoch, inspection.view, inspection.started) == (1, 0, True)


def test_a_primary_cannot_get_votes_beyond_a_stability_point_before_it_is_executed() -> None:
    """The next turn's primary proposes early: kept, not voted on, and taken once it is due."""
    mesh = Mesh(4)
    early = mesh.join("early")
    vote = mesh.vote(VoteKind.PRE_PREPARE, 1, view=0, sequence=5, digest=digest_of(early))
    mesh.give(2, PrePrepare(vote, early), source=1)
    assert not mesh.wire
    mesh.order([mesh.join(f"m{i}") for i in range(4)])
    prepares = [x.message for x in mesh.log if is_vote(x, VoteKind.PREPARE) and x.source == 2]
    assert [v.sequence for v in prepares if v.digest == digest_of(early)] == [5] * 3  # type: ignore[union-attr]


def test_what_was_deferred_dies_with_its_epoch() -> None:
    mesh = Mesh(4)
    early = mesh.join("early")
    vote = mesh.vote(VoteKind.PRE_PREPARE, 1, view=0, sequence=5, digest=digest_of(early))
    mesh.give(2, PrePrepare(vote, early), source=1)
    mesh.decide(parameters(1))
    assert mesh.replicas[2].inspect().epoch == 1
    assert mesh.executed() == [4] * 4
    mesh.gossip(2)
    assert not any(x for x in mesh.log if is_vote(x, VoteKind.PREPARE) and five(x))
    mesh.order([mesh.join("next")])
    assert mesh.executed() == [5] * 4


def five(letter: Letter) -> bool:
    return getattr(letter.message, "sequence", 0) == 5


def test_deferred_proposals_are_as_few_as_the_window_is_long() -> None:
    mesh = Mesh(4)
    for sequence in range(1, 200):
        body = mesh.join(f"m{sequence}")
        for view in (0, 1):
            signer = mesh.validators.primary(view, sequence)
            vote = mesh.vote(
                VoteKind.PRE_PREPARE, signer, view=view, sequence=sequence, digest=digest_of(body)
            )
            mesh.give(2, PrePrepare(vote, body))
    core = mesh.core(2)
    assert sum(slot.deferred is not None for slot in core.slots.values()) <= core.window


def test_two_deferred_proposals_for_one_slot_convict_their_author() -> None:
    mesh = Mesh(4)
    for name in ("a", "b"):
        body = mesh.join(name)
        vote = mesh.vote(VoteKind.PRE_PREPARE, 1, view=0, sequence=5, digest=digest_of(body))
        mesh.give(2, PrePrepare(vote, body), source=1)
    assert [e.signer for e in mesh.evidence[2]] == [mesh.keys[1]]
    assert mesh.replicas[2].inspect().view == 2, "view 1 would be for the culprit to start"


def test_stale_and_foreign_readiness_starts_nothing() -> None:
    mesh = Mesh(4)
    mesh.decide(parameters(1))
    first = [x.message for x in mesh.log if is_vote(x, VoteKind.READY)]
    assert first
    mesh.deliver()
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(parameters(2), index))
    mesh.deliver(lambda x: is_vote(x, VoteKind.READY))
    assert {mesh.replicas[i].inspect().epoch for i in range(4)} == {2}
    for index in range(4):
        for vote in first:
            mesh.give(index, vote)
        mesh.give(index, Epochs((), mesh.core(index).ready))
        assert not mesh.replicas[index].inspect().started
    now = mesh.sets[0]
    start, link = mesh.core(0).start, mesh.core(0).epochs.link(2)
    for signer in (1, 2, 3):
        wrong = mesh.vote(
            VoteKind.READY, signer, view=0, sequence=start, digest=bytes(32), validators=now
        )
        mesh.give(0, wrong)
        digest = link.certificate.digest
        early = mesh.vote(
            VoteKind.READY, signer, view=0, sequence=start + 4, digest=digest, validators=now
        )
        mesh.give(0, early)
    assert mesh.refused(0)["ready-with-another-ledger"] == 3
    assert mesh.refused(0)["not-the-start"] == 3
    assert not mesh.replicas[0].inspect().started
    mesh.gossip(2)
    assert all(replica.inspect().started for replica in mesh.replicas)


def test_a_minority_that_says_ready_is_no_proof_of_it() -> None:
    mesh = Mesh(4)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(parameters(1), index))
    mesh.deliver(lambda x: is_vote(x, VoteKind.READY))
    digest = mesh.core(0).epochs.link(1).certificate.digest
    for kind, signers, reason in (
        (VoteKind.READY, [1, 2], "no-quorum"),
        (VoteKind.STABLE, [1, 2, 3], "ready-of-something-else"),
    ):
        proof = mesh.certificate(
            kind, signers, view=0, sequence=4, digest=digest, validators=mesh.sets[0]
        )
        mesh.give(0, Epochs((), proof))
        assert mesh.refused(0)[reason] == 1
    assert not mesh.replicas[0].inspect().started


def test_a_hostile_status_about_epochs_costs_one_answer_and_nothing_else() -> None:
    mesh = Mesh(4, retained=0)
    for number in range(3):
        mesh.decide(parameters(number))
    last = 2**64 - 1
    for epoch in (0, 1, 2, 3, 4, last):
        for executed in (0, 4, 11, 12, 13, last):
            for low in (0, 12, last):
                status = Status(epoch, last - epoch, 0, True, executed, low, 0, b"", (), 255)
                mesh.step(0, Received(mesh.keys[1], encode(status)))
                mesh.now_ms += 10_000
    mesh.wire.clear()
    mesh.order([mesh.join()])
    assert mesh.executed() == [13] * 4


def test_two_validators_pass_the_mesh_on_to_one_and_back() -> None:
    mesh = Mesh(2)
    mesh.order([mesh.leave(1)])
    mesh.gossip(2)
    assert [mesh.voters(i) for i in (0, 1)] == [[0], [0]]
    mesh.order([mesh.join("alone")])
    mesh.order([mesh.rejoin(1, time_ms=9)])
    mesh.promote(1)
    mesh.gossip(3)
    assert [mesh.voters(i) for i in (0, 1)] == [[0, 1], [0, 1]]
    mesh.order([mesh.join("together")], at=1)
    assert len(set(mesh.executed())) == 1
    assert all(replica.inspect().started for replica in mesh.replicas)


def test_whoever_waits_for_the_next_epoch_does_not_leave_its_view() -> None:
    """READY is lost for a long time, with operations waiting: no timer runs against anybody."""
    mesh = Mesh(4)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(parameters(1), index))
    mesh.submit(3, mesh.join("waiting"))
    mesh.deliver(lambda x: is_vote(x, VoteKind.READY))
    for _ in range(5):
        for index in range(4):
            assert "progress" not in mesh.core(index).outbox.timers
            mesh.fire(index, "status")
        mesh.deliver(lambda x: is_vote(x, VoteKind.READY))
    assert not any(isinstance(x.message, ViewChange) for x in mesh.log)
    mesh.gossip(2)
    assert all(replica.inspect().started for replica in mesh.replicas)
    assert len({len(mesh.decided[i]) for i in range(4)}) == 1
