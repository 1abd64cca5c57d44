"""One simulated machine: a disk, a clock, a process that may be gone, and a trainer.

The process is a real Replica and a real Attestor, wired as the daemon wires them. The trainer is
a few lines that answer Propose and Check after a while, and that know, as a real one would by
computing it, which anchor root is right.
"""

import hashlib
from dataclasses import replace

from shoal.consensus.attest import Attestor
from shoal.consensus.effects import (
    AttestorEvent,
    Committed,
    Decided,
    Effect,
    Linked,
    Propose,
    Received,
    Restored,
    Started,
    Submitted,
    TimerFired,
)
from shoal.consensus.ledger import Executed, Ledger
from shoal.consensus.messages import is_attestation
from shoal.consensus.records import Checkpoint, CheckpointRecord, CutEntry
from shoal.consensus.replica import Replica
from shoal.consensus.validators import Verify
from tests.simulation.clock import Clock
from tests.simulation.cluster import Identity
from tests.simulation.disk import Disk


def right_root(mesh_id: bytes, parent: bytes, height: int, attempt: int) -> bytes:
    """What every honest trainer computes for this candidate."""
    return hashlib.sha256(mesh_id + parent + bytes([height % 256, attempt % 256])).digest()


class SimulatedNode:
    """The disk and `applied` survive a crash, and nothing else does.

    `index` says which validator this is; `process` is a number of its own, since a liar may run
    two processes with one key.
    """

    def __init__(
        self,
        index: int,
        process: int,
        identity: Identity,
        genesis: Ledger,
        *,
        verify: Verify,
        disk: Disk,
        clock: Clock,
    ) -> None:
        self.index = index
        self.process = process
        self.identity = identity
        self.genesis = genesis
        self.verify = verify
        self.disk = disk
        self.clock = clock
        self.applied = 0
        self.incarnation = 0
        # A node whose rows are damaged is dead for ever.
        self.buried = False
        # The epoch that it told of last, and whom a Broadcast is for.
        self.epoch = 0
        self.others: tuple[int, ...] = ()
        self.replica: Replica | None = None
        self.attestor: Attestor | None = None

    @property
    def alive(self) -> bool:
        return self.replica is not None

    def crash(self) -> None:
        self.replica = self.attestor = None
        self.incarnation += 1
        self.disk.crash()

    def boot(self, now_ms: int) -> list[tuple[str, list[Effect]]]:
        """Start the process from its rows; effects come by the machine that they are from.

        Raises DamagedRows, and then there is no process."""
        rows = self.disk.load()
        self.clock.restart(now_ms)
        local_ms = self.clock.read(now_ms)
        sign, verify = self.identity.sign, self.verify
        self.replica = Replica.restore(
            self.identity.config, self.genesis, rows, sign=sign, verify=verify
        )
        config = replace(self.identity.attestor_config, validators=self.replica.validators)
        self.attestor = Attestor(config, rows, sign=sign, verify=verify)
        effects = self.replica.step(local_ms, Started(self.applied))
        ledger = self.replica.ledger
        more = self.attestor.step(local_ms, Committed(ledger.height, ledger.record_digest))
        return [("replica", effects), ("attestor", more)]

    def receive(self, now_ms: int, sender: bytes, data: bytes) -> tuple[str, list[Effect]]:
        assert self.replica is not None and self.attestor is not None
        local_ms = self.clock.read(now_ms)
        if is_attestation(data):
            return "attestor", self.attestor.step(local_ms, Received(sender, data))
        return "replica", self.replica.step(local_ms, Received(sender, data))

    def fire(self, now_ms: int, machine: str, name: str) -> tuple[str, list[Effect]]:
        assert self.replica is not None and self.attestor is not None
        local_ms = self.clock.read(now_ms)
        if machine == "attestor":
            return machine, self.attestor.step(local_ms, TimerFired(name))
        return machine, self.replica.step(local_ms, TimerFired(name))

    def submit(self, now_ms: int, operation: bytes) -> tuple[str, list[Effect]]:
        assert self.replica is not None
        return "replica", self.replica.step(self.clock.read(now_ms), Submitted(operation))

    def link(self, now_ms: int, peer: bytes) -> tuple[str, list[Effect]]:
        assert self.replica is not None
        return "replica", self.replica.step(self.clock.read(now_ms), Linked(peer))

    def attest(self, now_ms: int, event: AttestorEvent) -> tuple[str, list[Effect]]:
        assert self.attestor is not None
        return "attestor", self.attestor.step(self.clock.read(now_ms), event)

    def applied_checkpoint(self, effect: Decided | Restored) -> Committed | None:
        """Note durably what was dealt with; what the attestor has to hear about it, if anything."""
        if isinstance(effect, Restored):
            self.applied = effect.ledger.sequence
            return Committed(effect.ledger.height, effect.ledger.record_digest)
        self.applied = max(self.applied, effect.sequence)
        operation = effect.operation
        if isinstance(operation, Checkpoint) and isinstance(effect.result, Executed):
            return Committed(operation.record.height, operation.record.digest)
        return None

    def build_record(self, effect: Propose) -> CheckpointRecord:
        mesh_id, me = self.genesis.mesh_id, self.identity.public
        cut = (CutEntry(me, effect.height, hashlib.sha256(effect.parent).digest()),)
        return CheckpointRecord(
            mesh_id=mesh_id,
            height=effect.height,
            parent=effect.parent,
            round=effect.height,
            proposer=me,
            attempt=effect.attempt,
            anchor_root=right_root(mesh_id, effect.parent, effect.height, effect.attempt),
            cut=cut,
            parameters=b"parameters",
        )

    def is_right(self, record: CheckpointRecord) -> bool:
        expected = right_root(record.mesh_id, record.parent, record.height, record.attempt)
        return record.anchor_root == expected
