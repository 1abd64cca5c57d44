"""Members check each other on their own text: who harms the model goes, and nobody else.

Real nodes, real consensus. They learn a parabola instead of a language, so that a round is over at
once; each member holds out points of its own.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from structlog.testing import capture_logs

from shoal.compression.codec import encode
from shoal.consensus.ledger import Eviction
from shoal.gossip.attacks import Sight, sign_flip
from shoal.gossip.delta import Delta, make_delta
from shoal.gossip.parameters import EpochParameters
from shoal.gossip.settled import SettledState
from shoal.node.config import load_settings
from shoal.node.errors import DamagedError
from shoal.node.spot_checks import Said, read, with_all_of, without
from shoal.node.trainer import BatchLosses, Evaluated
from tests.gossip.builders import MESH, SCHEMA, epoch, hashed_anchor, hashed_delta, member
from tests.node import mesh
from tests.node.mesh import MadeUpTraining, RunningNode, found_mesh, until, until_rebuilt

BATCHES = 8


class Parabola(MadeUpTraining):
    """Loss |w - w*|^2 of points that differ from member to member; a round goes some way down."""

    def __init__(self, parameters: int, seed: int) -> None:
        super().__init__(parameters, seed)
        best = torch.randn(parameters, generator=torch.Generator().manual_seed(0)) * 0.05
        own = torch.Generator().manual_seed(seed)
        self._held_out = [
            best + 0.002 * torch.randn(parameters, generator=own) for _ in range(BATCHES)
        ]
        self._target = best + 0.002 * torch.randn(parameters, generator=own)
        self.lies = False
        self.rate = 0.1
        # What a measurement is said to take.
        self.seconds = 0.0
        self.checks = 0

    def order_round(self, number: int, *, steps: int, **further: Any) -> None:
        super().order_round(number, steps=steps, **further)
        slot = self.delta_slot(number)
        torch.sub(self._slots[0], self._target, out=slot).mul_(self.rate)
        if self.lies:
            sight = Sight(slot, slot[None], 1, torch.Generator())
            slot.copy_(sign_flip(sight))

    async def evaluate(self, tag: str) -> Evaluated:
        losses = self._losses()
        return Evaluated({"loss": sum(losses) / len(losses)}, 0.0)

    async def batch_losses(self, tag: str) -> BatchLosses:
        self.checks += 1
        return BatchLosses(self._losses(), self.seconds)

    def _losses(self) -> list[float]:
        # Of so many values that what one member changes is more than the floor.
        return [float((self._slots[3] - point).square().sum()) for point in self._held_out]


def said_by(sender: bytes, number: int, label: str) -> Delta:
    """A member's delta of the first epoch. Nobody looks at its signature here."""
    return make_delta(
        encode(hashed_delta(label)),
        mesh_id=MESH,
        sender=sender,
        sequence=number,
        height=0,
        steps=1,
        tokens=1,
        sign=lambda data: bytes(64),
    )


def test_what_one_member_said_is_taken_out_exactly_and_put_in_as_if_it_were_believed() -> None:
    ann, bob = member(1), member(2)
    start, trusting = hashed_anchor("start"), epoch(0, 2)
    doubting = replace(trusting, trust=(100, 1000))
    deltas = [said_by(ann, 1, "a"), said_by(ann, 2, "b")]
    rest = [said_by(bob, 1, "c")]

    def heard(deltas: list[Delta], parameters: EpochParameters) -> list[Said]:
        settled = SettledState.genesis(parameters, staleness=2)
        return [read(delta, SCHEMA, settled) for delta in deltas]

    cut = with_all_of(start, heard([*deltas, *rest], trusting))
    left = without(cut, heard(deltas, trusting))
    assert torch.equal(left.values, with_all_of(start, heard(rest, trusting)).values)
    assert torch.equal(with_all_of(left, heard(deltas, trusting)).values, cut.values)
    # Of a doubted one a tenth has been added, and all of it would have been.
    muted = heard(deltas, doubting)
    assert torch.equal(without(cut, muted).values, left.values)
    step = with_all_of(start, muted).values - start.values
    assert torch.equal(step, 10 * (start.values - without(start, muted).values))
    assert torch.equal(start.values, hashed_anchor("start").values), "and the rest is as it was"


