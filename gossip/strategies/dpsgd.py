"""dpsgd: neighbours average their models. The baseline that everything else must beat.

    y_i = x_i after H local steps
    x_i <- y_i + sum_j W_ij (y_j - y_i)

W has the reversible Metropolis-Hastings weights of mixing.py, so sum_i p_i x_i moves by local
steps alone. A missing message gives its weight back to the node; where only one side misses it the
weighted mean drifts a little, which is the price of not waiting.

Source: D-PSGD (Lian et al., 2017) with local steps; reference/algorithms.md 1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from shoal.gossip.mixing import Row
from shoal.gossip.robust import Pull, plain_pull
from shoal.gossip.strategies.strategy import Dense, Reach, Work, dense


@dataclass(frozen=True, slots=True, eq=False)
class MixingState:
    """model: float32 [P]; said: the last message, as neighbours see it."""

    me: bytes
    model: torch.Tensor
    said: Dense | None = None
    number: int = 0


def pull_of(own: Dense, messages: Sequence[Dense], row: Row, pull: Pull) -> torch.Tensor:
    """sum_j W_ij (y_j - y_i) over those who spoke, or a robust version of it: float32 [P].

    Both ends use the rounded models, so that what one gains the other loses.
    """
    heard = [message for message in messages if message.sender in row]
    if not heard:
        return torch.zeros_like(own.part())
    differences = torch.stack([message.part() for message in heard]) - own.part()
    weights = torch.tensor([row[message.sender] for message in heard], dtype=torch.float64)
    return pull(differences, weights)


@dataclass(frozen=True)
class Dpsgd:
    """`pull`: how neighbours are listened to, see robust.py."""

    pull: Pull = plain_pull
    reach = Reach.NEIGHBOURS

    def begin(self, me: bytes, weights: torch.Tensor) -> MixingState:
        """Start from agreed weights."""
        return MixingState(me, weights)

    def join(self, me: bytes, donor: MixingState, number: int) -> MixingState:
        """A newcomer starts from the donor's model."""
        return MixingState(me, donor.model, number=number)

    def adopt(self, state: MixingState, weights: torch.Tensor) -> MixingState:
        """All go on from agreed weights, float32 [P]."""
        return replace(state, model=weights)

    def start(self, state: MixingState) -> torch.Tensor:
        """The node's own model."""
        return state.model

    def model(self, state: MixingState) -> torch.Tensor:
        """Its own."""
        return state.model

    def speak(self, state: MixingState, work: Work) -> tuple[MixingState, Dense | None]:
        """Say the model after the local steps."""
        said = dense(state.me, state.number + 1, work.trained)
        if said is None:
            return replace(state, said=None), None
        return replace(state, model=work.trained, said=said, number=said.number), said

    def listen(self, state: MixingState, messages: Sequence[Dense], row: Row) -> MixingState:
        """One step towards the neighbours."""
        if state.said is None:
            return state
        return replace(state, model=state.model + pull_of(state.said, messages, row, self.pull))
