"""Nodes that serve one made-up checkpoint over real gRPC, well or badly, for tests of a fetch."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from shoal.consensus.epochs import join_links
from shoal.gossip.chunks import chunk_address, root_of_chunks, split
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node.bulk_wire import Description, Holdings
from shoal.node.errors import PeerError
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory
from shoal.node.ports import free_ports
from shoal.node.server import Server
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.tls import CLIENT, HOLDER, channel_to, make_links

MESH_ID = b"m" * 32
HEIGHT = 7


class MadeUpCheckpoint:
    """Some bytes as an anchor; `certify` is what stands for its certificate."""

    def __init__(self, chunks: int = 12, *, height: int = HEIGHT, seed: int = 0) -> None:
        # The last chunk is short and of an odd number of leaves.
        size = (chunks - 1) * CHUNK_BYTES + 3 * 65536 + 20
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        self.data = values.numpy().tobytes()
        self.schema = ModelSchema((TensorSchema("weight", (size // 4,), 24),))
        self.addresses = tuple(map(chunk_address, split(self.data)))
        self.root = root_of_chunks(self.schema, self.addresses)
        self.height = height
        self.description = Description(
            height, b"operation", b"certificate", b"settled", size, self.addresses, b"epochs" * 1000
        )

    def certify(self, described: Description) -> None:
        if root_of_chunks(self.schema, described.addresses) != self.root:
            raise PeerError("checkpoint-root", "not these chunks")

    def write(self, path: Path) -> PieceDirectory:
        """Put all of it on the disk in pieces."""
        pieces = PieceDirectory(path, self.height, len(self.data))
        pieces.describe(self.description)
        for address, chunk in zip(self.addresses, split(self.data), strict=True):
            pieces.write(address, bytes(chunk))
        return pieces


class Holder:
    """One node that serves the checkpoint (server.Backend and server.Serving)."""

    def __init__(self, checkpoint: MadeUpCheckpoint, *, has: Iterable[int] | None = None) -> None:
        """has: the chunks that it has, by number; None for all."""
        self.mesh_id = MESH_ID
        self.holdings = self
        self.checkpoint = checkpoint
        count = len(checkpoint.addresses)
        self.chunks = dict(zip(checkpoint.addresses, split(checkpoint.data), strict=True))
        self.has = {checkpoint.addresses[each] for each in (range(count) if has is None else has)}
        self.served: Counter[bytes] = Counter()
        self.meters = Meters()
        self.address = ""
        self._server: Server
        self.links = make_links(HOLDER, {CLIENT.node_id}, mesh_id=MESH_ID, meters=self.meters)

    async def start(self) -> None:
        self._server = Server(self, self.links, self.meters)
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        await self._server.start(self.address)

    async def stop(self) -> None:
        await self._server.stop()

    async def describe(self, height: int) -> Description | None:
        return self.checkpoint.description if height in (0, self.checkpoint.height) else None

    async def held(self, height: int) -> tuple[Holdings, tuple[bytes, ...]] | None:
        if height != self.checkpoint.height:
            return None
        return Holdings(frozenset(self.has), False), self.checkpoint.addresses

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        if height != self.checkpoint.height or address not in self.has:
            return None
        self.served[address] += 1
        return bytes(self.chunks[address])

    async def delta_log(self, height: int) -> Path | None:
        del height
        return None

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> None:
        del member, sequence, delta_id

    async def genesis(self) -> Any:
        raise AssertionError("nobody asks for a genesis here")

    def contacts(self) -> Any:
        raise AssertionError("nobody asks for contacts here")

    def epochs(self) -> bytes:
        return join_links(())

    async def submit(self, operation: bytes) -> str:
        del operation
        return "no"

    def status(self) -> Any:
        raise AssertionError("nobody asks for the status here")

    def address_of(self, member: bytes) -> str:
        del member
        return ""

    def explain(self, number: int) -> Any:
        raise AssertionError("nobody asks for explanations here")


class Liar(Holder):
    """Flips a bit of everything that it sends."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        data = bytearray(await super().chunk(height, address) or b"")
        data[len(data) // 2] ^= 1
        return bytes(data)


class Flooder(Holder):
    """Sends twice as much as is due."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        return 2 * (await super().chunk(height, address) or b"")


class Miser(Holder):
    """Sends less than is due: of some chunks nothing, of others all but the last byte."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        data = await super().chunk(height, address)
        return data and (data[:-1] if address[0] % 2 else b"")


class Mortal(Holder):
    """Serves some chunks and then is gone, without a word."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        if self.served.total() >= 3:
            self._dying = asyncio.create_task(self._server._members.stop(grace=None))
            await asyncio.sleep(60)
        return await super().chunk(height, address)


class Sleeper(Holder):
    """Takes requests and never answers."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        await super().chunk(height, address)
        await asyncio.sleep(3600)
        return None


class Careful(Holder):
    """Takes its time over each chunk, so that a fetch can be cut off in the middle."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        await asyncio.sleep(0.1)
        return await super().chunk(height, address)


@asynccontextmanager
async def serving(*holders: Holder) -> AsyncIterator[dict[str, Any]]:
    """Start them; gives a client for each, by the name of its kind and its number."""
    async with AsyncExitStack() as stack:
        stubs: dict[str, Any] = {}
        for number, holder in enumerate(holders):
            await holder.start()
            stack.push_async_callback(holder.stop)
            channel = channel_to(holder.address, HOLDER.node_id)
            stack.push_async_callback(channel.close)
            stubs[f"{type(holder).__name__.lower()}{number}"] = MeshStub(channel)
        yield stubs
