"""A thousand seeded schedules, all modes; a failure prints the command that repeats it.

The batches are independent tests, so that pytest-xdist can share them out. The seeds are fixed
and contiguous: none is excluded.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.plan import BEHAVIOURS, MODES, SIZES, Mode, Plan, draw_plan
from tests.simulation.runner import SHARES, share_out
from tests.simulation.world import simulate

ROOT = Path(__file__).parent.parent.parent
REGRESSIONS = Path(__file__).parent / "regressions.txt"
BATCHES: list[tuple[Mode, range]] = [
    *[("heal", range(first, first + 50)) for first in range(0, 500, 50)],
    *[("core", range(first, first + 50)) for first in range(0, 500, 50)],
    *[("slow", range(first, first + 5)) for first in range(0, 30, 5)],
]


def regressions() -> list[tuple[str, str]]:
    """(plan as JSON, what it found)"""
    lines = [line for line in REGRESSIONS.read_text().splitlines() if line.startswith("{")]
    return [(line[: line.rindex("}") + 1], line[line.rindex("}") + 1 :].strip()) for line in lines]


@pytest.mark.parametrize(("mode", "seeds"), BATCHES, ids=[f"{m}-{s[0]}" for m, s in BATCHES])
def test_schedules_are_safe_and_live(mode: Mode, seeds: range) -> None:
    for seed in seeds:
        outcome = simulate(draw_plan(mode, seed))
        assert outcome.heights >= 1


def test_a_thousand_schedules_are_run() -> None:
    assert sum(len(seeds) for _, seeds in BATCHES) >= 1_000


@pytest.mark.parametrize(("plan", "what"), regressions(), ids=[what for _, what in regressions()])
def test_what_once_found_something_is_run_for_ever(plan: str, what: str) -> None:
    assert what
    simulate(Plan.from_json(plan))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_run(mode: Mode) -> None:
    for seed in range(7, 12):
        first, second = (simulate(draw_plan(mode, seed)) for _ in range(2))
        assert first == second
    assert simulate(draw_plan(mode, 7)).trace != simulate(draw_plan(mode, 8)).trace


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_sets_reaches_nothing(mode: Mode) -> None:
    command = [sys.executable, "-m", "tests.simulation", "--trace", "6", "--mode", mode]
    traces = {
        subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert traces == {f"{mode} 6 {simulate(draw_plan(mode, 6)).trace}\n"}


def test_a_plan_is_one_line_that_can_be_run_again() -> None:
    for seed in range(50):
        plan = draw_plan("heal", seed)
        assert Plan.from_json(plan.to_json()) == plan
        assert "\n" not in plan.command() and plan.to_json() in plan.command()
    with pytest.raises(ValueError, match="a plan has the fields"):
        Plan.from_json('{"mode":"heal"}')


def test_all_schedules_of_all_modes_are_shared_out() -> None:
    assert sum(SHARES.values()) == 100
    for schedules in (1, 19, 20, 5_000):
        assert sum(count for _, count in share_out("all", schedules)) == schedules
    assert dict(share_out("all", 5_000)) == {"heal": 2_500, "core": 2_250, "slow": 250}
    assert share_out("core", 7) == [("core", 7)]


def test_the_swarm_covers_what_it_is_for() -> None:
    plans: list[Plan] = [draw_plan(mode, seed) for mode, seeds in BATCHES for seed in seeds]
    assert {plan.validators for plan in plans} == set(SIZES)
    assert {kind for plan in plans for kind in plan.byzantine} == set(BEHAVIOURS)
    assert all(len(p.byzantine) + p.rotten <= (p.validators - 1) // 3 for p in plans)
    assert not any(plan.planted for plan in plans)
    real = sum(plan.real_signatures for plan in plans) / len(plans)
    assert 0.03 < real < 0.08
    for name in (
        "loss",
        "kind_loss",
        "duplication",
        "reordering",
        "partition_every_ms",
        "clog_every_ms",
        "clock_drift_ppm",
        "clock_jump_every_ms",
        "crash_rate",
        "power_cuts",
        "disk_error_rate",
    ):
        switched_on = sum(bool(getattr(plan, name)) for plan in plans)
        assert 200 < switched_on < len(plans) - 200, name
