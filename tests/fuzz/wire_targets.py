"""What arrives over gRPC: frames of links, requests, answers to them, and the deltas in them."""

import hashlib
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from shoal.compression.codec import decode, encode
from shoal.compression.frame import FrameError, parse_frame
from shoal.compression.layout import CHUNK
from shoal.compression.streams import (
    bytes_to_gaps,
    codes_to_planes,
    compress,
    decompress,
    gaps_to_bytes,
    planes_to_codes,
)
from shoal.gossip.anchor import Anchor
from shoal.gossip.chunks import chunk_count
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES, HEADER_BYTES, Delta, make_delta
from shoal.gossip.errors import GossipError
from shoal.gossip.manifest import HEADER as MANIFEST_HEADER
from shoal.gossip.manifest import Manifest
from shoal.gossip.tree import bind_root
from shoal.node.bulk_wire import (
    CHUNKS,
    FETCHES,
    JOINS,
    Description,
    GenesisParts,
    Holdings,
    Want,
    WantChunk,
    WantDelta,
    WantDeltaLog,
    WantDescription,
    WantGenesis,
    WantHoldings,
    make_description,
    make_fetch,
    make_genesis_header,
    make_holdings,
    parse_description,
    parse_fetch,
    parse_genesis_header,
    parse_holdings,
)
from shoal.node.errors import PeerError
from shoal.node.look_wire import (
    LOOK_REPLIES,
    LOOK_WORD_BYTES_MAX,
    LOOKS,
    LookedBack,
    make_looked_back,
    parse_looked_back,
)
from shoal.node.wire import (
    FRAMES,
    PROTOCOL_VERSION,
    Announced,
    ConsensusMessages,
    Hello,
    LinkMessage,
    Ping,
    Pong,
    Proof,
    SummaryMessage,
    make_frame,
)
from shoal.node.wire import parse_frame as parse_link_frame
from tests.gossip.builders import MESH, SCHEMA, hashed_anchor, hashed_delta, member

ADDRESSES = tuple(bytes([number]) * 32 for number in range(1, 12))
FRAME_BYTES_MAX = 1 << 20


def link(data: bytes) -> None:
    """A frame of a link. Whatever is accepted is said again in the same words."""
    try:
        message = parse_link_frame(FRAMES.read(data))
    except PeerError:
        return
    again = make_frame(message)
    assert parse_link_frame(FRAMES.read(again.SerializeToString())) == message


def link_seeds() -> list[bytes]:
    """One of each kind."""
    reference = (member(1), 7, member(2))
    messages: list[LinkMessage] = [
        Hello(PROTOCOL_VERSION, MESH, member(1), member(2), "127.0.0.1:7400"),
        Proof(bytes(64), bytes(121)),
        Announced((reference, reference)),
        SummaryMessage(9, {member(1): (3, b"\x05"), member(2): (0, b"")}),
        ConsensusMessages((b"\x02" + bytes(121), b"\x15" + bytes(30))),
        Ping(77),
        Pong(2**63),
    ]
    return [make_frame(message).SerializeToString() for message in messages]


def _request(data: bytes) -> None:
    want = parse_fetch(FETCHES.read(data))
    assert parse_fetch(make_fetch(MESH, want)) == want


def _description(data: bytes) -> None:
    described, _ = parse_description(CHUNKS.read(data))
    assert parse_description(make_description(described))[0] == described
    assert len(described.addresses) == chunk_count(described.anchor_bytes)


def _holdings(data: bytes) -> None:
    held = parse_holdings(CHUNKS.read(data), ADDRESSES)
    assert parse_holdings(make_holdings(held, ADDRESSES), ADDRESSES) == held
    assert held.addresses <= set(ADDRESSES)


def _genesis(data: bytes) -> None:
    parts = parse_genesis_header(CHUNKS.read(data))
    assert parse_genesis_header(make_genesis_header(parts)) == parts


def _look(data: bytes) -> None:
    looked = parse_looked_back(LOOK_REPLIES.read(data))
    assert len(looked.outcome) <= LOOK_WORD_BYTES_MAX and looked.address.isprintable()


BULK: tuple[Callable[[bytes], object], ...] = (
    _request,
    _description,
    _holdings,
    _genesis,
    JOINS.read,
    LOOKS.read,
    _look,
)


def bulk(data: bytes) -> None:
    """A request for bulk data or the head of an answer; the first byte says which."""
    if not data:
        return
    try:
        BULK[data[0] % len(BULK)](data[1:])
    except PeerError:
        return


