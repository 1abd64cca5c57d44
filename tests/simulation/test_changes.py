"""Which validator sets may still come of what was asked for: a power cut must not forget any."""

from dataclasses import replace

import pytest

from tests.simulation.changes import NOBODY, Wish
from tests.simulation.cluster import Cluster
from tests.simulation.decoded import shared_decoding
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.world import World

CHANGING: Plan = replace(
    draw_plan("core", 1),
    validators=6,
    spares=1,
    byzantine=(),
    rotten=0,
    real_signatures=False,
    chaos_ms=3_000,
    delay_ms=(3, 30),
    loss=0.0,
    kind_loss=(),
    power_cuts=0,
    crash_rate=0.0,
    disk_error_rate=0.0,
    changes=5,
)


def at_the_end_of_chaos(seed: int) -> World:
    """A world in the middle of its changes, with everybody up."""
    world = World(replace(CHANGING, seed=seed))
    for node in world.nodes:
        world.driver.boot(node)
    world._plan_chaos()
    world.work.run_until(CHANGING.chaos_ms)
    return world


def quorum(n: int) -> int:
    return (n + (n - 1) // 3 + 2) // 2


@pytest.mark.parametrize("seed", range(8))
def test_what_may_come_is_known_when_nobody_is_up(seed: int) -> None:
    with shared_decoding():
        world = at_the_end_of_chaos(seed)
        changes = world.changes
        before = changes.possible_sets(changes.open)
        in_force = frozenset(changes.furthest().epoch.keys)
        for node in world.nodes:
            world.driver.crash(node)
        assert changes.possible_sets(changes.open) == before
        assert in_force in before
        keys = world.cluster.keys
        left = {keys[index] for index in changes.survivors(list(range(len(keys))))}
        assert len(left & in_force) >= quorum(len(in_force))


def test_a_wish_counts_until_nothing_of_it_can_change_the_set() -> None:
    with shared_decoding():
        world = at_the_end_of_chaos(1)
    changes, ledger = world.changes, world.cluster.genesis
    cluster: Cluster = world.cluster
    key = cluster.keys[2]
    leave, demote = Wish("leave", 2, 1_000), Wish("demote", 2, 1_000)
    assert not changes._is_spent(leave, ledger)
    assert changes._is_spent(demote, ledger), "nobody has approved it"
    changes._approved_in[demote] = 0
    assert not changes._is_spent(demote, ledger), "it may still get its quorum"
    assert changes._is_spent(Wish("rejoin", 2, 1_000), ledger), "a Join makes no validator"
    assert changes._is_spent(Wish("parameters", NOBODY, 1_000), ledger)
    later = ledger.restore(ledger.snapshot())
    del later.members[key]
    assert not changes._is_spent(leave, later), "gone by another word than this one"
    later.departed[key] = 1_000
    assert changes._is_spent(leave, later)
    later.epoch = replace(later.epoch, number=1)
    assert changes._is_spent(demote, later), "its approvals were for epoch 0"
