"""One test for each trap of the design pages 1.3 and 1.5; each deadlocked something once."""

from functools import partial

import pytest

from shoal.consensus.effects import TimerFired
from shoal.consensus.messages import NewView, PrePrepare, Status, ViewChange
from shoal.consensus.pacemaker import view_timeout_ms
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import Letter, Mesh, is_vote
from tests.consensus.test_view_change import empty_change, pending_everywhere


def test_trap_a_stable_vote_is_made_again_after_a_restart() -> None:
    """Exactly Q are alive; one crashed after executing the stability point, before it was one."""
    mesh = Mesh(4)
    mesh.crash(0)
    mesh.down.clear()
    for i in range(4):
        mesh.submit(0, mesh.join(f"m{i}"))
        mesh.deliver(lambda x: is_vote(x, VoteKind.STABLE))
    assert mesh.executed() == [4] * 4
    assert {mesh.core(i).low for i in range(4)} == {0}
    mesh.crash(3)
    for index in (0, 1, 2):
        mesh.restart(index)
    mesh.deliver()
    mesh.gossip(2)
    assert {mesh.core(i).low for i in (0, 1, 2)} == {4}


def test_trap_a_power_cut_at_the_end_of_the_window_does_not_close_it_for_ever() -> None:
    """Both stability points of the window were executed, and every vote for them was lost."""
    mesh = Mesh(4)
    for i in range(9):
        mesh.submit(0, mesh.join(f"m{i}"))
        mesh.deliver(partial(is_vote, kind=VoteKind.STABLE))
    assert mesh.executed() == [8] * 4, "the ninth is outside the window"
    mesh.crash(3)
    for index in (0, 1, 2):
        mesh.restart(index)
    mesh.wire.clear()
    mesh.gossip(2)
    mesh.order([mesh.join("next")], at=1)
    assert mesh.executed()[:3] == [9] * 3


def test_trap_a_stability_certificate_counts_without_an_own_vote() -> None:
    mesh = Mesh(4, retained=0)
    mesh.crash(3)
    mesh.order([mesh.join(f"m{i}") for i in range(9)])
    assert mesh.core(0).low == 8
    mesh.restart(3)
    mesh.gossip(3)
    assert (mesh.core(3).low, mesh.executed()[3]) == (8, 9)
    assert [r.ledger.sequence for r in mesh.restored[3]] == [8]
    assert mesh.core(3).ledger.digest() == mesh.core(0).ledger.digest()


def change_without_primary(mesh: Mesh) -> None:
    """Replicas 1, 2, 3 wait in view 1, and its primary's NEW-VIEW does not come."""
    pending_everywhere(mesh, mesh.join())
    mesh.crash(0)
    for index in (2, 3):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: isinstance(x.message, NewView))


def test_trap_the_new_view_timer_is_not_rearmed_by_repeated_view_changes() -> None:
    mesh = Mesh(4)
    change_without_primary(mesh)
    due = mesh.core(2).outbox.timers["new-view"]
    for _ in range(5):
        mesh.now_ms += 500
        for signer in (1, 3):
            mesh.give(2, empty_change(mesh, signer, 1))
    assert mesh.core(2).outbox.timers["new-view"] == due
    mesh.fire(2, "new-view")
    assert mesh.core(2).view == 2


def test_trap_the_new_view_timer_waits_for_a_quorum() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.fire(2, "progress")
    assert (mesh.core(2).view, mesh.core(2).active) == (1, False)
    assert "new-view" not in mesh.core(2).outbox.timers
    mesh.give(2, empty_change(mesh, 1, 1))
    assert "new-view" not in mesh.core(2).outbox.timers, "two of four are no quorum"
    mesh.give(2, empty_change(mesh, 3, 1))
    assert "new-view" in mesh.core(2).outbox.timers


