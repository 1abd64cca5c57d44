"""The replicated state: same operations, same bytes; nothing happens twice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.errors import ConsensusError
from shoal.consensus.ledger import (
    MAX_MEMBERS,
    RECENT_OPERATIONS,
    Executed,
    Ledger,
    Member,
    Rejected,
    Result,
)
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
from tests.consensus.mesh import MESH_ID, Mesh

MESH = Mesh(4)
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


@given(st.binary(max_size=300))
def test_a_hostile_snapshot_raises_nothing_but_our_error(data: bytes) -> None:
    for candidate in (data, b"\x01" + data, MESH.genesis.snapshot()[:-2] + data):
        try:
            ledger = Ledger.restore(candidate)
        except ConsensusError:
            continue
        assert ledger.snapshot() == candidate


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
