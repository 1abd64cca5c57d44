"""Chunks are nodes of the anchor's own Merkle tree: the certified root covers each of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.anchor import Anchor
from shoal.gossip.chunks import (
    chunk_address,
    chunk_count,
    chunk_size,
    root_of_chunks,
    split,
)
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.tree import CHUNK_BYTES, LEAF_BYTES


def anchor_of(values: int, seed: int = 0) -> Anchor:
    schema = ModelSchema((TensorSchema("weight", (values,), 24),))
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-1000, 1000, (values,), generator=generator, dtype=torch.int32)
    return Anchor(schema, numbers)


def bytes_of(anchor: Anchor) -> bytes:
    return anchor.values.numpy().astype("<i4").tobytes()


def chunk_addresses(data: bytes) -> list[bytes]:
    return [chunk_address(chunk) for chunk in split(data)]


@pytest.mark.parametrize(
    "total_bytes",
    [
        4,
        LEAF_BYTES,
        LEAF_BYTES + 4,
        CHUNK_BYTES - 4,
        CHUNK_BYTES,
        CHUNK_BYTES + 4,
        2 * CHUNK_BYTES,
        3 * CHUNK_BYTES + 5 * LEAF_BYTES + 8,
        5 * CHUNK_BYTES + 16,
    ],
)
def test_the_addresses_give_the_root_that_the_whole_anchor_has(total_bytes: int) -> None:
    anchor = anchor_of(total_bytes // 4)
    data = bytes_of(anchor)
    addresses = chunk_addresses(data)
    assert len(addresses) == chunk_count(total_bytes)
    assert root_of_chunks(anchor.schema, addresses) == anchor.root()
    sizes = [chunk_size(total_bytes, index) for index in range(len(addresses))]
    assert sizes == [len(chunk) for chunk in split(data)]
    assert sum(sizes) == total_bytes


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 2 * CHUNK_BYTES + 99), bit=st.integers(0, 7))
def test_one_bit_changes_the_address_of_its_chunk_and_no_other(at: int, bit: int) -> None:
    data = bytes_of(anchor_of((2 * CHUNK_BYTES + 100) // 4))
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    before, after = chunk_addresses(data), chunk_addresses(bytes(changed))
    differing = [index for index in range(3) if before[index] != after[index]]
    assert differing == [at // CHUNK_BYTES]


def test_a_chunk_cut_short_or_padded_has_another_address() -> None:
    chunk = bytes(LEAF_BYTES + 4)
    assert chunk_address(chunk) != chunk_address(chunk[:-4])
    assert chunk_address(chunk) != chunk_address(chunk + bytes(4))
