"""python -m tests.simulation [--mode heal|core|slow|all] [--seed N] [--schedules M] [--jobs J]

Runs schedules N, N+1, ... and prints a table; a failing one is printed with the command that
repeats it, and the exit status is 1. "all" shares the schedules out over the modes.

    --plan JSON      run one plan, as a failure printed it
    --shrink         after a failure, look for the simplest plan that still fails
    --trace SEED     print the hash of everything that happens in one schedule
"""

import argparse
import sys
import time

from tests.simulation.plan import MODES, Mode, Plan, draw_plan
from tests.simulation.runner import Tally, failure_of, run_all, share_out
from tests.simulation.shrink import shrink
from tests.simulation.world import simulate


def print_table(tallies: list[Tally], seconds: float) -> None:
    """One row per mode; rates are per second of processor time, on one core."""
    print(
        "mode  schedules failures       events    views  crashes virtual h "
        "CPU seconds schedules/s   events/s"
    )
    for tally in tallies:
        cpu = max(tally.cpu_seconds, 1e-9)
        print(
            f"{tally.mode:<5} {tally.schedules:>9,} {len(tally.failures):>8} "
            f"{tally.events:>12,} {tally.views:>8,} {tally.counts['crashes']:>8,} "
            f"{tally.virtual_ms / 3_600_000:>9.1f} {cpu:>11.1f} "
            f"{tally.schedules / cpu:>11.1f} {tally.events / cpu:>10,.0f}"
        )
    print(f"{seconds:.1f} seconds by the clock on the wall")


def print_troubles(tallies: list[Tally]) -> None:
    """How often what went wrong on purpose."""
    for tally in tallies:
        troubles = ", ".join(f"{name} {count:,}" for name, count in sorted(tally.counts.items()))
        print(f"{tally.mode}: {troubles}")
        print(
            f"{tally.mode}: after the chaos at most {tally.worst_events:,} events "
            f"and {tally.worst_views} views"
        )


def report_failure(line: str, plan: Plan, *, shrinks: bool) -> None:
    """Print one failure, and the simplest plan that fails like it where that is wanted."""
    print(f"\n{line}")
    if shrinks:
        smallest, tried = shrink(plan, failure_of)
        print(f"smallest of {tried} plans: {failure_of(smallest)}\n{smallest.command()}")


def run_plan(plan: Plan, *, shrinks: bool) -> int:
    """Run one plan and say what happened in it."""
    print(plan.to_json())
    problem = failure_of(plan)
    if problem is not None:
        report_failure(problem, plan, shrinks=shrinks)
        return 1
    print(simulate(plan))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--schedules", type=int, default=100, help="how many in all")
    parser.add_argument("--mode", choices=(*MODES, "all"), default="all")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--plan", help="one plan as JSON, instead of seeds")
    parser.add_argument("--trace", type=int, metavar="SEED", help="print the trace hash of a seed")
    parser.add_argument("--shrink", action="store_true")
    arguments = parser.parse_args()
    modes: list[Mode] = [one for one in MODES if arguments.mode in (one, "all")]
    if arguments.plan is not None:
        return run_plan(Plan.from_json(arguments.plan), shrinks=arguments.shrink)
    if arguments.trace is not None:
        for mode in modes:
            print(mode, arguments.trace, simulate(draw_plan(mode, arguments.trace)).trace)
        return 0
    began = time.perf_counter()
    work = share_out(arguments.mode, arguments.schedules)
    tallies = run_all(work, arguments.seed, arguments.jobs)
    print_table(tallies, time.perf_counter() - began)
    print_troubles(tallies)
    failures = [failure for tally in tallies for failure in tally.failures]
    for line, plan in failures:
        report_failure(line, Plan.from_json(plan), shrinks=arguments.shrink)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