def out(node: RunningNode) -> dict[bytes, Eviction]:
    return node.node.state.consensus.replica.ledger.evictions()


def checks(node: RunningNode) -> int:
    assert isinstance(node.training, Parabola)
    return node.training.checks


def lines(logged: list[Any], event: str) -> list[Any]:
    return [line for line in logged if line["event"] == event]


async def started(
    directories: list[Path], *, liar: int | None = None, rate: float = 0.1
) -> list[RunningNode]:
    nodes = []
    for index, directory in enumerate(directories):
        node = RunningNode(directory, load_settings(directory, {**mesh.QUICK}))
        node.make_training = Parabola  # type: ignore[method-assign]
        await node.start()
        assert isinstance(node.training, Parabola)
        node.training.lies, node.training.rate = index == liar, rate
        nodes.append(node)
    return nodes


def test_one_of_five_that_turns_its_deltas_around_is_put_out(tmp_path: Path) -> None:
    async def story() -> None:
        nodes = await started(found_mesh(tmp_path, nodes=5, evict_harmful=True), liar=2)
        liar = nodes[2]
        honest = [node for node in nodes if node is not liar]
        try:
            await until(lambda: all(out(node) for node in honest), honest, seconds=50)
            for node in honest:
                assert out(node) == {liar.id: Eviction.HARM}
                told = node.node.status().evicted
                assert [(each.node_id, each.why) for each in told] == [(liar.id.hex(), "harm")]
            await until(lambda: liar.failed() is not None, honest)
            assert isinstance(liar.cause(), DamagedError)
            assert "the model better without what it learned" in str(liar.cause())
            await until_rebuilt(honest, honest[0].height + 2)
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    with capture_logs() as logged:
        asyncio.run(story())
    names = {line["member"] for line in lines(logged, "member.objected")}
    assert len(names) == 1, "nobody objected to an honest member"
    assert {line["strikes"] for line in lines(logged, "member.harmful")} == {1, 2}
    assert {line["why"] for line in lines(logged, "member.evicted")} == {"harm"}


def test_nobody_is_to_blame_where_an_honest_mesh_goes_too_far_together(tmp_path: Path) -> None:
    """The model is worse after a cut, and would be better without any one of the members."""
    losses: dict[int, float] = {}

    async def story() -> None:
        nodes = await started(found_mesh(tmp_path, nodes=5, evict_harmful=True), rate=0.3)
        try:
            await until_rebuilt(nodes, 10)
            losses.update(nodes[0].node.state.facts.evaluations)
            for node in nodes:
                assert checks(node) >= 4
                assert not out(node)
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    with capture_logs() as logged:
        asyncio.run(story())
    assert any(losses[h] > 1.05 * losses[h - 1] for h in losses if h - 1 in losses), losses
    # On a busy machine a cut may hold most of one member's rounds, and one check errs; not two.
    assert not lines(logged, "member.objected")


def test_checks_take_a_twentieth_of_the_training_time_at_most(tmp_path: Path) -> None:
    async def story() -> None:
        nodes = await started(found_mesh(tmp_path, evict_harmful=True))
        for node in nodes:
            assert isinstance(node.training, Parabola)
            node.training.seconds = 60.0
        try:
            await until_rebuilt(nodes, 6)
            assert max(map(checks, nodes)) == 2, "one check, and a rest of forty minutes"
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())


def test_where_the_mesh_does_not_say_so_nobody_is_checked(tmp_path: Path) -> None:
    async def story() -> None:
        nodes = await started(found_mesh(tmp_path, nodes=5), liar=2)
        try:
            await until_rebuilt(nodes, 6)
            assert [checks(node) for node in nodes] == [0] * 5
            assert not any(map(out, nodes))
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(story())
