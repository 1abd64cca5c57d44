"""The voting set changes while the mesh goes on: growth, goodbyes, crashes and latecomers."""

from functools import partial

import pytest

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.effects import Effect, EpochStarted
from shoal.consensus.messages import CommitProof, Epochs, PrePrepare, Stability
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import Letter, Mesh, is_vote

LOG_VOTES = (VoteKind.PRE_PREPARE, VoteKind.PREPARE, VoteKind.COMMIT)


def vote_in(letter: Letter) -> Vote | None:
    message = letter.message
    vote = message.vote if isinstance(message, PrePrepare) else message
    return vote if isinstance(vote, Vote) else None


def assert_sound(mesh: Mesh) -> None:
    """What must hold after any story: one vote per question, each inside its own epoch."""
    said: dict[tuple[int, int, VoteKind, int, int], bytes] = {}
    chain = mesh.core(0).epochs
    for letter in mesh.log:
        vote = vote_in(letter)
        if vote is None:
            continue
        key = (letter.source, vote.epoch, vote.kind, vote.view, vote.sequence)
        assert said.setdefault(key, vote.digest) == vote.digest, "a double vote"
        assert chain.validators(vote.epoch).keys[vote.signer] == mesh.keys[letter.source]
        if vote.kind in LOG_VOTES:
            chain.require_within(vote.epoch, vote.sequence)
    assert not any(mesh.evidence)


def assert_together(mesh: Mesh, *without: int) -> None:
    """All that are meant to be there stand at the same place, in the same epoch, started."""
    here = [i for i in range(len(mesh.keys)) if i not in without]
    assert len({mesh.core(i).ledger.digest() for i in here}) == 1
    assert len({mesh.replicas[i].inspect().epoch for i in here}) == 1
    assert all(mesh.replicas[i].inspect().started for i in here)
    assert all((mesh.core(i).safety is not None) == (i in mesh.voters()) for i in here)


def test_a_mesh_grows_from_one_to_seven_and_shrinks_to_four() -> None:
    mesh = Mesh(1, 6)
    for index in range(1, 7):
        mesh.promote(index)
        mesh.gossip(3)
        assert mesh.voters() == list(range(index + 1))
        mesh.order([mesh.join(f"after{index}")], at=index)
        mesh.gossip(2)
        assert_together(mesh)
    for index in (0, 3, 5):
        mesh.order([mesh.leave(index)], at=index)
        mesh.gossip(3)
        assert index not in mesh.voters()
        mesh.order([mesh.join(f"without{index}")], at=1)
        mesh.gossip(2)
        assert_together(mesh)
    assert mesh.voters() == [1, 2, 4, 6]
    assert mesh.replicas[1].inspect().epoch == 9
    assert_sound(mesh)


def test_a_change_takes_effect_at_the_next_stability_point_and_not_before() -> None:
    mesh = Mesh(4, 1)
    mesh.order([mesh.join("a")])
    mesh.promote(4)
    assert mesh.executed()[:4] == [4] * 4
    operations = [decided.operation_bytes for decided in mesh.decided[0]]
    assert len(operations) == 4 and b"" not in operations, "three approvals and a join fill it"
    started = mesh.sets[0]
    assert (started.epoch, started.n) == (1, 5)


def test_null_operations_fill_the_log_up_to_the_end_of_the_epoch() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.leave(3)])
    assert [decided.operation_bytes for decided in mesh.decided[0]][1:] == [b""] * 3
    assert mesh.voters() == [0, 1, 2]
    assert_sound(mesh)


def test_who_left_stays_an_observer_that_follows_and_says_nothing() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.leave(3)], at=3)
    mesh.log.clear()
    mesh.order([mesh.join(f"m{i}") for i in range(6)])
    mesh.gossip(2)
    assert mesh.executed()[3] == mesh.executed()[0] > 8
    assert not any(vote_in(letter) for letter in mesh.log if letter.source == 3)
    assert mesh.core(3).safety is None


