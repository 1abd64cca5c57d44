"""Runs many schedules, over several processes if asked, and adds up what they did."""

import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from tests.simulation.invariants import Violation
from tests.simulation.plan import MODES, Mode, Plan, draw_plan
from tests.simulation.world import Outcome, simulate

CHUNK = 50
# How the schedules of "all" are shared out, in percent: slow ones take far longer each.
SHARES: dict[Mode, int] = {"heal": 50, "core": 45, "slow": 5}


@dataclass(slots=True)
class Tally:
    """What a number of schedules of one mode did."""

    mode: Mode
    schedules: int = 0
    events: int = 0
    views: int = 0
    virtual_ms: int = 0
    cpu_seconds: float = 0.0
    # The most that any schedule needed after its chaos.
    worst_events: int = 0
    worst_views: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    # The violation as it was raised, and the plan that it was raised in.
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.events += outcome.events
        self.views += outcome.views
        self.virtual_ms += outcome.virtual_ms
        self.worst_events = max(self.worst_events, outcome.calm_events)
        self.worst_views = max(self.worst_views, outcome.calm_views)
        self.counts.update(dict(outcome.counts))

    def merge(self, other: "Tally") -> None:
        self.schedules += other.schedules
        self.events += other.events
        self.views += other.views
        self.virtual_ms += other.virtual_ms
        self.cpu_seconds += other.cpu_seconds
        self.worst_events = max(self.worst_events, other.worst_events)
        self.worst_views = max(self.worst_views, other.worst_views)
        self.counts.update(other.counts)
        self.failures += other.failures


def run_seeds(mode: Mode, first: int, schedules: int) -> Tally:
    """Schedules first, first + 1, ... of one mode, in this process."""
    tally = Tally(mode)
    began = time.process_time()
    for seed in range(first, first + schedules):
        plan = draw_plan(mode, seed)
        tally.schedules += 1
        try:
            tally.add(simulate(plan))
        except Violation as violation:
            tally.failures.append((str(violation), plan.to_json()))
    tally.cpu_seconds = time.process_time() - began
    return tally


def share_out(mode: str, schedules: int) -> list[tuple[Mode, int]]:
    """How many schedules of which mode."""
    if mode != "all":
        return [(one, schedules) for one in MODES if one == mode]
    counts = [(one, schedules * SHARES[one] // 100) for one in MODES]
    # What rounding left over goes to the first mode, so that none is lost.
    rest = schedules - sum(count for _, count in counts)
    return [(one, count + rest * (one == MODES[0])) for one, count in counts]


def _chunks(work: Iterable[tuple[Mode, int]], first: int) -> Iterator[tuple[Mode, int, int]]:
    for mode, schedules in work:
        for done in range(0, schedules, CHUNK):
            yield mode, first + done, min(CHUNK, schedules - done)


def run_all(work: list[tuple[Mode, int]], first: int, jobs: int) -> list[Tally]:
    """All of it, one tally for each mode; the same seeds whatever the number of jobs."""
    totals = {mode: Tally(mode) for mode, _ in work}
    chunks = list(_chunks(work, first))
    if jobs <= 1:
        for chunk in chunks:
            totals[chunk[0]].merge(run_seeds(*chunk))
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            for tally in pool.map(run_seeds, *zip(*chunks, strict=True)):
                totals[tally.mode].merge(tally)
    return list(totals.values())


def _is_our_own(error: BaseException | None) -> bool:
    """Whether the innermost line of the traceback is the simulator's or a mutation's."""
    if error is None or error.__traceback__ is None:
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return "simulation" in Path(last.filename).parts


def failure_of(plan: Plan, *, only_caught: bool = False) -> str | None:
    """What goes wrong in this plan; None when nothing does.

    With `only_caught` it must be an invariant, or an exception of the core's own: one that the
    simulator makes itself is no evidence of anything, and goes on."""
    try:
        simulate(plan)
    except Violation as violation:
        cause = violation.__cause__
        if only_caught and not isinstance(cause, Violation) and _is_our_own(cause):
            raise
        return str(violation).split("\n")[0]
    return None
