"""The manifest of an anchor: the addresses of its chunks, checkable before any of them is here.

An address is a node of the anchor's Merkle tree (anchor.py), so the addresses alone give the
root that a quorum certified: whoever holds a certificate can check a manifest without the data,
and then each chunk by itself, whoever sent it.

    "SHOAL-MANIFEST" | version u8 | schema digest[32] | P u64 | anchor root[32] | count u32
    | count * address[32]                                                      (big-endian)
"""

from dataclasses import dataclass
from struct import Struct

from shoal.gossip.anchor import Anchor
from shoal.gossip.chunks import ADDRESS_BYTES, chunk_count, chunk_size
from shoal.gossip.errors import GossipError
from shoal.gossip.schema import PARAMETERS_MAX, ModelSchema
from shoal.gossip.tree import bind_root, chunk_addresses

MAGIC = b"SHOAL-MANIFEST"
VERSION = 1
HEADER = Struct(">14sB32sQ32sI")


def chunk_sizes(total: int) -> list[int]:
    """Bytes of each chunk of an anchor of `total` parameters: 1 MiB, the last one the rest."""
    return [chunk_size(4 * total, index) for index in range(chunk_count(4 * total))]


def manifest_bytes(total: int) -> int:
    """The length of the manifest of an anchor of `total` parameters, exactly."""
    return HEADER.size + ADDRESS_BYTES * chunk_count(4 * total)


@dataclass(frozen=True, slots=True)
class Manifest:
    """schema digest[32]; `total`: P, the number of parameters; root[32]; addresses in order."""

    schema_digest: bytes
    total: int
    root: bytes
    addresses: tuple[bytes, ...]

    @classmethod
    def of(cls, anchor: Anchor) -> "Manifest":
        """Hash the anchor."""
        addresses = chunk_addresses(anchor.merkle_leaves())
        digest, total = anchor.schema.digest, anchor.schema.layout.total
        return cls(digest, total, bind_root(digest, total, addresses), addresses)

    def to_bytes(self) -> bytes:
        """The one encoding."""
        header = HEADER.pack(
            MAGIC, VERSION, self.schema_digest, self.total, self.root, len(self.addresses)
        )
        return header + b"".join(self.addresses)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """A manifest whose addresses give its root; raises GossipError("bad-manifest").

        It proves nothing before that root is compared with a certified one: see `require`.
        """
        if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
            raise GossipError("bad-manifest", f"{len(data)} bytes that are none")
        _, version, schema_digest, total, root, count = HEADER.unpack_from(data)
        if version != VERSION:
            raise GossipError("bad-manifest", f"version {version}, this Shoal reads {VERSION}")
        if not 1 <= total <= PARAMETERS_MAX or count != chunk_count(4 * total):
            raise GossipError("bad-manifest", f"{count} chunks of {total} parameters")
        if len(data) != manifest_bytes(total):
            raise GossipError("bad-manifest", f"{len(data)} bytes for {count} chunks")
        addresses = tuple(
            data[at : at + ADDRESS_BYTES] for at in range(HEADER.size, len(data), ADDRESS_BYTES)
        )
        if bind_root(schema_digest, total, addresses) != root:
            raise GossipError("bad-manifest", "its addresses do not give its root")
        return cls(schema_digest, total, root, addresses)

    def require(self, schema: ModelSchema, root: bytes) -> None:
        """Raise GossipError("bad-manifest") unless it is of this schema and this certified root.

        Then every chunk whose hash is its address is a part of the certified anchor.
        """
        if (self.schema_digest, self.total) != (schema.digest, schema.layout.total):
            raise GossipError("bad-manifest", "it is of another model")
        if self.root != root:
            raise GossipError("bad-manifest", "its root is not the certified one")
