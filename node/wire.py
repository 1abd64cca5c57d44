"""Protobuf on one side, checked values on the other: nothing behind this file sees a `_pb2`.

Every bound on what a peer may put into a message stands here, as a constant and a check.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shoal.node.errors import PeerError
from shoal.node.statements import BOOT_STATEMENT_BYTES
from shoal.proto import mesh_pb2

PROTOCOL_VERSION = 2

CHUNK_BYTES = 1 << 20
# Above the largest frame or chunk plus its envelope, far below what hurts.
MESSAGE_BYTES_MAX = 4 << 20
ADDRESS_BYTES_MAX = 255
ANNOUNCED_MAX = 1024
MEMBERS_MAX = 1024
BITMAP_BYTES_MAX = 128
CONSENSUS_BYTES_MAX = 1 << 20
OPERATION_BYTES_MAX = 1 << 19
CERTIFICATE_BYTES_MAX = 1 << 16
SETTLED_BYTES_MAX = 1 << 20
SEQUENCE_MAX = 2**62

Frame: TypeAlias = mesh_pb2.LinkFrame
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
class ConsensusMessage:
    """One message of consensus/messages.py, verbatim."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Comes back as a pong."""

    stamp: int


@dataclass(frozen=True, slots=True)
class Pong:
    """What came back."""

    stamp: int


LinkMessage: TypeAlias = Hello | Proof | Announced | SummaryMessage | ConsensusMessage | Ping | Pong


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise PeerError("malformed-message", what)


def _parse_reference(reference: mesh_pb2.DeltaReference, *, id_required: bool) -> Reference:
    _require(len(reference.member) == 32, "a member id is not 32 bytes")
    _require(1 <= reference.sequence <= SEQUENCE_MAX, "a sequence is out of range")
    sizes = (32,) if id_required else (0, 32)
    _require(len(reference.delta_id) in sizes, "a delta id is not 32 bytes")
    return reference.member, reference.sequence, reference.delta_id


def _parse_hello(hello: mesh_pb2.Hello) -> Hello:
    for field in (hello.mesh_id, hello.node_id, hello.nonce):
        _require(len(field) == 32, "a hello with a field that is not 32 bytes")
    _require(len(hello.address.encode()) <= ADDRESS_BYTES_MAX, "an address is too long")
    return Hello(hello.protocol, hello.mesh_id, hello.node_id, hello.nonce, hello.address)


def _parse_summary(summary: mesh_pb2.Summary) -> SummaryMessage:
    _require(len(summary.members) <= MEMBERS_MAX, "too many members in a summary")
    _require(summary.committed_height <= SEQUENCE_MAX, "a height is out of range")
    members: dict[bytes, tuple[int, bytes]] = {}
    for entry in summary.members:
        _require(len(entry.member) == 32, "a member id is not 32 bytes")
        _require(entry.contiguous <= SEQUENCE_MAX, "a sequence is out of range")
        _require(len(entry.bitmap) <= BITMAP_BYTES_MAX, "a bitmap is too long")
        members[entry.member] = (entry.contiguous, entry.bitmap)
    return SummaryMessage(summary.committed_height, members)


def parse_frame(frame: Frame) -> LinkMessage:
    """Check one frame of a link; raises PeerError for anything that is not allowed."""
    kind = frame.WhichOneof("kind")
    if kind == "hello":
        return _parse_hello(frame.hello)
    if kind == "proof":
        _require(len(frame.proof.signature) == 64, "a signature is not 64 bytes")
        _require(len(frame.proof.boot) == BOOT_STATEMENT_BYTES, "a boot of the wrong length")
        return Proof(frame.proof.signature, frame.proof.boot)
    if kind == "announce":
        _require(len(frame.announce.deltas) <= ANNOUNCED_MAX, "too many deltas announced")
        return Announced(
            tuple(_parse_reference(delta, id_required=True) for delta in frame.announce.deltas)
        )
    if kind == "summary":
        return _parse_summary(frame.summary)
    if kind == "consensus":
        _require(len(frame.consensus) <= CONSENSUS_BYTES_MAX, "a consensus message is too long")
        return ConsensusMessage(frame.consensus)
    if kind == "ping":
        return Ping(frame.ping.stamp)
    if kind == "pong":
        return Pong(frame.pong.stamp)
    raise PeerError("malformed-message", "a frame of an unknown kind")


