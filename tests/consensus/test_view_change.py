"""Changing the primary: what has to survive it, and every check of the two messages."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from shoal.consensus.certificate import certify
from shoal.consensus.messages import (
    NEW_VIEW_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    CommitProof,
    NewView,
    PrePrepare,
    Request,
    ViewChange,
    sealed_bytes,
)
from shoal.consensus.records import NULL_DIGEST
from shoal.consensus.view_change import plan_of
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import MESH_ID, Letter, Mesh, digest_of, is_vote

DIGEST = b"\x05" * 32


def sealed_change(mesh: Mesh, change: ViewChange) -> ViewChange:
    message = sealed_bytes(VIEW_CHANGE_DOMAIN, MESH_ID, change.body())
    return replace(change, signature=mesh.signers[change.signer](message))


def sealed_view(mesh: Mesh, view: NewView) -> NewView:
    message = sealed_bytes(NEW_VIEW_DOMAIN, MESH_ID, view.body())
    return replace(view, signature=mesh.signers[view.signer](message))


def empty_change(mesh: Mesh, signer: int, view: int) -> ViewChange:
    return sealed_change(mesh, ViewChange(0, view, signer, 0, None, ()))


def depose(mesh: Mesh, *, crash: bool = True) -> None:
    """The primary of view 0 goes away and the others lose patience."""
    if crash:
        mesh.crash(0)
    for index in range(1, mesh.validators.n):
        mesh.fire(index, "progress")
    mesh.deliver()


def pending_everywhere(mesh: Mesh, operation: bytes) -> None:
    """Everybody knows the operation, and the primary says nothing about it."""
    mesh.submit(1, operation)
    mesh.deliver(lambda x: isinstance(x.message, PrePrepare))


@pytest.mark.parametrize("n", [4, 5, 6, 7, 10])
def test_a_dead_primary_is_replaced_and_the_operation_decided(n: int) -> None:
    mesh = Mesh(n)
    pending_everywhere(mesh, mesh.join())
    depose(mesh)
    assert mesh.executed()[1:] == [1] * (n - 1)
    assert {mesh.replicas[i].inspect().view for i in range(1, n)} == {1}


def test_an_idle_mesh_never_changes_its_view() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join()])
    mesh.gossip(5)
    assert all("progress" not in mesh.core(i).outbox.timers for i in range(4))
    assert {mesh.core(i).view for i in range(4)} == {0}


def test_bug_4_what_was_prepared_survives_the_view_change() -> None:
    mesh = Mesh(4)
    first, second = mesh.join("first"), mesh.join("second")
    mesh.submit(0, first)
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT))
    assert mesh.executed() == [0] * 4
    mesh.submit(2, second)
    mesh.deliver(lambda x: isinstance(x.message, PrePrepare) or is_vote(x, VoteKind.COMMIT))
    depose(mesh)
    for index in (1, 2, 3):
        assert mesh.digests(index) == [digest_of(first), digest_of(second)]


def test_what_one_replica_committed_is_what_all_others_decide() -> None:
    mesh = Mesh(4)
    operation = mesh.join()
    mesh.submit(0, operation)
    # Only replica 3 hears the COMMITs; then the primary dies.
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT) and x.target != 3)
    assert mesh.executed() == [0, 0, 0, 1]
    depose_two(mesh)
    assert mesh.executed()[1:] == [1, 1, 1]
    assert mesh.digests(1) == mesh.digests(3) == [digest_of(operation)]


def depose_two(mesh: Mesh) -> None:
    mesh.crash(0)
    for index in (1, 2):
        mesh.fire(index, "progress")
    mesh.deliver()


def test_a_gap_below_something_prepared_becomes_the_null_operation() -> None:
    mesh = Mesh(4)
    for name in ("a", "b"):
        mesh.submit(0, mesh.join(name))

    def hides_the_first(letter: Letter) -> bool:
        message = letter.message
        first = isinstance(message, PrePrepare) and message.vote.sequence == 1
        return first or is_vote(letter, VoteKind.COMMIT)

    mesh.deliver(hides_the_first)
    depose(mesh)
    assert mesh.digests(1)[:2] == [NULL_DIGEST, digest_of(mesh.join("b"))]


def test_the_highest_view_wins_a_slot_and_the_highest_watermark_starts_the_plan() -> None:
    mesh = Mesh(4)
    old = mesh.certificate(VoteKind.PREPARE, [0, 1, 2], view=0, sequence=6, digest=DIGEST)
    new = mesh.certificate(VoteKind.PREPARE, [1, 2, 3], view=2, sequence=6, digest=bytes(32))
    gone = mesh.certificate(VoteKind.PREPARE, [0, 1, 2], view=0, sequence=3, digest=DIGEST)
    stable = mesh.certificate(VoteKind.STABLE, [0, 1, 2], view=0, sequence=4, digest=DIGEST)
    changes = [
        ViewChange(0, 3, 0, 0, None, (gone, old)),
        ViewChange(0, 3, 1, 4, stable, (new,)),
        ViewChange(0, 3, 2, 0, None, (old,)),
    ]
    assert plan_of(changes) == (4, [NULL_DIGEST, bytes(32)])
    assert plan_of(changes[::-1]) == plan_of(changes)
    assert plan_of([ViewChange(0, 3, 1, 4, stable, ())]) == (4, [])


def prepared(mesh: Mesh, signers: list[int], view: int = 0, sequence: int = 1) -> ViewChange:
    proof = mesh.certificate(VoteKind.PREPARE, signers, view=view, sequence=sequence, digest=DIGEST)
    return ViewChange(0, 1, 1, 0, None, (proof,))


def stable_at(mesh: Mesh, signers: list[int], sequence: int = 4) -> ViewChange:
    proof = mesh.certificate(VoteKind.STABLE, signers, view=0, sequence=sequence, digest=DIGEST)
    return ViewChange(0, 1, 1, sequence, proof, ())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: prepared(m, [0, 1]), "no-quorum"),
        (lambda m: prepared(m, [1, 2, 3]), "no-pre-prepare"),
        (lambda m: prepared(m, [0, 1, 2], view=1), "prepared-proof-of-something-else"),
        (lambda m: prepared(m, [0, 1, 2], sequence=9), "prepared-out-of-order"),
        (lambda m: stable_at(m, [0, 1]), "no-quorum"),
        (lambda m: stable_at(m, [0, 1, 2], sequence=5), "not-a-stability-point"),
        (lambda m: replace(stable_at(m, [0, 1, 2]), low=8), "stability-proof-of-something-else"),
        (lambda m: replace(stable_at(m, [0, 1, 2]), stability=None), "stability-proof-missing"),
        (lambda m: replace(stable_at(m, [0, 1, 2]), low=0), "stability-proof-missing"),
        (lambda m: replace(empty_change(m, 1, 1), epoch=2), "wrong-epoch"),
        (lambda m: twice(prepared(m, [0, 1, 2])), "prepared-out-of-order"),
    ],
)
def test_a_view_change_without_its_proofs_counts_for_nothing(
    make: Callable[[Mesh], ViewChange], reason: str
) -> None:
    mesh = Mesh(4)
    mesh.give(3, sealed_change(mesh, make(mesh)))
    assert mesh.refused(3) == {reason: 1}
    assert not mesh.core(3).view_changes


def twice(change: ViewChange) -> ViewChange:
    return replace(change, prepared=change.prepared * 2)


def test_bug_7_one_bad_view_change_does_not_spoil_the_others() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    mesh.crash(0)
    mesh.give(1, sealed_change(mesh, replace(prepared(mesh, [0, 1]), signer=3)))
    depose(mesh)
    assert mesh.executed()[1:] == [1, 1, 1]


def test_a_view_change_needs_its_senders_signature() -> None:
    mesh = Mesh(4)
    change = empty_change(mesh, 2, 1)
    mesh.give(3, replace(change, signer=1))
    mesh.give(3, replace(change, view=2))
    assert mesh.refused(3) == {"bad-signature": 2}


def test_bug_3_the_same_sender_counts_once_and_two_stories_are_evidence() -> None:
    mesh = Mesh(4)
    change = empty_change(mesh, 2, 1)
    for _ in range(4):
        mesh.give(1, change)
    assert mesh.core(1).view == 0
    mesh.give(1, sealed_change(mesh, replace(prepared(mesh, [0, 1, 2]), signer=2)))
    assert [e.kind for e in mesh.evidence[1]] == ["view-change-equivocation"]


def proof_of(mesh: Mesh, signers: list[int]) -> NewView:
    changes = tuple(empty_change(mesh, signer, 1) for signer in signers)
    return NewView(0, 1, 1, changes, ())


def hiding(mesh: Mesh) -> NewView:
    """The VIEW-CHANGEs show something prepared, and the primary leaves it out."""
    change = sealed_change(mesh, replace(prepared(mesh, [0, 1, 2]), signer=1))
    others = [empty_change(mesh, signer, 1) for signer in (2, 3)]
    return NewView(0, 1, 1, (change, *others), ())


def inventing(mesh: Mesh) -> NewView:
    return replace(proof_of(mesh, [1, 2, 3]), proposals=((DIGEST, bytes(64)),))


def unsigned_slot(mesh: Mesh) -> NewView:
    return replace(hiding(mesh), proposals=((DIGEST, bytes(64)),))


def of_another_view(mesh: Mesh) -> NewView:
    changes = tuple(empty_change(mesh, signer, 5) for signer in (1, 2, 3))
    return NewView(0, 1, 1, changes, ())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: proof_of(m, [1, 2]), "no-quorum"),
        (lambda m: proof_of(m, [1, 1, 2]), "no-quorum"),
        (hiding, "new-view-differs"),
        (inventing, "new-view-differs"),
        (unsigned_slot, "bad-signature"),
        (of_another_view, "view-change-of-another-view"),
    ],
)
def test_bugs_3_8_an_invalid_new_view_convicts_its_primary_and_moves_us_on(
    make: Callable[[Mesh], NewView], reason: str
) -> None:
    mesh = Mesh(4)
    for signer in (1, 3):
        mesh.give(2, empty_change(mesh, signer, 1))
    assert (mesh.core(2).view, mesh.core(2).active) == (1, False)
    mesh.give(2, sealed_view(mesh, make(mesh)))
    assert mesh.refused(2) == {reason: 1}
    assert [e.kind for e in mesh.evidence[2]] == ["invalid-new-view"]
    assert (mesh.core(2).view, mesh.core(2).active) == (2, mesh.core(2).active)


def test_an_invalid_new_view_of_a_far_view_cannot_drag_us_there() -> None:
    mesh = Mesh(4)
    far = sealed_view(mesh, replace(proof_of(mesh, [1, 2]), view=4_000_001, signer=1))
    mesh.give(2, far)
    assert mesh.core(2).view == 0


def test_a_new_view_is_its_primarys_to_send() -> None:
    mesh = Mesh(4)
    mesh.give(3, sealed_view(mesh, replace(proof_of(mesh, [1, 2, 3]), signer=2)))
    mesh.give(3, replace(proof_of(mesh, [1, 2, 3]), signature=bytes(64)))
    assert mesh.refused(3) == {"not-the-primary": 1, "bad-signature": 1}
    assert mesh.core(3).view == 0


def test_bug_6_a_replayed_view_change_moves_nobody_backwards() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    depose(mesh)
    recorded = [x for x in mesh.log if isinstance(x.message, (ViewChange, NewView))]
    mesh.down = {0, 1}
    for index in (2, 3):
        mesh.submit(index, mesh.join("later"))
        mesh.fire(index, "progress")
    mesh.deliver()
    before = [mesh.core(index).view for index in (2, 3)]
    assert min(before) >= 2
    mesh.down = {0, 1}
    for letter in recorded:
        for index in (2, 3):
            mesh.give(index, letter.message, letter.source)
    assert [mesh.core(index).view for index in (2, 3)] == before


def test_the_new_view_may_be_entered_by_who_never_left_the_old_one() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join())
    depose(mesh)
    mesh.restart(0)
    mesh.gossip(2)
    assert mesh.core(0).view == 1
    assert mesh.executed() == [1] * 4


def prepared_by_one(mesh: Mesh) -> bytes:
    """Only replica 0 holds a prepared certificate for slot 1, and only it knows the operation."""
    first = mesh.join("first")
    mesh.submit(0, first)
    mesh.deliver(
        lambda x: (
            isinstance(x.message, Request)
            or is_vote(x, VoteKind.COMMIT)
            or (is_vote(x, VoteKind.PREPARE) and x.target != 0)
        )
    )
    assert [1 in mesh.core(i).prepared for i in range(4)] == [True, False, False, False]
    return first


def held_new_view(mesh: Mesh) -> NewView:
    """All leave for view 1; its leader's NEW-VIEW carries slot 1 over and reaches nobody."""
    for index in (0, 1, 2):
        mesh.fire(index, "progress")
    mesh.deliver(lambda x: isinstance(x.message, NewView))
    (view,) = {x.message for x in mesh.log if isinstance(x.message, NewView)}
    assert isinstance(view, NewView) and len(view.proposals) == 1
    return view


