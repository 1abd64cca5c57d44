"""Becoming a member: fetch and verify a mesh, write a node's directory, ask to be let in.

What a stranger sends is believed only as far as it can be checked: the genesis by its hash (the
mesh id, which `--mesh` pins), the newest checkpoint by its certificate of Q validators' signatures
and by the Merkle root of its anchor.
"""

import asyncio
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from shoal.consensus.errors import ConsensusError
from shoal.gossip.errors import GossipError
from shoal.node import bulk
from shoal.node.bulk_wire import GenesisParts
from shoal.node.certified import (
    Certifier,
    check_state,
    write_checkpoint,
)
from shoal.node.checkpoints import CheckpointStore
from shoal.node.config import CONFIG_NAME, document_settings, split_address
from shoal.node.errors import PeerError, UnreachableError, UserError
from shoal.node.fetch import fetch_checkpoint
from shoal.node.genesis import (
    TOKENIZER_FILE_BYTES_MAX,
    Genesis,
    parse_document,
    write_genesis,
)
from shoal.node.identity import Identity, short
from shoal.node.inspect_client import fetch_status
from shoal.node.links import CHANNEL_OPTIONS, Links
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory, assemble, write_durably
from shoal.node.presets import Preset, with_preset
from shoal.node.strict import strict_stub
from shoal.proto.mesh_pb2 import JoinRequest

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

log = structlog.get_logger()

NO_PRESET = Preset(mesh={}, settings={})
CONNECT_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 5.0
_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
# So many members besides its contact and the founders does a joiner ask, and remember.
OTHERS_MAX = 16


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
    preset: Preset = NO_PRESET,
    flags: Mapping[str, object] | None = None,
) -> None:
    """Fetch a mesh from `address` into `directory`: genesis, newest checkpoint, a key, node.toml.

    Cut off at any point, it goes on when called again: the key that was made is kept, and so are
    the chunks that have come and a checkpoint that is whole. node.toml is written last and at
    once, so a directory that has one is a node.

    Raises UnreachableError when nobody answers, UserError when what answers is not the mesh that
    was named or that the directory is of, or does not hold together. In those cases nothing new is
    left behind but chunks.
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
        stub = strict_stub(channel)
        try:
            genesis, parts, anchor = await _fetch_genesis(stub, pinned)
            _require_same_mesh(directory, genesis)
            certifier = Certifier(genesis)
            others = await _others(address)
            part = await _fetch_newest(
                [address, *others], genesis, certifier, directory / "checkpoints"
            )
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
        certifier=certifier,
        anchor=anchor,
        tokenizer=parts.files,
        part=part,
        values=with_preset(
            preset,
            {
                "node.name": directory.name,
                "node.listen": listen,
                "node.advertise": advertise,
                "node.insecure": insecure,
                "node.peers": [address, *others],
                "train.data": data,
            },
            flags,
        ),
    )


def _require_same_mesh(directory: Path, genesis: Genesis) -> None:
    """Raise UserError where a join of another mesh was cut off: its checkpoints may lie here."""
    try:
        begun = parse_document((directory / "genesis" / "genesis.json").read_bytes())
    except (OSError, PeerError):
        # None was written yet, or not all of it.
        return
    if begun.mesh_id != genesis.mesh_id:
        raise UserError(
            f"{directory} holds the beginnings of a node of mesh {begun.mesh_id.hex()}, and that "
            f"node is of mesh {genesis.mesh_id.hex()}; name a new directory"
        )


def _own_key(path: Path) -> Identity:
    """The key that an earlier try made, or a new one."""
    if not path.exists():
        return Identity.create(path)
    if path.stat().st_size == 0:
        # Cut off between making the file and filling it: there is no key in it to lose.
        path.unlink()
        return Identity.create(path)
    return Identity.load(path)


def _write_directory(
    directory: Path,
    *,
    genesis: Genesis,
    certifier: Certifier,
    anchor: bytes,
    tokenizer: Mapping[str, bytes],
    part: PieceDirectory | None,
    values: Mapping[str, object],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    identity = _own_key(directory / "identity.key")
    write_genesis(directory / "genesis", genesis, genesis.read_anchor(anchor), tokenizer)
    checkpoints = directory / "checkpoints"
    if part is not None:
        described, anchor = assemble(part)
        found = certifier.check(described)
        outcome = check_state(found, described.settled, anchor, genesis)
        store = CheckpointStore(checkpoints)
        write_checkpoint(store, found, outcome, genesis, tokenizer, certifier.epochs(described))
    for left in (*checkpoints.glob(".*.part"), *checkpoints.glob(".*.new")):
        shutil.rmtree(left, ignore_errors=True)
    write_durably(directory / CONFIG_NAME, document_settings(values).encode())
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


async def _others(address: str) -> list[str]:
    """Members that the contact has a link to now: those that joined after the mesh was founded.

    It may name whom it likes: what they send is checked like everything else.
    """
    try:
        status = await fetch_status(address)
    except UnreachableError as error:
        log.info("join.members-unknown", why=str(error))
        return []
    found = []
    for peer in status.peers:
        # A stranger's text that will stand in node.toml.
        if peer.state != "connected" or not _ADDRESS.fullmatch(peer.address):
            continue
        with suppress(ValueError):
            split_address(peer.address)
            found.append(peer.address)
    found = [each for each in found if each != address]
    return list(dict.fromkeys(found))[:OTHERS_MAX]


async def _fetch_newest(
    known: Sequence[str], genesis: Genesis, certifier: Certifier, directory: Path
) -> PieceDirectory | None:
    """The newest checkpoint in pieces, from everybody whose address is known; None while there is
    none that is newer than what lies here whole."""
    addresses = dict.fromkeys([*known, *(founder.address for founder in genesis.founders)])
    channels = {
        each: grpc.aio.insecure_channel(each, options=CHANNEL_OPTIONS) for each in addresses
    }
    try:
        return await fetch_checkpoint(
            mesh_id=genesis.mesh_id,
            holders={each: strict_stub(channel) for each, channel in channels.items()},
            certify=certifier.check,
            directory=directory,
            anchor_bytes=4 * genesis.schema.layout.total,
            above=await asyncio.to_thread(_newest_whole, directory),
            meters=Meters(),
        )
    finally:
        for channel in channels.values():
            await channel.close()


def _newest_whole(directory: Path) -> int:
    """The height that an earlier try has finished; 0 where there is none."""
    names = [path.name for path in directory.glob("*") if path.is_dir()]
    return max((int(name) for name in names if name.isdecimal()), default=0)
