"""A network of TCP proxies on loopback, for machines that refuse network namespaces, and for delay.

Every node advertises the address of a proxy that stands in front of it. Who dials is told by whose
process holds the other end of the connection, so that each direction between two nodes can be
treated on its own, though both travel on one connection.

A proxy sees a stream of bytes and no packets, so it does to the stream what a network does to TCP:
a blocked direction holds everything back until it is open again, as retransmission would; a lost
packet is a retransmission timeout for what comes after it; a delay applies to each piece and
keeps the order. A connection that is dialled across a blocked link is held until the link opens,
because its handshake needs both directions.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import psutil

from tests.chaos.network import HEALTHY, Condition
from tests.chaos.schedule import Pair

PIECE_BYTES = 16_384
# What is on its way at most in one direction; then the sender feels it.
IN_FLIGHT_BYTES = 1 << 20
# About what a lost packet costs a TCP stream on a fast network: the minimum timeout.
RETRANSMISSION_S = 0.2
ATTEMPTS = 6
JITTER = 0.5
CONNECT_SECONDS = 10.0


class ProxyNetwork:
    """One listener in front of each node."""

    kinds: tuple[str, ...] = ("kill", "pause", "partition", "one-way", "loss", "delay", "rate")

    def __init__(self, seed: int, pids: Callable[[], Sequence[int | None]]) -> None:
        """`pids` tells which process runs each node at the moment."""
        self._chance = random.Random(f"proxy/{seed}")
        self._pids = pids
        self._conditions: dict[Pair, Condition] = {}
        self._changed = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, fronts: Sequence[int], behind: Sequence[int]) -> None:
        """Listen on the ports `fronts` for the nodes that listen on the ports `behind`."""
        for index, (front, back) in enumerate(zip(fronts, behind, strict=True)):
            server = await asyncio.start_server(self._accept(index, back), "127.0.0.1", front)
            self._servers.append(server)

    async def apply(self, conditions: dict[Pair, Condition]) -> None:
        """Make these the conditions of all links."""
        self._conditions = dict(conditions)
        self._changed.set()
        self._changed = asyncio.Event()

    async def close(self) -> None:
        """Stop listening and cut everything."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def condition(self, pair: Pair) -> Condition:
        """The state of a directed link now."""
        return self._conditions.get(pair, HEALTHY)

    def _accept(
        self, target: int, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(target, port, reader, writer))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        return accepted

    async def _serve(
        self, target: int, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source = dialler(writer.get_extra_info("peername")[1], self._pids())
        ends = [writer]
        try:
            if source is not None:
                await self._until_open((source, target), (target, source))
            back, onward = await asyncio.wait_for(
                asyncio.open_connection("127.0.0.1", port), CONNECT_SECONDS
            )
            ends.append(onward)
            there = self._pump(reader, onward, None if source is None else (source, target))
            here = self._pump(back, writer, None if source is None else (target, source))
            await _first_of(there, here)
        except (OSError, TimeoutError):
            pass
        finally:
            # Either end gone means both: a proxy must not keep alive what its node has closed.
            for end in ends:
                end.transport.abort()

    async def _until_open(self, *pairs: Pair) -> None:
        while any(self.condition(pair).blocked for pair in pairs):
            await self._changed.wait()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: Pair | None
    ) -> None:
        """Carry one direction of one connection until it ends."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_BYTES // PIECE_BYTES)
        await _first_of(self._take(reader, pieces, pair), self._deliver(pieces, writer, pair))

    async def _take(
        self,
        reader: asyncio.StreamReader,
        pieces: asyncio.Queue[tuple[float, bytes]],
        pair: Pair | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(PIECE_BYTES):
            await pieces.put((loop.time() + self._delay_s(pair), data))
        await pieces.put((loop.time(), b""))
        # The end is delivered in its turn; until then this direction is not over.
        await asyncio.Event().wait()

    def _delay_s(self, pair: Pair | None) -> float:
        condition = self.condition(pair) if pair is not None else HEALTHY
        delay_s = condition.delay_s * self._chance.uniform(1 - JITTER, 1 + JITTER)
        for attempt in range(ATTEMPTS):
            if self._chance.random() >= condition.loss:
                break
            delay_s += RETRANSMISSION_S * 2**attempt
        return delay_s

    async def _deliver(
        self,
        pieces: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        pair: Pair | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await pieces.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if pair is not None:
                await self._until_open(pair)
                if rate := self.condition(pair).rate:
                    await asyncio.sleep(len(data) / rate)
            if not data:
                return
            writer.write(data)
            await writer.drain()


async def _first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run them side by side until the first one ends; its error is ours."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def dialler(port: int, pids: Sequence[int | None]) -> int | None:
    """Which of these processes holds the loopback connection from `port`; None for a stranger."""
    for index, pid in enumerate(pids):
        if pid is None:
            continue
        try:
            connections = psutil.Process(pid).net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(each.laddr and each.laddr.port == port for each in connections):
            return index
    return None