def test_a_late_new_view_that_lost_to_a_later_view_is_no_broken_invariant() -> None:
    """Nobody lies. The others decide something else for the slot in view 2, then it arrives."""
    mesh = Mesh(4)
    first = prepared_by_one(mesh)
    late = held_new_view(mesh)
    mesh.crash(0)
    for index in (2, 3):
        mesh.fire(index, "new-view")
    mesh.deliver()
    second = mesh.join("second")
    mesh.order([second], at=2)
    assert mesh.digests(2) == [digest_of(second)]
    mesh.down.clear()
    (decided,) = mesh.decided[2]
    mesh.give(0, CommitProof(second, decided.certificate), source=2)
    mesh.give(0, late, source=1)
    assert mesh.digests(0) == [digest_of(second)]
    votes = [x.message for x in mesh.wire if x.source == 0 and is_vote(x, VoteKind.PREPARE)]
    assert not votes, "the slot is settled, and not as the NEW-VIEW says"
    mesh.gossip(3)
    mesh.order([first], at=0)
    assert all(mesh.digests(i) == [digest_of(second), digest_of(first)] for i in range(4))


def test_two_new_views_of_one_leader_do_not_stop_who_gets_the_wrong_one() -> None:
    """One shows what replica 0 had prepared and one does not; both are made of honest messages."""
    mesh = Mesh(4)
    prepared_by_one(mesh)
    carrying = held_new_view(mesh)
    empty = sealed_view(mesh, proof_of(mesh, [1, 2, 3]))
    second = mesh.join("second")
    digest = digest_of(second)
    votes = [
        mesh.vote(VoteKind.COMMIT, signer, view=1, sequence=1, digest=digest)
        for signer in (1, 2, 3)
    ]
    for index in (2, 3):
        mesh.give(index, empty, source=1)
        assert mesh.core(index).active
    mesh.give(0, CommitProof(second, certify(VoteKind.COMMIT, votes)), source=1)
    mesh.give(0, carrying, source=1)
    assert mesh.digests(0) == [digest]
    assert (mesh.core(0).view, mesh.core(0).active) == (1, True)
