"""Becoming a member: fetch and verify a mesh, write a node's directory, ask to be let in.

The invitation names the mesh and who must answer; trusting whoever answers takes a flag. What is
sent is believed only as far as it can be checked: the genesis by its hash (the mesh id), the chain
of epochs by its signatures and by the one that the invitation names, the newest checkpoint by its
certificate of Q validators' signatures and by the Merkle root of its anchor.
"""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from shoal.consensus.errors import ConsensusError
from shoal.consensus.invitations import Invitation
from shoal.gossip.errors import GossipError
from shoal.node import bulk
from shoal.node.addresses import split_address
from shoal.node.bulk_wire import Contact, GenesisParts
from shoal.node.certified import (
    Certifier,
    check_state,
    write_checkpoint,
)
from shoal.node.channels import open_channel
from shoal.node.checkpoints import CheckpointStore
from shoal.node.config import CONFIG_NAME, document_settings
from shoal.node.durable import write_durably
from shoal.node.errors import PeerError, UnreachableError, UserError
from shoal.node.fetch import fetch_checkpoint
from shoal.node.first_use import who_answers
from shoal.node.genesis import (
    TOKENIZER_FILE_BYTES_MAX,
    Genesis,
    parse_document,
    write_genesis,
)
from shoal.node.history import is_history_known, require_same_history
from shoal.node.identity import Identity, short
from shoal.node.invitations import keep_invitation
from shoal.node.meters import Meters
from shoal.node.pieces import PieceDirectory, assemble
from shoal.node.presets import Preset, with_preset
from shoal.node.progress import tell
from shoal.node.strict import strict_stub
from shoal.proto.mesh_pb2 import JoinRequest

if TYPE_CHECKING:
    from shoal.proto.mesh_pb2_grpc import MeshAsyncStub

log = structlog.get_logger()

NO_PRESET = Preset(mesh={}, settings={})
CONNECT_TIMEOUT_S = 5.0
ASK_TIMEOUT_S = 5.0
_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


async def ask_to_join(contacts: Sequence[tuple[bytes, str]], operation: bytes) -> list[str]:
    """Send a signed Join to the first join port that takes it; membership follows when ordered.

    contacts: whose join ports, and their addresses. Returns what those said who answered: why not,
    and "" of the one that took it, which comes last.
    """
    said: list[str] = []
    for peer, address in contacts:
        try:
            async with open_channel(address, peer, None) as channel:
                request = JoinRequest(operation=operation)
                reply = await strict_stub(channel).Join(request, timeout=ASK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("join.unanswered", address=address, why=error.code().name)
            continue
        if reply.accepted:
            return [*said, ""]
        said.append(reply.reason)
        log.warning("join.refused", address=address, why=reply.reason)
    return said


async def join_mesh(
    address: str,
    directory: Path,
    *,
    listen: str,
    advertise: str,
    data: str,
    invitation: Invitation,
    contact: bytes | None,
    preset: Preset = NO_PRESET,
    flags: Mapping[str, object] | None = None,
) -> None:
    """Fetch a mesh from `address` into `directory`: genesis, newest checkpoint, a key, node.toml.

    Cut off at any point, it goes on when called again: the key that was made is kept, and so are
    the chunks that have come and a checkpoint that is whole. node.toml is written last and at
    once, so a directory that has one is a node.

    invitation: names the mesh, and an epoch by which its history is known; it is kept for the node.
    contact: the id that must answer at `address`, which is a join port; None trusts whoever does.

    Raises UnreachableError when nobody answers, UserError when what answers is not the mesh or the
    history that the invitation is from, or not the one that the directory is of, or does not hold
    together. In those cases nothing new is left behind but chunks.
    """
    async with _connected(address, contact) as (contact, stub):
        try:
            tell("fetching the genesis")
            genesis, parts, anchor = await _fetch_genesis(stub, invitation.mesh_id)
            _require_same_mesh(directory, genesis)
            await is_history_known([(contact, address)], genesis, invitation)
            certifier = Certifier(genesis)
            tell("looking for the newest checkpoint")
            others = await _acquaintances(stub, genesis.mesh_id)
            # Where the contact was reached counts for more than what it says of itself.
            known = {contact: address}
            for each in others:
                known.setdefault(each.node_id, each.join_address)
            part = await _fetch_newest(known, genesis, certifier, directory / "checkpoints")
            if part is not None and (described := part.description()) is not None:
                require_same_history(certifier.epochs(described), invitation)
        except bulk.FetchFailed as error:
            raise UnreachableError(f"{address} did not deliver the mesh: {error}") from None
        except (PeerError, GossipError, ConsensusError) as error:
            raise UserError(f"what {address} sent is not to be trusted: {error}") from None
    tell("checking and writing what was fetched")
    await asyncio.to_thread(
        _write_directory,
        directory,
        invitation=invitation,
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
                "node.peers": [f"{each.node_id.hex()}@{each.address}" for each in others],
                "node.contacts": [f"{peer.hex()}@{each}" for peer, each in known.items()],
                "train.data": data,
            },
            flags,
        ),
    )


