"""A whole cluster of real code in one process, in virtual time, from one plan.

Chaos first: losses, partitions, clogs, wild clocks, failing disks, crashes between any two
effects. Then, depending on the mode, everybody heals, or only a random quorum lives on, or links
simply stay slower than the first timeout; from there on everything pending, and one more
checkpoint, must commit within bounds of time, events and views. Where the set was to change a lot,
one more change must then take effect within such bounds, though nobody trains any more.
"""

import gc
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from shoal.consensus.ledger import Ledger
from shoal.consensus.records import Join, operation_bytes
from shoal.consensus.replica import Inspection
from tests.simulation.adversary import Coalition, Liar
from tests.simulation.book import EpochBook
from tests.simulation.changes import Changes
from tests.simulation.clockwork import Clockwork
from tests.simulation.cluster import build_cluster
from tests.simulation.decoded import shared_decoding
from tests.simulation.driver import Driver
from tests.simulation.invariants import Checker, Violation
from tests.simulation.network import Network
from tests.simulation.plan import TIMEOUT_MS, Plan
from tests.simulation.repertoire import REPERTOIRE
from tests.simulation.replica_state import KEPT_WINDOWS

# Within what everything must be done after the chaos: virtual time, events, views.
LIVENESS_MS = 3 * 60 * 60 * 1000
LIVENESS_EVENTS = 10_000
LIVENESS_EVENTS_PER_VALIDATOR = 4_000
LIVENESS_VIEWS = 60
# How many changes make a plan one of those that are about changes, and end with one.
CALM_CHANGE_SINCE = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule did. `trace` is a hash over every event; equal plans give equal traces."""

    plan: Plan
    events: int
    virtual_ms: int
    heights: int
    views: int
    # After the chaos.
    calm_events: int
    calm_views: int
    counts: tuple[tuple[str, int], ...]
    trace: str


class World:
    """Runs one plan. Raises Violation, or AssertionError from the core, when something breaks."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"world/{plan.mode}/{plan.seed}")
        self.work = Clockwork(self.rng)
        self.cluster = build_cluster(plan, self.rng)
        validators = self.cluster.validators
        self.book = EpochBook(
            self.cluster.mesh_id, validators.keys, validators.interval, self.cluster.verify
        )
        coalition = Coalition(self.cluster, self.book, self.rng, timeout_ms=TIMEOUT_MS)
        liars: dict[int, Liar] = {
            index: REPERTOIRE[behaviour](index, coalition)
            for index, behaviour in zip(self.cluster.liars, plan.byzantine, strict=True)
        }
        self.network = Network(plan, self.rng)
        founders = self.cluster.genesis.members
        self.checker = Checker(self.book, self.cluster.keys, frozenset(liars), founders)
        self.driver = Driver(
            plan,
            self.cluster,
            rng=self.rng,
            work=self.work,
            network=self.network,
            checker=self.checker,
            liars=liars,
        )
        self.nodes = self.driver.nodes
        self.changes = Changes(self.cluster, self.book, self.driver, rng=self.rng, work=self.work)
        self.operations = list(self.cluster.operations)
        self.core: set[int] = set()
        self.calm_views = 0
        self._window = self.cluster.window

    def run(self) -> Outcome:
        """Chaos, then the end that the mode calls for, with invariants checked throughout."""
        for node in self.nodes:
            self.driver.boot(node)
        self._plan_chaos()
        self.work.run_until(self.plan.chaos_ms)
        self._end_chaos()
        events = self.work.events
        self._finish()
        return Outcome(
            plan=self.plan,
            events=self.work.events,
            virtual_ms=self.work.now_ms,
            heights=max(self._ledger(index).height for index in self.core),
            views=self._furthest_view()[1],
            calm_events=self.work.events - events,
            calm_views=self.calm_views,
            counts=tuple(sorted((self.driver.counts + self._counted()).items())),
            trace=self.work.trace,
        )

    # Chaos.

    def _plan_chaos(self) -> None:
        plan, rng = self.plan, self.rng
        for operation in self.operations:
            at_ms, index = rng.randint(0, plan.chaos_ms), rng.randrange(plan.nodes)
            self.work.at(at_ms, self._submit, operation, index)
        for stray in self.cluster.strays:
            at_ms, index = rng.randint(0, plan.chaos_ms), rng.randrange(plan.nodes)
            self.work.at(at_ms, self._submit, stray, index)
        for every_ms, trouble in (
            (plan.partition_every_ms, self._partition),
            (plan.clog_every_ms, self._clog),
            (plan.clock_jump_every_ms, self._disturb_clock),
        ):
            if every_ms:
                self.work.at(every_ms, trouble)
        for _ in range(plan.power_cuts):
            # Some right before the links heal: what was only in memory is then never sent again.
            early = rng.randint(0, 2 * plan.chaos_ms)
            self.work.at(min(early, plan.chaos_ms), self._power_cut)
        self.changes.plan(plan.changes, plan.chaos_ms)
        for index in sorted(self.cluster.rotten):
            self.work.at(rng.randint(0, plan.chaos_ms), self._rot, index)

    def _again(self, every_ms: int, trouble: Callable[[], None]) -> None:
        self.work.at(self.work.now_ms + self.rng.randint(every_ms // 2, every_ms), trouble)

    def _partition(self) -> None:
        if self.driver.chaos:
            self.network.partition()
            self.driver.divide_twins()
            self._again(self.plan.partition_every_ms, self._partition)

    def _clog(self) -> None:
        if self.driver.chaos:
            self.network.clog(self.work.now_ms)
            self._again(self.plan.clog_every_ms, self._clog)

    def _disturb_clock(self) -> None:
        if self.driver.chaos:
            self.driver.disturb_clock(self.rng.choice(self.nodes))
            self._again(self.plan.clock_jump_every_ms, self._disturb_clock)

    def _power_cut(self) -> None:
        """Every process dies at once, and comes back with nothing but its rows."""
        for node in self.nodes:
            if node.alive:
                self.driver.crash(node)
                self.driver.revive_later(node)

    def _rot(self, index: int) -> None:
        """The node goes down, a bit flips on its disk, and it must refuse to come back."""
        node = self.nodes[index]
        if node.buried:
            return
        if node.alive:
            self.driver.crash(node)
        if node.disk.flip_bit():
            self.driver.boot(node)
        elif self.driver.chaos:
            self.driver.boot(node)
            self.work.at(self.work.now_ms + 500, self._rot, index)
        else:
            node.buried = True

    # What comes after.

    def _end_chaos(self) -> None:
        """Heal everybody, or leave alive for ever no more honest nodes than make a quorum.

        A quorum of the set in force, that is, and of any that may be under way already.
        """
        self.driver.chaos = False
        self.network.heal()
        for index in sorted(self.cluster.rotten):
            self._rot(index)
        liars = set(self.cluster.liars)
        honest = sorted(set(range(self.plan.nodes)) - liars - self.cluster.rotten)
        whole = self.plan.mode != "core"
        survivors = honest if whole else sorted(self.changes.survivors(honest))
        self.core = set(survivors)
        stays = liars if self.plan.mode != "core" or self.plan.liars_stay else set()
        for node in self.nodes:
            node.disk.quiet()
            doomed = node.index not in self.core and node.index not in stays
            if doomed and node.alive:
                self.driver.crash(node)
            elif not doomed and not node.alive:
                self.driver.boot(node)
        # A client whose operation is not in yet turns to one living node, any one.
        self.operations += self.cluster.burst
        for operation in self.operations:
            index = self.rng.choice(survivors)
            if operation.member not in self._ledger(index).members:
                self._submit(operation, index)

    def _finish(self) -> None:
        goal = max(self._ledger(index).height for index in self.core) + 1
        self._run_until(lambda: self._is_done(goal))
        if self.plan.changes >= CALM_CHANGE_SINCE:
            # One more change, and nobody trains any more: what an epoch lacks to its end comes
            # from the validators themselves, or not at all.
            self.driver.trains = False
            parameters = self.changes.ask_for_parameters(self.core)
            self._run_until(lambda: self._is_in_force(parameters))

    def _run_until(self, is_done: Callable[[], bool]) -> None:
        work, driver = self.work, self.driver
        deadline, budget = work.now_ms + LIVENESS_MS, work.events + self._event_budget()
        start = self._furthest_view()
        driver.moved = True
        while not (driver.moved and is_done()):
            driver.moved = False
            while work and not driver.moved:
                work.next()
                if work.now_ms > deadline or work.events > budget:
                    raise Violation(f"no progress: {self._describe()}")
            if not driver.moved:
                raise Violation(f"nothing left to happen: {self._describe()}")
            epoch, views = self._furthest_view()
            # Each epoch begins in view 0.
            views -= start[1] if epoch == start[0] else 0
            self.calm_views = max(self.calm_views, views)
            if views > LIVENESS_VIEWS:
                raise Violation(f"{views} views after the chaos: {self._describe()}")

    def _event_budget(self) -> int:
        return LIVENESS_EVENTS + LIVENESS_EVENTS_PER_VALIDATOR * self.plan.nodes

    def _is_done(self, goal: int) -> bool:
        for index in self.core:
            ledger, state = self._ledger(index), self._inspect(index)
            if ledger.height < goal or state.executed - state.low > KEPT_WINDOWS * self._window:
                return False
            if any(operation.member not in ledger.members for operation in self.operations):
                return False
        return True

    def _is_in_force(self, parameters: bytes) -> bool:
        return all(
            self._ledger(index).epoch.parameters == parameters
            and self._inspect(index).epoch == self._ledger(index).epoch.number
            for index in self.core
        )

    def _describe(self) -> str:
        states = [self._inspect(index) for index in sorted(self.core)]
        return "; ".join(
            f"e{s.epoch}{'' if s.started else '?'} v{s.view}{'' if s.active else '*'} "
            f"low{s.low} exec{s.executed} "
            f"h{s.height} pending{s.pending}"
            for s in states
        )

    def _counted(self) -> Counter[str]:
        network = self.network
        counts = Counter(
            {
                "lost": network.lost,
                "doubled": network.doubled,
                "held": network.held,
                "blocked": network.blocked,
                "one-way": network.one_way,
                "reordered": network.reordered,
                "writes lost": sum(node.disk.lost for node in self.nodes),
            }
        )
        for before, after in pairwise(self.book.pages):
            more = len(after.keys) - len(before.keys)
            counts["sets grown"] += more > 0
            counts["sets shrunk"] += more < 0
        for liar in self.driver.liars.values():
            counts.update(liar.counts)
        return +counts

    def _furthest_view(self) -> tuple[int, int]:
        """Its epoch, and its number in that."""
        states = [self._inspect(index) for index in self.core]
        return max((state.epoch, state.view) for state in states)

    def _ledger(self, index: int) -> Ledger:
        replica = self.nodes[index].replica
        assert replica is not None
        return replica.ledger

    def _inspect(self, index: int) -> Inspection:
        replica = self.nodes[index].replica
        assert replica is not None
        return replica.inspect()

    def _submit(self, operation: Join, index: int) -> None:
        self.driver.submit(self.nodes[index], operation_bytes(operation))


def simulate(plan: Plan) -> Outcome:
    """Run the plan; a failure of any kind becomes a Violation that says how to repeat it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with shared_decoding():
            return World(plan).run()
    except Violation as violation:
        raise Violation(f"{violation}\nrepeat: {plan.command()}") from violation
    except Exception as error:
        raise Violation(f"{error!r}\nrepeat: {plan.command()}") from error
    finally:
        if collects:
            gc.enable()
