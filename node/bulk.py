"""Bulk transfers: deltas, checkpoints, the genesis. Streams of chunks, bounded by the receiver.

The receiver says how many bytes it will take before the first one arrives, and hangs up on more.
What arrives is checked by its hash or its certificate by whoever asked; nothing here is trusted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc

from shoal.node.errors import PeerError
from shoal.node.wire import (
    CHUNK_BYTES,
    CheckpointParts,
    GenesisParts,
    Reference,
    WantCheckpoint,
    WantDelta,
    WantGenesis,
    make_fetch,
    parse_checkpoint_header,
    parse_genesis_header,
)
from shoal.proto.mesh_pb2 import Chunk

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

# A transfer that makes no progress for this long has failed; a slow one has not. It is asked of
# neighbours with a live link, so a channel that is still connecting is waited for as well.
STALL_TIMEOUT_S = 10.0


class FetchFailed(Exception):
    """The holder did not deliver; the message says why."""


class NotHeld(FetchFailed):
    """The holder answered that it does not have it."""


def chunks(data: bytes) -> list[Chunk]:
    """Cut `data` into chunks for the wire."""
    view = memoryview(data)
    return [
        Chunk(data=bytes(view[start : start + CHUNK_BYTES]))
        for start in range(0, len(data), CHUNK_BYTES)
    ]


async def _next(stream: AsyncIterator[Chunk]) -> Chunk | None:
    try:
        async with asyncio.timeout(STALL_TIMEOUT_S):
            return await anext(stream, None)
    except TimeoutError:
        raise FetchFailed(f"no data for {STALL_TIMEOUT_S:.0f} s") from None
    except grpc.aio.AioRpcError as error:
        kind = NotHeld if error.code() is grpc.StatusCode.NOT_FOUND else FetchFailed
        raise kind(f"{error.code().name}: {error.details()}") from None


async def _collect(stream: AsyncIterator[Chunk], *, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while (chunk := await _next(stream)) is not None:
        total += len(chunk.data)
        if total > limit_bytes:
            raise PeerError("oversized", f"more than the {limit_bytes} bytes that were due")
        parts.append(chunk.data)
    return b"".join(parts)


async def fetch_delta(
    stub: "MeshAsyncStub", mesh_id: bytes, reference: Reference, *, limit_bytes: int
) -> bytes:
    """Return a delta's blob from another member; raises FetchFailed or PeerError."""
    call = stub.Fetch(make_fetch(mesh_id, WantDelta(reference)), wait_for_ready=True)
    try:
        return await _collect(aiter(call), limit_bytes=limit_bytes)
    finally:
        call.cancel()


async def fetch_checkpoint(
    stub: "MeshAsyncStub", mesh_id: bytes, height: int, check: Callable[[CheckpointParts], int]
) -> tuple[CheckpointParts, bytes]:
    """Return a checkpoint's proof and the bytes of its anchor.

    `check` sees the proof before any anchor arrives: it raises PeerError, or returns how many
    bytes of anchor are due (0 hangs up at once).
    """
    call = stub.Fetch(make_fetch(mesh_id, WantCheckpoint(height)), wait_for_ready=True)
    try:
        stream = aiter(call)
        parts = parse_checkpoint_header(await _first(stream))
        due_bytes = check(parts)
        return parts, await _collect(stream, limit_bytes=due_bytes) if due_bytes else b""
    finally:
        call.cancel()


async def fetch_genesis(
    stub: "MeshAsyncStub", check: Callable[[GenesisParts], int]
) -> tuple[GenesisParts, bytes]:
    """Return the genesis document with its files, and its anchor's bytes; see fetch_checkpoint."""
    call = stub.Fetch(make_fetch(b"", WantGenesis()), wait_for_ready=True)
    try:
        stream = aiter(call)
        parts = parse_genesis_header(await _first(stream))
        return parts, await _collect(stream, limit_bytes=check(parts))
    finally:
        call.cancel()


async def _first(stream: AsyncIterator[Chunk]) -> Chunk:
    first = await _next(stream)
    if first is None:
        raise FetchFailed("the stream was empty")
    return first
