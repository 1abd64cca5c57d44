"""Protobuf on one side, checked values on the other: nothing behind this file sees a `_pb2`.

Every bound on what a peer may put into a frame of a link stands here, as a constant and a check;
those of bulk transfers stand in bulk_wire.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shoal.gossip.liveness import RUMOURS_MAX, Message
from shoal.node.errors import PeerError
from shoal.node.liveness_wire import make_liveness, parse_liveness
from shoal.node.screen import Screen
from shoal.node.statements import BOOT_STATEMENT_BYTES
from shoal.proto import mesh_pb2

PROTOCOL_VERSION = 11

# Above the largest frame or chunk plus its envelope, far below what hurts.
MESSAGE_BYTES_MAX = 4 << 20
ADDRESS_BYTES_MAX = 255
ANNOUNCED_MAX = 1024
MEMBERS_MAX = 1024
BITMAP_BYTES_MAX = 128
CONSENSUS_BYTES_MAX = 1 << 20
# Of the messages in one frame.
CONSENSUS_MESSAGES_MAX = 1024
CONSENSUS_FRAME_BYTES_MAX = 2 << 20
OPERATION_BYTES_MAX = 1 << 19
SEQUENCE_MAX = 2**62

# A full frame of consensus is the largest; announcements and summaries are far below.
FRAME_BYTES_MAX = CONSENSUS_FRAME_BYTES_MAX + 16 * CONSENSUS_MESSAGES_MAX

Frame: TypeAlias = mesh_pb2.LinkFrame
FRAMES = Screen(
    Frame,
    Frame.FromString,
    bytes_max=FRAME_BYTES_MAX,
    counts={
        "LinkFrame.consensus": CONSENSUS_MESSAGES_MAX,
        "Announce.deltas": ANNOUNCED_MAX,
        "Summary.members": MEMBERS_MAX,
        "Liveness.alive": RUMOURS_MAX,
        "Liveness.suspicions": RUMOURS_MAX,
    },
)
# (member, sequence, delta id); an empty id in a request takes whatever stands there.
Reference: TypeAlias = tuple[bytes, int, bytes]
# member -> (contiguous up to, bitmap of what is held beyond)
SummaryMap: TypeAlias = Mapping[bytes, tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of a link, both ways."""

    protocol: int
    mesh_id: bytes
    node_id: bytes
    nonce: bytes
    address: str
    join_address: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """The second frame of a link: a signature over the other side's nonce, and a signed boot."""

    signature: bytes
    boot: bytes


@dataclass(frozen=True, slots=True)
class Announced:
    """The sender holds these deltas."""

    deltas: Sequence[Reference]


@dataclass(frozen=True, slots=True)
class SummaryMessage:
    """Everything that the sender holds or has settled, in short."""

    committed_height: int
    members: SummaryMap