@pytest.mark.parametrize("dead", [0, 1])
def test_an_epoch_ends_although_the_primary_dies(dead: int) -> None:
    """0 should fill the log with null operations; 1 would be the next to lead."""
    mesh = Mesh(4, 1)
    for index in (0, 2, 3):
        mesh.submit(index, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), index))

    def the_fourth_slot(letter: Letter) -> bool:
        vote = vote_in(letter)
        return vote is not None and vote.sequence == 4

    mesh.deliver(the_fourth_slot)
    assert mesh.executed()[:4] == [3] * 4
    assert mesh.core(2).ledger.boundary == 4
    mesh.crash(dead)
    alive = [index for index in range(4) if index != dead]
    for _ in range(4):
        for index in alive:
            for timer in ("progress", "new-view"):
                if timer in mesh.core(index).outbox.timers and mesh.core(index).epoch == 0:
                    mesh.fire(index, timer)
                    mesh.deliver()
        mesh.gossip(2)
    assert mesh.replicas[2].inspect().epoch == 1
    mesh.restart(dead)
    mesh.gossip(5)
    assert mesh.voters(dead) == [0, 1, 2, 3, 4]
    assert_together(mesh)
    assert_sound(mesh)


def test_nothing_is_voted_on_beyond_the_boundary_in_the_old_epoch() -> None:
    """More operations wait than fit before the boundary, in whatever order messages arrive."""
    mesh = Mesh(4, 1)
    for index in range(4):
        mesh.submit(index, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), index))
        for number in range(4):
            mesh.submit(index, mesh.join(f"m{index}{number}"))
    while mesh.wire:
        mesh.wire.append(mesh.wire.pop(0))
        letter = mesh.wire.pop(len(mesh.wire) // 2)
        mesh.give(letter.target, letter.message, letter.source)
    mesh.gossip(4)
    votes = [vote for letter in mesh.log if (vote := vote_in(letter)) and vote.kind in LOG_VOTES]
    ended = mesh.core(0).epochs.record(1).start
    assert {vote.sequence for vote in votes if vote.epoch == 0} == set(range(1, ended + 1))
    assert min(vote.sequence for vote in votes if vote.epoch == 1) == ended + 1
    assert_together(mesh)
    assert_sound(mesh)


@pytest.mark.parametrize("retained", [0, 32])
def test_who_is_epochs_behind_comes_back_by_operations_or_by_a_snapshot(retained: int) -> None:
    mesh = Mesh(5, retained=retained)
    mesh.crash(4)
    for number in range(3):
        mesh.decide(Change(ChangeKind.PARAMETERS, parameters=bytes([number])))
    mesh.order([mesh.join("last")])
    mesh.log.clear()
    mesh.restart(4)
    mesh.gossip(6)
    kinds = {type(letter.message) for letter in mesh.log if letter.target == 4}
    assert Epochs in kinds
    assert (Stability in kinds) == (retained == 0)
    assert (CommitProof in kinds) or retained == 0
    assert bool(mesh.restored[4]) == (retained == 0)
    assert mesh.replicas[4].inspect().epoch == 3
    assert_together(mesh)
    assert_sound(mesh)


def test_who_was_dropped_while_away_learns_of_it_from_the_others() -> None:
    mesh = Mesh(5)
    mesh.crash(4)
    mesh.demote(4)
    mesh.decide(Change(ChangeKind.PARAMETERS, parameters=b"later"))
    mesh.log.clear()
    mesh.restart(4)
    mesh.gossip(5)
    assert mesh.core(4).safety is None
    assert mesh.executed()[4] == mesh.executed()[0]
    votes = [vote for letter in mesh.log if letter.source == 4 and (vote := vote_in(letter))]
    assert {vote.epoch for vote in votes} <= {0}, "it voted, if at all, where it still could"
    assert_together(mesh)


def test_bug_13_what_a_demoted_validator_had_in_the_queues_never_counts_again() -> None:
    """Demoted and promoted: its votes of the first epoch are delivered in the third."""
    mesh = Mesh(5)
    mesh.order([mesh.join("a")])
    held = [letter for letter in mesh.log if letter.source == 4]
    assert any(vote_in(letter) for letter in held)
    mesh.demote(4)
    mesh.gossip(2)
    mesh.promote(4)
    mesh.gossip(3)
    assert (mesh.voters(), mesh.replicas[0].inspect().epoch) == ([0, 1, 2, 3, 4], 2)
    before = [dict(mesh.core(i).slots) for i in range(4)]
    for letter in held:
        if letter.target != 4 and vote_in(letter):
            mesh.give(letter.target, letter.message, letter.source)
    for index in range(4):
        assert dict(mesh.core(index).slots) == before[index]
        refused = mesh.refused(index)
        assert refused.get("wrong-epoch", 0) + refused.get("outside-window", 0) > 0
    mesh.order([mesh.join("b")], at=4)
    assert_together(mesh)
    assert_sound(mesh)


@pytest.mark.parametrize("lost", [VoteKind.READY, VoteKind.STABLE])
def test_ready_and_stable_are_repeated_until_everybody_has_heard(lost: VoteKind) -> None:
    mesh = Mesh(4, 1)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), index))
    mesh.deliver(partial(is_vote, kind=lost))
    assert not all(
        replica.inspect().epoch and replica.inspect().started for replica in mesh.replicas
    )
    mesh.gossip(4)
    assert_together(mesh)
    assert_sound(mesh)


