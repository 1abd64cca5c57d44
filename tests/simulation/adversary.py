"""What a Byzantine validator does with the messages that its honest code wants to send.

A liar sits between a node and the network. It has its own signing key and those of the other
liars of the schedule, nobody else's; together they remember what they heard. The hooks are two
functions: from (target, bytes) to what really goes out and how much later, and whether what came
in is let through. A new behaviour is one class (see repertoire.py, forgery.py).
"""

import hashlib
import random
from collections import Counter, deque
from dataclasses import replace

from shoal.consensus.errors import ConsensusError
from shoal.consensus.ledger import Ledger
from shoal.consensus.messages import (
    NEW_VIEW_DOMAIN,
    STATUS_DOMAIN,
    VIEW_CHANGE_DOMAIN,
    Candidate,
    Message,
    NewView,
    PrePrepare,
    Stability,
    Status,
    ViewChange,
    encode,
    sealed_bytes,
)
from shoal.consensus.records import operation_digest
from shoal.consensus.validators import Sign
from shoal.consensus.votes import Vote
from tests.simulation.book import EpochBook
from tests.simulation.cluster import Cluster
from tests.simulation.decoded import decode
from tests.simulation.wire import VIEW_CHANGE

# (delay in ms, bytes) of what goes out.
Sent = tuple[int, bytes]
HEARD = 256


class Coalition:
    """What all liars of one schedule share: keys, chance, and everything that they heard."""

    def __init__(
        self, cluster: Cluster, book: EpochBook, rng: random.Random, *, timeout_ms: int
    ) -> None:
        self.book = book
        self.keys = cluster.keys
        self.mesh_id = cluster.mesh_id
        self.window = cluster.window
        self.interval = cluster.validators.interval
        self.timeout_ms = timeout_ms
        self.rng = rng
        self.decoys = cluster.decoys
        # By key: an index means somebody else in every epoch.
        self.signers = {cluster.keys[liar]: cluster.identities[liar].sign for liar in cluster.liars}
        self.heard: deque[bytes] = deque(maxlen=HEARD)
        self.view_changes: dict[tuple[int, int], dict[int, ViewChange]] = {}

    def hear(self, data: bytes) -> None:
        """Remember a message that one of us got or wanted to send."""
        self.heard.append(data)
        if data[0] == VIEW_CHANGE:
            try:
                change = decode(data)
            except ConsensusError:
                return
            assert isinstance(change, ViewChange)
            place = (change.epoch, change.view)
            self.view_changes.setdefault(place, {})[change.signer] = change
            for old in sorted(self.view_changes)[:-8]:
                del self.view_changes[old]

    @property
    def n(self) -> int:
        """How many validators the last epoch has that anybody lives in."""
        return len(self.book.latest.keys)

    def signer(self, epoch: int, index: int) -> Sign | None:
        """Signs for this validator of this epoch, if it is one of us."""
        key = self.book.key(min(epoch, self.book.last), index)
        return self.signers.get(key) if key is not None else None

    def ours(self, epoch: int) -> list[int]:
        """Our indices in this epoch."""
        page = self.book.page(epoch) or self.book.latest
        return [index for index, key in enumerate(page.keys) if key in self.signers]

    def index(self, me: int, epoch: int) -> int | None:
        """The index of node `me` in this epoch, if it votes there."""
        page = self.book.page(epoch)
        key = self.keys[me]
        return page.keys.index(key) if page is not None and key in page.keys else None

    def signed(self, vote: Vote) -> Vote:
        """The vote with a signature that fits, where one of us is its signer."""
        sign = self.signer(vote.epoch, vote.signer)
        return replace(vote, signature=sign(vote.signed_bytes(self.mesh_id))) if sign else vote

    def seal_change(self, change: ViewChange) -> ViewChange:
        """Sign a VIEW-CHANGE again, where one of us is its signer."""
        sign = self.signer(change.epoch, change.signer)
        if sign is None:
            return change
        sealed = sealed_bytes(VIEW_CHANGE_DOMAIN, self.mesh_id, change.body())
        return replace(change, signature=sign(sealed))

    def seal_new_view(self, message: NewView) -> NewView:
        """Sign a NEW-VIEW of one of us again."""
        sealed = sealed_bytes(NEW_VIEW_DOMAIN, self.mesh_id, message.body())
        sign = self.signer(message.epoch, message.signer)
        return replace(message, signature=sign(sealed)) if sign else message

    def seal_status(self, status: Status) -> Status:
        """Sign a STATUS of one of us again."""
        sealed = sealed_bytes(STATUS_DOMAIN, self.mesh_id, status.body())
        sign = self.signer(status.epoch, status.signer)
        return replace(status, signature=sign(sealed)) if sign else status


