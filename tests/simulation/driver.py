"""Carries out what the state machines of all processes ask for, in order, and lets things break.

This is the simulator's counterpart of the daemon: Persist goes to the disk and is durable before
the next effect, messages go to the network, timers to the clockwork. During the chaos a process
may die before any effect, in the middle of a transaction, or because its disk refused one.
"""

import random
from collections import Counter

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
from shoal.consensus.messages import CommitProof, encode
from shoal.consensus.records import Checkpoint
from tests.simulation.adversary import Liar
from tests.simulation.clock import Clock
from tests.simulation.clockwork import Clockwork
from tests.simulation.cluster import Cluster
from tests.simulation.disk import DamagedRows, Disk, DiskError
from tests.simulation.invariants import Checker
from tests.simulation.network import Network
from tests.simulation.node import SimulatedNode
from tests.simulation.plan import Plan
from tests.simulation.replica_state import WATCHED
from tests.simulation.wire import SIGNED_ONCE

# The trace's name for a timer or the end of a process, where a message has its source.
TIMER, CRASH = 254, 255


class Driver:
    """All processes of one cluster. Processes 0 to n - 1 are the members'; then come twins."""

    def __init__(
        self,
        plan: Plan,
        cluster: Cluster,
        *,
        rng: random.Random,
        work: Clockwork,
        network: Network,
        checker: Checker,
        liars: dict[int, Liar],
    ) -> None:
        self.plan = plan
        self.cluster = cluster
        self.rng = rng
        self.work = work
        self.network = network
        self.checker = checker
        self.liars = liars
        self.chaos = True
        # Whether anybody makes checkpoints, and answers for those of others.
        self.trains = True
        # Whether any ledger has changed since this was last set to False.
        self.moved = True
        self.counts: Counter[str] = Counter()
        self._keys = cluster.keys
        self._timers: dict[tuple[int, str, str], int] = {}
        self.nodes = [self._make_node(index, index) for index in range(plan.nodes)]
        # A validator with a twin has two processes, and each peer talks to one of them.
        self._twins: dict[int, int] = {}
        self._halves: dict[int, tuple[int, ...]] = {}
        for index, behaviour in zip(cluster.liars, plan.byzantine, strict=True):
            if behaviour == "twins":
                self._twins[index] = len(self.nodes)
                self.nodes.append(self._make_node(index, len(self.nodes)))
        self.divide_twins()

    def _make_node(self, index: int, process: int) -> SimulatedNode:
        honest = index not in self.liars
        disk = Disk(
            self.rng,
            error_rate=self.plan.disk_error_rate,
            planted=self.plan.planted if honest else (),
        )
        return SimulatedNode(
            index,
            process,
            self.cluster.identities[index],
            self.cluster.genesis,
            verify=self.cluster.verify,
            disk=disk,
            clock=Clock(self.rng, self.plan.clock_drift_ppm),
        )

    def divide_twins(self) -> None:
        """Draw anew which peers talk to which of the two processes of a twin."""
        for index, twin in sorted(self._twins.items()):
            self._halves[index] = tuple(
                self.rng.choice((index, twin)) for _ in range(self.plan.nodes)
            )

    # Processes.

    def boot(self, node: SimulatedNode) -> None:
        """Start the process, unless its rows are damaged: then it is buried."""
        if node.buried:
            return
        self._timers = {key: at for key, at in self._timers.items() if key[0] != node.process}
        honest = node.index not in self.liars
        if honest:
            self.checker.on_started(node.index, node.applied)
        try:
            steps = node.boot(self.work.now_ms)
        except DamagedRows:
            node.buried = True
            self.counts["buried"] += 1
            return
        self.moved = True
        self.checker.require(not node.disk.rotted, "a node runs on damaged rows")
        for machine, effects in steps:
            if node.alive:
                self.carry_out(node, machine, effects)
        self._think(node)
        self._connect(node)

    def _connect(self, node: SimulatedNode) -> None:
        """The links of a process come up one by one, which both ends are told."""
        for peer in self.nodes:
            if peer.index != node.index and peer.alive:
                at_ms = self.work.now_ms + self.rng.randint(1, 200)
                self.work.at(at_ms, self._link, node, peer)
                self.work.at(at_ms, self._link, peer, node)

    def _link(self, node: SimulatedNode, peer: SimulatedNode) -> None:
        if node.alive and peer.alive:
            self.carry_out(node, *node.link(self.work.now_ms, self._keys[peer.index]))

    def crash(self, node: SimulatedNode) -> None:
        self.counts["crashes"] += 1
        self.work.note(CRASH, node.process, b"")
        node.crash()

    def _die(self, node: SimulatedNode) -> None:
        self.crash(node)
        self.revive_later(node)

    def revive_later(self, node: SimulatedNode) -> None:
        self.work.at(self.work.now_ms + self.rng.randint(50, 5_000), self._revive, node)

    def _revive(self, node: SimulatedNode) -> None:
        if self.chaos and not node.alive:
            self.boot(node)

    def submit(self, node: SimulatedNode, operation: bytes) -> None:
        if node.alive:
            self.carry_out(node, *node.submit(self.work.now_ms, operation))

    def _think(self, node: SimulatedNode) -> None:
        """The trainer has enough deltas for the next cut after a while."""
        if node.replica is not None:
            due = CutDue(node.replica.ledger.height + 1)
            self._later(node, self.rng.randint(200, 3_000), due)

    def _later(
        self, node: SimulatedNode, pause: int, event: CutDue | CandidateReady | Checked
    ) -> None:
        """Tell the attestor of the same process after a pause, unless it has crashed by then."""
        self.work.at(self.work.now_ms + pause, self._tell, node, node.incarnation, event)

    def _tell(
        self, node: SimulatedNode, incarnation: int, event: CutDue | CandidateReady | Checked
    ) -> None:
        if node.alive and node.incarnation == incarnation:
            self.carry_out(node, *node.attest(self.work.now_ms, event))

    # Effects.

    def carry_out(self, node: SimulatedNode, machine: str, effects: list[Effect]) -> None:
        """Effects in order; during the chaos the process may die before any of them."""
        end = len(effects)
        dies = (
            self.chaos
            and self.plan.crash_rate > 0
            and effects
            and self.rng.random() < self.plan.crash_rate
        )
        if dies:
            # In the middle of the transaction, which comes first, more often than elsewhere.
            end = 0 if self.rng.random() < 0.3 else self.rng.randint(0, len(effects))
        for effect in effects[:end]:
            try:
                self._apply(node, machine, effect)
            except DiskError:
                self.counts["disk errors"] += 1
                self._die(node)
            if not node.alive:
                return
        if dies:
            cut = effects[end] if end < len(effects) else None
            if isinstance(cut, Persist):
                self.counts["interrupted"] += 1
                node.disk.interrupted(cut.rows)
            self._die(node)
        elif node.replica is not None and node.index not in self.liars:
            self.checker.after_step(node.index, node.replica)

    def _apply(self, node: SimulatedNode, machine: str, effect: Effect) -> None:
        match effect:
            case Persist(rows):
                node.disk.commit(rows)
            case Broadcast(data):
                self._note(node, data)
                self._broadcast(node, data)
            case Send(to, data):
                self._note(node, data)
                self._transmit(node, self._keys.index(to), data)
            case SetTimer(name, at_ms):
                self._set_timer(node, machine, name, at_ms)
            case CancelTimer(name):
                self._timers.pop((node.process, machine, name), None)
            case Evidence():
                self.counts["evidence"] += 1
                if node.index not in self.liars:
                    self.checker.on_evidence(effect)
            case Decided() | Restored():
                self._decided(node, effect)
            case EpochStarted():
                self._on_epoch(node, effect)
            case Submit(operation):
                self.carry_out(node, *node.submit(self.work.now_ms, operation))
            case Propose() | Check() if not self.trains:
                pass
            case Propose():
                ready = CandidateReady(node.build_record(effect))
                self._later(node, self.rng.randint(1, 800), ready)
            case Check(record):
                answer = Checked(record.digest, node.is_right(record))
                self._later(node, self.rng.randint(1, 800), answer)

    def _note(self, node: SimulatedNode, data: bytes) -> None:
        if node.index not in self.liars and data[0] in SIGNED_ONCE:
            self.checker.on_send(node.index, data, node.disk.rows)

    def _decided(self, node: SimulatedNode, effect: Decided | Restored) -> None:
        self.moved = True
        if node.index not in self.liars:
            if isinstance(effect, Restored):
                self.counts["restored"] += 1
                self.checker.on_restored(node.index, effect)
            else:
                self.checker.on_decided(node.index, effect)
                if isinstance(effect.operation, Checkpoint):
                    right = node.is_right(effect.operation.record)
                    self.checker.require(right, "a wrong root was certified")
        if isinstance(effect, Decided):
            self._tell_followers(node, effect)
        committed = node.applied_checkpoint(effect)
        if committed is not None:
            self.carry_out(node, *node.attest(self.work.now_ms, committed))
            self._think(node)

    def _tell_followers(self, node: SimulatedNode, decided: Decided) -> None:
        """Members that do not vote follow by proofs."""
        proof = b""
        for target in range(self.plan.nodes):
            if target != node.index and target not in node.others:
                proof = proof or encode(CommitProof(decided.operation_bytes, decided.certificate))
                self._transmit(node, target, proof)

    def _on_epoch(self, node: SimulatedNode, started: EpochStarted) -> None:
        assert node.replica is not None
        validators = started.validators
        chain = node.replica.epochs
        for number in range(self.checker.book.last + 1, validators.epoch + 1):
            self.checker.on_link(number, chain.link(number).to_bytes())
        link = chain.link(validators.epoch).to_bytes() if validators.epoch else None
        honest = node.index not in self.liars
        self.checker.on_epoch(node.index, started, link, node.disk.rows, honest=honest)
        self.counts["epochs"] += honest and validators.epoch > node.epoch
        node.epoch = validators.epoch
        others = set(validators.keys) - {node.identity.public}
        node.others = tuple(i for i, key in enumerate(self._keys) if key in others)
        self.carry_out(node, *node.attest(self.work.now_ms, started))
        self._think(node)

    # Timers, each on its own node's clock.

    def _set_timer(self, node: SimulatedNode, machine: str, name: str, local_ms: int) -> None:
        self._timers[node.process, machine, name] = local_ms
        due = node.clock.when(local_ms, self.work.now_ms)
        self.work.at(due, self._fire, node, machine, name, local_ms)

    def _fire(self, node: SimulatedNode, machine: str, name: str, local_ms: int) -> None:
        key = (node.process, machine, name)
        if self._timers.get(key) != local_ms or not node.alive:
            return
        now_ms = self.work.now_ms
        if node.clock.read(now_ms) < local_ms:
            self.work.at(
                node.clock.when(local_ms, now_ms), self._fire, node, machine, name, local_ms
            )
            return
        del self._timers[key]
        self.work.note(TIMER, node.process, name.encode())
        self.carry_out(node, *node.fire(now_ms, machine, name))

    def disturb_clock(self, node: SimulatedNode) -> None:
        """Set the clock ahead, or let it stand still for a while."""
        now_ms = self.work.now_ms
        if self.rng.random() < 0.5:
            self.counts["clock jumps"] += 1
            node.clock.jump(now_ms, self.rng.randint(100, 30_000))
        else:
            self.counts["clock stalls"] += 1
            node.clock.stall(now_ms, self.rng.randint(100, 5_000))
        for (process, machine, name), local_ms in sorted(self._timers.items()):
            if process == node.process:
                due = node.clock.when(local_ms, now_ms)
                self.work.at(due, self._fire, node, machine, name, local_ms)

    # Messages.

    def _broadcast(self, node: SimulatedNode, data: bytes) -> None:
        source = node.index
        send = self._transmit if source in self.liars else self._route
        for target in node.others:
            send(node, target, data)

    def _transmit(self, node: SimulatedNode, target: int, data: bytes) -> None:
        liar = self.liars.get(node.index)
        if liar is None:
            self._route(node, target, data)
            return
        halves = self._halves.get(node.index)
        if halves is not None and halves[target] != node.process:
            return
        for delay, copy in liar.outgoing(target, data):
            self._route(node, target, copy, delay)

    def _route(self, node: SimulatedNode, target: int, data: bytes, delay: int = 0) -> None:
        """Put the copies that will arrive into the clockwork."""
        source = node.index
        process = self._halves[target][source] if target in self._halves else target
        for due in self.network.arrivals(self.work.now_ms + delay, source, target, data[0]):
            self.work.at(due, self._deliver, source, self.nodes[process], data)

    def _deliver(self, source: int, node: SimulatedNode, data: bytes) -> None:
        replica = node.replica
        if replica is None:
            return
        liar = self.liars.get(node.index)
        if liar is not None and not liar.incoming(data):
            return
        self.work.note(source, node.process, data)
        machine, effects = node.receive(self.work.now_ms, self._keys[source], data)
        if liar is None and data[0] in WATCHED:
            self.checker.after_message(node.index, data, replica)
        if effects:
            # Without effects nothing has changed but what is held of others, and a limit that
            # is crossed there is still crossed at the next step that has some.
            self.carry_out(node, machine, effects)
