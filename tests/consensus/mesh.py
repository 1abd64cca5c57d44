"""A handful of replicas on a wire that the test controls, for tests that read as stories.

Messages wait in one queue, in order; nothing arrives until the test says so, and a test may lose
some of them, fire a timer, or pull a node's plug and start it again from its rows.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from shoal.consensus.certificate import Certificate, certify
from shoal.consensus.changes import Approve, Change, ChangeKind
from shoal.consensus.effects import (
    Broadcast,
    Decided,
    Effect,
    EpochStarted,
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
from shoal.consensus.invitations import MAX_INVITATION_USES, Invitation, InvitedRole
from shoal.consensus.ledger import Ledger
from shoal.consensus.members import Member
from shoal.consensus.messages import Message, decode, encode
from shoal.consensus.records import (
    Checkpoint,
    CheckpointRecord,
    CutEntry,
    Join,
    Leave,
    operation_bytes,
    operation_digest,
)
from shoal.consensus.replica import Replica
from shoal.consensus.state import Config, Core
from shoal.consensus.validators import Sign, Validators
from shoal.consensus.votes import Vote, VoteKind
from tests.simulation.keys import Keyring

MESH_ID = hashlib.sha256(b"a mesh for tests").digest()
# K of these tests: half of the default, so that a story that crosses a stability point is short.
INTERVAL = 4


@dataclass(frozen=True)
class Letter:
    """One message on the wire."""

    source: int
    target: int
    message: Message


Loses = Callable[[Letter], bool]


class Mesh:
    """n validators, index 0 primary of view 0; all of them started.

    `spare` more members follow them: they observe until the validators take them in. A node keeps
    its number whatever it becomes; `validators` is the set of the first epoch.
    """

    def __init__(self, n: int = 4, spare: int = 0, **settings: Any) -> None:
        self.keyring = Keyring("mesh", real=False)
        names = [f"v{i}" for i in range(n)], [f"spare{i}" for i in range(spare)]
        first, others = (
            sorted(map(self.keyring.identity, group), key=lambda pair: pair[0]) for group in names
        )
        pairs = [*first, *others]
        self.signers: list[Sign] = [sign for _, sign in pairs]
        self.keys = tuple(public for public, _ in pairs)
        self.validators = Validators(MESH_ID, 0, self.keys[:n], INTERVAL)
        self.sets = [self.validators] * len(pairs)
        members = [(public, Member("genesis:1", 100, 500)) for public in self.keys]
        self.genesis = Ledger.genesis(MESH_ID, members, self.validators.keys, INTERVAL)
        self.settings = settings
        self.now_ms = 0
        n = len(pairs)
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
        config = Config(me=self.keys[index], **self.settings)
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
                for to in self.sets[index].keys:
                    if to != self.keys[index]:
                        self._post(index, self.keys.index(to), data)
            case Send(to, data):
                if to in self.keys:
                    self._post(index, self.keys.index(to), data)
            case EpochStarted(validators):
                self.sets[index] = validators
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
        sender = self.keys[source if source is not None else target - 1]
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
            for index in range(len(self.keys)):
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

    def invitation(
        self,
        by: int = 0,
        *,
        number: int = 1,
        uses: int = MAX_INVITATION_USES,
        role: InvitedRole = InvitedRole.VALIDATOR,
        **changes: Any,
    ) -> Invitation:
        """The word of one of the mesh's own nodes, good for everybody unless told otherwise."""
        unsigned = Invitation(
            mesh_id=MESH_ID,
            inviter=self.keys[by],
            number=number,
            uses=uses,
            role=role,
            epoch=0,
            epoch_digest=self.genesis.epoch.digest,
            expires_ms=2**63,
            hint="genesis:2",
        )
        unsigned = replace(unsigned, **changes)
        return replace(unsigned, signature=self.signers[by](unsigned.signed_bytes()))

    def join(
        self,
        name: str = "newcomer",
        *,
        time_ms: int = 1,
        invitation: Invitation | Literal["any"] | None = "any",
        validates: bool = True,
    ) -> bytes:
        """A Join of somebody who is no node of the mesh, invited by node 0 if not otherwise."""
        public, sign = self.keyring.identity(name)
        unsigned = Join(
            member=public,
            address=f"{name}:7400",
            shard_tokens=7,
            share_permille=500,
            time_ms=time_ms,
            validates=validates,
            invitation=self.invitation() if invitation == "any" else invitation,
        )
        return operation_bytes(replace(unsigned, signature=sign(unsigned.signed_bytes(MESH_ID))))

    def leave(self, index: int, *, time_ms: int = 1) -> bytes:
        """The node's own goodbye."""
        unsigned = Leave(member=self.keys[index], time_ms=time_ms)
        signature = self.signers[index](unsigned.signed_bytes(MESH_ID))
        return operation_bytes(replace(unsigned, signature=signature))

    def rejoin(
        self, index: int, *, time_ms: int, validates: bool = True, by: int | None = None
    ) -> bytes:
        """A Join of one of the mesh's own nodes, invited by another one of them."""
        inviter = by if by is not None else int(index == 0)
        unsigned = Join(
            member=self.keys[index],
            address="moved:1",
            shard_tokens=7,
            share_permille=500,
            time_ms=time_ms,
            validates=validates,
            invitation=self.invitation(inviter),
        )
        signature = self.signers[index](unsigned.signed_bytes(MESH_ID))
        return operation_bytes(replace(unsigned, signature=signature))

    def approve(self, change: Change, by: int, *, epoch: int | None = None) -> bytes:
        """The node's yes to the change, in the epoch that it is in unless told otherwise."""
        number = self.sets[by].epoch if epoch is None else epoch
        unsigned = Approve(change=change, epoch=number, validator=self.keys[by])
        signature = self.signers[by](unsigned.signed_bytes(MESH_ID))
        return operation_bytes(replace(unsigned, signature=signature))

    def vote(
        self,
        kind: VoteKind,
        signer: int,
        *,
        view: int,
        sequence: int,
        digest: bytes,
        validators: Validators | None = None,
    ) -> Vote:
        """A vote of this validator of the first epoch, or of the set that is given."""
        among = validators or self.validators
        sign = self.signers[self.keys.index(among.keys[signer])]
        unsigned = Vote(kind, among.epoch, view, sequence, digest, signer, bytes(64))
        return replace(unsigned, signature=sign(unsigned.signed_bytes(MESH_ID)))

    def certificate(
        self,
        kind: VoteKind,
        signers: list[int],
        *,
        view: int,
        sequence: int,
        digest: bytes,
        validators: Validators | None = None,
    ) -> Certificate:
        """A well-formed certificate by these signers, whether or not they are enough."""
        among = validators or self.validators
        primary = among.primary(view, sequence)
        votes = []
        for signer in signers:
            prepared = kind is VoteKind.PREPARE and signer == primary
            signed = VoteKind.PRE_PREPARE if prepared else kind
            votes.append(
                self.vote(
                    signed, signer, view=view, sequence=sequence, digest=digest, validators=among
                )
            )
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

    def decide(self, change: Change, *, at: int | None = None) -> None:
        """A quorum of the present validators approves this, and everything arrives."""
        up = [i for i in range(len(self.keys)) if i not in self.down]
        newest = max((self.sets[i] for i in up), key=lambda validators: validators.epoch)
        voting = [self.keys.index(key) for key in newest.keys]
        voting = [index for index in voting if index not in self.down][: newest.quorum]
        for index in voting:
            self.submit(index if at is None else at, self.approve(change, index))
            self.deliver()

    def promote(self, index: int) -> None:
        self.decide(Change(ChangeKind.PROMOTE, self.keys[index]))

    def demote(self, index: int) -> None:
        self.decide(Change(ChangeKind.DEMOTE, self.keys[index]))

    def voters(self, index: int = 0) -> list[int]:
        """The numbers of the nodes that vote, as this node knows it."""
        return sorted(self.keys.index(key) for key in self.sets[index].keys)

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
