"""The dashboard asks real nodes: from one directory it finds the whole mesh, and sees one die."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from shoal.node.inspect_client import StatusReply
from shoal.node.mesh_watch import MeshWatch, Target, find_target
from tests.node.fake_node import example_reply
from tests.node.mesh import found_mesh, running, until, until_rebuilt
from tests.node.played import played_plainly


def shown(watch: MeshWatch, what: str) -> list[Any]:
    return [member[what] for member in watch.picture.get("members", [])]


@played_plainly
async def test_a_directory_shows_every_member_and_who_dies(tmp_path: Path) -> None:
    directories = found_mesh(tmp_path / "mesh")
    async with running(directories, rounds=0) as nodes:
        watch = MeshWatch(find_target(str(directories[0])), wall_clock=lambda: 1e9)
        watching = asyncio.create_task(watch.run())
        try:
            await until(lambda: shown(watch, "answers") == [True] * 4, nodes)
            await until(lambda: shown(watch, "shown") == ["alive"] * 4, nodes)
            height = await until_rebuilt(nodes, 1)
            await until(lambda: watch.picture["height"] >= height, nodes)
            signers = watch.picture["checkpoints"][0]["signers"]
            assert len(signers) >= 3 and set(signers) <= {node.id.hex() for node in nodes}
            # The named node itself: the others go on telling of it, over their own port.
            victim = nodes.pop(0)
            await victim.stop()
            dead = {"id": victim.id.hex(), "shown": "dead", "answers": False}
            await until(lambda: any(dead.items() <= m.items() for m in members(watch)), nodes)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    told = [entry["text"] for entry in watch.journal.since(0) if "text" in entry]
    assert any("is dead" in text for text in told)
    assert any(text.startswith("checkpoint ") for text in told)
    assert {entry["loss"][0] for entry in watch.journal.since(0) if "loss" in entry} >= {
        node.id.hex() for node in nodes
    }


def members(watch: MeshWatch) -> list[dict[str, Any]]:
    return list(watch.picture.get("members", []))


@played_plainly
async def test_who_speaks_in_anothers_name_is_not_heard() -> None:
    home = example_reply()
    home.peers[0].liveness = "alive"
    other = home.peers[0].node_id
    watch = MeshWatch(Target("127.0.0.1:1", node_id=home.node_id), wall_clock=lambda: 1e9)
    await hear(watch, home.node_id, home)
    lie = example_reply(node="somebody else")
    await hear(watch, other, lie)
    assert {m["name"] for m in look(watch)} == {"node0", other[:8]}
    lie.node_id = "99" * 32
    await hear(watch, lie.node_id, lie)
    assert len(look(watch)) == 2, "who is a member is not for others to say"


async def hear(watch: MeshWatch, node: str, reply: StatusReply) -> None:
    """One answer on the line to `node`, while it lasts."""

    async def replies() -> AsyncIterator[StatusReply]:
        yield reply
        await asyncio.Event().wait()

    listening = asyncio.create_task(watch._follow(node, replies()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


def look(watch: MeshWatch) -> list[dict[str, Any]]:
    watch._look()
    return members(watch)
