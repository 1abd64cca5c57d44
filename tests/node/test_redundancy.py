"""A running mesh keeps its past together, and lets in one who is lied to at the door."""

import asyncio
from pathlib import Path
from typing import Any

from shoal.node.config import load_settings
from shoal.node.join import join_mesh
from shoal.node.ports import free_ports
from tests.node.inviting import invitation_by
from tests.node.mesh import QUICK, RunningNode, found_mesh, until

RETENTION: dict[str, object] = {"retention.keep_every": 2, "retention.archived_max": 2}


def heights(node: RunningNode, folder: str) -> list[int]:
    return sorted(int(entry.name) for entry in (node.directory / folder).glob("[0-9]*"))


def pieces(node: RunningNode, height: int) -> set[str]:
    path = node.directory / "archive" / str(height) / "chunks"
    return {entry.name for entry in path.glob("?" * 64)}


def test_two_checkpoints_stay_whole_and_the_older_ones_lie_on_three_disks_of_four(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path)
        nodes = [
            RunningNode(each, load_settings(each, {**QUICK, **RETENTION})) for each in directories
        ]
        try:
            for node in nodes:
                await node.start()
            await until(lambda: all(node.height >= 5 for node in nodes), nodes)
            await until(lambda: all(len(heights(n, "checkpoints")) <= 3 for n in nodes), nodes)

            def settled() -> bool:
                height = max(heights(nodes[0], "archive"), default=0)
                return height > 0 and sum(len(pieces(node, height)) for node in nodes) == 3

            await until(settled, nodes)
            assert all(len(heights(node, "archive")) <= 3 for node in nodes)
            assert all(height % 2 == 0 for node in nodes for height in heights(node, "archive"))
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())


def test_a_joiner_that_is_lied_to_by_its_contact_gets_the_model_from_the_others(
    tmp_path: Path, capsys: Any
) -> None:
    async def story() -> None:
        directories = found_mesh(tmp_path / "mesh")
        nodes = [RunningNode(each, load_settings(each, QUICK)) for each in directories]
        try:
            for node in nodes:
                await node.start()
            # On the disk, that is: the anchor in memory comes first.
            await until(lambda: all(node.node.holdings.whole_heights() for node in nodes), nodes)
            liar = nodes[0]
            honest_chunk = liar.node.holdings.chunk

            async def lie(height: int, address: bytes) -> bytes | None:
                data = await honest_chunk(height, address)
                return data and bytes([data[0] ^ 1]) + data[1:]

            liar.node.holdings.chunk = lie  # type: ignore[method-assign]
            fifth = tmp_path / "fifth"
            await join_mesh(
                liar.settings.node.join_listen,
                fifth,
                listen=f"127.0.0.1:{free_ports(1)[0]}",
                advertise="",
                data=liar.settings.train.data,
                invitation=invitation_by(liar),
                contact=liar.id,
            )
            joiner = RunningNode(fifth, load_settings(fifth, QUICK))
            await joiner.start(train=False)
            nodes.append(joiner)
            assert joiner.height >= 1
            height, root = joiner.height, joiner.model.committed.root().hex()
            await until(lambda: any(n.rebuilt().get(height) == root for n in nodes[1:4]), nodes)
            assert not list((fifth / "checkpoints").glob(".*"))
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())
