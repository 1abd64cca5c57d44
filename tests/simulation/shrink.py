"""From a plan that fails to a simpler one that still does.

Each round tries to switch something off or to halve something; the first change that leaves a
failure is kept, until none does. A changed plan is another schedule, so every change gets a few
seeds to fail with. Nothing insists on the same message: the simplest failure is the one to debug.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.simulation.plan import Plan

SEEDS_PER_CHANGE = 4
OFF: tuple[str, ...] = (
    "loss",
    "kind_loss",
    "duplication",
    "reordering",
    "slow_tail",
    "partition_every_ms",
    "clog_every_ms",
    "clock_drift_ppm",
    "clock_jump_every_ms",
    "crash_rate",
    "power_cuts",
    "disk_error_rate",
    "burst",
    "changes",
    "spares",
    "rotten",
    "real_signatures",
    "liars_stay",
)
HALVED: tuple[str, ...] = ("operations", "chaos_ms", "power_cuts", "burst", "crash_rate", "loss")


def simpler(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less in them, the largest steps first."""
    for name in OFF:
        value = getattr(plan, name)
        if value:
            off: dict[str, Any] = {name: type(value)()}
            yield replace(plan, **off)
    for position in range(len(plan.byzantine)):
        yield replace(plan, byzantine=plan.byzantine[:position] + plan.byzantine[position + 1 :])
    for n in range(1, plan.validators):
        if (n - 1) // 3 >= len(plan.byzantine) + plan.rotten:
            yield replace(plan, validators=n)
    for name in HALVED:
        value = getattr(plan, name)
        if value >= 2 or (isinstance(value, float) and value > 0.01):
            halved: dict[str, Any] = {name: value // 2 if isinstance(value, int) else value / 2}
            yield replace(plan, **halved)
    if plan.kind_loss[1:]:
        for position in range(len(plan.kind_loss)):
            kept = plan.kind_loss[:position] + plan.kind_loss[position + 1 :]
            yield replace(plan, kind_loss=kept)
    if plan.delay_ms[1] > plan.delay_ms[0] + 1:
        yield replace(plan, delay_ms=(plan.delay_ms[0], plan.delay_ms[0] + 1))


def shrink(
    plan: Plan, fails: Callable[[Plan], str | None], *, attempts: int = 400
) -> tuple[Plan, int]:
    """(the simplest plan found that fails, how many were tried); `plan` itself must fail."""
    tried = 0
    progress = True
    while progress:
        progress = False
        for candidate in simpler(plan):
            found = None
            for offset in range(SEEDS_PER_CHANGE):
                if tried >= attempts:
                    return plan, tried
                tried += 1
                other = replace(candidate, seed=candidate.seed + offset)
                if fails(other) is not None:
                    found = other
                    break
            if found is not None:
                plan, progress = found, True
                break
    return plan, tried
