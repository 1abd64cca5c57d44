"""What a learning strategy is: how a node turns its local steps into messages, and those of others
into where its next steps start.

    start -> H local steps -> speak -> message ... messages -> listen -> start

Every function is pure: from the node's own state and what it was given to a new state, tensors of
a state never changed in place. So a state can be kept while a straggler computes, shared by a
thousand simulated peers, or belong to a daemon; and who delivers the messages, how late and
whether at all, is the driver's business alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from shoal.compression.codec import SparseDelta, decode
from shoal.compression.layout import Layout
from shoal.gossip.delta import BLOB_OVERHEAD_BYTES
from shoal.gossip.mixing import Row


class Reach(Enum):
    """Who has to hear a message; in the first two its sender hears it as well.

    EVERYBODY: relayed and repaired until every member has it; late ones still count.
    AGREED: every member takes in the same set of messages in a round, whatever it is.
    NEIGHBOURS: those linked to the sender; what is lost is lost.
    PARTNER: the one whom the sender meets in this round.
    """

    EVERYBODY = "everybody"
    AGREED = "agreed"
    NEIGHBOURS = "neighbours"
    PARTNER = "partner"


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One node's finished local steps: began, trained float32 [P] are the weights around them."""

    began: torch.Tensor
    trained: torch.Tensor
    steps: int
    tokens: int

    @property
    def delta(self) -> torch.Tensor:
        """The pseudo-gradient: what subtracting makes `trained` of `began`."""
        return self.began - self.trained


class Message(Protocol):
    """What travels. `number` counts a sender's messages from 1."""

    @property
    def sender(self) -> bytes:
        """Who said it."""
        ...

    @property
    def number(self) -> int:
        """Which of its messages it is."""
        ...

    @property
    def size_bytes(self) -> int:
        """All of it, header and signature too, as it goes over the wire."""
        ...


S = TypeVar("S")
M = TypeVar("M", bound=Message)


class Strategy(Protocol[S, M]):
    """One node's side of a strategy; the parameters of the rule are the object's fields."""

    @property
    def reach(self) -> Reach:
        """Who has to hear its messages."""
        ...

    def begin(self, me: bytes, weights: torch.Tensor) -> S:
        """The state of member `me` that starts from agreed weights, float32 [P]."""
        ...

    def join(self, me: bytes, donor: S, number: int) -> S:
        """The state of a newcomer that was given a member's; `number`: of its last message, for
        one that comes back."""
        ...

    def start(self, state: S) -> torch.Tensor:
        """Where the next local steps start: float32 [P]."""
        ...

    def model(self, state: S) -> torch.Tensor:
        """The model that this node would show others: float32 [P]."""
        ...

    def speak(self, state: S, work: Work) -> tuple[S, M | None]:
        """Take in one's own work and say it; None where it is not finite and cannot be said."""
        ...

    def listen(self, state: S, messages: Sequence[M], row: Row) -> S:
        """Take in messages, in any order. `row`: this round's mixing weights of those linked to;
        whose message is missing gives its weight back. Called once per round, even for none."""
        ...


AnyStrategy = Strategy[Any, Any]


@dataclass(frozen=True, eq=False)
class Dense:
    """A message of whole vectors, rounded to bfloat16: two bytes a parameter and vector."""

    sender: bytes
    number: int
    parts: tuple[torch.Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Values, header and signature."""
        return BLOB_OVERHEAD_BYTES + sum(p.numel() * p.element_size() for p in self.parts)

    def part(self, index: int = 0) -> torch.Tensor:
        """One of its vectors as receivers see it: float32 [P]."""
        return self.parts[index].float()


def dense(sender: bytes, number: int, *vectors: torch.Tensor) -> Dense | None:
    """Round vectors, float32 [P] each, for the wire; None where one is not finite."""
    if not all(bool(torch.isfinite(vector).all()) for vector in vectors):
        return None
    return Dense(sender, number, tuple(vector.to(torch.bfloat16) for vector in vectors))


@dataclass(frozen=True, eq=False)
class Framed:
    """A message that is a frame of the codec, decoded once however many receivers share it."""

    sender: bytes
    number: int
    frame: bytes
    layout: Layout

    @property
    def size_bytes(self) -> int:
        """Frame, header and signature."""
        return BLOB_OVERHEAD_BYTES + len(self.frame)

    @cached_property
    def delta(self) -> SparseDelta:
        """What the frame says; raises FrameError."""
        return decode(self.frame, self.layout)
