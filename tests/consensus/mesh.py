"""A handful of replicas on a wire that the test controls, for tests that read as stories.

Messages wait in one queue, in order; nothing arrives until the test says so, and a test may lose
some of them, fire a timer, or pull a node's plug and start it again from its rows.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoal.consensus.certificate import Certificate, certify
from shoal.consensus.effects import (
    Broadcast,
    Decided,
    Effect,
    Event,
    Evidence,
    Persist,
    Received,
    Restored,
    Send,
    SetTimer,
    Started,
    Submitted,
    TimerFired,
)
from shoal.consensus.ledger import Ledger, Member
from shoal.consensus.messages import Message, decode, encode
from shoal.consensus.records import (
    Checkpoint,
    CheckpointRecord,
    CutEntry,
    Join,
    operation_bytes,
    operation_digest,
)
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config, Core
from shoal.consensus.validators import Sign, Validators
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.keys import Keyring

MESH_ID = hashlib.sha256(b"a mesh for tests").digest()


@dataclass(frozen=True)
class Letter:
    """One message on the wire."""

    source: int
    target: int
    message: Message


Loses = Callable[[Letter], bool]


class Mesh:
    """n validators, index 0 primary of view 0; all of them started."""

    def __init__(self, n: int = 4, **settings: int) -> None:
        self.keyring = Keyring("mesh", real=False)
        pairs = sorted((self.keyring.identity(f"v{i}") for i in range(n)), key=lambda p: p[0])
        self.signers: list[Sign] = [sign for _, sign in pairs]
        self.validators = Validators(MESH_ID, 0, tuple(public for public, _ in pairs))
        members = [(public, Member("genesis:1", 100, 500)) for public, _ in pairs]
        self.genesis = Ledger.genesis(MESH_ID, members, self.validators.keys)
        self.settings = settings
        self.now_ms = 0
        self.rows: list[dict[str, bytes]] = [{} for _ in range(n)]
        self.decided: list[list[Decided]] = [[] for _ in range(n)]
        self.restored: list[list[Restored]] = [[] for _ in range(n)]
        self.evidence: list[list[Evidence]] = [[] for _ in range(n)]
        self.timers: list[dict[str, int]] = [{} for _ in range(n)]
        self.wire: list[Letter] = []
        self.log: list[Letter] = []
        self.down: set[int] = set()
        self.replicas: list[Replica] = []
        for index in range(n):
            self.replicas.append(self.new_replica(index))
            self.step(index, Started(0))
        self.wire.clear()

    def new_replica(self, index: int) -> Replica:
        config = Config(me=self.validators.keys[index], **self.settings)
        return Replica.restore(
            config,
            self.genesis,
            self.rows[index],
            sign=self.signers[index],
            verify=self.keyring.verify,
        )

    def core(self, index: int) -> Core:
        return self.replicas[index]._core

    # What a test does to the mesh.

    def step(self, index: int, event: Event, *, until: int | None = None) -> list[Effect]:
        """One step of one replica; with `until`, the plug is pulled before that effect."""
        effects = self.replicas[index].step(self.now_ms, event)
        for effect in effects[:until]:
            self._carry_out(index, effect)
        return effects

    def _carry_out(self, index: int, effect: Effect) -> None:
        match effect:
            case Persist(rows):
                for key, value in rows:
                    if value is None:
                        self.rows[index].pop(key, None)
                    else:
                        self.rows[index][key] = value
            case Broadcast(data):
                for target in range(self.validators.n):
                    if target != index:
                        self._post(index, target, data)
            case Send(to, data):
                if to in self.validators.keys:
                    self._post(index, self.validators.keys.index(to), data)
            case SetTimer(name, at_ms):
                self.timers[index][name] = at_ms
            case Decided():
                self.decided[index].append(effect)
            case Restored():
                self.restored[index].append(effect)
            case Evidence():
                self.evidence[index].append(effect)
            case _:
                pass

    def _post(self, source: int, target: int, data: bytes) -> None:
        letter = Letter(source, target, decode(data))
        self.wire.append(letter)
        self.log.append(letter)

    def submit(self, index: int, operation: bytes) -> None:
        self.step(index, Submitted(operation))

    def give(self, target: int, message: Message, source: int | None = None) -> None:
        """Hand one message to one replica, as if it had just arrived from `source`."""
        sender = self.validators.keys[source if source is not None else target - 1]
        self.step(target, Received(sender, encode(message)))

    def deliver(self, loses: Loses = lambda letter: False) -> None:
        """Let everything arrive, and what that causes, except what is lost."""
        while self.wire:
            letter = self.wire.pop(0)
            if letter.target in self.down or letter.source in self.down or loses(letter):
                continue
            self.give(letter.target, letter.message, letter.source)

    def fire(self, index: int, name: str) -> None:
        """Time passes until this timer of this replica is due."""
        self.now_ms = max(self.now_ms, self.core(index).outbox.timers[name])
        self.step(index, TimerFired(name))

    def gossip(self, rounds: int = 1) -> None:
        """Everybody alive says where it stands, and what that brings arrives."""
        for _ in range(rounds):
            for index in range(self.validators.n):
                if index not in self.down:
                    self.now_ms += 1_000
                    self.core(index).outbox.timers["status"] = self.now_ms
                    self.fire(index, "status")
            self.deliver()

    def crash(self, index: int) -> None:
        self.down.add(index)

    def restart(self, index: int, applied: int = 0) -> None:
        """Start again from the rows; what was told before is forgotten by the test too."""
        self.down.discard(index)
        self.decided[index].clear()
        self.replicas[index] = self.new_replica(index)
        self.step(index, Started(applied))

    # Things to send.

    def join(self, name: str = "newcomer", *, time_ms: int = 1) -> bytes:
        public, sign = self.keyring.identity(name)
        unsigned = Join(
            member=public,
            address=f"{name}:7400",
            shard_tokens=7,
            share_permille=500,
            time_ms=time_ms,
        )
        return operation_bytes(replace(unsigned, signature=sign(unsigned.signed_bytes(MESH_ID))))

    def vote(self, kind: VoteKind, signer: int, *, view: int, sequence: int, digest: bytes) -> Vote:
        unsigned = Vote(kind, 0, view, sequence, digest, signer, bytes(64))
        return replace(unsigned, signature=self.signers[signer](unsigned.signed_bytes(MESH_ID)))

    def certificate(
        self, kind: VoteKind, signers: list[int], *, view: int, sequence: int, digest: bytes
    ) -> Certificate:
        """A well-formed certificate by these signers, whether or not they are enough."""
        primary = self.validators.primary(view, sequence)
        votes = []
        for signer in signers:
            prepared = kind is VoteKind.PREPARE and signer == primary
            signed = VoteKind.PRE_PREPARE if prepared else kind
            votes.append(self.vote(signed, signer, view=view, sequence=sequence, digest=digest))
        return certify(kind, votes)

    def record(
        self,
        *,
        height: int = 1,
        attempt: int = 0,
        parent: bytes = MESH_ID,
        anchor_root: bytes = bytes(32),
    ) -> CheckpointRecord:
        proposer = self.validators.keys[self.validators.proposer(height, attempt)]
        return CheckpointRecord(
            mesh_id=MESH_ID,
            height=height,
            parent=parent,
            round=height,
            proposer=proposer,
            attempt=attempt,
            anchor_root=anchor_root,
            cut=(CutEntry(proposer, height, bytes(32)),),
            parameters=b"alpha",
        )

    def checkpoint(self, record: CheckpointRecord, signers: list[int] | None = None) -> bytes:
        quorum = list(range(self.validators.quorum))
        proof = self.certificate(
            VoteKind.ATTEST,
            signers if signers is not None else quorum,
            view=record.attempt,
            sequence=record.height,
            digest=record.digest,
        )
        return operation_bytes(Checkpoint(record, proof))

    # What a test asks.

    def order(self, operations: list[bytes], at: int = 0) -> None:
        """Submit and decide these, one after the other."""
        for operation in operations:
            self.submit(at, operation)
            self.deliver()

    def executed(self) -> list[int]:
        return [replica.ledger.sequence for replica in self.replicas]

    def digests(self, index: int) -> list[bytes]:
        """The operations that this replica was told of, in order."""
        return [decided.certificate.digest for decided in self.decided[index]]

    def refused(self, index: int) -> dict[str, int]:
        return dict(self.replicas[index].inspect().refused)


def digest_of(operation: bytes) -> bytes:
    return operation_digest(operation)


def is_vote(letter: Letter, kind: VoteKind) -> bool:
    return isinstance(letter.message, Vote) and letter.message.kind is kind
