"""The chain of epochs: every link follows from the one before, and a stranger can check it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.certificate import Certificate
from shoal.consensus.epochs import (
    MAX_EPOCH_PARAMETERS_BYTES,
    MAX_EPOCHS,
    MAX_LINK_BYTES,
    EpochChain,
    EpochLink,
    EpochRecord,
    build_chain,
    first_epoch,
    ledger_digest_of,
    parse_link,
    read_epoch,
    split_links,
)
from shoal.consensus.errors import ConsensusError
from shoal.consensus.fields import Reader, blob, u32
from shoal.consensus.quorum import MAX_VALIDATORS
from shoal.consensus.validators import Verify
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import MESH_ID, Mesh

MESH = Mesh(4, 2)
BODY = b"\x0b" * 32
GENESIS = MESH.genesis.epoch
# The second set has another member at another place in the order.
SECOND = tuple(sorted((*MESH.keys[1:4], MESH.keys[4])))


def certified(
    record: EpochRecord,
    by: EpochRecord,
    *,
    signers: tuple[int, ...] = (0, 1, 2),
    kind: VoteKind = VoteKind.STABLE,
    sequence: int | None = None,
    body: bytes = BODY,
) -> EpochLink:
    """A link to the record, signed by validators of the epoch `by`."""
    proof = MESH.certificate(
        kind,
        list(signers),
        view=0,
        sequence=record.start if sequence is None else sequence,
        digest=ledger_digest_of(record.digest, body),
        validators=by.validators(4),
    )
    return EpochLink(record, BODY, proof)


def after(before: EpochRecord, keys: tuple[bytes, ...], **changes: object) -> EpochRecord:
    record = EpochRecord(
        mesh_id=MESH_ID,
        number=before.number + 1,
        parent=before.digest,
        start=before.start + 4,
        keys=keys,
        parameters=b"alpha",
    )
    return replace(record, **changes)  # type: ignore[arg-type]


FIRST = after(GENESIS, SECOND)
NEXT = after(FIRST, GENESIS.keys)


def chain_of(*links: EpochLink) -> EpochChain:
    chain = EpochChain(GENESIS, 4)
    for link in links:
        chain.check(link, MESH.keyring.verify)
        chain.append(link)
    return chain


def test_a_chain_grows_link_by_link_and_each_epoch_has_its_own_set() -> None:
    chain = chain_of(certified(FIRST, GENESIS), certified(NEXT, FIRST))
    assert chain.last == 2
    assert [chain.validators(number).keys for number in range(3)] == [
        GENESIS.keys,
        SECOND,
        GENESIS.keys,
    ]
    assert [known.epoch for known in chain.recent(2, 2)] == [1, 2]
    assert [known.epoch for known in chain.recent(1, 4)] == [0, 1]
    assert [link.record for link in chain] == [FIRST, NEXT]
    assert chain.link(2).record == NEXT


def forged(**changes: object) -> EpochLink:
    """A record that is not what follows, certified by those who could."""
    return certified(after(GENESIS, SECOND, **changes), GENESIS)


def swapped(link: EpochLink, **changes: object) -> EpochLink:
    """Another record under an honest certificate."""
    return replace(link, record=replace(link.record, **changes))  # type: ignore[arg-type]


def tampered(link: EpochLink, spoil: Callable[[Certificate], Certificate]) -> EpochLink:
    return replace(link, certificate=spoil(link.certificate))


HONEST = certified(FIRST, GENESIS)
WRONG: list[tuple[str, EpochLink, str]] = [
    ("number", forged(number=2), "epoch-out-of-order"),
    ("number 0", forged(number=0), "epoch-out-of-order"),
    ("parent", forged(parent=bytes(32)), "epoch-of-another-chain"),
    ("mesh", forged(mesh_id=bytes(32)), "epoch-of-another-chain"),
    ("start before", forged(start=0), "epoch-start"),
    ("start between", forged(start=6), "epoch-start"),
    ("keys swapped", swapped(HONEST, keys=GENESIS.keys), "epoch-proof-of-something-else"),
    ("start swapped", swapped(HONEST, start=8), "epoch-proof-of-something-else"),
    ("parameters", swapped(HONEST, parameters=b"beta"), "epoch-proof-of-something-else"),
    ("body", replace(HONEST, body_digest=bytes(32)), "epoch-proof-of-something-else"),
    ("sequence", certified(FIRST, GENESIS, sequence=8), "epoch-proof-of-something-else"),
    ("kind", certified(FIRST, GENESIS, kind=VoteKind.COMMIT), "epoch-proof-of-something-else"),
    ("other body", certified(FIRST, GENESIS, body=bytes(32)), "epoch-proof-of-something-else"),
    ("own set", certified(FIRST, FIRST), "epoch-proof-of-something-else"),
    ("minority", certified(FIRST, GENESIS, signers=(0, 1)), "no-quorum"),
    ("view", tampered(HONEST, lambda c: replace(c, view=1)), "stable-has-no-view"),
    ("repeated", tampered(HONEST, lambda c: replace(c, signers=(0, 0, 1))), "bad-bitmap"),
    ("outsider", tampered(HONEST, lambda c: replace(c, signers=(0, 1, 4))), "unknown-signer"),
    (
        "signature",
        tampered(HONEST, lambda c: replace(c, signatures=(bytes(64),) * 3)),
        "bad-signature",
    ),
    (
        "others' signatures",
        replace(HONEST, certificate=replace(certified(FIRST, FIRST).certificate, epoch=0)),
        "bad-signature",
    ),
]


@pytest.mark.parametrize(("link", "reason"), [x[1:] for x in WRONG], ids=[x[0] for x in WRONG])
def test_a_link_can_be_wrong_in_many_ways_and_none_is_believed(
    link: EpochLink, reason: str
) -> None:
    chain = chain_of()
    with pytest.raises(ConsensusError) as caught:
        chain.check(link, MESH.keyring.verify)
    assert caught.value.reason == reason


def test_a_link_follows_from_its_predecessor_only() -> None:
    chain = chain_of(HONEST)
    for link in (HONEST, certified(after(NEXT, SECOND), NEXT)):
        with pytest.raises(ConsensusError, match="epoch-out-of-order"):
            chain.check(link, MESH.keyring.verify)
    # The set of the genesis is history: it has no word in what follows the epoch after it.
    with pytest.raises(ConsensusError, match="epoch-proof-of-something-else"):
        chain.check(certified(NEXT, GENESIS), MESH.keyring.verify)


def test_there_is_an_end_to_the_number_of_epochs() -> None:
    genesis = replace(GENESIS, number=MAX_EPOCHS)
    chain = EpochChain(genesis, 4)
    with pytest.raises(ConsensusError, match="epoch-out-of-order"):
        chain.check(certified(after(genesis, SECOND), genesis), MESH.keyring.verify)


def test_a_set_speaks_for_its_own_epoch_and_not_beyond() -> None:
    chain = chain_of(HONEST, certified(NEXT, FIRST))
    for number, sequences in ((0, range(1, 5)), (1, range(5, 9)), (2, range(9, 30))):
        for sequence in range(30):
            if sequence in sequences:
                chain.require_within(number, sequence)
                continue
            with pytest.raises(ConsensusError, match="outside-epoch"):
                chain.require_within(number, sequence)
    for number in (-1, 3):
        with pytest.raises(ConsensusError, match="unknown-epoch"):
            chain.validators(number)
        with pytest.raises(ConsensusError, match="unknown-epoch"):
            chain.require_within(number, 10)


def list_of(chain: EpochChain, number: int) -> bytes:
    """epochs.bin: what a checkpoint says about where its validators come from."""
    links = chain.links(number)
    return u32(len(links)) + b"".join(blob(link) for link in links)


def read_chain(data: bytes, genesis: EpochRecord, interval: int, verify: Verify) -> EpochChain:
    return build_chain(split_links(data), genesis, interval, verify)


def test_a_stranger_rebuilds_the_chain_from_bytes_and_the_genesis() -> None:
    chain = chain_of(HONEST, certified(NEXT, FIRST))
    for number in range(3):
        data = list_of(chain, number)
        rebuilt = read_chain(data, GENESIS, 4, MESH.keyring.verify)
        assert rebuilt.last == number
        assert list_of(rebuilt, number) == data
    with pytest.raises(ConsensusError, match="trailing-bytes"):
        read_chain(list_of(chain, 2) + b"\x00", GENESIS, 4, MESH.keyring.verify)
    other = first_epoch(bytes(32), GENESIS.keys)
    with pytest.raises(ConsensusError, match="epoch-of-another-chain"):
        read_chain(list_of(chain, 1), other, 4, MESH.keyring.verify)


@cache
def chain_bytes() -> bytes:
    return list_of(chain_of(HONEST, certified(NEXT, FIRST)), 2)


@given(st.data())
def test_a_chain_with_one_byte_changed_is_not_believed(data: st.DataObject) -> None:
    honest = chain_bytes()
    position = data.draw(st.integers(0, len(honest) - 1))
    other = data.draw(st.integers(1, 255)) ^ honest[position]
    spoiled = honest[:position] + bytes([other]) + honest[position + 1 :]
    with pytest.raises(ConsensusError):
        read_chain(spoiled, GENESIS, 4, MESH.keyring.verify)


ids = st.binary(min_size=32, max_size=32)
u64s = st.integers(0, 2**64 - 1)
records = st.builds(
    EpochRecord,
    mesh_id=ids,
    number=u64s,
    parent=ids,
    start=u64s,
    keys=st.sets(ids, min_size=1, max_size=MAX_VALIDATORS).map(sorted).map(tuple),
    parameters=st.binary(max_size=200),
)


@given(records)
def test_records_and_links_come_back_as_they_went(record: EpochRecord) -> None:
    reader = Reader(record.to_bytes())
    assert read_epoch(reader) == record
    reader.end()
    link = EpochLink(record, BODY, HONEST.certificate)
    assert parse_link(link.to_bytes()) == link


@given(records, st.sampled_from(["mesh_id", "number", "parent", "start", "keys", "parameters"]))
def test_every_field_of_a_record_is_in_its_digest(record: EpochRecord, field: str) -> None:
    other = getattr(FIRST, field)
    assert (replace(record, **{field: other}).digest == record.digest) == (
        getattr(record, field) == other
    )


@given(st.binary(max_size=400))
def test_hostile_links_raise_nothing_but_our_error(data: bytes) -> None:
    for start in (b"", HONEST.to_bytes()[:100]):
        try:
            link = parse_link(start + data)
        except ConsensusError:
            continue
        assert link.to_bytes() == start + data


@pytest.mark.parametrize("keys", [(), (SECOND[1], SECOND[0]), (SECOND[0], SECOND[0])])
def test_a_set_that_could_not_vote_is_not_read(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(ConsensusError, match="bad-epoch"):
        read_epoch(Reader(replace(FIRST, keys=keys).to_bytes()))


def test_the_largest_link_fits() -> None:
    keys = tuple(bytes([i]) * 32 for i in range(MAX_VALIDATORS))
    record = after(GENESIS, keys, parameters=bytes(MAX_EPOCH_PARAMETERS_BYTES))
    signatures = tuple(bytes(64) for _ in keys)
    proof = Certificate(
        VoteKind.STABLE, 0, 0, 4, bytes(32), tuple(range(MAX_VALIDATORS)), signatures
    )
    assert len(EpochLink(record, BODY, proof).to_bytes()) <= MAX_LINK_BYTES
