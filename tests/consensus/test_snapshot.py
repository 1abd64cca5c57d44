"""The replicated state as bytes: all of it travels, all of it is signed, and it has a bound."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from shoal.consensus.certificate import Certificate
from shoal.consensus.epochs import MAX_EPOCH_PARAMETERS_BYTES
from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import MAX_USED_NUMBERS, Issued
from shoal.consensus.ledger import (
    MAX_DEPARTED,
    MAX_LEDGER_BYTES,
    MAX_MEMBERS,
    MAX_OPEN_CHANGES,
    RECENT_OPERATIONS,
    Eviction,
    Ledger,
    split_snapshot,
)
from shoal.consensus.members import Member
from shoal.consensus.messages import MAX_MESSAGE_BYTES, Stability, encode
from shoal.consensus.quorum import MAX_VALIDATORS
from shoal.consensus.records import MAX_ADDRESS_BYTES
from shoal.consensus.validators import MAX_INTERVAL
from shoal.consensus.votes import VoteKind
from tests.consensus.mesh import MESH_ID, Mesh

MESH = Mesh(4)


@given(st.binary(max_size=300))
def test_a_hostile_snapshot_raises_nothing_but_our_error(data: bytes) -> None:
    for candidate in (data, b"\x01" + data, MESH.genesis.snapshot()[:-2] + data):
        try:
            ledger = Ledger.restore(candidate)
        except ConsensusError:
            continue
        assert ledger.snapshot() == candidate


digests = st.binary(min_size=32, max_size=32)


def issued(u64s: st.SearchStrategy[int]) -> st.SearchStrategy[Issued]:
    """A floor and what was used above it."""
    numbers = st.lists(u64s, unique=True, min_size=1, max_size=MAX_USED_NUMBERS + 1).map(sorted)
    times = st.integers(1, 255)
    return st.builds(
        lambda above, many: Issued(above[0], tuple(zip(above[1:], many, strict=False))),
        numbers,
        st.lists(times, min_size=MAX_USED_NUMBERS, max_size=MAX_USED_NUMBERS),
    )


@st.composite
def ledgers(draw: st.DrawFn) -> Ledger:
    """Any ledger at all, consistent or not: its bytes have to survive."""
    keys = draw(st.sets(digests, min_size=1, max_size=31))
    ledger = Ledger.genesis(MESH_ID, [], keys, draw(st.integers(1, MAX_INTERVAL)))
    ledger.epoch = replace(
        ledger.epoch, number=draw(st.integers(0, 2**64 - 1)), parameters=draw(st.binary())
    )
    texts = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=60)
    u64s = st.integers(0, 2**64 - 1)
    flags = st.booleans()
    member = st.builds(Member, texts, u64s, st.integers(0, 1000), u64s, flags, flags, issued(u64s))
    ledger.members = dict(sorted(draw(st.dictionaries(digests, member, max_size=4)).items()))
    ledger.departed = dict(sorted(draw(st.dictionaries(digests, u64s, max_size=4)).items()))
    ledger.recent = dict.fromkeys(draw(st.lists(digests, unique=True, max_size=4)))
    ledger.sequence, ledger.height, ledger.round, ledger.boundary = (draw(u64s) for _ in range(4))
    ledger.record_digest = draw(digests)
    ledger.turns = draw(st.dictionaries(digests, st.booleans(), max_size=4))
    ledger.next_parameters = draw(st.none() | st.binary(max_size=100))
    approved = st.lists(digests, max_size=MAX_OPEN_CHANGES).map(tuple)
    ledger.approvals = dict(sorted(draw(st.dictionaries(digests, approved, max_size=4)).items()))
    return ledger


@given(ledgers())
def test_every_part_of_the_state_is_in_the_snapshot(ledger: Ledger) -> None:
    copy = Ledger.restore(ledger.snapshot())
    assert vars(copy) == vars(ledger)
    assert list(copy.turns) == list(ledger.turns), "who was decided first goes first"
    assert split_snapshot(ledger.snapshot())[0] == ledger.epoch


PARTS = ["turns", "approvals", "next_parameters", "boundary", "epoch", "right", "floor", "used"]


@given(ledgers(), st.sampled_from(PARTS))
def test_every_part_of_the_state_is_signed(ledger: Ledger, part: str) -> None:
    before = ledger.digest()
    match part:
        case "turns":
            ledger.turns[b"\x01" * 32] = not ledger.turns.get(b"\x01" * 32, True)
        case "approvals":
            ledger.approvals[b"\x01" * 32] = (*ledger.approvals.get(b"\x01" * 32, ()), bytes(32))
        case "next_parameters":
            ledger.next_parameters = None if ledger.next_parameters == b"" else b""
        case "boundary":
            ledger.boundary ^= 1
        case "right" | "floor" | "used":
            known = ledger.members.get(b"\x01" * 32, Member("a:1", 1, 1))
            floor, used = known.issued.floor, known.issued.used
            ledger.members[b"\x01" * 32] = replace(
                known,
                may_validate=known.may_validate ^ (part == "right"),
                issued=Issued(
                    floor ^ (part == "floor"), ((2**64 - 1, 7),) if part == "used" else used
                ),
            )
        case _:
            ledger.epoch = replace(ledger.epoch, start=ledger.epoch.start + 1)
    assert ledger.digest() != before


def test_a_full_ledger_fits_where_it_has_to() -> None:
    """Everything at its limit at once: a snapshot travels in one message."""

    def names(count: int) -> list[bytes]:
        return [i.to_bytes(32, "big") for i in range(count)]

    ledger = Ledger.genesis(MESH_ID, [], names(MAX_VALIDATORS))
    ledger.epoch = replace(ledger.epoch, parameters=bytes(MAX_EPOCH_PARAMETERS_BYTES))
    address = "a" * MAX_ADDRESS_BYTES
    used = tuple((2**64 - MAX_USED_NUMBERS + i, 255) for i in range(MAX_USED_NUMBERS))
    member = Member(address, 2**64 - 1, 1000, 2**64 - 1, issued=Issued(2**63, used))
    ledger.members = dict.fromkeys(names(MAX_MEMBERS), member)
    ledger.departed = dict.fromkeys(names(MAX_DEPARTED), Eviction.EVIDENCE)
    ledger.recent = dict.fromkeys(names(RECENT_OPERATIONS))
    ledger.turns = dict.fromkeys(names(MAX_MEMBERS + MAX_VALIDATORS), True)
    ledger.next_parameters = bytes(MAX_EPOCH_PARAMETERS_BYTES)
    ledger.approvals = dict.fromkeys(names(MAX_VALIDATORS), tuple(names(MAX_OPEN_CHANGES)))
    snapshot = ledger.snapshot()
    assert len(snapshot) <= MAX_LEDGER_BYTES
    assert Ledger.restore(snapshot).snapshot() == snapshot
    signatures = tuple(bytes(64) for _ in range(MAX_VALIDATORS))
    stable = Certificate(
        VoteKind.STABLE, 0, 0, 4, bytes(32), tuple(range(MAX_VALIDATORS)), signatures
    )
    assert len(encode(Stability(stable, snapshot))) <= MAX_MESSAGE_BYTES
