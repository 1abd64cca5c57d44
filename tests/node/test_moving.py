"""A node that moves: new address in its settings, a restart, and the mesh finds it there."""

import asyncio
from pathlib import Path

from shoal.node.addresses import is_wildcard
from shoal.node.config import load_settings
from tests.node.mesh import QUICK, RunningNode, any_address, found_mesh, running, until


def _address_of(node: RunningNode, member: bytes) -> str:
    return node.node.state.consensus.replica.ledger.members[member].address


def test_the_log_says_where_a_node_has_moved_and_the_others_dial_it_there(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=2) as nodes:
            mover, others = nodes[3], nodes[:3]
            await until(lambda: len(mover.node.links.connected) == 3, nodes)
            before = others[0].node.state.consensus.replica.ledger.members[mover.id]
            await mover.stop()
            new = any_address()
            nodes[3] = mover = RunningNode(
                mover.directory,
                load_settings(
                    mover.directory, {**QUICK, "node.listen": new, "node.advertise": new}
                ),
            )
            await mover.start()
            await until(lambda: all(_address_of(node, mover.id) == new for node in nodes), nodes)
            now = others[0].node.state.consensus.replica.ledger.members[mover.id]
            assert (now.shard_tokens, now.validates) == (before.shard_tokens, before.validates)
            # Whoever loses its link finds it at the new place, and only there.
            await until(
                lambda: all(node.node.links.record(mover.id).address == new for node in others),
                nodes,
            )
            await asyncio.sleep(2)
            later = others[0].node.state.consensus.replica.ledger.members[mover.id]
            assert later.time_ms == now.time_ms, "it says so once"

    asyncio.run(story())


def test_an_address_that_stands_for_all_is_nowhere_to_be_found() -> None:
    assert is_wildcard("0.0.0.0:7400") and is_wildcard("[::]:7400")
    assert not is_wildcard("10.0.0.1:7400") and not is_wildcard("node0:7400")


def test_who_listens_everywhere_and_advertises_nothing_moves_nowhere(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path)
        async with running(directories[:3], rounds=2) as nodes:
            port = any_address().rpartition(":")[2]
            changes = {"node.listen": f"0.0.0.0:{port}", "node.advertise": ""}
            settings = load_settings(directories[3], {**QUICK, "train.max_rounds": 2, **changes})
            nodes.append(RunningNode(directories[3], settings))
            await nodes[3].start()
            await until(lambda: len(nodes[3].node.links.connected) == 3, nodes)
            await asyncio.sleep(1)
            assert "0.0.0.0" not in _address_of(nodes[0], nodes[3].id)

    asyncio.run(story())
