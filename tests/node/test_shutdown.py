"""A node that stops leaves nothing running that could still want its database."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from shoal.node import bulk
from tests.node.mesh import found_mesh, running, until


def test_a_delta_that_arrives_while_the_node_stops_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = bulk.fetch_delta
    arriving: set[object] = set()
    complaints: list[dict[str, Any]] = []
    late = asyncio.Event()

    async def slow(*where: Any, **how: Any) -> bytes:
        blob = await fetch(*where, **how)
        task = asyncio.current_task()
        arriving.add(task)
        # It has come, and its node is told to stop before it is looked at.
        await late.wait()
        arriving.discard(task)
        return blob

    async def story() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        async with running(found_mesh(tmp_path, nodes=2), rounds=4) as nodes:
            monkeypatch.setattr(bulk, "fetch_delta", slow)
            await until(lambda: len(arriving) >= 2, nodes)
        late.set()
        await asyncio.sleep(0.2)
        gc.collect()

    asyncio.run(story())
    assert not complaints
