"""What an operator decides about the mesh: leave it, or say yes to a change of who votes.

The node's own key signs, so whoever can read a node's directory speaks for it, and nobody else.
The signed operation goes to the running node, which hands it to the validators.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

import grpc

from shoal.consensus.changes import Change, ChangeKind
from shoal.consensus.quorum import quorum
from shoal.consensus.records import Leave, operation_bytes
from shoal.node.channels import own_channel
from shoal.node.clock import now_ms
from shoal.node.config import load_settings
from shoal.node.errors import UnreachableError, UserError
from shoal.node.genesis import load_genesis
from shoal.node.handover import Outstanding, estate_of, hand_over
from shoal.node.holdings import open_holdings
from shoal.node.identity import Identity, short
from shoal.node.inspect_client import fetch_status
from shoal.node.membership import approval
from shoal.node.mesh_parameters import change_to, differences
from shoal.node.meters import Meters
from shoal.node.parameter_change import MeshAnswer, changed
from shoal.node.parameters import MeshParameters
from shoal.node.strict import strict_stub
from shoal.proto import inspect_pb2
from shoal.proto.inspect_pb2 import StatusReply
from shoal.proto.mesh_pb2 import JoinRequest

ANSWER_TIMEOUT_S = 5.0
# Below so many validators none may fail.
FAULT_TOLERANT = 4


async def _submit(address: str, identity: Identity, operation: bytes) -> None:
    async with own_channel(address, identity, time.time()) as channel:
        try:
            request = JoinRequest(operation=operation)
            reply = await strict_stub(channel).Join(request, timeout=ANSWER_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise UnreachableError(f"{address} did not answer: {error.code().name}") from None
    if not reply.accepted:
        raise UserError(f"the mesh refuses that: {_REASONS.get(reply.reason, reply.reason)}")


_REASONS = {
    "not-a-member": "there is no such member; `shoal peers` lists them",
    "not-a-validator": "this node is no validator, so its approval does not count",
    "validator-already": "it is a validator already",
    "no-validator": "it is no validator",
    "not-willing": "that node was started with consensus.willing = false",
    "validators-full": "the mesh has 31 validators, the most that can vote",
    "last-validator": "it is the last validator; promote another one first",
    "stale-time": "this machine's clock is behind its last join; set it and try again",
    "wrong-epoch": "the validators changed meanwhile; try again",
    "parameters-decided": "another change is decided and comes first; try again in the next epoch",
    "bad-parameters": "the node reads other parameters than this command writes; update both",
}


async def own_node(directory: Path) -> tuple[Identity, bytes, str, StatusReply]:
    """Key, mesh id, members' port and status of this directory's running node; raises UserError."""
    settings = load_settings(directory, {})
    identity = Identity.load(directory / "identity.key")
    genesis, _, _ = load_genesis(directory / "genesis")
    address = settings.node.listen
    status = await fetch_status(settings.node.inspect_listen)
    if status.node_id != identity.node_id.hex():
        raise UserError(f"another node runs at {address}; start this one: shoal run {directory}")
    return identity, genesis.mesh_id, address, status


def _validators_after(status: StatusReply, change: int) -> str | None:
    """Why a smaller set would be worth a second thought; None when it is not."""
    now = status.consensus.validators
    if now >= FAULT_TOLERANT > now + change:
        return (
            f"{now} validators tolerate {(now - 1) // 3} failing ones, {now + change} none; "
            "say --force if that is meant"
        )
    return None


def leave(
    directory: Path,
    *,
    force: bool,
    limit_s: float,
    report: Callable[[Outstanding], None],
) -> str:
    """Give what this node keeps to others, then tell the mesh that it goes; raises UserError.

    limit_s: how long handing over may take, 0 for not at all. The node stops when it may.
    """

    async def work() -> str:
        identity, mesh_id, address, status = await own_node(directory)
        warning = _validators_after(status, -1) if status.role == "validator" else None
        if warning and not force:
            raise UserError(warning)
        if limit_s:
            await _hand_over(directory, identity, mesh_id, status, limit_s, report)
        unsigned = Leave(member=identity.node_id, time_ms=now_ms())
        signature = identity.sign(unsigned.signed_bytes(mesh_id))
        operation = operation_bytes(replace(unsigned, signature=signature))
        await _submit(address, identity, operation)
        return "leaving; the node stops by itself when the others no longer need it"

    return asyncio.run(work())


async def _hand_over(
    directory: Path,
    identity: Identity,
    mesh_id: bytes,
    status: StatusReply,
    limit_s: float,
    report: Callable[[Outstanding], None],
) -> None:
    settings = load_settings(directory, {})
    # Reading the disk of a node that runs: what is swept meanwhile is simply not there.
    holdings = open_holdings(settings, anchor_bytes=4 * status.training.parameters, meters=Meters())
    estate = await asyncio.to_thread(
        estate_of,
        holdings,
        list(status.archived_heights),
        others={
            bytes.fromhex(peer.node_id): peer.address for peer in status.peers if peer.liveness
        },
        validators=status.consensus.validators,
    )
    left = await hand_over(
        estate, identity=identity, mesh_id=mesh_id, limit_s=limit_s, report=report
    )
    if left.pieces:
        silent = ", ".join(short(member) for member in sorted(left.silent))
        raise UserError(
            f"this node has not left: after {limit_s:.0f} s {left.pieces} pieces of old "
            f"checkpoints have fewer than {estate.copies} other copies"
            + (f" (no answer from {silent})" if silent else "")
            + "; try again when the others have caught up, or leave without: --no-handover"
        )


def approve(directory: Path, kind: ChangeKind, member: str, *, force: bool = False) -> str:
    """Sign a change with this validator's key and submit it; raises UserError."""

    async def work() -> str:
        identity, mesh_id, address, status = await own_node(directory)
        warning = None if kind is ChangeKind.PROMOTE else _validators_after(status, -1)
        if warning and not force:
            raise UserError(warning)
        change = Change(kind, _member(member, status))
        operation = approval(identity, mesh_id, status.consensus.epoch, change)
        await _submit(address, identity, operation)
        needed = quorum(status.consensus.validators)
        return f"approved; it happens when {needed} of {status.consensus.validators} have done so"

    return asyncio.run(work())


