"""The replicated state: same operations, same bytes; nothing happens twice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.ledger import (
    MAX_MEMBERS,
    MAX_OPEN_CHANGES,
    RECENT_OPERATIONS,
    Eviction,
    Executed,
    Ledger,
    Rejected,
    Result,
)
from shoal.consensus.members import Member
from shoal.consensus.quorum import MAX_VALIDATORS, faults, quorum
from shoal.consensus.records import (
    Checkpoint,
    Join,
    Leave,
    Null,
    operation_bytes,
    operation_digest,
    parse_operation,
)
from shoal.consensus.validators import Verifier
from shoal.consensus.validity import validate
from tests.consensus.mesh import INTERVAL, MESH_ID, Mesh

MESH = Mesh(4)
# Seven validators and three more members, for everything about who votes.
WIDE = Mesh(7, 3)
VERIFIER = Verifier(MESH.validators, MESH.keyring.verify)


def fresh() -> Ledger:
    return Ledger.restore(MESH.genesis.snapshot())


def execute(ledger: Ledger, data: bytes) -> Result:
    return ledger.execute(ledger.sequence + 1, parse_operation(data), operation_digest(data))


def leave(name: str, time_ms: int) -> bytes:
    public, sign = MESH.keyring.identity(name)
    unsigned = Leave(member=public, time_ms=time_ms)
    return operation_bytes(replace(unsigned, signature=sign(unsigned.signed_bytes(MESH_ID))))


def test_a_member_joins_moves_leaves_and_comes_back() -> None:
    ledger = fresh()
    public, _ = MESH.keyring.identity("ann")
    assert execute(ledger, MESH.join("ann", time_ms=1)) == Executed()
    assert ledger.members[public].address == "ann:7400"
    assert execute(ledger, MESH.join("ann", time_ms=5)) == Executed()
    assert ledger.members[public].time_ms == 5
    assert execute(ledger, leave("ann", 6)) == Executed()
    assert public not in ledger.members
    assert execute(ledger, MESH.join("ann", time_ms=7)) == Executed()


def test_an_old_join_replayed_after_a_leave_brings_nobody_back() -> None:
    ledger = fresh()
    for data in (MESH.join("ann", time_ms=1), leave("ann", 6)):
        execute(ledger, data)
    assert execute(ledger, MESH.join("ann", time_ms=1)) == Rejected("already-executed")
    assert execute(ledger, MESH.join("ann", time_ms=3)) == Rejected("stale-time")
    assert execute(ledger, leave("bob", 9)) == Rejected("not-a-member")


def test_checkpoints_follow_each_other_and_each_height_is_taken_once() -> None:
    ledger = fresh()
    first = MESH.record()
    second = MESH.record(height=2, parent=first.digest)
    assert execute(ledger, MESH.checkpoint(second)) == Rejected("future-height")
    assert execute(ledger, MESH.checkpoint(first)) == Executed()
    assert (ledger.height, ledger.record_digest, ledger.round) == (1, first.digest, 1)
    late = MESH.record(attempt=1)
    assert execute(ledger, MESH.checkpoint(late)) == Rejected("stale-height")
    orphan = MESH.record(height=2, parent=late.digest)
    assert execute(ledger, MESH.checkpoint(orphan)) == Rejected("wrong-parent")
    assert execute(ledger, MESH.checkpoint(second)) == Rejected("already-executed")
    again = MESH.checkpoint(second, [0, 2, 3])
    assert execute(ledger, again) == Executed(), "other signatures make it another operation"


def test_operations_execute_in_sequence_order_only() -> None:
    data = MESH.join("ann")
    with pytest.raises(AssertionError, match="order"):
        fresh().execute(2, parse_operation(data), operation_digest(data))


def test_a_mesh_has_a_limit_and_so_has_its_memory() -> None:
    ledger = fresh()
    member = Member("a:1", 1, 1)
    ledger.members |= {i.to_bytes(32, "big"): member for i in range(MAX_MEMBERS - 4)}
    assert execute(ledger, MESH.join("ann")) == Rejected("members-full")
    for i in range(RECENT_OPERATIONS + 5):
        execute(ledger, MESH.join("ann", time_ms=10 + i))
    assert len(ledger.recent) == RECENT_OPERATIONS
    with pytest.raises(ValueError, match="1024"):
        Ledger.genesis(
            MESH_ID, [(i.to_bytes(32, "big"), member) for i in range(1025)], MESH.validators.keys
        )


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.booleans()), max_size=12)
)
def test_a_restored_snapshot_goes_on_exactly_as_the_original(
    steps: list[tuple[str, int, bool]],
) -> None:
    original = fresh()
    for name, time_ms, joins in steps:
        copy = Ledger.restore(original.snapshot())
        data = MESH.join(name, time_ms=time_ms) if joins else leave(name, time_ms)
        assert execute(copy, data) == execute(original, data)
        assert copy.digest() == original.digest()


def test_validity_is_about_signatures_and_needs_no_state() -> None:
    record = MESH.record()
    good = parse_operation(MESH.checkpoint(record))
    assert isinstance(good, Checkpoint)
    assert validate(good, VERIFIER) is None
    assert validate(parse_operation(MESH.checkpoint(record, [0, 1])), VERIFIER) == "no-quorum"
    other = Checkpoint(replace(record, anchor_root=b"\x01" * 32), good.attestation)
    assert validate(other, VERIFIER) == "attestation-of-something-else"
    foreign = Checkpoint(replace(record, mesh_id=bytes(32)), good.attestation)
    assert validate(foreign, VERIFIER) == "wrong-mesh"
    usurper = replace(record, proposer=MESH.validators.keys[0])
    assert validate(Checkpoint(usurper, good.attestation), VERIFIER) == "wrong-proposer"
    forged = replace(good.attestation, signatures=(bytes(64),) * 3)
    assert validate(Checkpoint(record, forged), VERIFIER) == "bad-signature"
    join = parse_operation(MESH.join())
    assert isinstance(join, Join)
    assert validate(join, VERIFIER) is None
    assert validate(replace(join, shard_tokens=8), VERIFIER) == "bad-signature"
    assert validate(Null(), VERIFIER) is None, "it fills the log up to the end of an epoch"


def approve(ledger: Ledger, change: Change, *, at: int = 0) -> list[Result]:
    """A quorum of the validators in force approves; `at` leaves some of them out."""
    names = {key: index for index, key in enumerate(WIDE.keys)}
    results = []
    for key in ledger.epoch.keys[at : at + quorum(len(ledger.epoch.keys))]:
        data = WIDE.approve(change, names[key], epoch=ledger.epoch.number)
        results.append(execute(ledger, data))
    return results


def of(kind: ChangeKind, index: int) -> Change:
    return Change(kind, WIDE.keys[index])


def mesh_of(n: int, interval: int = INTERVAL) -> Ledger:
    """n validators, and all others of the wide mesh as members."""
    members = [(key, Member("genesis:1", 1, 1)) for key in WIDE.keys]
    return Ledger.genesis(MESH_ID, members, WIDE.keys[:n], interval)


def wedge(ledger: Ledger) -> None:
    """Null operations up to the end of the epoch."""
    number = ledger.epoch.number
    while ledger.epoch.number == number:
        assert execute(ledger, b"") == Executed()


def test_the_set_is_never_empty_on_the_way_to_where_it_is_going() -> None:
    """In, out, in, and the first one in has gone again: what is left begins with `out`."""
    ledger = mesh_of(1)
    approve(ledger, of(ChangeKind.PROMOTE, 1))
    approve(ledger, of(ChangeKind.DEMOTE, 0))
    approve(ledger, of(ChangeKind.PROMOTE, 2))
    assert execute(ledger, WIDE.leave(1)) == Executed()
    assert ledger.epoch.keys == tuple(sorted((WIDE.keys[0], WIDE.keys[2])))
    assert Ledger.restore(ledger.snapshot()).digest() == ledger.digest()
    wedge(ledger)
    assert ledger.epoch.keys == (WIDE.keys[2],)


def test_what_was_decided_and_called_off_cannot_be_counted_again() -> None:
    """A demotion is taken back in the same epoch; its approvals still lie about for anyone."""
    ledger = mesh_of(4, interval=8)
    yes = [WIDE.approve(of(ChangeKind.DEMOTE, 3), index) for index in (0, 1, 2)]
    for data in yes:
        assert execute(ledger, data) == Executed()
    assert (ledger.boundary, ledger.turns) == (8, {WIDE.keys[3]: False})
    assert approve(ledger, of(ChangeKind.PROMOTE, 3)) == [Executed()] * 3
    assert not ledger.turns
    wedge(ledger)
    assert (ledger.epoch.number, len(ledger.epoch.keys)) == (1, 4), "it ends all the same"
    ledger.recent.clear()
    for data in yes:
        assert execute(ledger, data) == Rejected("wrong-epoch")


@given(st.data())
def test_whatever_is_approved_the_set_can_always_vote(data: st.DataObject) -> None:
    """Random approvals, goodbyes and returns: never nobody, never too many, few at a time."""
    ledger = mesh_of(data.draw(st.integers(1, 7), label="validators"))
    for time_ms in range(1, data.draw(st.integers(1, 25), label="operations")):
        who = data.draw(st.integers(0, len(WIDE.keys) - 1), label="who")
        before = ledger.epoch
        match data.draw(st.sampled_from(["in", "out", "expel", "leave", "join"]), label="what"):
            case "in":
                approve(ledger, of(ChangeKind.PROMOTE, who))
            case "out":
                approve(ledger, of(ChangeKind.DEMOTE, who))
            case "expel":
                approve(ledger, of(ChangeKind.EXPEL, who))
            case "leave":
                execute(ledger, WIDE.leave(who, time_ms=time_ms))
            case _:
                execute(ledger, WIDE.rejoin(who, time_ms=time_ms))
        assert 1 <= len(ledger.epoch.keys) <= MAX_VALIDATORS
        assert ledger.coming_validators()
        assert not ledger.boundary or 0 < ledger.boundary - ledger.sequence <= ledger.interval
        if ledger.epoch.number == before.number + 1:
            changed = set(before.keys) ^ set(ledger.epoch.keys)
            assert len(changed) <= max(1, faults(len(before.keys)))
        assert Ledger.restore(ledger.snapshot()).snapshot() == ledger.snapshot()


def test_whoever_was_put_out_stays_out_however_late_its_join() -> None:
    ledger = mesh_of(4)
    approve(ledger, of(ChangeKind.EXPEL, 5))
    assert execute(ledger, WIDE.rejoin(5, time_ms=2**64 - 1)) == Rejected("evicted")
    assert ledger.evictions() == {WIDE.keys[5]: Eviction.PEOPLE}
    assert approve(ledger, of(ChangeKind.PROMOTE, 5)) == [Rejected("not-a-member")] * 3


def test_no_goodbye_looks_like_an_eviction() -> None:
    ledger = mesh_of(4)
    for time_ms in (2**64 - 3, 2**64 - 1):
        assert execute(ledger, WIDE.leave(5, time_ms=time_ms)) == Rejected("bad-time")
        assert execute(ledger, WIDE.rejoin(5, time_ms=time_ms)) == Rejected("bad-time")
    assert execute(ledger, WIDE.leave(5, time_ms=2**64 - 4)) == Executed()
    assert not ledger.evictions()


def test_an_approval_is_one_validators_once_in_one_epoch() -> None:
    ledger = mesh_of(4)
    change = of(ChangeKind.PROMOTE, 5)
    data = WIDE.approve(change, 0)
    assert execute(ledger, data) == Executed()
    assert execute(ledger, data) == Rejected("already-executed")
    ledger.recent.clear()
    assert execute(ledger, data) == Rejected("already-approved")
    assert execute(ledger, WIDE.approve(change, 5)) == Rejected("wrong-epoch"), "it does not vote"
    assert execute(ledger, WIDE.approve(change, 1, epoch=1)) == Rejected("wrong-epoch")
    assert not ledger.turns


def test_of_one_validators_open_changes_only_so_many_are_remembered() -> None:
    ledger = mesh_of(4)
    for number in range(MAX_OPEN_CHANGES + 3):
        change = Change(ChangeKind.PARAMETERS, parameters=bytes([number]))
        assert execute(ledger, WIDE.approve(change, 0)) == Executed()
    assert {len(theirs) for theirs in ledger.approvals.values()} == {MAX_OPEN_CHANGES}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Change(ChangeKind.PROMOTE, b"\x07" * 32), "not-a-member"),
        (Change(ChangeKind.EXPEL, b"\x07" * 32), "not-a-member"),
        (Change(ChangeKind.DEMOTE, b"\x07" * 32), "not-a-member"),
    ],
)
def test_nothing_is_decided_about_strangers(change: Change, reason: str) -> None:
    assert approve(mesh_of(4), change)[0] == Rejected(reason)


def test_changes_that_change_nothing_are_not_counted() -> None:
    ledger = mesh_of(4)
    assert approve(ledger, of(ChangeKind.PROMOTE, 0))[0] == Rejected("validator-already")
    assert approve(ledger, of(ChangeKind.DEMOTE, 5))[0] == Rejected("no-validator")
    assert execute(ledger, WIDE.rejoin(5, time_ms=1, validates=False)) == Executed()
    assert approve(ledger, of(ChangeKind.PROMOTE, 5))[0] == Rejected("not-willing")
    assert not ledger.boundary


@pytest.mark.parametrize("how", ["leave", "demote", "expel"])
def test_the_last_validator_cannot_go(how: str) -> None:
    ledger = mesh_of(1)
    match how:
        case "leave":
            result = execute(ledger, WIDE.leave(0))
        case "demote":
            (result,) = approve(ledger, of(ChangeKind.DEMOTE, 0))
        case _:
            (result,) = approve(ledger, of(ChangeKind.EXPEL, 0))
    assert result == Rejected("last-validator")