def test_trap_bug_16_older_view_changes_are_sent_again_to_those_who_need_them() -> None:
    """Two in view 1 and one in view 2, one dead, and the third's first VIEW-CHANGE was lost."""
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.crash(0)
    for index in (1, 2, 3):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: x.source == 3)
    assert [mesh.core(i).view for i in (1, 2, 3)] == [1, 1, 1]
    mesh.fire(3, "new-view")
    mesh.deliver(lambda x: x.source == 3)
    assert [mesh.core(i).view for i in (1, 2, 3)] == [1, 1, 2]
    assert not mesh.core(1).active
    mesh.gossip(1)
    assert (mesh.core(1).view, mesh.core(1).active) == (1, True), "its primary has its quorum now"
    for index in (1, 2):
        mesh.fire(index, "progress")
    mesh.deliver()
    assert mesh.executed()[1:] == [1, 1, 1]


def test_trap_a_view_that_one_was_in_and_left_is_told_to_those_who_wait_for_it() -> None:
    """Two wait in view 1; the third started it, unheard, and is in view 2; the fourth is dead."""
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.crash(0)
    for index in (1, 2, 3):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: x.source == 1)
    assert (mesh.core(1).view, mesh.core(1).active) == (1, True)
    mesh.fire(1, "progress")
    mesh.deliver(lambda x: x.source == 1)
    mesh.restart(1)
    assert [mesh.core(i).view for i in (1, 2, 3)] == [2, 1, 1]
    assert not mesh.core(2).active and not mesh.core(3).active
    mesh.gossip(2)
    for _ in range(2):
        for index in (1, 2, 3):
            for name in ("progress", "new-view"):
                if name in mesh.core(index).outbox.timers:
                    mesh.fire(index, name)
        mesh.deliver()
        mesh.gossip(2)
    assert mesh.executed()[1:] == [1, 1, 1]


def test_trap_the_timeout_doubles_with_each_view_and_shrinks_by_one_step() -> None:
    mesh = Mesh(4)
    core = mesh.core(2)
    assert view_timeout_ms(core) == 2_000
    for view in (1, 2, 3):
        for signer in (1, 3):
            mesh.give(2, empty_change(mesh, signer, view))
    assert core.view == 3
    assert view_timeout_ms(core) == 16_000
    core.backoff = 19
    assert view_timeout_ms(core) == 600_000, "capped"
    mesh = Mesh(4)
    mesh.core(2).backoff = 3
    mesh.order([mesh.join("a")])
    assert mesh.core(2).backoff == 2


@pytest.mark.parametrize(("took_ms", "backoff"), [(7_999, 2), (8_000, 3)])
def test_trap_the_timeout_does_not_shrink_below_what_an_operation_takes(
    took_ms: int, backoff: int
) -> None:
    """Otherwise a mesh with slow links loses its primary again after each operation."""
    mesh = Mesh(4)
    core = mesh.core(2)
    core.backoff = 3
    mesh.submit(2, mesh.join("a"))
    mesh.now_ms += took_ms
    mesh.deliver()
    assert mesh.executed() == [1] * 4
    assert core.backoff == backoff


def test_trap_f_plus_one_view_changes_are_joined_at_once_at_the_smallest_view() -> None:
    mesh = Mesh(7)
    for signer, view in ((1, 9), (2, 5)):
        mesh.give(4, empty_change(mesh, signer, view))
    assert mesh.core(4).view == 0, "f of them may all be liars"
    mesh.give(4, empty_change(mesh, 3, 7))
    assert mesh.core(4).view == 5
    said = mesh.core(4).own_view_changes
    assert sorted(said) == [1, 2, 3, 4, 5], "somebody may wait between, and need ours"
    assert mesh.core(4).backoff == 1, "it was one loss of patience"


def test_trap_a_lost_message_of_any_kind_is_sent_again() -> None:
    for lost in (PrePrepare, ViewChange, NewView):
        mesh = Mesh(4)
        mesh.submit(0, mesh.join())
        losing(mesh, lost)
        assert min(mesh.executed()[1:]) >= 1, lost
    for kind in (VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE):
        mesh = Mesh(4)
        for i in range(4):
            mesh.submit(0, mesh.join(f"m{i}"))
        mesh.deliver(partial(is_vote, kind=kind))
        mesh.gossip(3)
        assert mesh.executed() == [4] * 4, kind
        assert {mesh.core(i).low for i in range(4)} == {4}


