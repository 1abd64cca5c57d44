"""Bulk requests and their answers: protobuf on one side, checked values on the other.

Every bound on what a peer may put into one of them stands here, as a constant and a check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shoal.gossip.chunks import ADDRESS_BYTES, chunk_count
from shoal.gossip.tree import CHUNK_BYTES
from shoal.node.errors import PeerError
from shoal.node.screen import Screen
from shoal.node.wire import (
    ADDRESS_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    OPERATION_BYTES_MAX,
    SEQUENCE_MAX,
    Reference,
    make_reference,
    parse_reference,
    require,
)
from shoal.proto import mesh_pb2

CERTIFICATE_BYTES_MAX = 1 << 16
SETTLED_BYTES_MAX = 1 << 20
EPOCHS_BYTES_MAX = 4 << 20
# 32 768 chunks, an anchor of 32 GiB.
MANIFEST_BYTES_MAX = 1 << 20
CONTACTS_MAX = 16
# What one message of a stream carries.
DATA_BYTES_MAX = CHUNK_BYTES
GENESIS_FILES_MAX = 16
# The longest asks for a delta: four fields of 32 bytes and less.
FETCH_BYTES_MAX = 256
JOIN_BYTES_MAX = OPERATION_BYTES_MAX + 16

FETCHES = Screen(mesh_pb2.FetchRequest, mesh_pb2.FetchRequest.FromString, bytes_max=FETCH_BYTES_MAX)
JOINS = Screen(mesh_pb2.JoinRequest, mesh_pb2.JoinRequest.FromString, bytes_max=JOIN_BYTES_MAX)
# It says nothing: who leaves is who calls.
FAREWELLS = Screen(mesh_pb2.FarewellRequest, mesh_pb2.FarewellRequest.FromString, bytes_max=0)
CHUNKS = Screen(
    mesh_pb2.Chunk,
    mesh_pb2.Chunk.FromString,
    bytes_max=MESSAGE_BYTES_MAX,
    counts={"GenesisHeader.files": GENESIS_FILES_MAX, "Contacts.contacts": CONTACTS_MAX},
)


@dataclass(frozen=True, slots=True)
class WantDelta:
    """Asks for one delta."""

    reference: Reference


@dataclass(frozen=True, slots=True)
class WantDescription:
    """Asks what the checkpoint of a height is; 0 asks for the newest."""

    height: int


@dataclass(frozen=True, slots=True)
class WantChunk:
    """Asks for one chunk of the anchor of a height."""

    height: int
    address: bytes


@dataclass(frozen=True, slots=True)
class WantDeltaLog:
    """Asks for the deltas of the cut of a height."""

    height: int


@dataclass(frozen=True, slots=True)
class WantHoldings:
    """Asks which pieces of a height are held."""

    height: int


@dataclass(frozen=True, slots=True)
class WantGenesis:
    """Asks for checkpoint 0 and what it needs."""


@dataclass(frozen=True, slots=True)
class WantContacts:
    """Asks which members somebody has links to."""


@dataclass(frozen=True, slots=True)
class WantEpochs:
    """Asks for the chain of epochs as far as it is known."""


Want: TypeAlias = (
    WantDelta
    | WantGenesis
    | WantDescription
    | WantChunk
    | WantDeltaLog
    | WantHoldings
    | WantContacts
    | WantEpochs
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint is and how to check it; everything but its anchor.

    addresses: of the anchor's chunks, 32 bytes each, in order; epochs: the chain of epochs.
    """

    height: int
    operation: bytes
    certificate: bytes
    settled: bytes
    anchor_bytes: int
    addresses: tuple[bytes, ...]
    epochs: bytes


@dataclass(frozen=True, slots=True)
class Holdings:
    """Which pieces of a height somebody says that it holds: addresses, and the delta log."""

    addresses: frozenset[bytes]
    delta_log: bool


@dataclass(frozen=True, slots=True)
class Contact:
    """A member as another one knows it: where members dial it, where newcomers ask it."""

    node_id: bytes
    address: str
    join_address: str


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
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, delta=make_reference(reference))
        case WantGenesis():
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, genesis=mesh_pb2.Nothing())
        case WantDescription(height):
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, describe=height)
        case WantChunk(height, address):
            chunk = mesh_pb2.ChunkReference(height=height, address=address)
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, chunk=chunk)
        case WantDeltaLog(height):
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, delta_log=height)
        case WantHoldings(height):
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, holdings=height)
        case WantContacts():
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, contacts=mesh_pb2.Nothing())
        case WantEpochs():
            return mesh_pb2.FetchRequest(mesh_id=mesh_id, epochs=mesh_pb2.Nothing())


