"""What a validator says of a candidate is of the epoch that it says it in."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.consensus.effects import Propose
from shoal.consensus.records import CheckpointRecord
from shoal.node.checkpointing import Checkpointer
from shoal.node.cut_times import CutTimes
from shoal.node.parameters import MeshParameters

OLD = MeshParameters()
NEW = replace(OLD, clip_factor=3.0)


class Slow(Checkpointer):
    """Its first piece of work takes until the next epoch has begun."""

    def __init__(self) -> None:
        self.now, self.judged = OLD, list[MeshParameters]()
        self._mesh = lambda: self.now
        self._times = CutTimes()

    async def _work(self, mesh: MeshParameters) -> Any:
        self.judged.append(mesh)
        await asyncio.sleep(0)
        self.now = NEW
        return mesh

    async def _check(self, record: CheckpointRecord, mesh: MeshParameters) -> bool:
        return bool(await self._work(mesh) == NEW)

    async def _propose(self, wish: Propose, mesh: MeshParameters) -> Any:
        return await self._work(mesh)


@pytest.mark.parametrize("duty", ["check", "propose"])
def test_what_the_next_epoch_overtakes_is_worked_out_again(duty: str) -> None:
    slow = Slow()
    answer = asyncio.run(getattr(slow, duty)(SimpleNamespace(height=1)))
    assert slow.judged == [OLD, NEW]
    assert answer == (True if duty == "check" else NEW)
