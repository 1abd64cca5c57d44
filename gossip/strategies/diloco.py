"""diloco: all members average their deltas and take one Nesterov step. The baseline to match.

    Delta  = sum_i p_i d_i / sum_i p_i         over those whose message arrived in this round
    m      <- mu m + Delta
    theta  <- theta - eta (Delta + mu m)

Nesterov's step is not linear in the messages, so members must agree on the set of each round. The
sums run in the order of ids, in float32: members on like machines stay equal, others nearly.

Source: DiLoCo (Douillard et al., 2023), outer SGD .7/.9; reference/algorithms.md 1.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from shoal.gossip.mixing import Row
from shoal.gossip.strategies.shared import Shared
from shoal.gossip.strategies.strategy import Dense, Reach, Work, dense


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """What all members have alike: model and momentum, float32 [P] each."""

    theta: torch.Tensor
    momentum: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class DilocoState:
    """A member's reference to it."""

    me: bytes
    outer: Outer
    number: int = 0


@dataclass(frozen=True)
class Diloco:
    """shares: p_i of the members, in any scale; those it lacks have 1. eta, mu: see above."""

    eta: float = 0.7
    mu: float = 0.9
    shares: Mapping[bytes, float] = field(default_factory=dict)
    reach = Reach.AGREED
    _shared: Shared[Outer] = field(default_factory=Shared, init=False, repr=False)

    def begin(self, me: bytes, weights: torch.Tensor) -> DilocoState:
        """Start from agreed weights, at rest."""
        # One object for one vector, so that members who begin alike share what follows.
        outer = self._shared.of(
            weights, frozenset(), lambda: Outer(weights, torch.zeros_like(weights))
        )
        return DilocoState(me, outer)

    def join(self, me: bytes, donor: DilocoState, number: int) -> DilocoState:
        """A newcomer has what all have."""
        return DilocoState(me, donor.outer, number)

    def start(self, state: DilocoState) -> torch.Tensor:
        """theta."""
        return state.outer.theta

    def model(self, state: DilocoState) -> torch.Tensor:
        """theta."""
        return state.outer.theta

    def speak(self, state: DilocoState, work: Work) -> tuple[DilocoState, Dense | None]:
        """Say the delta."""
        said = dense(state.me, state.number + 1, work.delta)
        return (state, None) if said is None else (replace(state, number=said.number), said)

    def listen(self, state: DilocoState, messages: Sequence[Dense], row: Row) -> DilocoState:
        """The outer step over the agreed set; none for an empty one."""
        if not messages:
            return state
        names = frozenset((message.sender, message.number) for message in messages)
        return replace(
            state, outer=self._shared.of(state.outer, names, lambda: self._step(state, messages))
        )

    def _step(self, state: DilocoState, messages: Sequence[Dense]) -> Outer:
        ordered = sorted(messages, key=lambda message: message.sender)
        shares = [self.shares.get(message.sender, 1.0) for message in ordered]
        mean = torch.zeros_like(state.outer.theta)
        for message, share in zip(ordered, shares, strict=True):
            mean.add_(message.part(), alpha=share / sum(shares))
        momentum = self.mu * state.outer.momentum + mean
        return Outer(state.outer.theta - self.eta * (mean + self.mu * momentum), momentum)
