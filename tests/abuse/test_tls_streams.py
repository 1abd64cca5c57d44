"""What goes on when somebody is put out, and when a leaf gets old: streams end, or begin again."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from shoal.node.bulk_wire import WantDelta, make_fetch
from shoal.node.channels import open_channel
from shoal.node.links import Links
from shoal.node.server import Server
from shoal.proto.inspect_pb2 import WatchRequest
from shoal.proto.inspect_pb2_grpc import InspectStub
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.abuse.tls_table import MEMBER, MESH_ID, OWN, Clock, Place, leaf_of, place
from tests.node.tls import make_links

# The goal; what is measured is about half a second, which is how often the list is looked at.
CUT_WITHIN_S = 2.0
HOUR_S = 3600.0


async def within(seconds: float, condition: Callable[[], bool]) -> float:
    """Wait for it; the seconds it took. Fails after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, "it did not happen in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@asynccontextmanager
async def member(clock: Clock) -> AsyncIterator[tuple[Links, str]]:
    """A second node, which trusts the first whatever happens; its links and its address."""
    beside = Place()
    links = make_links(MEMBER, {OWN.node_id}, mesh_id=MESH_ID, clock=clock)
    server = Server(beside, links, links._meters)
    await server.start(beside.address)
    running = asyncio.create_task(links.trust.run())
    try:
        yield links, beside.address
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await links.close()
        await server.stop()


@pytest.mark.parametrize("dialled_by_the_member", [True, False])
def test_the_link_of_a_removed_member_is_cut(dialled_by_the_member: bool) -> None:
    async def story() -> None:
        async with place() as here, member(Clock()) as (theirs, address):
            if dialled_by_the_member:
                theirs.dial({here.address: OWN.node_id})
            else:
                here.links.dial({address: MEMBER.node_id})
            await within(10, lambda: bool(theirs.connected and here.links.connected))
            here.remove(MEMBER)
            await within(CUT_WITHIN_S, lambda: not here.links.connected)
            await within(CUT_WITHIN_S, lambda: not theirs.connected)
            await asyncio.sleep(1.0)
            assert not here.links.connected, "and it does not come back"
            here.members.add(MEMBER.node_id)
            await within(15, lambda: bool(theirs.connected and here.links.connected))

    asyncio.run(story())


def _fetch(channel: grpc.aio.Channel, sequence: int) -> Any:
    reference = (MEMBER.node_id, sequence, b"")
    return MeshStub(channel).Fetch(make_fetch(MESH_ID, WantDelta(reference)))


STREAMS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "watching": lambda channel: InspectStub(channel).Watch(WatchRequest(interval_ms=100)),
    "waiting for a transfer": lambda channel: _fetch(channel, 1),
    # Nobody reads it, so the server is stuck in the middle of sending.
    "a transfer that nobody reads": lambda channel: _fetch(channel, 2),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_a_removed_member_is_cut(name: str) -> None:
    async def story() -> None:
        async with (
            place() as here,
            open_channel(here.address, OWN.node_id, leaf_of(MEMBER)) as channel,
        ):
            call = STREAMS[name](channel)
            await within(10, lambda: bool(here.gate._calls))
            await asyncio.sleep(0.5)
            here.remove(MEMBER)
            if "nobody reads" in name:
                # Now it begins to read, and what comes is what had been sent before.
                await asyncio.sleep(CUT_WITHIN_S)
            received = 0
            with suppress(grpc.aio.AioRpcError):
                async with asyncio.timeout(CUT_WITHIN_S):
                    async for message in call:
                        received += message.ByteSize()
            async with asyncio.timeout(CUT_WITHIN_S):
                assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
            assert received < 8 << 20
            assert not here.gate._calls and not here.gate._out

    asyncio.run(story())


def test_a_link_begins_again_with_the_next_leaf() -> None:
    async def story() -> None:
        clock = Clock()
        # The caller has run for 15 hours and a half; its leaf counts for 24.
        clock.ahead_s = -14.9 * HOUR_S
        async with place() as here, member(clock) as (theirs, _):
            theirs.dial({here.address: OWN.node_id})
            await within(10, lambda: bool(theirs.connected and here.links.connected))
            first, leaf = theirs._links[OWN.node_id][0], theirs.trust.leaf
            clock.ahead_s = 0.2 * HOUR_S
            await within(10, lambda: bool(theirs.connected) and first.cut.done())
            await within(10, lambda: first not in theirs._links.get(OWN.node_id, [first]))
            assert theirs.trust.leaf is not leaf
            assert theirs.trust.leaf.not_after > leaf.not_after
            await within(10, lambda: len(here.links._links[MEMBER.node_id]) == 1)

    asyncio.run(story())


def test_a_link_does_not_outlive_its_callers_leaf() -> None:
    async def story() -> None:
        async with place() as here, member(Clock()) as (theirs, _):
            theirs.dial({here.address: OWN.node_id})
            await within(10, lambda: bool(here.links.connected))
            # Only the clock of the one who was called goes on: the caller does not rotate.
            here.clock.ahead_s = 24 * HOUR_S
            await within(CUT_WITHIN_S, lambda: not here.links.connected)

    asyncio.run(story())
