"""Replica: PBFT for one node. Events in, effects out, no I/O, no clock, no randomness.

`step` hands each message to the transition that it belongs to (normal_case, execution,
view_change, catch_up), then asks the level-triggered questions: must we join a view change, is
there something to propose, which timers should run. Since these look only at the state, a
restart needs nothing special beyond loading the state.

What a peer does wrong is counted in `refused` by reason and has no other effect. What we do
wrong is an AssertionError and must end the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.consensus import (
    catch_up,
    epoch_change,
    execution,
    normal_case,
    pacemaker,
    view_change,
    view_start,
)
from shoal.consensus.effects import (
    Decided,
    Effect,
    EpochStarted,
    Event,
    Linked,
    Received,
    Restored,
    Started,
    Submitted,
    TimerFired,
)
from shoal.consensus.epochs import EpochChain
from shoal.consensus.errors import ConsensusError
from shoal.consensus.ledger import Ledger
from shoal.consensus.messages import (
    CommitProof,
    Epochs,
    Message,
    NewView,
    PrePrepare,
    Request,
    Stability,
    Status,
    ViewChange,
    decode,
)
from shoal.consensus.records import operation_bytes, operation_digest, parse_operation
from shoal.consensus.restore import build_core
from shoal.consensus.state import Config
from shoal.consensus.validators import Sign, Validators, Verify
from shoal.consensus.validity import validate
from shoal.consensus.votes import Vote, VoteKind


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `shoal status` shows of a replica."""

    epoch: int
    validators: tuple[bytes, ...]
    started: bool
    view: int
    primary: bytes
    active: bool
    low: int
    executed: int
    height: int
    pending: int
    faults_tolerated: int
    refused: tuple[tuple[str, int], ...]