def test_a_change_needs_a_quorum_of_this_epochs_validators() -> None:
    mesh = Mesh(4, 2)
    promote = Change(ChangeKind.PROMOTE, mesh.keys[4])
    for operation in (
        mesh.approve(promote, 0),
        mesh.approve(promote, 1),
        mesh.approve(promote, 1),
        mesh.approve(promote, 5, epoch=0),
    ):
        mesh.order([operation])
    assert not mesh.core(0).ledger.turns
    assert mesh.executed()[:4] == [2] * 4, "a repeated yes and a stranger's are not even ordered"
    mesh.decide(Change(ChangeKind.PARAMETERS, parameters=b"p"))
    assert mesh.replicas[0].inspect().epoch == 1
    mesh.order([mesh.approve(promote, 2)])
    assert not mesh.core(0).ledger.turns, "what two said in the last epoch is worth nothing now"
    mesh.order([mesh.approve(promote, 0), mesh.approve(promote, 1)])
    mesh.gossip(2)
    assert mesh.voters() == [0, 1, 2, 3, 4]


def test_an_approval_of_the_last_epoch_leaves_the_queue() -> None:
    mesh = Mesh(4, 1)
    stale = mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[4]), 3)
    mesh.submit(3, stale)
    mesh.deliver(lambda x: x.source == 3)
    mesh.down.add(3)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(Change(ChangeKind.PARAMETERS, parameters=b"p"), index))
        mesh.deliver()
    mesh.down.clear()
    mesh.gossip(3)
    assert mesh.replicas[3].inspect().epoch == 1
    assert mesh.replicas[3].inspect().pending == 0
    assert mesh.replicas[0].check(stale) == "wrong-epoch"


def test_so_many_change_at_a_time_and_the_others_wait_their_turn() -> None:
    mesh = Mesh(4, 2)
    for by in (0, 1, 2):
        for index in (4, 5):
            mesh.submit(by, mesh.approve(Change(ChangeKind.PROMOTE, mesh.keys[index]), by, epoch=0))
        mesh.deliver()
    mesh.gossip(4)
    sets = [mesh.core(0).epochs.validators(number).n for number in range(3)]
    assert sets == [4, 5, 6]
    assert_together(mesh)
    assert_sound(mesh)


