"""The primary's turn passes on at each stability point, and a view change keeps what was promised.

What is new at a sequence is its primary's to propose, what a NEW-VIEW carries over is its
leader's; both may be in a prepared certificate.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.certificate import Certificate, certify, parse_certificate, verify_certificate
from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.errors import ConsensusError
from shoal.consensus.messages import PrePrepare, Request
from shoal.consensus.validators import Validators
from shoal.consensus.votes import Vote, VoteKind
from tests.consensus.mesh import MESH_ID, Letter, Mesh, digest_of, is_vote
from tests.consensus.test_view_change import depose, pending_everywhere
from tests.simulation.verifier import certificate_problem

MESH = Mesh(4)
DIGEST = b"\x05" * 32


def proposers(mesh: Mesh) -> dict[int, int]:
    """Who proposed what was decided, by sequence."""
    return {
        letter.message.vote.sequence: letter.source
        for letter in mesh.log
        if isinstance(letter.message, PrePrepare)
    }


def test_everybody_has_a_turn_without_a_view_change() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(20)])
    assert [proposers(mesh)[sequence] for sequence in range(1, 21)] == [
        primary for primary in (0, 1, 2, 3, 0) for _ in range(4)
    ]
    assert {mesh.core(i).view for i in range(4)} == {0}


@given(st.integers(1, 31), st.integers(0, 100), st.integers(1, 8), st.integers(1, 400))
def test_every_validator_has_the_same_number_of_turns(
    n: int, view: int, interval: int, start: int
) -> None:
    keys = tuple(bytes([i]) * 32 for i in range(n))
    validators = Validators(MESH_ID, 0, keys, interval)
    turns = [validators.primary(view, start + i) for i in range(n * interval)]
    assert sorted(turns) == sorted(list(range(n)) * interval)
    assert validators.primary(view, 1) == validators.leader(view), "the leader has the first"


def test_the_turn_is_who_may_propose_and_nobody_else() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(4)])
    body = mesh.join("usurped")
    for signer in (0, 2, 3):
        vote = mesh.vote(VoteKind.PRE_PREPARE, signer, view=0, sequence=5, digest=digest_of(body))
        for target in {0, 1, 2, 3} - {signer}:
            mesh.give(target, PrePrepare(vote, body), source=signer)
    assert not mesh.wire
    assert all(mesh.refused(i)["not-the-primary"] >= 2 for i in range(4))
    mesh.submit(3, body)
    mesh.deliver()
    assert proposers(mesh)[5] == 1


def test_a_primary_that_dies_in_its_turn_costs_one_view_and_the_next_turns_go_on() -> None:
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(4)])
    mesh.crash(1)
    mesh.submit(0, mesh.join("late"))
    mesh.deliver()
    for _ in range(3):
        for index in (0, 2, 3):
            for timer in ("progress", "new-view"):
                if timer in mesh.core(index).outbox.timers:
                    mesh.fire(index, timer)
                    mesh.deliver()
        if mesh.executed()[0] == 5:
            break
    views = {mesh.core(i).view for i in (0, 2, 3)}
    assert views == {2}, "view 1 is the dead one's as well"
    mesh.order([mesh.join(f"n{i}") for i in range(7)], at=2)
    assert [mesh.executed()[i] for i in (0, 2, 3)] == [12] * 3
    assert [proposers(mesh)[s] for s in range(5, 13)] == [3] * 4 + [0] * 4
    assert {mesh.core(i).view for i in (0, 2, 3)} == {2}


def carried_over() -> Mesh:
    """Slots 9 and 10 are prepared in view 0 and not committed; view 1 has to carry them over."""
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(8)])
    for name in ("a", "b"):
        mesh.submit(2, mesh.join(name))
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT))
    assert mesh.executed() == [8] * 4
    mesh.crash(0)
    for index in (2, 3):
        mesh.fire(index, "progress")
    return mesh


def test_what_is_carried_over_is_the_leaders_and_what_is_new_is_the_primarys() -> None:
    mesh = carried_over()
    mesh.log.clear()
    mesh.deliver()
    mesh.order([mesh.join(f"n{i}") for i in range(2)], at=2)
    assert mesh.executed()[1:] == [12] * 3
    assert [d.sequence for d in mesh.decided[1]] == list(range(1, 13))
    assert mesh.validators.leader(1) == 1
    assert proposers(mesh) == {11: 3, 12: 3}, "the third turn of view 1 is validator 3's"
    proofs = {s: mesh.core(2).decisions[s].certificate for s in (9, 10, 11)}
    assert {proof.view for proof in proofs.values()} == {1}


def test_the_primary_of_the_turn_may_not_replace_what_was_carried_over() -> None:
    mesh = carried_over()
    mesh.deliver(lambda x: is_vote(x, VoteKind.PREPARE))
    assert mesh.core(2).plan_end == 10
    body = mesh.join("instead")
    vote = mesh.vote(VoteKind.PRE_PREPARE, 3, view=1, sequence=9, digest=digest_of(body))
    mesh.give(2, PrePrepare(vote, body), source=3)
    assert mesh.refused(2)["not-the-primary"] == 1
    leaders = mesh.vote(VoteKind.PRE_PREPARE, 1, view=1, sequence=11, digest=digest_of(body))
    mesh.give(2, PrePrepare(leaders, body), source=1)
    assert mesh.refused(2)["not-the-primary"] == 2, "nor the leader propose what is new"


def test_who_fails_in_its_turn_is_not_waited_for_again_to_start_the_next_view() -> None:
    """The second turn is validator 1's, and view 1 would be for validator 1 to start."""
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(4)])
    assert mesh.core(0).proposer(5) == mesh.validators.leader(1) == 1
    mesh.crash(1)
    mesh.submit(0, mesh.join("late"))
    mesh.deliver()
    for index in (0, 2, 3):
        mesh.fire(index, "progress")
    mesh.deliver()
    assert [mesh.executed()[i] for i in (0, 2, 3)] == [5] * 3, "after one timeout"
    assert {(mesh.core(i).view, mesh.core(i).backoff) for i in (0, 2, 3)} == {(2, 0)}


