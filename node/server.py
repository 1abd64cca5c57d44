"""The listening side: gRPC servicers turn bytes into checked values and answer from the node.

Three listeners, each a gRPC server of its own: members are served Mesh and Inspect over mutual TLS,
behind a gate (gate.py); newcomers what they need to become members, over TLS that only this node
shows a leaf for; and people on this machine Inspect, the health service and reflection in the
clear, on loopback.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from shoal.node.admission import Admission
from shoal.node.backend import Backend
from shoal.node.boots import PROOF_METADATA
from shoal.node.bulk import chunks
from shoal.node.bulk_wire import (
    DATA_BYTES_MAX,
    Want,
    WantChunk,
    WantContacts,
    WantDelta,
    WantDeltaLog,
    WantDescription,
    WantEpochs,
    WantGenesis,
    WantHoldings,
    make_contacts,
    make_description,
    make_genesis_header,
    make_holdings,
    parse_fetch,
)
from shoal.node.errors import PeerError, UserError
from shoal.node.gate import Gate
from shoal.node.handover import farewell
from shoal.node.inspect_servicer import InspectServicer
from shoal.node.links import Links
from shoal.node.look_back import serve_looks
from shoal.node.meters import Meters
from shoal.node.screen import sound
from shoal.node.strict import StrictServer
from shoal.node.wire import MESSAGE_BYTES_MAX
from shoal.proto import inspect_pb2, inspect_pb2_grpc, mesh_pb2, mesh_pb2_grpc

T = TypeVar("T")

# Bounds on what strangers can hold open at once; members need one link and a few transfers each.
CONCURRENT_CALLS_MAX = 512
CONNECTIONS_MAX = 1024
# A slower reader than one chunk in so long is none.
READ_MAX_S = 30.0
JOIN_CALLS_MAX = 64
# A newcomer sends a signed request at most, and names what it wants.
NEWCOMER_BYTES_MAX = 1 << 16
SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.max_metadata_size", 8192),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Who connects and says nothing, or not enough, is disconnected; so is who has no call open.
    ("grpc.server_handshake_timeout_ms", 5_000),
    ("grpc.max_connection_idle_ms", 60_000),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
)
JOIN_OPTIONS = (("grpc.max_receive_message_length", NEWCOMER_BYTES_MAX), *SERVER_OPTIONS[1:])


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


async def _abort(context: Any, code: grpc.StatusCode, why: str, proof: bytes = b"") -> NoReturn:
    await context.abort(code, why, ((PROOF_METADATA, proof),) if proof else ())
    raise AssertionError("abort always raises")


class MeshServicer(mesh_pb2_grpc.MeshServicer):
    """What other members ask for."""

    def __init__(self, backend: Backend, links: Links, meters: Meters, gate: Gate) -> None:
        self._backend = backend
        self._links = links
        self._meters = meters
        self._gate = gate
        self._admission = Admission()

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Hold a link that a neighbour dialled."""
        handshake = ExitStack()
        try:
            await self._admit(handshake, "handshake", context)
            await self._links.serve(context, self._gate.caller(context), handshake.close)
        except PeerError as error:
            await self._turn_away(context, error, grpc.StatusCode.FAILED_PRECONDITION)
        except TimeoutError:
            self._refuse("handshake-timeout")
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no handshake in time")
        except grpc.aio.UsageError:
            # The other side hung up while a frame was being written.
            return
        finally:
            handshake.close()

    async def Fetch(
        self, request: mesh_pb2.FetchRequest, context: Any
    ) -> AsyncIterator[mesh_pb2.Chunk]:
        """Stream a delta, a piece of a checkpoint or the genesis."""
        with ExitStack() as call:
            try:
                await self._admit(call, "fetch", context)
                want = parse_fetch(sound(request))
            except PeerError as error:
                await self._turn_away(context, error, grpc.StatusCode.INVALID_ARGUMENT)
            async for chunk in self._fetch(want, request, context):
                yield chunk

    async def _fetch(
        self, want: Want, request: mesh_pb2.FetchRequest, context: Any
    ) -> AsyncIterator[mesh_pb2.Chunk]:
        if not isinstance(want, WantGenesis) and request.mesh_id != self._backend.mesh_id:
            self._refuse("wrong-mesh")
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"wrong mesh: this node is of mesh {self._backend.mesh_id.hex()[:16]}",
            )
        loop, this_call = asyncio.get_running_loop(), asyncio.current_task()
        assert this_call is not None, "a servicer runs in a task"
        try:
            async for chunk in self._answer(want):
                self._meters.sent_bytes["bulk"] += len(chunk.data)
                # Nothing else ends a call whose other side reads no more and stays.
                stalled = loop.call_later(READ_MAX_S, this_call.cancel)
                try:
                    yield chunk
                finally:
                    stalled.cancel()
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
            case WantContacts():
                yield make_contacts(self._backend.contacts())
            case WantEpochs():
                for chunk in chunks(self._backend.epochs()):
                    yield chunk
            case WantDeltaLog(height):
                async for chunk in _stream(_found(await holdings.delta_log(height))):
                    yield chunk

    async def Join(self, request: mesh_pb2.JoinRequest, context: Any) -> mesh_pb2.JoinReply:
        """Hand a request about membership (Join, Leave, Approve, Evict) to the validators."""
        try:
            with ExitStack() as call:
                await self._admit(call, "join", context)
                reason = await self._backend.submit(sound(request).operation)
        except PeerError as error:
            reason = str(error)
        if reason:
            self._refuse("join-refused")
        return mesh_pb2.JoinReply(accepted=not reason, reason=reason)

    async def Farewell(
        self, request: mesh_pb2.FarewellRequest, context: Any
    ) -> mesh_pb2.FarewellReply:
        """Count without the caller from now on, who says that it is about to leave."""
        try:
            sound(request)
            farewell(self._links, self._gate.caller(context).node_id)
        except PeerError as error:
            await self._turn_away(context, error, grpc.StatusCode.INVALID_ARGUMENT)
        return mesh_pb2.FarewellReply()

    async def _admit(self, call: ExitStack, kind: str, context: Any) -> None:
        """Count the call until `call` is closed; raises PeerError where there are too many."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(call.enter_context(self._admission.call(kind, context.peer(), now)))

    async def _turn_away(self, context: Any, error: PeerError, code: grpc.StatusCode) -> NoReturn:
        self._refuse(error.reason)
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if error.reason == "busy" else code
        await _abort(context, code, str(error), error.proof)

    def _refuse(self, reason: str) -> None:
        self._meters.rejected[reason] += 1


class JoinServicer(MeshServicer):
    """What somebody may ask for who is no member: what it takes to become one."""

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """Refuse: members have a port of their own."""
        self._refuse("not-a-member")
        await _abort(context, grpc.StatusCode.PERMISSION_DENIED, "this is the port for newcomers")

    async def Farewell(
        self, request: mesh_pb2.FarewellRequest, context: Any
    ) -> mesh_pb2.FarewellReply:
        """Refuse: who is no member cannot leave."""
        await _abort(context, grpc.StatusCode.PERMISSION_DENIED, "this is the port for newcomers")

    async def _answer(self, want: Want) -> AsyncIterator[mesh_pb2.Chunk]:
        # Checkpoints and what a joiner starts from; deltas are between members.
        if isinstance(want, WantDelta | WantDeltaLog):
            raise _NotHereError
        async for chunk in super()._answer(want):
            yield chunk


class Server:
    """The three listeners of one node."""

    def __init__(self, backend: Backend, links: Links, meters: Meters) -> None:
        self._trust = links.trust
        self.gate = gate = Gate(links.trust, meters)
        self._members = grpc.aio.server(
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
            interceptors=(gate, StrictServer()),
        )
        self._newcomers = grpc.aio.server(
            options=JOIN_OPTIONS,
            maximum_concurrent_rpcs=JOIN_CALLS_MAX,
            interceptors=(StrictServer(),),
        )
        self._local = grpc.aio.server(
            options=SERVER_OPTIONS, maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX
        )
        mesh = MeshServicer(backend, links, meters, gate)
        mesh_pb2_grpc.add_MeshServicer_to_server(mesh, self._members)
        join = JoinServicer(backend, links, meters, gate)
        mesh_pb2_grpc.add_MeshServicer_to_server(join, self._newcomers)
        serve_looks(self._members, backend, links.trust, gate)
        inspect = InspectServicer(backend.status, backend.explain)
        for server in (self._members, self._local):
            inspect_pb2_grpc.add_InspectServicer_to_server(inspect, server)
        self._health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._local)
        self._inspect = inspect_pb2.DESCRIPTOR.services_by_name["Inspect"].full_name
        self._started: list[grpc.aio.Server] = []
        reflection.enable_server_reflection(
            (
                self._inspect,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            self._local,
        )

    async def start(self, listen: str, *, join: str = "", inspect: str = "") -> None:
        """Listen for members, and where an address is given for newcomers and for this machine.

        Raises UserError when a port is taken or the address is not this machine's.
        """
        mutual, one_sided = self._trust.mutual_credentials(), self._trust.join_credentials()
        await self._listen(
            self._members, "listen", listen, lambda it: it.add_secure_port(listen, mutual)
        )
        if join:
            await self._listen(
                self._newcomers, "join", join, lambda it: it.add_secure_port(join, one_sided)
            )
        if inspect:
            await self._listen(
                self._local, "inspect", inspect, lambda it: it.add_insecure_port(inspect)
            )
        for service in ("", self._inspect):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def _listen(
        self,
        server: grpc.aio.Server,
        setting: str,
        address: str,
        bind: Callable[[grpc.aio.Server], int],
    ) -> None:
        try:
            bind(server)
            await server.start()
        except RuntimeError:
            await self.stop()
            raise UserError(
                f"cannot listen on {address}: the port is in use or the address is not this "
                f"machine's; stop the other process or set another {setting} under [node]"
            ) from None
        self._started.append(server)

    async def stop(self) -> None:
        """Say goodbye to health checks, then close."""
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace=0.5) for server in self._started))
        self._started.clear()
