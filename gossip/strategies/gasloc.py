"""gasloc: gossip averaging with iterate momentum. Dense messages, the best loss on a LAN.

    y_i     = theta_i + eta (x_i - theta_i)                       x_i: after H local steps
    theta_i <- y_i + sum_j W_ij (y_j - y_i) + mu (y_i - y_i_prev)

The momentum carries what the neighbourhood learned in earlier rounds along, and turns the spectral
gap into its square root. mu = .8 needs a static, well connected graph: at most .5 for random
pairs, and one-peer directed graphs diverge with .7. The step after a change of
graph has no momentum.

Source: GASLoC (arXiv 2606.11081); reference/algorithms.md 1.7.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shoal.gossip.mixing import Row
from shoal.gossip.robust import Pull, plain_pull
from shoal.gossip.strategies.dpsgd import pull_of
from shoal.gossip.strategies.strategy import Dense, Reach, Work, dense


@dataclass(frozen=True, slots=True, eq=False)
class GaslocState:
    """theta: float32 [P]; y, previous: this round's and the last round's y; linked: to whom."""

    me: bytes
    theta: torch.Tensor
    y: torch.Tensor | None = None
    previous: torch.Tensor | None = None
    said: Dense | None = None
    linked: frozenset[bytes] = frozenset()
    number: int = 0


@dataclass(frozen=True)
class Gasloc:
    """eta: outer learning rate; mu: momentum; pull: how neighbours are listened to."""

    eta: float = 1.0
    mu: float = 0.8
    pull: Pull = plain_pull
    reach = Reach.NEIGHBOURS

    def begin(self, me: bytes, weights: torch.Tensor) -> GaslocState:
        """Start from agreed weights."""
        return GaslocState(me, weights)

    def join(self, me: bytes, donor: GaslocState, number: int) -> GaslocState:
        """A newcomer starts from the donor's theta, at rest."""
        return GaslocState(me, donor.theta, number=number)

    def adopt(self, state: GaslocState, weights: torch.Tensor) -> GaslocState:
        """All go on from agreed weights, float32 [P]. What the last step started from moves along,
        so the momentum stays: beginning at rest was measured to be worse (docs/adr/0026)."""
        y = None if state.y is None else state.y + (weights - state.theta)
        return replace(state, theta=weights, y=y)

    def start(self, state: GaslocState) -> torch.Tensor:
        """theta."""
        return state.theta

    def model(self, state: GaslocState) -> torch.Tensor:
        """theta."""
        return state.theta

    def speak(self, state: GaslocState, work: Work) -> tuple[GaslocState, Dense | None]:
        """Say y."""
        y = state.theta - self.eta * work.delta
        said = dense(state.me, state.number + 1, y)
        if said is None:
            return replace(state, y=None, previous=None, said=None), None
        return replace(state, y=y, previous=state.y, said=said, number=said.number), said

    def listen(self, state: GaslocState, messages: Sequence[Dense], row: Row) -> GaslocState:
        """Mix, and go on in the direction of the last step."""
        if state.y is None or state.said is None:
            return state
        theta = state.y + pull_of(state.said, messages, row, self.pull)
        linked = frozenset(row)
        if state.previous is not None and linked == state.linked:
            theta = theta + self.mu * (state.y - state.previous)
        return replace(state, theta=theta, linked=linked)
