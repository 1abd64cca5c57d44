"""Where bytes become messages, on both sides of gRPC: every message of a peer is screened first.

gRPC deserialises before anybody else sees a message, so the screens of wire.py and bulk_wire.py
take the place of its deserialisers: in the server by an interceptor, in the clients by a channel.
A message that is refused arrives as the PeerError that says why; `sound` raises it.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from shoal.node.bulk_wire import CHUNKS, FAREWELLS, FETCHES, JOINS
from shoal.node.look_wire import BACK, LOOKS
from shoal.node.screen import Screen
from shoal.node.strict_channel import StrictChannel
from shoal.node.wire import FRAMES
from shoal.proto.mesh_pb2_grpc import MeshStub

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_LINK, _FETCH, _JOIN, _FAREWELL = (
    f"/shoal.v1.Mesh/{name}" for name in ("Link", "Fetch", "Join", "Farewell")
)
_UNARY: dict[str, Screen[Any]] = {_JOIN: JOINS, _FAREWELL: FAREWELLS, BACK: LOOKS}


class StrictServer(grpc.aio.ServerInterceptor):
    """Screens what the methods of Mesh and Look are sent."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Give the method's handler with another deserialiser."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method if handler is not None else ""
        if method == _LINK:
            return grpc.stream_stream_rpc_method_handler(
                handler.stream_stream, FRAMES.receive, handler.response_serializer
            )
        if method == _FETCH:
            return grpc.unary_stream_rpc_method_handler(
                handler.unary_stream, FETCHES.receive, handler.response_serializer
            )
        if method in _UNARY:
            return grpc.unary_unary_rpc_method_handler(
                handler.unary_unary, _UNARY[method].receive, handler.response_serializer
            )
        other: Handler | None = handler
        return other


def strict_stub(channel: grpc.aio.Channel) -> "MeshAsyncStub":
    """A client of Mesh that believes no answer before it is screened."""
    strict: Any = StrictChannel(channel, {_LINK: FRAMES, _FETCH: CHUNKS})
    stub: MeshAsyncStub = MeshStub(strict)
    return stub
