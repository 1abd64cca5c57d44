"""Asking a node about itself: the client side of shoal.v1.Inspect and of the health service.

Every call has a deadline, and what goes wrong becomes one line that says what to do next.
"""

import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.node.config import split_address
from shoal.node.errors import UnreachableError, UserError
from shoal.proto import inspect_pb2, inspect_pb2_grpc

StatusReply = inspect_pb2.StatusReply
CheckpointReply = inspect_pb2.Checkpoint
PeerReply = inspect_pb2.Peer
ExplainReply = inspect_pb2.ExplainReply

DEADLINE_S = 5.0

# A proxy from the environment must not stand between two nodes, and a reply is small.
_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 4 << 20),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to host:port; raises UserError when that is not an address."""
    try:
        split_address(address)
    except ValueError as error:
        raise UserError(str(error)) from None
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


async def fetch_status(address: str, *, deadline_s: float = DEADLINE_S) -> StatusReply:
    """The node's state now; raises UnreachableError."""
    async with open_channel(address) as channel:
        return await ask_status(channel, address, deadline_s=deadline_s)


async def fetch_explanation(
    address: str, number: int, *, deadline_s: float = DEADLINE_S
) -> ExplainReply:
    """What the node knows about the checkpoint of a round; raises UnreachableError."""
    async with open_channel(address) as channel:
        stub = inspect_pb2_grpc.InspectStub(channel)
        try:
            request = inspect_pb2.ExplainRequest(round=number)
            return await stub.Explain(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            raise explain_failure(address, error, deadline_s) from None


async def ask_status(
    channel: grpc.aio.Channel, address: str, *, deadline_s: float = DEADLINE_S
) -> StatusReply:
    """The same over a channel that the caller keeps open."""
    stub = inspect_pb2_grpc.InspectStub(channel)
    try:
        return await stub.Status(inspect_pb2.StatusRequest(), timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        raise explain_failure(address, error, deadline_s) from None


async def watch_status(address: str, *, interval_ms: int = 1000) -> AsyncIterator[StatusReply]:
    """The node's state again and again until the node ends; raises UnreachableError then."""
    async with open_channel(address) as channel:
        # The stream itself has no deadline, so the first question is asked with one.
        yield await ask_status(channel, address)
        stub = inspect_pb2_grpc.InspectStub(channel)
        try:
            async for reply in stub.Watch(inspect_pb2.WatchRequest(interval_ms=interval_ms)):
                yield reply
        except grpc.aio.AioRpcError as error:
            raise explain_failure(address, error, DEADLINE_S) from None
    raise UnreachableError(f"the node at {address} has ended the stream; it is stopping")


async def check_health(address: str, *, service: str, deadline_s: float = DEADLINE_S) -> str:
    """SERVING, NOT_SERVING, UNKNOWN or SERVICE_UNKNOWN, as the node's health service says."""
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            reply = await stub.Check(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise explain_failure(address, error, deadline_s) from None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def explain_failure(
    address: str, error: grpc.aio.AioRpcError, deadline_s: float
) -> UnreachableError:
    """One line for a call that failed: what happened and what to try."""
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnreachableError(
            f"no node answers at {address}; start one with `shoal run DIR`, "
            "or give the address that it printed when it started"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return UnreachableError(
            f"{address} did not answer within {deadline_s:g} s; "
            "check the address, and that the machine is not overloaded"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnreachableError(f"{address} answers, but it is not a Shoal node of this version")
    details = " ".join((error.details() or "no details").split())[:200]
    return UnreachableError(f"{address} refused: {code.name}: {details}")


def as_plain(message: Message) -> dict[str, Any]:
    """The message for `--json`: every field under its own name, numbers as numbers, bytes as hex.

    protobuf's own JSON turns 64-bit integers into strings and bytes into base64, which is of no
    use to jq. A float that JSON has no word for (NaN, infinity) becomes null.
    """
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            plain[field.name] = {str(key): value[key] for key in sorted(value)}
        elif field.is_repeated:
            plain[field.name] = [_plain_value(item) for item in value]
        else:
            plain[field.name] = _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    if isinstance(value, Message):
        return as_plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
