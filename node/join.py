"""Becoming a member: fetch and verify a mesh, write a node's directory, ask to be let in.

What a stranger sends is believed only as far as it can be checked: the genesis by its hash (the
mesh id, which `--mesh` pins), the newest checkpoint by its certificate of Q validators' signatures
and by the Merkle root of its anchor.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from shoal.consensus.errors import ConsensusError
from shoal.gossip.errors import GossipError
from shoal.node import bulk
from shoal.node.bulk_wire import GenesisParts
from shoal.node.certified import (
    check_description,
    check_state,
    epochs_of,
    write_checkpoint,
)
from shoal.node.checkpoints import CheckpointStore
from shoal.node.config import CONFIG_NAME, document_settings
from shoal.node.errors import PeerError, UnreachableError, UserError
from shoal.node.fetch import fetch_checkpoint
from shoal.node.genesis import (
    TOKENIZER_FILE_BYTES_MAX,
    Genesis,
    parse_document,
    write_genesis,
)
from shoal.node.identity import Identity, short
from shoal.node.links import CHANNEL_OPTIONS, Links
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory, assemble
from shoal.proto.mesh_pb2 import JoinRequest
from shoal.proto.mesh_pb2_grpc import MeshStub

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 5.0


async def ask_to_join(links: Links, addresses: Sequence[str], operation: bytes) -> bool:
    """Send a signed Join to the first address that takes it; membership follows when ordered."""
    for address in addresses:
        try:
            reply = await links.stub(address).Join(
                JoinRequest(operation=operation), timeout=ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            log.info("join.unanswered", address=address, why=error.code().name)
            continue
        if reply.accepted:
            return True
        log.warning("join.refused", address=address, why=reply.reason)
    return False


async def join_mesh(
    address: str,
    directory: Path,
    *,
    listen: str,
    advertise: str,
    data: str,
    mesh_id: str | None,
    insecure: bool,
) -> None:
    """Fetch a mesh from `address` into `directory`: genesis, newest checkpoint, a key, node.toml.

    Raises UnreachableError when nobody answers, UserError when what answers is not the mesh that
    was named or does not hold together. In those cases nothing is left behind but the chunks of a
    checkpoint that have come, which the next try goes on from.
    """
    pinned = _parse_mesh_id(mesh_id)
    channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    try:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise UnreachableError(
                f"no node answers at {address}; check the address and that the node is running"
            ) from None
        stub = MeshStub(channel)
        try:
            genesis, parts, anchor = await _fetch_genesis(stub, pinned)
            part = await _fetch_newest(address, genesis, directory / "checkpoints")
        except bulk.FetchFailed as error:
            raise UnreachableError(f"{address} did not deliver the mesh: {error}") from None
        except (PeerError, GossipError, ConsensusError) as error:
            raise UserError(f"what {address} sent is not to be trusted: {error}") from None
    finally:
        await channel.close()
    await asyncio.to_thread(
        _write_directory,
        directory,
        genesis=genesis,
        anchor=anchor,
        tokenizer=parts.files,
        part=part,
        values={
            "node.name": directory.name,
            "node.listen": listen,
            "node.advertise": advertise,
            "node.insecure": insecure,
            "node.peers": [address],
            "train.data": data,
        },
    )


def _write_directory(
    directory: Path,
    *,
    genesis: Genesis,
    anchor: bytes,
    tokenizer: Mapping[str, bytes],
    part: PieceDirectory | None,
    values: Mapping[str, object],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    identity = Identity.create(directory / "identity.key")
    write_genesis(directory / "genesis", genesis, genesis.read_anchor(anchor), tokenizer)
    if part is not None:
        described, anchor = assemble(part)
        found = check_description(described, genesis)
        outcome = check_state(found, described.settled, anchor, genesis)
        store = CheckpointStore(directory / "checkpoints")
        write_checkpoint(store, found, outcome, genesis, tokenizer, epochs_of(described, genesis))
        shutil.rmtree(part.path, ignore_errors=True)
    (directory / CONFIG_NAME).write_text(document_settings(values), encoding="utf-8")
    log.info(
        "mesh.fetched",
        mesh=genesis.mesh_id.hex(),
        height=part.height if part is not None else 0,
        node=short(identity.node_id),
    )


def _parse_mesh_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        pinned = bytes.fromhex(text)
    except ValueError:
        pinned = b""
    if len(pinned) != 32:
        raise UserError(f'--mesh "{text}" is not a mesh id; it has 64 hexadecimal digits')
    return pinned


async def _fetch_genesis(
    stub: "MeshAsyncStub", pinned: bytes | None
) -> tuple[Genesis, GenesisParts, bytes]:
    parsed: list[Genesis] = []

    def check(parts: GenesisParts) -> int:
        genesis = parse_document(parts.document)
        if pinned is not None and genesis.mesh_id != pinned:
            raise UserError(
                f"wrong mesh: that node is of mesh {genesis.mesh_id.hex()}, not "
                f"{pinned.hex()}; check the address or the --mesh you were given"
            )
        if any(len(data) > TOKENIZER_FILE_BYTES_MAX for data in parts.files.values()):
            raise PeerError("oversized", "a tokenizer file")
        genesis.check_tokenizer(parts.files)
        parsed.append(genesis)
        return 4 * genesis.schema.layout.total

    parts, anchor = await bulk.fetch_genesis(stub, check)
    genesis = parsed[0]
    genesis.read_anchor(anchor)
    return genesis, parts, anchor


async def _fetch_newest(address: str, genesis: Genesis, directory: Path) -> PieceDirectory | None:
    """The newest checkpoint in pieces, from everybody whose address is known; None while there is
    none."""
    addresses = dict.fromkeys([address, *(founder.address for founder in genesis.founders)])
    channels = {
        each: grpc.aio.insecure_channel(each, options=CHANNEL_OPTIONS) for each in addresses
    }
    try:
        return await fetch_checkpoint(
            mesh_id=genesis.mesh_id,
            holders={each: MeshStub(channel) for each, channel in channels.items()},
            certify=lambda each: check_description(each, genesis),
            directory=directory,
            anchor_bytes=4 * genesis.schema.layout.total,
            above=0,
            meters=Meters(),
        )
    finally:
        for channel in channels.values():
            await channel.close()