class Liar:
    """Sends what it is given and hears what it is sent: the base of all, and itself honest."""

    def __init__(self, me: int, coalition: Coalition) -> None:
        self.me = me
        self.coalition = coalition
        self.rng = coalition.rng
        # How often it did what it is here for, by behaviour.
        self.counts: Counter[str] = Counter()

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        """What goes out to this target instead of `data`."""
        return [(0, data)]

    def is_mine(self, epoch: int, signer: int) -> bool:
        return self.coalition.book.key(epoch, signer) == self.coalition.keys[self.me]

    def incoming(self, data: bytes) -> bool:
        """Whether the node's own code gets to see this."""
        self.coalition.hear(data)
        return True


class Silent(Liar):
    """Takes part in nothing, from a certain message on."""

    def __init__(self, me: int, coalition: Coalition) -> None:
        super().__init__(me, coalition)
        self._left = self.rng.choice((0, 20, 200))

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        self._left -= 1
        if self._left > 0:
            return [(0, data)]
        self.counts["silent"] += 1
        return []


class Equivocator(Liar):
    """As a primary proposes one thing to some and another to the rest, and votes for both."""

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        message, decoys = decode(data), self.coalition.decoys
        if target % 2:
            return [(0, data)]
        if isinstance(message, PrePrepare):
            self.counts["equivocate"] += 1
            decoy = decoys[message.vote.sequence % len(decoys)]
            vote = replace(message.vote, digest=operation_digest(decoy))
            return [(0, encode(PrePrepare(self.coalition.signed(vote), decoy)))]
        if isinstance(message, Vote):
            digest = operation_digest(decoys[message.sequence % len(decoys)])
            other = self.coalition.signed(replace(message, digest=digest))
            return [(0, data), (0, encode(other))]
        return [(0, data)]


class Mutator(Liar):
    """ByzzFuzz: changes one field by a little, signs again where that is needed, keeps the rest.

    Old messages come back too, so what peers see is stale and out of order as well as wrong.
    """

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        self.coalition.hear(data)
        dice = self.rng.random()
        if dice < 0.6:
            return [(0, data)]
        self.counts["mutate"] += 1
        if dice < 0.7:
            return [(0, data), (0, self.rng.choice(self.coalition.heard))]
        if dice < 0.75:
            broken = bytearray(data)
            broken[self.rng.randrange(len(broken))] ^= 1 << self.rng.randrange(8)
            return [(0, bytes(broken))]
        return [(0, encode(self._mutate(decode(data))))]

    def _mutate(self, message: Message) -> Message:
        match message:
            case Vote():
                return self._mutate_vote(message)
            case PrePrepare(vote, operation):
                return PrePrepare(self._mutate_vote(vote), operation)
            case Candidate(vote, record):
                wrong = replace(record, anchor_root=hashlib.sha256(record.anchor_root).digest())
                return Candidate(self.coalition.signed(replace(vote, digest=wrong.digest)), wrong)
            case ViewChange():
                return self._mutate_view_change(message)
            case NewView() if self.is_mine(message.epoch, message.signer):
                if not message.proposals:
                    return replace(message, view=message.view + 1)
                shorter = replace(message, proposals=message.proposals[:-1])
                return self.coalition.seal_new_view(shorter)
            case Stability(certificate, ledger) if ledger:
                return Stability(certificate, other_ledger(ledger))
            case Status():
                executed = max(0, message.executed + self._step())
                return self.coalition.seal_status(replace(message, executed=executed))
            case _:
                return message

    def _mutate_vote(self, vote: Vote) -> Vote:
        window = self.coalition.window
        match self.rng.randrange(6):
            case 0:
                changed = replace(vote, view=max(0, vote.view + self._step()))
            case 1:
                changed = replace(vote, sequence=max(0, vote.sequence + self._step()))
            case 2:
                changed = replace(vote, digest=hashlib.sha256(vote.digest).digest())
            case 3:
                changed = replace(vote, sequence=vote.sequence + self.rng.randint(1, 2 * window))
            case 4:
                # In somebody else's name: nobody may count it.
                changed = replace(vote, signer=self.rng.randrange(self.coalition.n))
            case _:
                changed = replace(vote, epoch=vote.epoch + 1)
        return self.coalition.signed(changed)

    def _mutate_view_change(self, change: ViewChange) -> ViewChange:
        match self.rng.randrange(4):
            case 0:
                changed = replace(change, prepared=change.prepared[:-1])
            case 1:
                changed = replace(change, view=max(0, change.view + self._step() + 1))
            case 2:
                changed = replace(change, low=change.low + self.coalition.interval)
            case _:
                forged = tuple(
                    replace(proof, digest=hashlib.sha256(proof.digest).digest())
                    for proof in change.prepared
                )
                changed = replace(change, prepared=forged)
        return self.coalition.seal_change(changed)

    def _step(self) -> int:
        return self.rng.choice((-1, 1))


def other_ledger(ledger: bytes) -> bytes:
    """A well-formed ledger that is not the certified one: it claims another last record."""
    other = Ledger.restore(ledger)
    other.record_digest = hashlib.sha256(other.record_digest).digest()
    return other.snapshot()