def make_frame(message: LinkMessage) -> Frame:
    """Return the frame that carries `message`."""
    match message:
        case Hello(protocol, mesh_id, node_id, nonce, address):
            return Frame(
                hello=mesh_pb2.Hello(
                    protocol=protocol,
                    mesh_id=mesh_id,
                    node_id=node_id,
                    nonce=nonce,
                    address=address,
                )
            )
        case Proof(signature, boot):
            return Frame(proof=mesh_pb2.Proof(signature=signature, boot=boot))
        case Announced(deltas):
            return Frame(announce=mesh_pb2.Announce(deltas=[_reference(delta) for delta in deltas]))
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
        case ConsensusMessage(data):
            return Frame(consensus=data)
        case Ping(stamp):
            return Frame(ping=mesh_pb2.Ping(stamp=stamp))
        case Pong(stamp):
            return Frame(pong=mesh_pb2.Ping(stamp=stamp))


def _reference(reference: Reference) -> mesh_pb2.DeltaReference:
    member, sequence, delta_id = reference
    return mesh_pb2.DeltaReference(member=member, sequence=sequence, delta_id=delta_id)


# --- bulk -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WantDelta:
    """Asks for one delta."""

    reference: Reference


@dataclass(frozen=True, slots=True)
class WantCheckpoint:
    """Asks for the checkpoint of a height; 0 asks for the newest."""

    height: int


@dataclass(frozen=True, slots=True)
class WantGenesis:
    """Asks for checkpoint 0 and what it needs."""


Want: TypeAlias = WantDelta | WantCheckpoint | WantGenesis


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """A committed checkpoint as it travels: the proof first, then the anchor's bytes."""

    height: int
    operation: bytes
    certificate: bytes
    anchor_bytes: int
    settled: bytes


@dataclass(frozen=True, slots=True)
class GenesisParts:
    """A genesis as it travels: the document and the tokenizer first, then the anchor's bytes."""

    document: bytes
    anchor_bytes: int
    files: dict[str, bytes]


def make_fetch(mesh_id: bytes, want: Want) -> mesh_pb2.FetchRequest:
    """Return the request for `want`."""
    match want:
        case WantDelta(reference):
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, delta=_reference(reference))
        case WantCheckpoint(height):
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, checkpoint=height)
        case WantGenesis():
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, genesis=mesh_pb2.Nothing())


def parse_fetch(request: mesh_pb2.FetchRequest) -> Want:
    """Check a request for bulk data; raises PeerError."""
    kind = request.WhichOneof("what")
    if kind == "delta":
        return WantDelta(_parse_reference(request.delta, id_required=False))
    if kind == "checkpoint":
        _require(request.checkpoint <= SEQUENCE_MAX, "a height is out of range")
        return WantCheckpoint(request.checkpoint)
    if kind == "genesis":
        return WantGenesis()
    raise PeerError("malformed-message", "a request for nothing")


def parse_checkpoint_header(chunk: mesh_pb2.Chunk) -> CheckpointParts:
    """Check the first chunk of a checkpoint; raises PeerError."""
    header = chunk.checkpoint
    _require(chunk.HasField("checkpoint"), "the first chunk does not describe a checkpoint")
    _require(len(header.operation) <= OPERATION_BYTES_MAX, "an operation is too long")
    _require(len(header.certificate) <= CERTIFICATE_BYTES_MAX, "a certificate is too long")
    _require(len(header.settled) <= SETTLED_BYTES_MAX, "a settled state is too long")
    return CheckpointParts(
        header.height, header.operation, header.certificate, header.anchor_bytes, header.settled
    )


def make_checkpoint_header(parts: CheckpointParts) -> mesh_pb2.Chunk:
    """Return the first chunk of a checkpoint."""
    return mesh_pb2.Chunk(
        checkpoint=mesh_pb2.CheckpointHeader(
            height=parts.height,
            operation=parts.operation,
            certificate=parts.certificate,
            anchor_bytes=parts.anchor_bytes,
            settled=parts.settled,
        )
    )


def parse_genesis_header(chunk: mesh_pb2.Chunk) -> GenesisParts:
    """Check the first chunk of a genesis; raises PeerError."""
    header = chunk.genesis
    _require(chunk.HasField("genesis"), "the first chunk does not describe a genesis")
    _require(len(header.files) <= 16, "too many tokenizer files")
    return GenesisParts(
        header.document, header.anchor_bytes, {file.name: file.data for file in header.files}
    )


def make_genesis_header(parts: GenesisParts) -> mesh_pb2.Chunk:
    """Return the first chunk of a genesis."""
    return mesh_pb2.Chunk(
        genesis=mesh_pb2.GenesisHeader(
            document=parts.document,
            anchor_bytes=parts.anchor_bytes,
            files=[
                mesh_pb2.NamedFile(name=name, data=data)
                for name, data in sorted(parts.files.items())
            ],
        )
    )
