"""noloco: random pairs meet, each round others; nobody waits for more than one partner.

    delta_i <- alpha delta_i + beta mean(Delta) + gamma (mean(phi) - phi_i)
    phi_i   <- phi_i + delta_i

phi is the slow model, Delta = x - phi what H local steps made of it, both means over the pair.
gamma pulls the two slow models together; it must lie between alpha and sqrt(2 + alpha^2) for pairs.
A node without a partner goes on with its own. Replicas never become equal.

Source: NoLoCo (Gensyn, arXiv 2506.10911); reference/algorithms.md 1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shoal.gossip.mixing import Row
from shoal.gossip.robust import Pull, plain_pull
from shoal.gossip.strategies.strategy import Dense, Reach, Work, dense


@dataclass(frozen=True, slots=True, eq=False)
class NolocoState:
    """phi: the slow model; momentum: delta of the formula; both float32 [P]."""

    me: bytes
    phi: torch.Tensor
    momentum: torch.Tensor
    said: Dense | None = None
    number: int = 0


@dataclass(frozen=True)
class Noloco:
    """alpha: momentum; beta: outer learning rate; gamma: pull towards the partner."""

    alpha: float = 0.5
    beta: float = 0.7
    gamma: float = 0.7
    pull: Pull = plain_pull
    reach = Reach.PARTNER

    def begin(self, me: bytes, weights: torch.Tensor) -> NolocoState:
        """Start from agreed weights, at rest."""
        return NolocoState(me, weights, torch.zeros_like(weights))

    def join(self, me: bytes, donor: NolocoState, number: int) -> NolocoState:
        """A newcomer has the donor's slow model and momentum."""
        return NolocoState(me, donor.phi, donor.momentum, number=number)

    def adopt(self, state: NolocoState, weights: torch.Tensor) -> NolocoState:
        """All go on from agreed weights, float32 [P], each with its own momentum."""
        return replace(state, phi=weights)

    def start(self, state: NolocoState) -> torch.Tensor:
        """phi."""
        return state.phi

    def model(self, state: NolocoState) -> torch.Tensor:
        """phi."""
        return state.phi

    def speak(self, state: NolocoState, work: Work) -> tuple[NolocoState, Dense | None]:
        """Say both Delta and phi."""
        said = dense(state.me, state.number + 1, -work.delta, state.phi)
        number = state.number if said is None else said.number
        return replace(state, said=said, number=number), said

    def listen(self, state: NolocoState, messages: Sequence[Dense], row: Row) -> NolocoState:
        """One outer step with whoever was met; `row` has the partner's share of the mean."""
        own = state.said
        if own is None:
            return state
        momentum = self.alpha * state.momentum + self.beta * own.part(0)
        for message in messages:
            if message.sender in row:
                weight = torch.tensor([row[message.sender]], dtype=torch.float64)
                steps = (message.part(0) - own.part(0))[None]
                models = (message.part(1) - own.part(1))[None]
                momentum += self.beta * self.pull(steps, weight)
                momentum += self.gamma * self.pull(models, weight)
        return replace(state, phi=state.phi + momentum, momentum=momentum)