@dataclass(frozen=True, slots=True)
class ConsensusMessages:
    """Messages of consensus/messages.py, each verbatim, in the order in which they were sent."""

    messages: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Comes back as a pong."""

    stamp: int


@dataclass(frozen=True, slots=True)
class Pong:
    """What came back."""

    stamp: int


LinkMessage: TypeAlias = (
    Hello | Proof | Announced | SummaryMessage | ConsensusMessages | Ping | Pong | Message
)


def require(condition: bool, what: str) -> None:
    """Raise PeerError("malformed-message") with `what` unless the condition holds."""
    if not condition:
        raise PeerError("malformed-message", what)


def parse_reference(reference: mesh_pb2.DeltaReference, *, id_required: bool) -> Reference:
    """Check the name of a delta; raises PeerError."""
    require(len(reference.member) == 32, "a member id is not 32 bytes")
    require(1 <= reference.sequence <= SEQUENCE_MAX, "a sequence is out of range")
    sizes = (32,) if id_required else (0, 32)
    require(len(reference.delta_id) in sizes, "a delta id is not 32 bytes")
    return reference.member, reference.sequence, reference.delta_id


def _parse_hello(hello: mesh_pb2.Hello) -> Hello:
    for field in (hello.mesh_id, hello.node_id, hello.nonce):
        require(len(field) == 32, "a hello with a field that is not 32 bytes")
    for address in (hello.address, hello.join_address):
        require(len(address.encode()) <= ADDRESS_BYTES_MAX, "an address is too long")
    return Hello(
        hello.protocol,
        hello.mesh_id,
        hello.node_id,
        hello.nonce,
        hello.address,
        hello.join_address,
    )


def _parse_summary(summary: mesh_pb2.Summary) -> SummaryMessage:
    require(len(summary.members) <= MEMBERS_MAX, "too many members in a summary")
    require(summary.committed_height <= SEQUENCE_MAX, "a height is out of range")
    members: dict[bytes, tuple[int, bytes]] = {}
    for entry in summary.members:
        require(len(entry.member) == 32, "a member id is not 32 bytes")
        require(entry.contiguous <= SEQUENCE_MAX, "a sequence is out of range")
        require(len(entry.bitmap) <= BITMAP_BYTES_MAX, "a bitmap is too long")
        members[entry.member] = (entry.contiguous, entry.bitmap)
    return SummaryMessage(summary.committed_height, members)


def _parse_consensus(messages: tuple[bytes, ...]) -> ConsensusMessages:
    require(len(messages) <= CONSENSUS_MESSAGES_MAX, "too many consensus messages in a frame")
    sizes = [len(message) for message in messages]
    require(max(sizes) <= CONSENSUS_BYTES_MAX, "a consensus message is too long")
    require(sum(sizes) <= CONSENSUS_FRAME_BYTES_MAX, "too long a frame of consensus messages")
    return ConsensusMessages(messages)


def parse_frame(frame: Frame) -> LinkMessage:
    """Check one frame of a link; raises PeerError for anything that is not allowed."""
    kind = frame.WhichOneof("kind")
    if frame.consensus:
        require(kind is None, "a frame of two kinds")
        return _parse_consensus(tuple(frame.consensus))
    if kind == "hello":
        return _parse_hello(frame.hello)
    if kind == "proof":
        require(len(frame.proof.signature) == 64, "a signature is not 64 bytes")
        require(len(frame.proof.boot) == BOOT_STATEMENT_BYTES, "a boot of the wrong length")
        return Proof(frame.proof.signature, frame.proof.boot)
    if kind == "announce":
        require(len(frame.announce.deltas) <= ANNOUNCED_MAX, "too many deltas announced")
        return Announced(
            tuple(parse_reference(delta, id_required=True) for delta in frame.announce.deltas)
        )
    if kind == "summary":
        return _parse_summary(frame.summary)
    if kind == "ping":
        return Ping(frame.ping.stamp)
    if kind == "pong":
        return Pong(frame.pong.stamp)
    if kind == "liveness":
        return parse_liveness(frame.liveness)
    raise PeerError("malformed-message", "a frame of an unknown kind")


def kind_of(frame: Frame) -> str:
    """What a frame is counted as."""
    return frame.WhichOneof("kind") or ("consensus" if frame.consensus else "unknown")


def make_frame(message: LinkMessage) -> Frame:
    """Return the frame that carries `message`."""
    match message:
        case Hello(protocol, mesh_id, node_id, nonce, address, join_address):
            return Frame(
                hello=mesh_pb2.Hello(
                    protocol=protocol,
                    mesh_id=mesh_id,
                    node_id=node_id,
                    nonce=nonce,
                    address=address,
                    join_address=join_address,
                )
            )
        case Proof(signature, boot):
            return Frame(proof=mesh_pb2.Proof(signature=signature, boot=boot))
        case Announced(deltas):
            return Frame(
                announce=mesh_pb2.Announce(deltas=[make_reference(delta) for delta in deltas])
            )
        case SummaryMessage(height, members):
            return Frame(
                summary=mesh_pb2.Summary(
                    committed_height=height,
                    members=[
                        mesh_pb2.MemberSummary(member=member, contiguous=upto, bitmap=bitmap)
                        for member, (upto, bitmap) in sorted(members.items())
                    ],
                )
            )
        case ConsensusMessages(messages):
            return Frame(consensus=messages)
        case Ping(stamp):
            return Frame(ping=mesh_pb2.Ping(stamp=stamp))
        case Pong(stamp):
            return Frame(pong=mesh_pb2.Ping(stamp=stamp))
        case Message():
            return Frame(liveness=make_liveness(message))


def make_reference(reference: Reference) -> mesh_pb2.DeltaReference:
    """Return the message that names a delta."""
    member, sequence, delta_id = reference
    return mesh_pb2.DeltaReference(member=member, sequence=sequence, delta_id=delta_id)
