"""The listening side: gRPC servicers turn bytes into checked values and answer from the node.

One port serves Mesh, Inspect, the standard health service and reflection.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from shoal.node.bulk import chunks
from shoal.node.bulk_wire import (
    DATA_BYTES_MAX,
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
    make_genesis_header,
    make_holdings,
    parse_fetch,
)
from shoal.node.config import is_loopback
from shoal.node.errors import PeerError, UserError
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.wire import MESSAGE_BYTES_MAX, OPERATION_BYTES_MAX
from shoal.proto import inspect_pb2, inspect_pb2_grpc, mesh_pb2, mesh_pb2_grpc

log = structlog.get_logger()
T = TypeVar("T")

# Bounds on what strangers can hold open at once; members need one link and a few transfers each.
CONCURRENT_CALLS_MAX = 512
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8192),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
WATCH_INTERVAL_MS_MIN = 100


class Serving(Protocol):
    """What the servicers ask of the checkpoints that a node keeps (node/holdings.py)."""

    async def describe(self, height: int) -> Description | None:
        """Return what the checkpoint of a height is (0: the newest whole one), or None."""

    async def chunk(self, height: int, address: bytes) -> bytes | None:
        """Return one chunk, or None."""

    async def delta_log(self, height: int) -> Path | None:
        """Return where a height's delta log lies, or None."""

    async def held(self, height: int) -> tuple[Holdings, tuple[bytes, ...]] | None:
        """Return which pieces of a height are here, and all its addresses, or None."""


class Backend(Protocol):
    """What the servicers ask of the node."""

    mesh_id: bytes

    @property
    def holdings(self) -> Serving:
        """The checkpoints that this node keeps."""

    async def delta_blob(self, member: bytes, sequence: int, delta_id: bytes) -> bytes | None:
        """Return a delta that is held, or None."""

    async def genesis(self) -> tuple[GenesisParts, bytes]:
        """Return the genesis and its anchor."""

    async def submit(self, operation: bytes) -> str:
        """Hand a signed operation to the validators; returns "" or why not."""

    def status(self) -> inspect_pb2.StatusReply:
        """Return everything that there is to know about this node."""

    def explain(self, number: int) -> inspect_pb2.ExplainReply:
        """Return how the checkpoint of a round came about."""


class _NotHereError(Exception):
    """What is asked for is not held here."""


def _found(value: T | None) -> T:
    if value is None:
        raise _NotHereError
    return value


async def _stream(path: Path) -> AsyncIterator[mesh_pb2.Chunk]:
    """A file piece by piece; one that is swept away meanwhile is read to its end all the same."""
    try:
        file = await asyncio.to_thread(path.open, "rb")
    except FileNotFoundError:
        raise _NotHereError from None
    with file:
        while data := await asyncio.to_thread(file.read, DATA_BYTES_MAX):
            yield mesh_pb2.Chunk(data=data)


