"""python -m tests.simulation.mutants [--only WORD] [--jobs J] [--budget N] [--control N]

Puts each mutation into the core, runs schedules until one of them fails, and prints what caught
it. A mutation that survives its budget means that the simulator is blind to a whole class of
bugs, and the exit status is 1. The schedule that fails is run on the core as it is as well, where
it must pass: that is what makes "caught" mean anything. With --control the first N schedules of
each mutation are run like that, and nothing else.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context

from tests.simulation import mutations, mutations_epoch, mutations_membership, mutations_view
from tests.simulation.mutation import Mutant, mutated
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.runner import failure_of

MUTANTS: tuple[Mutant, ...] = (
    *mutations.MUTANTS,
    *mutations_view.MUTANTS,
    *mutations_epoch.MUTANTS,
    *mutations_membership.MUTANTS,
)
CAUSE_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant; `cause` is None when it survived, `without` when it should be:
    it is what goes wrong in the last schedule on the core as it is."""

    name: str
    mode: str
    schedules: int
    seconds: float
    cause: str | None
    without: str | None

    @property
    def caught(self) -> bool:
        return self.cause is not None and self.without is None


def failure_without(plan: Plan) -> str | None:
    """What goes wrong in this plan on the core as it is, and with honest disks."""
    return failure_of(replace(plan, planted=()))


def hunt(name: str, budget: int) -> Verdict:
    """Run schedules of this mutant until one fails, at most so many."""
    mutant = next(one for one in MUTANTS if one.name == name)
    began = time.process_time()
    cause, without, seed, plan = None, None, 0, None
    with mutated(mutant):
        while cause is None and seed < min(budget, mutant.budget):
            seed += 1
            plan = mutant.aimed(draw_plan(mutant.mode, seed))
            cause = failure_of(plan, only_caught=True)
    if cause is not None and plan is not None:
        without = failure_without(plan)
    return Verdict(name, mutant.mode, seed, time.process_time() - began, cause, without)


def control(name: str, schedules: int) -> Verdict:
    """The mutant's schedules without its mutation; any failure is the simulator's fault."""
    mutant = next(one for one in MUTANTS if one.name == name)
    began = time.process_time()
    without, seed = None, 0
    while without is None and seed < schedules:
        seed += 1
        without = failure_without(mutant.aimed(draw_plan(mutant.mode, seed)))
    return Verdict(name, mutant.mode, seed, time.process_time() - began, None, without)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.simulation.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget", type=int, default=2_000, help="schedules per mutant")
    parser.add_argument("--control", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    names = [mutant.name for mutant in MUTANTS if arguments.only in mutant.name]
    task, size = (control, arguments.control) if arguments.control else (hunt, arguments.budget)
    print(f"{'mutation':<42} mode  schedules CPU seconds  what caught it")
    bad = 0
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for verdict in pool.map(task, names, [size] * len(names)):
            right = verdict.without is None if arguments.control else verdict.caught
            bad += not right
            cause = verdict.cause or ("nothing, as it should" if arguments.control else "SURVIVED")
            if verdict.without is not None:
                cause = f"WITHOUT IT AS WELL: {verdict.without}"
            print(
                f"{verdict.name:<42} {verdict.mode:<5} {verdict.schedules:>9} "
                f"{verdict.seconds:>11.1f}  {cause[:CAUSE_CHARACTERS]}",
                flush=True,
            )
    print(f"{len(names) - bad} of {len(names)} as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
