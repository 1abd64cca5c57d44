"""A crash at any effect boundary, and what the replica that comes back must still know."""

import pytest

from shoal.consensus.effects import Decided, Effect, Received, Restored, Send, Started, Submitted
from shoal.consensus.messages import (
    CommitProof,
    NewView,
    PrePrepare,
    Stability,
    Status,
    ViewChange,
    decode,
    encode,
)
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import INTERVAL, Mesh, digest_of, is_vote
from tests.consensus.test_view_change import depose, pending_everywhere


def votes_of(mesh: Mesh, source: int) -> dict[tuple[VoteKind, int, int], set[bytes]]:
    """Everything that this replica ever voted for, by what may be voted on once."""
    votes: dict[tuple[VoteKind, int, int], set[bytes]] = {}
    for letter in mesh.log:
        message = letter.message
        vote = message.vote if isinstance(message, PrePrepare) else message
        if letter.source == source and isinstance(vote, Vote):
            key = (vote.kind, vote.view, vote.sequence)
            votes.setdefault(key, set()).add(vote.digest)
    return votes


def story(mesh: Mesh, victim: int, crash_at: int | None) -> int:
    """Five operations and a view change; the victim dies before its crash_at-th effect."""
    count = 0
    ordinary = mesh.step

    def counting(index: int, event: object, *, until: int | None = None) -> list[Effect]:
        nonlocal count
        if index != victim:
            return ordinary(index, event)  # type: ignore[arg-type]
        effects = mesh.replicas[index].step(mesh.now_ms, event)  # type: ignore[arg-type]
        for effect in effects:
            if count == crash_at:
                count += 1
                mesh.wire[:] = [x for x in mesh.wire if x.source != victim or x.target == victim]
                mesh.restart(victim)
                return effects
            count += 1
            mesh._carry_out(index, effect)
        return effects

    mesh.step = counting  # type: ignore[method-assign]
    mesh.order([mesh.join(f"m{i}") for i in range(3)])
    pending_everywhere(mesh, mesh.join("late"))
    for index in (0, 1, 2, 3):
        if "progress" in mesh.core(index).outbox.timers:
            mesh.fire(index, "progress")
    mesh.deliver()
    mesh.order([mesh.join("last")], at=2)
    mesh.gossip(6)
    return count


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_crash_before_any_single_effect_is_safe(victim: int) -> None:
    total = story(Mesh(4), victim, None)
    assert total > 40
    for crash_at in range(total):
        mesh = Mesh(4)
        story(mesh, victim, crash_at)
        assert all(len(digests) == 1 for digests in votes_of(mesh, victim).values()), crash_at
        others = [mesh.executed()[i] for i in range(4) if i != victim]
        assert min(others) >= 4, crash_at
        assert mesh.executed()[victim] == max(mesh.executed()), crash_at
        assert not any(mesh.evidence), crash_at
        digests = {replica.ledger.digest() for replica in mesh.replicas}
        assert len(digests) == 1, crash_at


def test_bugs_17_18_a_primary_does_not_reuse_a_sequence_after_a_restart() -> None:
    mesh = Mesh(4)
    mesh.step(0, Submitted(mesh.join("first")), until=1)
    mesh.restart(0)
    mesh.submit(0, mesh.join("second"))
    proposals = [x.message for x in mesh.wire if isinstance(x.message, PrePrepare)]
    assert {proposal.vote.sequence for proposal in proposals} == {2}
    mesh.deliver()
    mesh.gossip(3)
    assert mesh.executed() == [2] * 4
    assert mesh.digests(1) == [digest_of(mesh.join("first")), digest_of(mesh.join("second"))]


def test_bug_14_a_restarted_replica_votes_again_only_as_it_did_before() -> None:
    mesh = Mesh(4)
    mesh.submit(0, mesh.join())
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT))
    mesh.restart(2)
    core = mesh.core(2)
    assert core.safety is not None
    assert core.safety.recall(VoteKind.PREPARE, view=0, sequence=1) is not None
    with pytest.raises(AssertionError, match="second PREPARE"):
        core.safety.vote(VoteKind.PREPARE, view=0, sequence=1, digest=bytes(32))
    assert core.prepared[1].digest == digest_of(mesh.join())
    mesh.gossip(2)
    assert mesh.executed() == [1] * 4


