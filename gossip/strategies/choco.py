"""choco: neighbours exchange compressed changes of public copies. For large meshes without relay.

    d_i = a_i - x_i ;  m_i <- mu m_i + d_i ;  y_i = a_i - eta (d_i + mu m_i)     local Nesterov
    q_i = C(y_i - xhat_i)        said to all neighbours
    xhat_i <- xhat_i + q_i       at i and at every neighbour, in integers: equal or broken
    a_i = y_i + gamma sum_j W_ij (xhat_j - xhat_i)

The unsaid stays in y - xhat, so error feedback is built in. gamma has a cliff, not a slope: above
what the density bears the copies chase each other and the run diverges.

A copy is only worth something while both ends have the same, so messages are numbered and carry
the hash of the copy after them. A gap is asked for (`wanted`, `answer`) and filled from the
sender's last messages, or with the whole copy; until then the edge mixes on neither side: a
message says whose copies its sender lacks.

Source: CHOCO-SGD (Koloskova et al., 2019) on iterates after a local Nesterov step;
reference/algorithms.md 1.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from shoal.compression.codec import encode
from shoal.compression.layout import CHUNK
from shoal.compression.select import NonFiniteError, select
from shoal.gossip.anchor import Anchor, increments
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES
from shoal.gossip.errors import DeltaError
from shoal.gossip.mixing import Row
from shoal.gossip.robust import Pull, plain_pull
from shoal.gossip.schema import ModelSchema
from shoal.gossip.strategies.strategy import Framed, Reach, Work

# What a sender keeps to fill gaps with, before it gives the whole copy.
KEPT_MESSAGES = 64
CHECK_BYTES = 8


def stable_gamma(kept_per_chunk: int) -> float:
    """min(.8, density^.4): the rule of thumb of algorithms.md 1.5."""
    return float(min(0.8, (kept_per_chunk / CHUNK) ** 0.4))


@dataclass(frozen=True, eq=False)
class Change(Framed):
    """q of one round. check: of the copy after it; lacking: whose copies the sender has not."""

    check: bytes
    lacking: frozenset[bytes]

    @property
    def size_bytes(self) -> int:
        """Frame, header, signature, check and two bytes for each neighbour that is lacking."""
        return super().size_bytes + CHECK_BYTES + 2 * len(self.lacking)


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A public copy itself, after message `number`."""

    sender: bytes
    number: int
    copy: Anchor

    @property
    def size_bytes(self) -> int:
        """Four bytes a parameter, header and signature."""
        return BLOB_OVERHEAD_BYTES + 4 * self.copy.values.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A neighbour's public copy after its message `number`. None: a copy that was found broken."""

    number: int
    anchor: Anchor | None
    lacking: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class ChocoState:
    """a, y, momentum: float32 [P]; public: what others have of this node; copies: of others;
    behind: to which message of a neighbour its copy should have come; said: the last messages."""

    me: bytes
    genesis: Anchor
    a: torch.Tensor
    y: torch.Tensor
    momentum: torch.Tensor
    public: Anchor
    copies: Mapping[bytes, Copy]
    behind: Mapping[bytes, int]
    said: tuple[Change, ...] = ()
    number: int = 0

    @property
    def wanted(self) -> Mapping[bytes, int | None]:
        """Whom to ask for what is missing, and after which message; None for the whole copy."""
        copies = {other: self.copies.get(other, Copy(0, self.genesis)) for other in self.behind}
        return {o: None if copy.anchor is None else copy.number for o, copy in copies.items()}


