"""Drives the two consensus machines: feeds them events and carries out their effects, in order.

The Replica (PBFT) and the Attestor share one queue, so that one step's effects are finished
before the next event is looked at. A Persist is awaited: it is on the disk before anything after
it is sent. What takes long (rebuilding an anchor to check a candidate) runs beside the queue and
comes back as an event. In a member that is no validator both only follow.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog

from shoal.consensus.attest import Attestor
from shoal.consensus.effects import (
    AttestorEvent,
    Broadcast,
    CancelTimer,
    CandidateReady,
    Check,
    Checked,
    Committed,
    CutDue,
    Decided,
    Effect,
    EpochStarted,
    Event,
    Evidence,
    Linked,
    Persist,
    Propose,
    Received,
    Restored,
    Send,
    SetTimer,
    Started,
    Submit,
    Submitted,
    TimerFired,
)
from shoal.consensus.ledger import Executed
from shoal.consensus.messages import CommitProof, encode, is_attestation
from shoal.consensus.records import Checkpoint, CheckpointRecord
from shoal.consensus.replica import Replica
from shoal.consensus.validators import Validators
from shoal.node.capture import NOBODY, Capture, Direction
from shoal.node.database import Database
from shoal.node.identity import short
from shoal.node.links import Links
from shoal.node.meters import Meters
from shoal.node.wire import ConsensusMessages

log = structlog.get_logger()

INBOX_MAX = 20_000
# Of one sender: whoever floods fills its own share of the inbox.
INBOX_BYTES_MAX = 8 << 20
EVIDENCE_MAX = 64
# Steps that share a transaction, at most.
GROUP_MAX = 64
Machine: TypeAlias = Replica | Attestor


@dataclass(frozen=True, slots=True)
class Duties:
    """What the machines need from the rest of the node."""

    # Something is final: keep it and act on it. Durable when it returns.
    decided: Callable[[Decided], Awaitable[None]]
    # The ledger was replaced by a certified later one. Durable when it returns.
    restored: Callable[[Restored], Awaitable[None]]
    # Build the record of (height, attempt, parent); None when there is nothing to propose.
    propose: Callable[[Propose], Awaitable[CheckpointRecord | None]]
    # Whether recomputing the record here gives the same root and parameters.
    check: Callable[[CheckpointRecord], Awaitable[bool]]
    # A quorum has attested what this node proposed, or somebody is to be evicted: it gets ordered.
    submitted: Callable[[bytes], None] = lambda operation: None


class ConsensusDriver:
    """One queue, two machines, effects in order."""

    def __init__(
        self,
        *,
        replica: Replica,
        attestor: Attestor,
        database: Database,
        links: Links,
        meters: Meters,
        me: bytes,
        duties: Duties,
        capture: Capture | None = None,
    ) -> None:
        self.replica = replica
        self.attestor = attestor
        self.evidence: list[Evidence] = []
        self._database = database
        self._links = links
        self._meters = meters
        self._me = me
        self._others = [peer for peer in replica.validators.keys if peer != me]
        self._duties = duties
        self._capture = capture
        self._inbox: asyncio.Queue[tuple[Machine, Event | AttestorEvent]] = asyncio.Queue(INBOX_MAX)
        # Bytes in the inbox, by whose they are.
        self._waiting: Counter[bytes] = Counter()
        self._timers: dict[tuple[Machine, str], asyncio.TimerHandle] = {}
        self._jobs: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Events that neither machine has seen yet."""
        return self._inbox.qsize()

    def start(self, applied: int) -> None:
        """Wake both machines; `applied` is the last sequence this node has acted on."""
        self._put(self.replica, Started(applied))
        self._tell_attestor()

    def received(self, peer: bytes, data: bytes) -> None:
        """A neighbour sent a consensus message."""
        self._note(Direction.RECEIVED, peer, data)
        if self._waiting[peer] + len(data) > INBOX_BYTES_MAX:
            self._meters.rejected["inbox-full"] += 1
            return
        machine = self.attestor if is_attestation(data) else self.replica
        if self._put(machine, Received(peer, data)):
            self._waiting[peer] += len(data)

    def linked(self, peer: bytes) -> None:
        """A link to this neighbour is up."""
        self._put(self.replica, Linked(peer))

    def submit(self, operation: bytes) -> None:
        """Ask for an operation to be ordered."""
        self._put(self.replica, Submitted(operation))

    def cut_due(self, height: int) -> None:
        """Enough deltas are here for the checkpoint of `height`."""
        self._put(self.attestor, CutDue(height))

    def refused(self) -> dict[str, int]:
        """Return how often the machines refused what peers sent, by reason."""
        counts = dict(self.replica.inspect().refused)
        for reason, count in self.attestor.refused.items():
            counts[reason] = counts.get(reason, 0) + count
        return counts

    def _put(self, machine: Machine, event: Event | AttestorEvent) -> bool:
        try:
            self._inbox.put_nowait((machine, event))
        except asyncio.QueueFull:
            # Every message is sent again until it is answered, so a full queue loses time only.
            self._meters.rejected["inbox-full"] += 1
            return False
        return True

    async def run(self) -> None:
        """Work until cancelled. An exception from here is our fault and ends the node."""
        clock = asyncio.get_running_loop().time
        while True:
            steps = [self._step(clock, *await self._inbox.get())]
            # Group commit: what came meanwhile shares one transaction, and only then is anything
            # sent. A decision ends the group, so that the rows never run ahead of `applied`.
            while len(steps) < GROUP_MAX and not self._inbox.empty() and not _decides(steps[-1][1]):
                steps.append(self._step(clock, *self._inbox.get_nowait()))
            rows: dict[str, bytes | None] = {}
            for _, effects in steps:
                for effect in effects:
                    if isinstance(effect, Persist):
                        rows.update(effect.rows)
            if rows:
                await self._database.persist(rows.items())
            for machine, effects in steps:
                for effect in effects:
                    await self._carry_out(machine, effect)

    def _step(
        self, clock: Callable[[], float], machine: Machine, event: Event | AttestorEvent
    ) -> tuple[Machine, list[Effect]]:
        if isinstance(event, Received):
            self._waiting[event.sender] -= len(event.data)
        # The two event types overlap; each machine is only ever given its own.
        effects = machine.step(int(clock() * 1000), event)  # type: ignore[arg-type]
        if machine.refusal is not None and isinstance(event, Received):
            self._links.blame(event.sender, machine.refusal)
        return machine, effects

    async def _carry_out(self, machine: Machine, effect: Effect) -> None:
        match effect:
            case Persist():
                pass  # It is on the disk already, with those of the whole group.
            case Send(to, data):
                self._note(Direction.SENT, to, data)
                self._links.send(to, ConsensusMessages((data,)))
            case Broadcast(data):
                self._note(Direction.BROADCAST, NOBODY, data)
                self._links.send_all(self._others, ConsensusMessages((data,)))
            case SetTimer(name, at_ms):
                self._set_timer(machine, name, at_ms)
            case CancelTimer(name):
                self._cancel_timer(machine, name)
            case Decided():
                await self._on_decided(effect)
            case Restored():
                await self._duties.restored(effect)
                self._tell_attestor()
            case EpochStarted(validators):
                self._on_epoch(effect, validators)
            case Evidence(kind, signer, _, _):
                log.warning("evidence", kind=kind, signer=short(signer))
                self.evidence = [*self.evidence[1 - EVIDENCE_MAX :], effect]
            case Propose():
                self._beside(self._propose(effect))
            case Check(record):
                self._beside(self._check(record))
            case Submit(operation):
                self._duties.submitted(operation)
                self.submit(operation)

    def _on_epoch(self, started: EpochStarted, validators: Validators) -> None:
        if validators.epoch:
            log.info("epoch.started", epoch=validators.epoch, validators=validators.n)
        self._others = [peer for peer in validators.keys if peer != self._me]
        self._put(self.attestor, started)

    def _note(self, direction: Direction, peer: bytes, data: bytes) -> None:
        """Keep it for an audit, before it can have any effect."""
        if self._capture is not None:
            self._capture.write(direction, peer, data)

    async def _on_decided(self, decided: Decided) -> None:
        if self._capture is not None:
            self._capture.decided(decided.certificate)
        await self._duties.decided(decided)
        if isinstance(decided.operation, Checkpoint) and isinstance(decided.result, Executed):
            self._tell_attestor()
        # Members that are no validators follow by proofs; telling them at once spares a question.
        proof = encode(CommitProof(decided.operation_bytes, decided.certificate))
        for follower in sorted(set(self._links.connected) - set(self._others)):
            self._note(Direction.SENT, follower, proof)
            self._links.send(follower, ConsensusMessages((proof,)))

    def _tell_attestor(self) -> None:
        ledger = self.replica.ledger
        self._put(self.attestor, Committed(ledger.height, ledger.record_digest))

    def _set_timer(self, machine: Machine, name: str, at_ms: int) -> None:
        self._cancel_timer(machine, name)
        self._timers[machine, name] = asyncio.get_running_loop().call_at(
            at_ms / 1000, self._put, machine, TimerFired(name)
        )

    def _cancel_timer(self, machine: Machine, name: str) -> None:
        handle = self._timers.pop((machine, name), None)
        if handle is not None:
            handle.cancel()

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("consensus.job-failed", exc_info=error)

    async def _propose(self, wish: Propose) -> None:
        record = await self._duties.propose(wish)
        if record is not None:
            self._put(self.attestor, CandidateReady(record))

    async def _check(self, record: CheckpointRecord) -> None:
        ok = await self._duties.check(record)
        self._put(self.attestor, Checked(record.digest, ok))

    async def close(self) -> None:
        """Stop timers and whatever runs beside the queue, and end the record."""
        for handle in self._timers.values():
            handle.cancel()
        jobs = list(self._jobs)
        for task in jobs:
            task.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if self._capture is not None:
            # Links are closed after this, so something may still be heard.
            self._capture.close()
            self._capture = None


def _decides(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Decided | Restored) for effect in effects)
