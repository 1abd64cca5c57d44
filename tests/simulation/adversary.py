"""What a Byzantine validator does with the messages that its honest code wants to send.

An adversary sits between a node and the network and has the node's own signing key, nobody
else's. The hook is one function from (target, bytes) to what really goes out, so a new behaviour
is one class.
"""

import hashlib
import random
from dataclasses import replace

from shoal.consensus.messages import (
    STATUS_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    Candidate,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    decode,
    encode,
    sealed_bytes,
)
from shoal.consensus.records import operation_digest
from shoal.consensus.validators import Sign
from shoal.consensus.votes import Vote
from tests.simulation.plan import Behaviour


class Adversary:
    """Sends what it is given: the base of all behaviours, and itself honest."""

    def __init__(self, *, sign: Sign, mesh_id: bytes, rng: random.Random) -> None:
        self.sign = sign
        self.mesh_id = mesh_id
        self.rng = rng
        # Valid operations that nobody asked for, to propose in place of the right one.
        self.decoys: list[bytes] = []

    def outgoing(self, target: int, data: bytes) -> list[bytes]:
        """What goes out to this target instead of `data`."""
        return [data]

    def signed(self, vote: Vote) -> Vote:
        """The vote with a signature of ours that fits its fields."""
        return replace(vote, signature=self.sign(vote.signed_bytes(self.mesh_id)))


class Silent(Adversary):
    """Takes part in nothing, from a certain message on."""

    def __init__(self, *, sign: Sign, mesh_id: bytes, rng: random.Random) -> None:
        super().__init__(sign=sign, mesh_id=mesh_id, rng=rng)
        self._left = rng.choice((0, 20, 200))

    def outgoing(self, target: int, data: bytes) -> list[bytes]:
        self._left -= 1
        return [data] if self._left > 0 else []


class Equivocator(Adversary):
    """As a primary proposes one thing to some and another to the rest, and votes for both."""

    def outgoing(self, target: int, data: bytes) -> list[bytes]:
        message = decode(data)
        if target % 2 or not self.decoys:
            return [data]
        if isinstance(message, PrePrepare):
            decoy = self.decoys[message.vote.sequence % len(self.decoys)]
            vote = self.signed(replace(message.vote, digest=operation_digest(decoy)))
            return [encode(PrePrepare(vote, decoy))]
        if isinstance(message, Vote):
            digest = operation_digest(self.decoys[message.sequence % len(self.decoys)])
            return [data, encode(self.signed(replace(message, digest=digest)))]
        return [data]


class Mutator(Adversary):
    """ByzzFuzz: changes one field by a little, signs again where that is needed, keeps the rest.

    Old messages come back too, so what peers see is stale and out of order as well as wrong.
    """

    def __init__(self, *, sign: Sign, mesh_id: bytes, rng: random.Random) -> None:
        super().__init__(sign=sign, mesh_id=mesh_id, rng=rng)
        self._past: list[bytes] = []

    def outgoing(self, target: int, data: bytes) -> list[bytes]:
        if len(self._past) < 64:
            self._past.append(data)
        dice = self.rng.random()
        if dice < 0.6:
            return [data]
        if dice < 0.7:
            return [data, self.rng.choice(self._past)]
        if dice < 0.75:
            broken = bytearray(data)
            broken[self.rng.randrange(len(broken))] ^= 1 << self.rng.randrange(8)
            return [bytes(broken)]
        return [encode(self._mutate(decode(data)))]

    def _mutate(self, message: Message) -> Message:
        match message:
            case Vote():
                return self._mutate_vote(message)
            case PrePrepare(vote, operation):
                return PrePrepare(self._mutate_vote(vote), operation)
            case Candidate(vote, record):
                wrong = replace(record, anchor_root=hashlib.sha256(record.anchor_root).digest())
                return Candidate(self.signed(replace(vote, digest=wrong.digest)), wrong)
            case ViewChange():
                return self._mutate_view_change(message)
            case NewView():
                if not message.proposals:
                    return replace(message, view=message.view + 1)
                return replace(message, proposals=message.proposals[:-1])
            case Status():
                body = replace(message, executed=max(0, message.executed + self._step()))
                return replace(body, signature=self._seal(STATUS_DOMAIN, body.body()))
            case _:
                return message

    def _mutate_vote(self, vote: Vote) -> Vote:
        match self.rng.randrange(4):
            case 0:
                changed = replace(vote, view=max(0, vote.view + self._step()))
            case 1:
                changed = replace(vote, sequence=max(0, vote.sequence + self._step()))
            case 2:
                changed = replace(vote, digest=hashlib.sha256(vote.digest).digest())
            case _:
                changed = replace(vote, epoch=vote.epoch + 1)
        return self.signed(changed)

    def _mutate_view_change(self, change: ViewChange) -> ViewChange:
        match self.rng.randrange(4):
            case 0:
                changed = replace(change, prepared=change.prepared[:-1])
            case 1:
                changed = replace(change, view=change.view + self._step() + 1)
            case 2:
                changed = replace(change, low=change.low + 4)
            case _:
                forged = tuple(
                    replace(proof, digest=hashlib.sha256(proof.digest).digest())
                    for proof in change.prepared
                )
                changed = replace(change, prepared=forged)
        return replace(changed, signature=self._seal(VIEW_CHANGE_DOMAIN, changed.body()))

    def _seal(self, domain: bytes, body: bytes) -> bytes:
        return self.sign(sealed_bytes(domain, self.mesh_id, body))

    def _step(self) -> int:
        return self.rng.choice((-1, 1))


REPERTOIRE: dict[Behaviour, type[Adversary]] = {
    "equivocate": Equivocator,
    "silent": Silent,
    "mutate": Mutator,
}
