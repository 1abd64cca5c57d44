"""The Merkle tree over an anchor's bytes: what a root binds, and how it falls into chunks.

Nothing here needs the anchor itself, so whoever only passes pieces on need not load torch.

Source: RFC 6962, 2.1.
"""

import hashlib
from collections.abc import Sequence

LEAF_BYTES = 64 * 1024
# A chunk is an aligned run of leaves whose number is a power of two, so that its hash is a node
# of the tree: the last run, which may be shorter, is one too (docs/adr/0009).
LEAVES_PER_CHUNK = 16
CHUNK_BYTES = LEAVES_PER_CHUNK * LEAF_BYTES
ROOT_DOMAIN = b"SHOAL-ANCHOR\x01"


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The tree of RFC 6962, 2.1, over given leaf hashes: at least one, 32 bytes each."""
    assert leaves, "an anchor has at least one leaf"
    level = list(leaves)
    while len(level) > 1:
        # Pairing from the left and handing an odd last node up is the RFC's recursive split.
        paired = [
            hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest()
            for at in range(0, len(level) - 1, 2)
        ]
        level = paired + level[2 * len(paired) :]
    return level[0]


def chunk_addresses(leaves: Sequence[bytes]) -> tuple[bytes, ...]:
    """The subtree hash of each chunk of 16 leaves, 32 bytes each, the last one of what is left.

    `merkle_root` of the addresses is `merkle_root` of the leaves.
    """
    starts = range(0, len(leaves), LEAVES_PER_CHUNK)
    return tuple(merkle_root(leaves[at : at + LEAVES_PER_CHUNK]) for at in starts)


def bind_root(schema_digest: bytes, total: int, nodes: Sequence[bytes]) -> bytes:
    """The root of an anchor of `total` parameters: the tree's top, bound to the schema and P.

    `nodes` are the leaves, or the addresses of the chunks.
    """
    bound = ROOT_DOMAIN + schema_digest + total.to_bytes(8, "big")
    return hashlib.sha256(bound + merkle_root(nodes)).digest()


def leaves_of(data: memoryview) -> list[bytes]:
    """SHA-256 of each 64 KiB of an anchor's bytes, or of one chunk's, the last piece shorter."""
    leaves = []
    for start in range(0, len(data), LEAF_BYTES):
        leaf = hashlib.sha256(b"\x00")
        leaf.update(data[start : start + LEAF_BYTES])
        leaves.append(leaf.digest())
    return leaves
