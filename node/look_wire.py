"""The messages of `Look` (proto/look.proto): protobuf on one side, checked values on the other."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from shoal.node.errors import PeerError
from shoal.node.look import Sight
from shoal.node.screen import Screen, sound
from shoal.node.strict_channel import StrictChannel
from shoal.node.wire import ADDRESS_BYTES_MAX, SEQUENCE_MAX
from shoal.proto import look_pb2
from shoal.proto.look_pb2_grpc import LookStub

if TYPE_CHECKING:
    from shoal.proto.look_pb2_grpc import LookAsyncStub

BACK = "/shoal.v1.Look/Back"
# A request says nothing at all: any field in it is refused as one that the schema does not have.
LOOK_BYTES_MAX = 16
LOOK_REPLY_BYTES_MAX = 1024
LOOK_WORD_BYTES_MAX = 64
LOOKS = Screen(look_pb2.LookRequest, look_pb2.LookRequest.FromString, bytes_max=LOOK_BYTES_MAX)
# A newer node may say more than this one reads: telling versions apart is what it is asked for.
LOOK_REPLIES = Screen(
    look_pb2.LookReply,
    look_pb2.LookReply.FromString,
    bytes_max=LOOK_REPLY_BYTES_MAX,
    unknown_max=16,
)


@dataclass(frozen=True, slots=True)
class LookedBack:
    """What a member answers. outcome: a Sight, or a word of a newer node's; times in seconds."""

    outcome: str
    address: str
    protocol: int
    version: str
    received: float
    answered: float


def make_looked_back(looked: LookedBack) -> look_pb2.LookReply:
    """Return the reply that says this."""
    return look_pb2.LookReply(
        outcome=looked.outcome,
        address=looked.address,
        protocol=looked.protocol,
        version=looked.version,
        received_us=int(looked.received * 1e6),
        answered_us=int(looked.answered * 1e6),
    )


def parse_looked_back(reply: look_pb2.LookReply) -> LookedBack:
    """Check a reply; raises PeerError."""
    for text, limit in (
        (reply.outcome, LOOK_WORD_BYTES_MAX),
        (reply.version, LOOK_WORD_BYTES_MAX),
        (reply.address, ADDRESS_BYTES_MAX),
    ):
        if len(text.encode()) > limit or not text.isprintable():
            raise PeerError("malformed-message", "a word of a look")
    if max(reply.received_us, reply.answered_us) > SEQUENCE_MAX:
        raise PeerError("malformed-message", "the time of a look")
    return LookedBack(
        outcome=reply.outcome,
        address=reply.address,
        protocol=reply.protocol,
        version=reply.version,
        received=reply.received_us / 1e6,
        answered=reply.answered_us / 1e6,
    )


async def ask_to_look_back(channel: grpc.aio.Channel, deadline_s: float) -> LookedBack:
    """Ask whoever the channel leads to; raises AioRpcError, or PeerError for a bad answer."""
    strict: Any = StrictChannel(channel, {BACK: LOOK_REPLIES})
    stub: LookAsyncStub = LookStub(strict)
    reply = await stub.Back(look_pb2.LookRequest(), timeout=deadline_s)
    return parse_looked_back(sound(reply))


def seen_as_intended(looked: LookedBack) -> bool:
    """Whether the member reached the caller at its own address."""
    return looked.outcome == Sight.ANSWERS