async def _abort(context: Any, code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
    raise AssertionError("abort always raises")


class MeshServicer(mesh_pb2_grpc.MeshServicer):
    """What other members ask for."""

    def __init__(self, backend: Backend, links: Links, meters: Meters) -> None:
        self._backend = backend
        self._links = links
        self._meters = meters

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Hold a link that a neighbour dialled."""
        try:
            await self._links.serve(context)
        except PeerError as error:
            self._refuse(error.reason)
            await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except TimeoutError:
            self._refuse("handshake-timeout")
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no handshake in time")
        except grpc.aio.UsageError:
            # The other side hung up while a frame was being written.
            return

    async def Fetch(
        self, request: mesh_pb2.FetchRequest, context: Any
    ) -> AsyncIterator[mesh_pb2.Chunk]:
        """Stream a delta, a piece of a checkpoint or the genesis."""
        try:
            want = parse_fetch(request)
        except PeerError as error:
            self._refuse(error.reason)
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if not isinstance(want, WantGenesis) and request.mesh_id != self._backend.mesh_id:
            self._refuse("wrong-mesh")
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"wrong mesh: this node is of mesh {self._backend.mesh_id.hex()[:16]}",
            )
        try:
            async for chunk in self._answer(want):
                self._meters.sent_bytes["bulk"] += len(chunk.data)
                yield chunk
        except _NotHereError:
            await _abort(context, grpc.StatusCode.NOT_FOUND, "this node does not hold it")

    async def _answer(self, want: Want) -> AsyncIterator[mesh_pb2.Chunk]:
        holdings = self._backend.holdings
        match want:
            case WantDelta(reference):
                blob = _found(await self._backend.delta_blob(*reference))
                for chunk in chunks(blob):
                    yield chunk
            case WantGenesis():
                genesis, data = await self._backend.genesis()
                yield make_genesis_header(genesis)
                for chunk in chunks(data):
                    yield chunk
            case WantDescription(height):
                described = _found(await holdings.describe(height))
                yield make_description(described)
                for chunk in chunks(described.epochs):
                    yield chunk
            case WantChunk(height, address):
                yield mesh_pb2.Chunk(data=_found(await holdings.chunk(height, address)))
            case WantHoldings(height):
                yield make_holdings(*_found(await holdings.held(height)))
            case WantDeltaLog(height):
                async for chunk in _stream(_found(await holdings.delta_log(height))):
                    yield chunk

    async def Join(self, request: mesh_pb2.JoinRequest, context: Any) -> mesh_pb2.JoinReply:
        """Hand a request about membership (Join, Leave, Approve, Evict) to the validators."""
        if len(request.operation) > OPERATION_BYTES_MAX:
            reason = "the request is too long"
        else:
            reason = await self._backend.submit(request.operation)
        if reason:
            self._refuse("join-refused")
        return mesh_pb2.JoinReply(accepted=not reason, reason=reason)

    def _refuse(self, reason: str) -> None:
        self._meters.rejected[reason] += 1


class InspectServicer(inspect_pb2_grpc.InspectServicer):
    """What people ask for."""

    def __init__(
        self,
        status: Callable[[], inspect_pb2.StatusReply],
        explain: Callable[[int], inspect_pb2.ExplainReply],
    ) -> None:
        self._status = status
        self._explain = explain

    async def Status(
        self, request: inspect_pb2.StatusRequest, context: Any
    ) -> inspect_pb2.StatusReply:
        """Return this node's state."""
        return self._status()

    async def Watch(
        self, request: inspect_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[inspect_pb2.StatusReply]:
        """Return this node's state again and again."""
        interval_ms = max(WATCH_INTERVAL_MS_MIN, request.interval_ms or 1000)
        while True:
            yield self._status()
            await asyncio.sleep(interval_ms / 1000)

    async def Explain(
        self, request: inspect_pb2.ExplainRequest, context: Any
    ) -> inspect_pb2.ExplainReply:
        """Return how the checkpoint of a round came about."""
        return self._explain(request.round)


class Server:
    """The gRPC server of one node."""

    def __init__(self, backend: Backend, links: Links, meters: Meters) -> None:
        self._server = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX
        )
        self._health = HealthServicer()
        mesh_pb2_grpc.add_MeshServicer_to_server(MeshServicer(backend, links, meters), self._server)
        inspect_pb2_grpc.add_InspectServicer_to_server(
            InspectServicer(backend.status, backend.explain), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [
            service.full_name
            for service in (
                mesh_pb2.DESCRIPTOR.services_by_name["Mesh"],
                inspect_pb2.DESCRIPTOR.services_by_name["Inspect"],
            )
        ]
        reflection.enable_server_reflection(
            (
                *self._services,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )

    async def start(self, listen: str, *, insecure: bool) -> None:
        """Listen; raises UserError when the port is taken or the address not allowed."""
        if not is_loopback(listen) and not insecure:
            raise UserError(
                f"{listen} is reachable from other machines and there is no TLS yet; listen on "
                "127.0.0.1, or set insecure = true under [node] if the network is trusted"
            )
        try:
            self._server.add_insecure_port(listen)
            await self._server.start()
        except RuntimeError:
            raise UserError(
                f"cannot listen on {listen}: the port is in use or the address is not this "
                "machine's; stop the other process or set another listen under [node]"
            ) from None
        for service in ("", *self._services):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        if not is_loopback(listen):
            log.warning("listening.insecure", listen=listen, why="no TLS; insecure = true was set")

    async def stop(self) -> None:
        """Say goodbye to health checks, then close."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=0.5)