def test_the_last_validator_cannot_leave() -> None:
    mesh = Mesh(1)
    mesh.order([mesh.leave(0)])
    assert mesh.executed() == [0]
    assert mesh.refused(0) == {"last-validator": 1}


def test_parameters_come_into_force_with_the_epoch() -> None:
    mesh = Mesh(4)
    told: list[EpochStarted] = []
    ordinary = mesh._carry_out

    def listening(index: int, effect: Effect) -> None:
        if isinstance(effect, EpochStarted) and index == 2:
            told.append(effect)
        ordinary(index, effect)

    mesh._carry_out = listening  # type: ignore[method-assign]
    mesh.decide(Change(ChangeKind.PARAMETERS, parameters=b"new"))
    assert [(e.validators.epoch, e.parameters) for e in told] == [(1, b"new")]
    mesh.order([mesh.leave(3)])
    assert [(e.validators.epoch, e.parameters) for e in told][1:] == [(2, b"new")]
    mesh.restart(2)
    assert [(e.validators.epoch, e.parameters) for e in told][2:] == [(2, b"new")]


def test_leaving_and_joining_in_one_epoch_costs_the_vote_but_not_the_membership() -> None:
    mesh = Mesh(4)
    mesh.submit(0, mesh.leave(3))
    mesh.submit(0, mesh.rejoin(3, time_ms=2))
    mesh.deliver()
    assert mesh.keys[3] in mesh.core(0).ledger.members
    assert mesh.voters() == [0, 1, 2]
    mesh.promote(3)
    mesh.gossip(3)
    assert mesh.voters() == [0, 1, 2, 3]
    assert_together(mesh)


def test_a_seat_that_is_queued_goes_with_its_member() -> None:
    mesh = Mesh(4, 1)
    change = Change(ChangeKind.PROMOTE, mesh.keys[4])
    for operation in [*(mesh.approve(change, by) for by in (0, 1, 2)), mesh.leave(4)]:
        mesh.submit(0, operation)
    mesh.deliver()
    assert mesh.voters() == [0, 1, 2, 3]
    assert mesh.replicas[0].inspect().epoch == 1, "the epoch ends, with the same set"
    assert_sound(mesh)


def test_rows_of_an_epoch_go_with_it() -> None:
    mesh = Mesh(4)
    for number in range(4):
        mesh.decide(Change(ChangeKind.PARAMETERS, parameters=bytes([number])))
    few = len(mesh.rows[1])
    votes = [key for key in mesh.rows[1] if key.startswith("replica/vote/")]
    assert votes == ["replica/vote/4/7/0/16"], "its READY alone"
    for number in range(4, 12):
        mesh.decide(Change(ChangeKind.PARAMETERS, parameters=bytes([number])))
    links = [key for key in mesh.rows[1] if key.startswith("replica/epoch/")]
    assert len(links) == 12
    decisions = mesh.core(1).config.retained
    assert len(mesh.rows[1]) <= few + 8 + 2 * decisions


def test_an_observer_cannot_make_a_majority_ready() -> None:
    mesh = Mesh(4, 1)
    for index in (0, 1, 2):
        mesh.submit(index, mesh.approve(Change(ChangeKind.PARAMETERS, parameters=b"p"), index))
    mesh.deliver(lambda x: is_vote(x, VoteKind.READY))
    present = mesh.sets[0]
    digest = mesh.core(0).epochs.link(1).certificate.digest
    honest = mesh.vote(VoteKind.READY, 1, view=0, sequence=4, digest=digest, validators=present)
    for signer in (1, 2, 3, 4, 200):
        forged = Vote(VoteKind.READY, 1, 0, 4, digest, signer, mesh.signers[4](b"no"))
        mesh.give(0, forged)
    for _ in range(3):
        mesh.give(0, honest)
    assert mesh.refused(0)["bad-signature"] == 5
    assert not mesh.replicas[0].inspect().started, "two of four: its own and one more"
    assert len({letter.message for letter in mesh.wire if letter.target == 1}) == 1
