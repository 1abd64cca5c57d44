"""The anchor depends on which deltas were added, and on nothing else."""

import hashlib
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import SparseDelta
from shoal.gossip.anchor import MAGNITUDE_MAX, Anchor, increments
from shoal.gossip.errors import DeltaError
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.tree import LEAF_BYTES, LEAVES_PER_CHUNK, chunk_addresses, merkle_root
from tests.gossip.builders import SCHEMA, hashed_anchor, hashed_delta, hashed_weights

Step = tuple[SparseDelta, np.ndarray]


def steps_of(count: int, *, alpha: float = 1.0, size: float = 2.0**-10) -> list[Step]:
    """Deltas with their increments; a large alpha makes sums wrap around."""
    scales = np.ones(len(SCHEMA.tensors))
    deltas = [hashed_delta(f"delta {number}", size=size) for number in range(count)]
    return [
        (delta, increments(delta, weight=1.0, alpha=alpha, scales=scales, schema=SCHEMA))
        for delta in deltas
    ]


ORDINARY = steps_of(12)
# Every delta moves some parameters by nearly 1.0: a few dozen leave int32 at 28 fraction bits.
HUGE = steps_of(12, size=0.49)


@given(seed=st.integers(0, 2**32), steps=st.sampled_from([ORDINARY, HUGE]))
@settings(max_examples=30, deadline=None)
def test_any_order_gives_the_same_root(seed: int, steps: list[Step]) -> None:
    repeated = steps * 5
    shuffled = random.Random(seed).sample(repeated, len(repeated))
    straight, other = hashed_anchor("start"), hashed_anchor("start")
    for step in repeated:
        straight.apply(*step)
    for step in shuffled:
        other.apply(*step)
    assert other.root() == straight.root()
    assert torch.equal(other.values, straight.values)


def test_sums_that_leave_int32_were_among_the_orders_tried() -> None:
    anchor = hashed_anchor("start")
    exact = anchor.values.numpy().astype(object)
    for delta, table in HUGE * 5:
        anchor.apply(delta, table)
        exact[delta.indices] -= table.reshape(-1)[delta.table_ids()].astype(object)
    assert max(abs(exact)) > 2**31
    wrapped = [(value + 2**31) % 2**32 - 2**31 for value in exact]
    assert anchor.values.tolist() == wrapped
    assert anchor.out_of_range()


@given(seed=st.integers(0, 2**32), steps=st.sampled_from([ORDINARY, HUGE]))
@settings(max_examples=40, deadline=None)
def test_undo_takes_a_delta_out_whatever_came_in_between(seed: int, steps: list[Step]) -> None:
    rng = random.Random(seed)
    kept, dropped = steps[:6], steps[6:]
    anchor, expected = hashed_anchor("start"), hashed_anchor("start")
    moves = [(anchor.apply, step) for step in kept + dropped]
    rng.shuffle(moves)
    # Undoing before applying is fine, too: they are integers.
    for step in dropped:
        moves.insert(rng.randrange(len(moves) + 1), (anchor.undo, step))
    for move, step in moves:
        move(*step)
    for step in kept:
        expected.apply(*step)
    assert anchor.root() == expected.root()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        anchor = hashed_anchor("start")
        for step in ORDINARY:
            anchor.apply(*step)
        root = anchor.root()
        weights = anchor.to_weights()
    finally:
        torch.set_num_threads(before)
    reference = hashed_anchor("start")
    for step in ORDINARY:
        reference.apply(*step)
    assert root == reference.root()
    assert torch.equal(weights, reference.to_weights())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_accelerator_gives_the_same_root() -> None:
    host = hashed_anchor("start")
    device = Anchor(SCHEMA, host.values.cuda())
    for step in ORDINARY + HUGE * 5:
        host.apply(*step)
        device.apply(*step)
    device.undo(*HUGE[0])
    host.undo(*HUGE[0])
    assert device.root() == host.root()
    assert torch.equal(device.to_weights().cpu(), host.to_weights())


def test_the_root_is_the_one_it_always_was() -> None:
    anchor = hashed_anchor("golden")
    for step in ORDINARY:
        anchor.apply(*step)
    assert anchor.root().hex() == GOLDEN_ROOT


GOLDEN_ROOT = "89b949b5f7cb3a295f14408b2931020f06a63e7bd0a7d09cbf123962f6704893"


