"""Nodes over real loopback gRPC: they agree, survive a member's death, and let a fifth in."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from shoal.node import certificates
from shoal.node.audit import audit_checkpoint
from shoal.node.checkpoint_dirs import newest_checkpoint
from shoal.node.config import load_settings
from shoal.node.errors import UnreachableError
from shoal.node.identity import Identity
from shoal.node.inspect_client import fetch_status
from shoal.node.join import join_mesh
from shoal.node.verify import verify_checkpoint
from tests.node.inviting import invitation_by
from tests.node.mesh import (
    QUICK,
    ROUND_SECONDS,
    RunningNode,
    any_address,
    found_mesh,
    running,
    until,
    until_rebuilt,
)


def test_four_nodes_commit_checkpoints_with_equal_roots(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=6) as nodes:
            await until_rebuilt(nodes, 2)
            for node in nodes:
                roots = list(node.rebuilt().values())
                assert len(set(roots)) == len(roots), "each height is another model"
                reply = node.node.status()
                for checkpoint in reply.checkpoints:
                    signers = set(checkpoint.signers)
                    assert len(signers) == checkpoint.signatures >= 3
                    assert signers <= {each.id.hex() for each in nodes}
                assert reply.gossip.applied_deltas >= checkpoint.deltas
                assert reply.consensus.byzantine_tolerance == 1
                assert not reply.rejected

    asyncio.run(story())


def test_the_mesh_goes_on_without_one_and_takes_it_back(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path)
        async with running(directories, rounds=0) as nodes:
            await until_rebuilt(nodes, 1)
            victim = nodes.pop()
            await victim.stop()
            left_at = victim.height
            await until_rebuilt(nodes, left_at + 3)
            returned = RunningNode(victim.directory, victim.settings)
            await returned.start()
            nodes.append(returned)
            assert returned.height >= left_at, "it came back from its own disk"
            await until_rebuilt(nodes, nodes[0].height + 2)
            for node in nodes:
                evidence = [k for k in node.node.status().rejected if k.startswith("evidence")]
                assert not evidence, "nobody voted twice"

    asyncio.run(story())


def test_a_node_that_comes_back_reads_on_where_it_stopped(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=0) as nodes:
            first = nodes.pop()
            await until(lambda: first.node.status().training.round >= 3, [first])
            await first.stop()
            assert first.training.numbers[0] == 1
            again = RunningNode(first.directory, first.settings)
            await again.start()
            nodes.append(again)
            await until(lambda: bool(again.training.numbers), nodes)
            # What was ordered last was never said, so that text is read again.
            assert 3 <= again.training.numbers[0] <= first.training.numbers[-1]

    asyncio.run(story())


def test_a_fifth_joins_by_address_and_its_deltas_count(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path / "mesh"), rounds=0) as nodes:
            # On the disk, that is: the anchor in memory comes first.
            await until(lambda: all(node.node.holdings.whole_heights() for node in nodes), nodes)
            fifth = tmp_path / "fifth"
            await join_mesh(
                nodes[0].settings.node.join_listen,
                fifth,
                listen=any_address(),
                advertise="",
                data=nodes[0].settings.train.data,
                invitation=invitation_by(nodes[0]),
                contact=nodes[0].id,
            )
            fetched = verify_checkpoint(newest_checkpoint(fifth), nodes[0].node.mesh_id)
            assert not fetched.deltas_here, "it was not there when they were made"
            joiner = RunningNode(fifth, load_settings(fifth, QUICK))
            await joiner.start()
            nodes.append(joiner)
            assert joiner.height >= 1, "it starts from a certified checkpoint"
            me = bytes.fromhex(joiner.node.status().node_id)
            await until(lambda: me in nodes[0].model.parameters.members, nodes)
            await until(lambda: joiner.node.status().training.round >= 3, nodes)
            await until_rebuilt(nodes, nodes[0].height + 2)
            assert joiner.node.status().role == "member"
            floors = dict(nodes[0].model.book.settled.floors)
            included = {member for member, _ in nodes[0].model.book.settled.included}
            assert me in floors or me in included, "what it learned is in a committed cut"

    asyncio.run(story())


def test_a_node_that_lost_its_checkpoints_fetches_the_newest(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=0) as nodes:
            await until_rebuilt(nodes, 2)
            victim = nodes.pop()
            await victim.stop()
            shutil.rmtree(victim.directory / "checkpoints")
            returned = RunningNode(victim.directory, victim.settings)
            await returned.start()
            nodes.append(returned)
            assert returned.height == 0
            await until_rebuilt(nodes, nodes[0].height + 1)

    asyncio.run(story())


def test_any_grpc_client_can_find_and_ask_a_node(tmp_path: Path) -> None:
    def as_a_stranger(address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert "shoal.v1.Inspect" in database.get_services()
            pool = DescriptorPool(database)
            service = pool.FindServiceByName("shoal.v1.Inspect")
            reply_type = GetMessageClass(service.methods_by_name["Status"].output_type)
            ask: Any = channel.unary_unary(
                "/shoal.v1.Inspect/Status",
                request_serializer=lambda request: b"",
                response_deserializer=reply_type.FromString,
            )
            assert ask(None).node == "node0"
            health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
            for name in ("", "shoal.v1.Inspect"):
                answer = health.Check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING

    async def story() -> None:
        async with running(found_mesh(tmp_path, nodes=1), rounds=1) as (node,):
            await asyncio.to_thread(as_a_stranger, node.settings.node.inspect_listen)

    asyncio.run(story())


def test_a_member_can_inspect_another_one_from_anywhere(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, nodes=2)
        async with running(directories[:1], rounds=1) as (node,):
            there = f"{node.id.hex()}@{node.settings.node.listen}"
            reply = await fetch_status(there, member=directories[1])
            assert reply.node == "node0"
            assert any("identity export" in warning for warning in reply.warnings)
            own = await fetch_status(str(directories[0]))
            assert own.node_id == reply.node_id
            stranger = tmp_path / "stranger"
            stranger.mkdir()
            Identity.create(stranger / "identity.key")
            with pytest.raises(UnreachableError):
                await fetch_status(there, member=stranger)

    asyncio.run(story())


def test_a_mesh_lives_through_new_leaves_of_all_its_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What takes a day takes six seconds: each node makes a new leaf every three.
    monkeypatch.setattr(certificates, "LEAF_LIFETIME_S", 9.0)
    monkeypatch.setattr(certificates, "BACKDATED_S", 3.0)

    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=0) as nodes:
            first = [node.node.links.trust.leaf for node in nodes]
            began = nodes[0].height
            await asyncio.sleep(8.0)
            for node, before in zip(nodes, first, strict=True):
                assert node.node.links.trust.leaf.not_after >= before.not_after + 3
            await until_rebuilt(nodes, max(node.height for node in nodes) + 2)
            assert nodes[0].height > began
            await until(lambda: all(len(n.node.links.connected) == 3 for n in nodes), nodes)
            refused = {reason for node in nodes for reason in node.node.status().rejected}
            assert refused.isdisjoint({"leaf-expired", "bad-certificate", "not-a-member"})

    asyncio.run(story())


@pytest.mark.timeout(180)
def test_a_slow_node_makes_short_rounds_and_publishes_with_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path, local_steps=8), rounds=0) as nodes:
            for node, slowness in zip(nodes, (1, 1, 1, 3), strict=True):
                node.training.step_seconds = slowness * ROUND_SECONDS / 8
            slow = nodes[3].training
            await until(lambda: len(slow.steps) >= 10 and slow.steps[-1] < 8, nodes)
            assert slow.steps[0] == 8 and 2 <= slow.steps[-1] <= 4
            assert all(set(node.training.steps) == {8} for node in nodes[:3])

    asyncio.run(story())


def test_what_others_say_is_learned_from_before_the_own_round_ends(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=0) as nodes:
            *others, slow = nodes
            slow.training.step_seconds = 1e4
            await until(lambda: slow.training.starts > len(slow.training.numbers) + 10, nodes)
            for node in others:
                node.training.step_seconds = 1e4

            def follows() -> bool:
                share = slow.model.mesh().start_share * slow.node.state.facts.residual_norm
                distance = float((slow.training.start - slow.model.live.to_weights()).norm())
                heard = slow.model.live.root() == others[0].model.live.root()
                return heard and distance == pytest.approx(share, rel=1e-3)

            await until(follows, nodes)

    asyncio.run(story())


def test_where_a_mesh_has_no_trust_the_same_liar_counts_by_its_weight(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path, trust=False)
        async with running(directories, rounds=0) as nodes:
            for node, course in zip(nodes, (3e-3, 3e-3, 3e-3, -9e-3), strict=True):
                node.training.course = course
            height = await until_rebuilt(nodes, 2)
            assert all(set(node.model.parameters.trust) == {1000} for node in nodes)
        for directory in directories:
            checkpoint = directory / "checkpoints" / str(height)
            assert audit_checkpoint(checkpoint).reproduced
            assert verify_checkpoint(checkpoint).in_force["trust"] is False

    asyncio.run(story())


def test_who_goes_the_other_way_counts_for_a_tenth_from_the_next_checkpoint_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path)
        async with running(directories, rounds=0) as nodes:
            for node, course in zip(nodes, (3e-3, 3e-3, 3e-3, -9e-3), strict=True):
                node.training.course = course
            *honest, liar = nodes
            expected = {node.id: 1000 for node in honest} | {liar.id: 100}
            await until(lambda: all(n.model.parameters.trusted == expected for n in nodes), nodes)
            weights = dict(honest[0].model.parameters.weights)
            # Not exactly a tenth: who was slower in the cut counts for more.
            assert weights[liar.id] < weights[honest[0].id] / 4
            height = await until_rebuilt(nodes, honest[0].height + 1)
        for directory in directories:
            assert audit_checkpoint(directory / "checkpoints" / str(height)).reproduced
        assert capsys.readouterr().out.count("member.distrusted") >= 4

    asyncio.run(story())
