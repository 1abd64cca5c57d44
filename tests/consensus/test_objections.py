"""Opinions that put a member out: many of them, of one time, and never alone."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.consensus.changes import TERM_HEIGHTS, Approve, Change, ChangeKind, objection
from shoal.consensus.errors import ConsensusError
from shoal.consensus.ledger import Eviction, Executed, Ledger, Rejected, Result
from shoal.consensus.quorum import faults, quorum
from shoal.consensus.records import operation_bytes, operation_digest, parse_operation
from shoal.consensus.validity import validate
from tests.consensus.mesh import MESH_ID, Mesh

# Seven validators, and a member that does not vote.
WIDE = Mesh(7, 1)
HARMFUL = WIDE.keys[6]


def fresh(height: int = 5) -> Ledger:
    ledger = Ledger.restore(WIDE.genesis.snapshot())
    ledger.height = height
    return ledger


def execute(ledger: Ledger, data: bytes) -> Result:
    return ledger.execute(ledger.sequence + 1, parse_operation(data), operation_digest(data))


def object_to(ledger: Ledger, by: int, member: bytes = HARMFUL) -> Result:
    """Validator `by` finds the member harmful now."""
    return execute(ledger, WIDE.approve(objection(member, ledger.height), by))


def test_a_quorum_of_opinions_puts_a_member_out_and_one_less_does_not() -> None:
    ledger = fresh()
    needed = quorum(7)
    assert needed == 5 > faults(7) + 1, "more than the f + 1 that a proof would take"
    for by in range(needed - 1):
        assert object_to(ledger, by) == Executed()
    assert HARMFUL in ledger.members
    assert not ledger.evictions()
    assert object_to(ledger, needed - 1) == Executed()
    assert HARMFUL not in ledger.members
    assert ledger.evictions() == {HARMFUL: Eviction.HARM}, "an opinion, and no evidence"
    assert execute(ledger, WIDE.rejoin(6, time_ms=2**63)) == Rejected("evicted")


def test_saying_it_again_is_saying_it_once() -> None:
    ledger = fresh()
    assert object_to(ledger, 0) == Executed()
    for _ in range(7):
        assert object_to(ledger, 0) == Rejected("already-executed")
        ledger.recent.clear()
        assert object_to(ledger, 0) == Rejected("already-approved")
        ledger.height += 1
    assert HARMFUL in ledger.members


def test_who_does_not_vote_has_no_opinion_that_counts() -> None:
    ledger = fresh()
    for by in range(quorum(7) - 1):
        object_to(ledger, by)
    assert object_to(ledger, 7) == Rejected("wrong-epoch")
    stranger = parse_operation(WIDE.approve(objection(HARMFUL, 5), 7))
    assert validate(stranger, WIDE.core(0).verifier) == "not-a-validator"
    assert HARMFUL in ledger.members


def test_an_opinion_expires() -> None:
    """Four find it harmful at one time and one long after: never five at once."""
    ledger = fresh(height=TERM_HEIGHTS - 1)
    early = WIDE.approve(objection(HARMFUL, ledger.height), 4)
    for by in range(quorum(7) - 1):
        assert object_to(ledger, by) == Executed()
    ledger.height += 1
    assert execute(ledger, early) == Rejected("wrong-term"), "kept back until it is too late"
    assert object_to(ledger, 4) == Executed()
    assert HARMFUL in ledger.members
    for by in range(quorum(7) - 1):
        assert object_to(ledger, by) == Executed(), "who is still of that mind says so again"
    assert ledger.evictions() == {HARMFUL: Eviction.HARM}


def test_an_opinion_of_the_last_epoch_is_worth_nothing() -> None:
    mesh = Mesh(4, 1)
    harmful = mesh.keys[4]
    mesh.order([mesh.approve(objection(harmful, 0), by) for by in (0, 1)])
    mesh.decide(Change(ChangeKind.PARAMETERS, parameters=b"p"))
    assert mesh.replicas[0].inspect().epoch == 1
    mesh.order([mesh.approve(objection(harmful, 0), 2)])
    assert harmful in mesh.core(0).ledger.members
    mesh.order([mesh.approve(objection(harmful, 0), by) for by in (0, 1)])
    for index in range(4):
        assert mesh.core(index).ledger.evictions() == {harmful: Eviction.HARM}


def test_a_validator_that_is_put_out_by_opinions_loses_its_vote_with_the_epoch() -> None:
    mesh = Mesh(5)
    harmful = mesh.keys[4]
    mesh.order([mesh.approve(objection(harmful, 0), by) for by in range(quorum(5))])
    mesh.gossip(4)
    assert mesh.voters() == [0, 1, 2, 3]
    assert all(mesh.core(index).ledger.is_evicted(harmful) for index in range(4))


def test_opinions_and_decisions_of_people_do_not_add_up() -> None:
    """Half of the validators object, the other half expel: no quorum is for either."""
    ledger = fresh()
    for by in range(4):
        assert object_to(ledger, by) == Executed()
    for by in range(3, 7):
        if WIDE.keys[by] != HARMFUL:
            expel = Change(ChangeKind.EXPEL, HARMFUL)
            assert execute(ledger, WIDE.approve(expel, by)) == Executed()
    assert HARMFUL in ledger.members


def test_an_objection_is_signed_for_one_mesh_member_term_and_epoch() -> None:
    signed = parse_operation(WIDE.approve(objection(HARMFUL, 5), 0))
    assert isinstance(signed, Approve)
    verifier = WIDE.core(0).verifier
    assert validate(signed, verifier) is None
    about = signed.change
    for other in (
        replace(about, term=1),
        replace(about, member=WIDE.keys[1]),
        Change(ChangeKind.EXPEL, HARMFUL),
    ):
        assert validate(replace(signed, change=other), verifier) == "bad-signature"
    assert validate(replace(signed, epoch=1), verifier) == "wrong-epoch"
    assert MESH_ID in signed.signed_bytes(MESH_ID)


@settings(deadline=None)
@given(member=st.binary(min_size=32, max_size=32).filter(any), height=st.integers(0, 2**63))
def test_an_objection_has_one_encoding(member: bytes, height: int) -> None:
    data = WIDE.approve(objection(member, height), 0)
    parsed = parse_operation(data)
    assert isinstance(parsed, Approve)
    assert parsed.change == objection(member, height)
    assert operation_bytes(parsed) == data


@pytest.mark.parametrize(
    "change",
    [
        Change(ChangeKind.OBJECT, term=3),
        Change(ChangeKind.OBJECT, HARMFUL, b"parameters", 3),
    ],
)
def test_an_objection_is_about_a_member_and_nothing_else(change: Change) -> None:
    with pytest.raises(ConsensusError, match="bad-change"):
        parse_operation(WIDE.approve(change, 0))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.booleans()), max_size=40))
def test_nobody_is_out_whom_no_quorum_of_one_term_objected_to(
    said: list[tuple[int, int, bool]],
) -> None:
    """Any objections in any order, heights passing in between: counted a second time here."""
    ledger = fresh(height=TERM_HEIGHTS - 2)
    heard: dict[tuple[int, bytes, int], set[int]] = {}
    out: set[bytes] = set()
    for by, about, passes in said:
        ledger.height += passes
        member, epoch = WIDE.keys[about], ledger.epoch
        last = ledger.coming_validators() == {member}
        counts = WIDE.keys[by] in epoch.keys and member not in out and not last
        change = objection(member, ledger.height)
        result = execute(ledger, WIDE.approve(change, by, epoch=epoch.number))
        if counts:
            voices = heard.setdefault((epoch.number, member, ledger.height // TERM_HEIGHTS), set())
            voices.add(by)
            if len(voices) >= quorum(len(epoch.keys)):
                out.add(member)
        else:
            assert isinstance(result, Rejected)
        assert set(ledger.evictions()) == out
