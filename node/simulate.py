"""Many peers in one process, in virtual time: the body of `shoal simulate`.

The strategies, the codec, the anchor, the mixing weights and the parameters of an epoch are the
real ones, a state for each peer; only training is stacked (training/stacked.py), and only the
network is made up (simulate_delivery.py). A round lasts as long as a peer of ordinary speed needs
for its local steps. Where nobody waits for anybody, a straggler makes shorter rounds, as its own
measurement would tell it to (gossip/pace.py); elsewhere everybody waits for it.

In delta-log all peers that hold the same deltas share one anchor, and those that only listen to
neighbours go on from one agreed model after each epoch. That this is no assumption is checked at
every cut: all roots must be one (simulate_cuts.py).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from shoal.gossip.anchor import Anchor
from shoal.gossip.attacks import ATTACKS, Sight, dissensus
from shoal.gossip.mixing import Row, mixing_rows, pair_row
from shoal.gossip.pace import FACTOR_MAX
from shoal.gossip.schema import ModelSchema, TensorSchema, choose_fraction_bits
from shoal.gossip.strategies.delta_log import DeltaLog
from shoal.gossip.strategies.strategy import AnyStrategy, Reach, Work
from shoal.gossip.topology import graph, matching
from shoal.gossip.weights import Member, objective_weights
from shoal.node.simulate_cuts import Cuts, LogCuts, Neighbourly, SnapshotCuts
from shoal.node.simulate_delivery import Post
from shoal.node.simulate_plan import ABSENT, FAST_TIMES, Members, Plan, make_strategy
from shoal.training.builtin_text import SHARDS_MAX
from shoal.training.data import load
from shoal.training.local_steps import Schedule
from shoal.training.stacked import (
    CONTEXT,
    StackedAdamW,
    StackedModel,
    StackedText,
    Steps,
    characters,
    evaluate,
    train,
)
from shoal.training.tokenizer import ByteTokenizer

EVALUATED_WINDOWS = 256
# Peers whose own models are measured; the mean of all is measured besides.
EVALUATED_PEERS = 16
WARMUP_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """One round. time: in rounds of an ordinary peer; losses in nats per character, of the mean
    of the honest peers' models, of their own models, and while training; consensus: root mean
    square distance of models to their mean; bytes_per_peer: sent since the start, mean;
    loss_committed: of the newest model that all agreed on, None before there is one."""

    round: int
    time: float
    loss_mean: float
    loss_individual: float
    loss_train: float | None
    consensus: float
    consensus_relative: float
    bytes_per_peer: float
    peers: int
    loss_committed: float | None


def peer_id(index: int) -> bytes:
    """The id of a simulated peer."""
    return hashlib.sha256(b"simulated peer" + index.to_bytes(4, "big")).digest()


@lru_cache(maxsize=2)
def read_texts(peers: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each peer's own text by subject, and what all of them held out: characters, int64."""
    shards = min(peers, SHARDS_MAX)
    corpora = [load(f"builtin:{index}/{shards}", ByteTokenizer()) for index in range(shards)]
    texts = []
    for index, corpus in enumerate(corpora):
        sharing = len(range(index, peers, shards))
        texts.append(np.array_split(corpus.train, sharing))
    own = [characters(texts[peer % shards][peer // shards]) for peer in range(peers)]
    return own, characters(np.concatenate([corpus.held_out for corpus in corpora]))


def schema_of(model: StackedModel, weights: torch.Tensor) -> ModelSchema:
    """The schema of a stacked model's row."""
    tensors = []
    start = 0
    for name, shape in model.shapes.items():
        tensor = TensorSchema(name, shape, 0)
        largest = float(weights[start : start + tensor.size].abs().max())
        tensors.append(TensorSchema(name, shape, choose_fraction_bits(largest)))
        start += tensor.size
    return ModelSchema(tuple(tensors))


class World:
    """All peers of one simulated run."""

    def __init__(self, plan: Plan, *, strategy: AnyStrategy | None = None) -> None:
        """strategy: instead of the one that the plan names; tests put broken ones here."""
        plan.check()
        self.plan = plan
        self._rng = np.random.default_rng((plan.seed, 1))
        self._noise = torch.Generator().manual_seed(plan.seed)
        self._model = StackedModel(plan.hidden)
        self.ids = [peer_id(index) for index in range(plan.peers)]
        texts, held_out = read_texts(plan.peers)
        self._text = StackedText(texts, seed=plan.seed)
        self._windows = self._held_out_windows(held_out)
        self._optimizer = StackedAdamW(plan.peers, self._model.parameters)
        self.genesis = self._model.initial(torch.Generator().manual_seed(plan.seed))
        self.schema = schema_of(self._model, self.genesis)
        # The last ones, so that runs with and without them have the same honest peers.
        self._liars = frozenset(self.ids[plan.peers - plan.attackers :])
        absent = self._liars if plan.attack == ABSENT else frozenset()
        self._founders = [me for me in self.ids if me not in absent]
        members = [Member(*member) for member in self._members(self._founders)]
        self._shares = dict(objective_weights(members, {}))
        self.strategy = strategy or self._make_strategy()
        self.states: dict[bytes, Any] = {
            me: self.strategy.begin(me, self.genesis) for me in self._founders
        }
        self._post = Post(self.strategy, plan.drop, np.random.default_rng((plan.seed, 2)))
        slow = round(plan.stragglers * plan.peers)
        self._slow = frozenset(self._rng.choice(plan.peers, slow, replace=False).tolist())
        self._fast = frozenset(range(round(plan.fast * plan.peers)))
        self._away: dict[bytes, int] = {}
        self._began: dict[bytes, torch.Tensor] = {}
        self._mixing: dict[bytes, Row] = {}
        self.cuts = self._make_cuts()
        self.loss_committed: float | None = None
        self.time = 0.0

    def run(self) -> Iterator[Measured]:
        """Play all rounds; yields one record a round."""
        for number in range(1, self.plan.rounds + 1):
            if (number - 1) % self.plan.rounds_per_epoch == 0:
                self._turn(number)
            loss = self._round(number)
            yield self._measure(number, loss)
        self._close()

    # --- one round ----------------------------------------------------------------------------

    def _round(self, number: int) -> float | None:
        for me in self.states:
            if me not in self._began:
                self._began[me] = self.strategy.start(self.states[me])
        ready = [i for i, me in enumerate(self.ids) if me in self.states and self._due(i, number)]
        rows = self._rows(number)
        works, loss = self._train(ready, number)
        works.update(self._lies(works, rows))
        spoken = {}
        for me, work in works.items():
            self.states[me], message = self.strategy.speak(self.states[me], work)
            del self._began[me]
            if message is not None:
                spoken[me] = message
        self._post.deliver(self.states, spoken, rows)
        self.cuts.hear(spoken.values())
        waits = self.strategy.reach is not Reach.EVERYBODY and any(i in self._slow for i in ready)
        self.time += self.plan.slowdown if waits else 1
        return loss

    def _late(self, index: int) -> bool:
        """Whether a peer is slow where nobody waits for it."""
        return index in self._slow and self.strategy.reach is Reach.EVERYBODY

    def _steps(self, index: int) -> int:
        """How many steps a peer's own round has; one that is late makes short ones, as in pace."""
        agreed = self.plan.local_steps
        if self._late(index):
            return max(1, round(agreed / min(self.plan.slowdown, FACTOR_MAX)))
        return agreed * (FAST_TIMES if index in self._fast else 1)

    def _due(self, index: int, number: int) -> bool:
        """Whether a peer finishes its steps in this round."""
        if not self._late(index):
            return True
        lasts = self._steps(index) * self.plan.slowdown / self.plan.local_steps
        return int((number + index) / lasts) > int((number + index - 1) / lasts)

    def _train(self, ready: list[int], number: int) -> tuple[dict[bytes, Work], float | None]:
        plan = self.plan
        works: dict[bytes, Work] = {}
        losses = []
        for count in sorted({self._steps(index) for index in ready}):
            some = [index for index in ready if self._steps(index) == count]
            rows = torch.stack([self._began[self.ids[index]] for index in some])
            # Where in the shard they read on.
            first = (number - 1) * count
            steps = Steps(self._rates(number, count), first, plan.batch, plan.predicted)
            ends, lost = train(self._model, self._optimizer, self._text, some, rows, steps)
            losses.append(lost)
            tokens = count * plan.batch * plan.predicted
            for index, end in zip(some, ends.unbind(), strict=True):
                me = self.ids[index]
                works[me] = Work(self._began[me], end, count, tokens)
        return works, float(torch.cat(losses).mean()) if losses else None

    def _rates(self, number: int, count: int) -> list[float]:
        """The learning rates of `count` steps that share a round's part of the schedule."""
        agreed = self.plan.local_steps
        total, first = self.plan.rounds * agreed, (number - 1) * agreed
        schedule = Schedule(
            learning_rate=self.plan.learning_rate,
            warmup_tokens=max(1, round(WARMUP_SHARE * total)),
            schedule_tokens=total,
        )
        return [schedule.at(first + step * agreed // count) for step in range(count)]

    def _lies(self, works: dict[bytes, Work], rows: dict[bytes, Row]) -> dict[bytes, Work]:
        """What attackers claim to have trained, instead of what they did."""
        honest = [me for me in works if me not in self._liars]
        liars = [me for me in works if me in self._liars]
        if not honest or not liars:
            return {}
        deltas = torch.stack([works[me].delta for me in honest])
        lies = {}
        for me in liars:
            work = works[me]
            if self.plan.attack == "dissensus":
                trained = self._divide(me, works, rows)
            else:
                sight = Sight(work.delta, deltas, len(liars), self._noise)
                trained = work.began - ATTACKS[self.plan.attack](sight)
            lies[me] = replace(work, trained=trained)
        return lies

    def _divide(self, me: bytes, works: dict[bytes, Work], rows: dict[bytes, Row]) -> torch.Tensor:
        """Dissensus against the first honest neighbour, if there is one."""
        victims = [other for other in rows[me] if other not in self._liars]
        if not victims:
            return works[me].trained
        row = rows[victims[0]]
        honest = [other for other in row if other not in self._liars]
        if not honest:
            return works[me].trained
        return dissensus(
            works[victims[0]].trained,
            torch.stack([works[other].trained for other in honest]),
            torch.tensor([row[other] for other in honest], dtype=torch.float64),
            sum(weight for other, weight in row.items() if other in self._liars),
        )

    def _rows(self, number: int) -> dict[bytes, Row]:
        if self.strategy.reach is Reach.NEIGHBOURS:
            return {} if self.plan.strategy == "isolated" else self._mixing
        if self.strategy.reach is not Reach.PARTNER:
            return {}
        seed = self.plan.seed.to_bytes(8, "big")
        pairs = matching(self.states, seed, number)
        return {me: pair_row(me, other, self._shares) for me, other in pairs.items()}

    # --- epochs -------------------------------------------------------------------------------

    def _turn(self, number: int) -> None:
        if number > 1:
            self._close()
            self._leave_and_come_back()
            self.cuts.open(self.states, self._members(list(self.states)))
        present = list(self.states)
        if self.strategy.reach is Reach.NEIGHBOURS:
            seed = self.plan.seed.to_bytes(8, "big")
            # Drawn anew only when somebody left: momentum is worth more than another graph.
            links = graph(self.plan.topology, present, seed, self.plan.degree)
            self._mixing = mixing_rows(links, self._shares)

    @property
    def bytes_per_peer(self) -> float:
        """Sent since the start, mean."""
        return self._post.bytes_sent / self.plan.peers

    def _close(self) -> None:
        self.cuts.close(self.states)
        if self.cuts.committed is not None:
            row = self.cuts.committed.to_weights()[None]
            self.loss_committed = float(evaluate(self._model, row, self._windows)[0])

    def _leave_and_come_back(self) -> None:
        back, self._away = self._away, {}
        leaving = round(self.plan.churn * len(self.states))
        honest = [me for me in self.states if me not in self._liars]
        for place in self._rng.choice(len(honest), min(leaving, len(honest) - 2), replace=False):
            me = honest[place]
            self._away[me] = getattr(self.states.pop(me), "number", 0)
            self._began.pop(me, None)
        donors = [me for me in self.states if me not in self._liars]
        for me, said in back.items():
            donor = self.states[donors[int(self._rng.integers(len(donors)))]]
            self.states[me] = self.strategy.join(me, donor, said)
            self._optimizer.reset(self.ids.index(me))
        self.states = {me: self.states[me] for me in self.ids if me in self.states}

    # --- making and measuring -----------------------------------------------------------------

    def _make_strategy(self) -> AnyStrategy:
        return make_strategy(self.plan, self.schema, self._members(self._founders), self._shares)

    def _make_cuts(self) -> Cuts:
        if isinstance(self.strategy, DeltaLog):
            return LogCuts(self.strategy, self.genesis, self._post, self._rng)
        if self.plan.strategy == "isolated" or not isinstance(self.strategy, Neighbourly):
            return Cuts()
        genesis = Anchor.from_weights(self.schema, self.genesis)
        return SnapshotCuts(self.strategy, genesis, self._post, self._rng, self._false_models)

    def _false_models(self, models: dict[bytes, torch.Tensor]) -> dict[bytes, torch.Tensor]:
        """What attackers say that they have become: all since the genesis is one delta to them."""
        works = {me: Work(self.genesis, model, 1, 1) for me, model in models.items()}
        return {me: work.trained for me, work in self._lies(works, self._mixing).items()}

    def _members(self, ids: list[bytes]) -> Members:
        lengths = dict(zip(self.ids, self._text.lengths, strict=True))
        return [(me, lengths[me], 1000) for me in ids]

    def _held_out_windows(self, text: torch.Tensor) -> torch.Tensor:
        length = CONTEXT + self.plan.predicted
        starts = np.random.default_rng(0).integers(0, len(text) - length, EVALUATED_WINDOWS)
        return text[torch.from_numpy(starts[:, None] + np.arange(length))]

    def _measure(self, number: int, loss_train: float | None) -> Measured:
        honest = [me for me in self.states if me not in self._liars]
        total = torch.zeros_like(self.genesis, dtype=torch.float64)
        squares = 0.0
        for me in honest:
            away = (self.strategy.model(self.states[me]) - self.genesis).double()
            total += away
            squares += float(away.square().sum())
        mean = total / len(honest)
        consensus = max(0.0, squares / len(honest) - float(mean.square().sum())) ** 0.5
        some = honest[:: max(1, len(honest) // EVALUATED_PEERS)][:EVALUATED_PEERS]
        models = [self.strategy.model(self.states[me]) for me in some]
        rows = torch.stack([self.genesis + mean.float(), *models])
        losses = evaluate(self._model, rows, self._windows)
        return Measured(
            round=number,
            time=self.time,
            loss_mean=float(losses[0]),
            loss_individual=float(losses[1:].mean()),
            loss_train=loss_train,
            consensus=consensus,
            consensus_relative=consensus / max(float(mean.norm()), 1e-30),
            bytes_per_peer=self.bytes_per_peer,
            peers=len(self.states),
            loss_committed=self.loss_committed,
        )


def summary_of(plan: Plan, last: Measured, world: World) -> dict[str, Any]:
    """A run in one flat object: the plan, its last round, and what was checked."""
    return {
        **asdict(plan),
        **asdict(last),
        "kept_per_chunk": plan.kept_per_chunk,
        "parameters": len(world.genesis),
        "cuts_with_equal_anchors": world.cuts.checked,
        # The last cut comes after the last round.
        "bytes_per_peer": world.bytes_per_peer,
        "loss_committed": world.loss_committed,
    }
