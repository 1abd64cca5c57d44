"""An anchor in pieces that can travel on their own: chunks, named by their place in the tree.

A chunk is 16 leaves of the anchor's Merkle tree (anchor.py), 1 MiB. Its address is the hash of
the subtree over them. Sixteen is a power of two and chunks start at multiples of it, so every
chunk's subtree is a node of the whole tree, and the tree over the addresses has the anchor's own
root: whoever has the certified root can check a list of addresses without a byte of data, and
then each chunk alone, whoever it comes from.
"""

from collections.abc import Iterator, Sequence

from shoal.gossip.schema import ModelSchema
from shoal.gossip.tree import CHUNK_BYTES, bind_root, leaves_of, merkle_root

ADDRESS_BYTES = 32


def chunk_count(total_bytes: int) -> int:
    """How many chunks an anchor of so many bytes has."""
    return -(-total_bytes // CHUNK_BYTES)


def chunk_size(total_bytes: int, index: int) -> int:
    """How many bytes chunk `index` has: 1 MiB, the last one what is left."""
    assert 0 <= index < chunk_count(total_bytes), "there is such a chunk"
    return min(CHUNK_BYTES, total_bytes - index * CHUNK_BYTES)


def split(data: bytes) -> Iterator[memoryview]:
    """The chunks of an anchor's little-endian int32 bytes, in order."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield view[start : start + CHUNK_BYTES]


def chunk_address(chunk: bytes | memoryview) -> bytes:
    """The address of one chunk of 1 to 1 MiB bytes: 32 bytes."""
    view = memoryview(chunk)
    assert 0 < len(view) <= CHUNK_BYTES, "a chunk has 1 byte to 1 MiB"
    return merkle_root(leaves_of(view))


def root_of_chunks(schema: ModelSchema, addresses: Sequence[bytes]) -> bytes:
    """The root of the anchor that has these chunks: equal to Anchor.root()."""
    return bind_root(schema.digest, schema.layout.total, addresses)
