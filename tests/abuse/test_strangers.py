"""What somebody without a member's key can do with an open port: nothing, and it is counted."""

import asyncio
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from shoal.node.identity import Identity
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.wire import PROTOCOL_VERSION
from shoal.proto import mesh_pb2
from shoal.proto.mesh_pb2_grpc import MeshStub
from tests.node.mesh import RunningNode, found_mesh, running, until


async def _refusal(node: RunningNode, *frames: mesh_pb2.LinkFrame) -> grpc.StatusCode:
    """Open a link, say these frames, and return how it ends."""
    async with grpc.aio.insecure_channel(node.settings.node.listen) as channel:
        call = MeshStub(channel).Link()
        with suppress(grpc.aio.AioRpcError):
            for frame in frames:
                await call.write(frame)
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code()


def _hello(node: RunningNode, **changes: object) -> mesh_pb2.LinkFrame:
    fields = {
        "protocol": PROTOCOL_VERSION,
        "mesh_id": node.node.mesh_id,
        "node_id": bytes(32),
        "nonce": bytes(32),
        "address": "127.0.0.1:1",
        **changes,
    }
    return mesh_pb2.LinkFrame(hello=mesh_pb2.Hello(**fields))  # type: ignore[arg-type]


def test_links_of_strangers_are_refused_by_reason(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=1) as (node,):
            member = node.node.state.node_id
            attempts = {
                "handshake": mesh_pb2.LinkFrame(ping=mesh_pb2.Ping(stamp=1)),
                "malformed-message": _hello(node, nonce=b"short"),
                "wrong-mesh": _hello(node, mesh_id=bytes(32)),
                "wrong-protocol": _hello(node, protocol=99),
                "not-a-member": _hello(node),
                "own-key": _hello(node, node_id=member),
            }
            for reason, frame in attempts.items():
                code = await _refusal(node, frame)
                assert code is grpc.StatusCode.FAILED_PRECONDITION, reason
                assert node.node.status().rejected[reason] == 1, reason

    asyncio.run(story())


def test_a_members_name_without_its_key_gets_no_link(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, nodes=2)
        async with running(directories[:1], rounds=1) as (node,):
            other = Identity.load(directories[1] / "identity.key").node_id
            proof = mesh_pb2.LinkFrame(proof=mesh_pb2.Proof(signature=bytes(64), boot=bytes(121)))
            code = await _refusal(node, _hello(node, node_id=other), proof)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert node.node.status().rejected["bad-signature"] == 1
            assert not node.node.links.connected

    asyncio.run(story())


def test_a_node_does_not_believe_who_answers_at_a_members_address(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, nodes=1)
        stranger = Identity.create(tmp_path / "stranger.key")
        async with running(directories, rounds=1) as (node,):
            links = Links(
                identity=stranger,
                mesh_id=node.node.mesh_id,
                address="",
                meters=Meters(),
                boot=1,
                is_member=lambda peer: True,
                on_up=lambda peer: None,
                on_down=lambda peer: None,
                on_message=lambda peer, message: None,
                on_evidence=lambda operation: None,
            )
            expected = bytes(range(32))
            links.dial({node.settings.node.listen: expected})
            await until(lambda: "answers there" in links.record(expected).last_error, [node])
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
            async with grpc.aio.insecure_channel(node.settings.node.listen) as channel:
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
            async with grpc.aio.insecure_channel(node.settings.node.listen) as channel:
                reply = await MeshStub(channel).Join(mesh_pb2.JoinRequest(operation=b"\x02rubbish"))
            assert not reply.accepted
            assert reply.reason

    asyncio.run(story())
