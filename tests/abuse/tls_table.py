"""The nodes that the table of test_tls.py is played with: one that serves, and those who call."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from shoal.consensus.epochs import join_links
from shoal.node.bulk_wire import Contact
from shoal.node.certificates import Leaf, issue_leaf
from shoal.node.channels import open_channel
from shoal.node.gate import Gate
from shoal.node.identity import Identity
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.ports import free_ports
from shoal.node.server import Server
from shoal.proto import inspect_pb2
from shoal.proto.inspect_pb2_grpc import InspectStub
from tests.node.tls import identity_of, make_links

OWN, MEMBER, OTHER, NEWCOMER, STRANGER = map(
    identity_of, ("own", "member", "other", "newcomer", "stranger")
)
MESH_ID = b"t" * 32
STATUS = b"/shoal.v1.Inspect/Status"


class Clock:
    """Seconds since 1970, moved on by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class Place:
    """A node that serves its three listeners and has two members besides itself."""

    def __init__(self) -> None:
        self.mesh_id = MESH_ID
        self.members = {MEMBER.node_id, OTHER.node_id}
        self.ledger: dict[bytes, str] = {}
        self.clock = Clock()
        self.asked = 0
        (port,) = free_ports(1)
        self.address, self.join, self.inspect = (
            f"127.0.0.1:{port + above}" for above in (0, 100, 200)
        )
        self.meters = Meters()
        self.links: Links
        self._server: Server
        self._running: asyncio.Task[None]

    async def start(self) -> None:
        self.links = make_links(
            OWN, lambda: self.members, mesh_id=MESH_ID, clock=self.clock, meters=self.meters
        )
        self._server = Server(self, self.links, self.meters)
        await self._server.start(self.address, join=self.join, inspect=self.inspect)
        self._running = asyncio.create_task(self.links.trust.run())

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.links.close()
        await self._server.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def pause(self) -> None:
        """From now on nobody tells the transport who is in."""
        self._running.cancel()

    def remove(self, member: Identity) -> None:
        self.members.discard(member.node_id)

    @property
    def gate(self) -> Gate:
        return self._server.gate

    def refused(self, reason: str) -> int:
        return self.meters.rejected[reason]

    @property
    def holdings(self) -> Any:
        return None

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Transfers that last: 1 is not found for a minute, others are 64 MiB."""
        del member, delta_id
        if sequence == 1:
            await asyncio.sleep(60)
        return bytes(64 << 20)

    async def genesis(self) -> Any:
        raise AssertionError("nobody asks for the genesis here")

    def contacts(self) -> list[Contact]:
        return [Contact(OWN.node_id, self.address, self.join)]

    def epochs(self) -> bytes:
        return join_links(())

    async def submit(self, operation: bytes) -> str:
        del operation
        return ""

    def address_of(self, member: bytes) -> str:
        return self.ledger.get(member, "")

    def status(self) -> inspect_pb2.StatusReply:
        self.asked += 1
        return inspect_pb2.StatusReply(node="place")

    def explain(self, number: int) -> inspect_pb2.ExplainReply:
        self.asked += 1
        return inspect_pb2.ExplainReply(round=number)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """A running one."""
    here = Place()
    await here.start()
    try:
        yield here
    finally:
        await here.stop()


def leaf_of(identity: Identity, *, at: float | None = None) -> Leaf:
    """What an honest node makes, now or at another time."""
    return issue_leaf(identity, time.time() if at is None else at)


async def ask(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Ask for the status over this channel; how that ended."""
    try:
        await InspectStub(channel).Status(inspect_pb2.StatusRequest(), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def call(here: Place, leaf: Leaf | None, *, pin: bytes = OWN.node_id) -> grpc.StatusCode:
    """Connect to the members' port, show a leaf and ask; `pin` is who must answer."""
    async with open_channel(here.address, pin, leaf) as channel:
        return await ask(channel)


@asynccontextmanager
async def pretender(leaf: Leaf) -> AsyncIterator[str]:
    """A server of its own making that shows this leaf; gives its address."""
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(leaf.key, leaf.certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        with suppress(asyncio.CancelledError):
            await server.stop(None)