def test_whoever_holds_another_one_responsible_finds_its_quorum_in_the_view_between() -> None:
    """Validator 3 alone knows that the turn has passed to validator 1, which is dead.

    It leaves view 1 at once; the two others need its VIEW-CHANGE there before they may go on.
    """
    mesh = Mesh(4)
    mesh.order([mesh.join(f"m{i}") for i in range(3)])
    mesh.submit(0, mesh.join("last of the turn"))
    mesh.deliver(lambda x: is_vote(x, VoteKind.COMMIT) and x.target in (0, 2))
    mesh.crash(1)
    mesh.submit(0, mesh.join("late"))
    mesh.deliver(lambda x: not isinstance(x.message, Request))
    for index in (3, 0, 2):
        mesh.fire(index, "progress")
    mesh.deliver()
    assert [(mesh.core(i).view, mesh.core(i).active) for i in (0, 2, 3)] == [
        (1, False),
        (1, False),
        (2, False),
    ]
    for index in (0, 2):
        mesh.fire(index, "new-view")
    mesh.deliver()
    assert [mesh.executed()[i] for i in (0, 2, 3)] == [5] * 3


def by(pre_prepare: int, *prepares: int, view: int = 1, sequence: int = 6) -> Certificate:
    """A prepared certificate with this validator's PRE-PREPARE."""
    proposal = MESH.vote(
        VoteKind.PRE_PREPARE, pre_prepare, view=view, sequence=sequence, digest=DIGEST
    )
    votes = [
        MESH.vote(VoteKind.PREPARE, signer, view=view, sequence=sequence, digest=DIGEST)
        for signer in prepares
    ]
    return certify(VoteKind.PREPARE, [proposal, *votes])


def doubled() -> Certificate:
    """Leader and primary both PRE-PREPARE: one of the two signatures is not a PREPARE."""
    both = by(1, 3)
    second = MESH.vote(VoteKind.PRE_PREPARE, 2, view=1, sequence=6, digest=DIGEST)
    signatures = (both.signatures[0], second.signature, both.signatures[1])
    return replace(both, signers=(1, 2, 3), signatures=signatures)


