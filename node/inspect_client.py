"""Asking a node about itself: the client side of shoal.v1.Inspect and of the health service.

Every call has a deadline, and what goes wrong becomes one line that says what to do next.
"""

import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal.node.addresses import split_address, split_peer
from shoal.node.config import load_settings
from shoal.node.errors import PeerError, UnreachableError, UserError
from shoal.node.screen import Screen, sound
from shoal.node.strict_channel import StrictChannel
from shoal.proto import inspect_pb2, inspect_pb2_grpc

if TYPE_CHECKING:
    from shoal.proto.inspect_pb2_grpc import InspectAsyncStub

StatusReply = inspect_pb2.StatusReply
CheckpointReply = inspect_pb2.Checkpoint
PeerReply = inspect_pb2.Peer
ExplainReply = inspect_pb2.ExplainReply

DEADLINE_S = 5.0
STATUS_BYTES_MAX = 4 << 20
# A joiner asks nodes that nobody vouches for. Reasons and kinds are words of ours, a few dozen.
STATUSES = Screen(
    StatusReply,
    StatusReply.FromString,
    bytes_max=STATUS_BYTES_MAX,
    counts={
        "StatusReply.checkpoints": 64,
        "Checkpoint.signers": 64,
        "StatusReply.peers": 1024,
        "Peer.accusers": 64,
        "StatusReply.rejected": 1024,
        "StatusReply.sent_bytes": 64,
        "StatusReply.received_bytes": 64,
        "StatusReply.warnings": 16,
        "StatusReply.archived_heights": 256,
        "StatusReply.evicted": 1024,
    },
    unknown_max=64,
)
EXPLANATIONS = Screen(
    ExplainReply,
    ExplainReply.FromString,
    bytes_max=STATUS_BYTES_MAX,
    counts={"ExplainReply.members": 1024},
    unknown_max=64,
)
_SCREENS: dict[str, Screen[Any]] = {
    "/shoal.v1.Inspect/Status": STATUSES,
    "/shoal.v1.Inspect/Watch": STATUSES,
    "/shoal.v1.Inspect/Explain": EXPLANATIONS,
}

# A proxy from the environment must not stand between two nodes, and a reply is small.
_CHANNEL_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", STATUS_BYTES_MAX),
]


def open_channel(address: str, member: Path | None = None) -> grpc.aio.Channel:
    """A channel to where a node can be inspected: host:port, or the node's directory.

    member: the directory of a node that asks as a member, from anywhere; then it is ID@host:port of
    the other's members' port. Raises UserError when it is none of these.
    """
    if member is not None:
        return _as_member(address, member)
    if Path(address).is_dir():
        address = load_settings(Path(address)).node.inspect_listen
    try:
        split_address(address)
    except ValueError as error:
        raise UserError(str(error)) from None
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def _as_member(target: str, member: Path) -> grpc.aio.Channel:
    # With what it needs, which `shoal status` of this machine does not.
    from shoal.node.certificates import issue_leaf
    from shoal.node.channels import open_channel as open_secured
    from shoal.node.identity import Identity

    try:
        peer, address = split_peer(target)
    except ValueError as error:
        raise UserError(str(error)) from None
    leaf = issue_leaf(Identity.load(member / "identity.key"), time.time())
    return open_secured(address, peer, leaf)


def _stub(channel: grpc.aio.Channel) -> "InspectAsyncStub":
    strict: Any = StrictChannel(channel, _SCREENS)
    stub: InspectAsyncStub = inspect_pb2_grpc.InspectStub(strict)
    return stub


async def fetch_status(
    address: str, *, member: Path | None = None, deadline_s: float = DEADLINE_S
) -> StatusReply:
    """The node's state now; raises UnreachableError."""
    async with open_channel(address, member) as channel:
        return await ask_status(channel, address, deadline_s=deadline_s)


async def fetch_explanation(
    address: str, number: int, *, deadline_s: float = DEADLINE_S
) -> ExplainReply:
    """What the node knows about the checkpoint of a round; raises UnreachableError."""
    async with open_channel(address) as channel:
        request = inspect_pb2.ExplainRequest(round=number)
        try:
            return sound(await _stub(channel).Explain(request, timeout=deadline_s))
        except grpc.aio.AioRpcError as error:
            raise explain_failure(address, error, deadline_s) from None
        except PeerError as error:
            raise UnreachableError(f"what {address} answers explains nothing: {error}") from None


async def ask_status(
    channel: grpc.aio.Channel, address: str, *, deadline_s: float = DEADLINE_S
) -> StatusReply:
    """The same over a channel that the caller keeps open."""
    try:
        reply = await _stub(channel).Status(inspect_pb2.StatusRequest(), timeout=deadline_s)
        return sound(reply)
    except grpc.aio.AioRpcError as error:
        raise explain_failure(address, error, deadline_s) from None
    except PeerError as error:
        raise UnreachableError(f"what {address} answers is no node's status: {error}") from None


async def watch_status(
    address: str, *, member: Path | None = None, interval_ms: int = 1000
) -> AsyncIterator[StatusReply]:
    """The node's state again and again until the node ends; raises UnreachableError then."""
    async with open_channel(address, member) as channel:
        # The stream itself has no deadline, so the first question is asked with one.
        yield await ask_status(channel, address)
        request = inspect_pb2.WatchRequest(interval_ms=interval_ms)
        try:
            async for reply in _stub(channel).Watch(request):
                yield sound(reply)
        except grpc.aio.AioRpcError as error:
            raise explain_failure(address, error, DEADLINE_S) from None
        except PeerError as error:
            raise UnreachableError(f"what {address} answers is no node's status: {error}") from None
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
            "or give its directory or the inspect address that it printed when it started"
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