@given(
    alpha=st.floats(0.1, 5.0),
    weight=st.floats(0.001, 1.0),
    scale=st.floats(0.0, 1.0),
    label=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_increments_are_the_rounded_exact_product(
    alpha: float, weight: float, scale: float, label: int
) -> None:
    delta = hashed_delta(f"delta {label}")
    scales = np.full(len(SCHEMA.tensors), scale)
    table = increments(delta, weight=weight, alpha=alpha, scales=scales, schema=SCHEMA)
    for tensor, schema in enumerate(SCHEMA.tensors):
        for code in range(4):
            exact = Fraction(alpha) * Fraction(weight) * Fraction(scale)
            exact *= Fraction(float(delta.centroids[tensor, code])) * 2**schema.fraction_bits
            # Three fp64 products, each off by at most half a unit in the last place.
            tolerance = Fraction(1, 2) + abs(exact) * Fraction(3, 2**53) + Fraction(1, 2**1000)
            assert abs(int(table[tensor, code]) - exact) <= tolerance


def test_halves_round_to_even() -> None:
    delta = hashed_delta("halves")
    unit = 2.0**-28
    delta.centroids[0] = np.array([-2.5, -1.5, 0.5, 1.5]) * unit
    scales = np.ones(len(SCHEMA.tensors))
    table = increments(delta, weight=1.0, alpha=1.0, scales=scales, schema=SCHEMA)
    assert table[0].tolist() == [-2, -2, 0, 2]


def test_a_step_of_one_is_allowed_and_more_is_not() -> None:
    delta = hashed_delta("large")
    scales = np.ones(len(SCHEMA.tensors))
    delta.centroids[1] = [-1.0, -0.5, 0.5, 1.0]
    table = increments(delta, weight=1.0, alpha=1.0, scales=scales, schema=SCHEMA)
    assert table[1].tolist() == [-(2**24), -(2**23), 2**23, 2**24]
    for centroid in (1.0000001, 3e38):
        delta.centroids[1, 3] = centroid
        with pytest.raises(DeltaError) as caught:
            increments(delta, weight=1.0, alpha=1.0, scales=scales, schema=SCHEMA)
        assert caught.value.reason == "increment-too-large"


@pytest.mark.parametrize(
    ("value", "beyond"),
    [
        (MAGNITUDE_MAX, False),
        (-MAGNITUDE_MAX, False),
        (MAGNITUDE_MAX + 1, True),
        (-MAGNITUDE_MAX - 1, True),
        (2**31 - 1, True),
        (-(2**31), True),
    ],
)
def test_the_range_is_checked_at_both_ends(value: int, beyond: bool) -> None:
    anchor = hashed_anchor("start")
    anchor.values[77] = value
    assert anchor.out_of_range() is beyond


def test_weights_come_back_as_near_as_the_scale_allows() -> None:
    weights = hashed_weights("start")
    back = hashed_anchor("start").to_weights()
    offsets = SCHEMA.layout.offsets
    for tensor, schema in enumerate(SCHEMA.tensors):
        part = slice(offsets[tensor], offsets[tensor + 1])
        assert (back[part] - weights[part]).abs().max() <= 2.0 ** -(schema.fraction_bits + 1)
    out = torch.full_like(back, torch.nan)
    assert hashed_anchor("start").to_weights(out) is out
    assert torch.equal(out, back)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 4.1, -4.1])
def test_weights_that_do_not_fit_are_refused(bad: float) -> None:
    weights = hashed_weights("start")
    weights[5] = bad
    with pytest.raises(ValueError, match="does not fit"):
        Anchor.from_weights(SCHEMA, weights)


def test_copies_are_independent() -> None:
    anchor = hashed_anchor("start")
    copy = anchor.copy()
    copy.apply(*ORDINARY[0])
    assert anchor.root() == hashed_anchor("start").root() != copy.root()


@given(position=st.integers(0, SCHEMA.layout.total - 1), bit=st.integers(0, 31))
@settings(max_examples=40, deadline=None)
def test_every_bit_of_every_value_is_under_the_root(position: int, bit: int) -> None:
    anchor = hashed_anchor("start")
    before = anchor.root()
    anchor.values.numpy().view(np.uint32)[position] ^= np.uint32(1 << bit)
    assert anchor.root() != before


def test_the_schema_is_under_the_root() -> None:
    anchor = hashed_anchor("start")
    first, *rest = SCHEMA.tensors
    for changed in (
        TensorSchema("other.name", first.shape, first.fraction_bits),
        TensorSchema(first.name, (64, 66), first.fraction_bits),
        TensorSchema(first.name, first.shape, 24),
    ):
        assert Anchor(ModelSchema((changed, *rest)), anchor.values).root() != anchor.root()


def recursive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word: split at the largest power of two below n."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    left, right = recursive_root(leaves[:split]), recursive_root(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@given(count=st.integers(1, 70))
@settings(deadline=None)
def test_the_tree_is_that_of_rfc_6962(count: int) -> None:
    leaves = [hashlib.sha256(bytes([number])).digest() for number in range(count)]
    assert merkle_root(leaves) == recursive_root(leaves)


def test_leaves_are_64_kib_of_little_endian_integers() -> None:
    schema = ModelSchema((TensorSchema("long", (LEAF_BYTES // 4 + 3,), 28),))
    anchor = hashed_anchor("long", schema)
    data = anchor.values.numpy().astype("<i4").tobytes()
    assert anchor.merkle_leaves() == [
        hashlib.sha256(b"\x00" + data[:LEAF_BYTES]).digest(),
        hashlib.sha256(b"\x00" + data[LEAF_BYTES:]).digest(),
    ]


@pytest.mark.parametrize("count", [*range(1, 70), 255, 256, 257, 1000])
def test_the_addresses_of_chunks_give_the_root_of_all_leaves(count: int) -> None:
    leaves = [hashlib.sha256(f"leaf {number}".encode()).digest() for number in range(count)]
    addresses = chunk_addresses(leaves)
    assert len(addresses) == -(-count // LEAVES_PER_CHUNK)
    assert merkle_root(addresses) == split_root(leaves)
    for number, address in enumerate(addresses):
        assert address == split_root(leaves[16 * number : 16 * number + 16])
    # Any other run of leaves is no node of the tree, so its hash does not lead to the root.
    if count > LEAVES_PER_CHUNK + 1:
        shifted = (merkle_root(leaves[:15]), *chunk_addresses(leaves[15:]))
        assert merkle_root(shifted) != split_root(leaves)


def split_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word: split at the largest power of two below the number."""
    if len(leaves) == 1:
        return leaves[0]
    at = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + split_root(leaves[:at]) + split_root(leaves[at:])).digest()
