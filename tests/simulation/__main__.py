"""python -m tests.simulation --seed N --schedules M --mode heal|core|slow|all

Runs schedules N, N+1, ... of each mode and prints a table; a failing one is printed with the
plan that it was drawn to and the command that repeats it, and the exit status is 1.
"""

import argparse
import sys
import time

from tests.simulation.invariants import Violation
from tests.simulation.plan import MODES, Mode, draw_plan
from tests.simulation.world import simulate


def run_mode(mode: Mode, first: int, schedules: int) -> list[str]:
    """Print one row of the table; what went wrong, if anything did."""
    failures: list[str] = []
    events = virtual_ms = views = crashes = 0
    began = time.perf_counter()
    for seed in range(first, first + schedules):
        try:
            outcome = simulate(draw_plan(mode, seed))
        except Violation as violation:
            failures.append(str(violation))
            continue
        events += outcome.events
        virtual_ms += outcome.virtual_ms
        views += outcome.views
        crashes += outcome.crashes
        if schedules == 1:
            print(outcome)
    seconds = time.perf_counter() - began
    print(
        f"{mode:<5} {schedules:>9,} {len(failures):>8} {events:>12,} {views:>8,} {crashes:>8,} "
        f"{virtual_ms / 3_600_000:>9.1f} {seconds:>9.1f} {schedules / seconds:>11.1f} "
        f"{events / seconds:>10,.0f}"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--schedules", type=int, default=100, help="how many seeds of each mode")
    parser.add_argument("--mode", choices=(*MODES, "all"), default="all")
    arguments = parser.parse_args()
    print(
        "mode  schedules failures       events    views  crashes virtual h   "
        "seconds schedules/s   events/s"
    )
    failures: list[str] = []
    for mode in MODES if arguments.mode == "all" else (arguments.mode,):
        failures += run_mode(mode, arguments.seed, arguments.schedules)
    for failure in failures:
        print(f"\n{failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
