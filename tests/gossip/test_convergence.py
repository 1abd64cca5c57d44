"""Whole meshes under loss, duplication, reordering, flaps, crashes and liars end up equal."""

import random

import pytest

from tests.gossip.builders import brimful_anchor
from tests.gossip.simulated_mesh import SCHEMA, Faults, World, delta_of

SEEDS = 240
BATCH = 20


def ring(count: int) -> set[frozenset[int]]:
    return {frozenset((n, n % count + 1)) for n in range(1, count + 1)}


def random_graph(rng: random.Random, count: int) -> set[frozenset[int]]:
    """A random spanning tree and a few more links."""
    edges = {frozenset((n, rng.randint(1, n - 1))) for n in range(2, count + 1)}
    for _ in range(count // 2):
        edges.add(frozenset(rng.sample(range(1, count + 1), 2)))
    return edges


def expected_root(world: World) -> bytes:
    """From scratch: the genesis less everything in a cut, less what is pending."""
    anchor = brimful_anchor("mesh", SCHEMA)
    store = {i: head for node in world.nodes.values() for i, head in node.store.items()}
    inside = [store[entry.delta_id] for decided in world.log for entry in decided.entries]
    some_node = next(iter(world.nodes.values()))
    for head in [*inside, *some_node.book.pending()]:
        table = world.epochs[head.height].increments(
            delta_of(head), sender=head.sender, steps=head.steps, schema=SCHEMA
        )
        anchor.apply(delta_of(head), table)
    return anchor.root()


def run(seed: int) -> World:
    rng = random.Random(seed)
    count = rng.randint(3, 7)
    edges = ring(count) if seed % 2 else random_graph(rng, count)
    world = World(seed, edges, Faults(), staleness=rng.choice([0, 1, 2, 2]))
    world.play(duration_s=10.0, deltas=5, cuts=5)
    world.settle(limit_s=120.0)
    # An equivocator's victims may still hold different deltas: the last cut decides.
    world.decide()
    world.settle(limit_s=120.0)
    return world


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_every_node_ends_with_the_same_root(first: int) -> None:
    for seed in range(first, first + BATCH):
        world = run(seed)
        roots = {node.live.root() for node in world.nodes.values()}
        assert roots == {expected_root(world)}, f"seed {seed}"
        included = [entry.key for decided in world.log for entry in decided.entries]
        assert len(set(included)) == len(included), f"seed {seed}: a number was in two cuts"


def test_the_runs_were_hard_enough() -> None:
    """A simulation in which nothing goes wrong proves nothing."""
    worlds = [run(seed) for seed in range(12)]
    assert sum(world.evidence for world in worlds) > 0
    assert all(len(world.log) >= 2 for world in worlds)
    made = sum(node.sequence for world in worlds for node in world.nodes.values())
    included = sum(len(decided.entries) for world in worlds for decided in world.log)
    assert included < made, "no delta ever expired"
    assert included > made / 2