def test_a_restart_in_the_middle_of_a_view_change_repeats_the_same_bytes() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.fire(2, "progress")
    (sent,) = {x.message for x in mesh.wire if isinstance(x.message, ViewChange)}
    mesh.wire.clear()
    mesh.restart(2)
    assert (mesh.core(2).view, mesh.core(2).active) == (1, False)
    assert mesh.core(2).backoff == 1
    mesh.fire(2, "status")
    again = {x.message for x in mesh.wire if isinstance(x.message, ViewChange)}
    assert again == {sent}


def test_a_restarted_primary_hands_out_the_new_view_that_it_had_written_down() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.crash(0)
    for index in (2, 3):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: isinstance(x.message, NewView))
    assert mesh.core(1).active
    mesh.restart(1)
    assert (mesh.core(1).view, mesh.core(1).active) == (1, True)
    mesh.gossip(2)
    assert [mesh.core(i).view for i in (2, 3)] == [1, 1]


def test_what_the_driver_had_not_applied_is_told_again() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(6)])
    assert mesh.core(2).low == 4
    before = mesh.decided[2].copy()
    for applied in range(7):
        mesh.restart(2, applied)
        assert mesh.decided[2] == before[applied:]
        assert not mesh.restored[2]


def test_what_cannot_be_told_again_comes_as_a_snapshot() -> None:
    mesh = Mesh(4, retained=0)
    mesh.order([mesh.join(f"m{i}") for i in range(6)])
    mesh.restart(2, applied=1)
    (restored,) = mesh.restored[2]
    assert restored.ledger.sequence == 4
    assert [d.sequence for d in mesh.decided[2]] == [5, 6]


def test_rows_do_not_pile_up() -> None:
    mesh = Mesh(4, retained=4)
    mesh.order([mesh.join(f"m{i}") for i in range(8)])
    few = len(mesh.rows[1])
    mesh.order([mesh.join(f"n{i}") for i in range(24)])
    assert len(mesh.rows[1]) == few


def test_rows_after_view_changes_do_not_pile_up_either() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    depose(mesh)
    assert not [key for key in mesh.rows[2] if key.startswith("replica/view-change/")]
    mesh.restart(0)
    mesh.gossip(2)
    mesh.order([mesh.join(f"m{i}") for i in range(8)])
    low = mesh.core(2).low
    for key in mesh.rows[2]:
        if key.startswith(("replica/vote/", "replica/accept/", "replica/prepared/")):
            assert int(key.split("/")[-1]) > low, key


def test_a_commit_proof_for_the_distant_future_is_refused_with_a_question() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    digest = digest_of(operation)
    proof = mesh.certificate(VoteKind.COMMIT, [0, 1, 2], view=0, sequence=99, digest=digest)
    effects = mesh.replicas[3].step(
        1, Received(mesh.validators.keys[0], encode(CommitProof(operation, proof)))
    )
    (question,) = effects
    assert isinstance(question, Send) and isinstance(decode(question.data), Status)
    assert mesh.refused(3) == {"outside-window": 1}


def test_a_first_start_tells_nothing() -> None:
    mesh = Mesh(4)
    effects = mesh.new_replica(0).step(0, Started())
    assert not any(isinstance(effect, (Decided, Restored)) for effect in effects)


def test_who_runs_ahead_of_its_watermark_keeps_a_few_ledgers_after_a_restart_too() -> None:
    """A member that follows by proofs hears of no stability point for seven of them."""
    mesh = Mesh(4, spare=1)
    for turn in range(7):
        mesh.order([mesh.join(f"m{turn}.{i}") for i in range(INTERVAL)])
        for _ in range(2):
            mesh.fire(4, "status")
            mesh.deliver(lambda x: x.target == 4 and isinstance(x.message, Stability))
    assert (mesh.core(4).executed, mesh.core(4).low) == (7 * INTERVAL, 0)
    newest = [turn * INTERVAL for turn in (4, 5, 6, 7)]
    assert sorted(mesh.core(4).snapshots) == newest
    mesh.restart(4)
    assert sorted(mesh.core(4).snapshots) == newest
