"""A thousand seeded schedules, all modes; a failure prints the command that repeats it.

The batches are independent tests, so that pytest-xdist can share them out. The seeds are fixed
and contiguous: none is excluded.
"""

import pytest

from tests.simulation.plan import MODES, Mode, Plan, draw_plan
from tests.simulation.world import simulate

BATCHES: list[tuple[Mode, range]] = [
    *[("heal", range(first, first + 50)) for first in range(0, 500, 50)],
    *[("core", range(first, first + 50)) for first in range(0, 500, 50)],
    *[("slow", range(first, first + 5)) for first in range(0, 30, 5)],
]


@pytest.mark.parametrize(("mode", "seeds"), BATCHES, ids=[f"{m}-{s[0]}" for m, s in BATCHES])
def test_schedules_are_safe_and_live(mode: Mode, seeds: range) -> None:
    for seed in seeds:
        outcome = simulate(draw_plan(mode, seed))
        assert outcome.heights >= 1


def test_a_thousand_schedules_are_run() -> None:
    assert sum(len(seeds) for _, seeds in BATCHES) >= 1_000


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: Mode) -> None:
    for seed in range(7, 10):
        first, second = (simulate(draw_plan(mode, seed)) for _ in range(2))
        assert first == second
    assert simulate(draw_plan(mode, 7)).trace != simulate(draw_plan(mode, 8)).trace


def test_the_swarm_covers_what_it_is_for() -> None:
    plans: list[Plan] = [draw_plan(mode, seed) for mode, seeds in BATCHES for seed in seeds]
    assert {plan.validators for plan in plans} == {1, 2, 3, 4, 5, 6, 7, 10}
    assert {kind for plan in plans for kind in plan.byzantine} == {
        "equivocate",
        "silent",
        "mutate",
    }
    assert all(len(plan.byzantine) <= (plan.validators - 1) // 3 for plan in plans)
    real = sum(plan.real_signatures for plan in plans) / len(plans)
    assert 0.03 < real < 0.08
    assert sum(plan.crash_rate > 0 for plan in plans) > 300
    assert sum(plan.loss > 0 for plan in plans) > 500