def mesh_parameters(directory: Path) -> MeshAnswer:
    """The parameters in force at the running node; raises UserError."""

    async def work() -> MeshAnswer:
        _, _, _, status = await own_node(directory)
        return _mesh_answer(status)

    return asyncio.run(work())


def approve_parameters(directory: Path, settings: Mapping[str, str]) -> str:
    """Sign a change of the parameters with this validator's key and submit it; raises UserError.

    settings: values by name, as a person writes them. All others stay what they are, and that is
    signed too: what is approved is exactly what will hold.
    """

    async def work() -> str:
        identity, mesh_id, address, status = await own_node(directory)
        answer = _mesh_answer(status)
        after = changed(answer.in_force, settings)
        what = ", ".join(f"{k} {v}" for k, v in differences(answer.in_force, after).items())
        if after == answer.decided:
            return f"decided already: {what}; it holds from the next epoch on"
        operation = approval(identity, mesh_id, answer.epoch, change_to(after))
        await _submit(address, identity, operation)
        validators = status.consensus.validators
        return (
            f"approved in epoch {answer.epoch}: {what}; it holds from the next epoch on, which "
            f"begins when {quorum(validators)} of {validators} have approved exactly this"
        )

    return asyncio.run(work())


def _mesh_answer(status: StatusReply) -> MeshAnswer:
    decided = status.decided_parameters if status.HasField("decided_parameters") else None
    return MeshAnswer(
        epoch=status.consensus.epoch,
        members=status.consensus.members,
        in_force=_mesh(status.mesh_parameters),
        decided=_mesh(decided) if decided is not None else None,
    )


def _mesh(message: inspect_pb2.MeshParameters) -> MeshParameters:
    values = {each.name: getattr(message, each.name) for each in fields(MeshParameters)}
    mesh = MeshParameters(**values)
    if problems := mesh.problems():
        raise UserError(f"that node is of another version of Shoal: {problems[0]}")
    return mesh


def _member(text: str, status: StatusReply) -> bytes:
    """A full id, or the beginning of one that names exactly one peer (or this node)."""
    known = [status.node_id, *(peer.node_id for peer in status.peers)]
    found = [node_id for node_id in known if node_id.startswith(text.lower())]
    if len(text) < 4 or len(found) != 1:
        what = "several nodes" if len(text) >= 4 and found else "no node"
        raise UserError(f'"{text}" names {what}; give more of its id, see `shoal peers --json`')
    return bytes.fromhex(found[0])