def bulk_seeds() -> list[bytes]:
    """Every request, every head."""
    wants: list[Want] = [
        WantDelta((member(1), 7, b"")),
        WantDelta((member(1), 7, member(3))),
        WantGenesis(),
        WantDescription(0),
        WantChunk(4, member(4)),
        WantDeltaLog(4),
        WantHoldings(4),
    ]
    described = Description(4, b"operation", b"certificate", b"settled", 4096, ADDRESSES[:1], b"")
    held = Holdings(frozenset(ADDRESSES[::2]), True)
    parts = GenesisParts(b"{}", 4096, {"tokenizer.json": b"{}", "vocab.txt": b"a b"})
    looked = LookedBack("answers", "a:1", 4, "0.1.0", 1.5, 2.5)
    heads = [
        make_description(described),
        make_holdings(held, ADDRESSES),
        make_genesis_header(parts),
    ]
    return [
        *(b"\x00" + make_fetch(MESH, want).SerializeToString() for want in wants),
        *(bytes([at]) + head.SerializeToString() for at, head in enumerate(heads, start=1)),
        b"\x04\x0a\x09operation",
        b"\x06" + make_looked_back(looked).SerializeToString(),
    ]


def delta(data: bytes) -> None:
    """A delta as it is pulled: header, signature, frame, decompressed.

    The hash in the header and the checksum of the frame are made right first: a fuzzer cannot
    guess either, and a hostile sender can compute both.
    """
    body = data[BLOB_OVERHEAD_BYTES:-4]
    frame = body + struct.pack("<I", zlib.crc32(body))
    _frame(frame)
    # The header ends with the frame's hash.
    signature = data[HEADER_BYTES:BLOB_OVERHEAD_BYTES]
    repaired = data[: HEADER_BYTES - 32] + hashlib.sha256(frame).digest() + signature + frame
    for blob in (data, repaired):
        try:
            found = Delta.from_bytes(blob, frame_bytes_max=FRAME_BYTES_MAX)
        except GossipError:
            continue
        assert found.to_bytes() == blob
        assert found.frame == blob[BLOB_OVERHEAD_BYTES:]


def _frame(frame: bytes) -> None:
    layout = SCHEMA.layout
    try:
        parsed = parse_frame(frame, layout)
        found = decode(frame, layout)
    except FrameError:
        return
    assert parsed.kept_per_chunk == found.kept_per_chunk <= CHUNK
    assert (np.diff(found.indices) > 0).all() and found.indices[0] >= 0
    assert found.indices[-1] < layout.total and np.isfinite(found.values()).all()
    again = decode(encode(found), layout)
    for name in ("indices", "codes", "centroids", "counts"):
        assert np.array_equal(getattr(again, name), getattr(found, name)), name


def delta_seeds() -> list[bytes]:
    """Honest deltas of several densities."""
    return [
        make_delta(
            encode(hashed_delta(f"seed {kept}", kept_per_chunk=kept)),
            mesh_id=MESH,
            sender=member(1),
            sequence=3,
            height=2,
            steps=8,
            tokens=100,
            sign=lambda message: bytes(64),
        ).to_bytes()
        for kept in (1, 64, 512, 4096)
    ]


def streams(data: bytes) -> None:
    """The streams of a frame by themselves: two bytes say how many values are due."""
    if len(data) < 2:
        return
    kept, stream = 1 + int.from_bytes(data[:2], "big") % 5000, data[2:]
    plane = (kept + 7) // 8
    try:
        expanded = decompress(stream, at_least=1, at_most=2 * kept)
        assert 1 <= len(expanded) <= 2 * kept
        assert decompress(compress(expanded), at_least=1, at_most=2 * kept) == expanded
    except FrameError:
        expanded = stream
    try:
        positions = bytes_to_gaps(expanded, kept, total=8 * kept)
        assert gaps_to_bytes(positions) == expanded
    except FrameError:
        pass
    if len(expanded) >= 2 * plane:
        planes = expanded[:plane], expanded[plane : 2 * plane]
        with suppress(FrameError):
            assert codes_to_planes(planes_to_codes(*planes, kept)) == planes


def streams_seeds() -> list[bytes]:
    """Compressed and raw gaps and planes."""
    found = hashed_delta("streams", kept_per_chunk=64)
    kept = found.indices.size
    head = (kept - 1).to_bytes(2, "big")
    gaps = gaps_to_bytes(found.indices)
    planes = b"".join(codes_to_planes(found.codes))
    return [head + compress(gaps), head + gaps, head + compress(planes), head + planes]


def manifest(data: bytes) -> None:
    """The list of an anchor's chunks, as it is and with the root that its addresses give."""
    _manifest(data)
    addresses = [data[at : at + 32] for at in range(MANIFEST_HEADER.size, len(data), 32)]
    if not addresses:
        return
    magic, version, schema, total, _, count = MANIFEST_HEADER.unpack_from(data)
    root = bind_root(schema, total, addresses)
    _manifest(
        MANIFEST_HEADER.pack(magic, version, schema, total, root, count) + b"".join(addresses)
    )


def _manifest(data: bytes) -> None:
    try:
        found = Manifest.from_bytes(data)
    except GossipError:
        return
    assert found.to_bytes() == data
    try:
        found.require(SCHEMA, found.root)
    except GossipError:
        return
    assert len(found.addresses) == chunk_count(4 * SCHEMA.layout.total)


def manifest_seeds() -> list[bytes]:
    """A real one, and one whose root fits nothing."""
    anchor: Anchor = hashed_anchor("manifest")
    good = Manifest.of(anchor).to_bytes()
    return [good, good[:-1] + b"\x00", good[:HEADER_BYTES]]
