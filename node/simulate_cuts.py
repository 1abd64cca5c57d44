"""What the members of a simulated mesh agree on at the end of each epoch, and that they do.

delta-log            the anchor: everybody pulls what it lacks, and all roots are compared, with
                     those of replicas that heard the same deltas in orders of their own
neighbours, pairs    the median of snapshots (gossip/snapshots.py), which everybody goes on from
others               nothing
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.errors import GossipError
from shoal.gossip.schema import ModelSchema
from shoal.gossip.snapshots import choose, committee, median_model, take_snapshot
from shoal.gossip.strategies.choco import Choco
from shoal.gossip.strategies.delta_log import DeltaLog, LogDelta, LogState
from shoal.gossip.strategies.dpsgd import Dpsgd
from shoal.gossip.strategies.gasloc import Gasloc
from shoal.gossip.strategies.noloco import Noloco
from shoal.gossip.strategies.strategy import Reach
from shoal.node.simulate_delivery import Post, States
from shoal.node.simulate_plan import Members

REPLICAS = 3
# Those whose members have no model in common but an agreed one.
Neighbourly = Choco | Gasloc | Noloco | Dpsgd
Models = dict[bytes, torch.Tensor]


class AnchorsDiffer(AssertionError):
    """What must be equal for all members is not: our fault, whatever the cause."""


class Cuts:
    """No agreement at all. checked: cuts at which all roots were one; committed: the last model."""

    def __init__(self) -> None:
        self.checked = 0
        self.committed: Anchor | None = None

    def hear(self, spoken: Iterable[Any]) -> None:
        """What was said in a round."""

    def close(self, states: States) -> None:
        """The epoch is over, and its members are still there."""

    def open(self, states: States, members: Members) -> None:
        """The next one begins, with these members."""

    def _compare(self, roots: set[bytes], committed: Anchor) -> None:
        if len(roots) != 1:
            raise AnchorsDiffer(f"{len(roots)} roots where all members should have one")
        self.committed = committed
        self.checked += 1


class LogCuts(Cuts):
    """Cuts of delta-log: the deltas of an epoch, and one anchor."""

    def __init__(
        self,
        strategy: DeltaLog,
        genesis: torch.Tensor,
        post: Post,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self._strategy = strategy
        self._post = post
        self._rng = rng
        self._cut: list[LogDelta] = []
        # Members that do nothing but listen, and share no work with anybody.
        replicas = [replace(strategy) for _ in range(REPLICAS)]
        self._replicas = [(each, each.begin(bytes(32), genesis)) for each in replicas]

    def hear(self, spoken: Iterable[Any]) -> None:
        self._cut.extend(spoken)

    def close(self, states: States) -> None:
        """Everybody pulls what it lacks, and all roots are compared."""
        if self._strategy.reach is Reach.EVERYBODY:
            self._post.catch_up(states)
        heard = self._replay()
        lives = {id(state.live): state.live for state in states.values()}
        roots = {live.anchor.root() for live in (*lives.values(), *heard)}
        self._compare(roots, next(iter(lives.values())).anchor)

    def open(self, states: States, members: Members) -> None:
        """The next epoch, whose members are those who are there now; one anchor for all."""
        first: LogState = next(iter(states.values()))
        epoch = self._strategy.next_epoch(first, self._cut, members)
        for me, state in states.items():
            states[me] = self._strategy.turn(replace(state, live=first.live), epoch)
        self._replicas = [
            (strategy, strategy.turn(state, epoch)) for strategy, state in self._replicas
        ]
        self._cut = []

    def _replay(self) -> list[Any]:
        """The cut once more, at each replica in an order and in portions of its own."""
        if self._strategy.reach is not Reach.EVERYBODY:
            return []
        for place, (strategy, state) in enumerate(self._replicas):
            order = self._rng.permutation(len(self._cut))
            for portion in np.array_split(order, place + 2):
                state = strategy.listen(state, [self._cut[index] for index in portion])
            self._replicas[place] = (strategy, state)
        return [state.live for _, state in self._replicas]


class SnapshotCuts(Cuts):
    """Cuts where members only have models of their own. lies: what attackers say theirs is, of
    everybody's models."""

    def __init__(
        self,
        strategy: Neighbourly,
        genesis: Anchor,
        post: Post,
        rng: np.random.Generator,
        lies: Callable[[Models], Models],
    ) -> None:
        super().__init__()
        self._strategy = strategy
        self._schema: ModelSchema = genesis.schema
        self._post = post
        self._rng = rng
        self._lies = lies
        self._seed = genesis.root()
        self._agreed: torch.Tensor | None = None

    def close(self, states: States) -> None:
        """Snapshots, their median at each member, and everybody goes on from it."""
        self._agreed = None
        models = {me: self._strategy.model(state) for me, state in states.items()}
        models |= self._lies(models)
        taken = (take_snapshot(me, self._schema, model) for me, model in models.items())
        snapshots = [snapshot for snapshot in taken if snapshot is not None]
        try:
            chosen = choose(snapshots, list(states), self._seed, self._schema)
        except GossipError:
            return
        judges = len(committee(list(states), self._seed))
        self._post.bring(chosen, judges - 1)
        # Whoever is no judge fetches what was agreed, which is as long as a snapshot.
        self._post.bring(chosen[:1], len(states) - judges)
        orders = [self._rng.permutation(len(snapshots)) for _ in range(REPLICAS)]
        found = [self._worked_out([snapshots[at] for at in order], states) for order in orders]
        self._compare({each.root() for each in found}, found[0])
        self._seed = found[0].root()
        self._agreed = found[0].to_weights()
        self._adopt(states)

    def open(self, states: States, members: Members) -> None:
        """Whoever came back starts from the agreed model too."""
        self._adopt(states)

    def _worked_out(self, snapshots: list[Any], members: Mapping[bytes, Any]) -> Anchor:
        return median_model(choose(snapshots, list(members), self._seed, self._schema))

    def _adopt(self, states: States) -> None:
        if self._agreed is None:
            return
        for me in states:
            states[me] = self._strategy.adopt(states[me], self._agreed)
        held = [self._strategy.model(state) for state in states.values()]
        if len({Anchor.from_weights(self._schema, model).root() for model in held}) != 1:
            raise AnchorsDiffer("members go on from models that differ")
