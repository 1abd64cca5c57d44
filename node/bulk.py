"""Bulk transfers: deltas, the pieces of checkpoints, the genesis. Streams, bounded by the receiver.

The receiver says how many bytes it will take before the first one arrives, and hangs up on more.
What arrives is checked by its hash or its certificate by whoever asked; nothing here is trusted.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc

from shoal.node.bulk_wire import (
    DATA_BYTES_MAX,
    EPOCHS_BYTES_MAX,
    Contact,
    Description,
    GenesisParts,
    Holdings,
    Want,
    WantChunk,
    WantContacts,
    WantDelta,
    WantDeltaLog,
    WantDescription,
    WantEpochs,
    WantGenesis,
    WantHoldings,
    make_fetch,
    parse_contacts,
    parse_description,
    parse_genesis_header,
    parse_holdings,
)
from shoal.node.errors import PeerError
from shoal.node.screen import sound
from shoal.node.wire import Reference
from shoal.proto.mesh_pb2 import Chunk, FetchRequest

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

    # What those outside call it, who need not know what it is made of.
    Stub = MeshAsyncStub

# A transfer that makes no progress for this long has failed; a slow one has not. Deltas are asked
# of neighbours with a live link, so a channel that is still connecting is waited for as well.
STALL_TIMEOUT_S = 10.0


class FetchFailed(Exception):
    """The holder did not deliver; the message says why."""


class NotHeld(FetchFailed):
    """The holder answered that it does not have it."""


def chunks(data: bytes) -> list[Chunk]:
    """Cut `data` into chunks for the wire."""
    view = memoryview(data)
    return [
        Chunk(data=bytes(view[start : start + DATA_BYTES_MAX]))
        for start in range(0, len(data), DATA_BYTES_MAX)
    ]


async def _next(
    stream: AsyncIterator[Chunk], stall_s: float | None = STALL_TIMEOUT_S
) -> Chunk | None:
    try:
        async with asyncio.timeout(stall_s):
            chunk = await anext(stream, None)
            return None if chunk is None else sound(chunk)
    except TimeoutError:
        raise FetchFailed(f"no data for {stall_s:.0f} s") from None
    except grpc.aio.AioRpcError as error:
        kind = NotHeld if error.code() is grpc.StatusCode.NOT_FOUND else FetchFailed
        raise kind(f"{error.code().name}: {error.details()}") from None
    except asyncio.CancelledError:
        # Closing a channel cancels its calls, which must not look as if the reader was cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise FetchFailed("the connection was closed here") from None


async def _collect(
    stream: AsyncIterator[Chunk], *, limit_bytes: int, stall_s: float | None = STALL_TIMEOUT_S
) -> bytes:
    parts: list[bytes] = []
    total = 0
    while (chunk := await _next(stream, stall_s)) is not None:
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


async def fetch_description(stub: "MeshAsyncStub", mesh_id: bytes, height: int) -> Description:
    """Return what somebody says about its checkpoint of `height` (0: its newest), unchecked.

    Raises NotHeld, FetchFailed, and PeerError for what no checkpoint can look like.
    """
    call = _call(stub, mesh_id, WantDescription(height))
    try:
        stream = aiter(call)
        described, epochs_bytes = parse_description(await _first(stream))
        if height not in (0, described.height):
            raise PeerError("malformed-message", "a description of another height")
        epochs = await _collect(stream, limit_bytes=epochs_bytes)
        if len(epochs) != epochs_bytes:
            raise FetchFailed("the chain of epochs was cut short")
        return replace(described, epochs=epochs)
    finally:
        call.cancel()


async def fetch_chunk(
    stub: "MeshAsyncStub", mesh_id: bytes, height: int, address: bytes, *, size: int
) -> bytes:
    """Return what somebody sends for a chunk, of the right size and otherwise unchecked.

    Waits as long as it takes: whoever asks several holders knows when to stop waiting for one.
    Raises NotHeld, FetchFailed, PeerError("chunk-size") where the answer ends early, and
    PeerError("oversized") before it takes more than `size`.
    """
    call = _call(stub, mesh_id, WantChunk(height, address))
    try:
        data = await _collect(aiter(call), limit_bytes=size, stall_s=None)
        if len(data) != size:
            raise PeerError("chunk-size", f"{len(data)} of {size} bytes, and that was all")
        return data
    finally:
        call.cancel()


async def fetch_holdings(
    stub: "MeshAsyncStub", mesh_id: bytes, height: int, addresses: Sequence[bytes]
) -> Holdings:
    """Return what somebody says that it holds of the chunks `addresses` of a height.

    Raises NotHeld where it knows nothing of that height, FetchFailed, PeerError.
    """
    call = _call(stub, mesh_id, WantHoldings(height))
    try:
        return parse_holdings(await _first(aiter(call)), addresses)
    finally:
        call.cancel()


async def fetch_contacts(stub: "MeshAsyncStub", mesh_id: bytes) -> tuple[Contact, ...]:
    """Return which members somebody says it has links to; raises FetchFailed, PeerError."""
    call = _call(stub, mesh_id, WantContacts())
    try:
        return parse_contacts(await _first(aiter(call)))
    finally:
        call.cancel()


async def fetch_epochs(stub: "MeshAsyncStub", mesh_id: bytes) -> bytes:
    """Return the chain of epochs as far as somebody says it goes, unchecked.

    Raises FetchFailed, and PeerError("oversized") before it takes more than 4 MiB.
    """
    call = _call(stub, mesh_id, WantEpochs())
    try:
        return await _collect(aiter(call), limit_bytes=EPOCHS_BYTES_MAX)
    finally:
        call.cancel()


async def fetch_delta_log(
    stub: "MeshAsyncStub",
    mesh_id: bytes,
    height: int,
    write: Callable[[bytes], object],
    *,
    limit_bytes: int,
) -> int:
    """Hand the bytes of a height's delta log to `write` as they come; returns how many came.

    They are unchecked. Raises NotHeld, FetchFailed, and PeerError("oversized").
    """
    call = _call(stub, mesh_id, WantDeltaLog(height))
    total = 0
    try:
        stream = aiter(call)
        while (chunk := await _next(stream)) is not None:
            total += len(chunk.data)
            if total > limit_bytes:
                raise PeerError("oversized", f"more than the {limit_bytes} bytes that were due")
            await asyncio.to_thread(write, chunk.data)
        return total
    finally:
        call.cancel()


def _call(
    stub: "MeshAsyncStub", mesh_id: bytes, want: Want
) -> "grpc.aio.UnaryStreamCall[FetchRequest, Chunk]":
    """Ask somebody who may well be gone: others are asked instead of waiting for a connection."""
    return stub.Fetch(make_fetch(mesh_id, want))


async def fetch_genesis(
    stub: "MeshAsyncStub", check: Callable[[GenesisParts], int]
) -> tuple[GenesisParts, bytes]:
    """Return the genesis document with its files, and its anchor's bytes.

    `check` sees the document before any anchor arrives: it raises PeerError, or returns how many
    bytes of anchor are due.
    """
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
