"""A whole cluster of real code in one process, in virtual time, from one seed.

One heap of (time, random tie-break, counter, what happens). Chaos first: losses, partitions,
crashes between any two effects. Then, depending on the mode, everybody heals, or only a random
quorum lives on, or links simply stay slower than the first timeout; from there on everything
pending, and one more checkpoint, must commit within a bound.
"""

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from shoal.consensus.effects import (
    Broadcast,
    CancelTimer,
    CandidateReady,
    Check,
    Checked,
    CutDue,
    Decided,
    Effect,
    EpochStarted,
    Evidence,
    Persist,
    Propose,
    Restored,
    Send,
    SetTimer,
    Submit,
)
from shoal.consensus.ledger import Ledger, Member
from shoal.consensus.records import Checkpoint, Join, operation_bytes
from shoal.consensus.replica import Inspection
from shoal.consensus.state import Config
from shoal.consensus.validators import Validators
from tests.simulation.adversary import REPERTOIRE, Adversary
from tests.simulation.invariants import Checker, Violation
from tests.simulation.keys import Keyring, make_join
from tests.simulation.network import Network
from tests.simulation.node import SimulatedNode
from tests.simulation.plan import TIMEOUT_MS, Plan

# How long after the chaos everything must be done, in virtual time and in events.
LIVENESS_MS = 3 * 60 * 60 * 1000
LIVENESS_EVENTS = 100_000

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule did. `trace` is a hash over every event; equal seeds give equal traces."""

    plan: Plan
    events: int
    virtual_ms: int
    heights: int
    views: int
    crashes: int
    trace: str


class World:
    """Runs one plan. Raises Violation, or AssertionError from the core, when something breaks."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.rng = random.Random(f"world/{plan.mode}/{plan.seed}")
        self.now_ms = 0
        self.events = 0
        self.crashes = 0
        self.chaos = True
        self._heap: list[tuple[int, float, int, Action]] = []
        self._counter = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self._timers: dict[tuple[int, str, str], int] = {}
        keyring = Keyring(f"{plan.mode}/{plan.seed}", real=plan.real_signatures)
        self.verify = keyring.verify
        identities = sorted(
            (keyring.identity(f"node{i}") for i in range(plan.validators)), key=lambda pair: pair[0]
        )
        mesh_id = hashlib.sha256(f"mesh/{plan.seed}".encode()).digest()
        self.validators = Validators(
            mesh_id, 0, tuple(public for public, _ in identities), plan.stability_interval
        )
        genesis = Ledger.genesis(
            mesh_id,
            [(public, Member("genesis:1", 1000, 500)) for public, _ in identities],
            self.validators.keys,
            plan.stability_interval,
        )
        liars = self.rng.sample(range(plan.validators), len(plan.byzantine))
        self.adversaries: dict[int, Adversary] = {}
        for liar, behaviour in zip(liars, plan.byzantine, strict=True):
            self.adversaries[liar] = REPERTOIRE[behaviour](
                sign=identities[liar][1], mesh_id=mesh_id, rng=self.rng
            )
        self.checker = Checker(self.validators, self.verify, frozenset(self.adversaries))
        self.network = Network(plan, self.rng)
        self.nodes = [
            self._make_node(index, genesis, public, sign)
            for index, (public, sign) in enumerate(identities)
        ]
        self.operations = [make_join(keyring, mesh_id, i) for i in range(plan.operations)]
        self._burst = [make_join(keyring, mesh_id, 100 + i) for i in range(plan.burst)]
        decoys = [operation_bytes(make_join(keyring, mesh_id, 1000 + i)) for i in range(3)]
        for adversary in self.adversaries.values():
            adversary.decoys = decoys
        self.core = set(range(plan.validators))

    def _make_node(
        self, index: int, genesis: Ledger, public: bytes, sign: Callable[[bytes], bytes]
    ) -> SimulatedNode:
        config = Config(
            me=public,
            timeout_ms=TIMEOUT_MS,
            retained=self.plan.retained,
        )
        attempt_ms = 4_000 if self.plan.mode != "slow" else 30_000
        return SimulatedNode(
            index, config, genesis, attempt_ms=attempt_ms, sign=sign, verify=self.verify
        )

    # Time.

    def at(self, time_ms: int, action: Action) -> None:
        self._counter += 1
        heapq.heappush(self._heap, (time_ms, self.rng.random(), self._counter, action))

    def run(self) -> Outcome:
        """Chaos, then the end that the mode calls for, with invariants checked throughout."""
        for node in self.nodes:
            self._boot(node)
        for operation in self.operations:
            self.at(self.rng.randint(0, self.plan.chaos_ms), self._submitter(operation))
        if self.plan.partition_every_ms:
            self.at(self.plan.partition_every_ms, self._partition)
        for _ in range(self.plan.power_cuts):
            # Some right before the links heal: what was only in memory is then never sent again.
            early = self.rng.randint(0, 2 * self.plan.chaos_ms)
            self.at(min(early, self.plan.chaos_ms), self._power_cut)
        self._run_until(self.plan.chaos_ms)
        self._end_chaos()
        self._finish()
        return Outcome(
            plan=self.plan,
            events=self.events,
            virtual_ms=self.now_ms,
            heights=max(self._ledger(node).height for node in self.core),
            views=max(self._replica(node).view for node in self.core),
            crashes=self.crashes,
            trace=self._trace.hexdigest(),
        )

    def _run_until(self, end_ms: int) -> None:
        while self._heap and self._heap[0][0] <= end_ms:
            self._next()
        self.now_ms = max(self.now_ms, end_ms)

    def _next(self) -> None:
        self.now_ms, _, _, action = heapq.heappop(self._heap)
        self.events += 1
        action()

    def _partition(self) -> None:
        if self.chaos:
            self.network.partition()
            pause = self.plan.partition_every_ms
            self.at(self.now_ms + self.rng.randint(pause // 2, pause), self._partition)

    def _power_cut(self) -> None:
        """Every process dies at once, and comes back with nothing but its rows."""
        for node in self.nodes:
            if node.alive:
                self.crashes += 1
                node.crash()
                self._revive_later(node)

    def _revive_later(self, node: SimulatedNode) -> None:
        self.at(self.now_ms + self.rng.randint(50, 5_000), lambda: self._revive(node))

    def _end_chaos(self) -> None:
        """Heal everybody, or leave exactly a quorum of honest nodes alive for ever."""
        self.chaos = False
        self.network.heal()
        if self.plan.mode == "core":
            honest = [node.index for node in self.nodes if node.index not in self.adversaries]
            self.core = set(self.rng.sample(honest, self.validators.quorum))
        else:
            self.core = set(range(self.plan.validators)) - set(self.adversaries)
        for node in self.nodes:
            doomed = self.plan.mode == "core" and node.index not in self.core
            if doomed and node.alive:
                node.crash()
            elif not doomed and not node.alive:
                self._boot(node)
        # A client whose operation is not in yet turns to one living node, any one.
        self.operations += self._burst
        for operation in self.operations:
            self._submit_once(operation, self.rng.choice(sorted(self.core)))

    def _finish(self) -> None:
        goal = max(self._ledger(node).height for node in self.core) + 1
        deadline, budget = self.now_ms + LIVENESS_MS, self.events + LIVENESS_EVENTS
        while not self._is_done(goal):
            late = self.now_ms > deadline or self.events > budget or not self._heap
            if late:
                raise Violation(f"no progress: {self._describe()}")
            self._next()

    def _is_done(self, goal: int) -> bool:
        if self.events % 8:
            return False
        for index in self.core:
            ledger = self._ledger(index)
            if ledger.height < goal:
                return False
            if any(operation.member not in ledger.members for operation in self.operations):
                return False
        return True

    def _describe(self) -> str:
        states = [self._replica(index) for index in sorted(self.core)]
        return "; ".join(
            f"v{s.view}{'' if s.active else '*'} low{s.low} exec{s.executed} "
            f"h{s.height} pending{s.pending}"
            for s in states
        )

    def _ledger(self, index: int) -> Ledger:
        replica = self.nodes[index].replica
        assert replica is not None
        return replica.ledger

    def _replica(self, index: int) -> Inspection:
        replica = self.nodes[index].replica
        assert replica is not None
        return replica.inspect()

    # Clients.

    def _submitter(self, operation: Join) -> Action:
        def act() -> None:
            self._submit_once(operation, self.rng.randrange(self.plan.validators))

        return act

    def _submit_once(self, operation: Join, index: int) -> None:
        node = self.nodes[index]
        if node.alive:
            self._carry_out(node, *node.submit(self.now_ms, operation_bytes(operation)))

    # Processes.

    def _boot(self, node: SimulatedNode) -> None:
        self._timers = {key: at for key, at in self._timers.items() if key[0] != node.index}
        self.checker.on_started(node.index, node.applied)
        for machine, effects in node.boot(self.now_ms):
            if node.alive:
                self._carry_out(node, machine, effects)
        self._think(node)

    def _think(self, node: SimulatedNode) -> None:
        """The trainer has enough deltas for the next cut after a while."""
        if node.alive:
            height = self._ledger(node.index).height + 1
            pause = self.rng.randint(200, 3_000)
            self._later(node, pause, lambda: node.attest(self.now_ms, CutDue(height)))

    def _later(
        self, node: SimulatedNode, pause: int, act: Callable[[], tuple[str, list[Effect]]]
    ) -> None:
        """Do this to the same process after a pause, unless it has crashed by then."""
        incarnation = node.incarnation

        def run() -> None:
            if node.alive and node.incarnation == incarnation:
                self._carry_out(node, *act())

        self.at(self.now_ms + pause, run)

    def _carry_out(self, node: SimulatedNode, machine: str, effects: list[Effect]) -> None:
        """Effects in order; during the chaos the process may die before any of them."""
        end = len(effects)
        dies = self.chaos and self.plan.crash_rate and self.rng.random() < self.plan.crash_rate
        if dies:
            end = self.rng.randint(0, len(effects))
        for effect in effects[:end]:
            self._one_effect(node, machine, effect)
            if not node.alive:
                return
        if dies:
            self.crashes += 1
            node.crash()
            self._revive_later(node)
        elif node.replica is not None and node.index not in self.adversaries:
            self.checker.after_step(node.index, node.replica)

    def _revive(self, node: SimulatedNode) -> None:
        if not node.alive and (self.chaos or node.index in self.core):
            self._boot(node)

    def _one_effect(self, node: SimulatedNode, machine: str, effect: Effect) -> None:
        match effect:
            case Persist(rows):
                for key, value in rows:
                    if value is None:
                        node.rows.pop(key, None)
                    else:
                        node.rows[key] = value
            case Broadcast(data):
                self._note(node, data)
                for target in range(self.plan.validators):
                    if target != node.index:
                        self._transmit(node.index, target, data)
            case Send(to, data):
                self._note(node, data)
                self._transmit(node.index, self.validators.keys.index(to), data)
            case SetTimer(name, at_ms):
                self._set_timer(node, machine, name, at_ms)
            case CancelTimer(name):
                self._timers.pop((node.index, machine, name), None)
            case Evidence():
                if node.index not in self.adversaries:
                    self.checker.on_evidence(effect)
            case Decided() | Restored():
                self._decided(node, effect)
            case EpochStarted(validators):
                if node.index not in self.adversaries:
                    self.checker.on_epoch(node.index, validators)
                self._carry_out(node, *node.attest(self.now_ms, effect))
                self._think(node)
            case Submit(operation):
                self._carry_out(node, *node.submit(self.now_ms, operation))
            case Propose():
                ready = CandidateReady(node.build_record(effect))
                pause = self.rng.randint(1, 800)
                self._later(node, pause, lambda: node.attest(self.now_ms, ready))
            case Check(record):
                answer = Checked(record.digest, node.is_right(record))
                pause = self.rng.randint(1, 800)
                self._later(node, pause, lambda: node.attest(self.now_ms, answer))

    def _set_timer(self, node: SimulatedNode, machine: str, name: str, at_ms: int) -> None:
        key = (node.index, machine, name)
        self._timers[key] = at_ms

        def fire() -> None:
            if self._timers.get(key) == at_ms and node.alive:
                del self._timers[key]
                self._trace.update(f"{self.now_ms} {key}".encode())
                self._carry_out(node, *node.fire(self.now_ms, machine, name))

        self.at(at_ms, fire)

    def _note(self, node: SimulatedNode, data: bytes) -> None:
        if node.index not in self.adversaries:
            self.checker.on_send(node.index, data, node.rows)

    def _transmit(self, source: int, target: int, data: bytes) -> None:
        adversary = self.adversaries.get(source)
        copies = adversary.outgoing(target, data) if adversary else [data]
        for copy in copies:
            for delay in self.network.arrivals(source, target):
                self.at(self.now_ms + delay, self._delivery(source, target, copy))

    def _delivery(self, source: int, target: int, data: bytes) -> Action:
        def deliver() -> None:
            node = self.nodes[target]
            if node.alive:
                self._trace.update(f"{self.now_ms} {source} {target}".encode() + data)
                sender = self.validators.keys[source]
                self._carry_out(node, *node.receive(self.now_ms, sender, data))

        return deliver

    def _decided(self, node: SimulatedNode, effect: Decided | Restored) -> None:
        if node.index not in self.adversaries:
            if isinstance(effect, Restored):
                self.checker.on_restored(node.index, effect)
            else:
                self.checker.on_decided(node.index, effect)
                if isinstance(effect.operation, Checkpoint):
                    right = node.is_right(effect.operation.record)
                    self.checker.require(right, "a wrong root was certified")
        committed = node.applied_checkpoint(effect)
        if committed is not None:
            self._carry_out(node, *node.attest(self.now_ms, committed))
            self._think(node)


def simulate(plan: Plan) -> Outcome:
    """Run the plan; a failure of any kind becomes a Violation that says how to repeat it."""
    try:
        return World(plan).run()
    except Violation as violation:
        raise Violation(f"{violation}\n{plan}\nrepeat: {plan.command()}") from violation
    except Exception as error:
        raise Violation(f"{error!r}\n{plan}\nrepeat: {plan.command()}") from error
