"""A member gone bad: it holds a real validator's key and speaks the real protocol, but says what
it likes and serves what it likes."""

import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import torch

from shoal.compression.codec import encode
from shoal.compression.select import select
from shoal.consensus.epochs import join_links
from shoal.gossip.delta import Delta, make_delta
from shoal.gossip.liveness import Kind, Message
from shoal.node.bulk_wire import Contact, GenesisParts
from shoal.node.config import load_settings
from shoal.node.explain import ExplainReply
from shoal.node.genesis import load_genesis
from shoal.node.holdings import Holdings
from shoal.node.identity import Identity
from shoal.node.meters import Meters
from shoal.node.retention import Retention
from shoal.node.server import Server
from shoal.node.status import StatusReply
from shoal.node.wire import Announced, ConsensusMessages, LinkMessage
from tests.node.tls import make_links

FRAME_HEADER_BYTES = 16


class Hostile:
    """Serves any blob under any name (server.Backend)."""

    def __init__(self, directory: Path) -> None:
        self.settings = load_settings(directory)
        self.identity = Identity.load(directory / "identity.key")
        self.genesis_document, _, _ = load_genesis(directory / "genesis")
        self.mesh_id = self.genesis_document.mesh_id
        self.layout = self.genesis_document.schema.layout
        self.blobs: dict[bytes, bytes] = {}
        self.meters = Meters()
        # What others said to it about consensus, and who.
        self.heard: list[tuple[bytes, bytes]] = []
        # It keeps no checkpoints.
        self.holdings = Holdings(
            directory / "nothing", anchor_bytes=4, retention=Retention(), meters=self.meters
        )
        # The height that its deltas claim to be made under.
        self.height = 0
        founders = self.genesis_document.founders
        self.links = make_links(
            self.identity,
            {founder.node_id for founder in founders},
            mesh_id=self.mesh_id,
            address=self.settings.node.listen,
            meters=self.meters,
            on_message=self._note,
        )

    def _note(self, peer: bytes, message: LinkMessage) -> None:
        if isinstance(message, ConsensusMessages):
            self.heard += [(peer, data) for data in message.messages]
        if isinstance(message, Message) and message.kind is Kind.PROBE and not message.member:
            # Who seems dead is not asked for anything, and could not lie any more.
            self.links.send(peer, Message(Kind.ACK, message.nonce))

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        del member, sequence
        return self.blobs.get(delta_id)

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        return GenesisParts(self.genesis_document.document, 0, {}), b""

    def contacts(self) -> list[Contact]:
        return []

    def epochs(self) -> bytes:
        return join_links(())

    async def submit(self, operation: bytes) -> str:
        del operation
        return "no"

    def status(self) -> StatusReply:
        return StatusReply()

    def address_of(self, member: bytes) -> str:
        del member
        return ""

    def explain(self, number: int) -> ExplainReply:
        return ExplainReply()

    def frame(self, *, size: float = 1e-3, seed: int = 0) -> bytes:
        """An honest frame of random values."""
        error = torch.randn(self.layout.total, generator=torch.Generator().manual_seed(seed))
        kept = self.genesis_document.epoch_parameters().kept_per_chunk
        return encode(select(error * size, self.layout, kept))

    def delta(self, frame: bytes, *, sequence: int, height: int | None = None) -> Delta:
        """A delta with a true signature, whatever its frame is worth."""
        return make_delta(
            frame,
            mesh_id=self.mesh_id,
            sender=self.identity.node_id,
            sequence=sequence,
            height=self.height if height is None else height,
            steps=1,
            tokens=1,
            sign=self.identity.sign,
        )

    def offer(self, victim: bytes, delta: Delta, blob: bytes | None = None) -> None:
        """Announce a delta, and serve `blob` (by default the delta itself) under its name."""
        header = delta.header
        self.blobs[header.id] = delta.to_bytes() if blob is None else blob
        self.links.send(victim, Announced((header.reference,)))

    def say(self, victim: bytes, data: bytes) -> None:
        """Send bytes as a consensus message."""
        self.links.send(victim, ConsensusMessages((data,)))


@asynccontextmanager
async def hostile_member(directory: Path) -> AsyncIterator[Hostile]:
    """Run a hostile member in the place of the node that `directory` belongs to."""
    member = Hostile(directory)
    server = Server(member, member.links, member.meters)
    await server.start(member.settings.node.listen)
    targets = {
        founder.address: founder.node_id
        for founder in member.genesis_document.founders
        if founder.node_id != member.identity.node_id
    }
    member.links.dial(targets)
    try:
        yield member
    finally:
        await server.stop()
        await member.links.close()


def resealed(frame: bytes, offset: int, replacement: bytes) -> bytes:
    """The frame with some bytes replaced and its checksum made right again."""
    changed = bytearray(frame[:-4])
    changed[offset : offset + len(replacement)] = replacement
    return bytes(changed) + struct.pack("<I", zlib.crc32(changed))


def with_nan(frame: bytes) -> bytes:
    """The frame with a magnitude that is not a number."""
    return resealed(frame, FRAME_HEADER_BYTES, np.float32("nan").tobytes())


def with_shifted_gaps(frame: bytes, tensors: int) -> bytes:
    """The frame with a gap stream that is not zstd any more."""
    return resealed(frame, FRAME_HEADER_BYTES + 8 * tensors + 64, b"\xff" * 32)
