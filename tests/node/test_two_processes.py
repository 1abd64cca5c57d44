"""Two processes with one key: whoever copies a node's directory and starts both loses the key."""

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

from shoal.node.config import load_settings
from shoal.node.errors import DamagedError
from tests.node.mesh import QUICK, RunningNode, any_address, found_mesh, running, until


def test_a_copied_key_is_evicted_and_the_others_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path)
        copy = tmp_path / "copy"
        shutil.copytree(directories[3], copy)
        async with running(directories[:3], rounds=0) as nodes, AsyncExitStack() as stack:
            elsewhere = {"node.listen": any_address()}
            twins = [
                RunningNode(directory, load_settings(directory, {**QUICK, **changes}))
                for directory, changes in ((directories[3], {}), (copy, elsewhere))
            ]
            for twin in twins:
                await twin.start()
                stack.push_async_callback(twin.stop)
            key = twins[0].node.state.node_id
            await until(
                lambda: all(
                    node.node.state.consensus.replica.ledger.is_evicted(key) for node in nodes
                ),
                nodes,
            )
            await until(lambda: any(twin.failed() is not None for twin in twins), nodes)
            for twin in twins:
                if twin.failed() is not None:
                    assert isinstance(twin.cause(), DamagedError)
                    assert "evicted this node's key" in str(twin.cause()) or (
                        "another process runs with this node's key" in str(twin.cause())
                    )
            target = nodes[0].height + 2
            await until(lambda: all(node.height >= target for node in nodes), nodes)

    asyncio.run(story())


def test_a_later_boot_replaces_an_earlier_one_and_convicts_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        async with running(found_mesh(tmp_path), rounds=0) as nodes:
            await until(lambda: nodes[0].height >= 1, nodes)
            for _ in range(2):
                again = nodes.pop()
                await again.stop()
                returned = RunningNode(again.directory, again.settings)
                await returned.start()
                nodes.append(returned)
                target = nodes[0].height + 1
                await until(lambda t=target: all(n.height >= t for n in nodes), nodes)  # type: ignore[misc]
            assert not nodes[0].node.state.consensus.replica.ledger.departed

    asyncio.run(story())