# In view 1 at sequence 6 the leader is validator 1 and the turn is validator 2's.
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: by(1, 0, 3), None),
        (lambda: by(1, 2, 3), None),
        (lambda: by(2, 0, 3), None),
        (lambda: by(2, 1, 3), None),
        (lambda: by(1, 2, 3, sequence=3), None),
        (lambda: by(3, 0, 1), "bad-signature"),
        (lambda: by(0, 1, 2), "bad-signature"),
        (lambda: by(2, 0, 3, sequence=3), "no-pre-prepare"),
        (doubled, "bad-signature"),
    ],
)
def test_a_prepared_certificate_has_one_pre_prepare_of_one_who_may(
    make: Callable[[], Certificate], reason: str | None
) -> None:
    certificate = make()
    assert parse_certificate(certificate.to_bytes()) == certificate
    independent = certificate_problem(
        certificate.to_bytes(),
        mesh_id=MESH_ID,
        epoch=0,
        keys=MESH.validators.keys,
        interval=4,
        verify=MESH.keyring.verify,
    )
    assert (independent is None) == (reason is None)
    if reason is None:
        verify_certificate(certificate, MESH.validators, MESH.keyring.verify)
    else:
        with pytest.raises(ConsensusError, match=reason):
            verify_certificate(certificate, MESH.validators, MESH.keyring.verify)


def test_prepares_alone_are_no_prepared_certificate() -> None:
    votes = [
        MESH.vote(VoteKind.PREPARE, signer, view=1, sequence=6, digest=DIGEST)
        for signer in (0, 1, 2)
    ]
    with pytest.raises(ConsensusError, match="bad-signature"):
        verify_certificate(certify(VoteKind.PREPARE, votes), MESH.validators, MESH.keyring.verify)


@pytest.mark.parametrize("view", [0, 1])
def test_one_who_is_leader_and_primary_and_equivocates_splits_nobody(view: int) -> None:
    """Two halves get two proposals for one slot; no more than one of them is ever decided."""
    mesh = Mesh(4)
    if view:
        pending_everywhere(mesh, mesh.join("first"))
        depose(mesh, crash=False)
        assert mesh.executed() == [1] * 4
    liar = mesh.validators.leader(view)
    sequence = mesh.executed()[0] + 1
    assert mesh.validators.primary(view, sequence) == liar
    honest = [index for index in range(4) if index != liar]
    for target, name in zip(honest, ("a", "a", "b"), strict=True):
        body = mesh.join(name)
        vote = mesh.vote(
            VoteKind.PRE_PREPARE, liar, view=view, sequence=sequence, digest=digest_of(body)
        )
        mesh.give(target, PrePrepare(vote, body), source=liar)

    def not_of_the_liar(letter: Letter) -> bool:
        return letter.source == liar

    mesh.deliver(not_of_the_liar)
    mesh.down.add(liar)
    for _ in range(4):
        for index in honest:
            for timer in ("progress", "new-view"):
                if timer in mesh.core(index).outbox.timers:
                    mesh.fire(index, timer)
                    mesh.deliver()
        mesh.gossip(2)
    told = [mesh.digests(index) for index in honest]
    assert told[0] == told[1] == told[2]
    assert len(told[0]) >= sequence


def test_a_new_epoch_begins_in_view_0_with_a_turn_of_its_own() -> None:
    mesh = Mesh(4)
    pending_everywhere(mesh, mesh.join("first"))
    depose(mesh, crash=False)
    assert {mesh.core(i).view for i in range(4)} == {1}
    mesh.decide(Change(ChangeKind.PARAMETERS, parameters=b"p"))
    assert {(mesh.core(i).epoch, mesh.core(i).view) for i in range(4)} == {(1, 0)}
    mesh.log.clear()
    mesh.order([mesh.join(f"m{i}") for i in range(4)])
    assert proposers(mesh) == dict.fromkeys(range(5, 9), 1)
    votes = [x.message for x in mesh.log if isinstance(x.message, Vote)]
    assert {vote.epoch for vote in votes} == {1}
