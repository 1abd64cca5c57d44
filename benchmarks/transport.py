"""What TLS costs a node: python -m benchmarks.transport. JSON lines, medians in milliseconds.

- handshake: from no connection to the answer of a first call, for a server with so many members;
  the first one after a change of the list; and making all of the anchors, once.
- call: a unary call on an open connection, through the gate and without TLS.
- stream: one message there and back on an open stream, with TLS and without.
- bulk: a transfer of chunks of 1 MiB through the gate, one reader.
"""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from shoal.node.certificates import issue_leaf, trust_anchor
from shoal.node.channels import open_channel
from shoal.node.gate import Gate
from shoal.node.identity import Identity
from shoal.node.meters import Meters
from shoal.node.trust import Trust

REPEATS = 30
MESSAGES = 1000
MIB = 1 << 20
TRANSFER_MIB = 256
SERVER, CLIENT = Identity.generate(), Identity.generate()


async def _echo(requests: Any, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def _answer(request: bytes, context: Any) -> bytes:
    return request


async def _transfer(request: bytes, context: Any) -> Any:
    chunk = bytes(MIB)
    for _ in range(TRANSFER_MIB):
        yield chunk


def _methods(server: grpc.aio.Server) -> None:
    handlers: dict[str, Any] = {
        "Echo": grpc.stream_stream_rpc_method_handler(_echo),
        "Answer": grpc.unary_unary_rpc_method_handler(_answer),
        "Transfer": grpc.unary_stream_rpc_method_handler(_transfer),
    }
    generic = grpc.method_handlers_generic_handler("bench", handlers)
    server.add_generic_rpc_handlers((generic,))


async def _median_ms(work: Callable[[], Awaitable[Any]], repeats: int = REPEATS) -> float:
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        await work()
        took.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(took), 3)


async def _measure_open(channel: Any) -> dict[str, float]:
    call = channel.unary_unary("/bench/Answer")
    await call(b"x")
    stream = channel.stream_stream("/bench/Echo")()

    async def there_and_back() -> None:
        await stream.write(b"x" * 300)
        await stream.read()

    result = {
        "call_ms": await _median_ms(lambda: call(b"x"), MESSAGES),
        "stream_ms": await _median_ms(there_and_back, MESSAGES),
    }
    await stream.done_writing()
    began = time.perf_counter()
    async for _ in channel.unary_stream("/bench/Transfer")(b""):
        pass
    result["bulk_mib_per_s"] = round(TRANSFER_MIB / (time.perf_counter() - began), 1)
    return result


async def with_tls(members: int) -> dict[str, Any]:
    """A server with a gate and so many members, the caller among them."""
    strangers = {Identity.generate().node_id for _ in range(members - 1)}
    trust = Trust(SERVER, lambda: strangers | {CLIENT.node_id})
    began = time.perf_counter()
    trust.refresh()
    built_ms = 1e3 * (time.perf_counter() - began)
    server = grpc.aio.server(interceptors=(Gate(trust, Meters()),))
    _methods(server)
    port = server.add_secure_port("127.0.0.1:0", trust.mutual_credentials())
    await server.start()
    address, leaf = f"127.0.0.1:{port}", issue_leaf(CLIENT, time.time())

    async def connect() -> None:
        channel: Any
        async with open_channel(address, SERVER.node_id, leaf) as channel:
            await channel.unary_unary("/bench/Answer")(b"x")

    result: dict[str, Any] = {"members": members, "anchors_built_ms": round(built_ms, 1)}
    result["handshake_ms"] = await _median_ms(connect)
    strangers.pop()
    trust.refresh()
    result["handshake_after_change_ms"] = await _median_ms(connect, 1)
    async with open_channel(address, SERVER.node_id, leaf) as channel:
        result |= await _measure_open(channel)
    await server.stop(None)
    return result


async def in_the_clear() -> dict[str, Any]:
    """The same without TLS and without a gate."""
    server = grpc.aio.server()
    _methods(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        result = await _measure_open(channel)
    await server.stop(None)
    return result


async def main() -> None:
    """Measure and print."""
    trust_anchor.cache_clear()
    for members in (4, 1000):
        print(json.dumps({"benchmark": "transport", "tls": True, **await with_tls(members)}))
    print(json.dumps({"benchmark": "transport", "tls": False, **await in_the_clear()}))


if __name__ == "__main__":
    asyncio.run(main())