def losing(mesh: Mesh, lost: type[object]) -> None:
    """Lose every message of this type to replica 3 until things have gone wrong, then none."""
    mesh.deliver(lambda x: isinstance(x.message, lost) and x.target == 3)
    if lost is not PrePrepare:
        mesh.submit(1, mesh.join("second"))
        mesh.deliver(lambda x: isinstance(x.message, PrePrepare))
        mesh.crash(0)
        for index in (1, 2, 3):
            if "progress" in mesh.core(index).outbox.timers:
                mesh.fire(index, "progress")
        mesh.deliver(lambda x: isinstance(x.message, lost) and x.target == 3)
    mesh.gossip(3)


def test_trap_a_single_impatient_replica_gets_company_not_stuck() -> None:
    """One backup alone holds the operation; telling the others makes them impatient as well."""
    mesh = Mesh(4)
    mesh.crash(0)
    mesh.submit(3, mesh.join())
    mesh.deliver(lambda x: True)
    mesh.fire(3, "progress")
    mesh.deliver()
    mesh.gossip()
    assert mesh.replicas[1].inspect().pending == 1
    mesh.fire(1, "progress")
    mesh.deliver()
    mesh.gossip(2)
    assert mesh.executed()[1:] == [1, 1, 1]


def test_bug_20_committed_in_one_view_while_the_others_moved_on() -> None:
    mesh = Mesh(4)
    mesh.submit(0, mesh.join())
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT) and x.target != 0)
    assert mesh.executed() == [1, 0, 0, 0]
    for index in (1, 2, 3):
        mesh.fire(index, "progress")

    def to_or_from_the_committed(letter: Letter) -> bool:
        return 0 in (letter.source, letter.target)

    mesh.deliver(to_or_from_the_committed)
    assert mesh.executed() == [1] * 4
    mesh.gossip(2)
    mesh.order([mesh.join("next")], at=2)
    assert mesh.executed() == [2] * 4


def test_bug_22_commits_of_an_old_view_still_complete_a_certificate() -> None:
    mesh = Mesh(4)
    mesh.submit(0, mesh.join())
    held: list[Letter] = []

    def hold(letter: Letter) -> bool:
        if is_vote(letter, VoteKind.COMMIT):
            held.append(letter)
        return is_vote(letter, VoteKind.COMMIT)

    mesh.deliver(hold)
    for signer in (1, 3):
        mesh.give(2, empty_change(mesh, signer, 1))
    assert mesh.core(2).view == 1
    for letter in held:
        if letter.target == 2:
            mesh.give(2, letter.message, letter.source)
    assert mesh.executed()[2] == 1


def test_bug_26_a_late_replica_catches_up_though_nothing_happens_any_more() -> None:
    mesh = Mesh(4)
    mesh.crash(3)
    mesh.order([mesh.join(f"m{i}") for i in range(7)])
    mesh.restart(3)
    mesh.wire.clear()
    mesh.gossip(3)
    assert mesh.executed() == [7] * 4


def test_a_censored_operation_costs_the_primary_its_view_though_others_commit() -> None:
    mesh = Mesh(4)
    mesh.submit(3, mesh.join("unwanted"))
    mesh.deliver(lambda x: x.target == 0 or x.source == 0)
    due = mesh.core(2).outbox.timers["progress"]
    for i in range(3):
        mesh.now_ms += 300
        mesh.order([mesh.join(f"m{i}")], at=0)
    assert mesh.core(2).outbox.timers["progress"] == due
    mesh.fire(2, "progress")
    assert mesh.core(2).view == 1


def test_a_timer_that_was_moved_does_not_fire_early() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.step(2, TimerFired("progress"))
    mesh.step(2, TimerFired("new-view"))
    mesh.step(2, TimerFired("no-such-timer"))
    assert mesh.core(2).view == 0


def test_an_idle_mesh_says_little() -> None:
    mesh = Mesh(4)
    mesh.gossip(1)
    mesh.log.clear()
    mesh.core(0).outbox.timers["status"] = mesh.now_ms
    mesh.fire(0, "status")
    mesh.deliver()
    assert all(isinstance(letter.message, Status) for letter in mesh.log)
    assert len(mesh.log) == 3
    assert mesh.core(0).outbox.timers["status"] == mesh.now_ms + 10_000
