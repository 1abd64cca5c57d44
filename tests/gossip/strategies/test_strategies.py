"""Every strategy brings nodes with different targets near the model that suits them all.

A node that listens to nobody ends at its own target, `apart` 1; one that listens well ends near the
mean of all. What is known not to contract must fail the very same assertion.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from shoal.gossip.mixing import Row, mixing_rows, pair_row
from shoal.gossip.parameters import genesis_parameters
from shoal.gossip.snapshots import choose, median_model, take_snapshot
from shoal.gossip.strategies.choco import Choco
from shoal.gossip.strategies.delta_log import DeltaLog
from shoal.gossip.strategies.diloco import Diloco
from shoal.gossip.strategies.dpsgd import Dpsgd, MixingState
from shoal.gossip.strategies.gasloc import Gasloc
from shoal.gossip.strategies.noloco import Noloco
from shoal.gossip.strategies.strategy import AnyStrategy, Framed, Reach
from shoal.gossip.topology import graph, matching
from tests.gossip.builders import SCHEMA, members
from tests.gossip.strategies.builders import Targets, work

COUNT, ROUNDS = 8, 60
NEAR, TOGETHER = 0.35, 0.6


def delta_log(**options: Any) -> DeltaLog:
    epoch = genesis_parameters(members(COUNT), SCHEMA, kept_per_chunk=512, alpha=2.0)
    return DeltaLog(SCHEMA, epoch, **options)


def play(
    strategy: AnyStrategy,
    seed: int,
    kind: str = "random-regular",
    *,
    world: Targets | None = None,
    rounds: range = range(ROUNDS),
) -> Targets:
    world = world or Targets(strategy, COUNT)
    links = mixing_rows(graph(kind, world.ids, bytes([seed]), 4))
    for number in rounds:
        rows: dict[bytes, Row] = {}
        if strategy.reach is Reach.NEIGHBOURS:
            rows = dict(links)
        elif strategy.reach is Reach.PARTNER:
            pairs = matching(world.ids, bytes([seed]), number)
            rows = {me: pair_row(me, other) for me, other in pairs.items()}
        world.round(number, rows)
    return world


def assert_converged(world: Targets) -> None:
    assert world.distance() < NEAR
    assert world.apart() < TOGETHER


STRATEGIES: dict[str, AnyStrategy] = {
    "delta-log": delta_log(),
    "delta-log, closed": delta_log(closed=True),
    "choco": Choco(SCHEMA, kept_per_chunk=512),
    "gasloc": Gasloc(),
    "noloco": Noloco(),
    "diloco": Diloco(),
    "dpsgd": Dpsgd(),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", STRATEGIES)
def test_it_converges(name: str, seed: int) -> None:
    assert_converged(play(STRATEGIES[name], seed))


@pytest.mark.parametrize("kind", ["ring", "torus", "exponential", "complete"])
def test_dpsgd_converges_on_every_graph(kind: str) -> None:
    assert_converged(play(Dpsgd(), 0, kind))


NEIGHBOURLY = ("choco", "gasloc", "noloco", "dpsgd")
EPOCH = 15


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NEIGHBOURLY)
def test_it_converges_with_a_model_that_all_agree_on_and_a_liar_among_them(
    name: str, seed: int
) -> None:
    """Every few rounds all go on from the median of snapshots, one of which is garbage."""
    strategy: Any = STRATEGIES[name]
    world = Targets(strategy, COUNT)
    root, agreed = bytes([seed]), world.genesis
    for epoch in range(ROUNDS // EPOCH):
        play(strategy, seed, world=world, rounds=range(epoch * EPOCH, (epoch + 1) * EPOCH))
        if epoch:
            assert_converged(world)
        garbage = {world.ids[epoch]: torch.randn_like(agreed)}
        taken = [
            take_snapshot(me, SCHEMA, garbage.get(me, model))
            for me, model in zip(world.ids, world.models(), strict=True)
        ]
        common = median_model(choose([s for s in taken if s], world.ids, root, SCHEMA))
        root, agreed = common.root(), common.to_weights()
        world.states = {me: strategy.adopt(world.states[me], agreed) for me in world.ids}
        assert all(torch.equal(strategy.start(world.states[me]), agreed) for me in world.ids)


@pytest.mark.parametrize("name", ["gasloc", "noloco"])
def test_momentum_is_kept_where_all_go_on_from_another_model(name: str) -> None:
    """A shift of everything changes nothing but where it happens."""
    strategy: Any = STRATEGIES[name]
    here, there = Targets(strategy, COUNT), Targets(strategy, COUNT)
    shift = torch.full_like(here.genesis, 0.25)
    for world in (here, there):
        play(strategy, 0, world=world, rounds=range(3))
    for me in here.ids:
        there.states[me] = strategy.adopt(
            there.states[me], strategy.model(there.states[me]) + shift
        )
        there.targets[me] = there.targets[me] + shift
    for world in (here, there):
        play(strategy, 0, world=world, rounds=range(3, 6))
    assert torch.allclose(there.models() - shift, here.models(), atol=5e-3)


class NaiveAverage(DeltaLog):
    """Neighbours add each other's compressed deltas: nothing contracts (algorithms.md 1.3)."""

    reach = Reach.NEIGHBOURS

    def listen(self, state: Any, messages: Sequence[Any], row: Row = {}) -> Any:  # noqa: B006
        epoch = replace(state.epoch, alpha=state.epoch.alpha * COUNT)
        weighted = replace(state, epochs=(epoch,))
        heard = DeltaLog(self.schema, epoch).listen(weighted, messages)
        return replace(heard, epochs=state.epochs)