def parse_fetch(request: mesh_pb2.FetchRequest) -> Want:
    """Check a request for bulk data; raises PeerError."""
    kind = request.WhichOneof("what")
    if kind == "delta":
        return WantDelta(parse_reference(request.delta, id_required=False))
    if kind == "genesis":
        return WantGenesis()
    if kind == "describe":
        require(request.describe <= SEQUENCE_MAX, "a height is out of range")
        return WantDescription(request.describe)
    if kind == "chunk":
        require(len(request.chunk.address) == ADDRESS_BYTES, "a chunk's address is not 32 bytes")
        return WantChunk(_height(request.chunk.height), request.chunk.address)
    if kind == "delta_log":
        return WantDeltaLog(_height(request.delta_log))
    if kind == "holdings":
        return WantHoldings(_height(request.holdings))
    if kind == "contacts":
        return WantContacts()
    if kind == "epochs":
        return WantEpochs()
    raise PeerError("malformed-message", "a request for nothing")


def _height(height: int) -> int:
    require(1 <= height <= SEQUENCE_MAX, "a height is out of range")
    return height


def parse_description(chunk: mesh_pb2.Chunk) -> tuple[Description, int]:
    """Check the first message of a description; raises PeerError.

    Returns it without its epochs, and how many bytes of those are due (at most 4 MiB).
    """
    header = chunk.checkpoint
    require(chunk.HasField("checkpoint"), "the first chunk does not describe a checkpoint")
    require(len(header.operation) <= OPERATION_BYTES_MAX, "an operation is too long")
    require(len(header.certificate) <= CERTIFICATE_BYTES_MAX, "a certificate is too long")
    require(len(header.settled) <= SETTLED_BYTES_MAX, "a settled state is too long")
    require(len(header.addresses) <= MANIFEST_BYTES_MAX, "a manifest is too long")
    require(header.epochs_bytes <= EPOCHS_BYTES_MAX, "a chain of epochs is too long")
    count = chunk_count(header.anchor_bytes)
    require(
        count > 0 and len(header.addresses) == ADDRESS_BYTES * count, "a manifest of another length"
    )
    addresses = tuple(
        header.addresses[at : at + ADDRESS_BYTES]
        for at in range(0, len(header.addresses), ADDRESS_BYTES)
    )
    described = Description(
        _height(header.height),
        header.operation,
        header.certificate,
        header.settled,
        header.anchor_bytes,
        addresses,
        b"",
    )
    return described, header.epochs_bytes


def make_description(described: Description) -> mesh_pb2.Chunk:
    """Return the first message of a description; its epochs follow as data."""
    return mesh_pb2.Chunk(
        checkpoint=mesh_pb2.CheckpointHeader(
            height=described.height,
            operation=described.operation,
            certificate=described.certificate,
            settled=described.settled,
            anchor_bytes=described.anchor_bytes,
            addresses=b"".join(described.addresses),
            epochs_bytes=len(described.epochs),
        )
    )


def parse_holdings(chunk: mesh_pb2.Chunk, addresses: Sequence[bytes]) -> Holdings:
    """Check what somebody says that it holds of the chunks `addresses`; raises PeerError."""
    require(chunk.HasField("holdings"), "an answer without holdings")
    bitmap = chunk.holdings.bitmap
    require(len(bitmap) == -(-len(addresses) // 8), "a bitmap of another length")
    held = (address for i, address in enumerate(addresses) if bitmap[i // 8] >> i % 8 & 1)
    return Holdings(frozenset(held), chunk.holdings.delta_log)


def make_holdings(holdings: Holdings, addresses: Sequence[bytes]) -> mesh_pb2.Chunk:
    """Return the answer to "which pieces of a height do you hold", of the chunks `addresses`."""
    bitmap = bytearray(-(-len(addresses) // 8))
    for i, address in enumerate(addresses):
        if address in holdings.addresses:
            bitmap[i // 8] |= 1 << i % 8
    return mesh_pb2.Chunk(
        holdings=mesh_pb2.Holdings(bitmap=bytes(bitmap), delta_log=holdings.delta_log)
    )


def parse_contacts(chunk: mesh_pb2.Chunk) -> tuple[Contact, ...]:
    """Check what somebody says of other members; raises PeerError. Nothing of it is proved."""
    require(chunk.HasField("contacts"), "an answer without contacts")
    found = chunk.contacts.contacts
    require(len(found) <= CONTACTS_MAX, "too many contacts")
    for each in found:
        require(len(each.node_id) == 32, "a member id is not 32 bytes")
        for address in (each.address, each.join_address):
            require(len(address.encode()) <= ADDRESS_BYTES_MAX, "an address is too long")
    return tuple(Contact(each.node_id, each.address, each.join_address) for each in found)


def make_contacts(contacts: Sequence[Contact]) -> mesh_pb2.Chunk:
    """Return the answer to "which members do you have links to"."""
    return mesh_pb2.Chunk(
        contacts=mesh_pb2.Contacts(
            contacts=[
                mesh_pb2.Contact(
                    node_id=each.node_id, address=each.address, join_address=each.join_address
                )
                for each in contacts[:CONTACTS_MAX]
            ]
        )
    )


def parse_genesis_header(chunk: mesh_pb2.Chunk) -> GenesisParts:
    """Check the first chunk of a genesis; raises PeerError."""
    header = chunk.genesis
    require(chunk.HasField("genesis"), "the first chunk does not describe a genesis")
    require(len(header.files) <= GENESIS_FILES_MAX, "too many tokenizer files")
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