class Replica:
    """One node's PBFT state machine; a node that is no validator observes and never votes."""

    # Why the event of the last step was refused; None where it was not.
    refusal: str | None = None

    def __init__(self, config: Config, genesis: Ledger, *, sign: Sign, verify: Verify) -> None:
        """A replica that has never run. With rows of an earlier run, use `restore`."""
        self._core = build_core(config, genesis, sign, verify, {})

    @classmethod
    def restore(
        cls,
        config: Config,
        genesis: Ledger,
        rows: Mapping[str, bytes],
        *,
        sign: Sign,
        verify: Verify,
    ) -> "Replica":
        """Rebuild from every row that was ever persisted, whatever effect the crash came at."""
        replica = cls.__new__(cls)
        replica._core = build_core(config, genesis, sign, verify, rows)
        return replica

    def step(self, now_ms: int, event: Event) -> list[Effect]:
        """Carry the effects out in order: a Persist must be durable before the next one starts."""
        core = self._core
        core.now_ms = now_ms
        self.refusal = None
        try:
            self._dispatch(event)
        except ConsensusError as error:
            core.refused[error.reason] += 1
            self.refusal = error.reason
        self._settle()
        return core.outbox.drain()

    def _dispatch(self, event: Event) -> None:
        match event:
            case Received(sender, data):
                self._receive(sender, decode(data))
            case TimerFired(name):
                if self._core.outbox.expired(name, self._core.now_ms):
                    self._on_timer(name)
            case Submitted(operation):
                self._submit(operation)
            case Linked(peer):
                catch_up.ask(self._core, peer)
            case Started(applied):
                self._start(applied)

    def _receive(self, sender: bytes, message: Message) -> None:
        core = self._core
        match message:
            case CommitProof():
                catch_up.on_commit_proof(core, sender, message)
            case Stability():
                catch_up.on_stability(core, message)
            case Status():
                catch_up.on_status(core, sender, message)
            case Epochs():
                epoch_change.on_epochs(core, message)
            case _ if core.safety is None:
                # An observer believes proofs, not votes, so it has no use for anything else.
                raise ConsensusError("not-for-observers")
            case PrePrepare():
                normal_case.on_pre_prepare(core, message)
            case Vote():
                self._on_vote(message)
            case ViewChange():
                view_change.on_view_change(core, message)
            case NewView():
                view_change.on_new_view(core, message)
            case Request(operation):
                if not catch_up.on_request(core, operation):
                    self._admit(operation)
            case _:
                raise ConsensusError("not-for-replicas")

    def _on_vote(self, vote: Vote) -> None:
        match vote.kind:
            case VoteKind.PREPARE:
                normal_case.on_prepare(self._core, vote)
            case VoteKind.COMMIT:
                normal_case.on_commit(self._core, vote)
            case VoteKind.STABLE:
                execution.on_stable(self._core, vote)
            case VoteKind.READY:
                epoch_change.on_ready(self._core, vote)
            case _:
                raise ConsensusError("not-for-replicas", vote.kind.name.lower())

    def _submit(self, data: bytes) -> None:
        """Queue an operation and tell the others, unless our proposal tells them at once."""
        core = self._core
        self._admit(data)
        normal_case.propose(core)
        digest = operation_digest(data)
        if all(proposal.digest != digest for proposal in core.open_proposals().values()):
            core.broadcast(Request(data))

    def _admit(self, data: bytes) -> None:
        """Queue an operation, unless it is invalid, known, settled, or one too many."""
        digest = operation_digest(data)
        if digest in self._core.pending:
            return
        operation = parse_operation(data)
        reason = validate(operation, self._core.verifier)
        reason = reason or self._core.ledger.check(operation, digest)
        if reason is not None:
            raise ConsensusError(reason, "operation")
        self._core.pending.add(digest, operation, data)

    def _on_timer(self, name: str) -> None:
        core = self._core
        if name == "status":
            catch_up.on_status_timer(core)
        elif name == "new-view":
            view_change.on_new_view_timeout(core)
        elif name == "progress" and core.active and core.safety is not None:
            view_start.give_up_on(core, core.proposer(core.executed + 1))

    def _settle(self) -> None:
        """Whatever the state now calls for; each of these does nothing when nothing is due."""
        core = self._core
        execution.follow_epochs(core)
        self._evict()
        if core.safety is not None:
            normal_case.take_deferred(core)
            view_change.join_others(core)
            view_change.check_view_quorum(core)
            normal_case.adopt_plan(core)
            normal_case.propose(core)
        pacemaker.guard_progress(core)
        pacemaker.schedule_status(core)

    def _evict(self) -> None:
        """Have whoever we hold evidence against put out, if the log has not done so already."""
        core = self._core
        while core.evictions:
            operation = operation_bytes(core.evictions.pop())
            try:
                self._admit(operation)
            except ConsensusError as error:
                core.refused[error.reason] += 1
            else:
                core.broadcast(Request(operation))

    def _start(self, applied: int) -> None:
        """Tell the driver again what it may not have dealt with, and make lost votes again."""
        core = self._core
        parameters = core.epochs.record(core.epoch).parameters
        core.outbox.add(EpochStarted(core.validators, parameters))
        if applied < core.low and applied + 1 not in core.decisions:
            assert core.stability is not None
            core.outbox.add(Restored(Ledger.restore(core.snapshot), core.stability))
        for sequence, decision in sorted(core.decisions.items()):
            if sequence > applied and (applied + 1 in core.decisions or sequence > core.low):
                operation = parse_operation(decision.operation)
                core.outbox.add(
                    Decided(
                        sequence,
                        operation,
                        decision.operation,
                        decision.certificate,
                        decision.result,
                    )
                )
        for sequence in sorted(core.snapshots):
            execution.announce_stable(core, sequence)
        epoch_change.announce_ready(core)
        core.outbox.set_timer("status", core.now_ms)

    def check(self, operation: bytes) -> str | None:
        """Why submitting this now would be refused; None when it would be queued."""
        try:
            parsed = parse_operation(operation)
        except ConsensusError as error:
            return error.reason
        reason = validate(parsed, self._core.verifier)
        return reason or self._core.ledger.check(parsed, operation_digest(operation))

    @property
    def ledger(self) -> Ledger:
        """The live ledger, to be read only."""
        return self._core.ledger

    @property
    def validators(self) -> Validators:
        """The voting set of the epoch that we are in."""
        return self._core.validators

    @property
    def epochs(self) -> EpochChain:
        """Every epoch that is proved here, to be read only."""
        return self._core.epochs

    def inspect(self) -> Inspection:
        core = self._core
        return Inspection(
            epoch=core.validators.epoch,
            view=core.view,
            validators=core.validators.keys,
            started=core.started,
            primary=core.validators.keys[core.proposer(core.executed + 1)],
            active=core.active,
            low=core.low,
            executed=core.executed,
            height=core.ledger.height,
            pending=len(core.pending),
            faults_tolerated=core.validators.faults,
            refused=tuple(sorted(core.refused.items())),
        )
