"""What somebody without a member's key can do with an open port: nothing, and it is counted."""

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from shoal.node.identity import Identity
from shoal.node.wire import PROTOCOL_VERSION
from shoal.proto import mesh_pb2
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.mesh import RunningNode, found_mesh, running, until
from tests.node.tls import channel_to, identity_of, make_links


async def _refusal(
    node: RunningNode, caller: Identity, *frames: mesh_pb2.LinkFrame
) -> grpc.StatusCode:
    """Open a link with the caller's leaf, say these frames, and return how it ends."""
    async with channel_to(node.settings.node.listen, node.id, caller) as channel:
        call = MeshStub(channel).Link()
        with suppress(grpc.aio.AioRpcError):
            for frame in frames:
                await call.write(frame)
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code()


def _hello(node: RunningNode, caller: Identity, **changes: object) -> mesh_pb2.LinkFrame:
    fields = {
        "protocol": PROTOCOL_VERSION,
        "mesh_id": node.node.mesh_id,
        "node_id": caller.node_id,
        "nonce": bytes(32),
        "address": "127.0.0.1:1",
        **changes,
    }
    return mesh_pb2.LinkFrame(hello=mesh_pb2.Hello(**fields))  # type: ignore[arg-type]


def _key(directory: Path) -> Identity:
    return Identity.load(directory / "identity.key")


def test_links_that_members_begin_badly_are_refused_by_reason(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, nodes=3)
        async with running(directories[:1], rounds=1) as (node,):
            caller, third = map(_key, directories[1:])
            unproved = mesh_pb2.LinkFrame(
                proof=mesh_pb2.Proof(signature=bytes(64), boot=bytes(121))
            )
            attempts: dict[str, tuple[mesh_pb2.LinkFrame, ...]] = {
                "handshake": (mesh_pb2.LinkFrame(ping=mesh_pb2.Ping(stamp=1)),),
                "malformed-message": (_hello(node, caller, nonce=b"short"),),
                "wrong-mesh": (_hello(node, caller, mesh_id=bytes(32)),),
                "wrong-protocol": (_hello(node, caller, protocol=99),),
                # The connection speaks for the owner of its leaf and for nobody else.
                "wrong-identity": (_hello(node, third),),
                "own-key": (_hello(node, caller, node_id=node.id),),
                "bad-signature": (_hello(node, caller), unproved),
            }
            for reason, frames in attempts.items():
                code = await _refusal(node, caller, *frames)
                assert code is grpc.StatusCode.FAILED_PRECONDITION, reason
                assert node.node.status().rejected[reason] == 1, reason
            assert not node.node.links.connected

    asyncio.run(story())


def test_a_stranger_gets_no_connection(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=1) as (node,):
            stranger = Identity.generate()
            code = await _refusal(node, stranger, _hello(node, stranger))
            assert code is grpc.StatusCode.UNAVAILABLE

    asyncio.run(story())


def test_a_node_does_not_believe_who_answers_at_a_members_address(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, nodes=2)
        async with running(directories[:1], rounds=1) as (node,):
            expected = identity_of("somebody else").node_id
            caller = _key(directories[1])
            links = make_links(caller, {node.id, expected}, mesh_id=node.node.mesh_id)
            links.dial({node.settings.node.listen: expected})
            await until(lambda: "UNAVAILABLE" in links.record(expected).last_error, [node])
            assert not links.connected
            await links.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    "request_message",
    [
        mesh_pb2.FetchRequest(),
        mesh_pb2.FetchRequest(delta=mesh_pb2.DeltaReference(member=b"x", sequence=1)),
        mesh_pb2.FetchRequest(describe=2**63),
        mesh_pb2.FetchRequest(holdings=0),
        mesh_pb2.FetchRequest(chunk=mesh_pb2.ChunkReference(height=1, address=b"../x")),
    ],
    ids=["nothing", "short id", "absurd height", "no height", "a path"],
)
def test_malformed_requests_are_refused(
    tmp_path: Path, request_message: mesh_pb2.FetchRequest
) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=1) as (node,):
            async with channel_to(node.settings.node.join_listen, node.id, None) as channel:
                call = MeshStub(channel).Fetch(request_message)
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    async for _ in call:
                        pass
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert node.node.status().rejected["malformed-message"] == 1

    asyncio.run(story())


def test_a_join_that_is_not_signed_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=1) as (node,):
            async with channel_to(node.settings.node.join_listen, node.id, None) as channel:
                reply = await MeshStub(channel).Join(mesh_pb2.JoinRequest(operation=b"\x02rubbish"))
            assert not reply.accepted
            assert reply.reason

    asyncio.run(story())
