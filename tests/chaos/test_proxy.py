"""The proxy does to a stream what it says, in one direction and not in the other."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from shoal.node.ports import free_ports
from tests.chaos.network import Condition
from tests.chaos.proxy import ProxyNetwork, dialler

# This process is node 0, which dials, and node 1 is behind the proxy.
THERE, BACK = (0, 1), (1, 0)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[ProxyNetwork, int]]:
    """A proxy in front of an echo server, as node 1 of two; gives its port."""
    network = ProxyNetwork(1, lambda: [os.getpid(), None])
    ports = free_ports(4)
    server = await asyncio.start_server(_echo, "127.0.0.1", ports[3])
    await network.start(ports[:2], ports[2:])
    try:
        yield network, ports[1]
    finally:
        await network.close()
        server.close()


def run(story: Callable[[ProxyNetwork, int], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), proxied() as (network, port):
            await story(network, port)

    asyncio.run(whole())


async def _quiet(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), 0.4)
    except TimeoutError:
        return True
    return False


def test_the_dialler_is_known_by_its_process() -> None:
    async def story(network: ProxyNetwork, port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        mine = writer.get_extra_info("sockname")[1]
        assert dialler(mine, [None, os.getpid()]) == 1
        assert dialler(mine, [os.getppid(), None]) is None
        writer.close()

    run(story)


def test_a_blocked_direction_holds_back_and_loses_nothing() -> None:
    async def story(network: ProxyNetwork, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        for pair in (THERE, BACK):
            await network.apply({pair: Condition(blocked=True)})
            writer.write(b"held back")
            assert await _quiet(reader)
            await network.apply({})
            assert await reader.readexactly(9) == b"held back"
        writer.close()

    run(story)


def test_a_dial_across_a_blocked_link_waits_for_it() -> None:
    async def story(network: ProxyNetwork, port: int) -> None:
        await network.apply({BACK: Condition(blocked=True)})
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        assert await _quiet(reader)
        await network.apply({})
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    run(story)


@pytest.mark.parametrize(
    ("condition", "at_least_s"),
    [
        (Condition(delay_s=0.1), 0.5),
        (Condition(loss=0.5), 0.2),
        (Condition(rate=20_000), 0.5),
    ],
    ids=["delay", "loss", "rate"],
)
def test_a_bad_link_costs_time_and_keeps_every_byte(
    condition: Condition, at_least_s: float
) -> None:
    async def story(network: ProxyNetwork, port: int) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await network.apply({THERE: condition})
        began = loop.time()
        for number in range(10):
            sent = bytes([number]) * 1000
            writer.write(sent)
            assert await reader.readexactly(len(sent)) == sent
        assert loop.time() - began >= at_least_s
        writer.close()

    run(story)


def test_an_end_that_closes_takes_the_other_with_it() -> None:
    async def story(network: ProxyNetwork, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"last words")
        assert await reader.readexactly(10) == b"last words"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    run(story)