@dataclass(frozen=True)
class Choco:
    """kept_per_chunk: density, of 4096; gamma: None for `stable_gamma`; mu, eta: local Nesterov."""

    schema: ModelSchema
    kept_per_chunk: int = 512
    gamma: float | None = None
    mu: float = 0.9
    eta: float = 0.7
    pull: Pull = plain_pull
    reach = Reach.NEIGHBOURS

    def begin(self, me: bytes, weights: torch.Tensor) -> ChocoState:
        """Start from agreed weights, which are everybody's first public copy."""
        genesis = Anchor.from_weights(self.schema, weights)
        return ChocoState(me, genesis, weights, weights, torch.zeros_like(weights), genesis, {}, {})

    def join(self, me: bytes, donor: ChocoState, number: int) -> ChocoState:
        """A newcomer starts from the donor's model, which nobody has as its copy yet: the number
        skipped makes every neighbour ask for the whole of it."""
        public = Anchor.from_weights(self.schema, donor.a)
        rest = torch.zeros_like(donor.a)
        return ChocoState(
            me, donor.genesis, donor.a, donor.a, rest, public, {}, {}, number=number + 1
        )

    def adopt(self, state: ChocoState, weights: torch.Tensor) -> ChocoState:
        """All go on from agreed weights, float32 [P]: they are everybody's public copy, nothing is
        unsaid or missing, and messages are counted anew. Momentum begins anew too: to keep it was
        measured to be worse (docs/adr/0026)."""
        return self.begin(state.me, weights)

    def start(self, state: ChocoState) -> torch.Tensor:
        """a."""
        return state.a

    def model(self, state: ChocoState) -> torch.Tensor:
        """a."""
        return state.a

    def speak(self, state: ChocoState, work: Work) -> tuple[ChocoState, Change | None]:
        """The local Nesterov step, and what of it fits into a message."""
        momentum = self.mu * state.momentum + work.delta
        y = state.a - self.eta * (work.delta + self.mu * momentum)
        # An anchor is subtracted from, so the change is said the other way round.
        unsaid = state.public.to_weights() - y
        try:
            change = select(unsaid, self.schema.layout, self.kept_per_chunk)
            public = self._plus(state.public, Framed(state.me, 0, encode(change), change.layout))
        except (NonFiniteError, DeltaError):
            return replace(state, y=state.a, momentum=torch.zeros_like(momentum)), None
        said = Change(
            state.me,
            state.number + 1,
            encode(change),
            change.layout,
            check=public.root()[:CHECK_BYTES],
            lacking=frozenset(state.behind),
        )
        kept = (*state.said, said)[-KEPT_MESSAGES:]
        spoken = replace(
            state, y=y, momentum=momentum, public=public, said=kept, number=said.number
        )
        return spoken, said

    def answer(self, state: ChocoState, after: int | None) -> Sequence[Change | Whole]:
        """What brings a neighbour's copy of this node up to date: see `ChocoState.wanted`."""
        if after is not None:
            missing = [message for message in state.said if message.number > after]
            if len(missing) == state.number - after:
                return missing
        return [Whole(state.me, state.number, state.public)]

    def repair(self, state: ChocoState, messages: Sequence[Change | Whole]) -> ChocoState:
        """Take in answers; they mix with the next `listen`."""
        for message in sorted(messages, key=lambda message: message.number):
            state = self._hear(state, message)
        return state

    def listen(self, state: ChocoState, messages: Sequence[Change], row: Row) -> ChocoState:
        """Follow the copies, then one step towards those that both ends have."""
        heard = {message.sender for message in messages}
        for message in sorted(messages, key=lambda message: message.number):
            state = self._hear(state, message)
        usable = {
            other: copy.anchor
            for other, copy in sorted(state.copies.items())
            if other in row
            and other in heard
            and other not in state.behind
            and copy.anchor is not None
            and state.me not in copy.lacking
        }
        if not usable:
            return replace(state, a=state.y)
        own = state.public.to_weights()
        differences = torch.stack([anchor.to_weights() for anchor in usable.values()]) - own
        weights = torch.tensor([row[other] for other in usable], dtype=torch.float64)
        gamma = stable_gamma(self.kept_per_chunk) if self.gamma is None else self.gamma
        return replace(state, a=state.y + gamma * self.pull(differences, weights))

    def _hear(self, state: ChocoState, message: Change | Whole) -> ChocoState:
        sender = message.sender
        copy = state.copies.get(sender, Copy(0, state.genesis))
        if isinstance(message, Whole):
            if message.number < copy.number:
                return state
            known = Copy(message.number, message.copy)
        elif message.number <= copy.number and copy.anchor is not None:
            return state
        elif message.number != copy.number + 1 or copy.anchor is None:
            furthest = max(message.number, state.behind.get(sender, 0))
            return replace(state, behind={**state.behind, sender: furthest})
        else:
            known = self._follow(copy.anchor, message)
        behind = dict(state.behind)
        if known.anchor is None:
            behind[sender] = max(known.number, behind.get(sender, 0))
        elif known.number >= behind.get(sender, 0):
            behind.pop(sender, None)
        return replace(state, copies={**state.copies, sender: known}, behind=behind)

    def _follow(self, copy: Anchor, message: Change) -> Copy:
        try:
            anchor: Anchor | None = self._plus(copy, message)
        except DeltaError:
            anchor = None
        if anchor is not None and anchor.root()[:CHECK_BYTES] != message.check:
            anchor = None
        return Copy(message.number, anchor, message.lacking)

    def _plus(self, copy: Anchor, message: Framed) -> Anchor:
        after = copy.copy()
        scales = np.ones(len(self.schema.tensors))
        table = increments(message.delta, weight=1.0, alpha=1.0, scales=scales, schema=self.schema)
        after.apply(message.delta, table)
        return after
