"""Signed statements that convict: only pairs that their author really signed do."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.evidence import Statement
from shoal.consensus.records import operation_bytes, parse_operation
from shoal.gossip.delta import Delta, make_delta
from shoal.node.identity import Identity
from shoal.node.statements import Boot, delta_statement, eviction, parse_boot, statement_reader

MESH_ID = b"\x07" * 32
READ = statement_reader(MESH_ID)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.create(Path(tmp_path_factory.mktemp("key")) / "identity.key")


def delta(identity: Identity, frame: bytes, *, sequence: int = 3, mesh: bytes = MESH_ID) -> Delta:
    return make_delta(
        frame,
        mesh_id=mesh,
        sender=identity.node_id,
        sequence=sequence,
        height=1,
        steps=1,
        tokens=1,
        sign=identity.sign,
    )


def boot(identity: Identity, count: int, nonce: bytes, mesh: bytes = MESH_ID) -> bytes:
    mine = Boot(identity.node_id, count, nonce)
    return mine.statement(identity.sign(mine.signed_bytes(mesh)))


def read(data: bytes) -> Statement:
    found = READ(data)
    assert found is not None
    return found


def test_two_deltas_of_one_number_are_at_one_place_with_two_contents(identity: Identity) -> None:
    one, other = (read(delta_statement(delta(identity, frame))) for frame in (b"a", b"b"))
    assert one.author == other.author == identity.node_id
    assert one.place == other.place and one.content != other.content
    later = read(delta_statement(delta(identity, b"b", sequence=4)))
    assert later.place != one.place


def test_two_nonces_of_one_boot_are_two_processes_and_two_boots_are_not(identity: Identity) -> None:
    one, other = (read(boot(identity, 5, nonce * 16)) for nonce in (b"a", b"b"))
    assert one.place == other.place and one.content != other.content
    assert read(boot(identity, 6, b"b" * 16)).place != one.place
    again = parse_boot(boot(identity, 5, b"a" * 16), MESH_ID)
    assert again == Boot(identity.node_id, 5, b"a" * 16)


def test_a_delta_and_a_boot_are_never_at_one_place(identity: Identity) -> None:
    one = read(delta_statement(delta(identity, b"a", sequence=5)))
    assert one.place != read(boot(identity, 5, b"a" * 16)).place


def test_what_was_signed_for_another_mesh_convicts_nobody(identity: Identity) -> None:
    other = b"\x08" * 32
    assert READ(delta_statement(delta(identity, b"a", mesh=other))) is None
    assert READ(boot(identity, 5, b"a" * 16, mesh=other)) is None


@given(st.data())
def test_one_changed_byte_and_it_is_no_statement(identity: Identity, data: st.DataObject) -> None:
    honest = data.draw(
        st.sampled_from([boot(identity, 5, b"a" * 16), delta_statement(delta(identity, b"a"))])
    )
    position = data.draw(st.integers(0, len(honest) - 1))
    other = honest[position] ^ data.draw(st.integers(1, 255))
    assert READ(honest[:position] + bytes([other]) + honest[position + 1 :]) is None
    assert READ(honest[:position]) is None


def test_the_eviction_is_the_same_whoever_saw_which_first(identity: Identity) -> None:
    one, other = boot(identity, 5, b"a" * 16), boot(identity, 5, b"b" * 16)
    operation = eviction(identity.node_id, one, other)
    assert operation == eviction(identity.node_id, other, one)
    assert operation_bytes(parse_operation(operation)) == operation
