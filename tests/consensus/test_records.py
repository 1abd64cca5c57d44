"""Operations have one encoding, and only sensible ones can be written down."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import Invitation
from shoal.consensus.records import (
    MAX_CUT,
    MAX_OPERATION_BYTES,
    MAX_PARAMETERS_BYTES,
    NULL_DIGEST,
    Checkpoint,
    CheckpointRecord,
    CutEntry,
    Join,
    Leave,
    Null,
    operation_bytes,
    operation_digest,
    parse_operation,
    parse_record,
)
from tests.consensus.mesh import Mesh
from tests.consensus.test_invitations import invitations

MESH = Mesh(4)
ids = st.binary(min_size=32, max_size=32)
u64s = st.integers(0, 2**64 - 1)
addresses = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=60)


@given(
    member=ids,
    address=addresses,
    shard_tokens=u64s,
    share_permille=st.integers(0, 1000),
    time_ms=u64s,
    invitation=st.none() | invitations(),
    signature=st.binary(min_size=64, max_size=64),
)
def test_joins_and_leaves_come_back_as_they_went(
    member: bytes,
    address: str,
    shard_tokens: int,
    share_permille: int,
    time_ms: int,
    invitation: Invitation | None,
    signature: bytes,
) -> None:
    join = Join(
        member=member,
        address=address,
        shard_tokens=shard_tokens,
        share_permille=share_permille,
        time_ms=time_ms,
        invitation=invitation,
        signature=signature,
    )
    leave = Leave(member=member, time_ms=time_ms, signature=signature)
    for operation in (join, leave):
        assert parse_operation(operation_bytes(operation)) == operation


@given(st.dictionaries(st.tuples(ids, u64s), ids, max_size=20), st.binary(max_size=100))
def test_records_come_back_as_they_went(
    entries: dict[tuple[bytes, int], bytes], parameters: bytes
) -> None:
    cut = tuple(CutEntry(*key, value) for key, value in sorted(entries.items()))
    record = replace(
        MESH.record(),
        cut=cut,
        parameters=parameters,
        round=max((e.sequence for e in cut), default=0),
    )
    assert parse_record(record.to_bytes()) == record


@given(st.binary(max_size=300))
def test_hostile_bytes_raise_nothing_but_our_error(data: bytes) -> None:
    for kind in range(5):
        try:
            operation = parse_operation(bytes([kind]) + data)
        except ConsensusError:
            continue
        assert operation_bytes(operation) == bytes([kind]) + data


def spoiled(**changes: object) -> CheckpointRecord:
    return replace(MESH.record(), **changes)  # type: ignore[arg-type]


ENTRY = MESH.record().cut[0]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (spoiled(height=0), "bad-height"),
        (spoiled(round=2), "bad-round"),
        (spoiled(cut=(ENTRY, ENTRY)), "unsorted-cut"),
        (spoiled(cut=(replace(ENTRY, sequence=2), ENTRY), round=2), "unsorted-cut"),
        (spoiled(parameters=bytes(MAX_PARAMETERS_BYTES + 1)), "too-large"),
        (spoiled(cut=tuple(CutEntry(bytes(32), i, bytes(32)) for i in range(4097))), "too-many"),
    ],
)
def test_a_record_that_makes_no_sense_is_not_read(record: CheckpointRecord, reason: str) -> None:
    with pytest.raises(ConsensusError) as caught:
        parse_record(record.to_bytes())
    assert caught.value.reason == reason


def test_the_largest_checkpoint_fits_into_an_operation() -> None:
    cut = tuple(CutEntry(bytes(32), i, bytes(32)) for i in range(MAX_CUT))
    record = spoiled(cut=cut, round=MAX_CUT - 1, parameters=bytes(MAX_PARAMETERS_BYTES))
    data = MESH.checkpoint(record)
    assert len(data) <= MAX_OPERATION_BYTES
    operation = parse_operation(data)
    assert isinstance(operation, Checkpoint)
    assert operation.record == record
    with pytest.raises(ConsensusError, match="too-large"):
        parse_operation(bytes(MAX_OPERATION_BYTES + 1))


def test_addresses_are_printable_text() -> None:
    for address in (b"", b"\xff\xfe", b"a\nb"):
        data = (
            bytes([2]) + bytes(32) + bytes([len(address)]) + address + bytes(8 + 2 + 8 + 1 + 1 + 64)
        )
        with pytest.raises(ConsensusError, match="bad-address"):
            parse_operation(data)


def test_a_share_is_at_most_all_of_a_machine() -> None:
    join = parse_operation(MESH.join())
    assert isinstance(join, Join)
    with pytest.raises(ConsensusError, match="bad-share"):
        parse_operation(operation_bytes(replace(join, share_permille=1001)))


def test_the_null_operation_is_the_empty_string_with_a_digest_of_its_own() -> None:
    assert parse_operation(b"") == Null()
    assert operation_bytes(Null()) == b""
    assert operation_digest(b"") == NULL_DIGEST


def test_digests_tell_records_and_operations_apart() -> None:
    record = MESH.record()
    assert record.digest != operation_digest(record.to_bytes())
    assert record.digest != replace(record, attempt=1).digest
