"""Nodes that pull towards targets of their own: the smallest thing that a strategy can train."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from shoal.gossip.mixing import Row
from shoal.gossip.strategies.strategy import AnyStrategy, Work
from tests.gossip.builders import SCHEMA, hashed_weights, member

STEPS, TOKENS = 5, 100
# Whether the message of the second reaches the first in this round.
Arrives = Callable[[int, bytes, bytes], bool]


def always(number: int, receiver: bytes, sender: bytes) -> bool:
    return True


def work(began: torch.Tensor, towards: torch.Tensor, rate: float = 0.1) -> Work:
    """Local steps that go a part of the way."""
    return Work(began, began + rate * (towards - began), STEPS, TOKENS)


class Targets:
    """`count` nodes; the model that suits them all best is the mean of their targets."""

    def __init__(self, strategy: AnyStrategy, count: int) -> None:
        self.strategy = strategy
        self.ids = [member(number) for number in range(1, count + 1)]
        self.genesis = hashed_weights("genesis") * 0.1
        self.targets = {me: hashed_weights(f"target {me[0]}") for me in self.ids}
        self.states: dict[bytes, Any] = {me: strategy.begin(me, self.genesis) for me in self.ids}
        self.said: dict[bytes, Any] = {}

    @property
    def best(self) -> torch.Tensor:
        return torch.stack(list(self.targets.values())).mean(dim=0)

    def round(self, number: int, rows: Mapping[bytes, Row], arrives: Arrives = always) -> None:
        """Everybody trains and speaks, then listens; an empty row hears all, itself included."""
        self.said = {}
        for me in self.ids:
            began = self.strategy.start(self.states[me])
            self.states[me], message = self.strategy.speak(
                self.states[me], work(began, self.targets[me])
            )
            if message is not None:
                self.said[me] = message
        for me in self.ids:
            row = rows.get(me, {})
            heard = [
                message
                for sender, message in self.said.items()
                if (not row or sender in row) and arrives(number, me, sender)
            ]
            self.states[me] = self.strategy.listen(self.states[me], heard, row)

    def models(self) -> torch.Tensor:
        return torch.stack([self.strategy.model(self.states[me]) for me in self.ids])

    def distance(self) -> float:
        """Of the mean model to the best one, relative to where it began."""
        return float(
            (self.models().mean(dim=0) - self.best).norm() / (self.genesis - self.best).norm()
        )

    def apart(self) -> float:
        """Root mean square distance of the models to their mean, relative to that of targets."""
        models, targets = self.models(), torch.stack(list(self.targets.values()))
        spread = (targets - targets.mean(dim=0)).norm()
        return float((models - models.mean(dim=0)).norm() / spread)


__all__ = ["SCHEMA", "Targets", "always", "work"]