class Deaf(Dpsgd):
    """Listens to nobody."""

    def listen(self, state: MixingState, messages: Sequence[Any], row: Row) -> MixingState:
        return state


KNOWN_BAD: dict[str, AnyStrategy] = {
    "naive averaging of compressed deltas": NaiveAverage(
        SCHEMA, genesis_parameters(members(COUNT), SCHEMA, kept_per_chunk=512, alpha=0.2)
    ),
    "choco with gamma over the cliff": Choco(SCHEMA, kept_per_chunk=64, gamma=2.5),
    "gasloc with too much momentum": Gasloc(mu=1.5),
    "listening to nobody": Deaf(),
}


@pytest.mark.parametrize("name", KNOWN_BAD)
def test_what_is_known_not_to_converge_fails_the_same_assertion(name: str) -> None:
    with pytest.raises(AssertionError):
        assert_converged(play(KNOWN_BAD[name], 0))


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_not_finite_is_never_said_and_does_no_lasting_harm(name: str) -> None:
    strategy = STRATEGIES[name]
    world = Targets(strategy, COUNT)
    world.targets[world.ids[0]] = torch.full_like(world.genesis, float("nan"))
    rows = mixing_rows(graph("ring", world.ids)) if strategy.reach is Reach.NEIGHBOURS else {}
    for number in range(3):
        world.round(number, rows)
        assert world.ids[0] not in world.said
    assert torch.isfinite(world.models()).all()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_message_counts_every_byte(name: str) -> None:
    world = Targets(STRATEGIES[name], COUNT)
    world.round(0, {})
    for message in world.said.values():
        if isinstance(message, Framed):
            assert message.size_bytes >= len(message.frame) + 128 + 64
        else:
            vectors = 2 if name == "noloco" else 1
            assert message.size_bytes == 2 * vectors * SCHEMA.layout.total + 128 + 64


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_newcomer_starts_where_its_donor_is(name: str) -> None:
    strategy = STRATEGIES[name]
    world = Targets(strategy, COUNT)
    for number in range(3):
        world.round(number, {})
    donor = world.states[world.ids[1]]
    newcomer = strategy.join(world.ids[0], donor, 3)
    assert torch.equal(strategy.model(newcomer), strategy.model(donor))
    began = strategy.start(newcomer)
    _, message = strategy.speak(newcomer, work(began, world.targets[world.ids[0]]))
    assert message is not None
    assert message.sender == world.ids[0]
    assert message.number > 3