@asynccontextmanager
async def _connected(
    address: str, contact: bytes | None
) -> "AsyncIterator[tuple[bytes, MeshAsyncStub]]":
    """Who the contact is, and a client of its join port; raises UserError, UnreachableError."""
    if contact is None:
        contact = await asyncio.to_thread(who_answers, address, CONNECT_TIMEOUT_S)
        log.warning("join.trusting-first-use", address=address, id=contact.hex())
    async with open_channel(address, contact, None) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise await asyncio.to_thread(_why_not, address, contact) from None
        yield contact, strict_stub(channel)


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
    invitation: Invitation,
    genesis: Genesis,
    certifier: Certifier,
    anchor: bytes,
    tokenizer: Mapping[str, bytes],
    part: PieceDirectory | None,
    values: Mapping[str, object],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    keep_invitation(directory, invitation)
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


async def _fetch_genesis(
    stub: "MeshAsyncStub", pinned: bytes
) -> tuple[Genesis, GenesisParts, bytes]:
    parsed: list[Genesis] = []

    def check(parts: GenesisParts) -> int:
        genesis = parse_document(parts.document)
        if genesis.mesh_id != pinned:
            raise UserError(
                f"wrong mesh: that node is of mesh {genesis.mesh_id.hex()}, and the invitation is "
                f"to {pinned.hex()}; check the address and which invitation you were given"
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


def _why_not(address: str, contact: bytes) -> UserError:
    """What stands in the way: nobody there, or somebody else."""
    try:
        found = who_answers(address, CONNECT_TIMEOUT_S)
    except UnreachableError as error:
        return error
    return UserError(
        f"{short(found)} answers at {address}, not {short(contact)}; check the address, or say "
        "with --trust-id that another member is meant to"
    )


async def _acquaintances(stub: "MeshAsyncStub", mesh_id: bytes) -> list[Contact]:
    """The contact itself and the members that it has links to now, also those that joined later.

    It may name whom it likes: what they send is checked like everything else.
    """
    try:
        said = await bulk.fetch_contacts(stub, mesh_id)
    except (bulk.FetchFailed, PeerError) as error:
        log.info("join.members-unknown", why=str(error))
        return []
    return [each for each in said if _is_sound(each)]


def _is_sound(said: Contact) -> bool:
    """Whether a stranger's text may stand in node.toml."""
    return is_sound_address(said.address) and is_sound_address(said.join_address)


def is_sound_address(text: str) -> bool:
    """Whether somebody else's words are host:port and nothing more."""
    try:
        split_address(text)
    except ValueError:
        return False
    return _ADDRESS.fullmatch(text) is not None


async def _fetch_newest(
    known: Mapping[bytes, str], genesis: Genesis, certifier: Certifier, directory: Path
) -> PieceDirectory | None:
    """The newest checkpoint in pieces, from everybody whose join port is known; None while there
    is none that is newer than what lies here whole."""
    channels = {short(peer): open_channel(each, peer, None) for peer, each in known.items()}
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
