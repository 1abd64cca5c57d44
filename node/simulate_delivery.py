"""How messages get from peer to peer in a simulation: who hears what, and what is lost.

    everybody    relayed and repaired: what is lost is asked for again in the next round
    agreed       one draw for each message; what is not in the set of a round waits for the next
                 one where the strategy keeps it, and is gone where not
    neighbours   one draw for each message and receiver; gone, unless the strategy asks again
    partner      the same for the one that is met

Every transmission counts, lost or not.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shoal.gossip.mixing import Row
from shoal.gossip.strategies.choco import Choco
from shoal.gossip.strategies.diloco import Diloco
from shoal.gossip.strategies.strategy import AnyStrategy, Reach

States = dict[bytes, Any]
Spoken = Mapping[bytes, Any]


class Post:
    """Carries the messages of each round. drop: share of transmissions lost."""

    def __init__(self, strategy: AnyStrategy, drop: float, rng: np.random.Generator) -> None:
        self._strategy = strategy
        self._drop = drop
        self._rng = rng
        self._late: defaultdict[bytes, list[Any]] = defaultdict(list)
        self._waiting: list[Any] = []
        self.bytes_sent = 0

    def deliver(self, states: States, spoken: Spoken, rows: Mapping[bytes, Row]) -> None:
        """Bring what was spoken, by sender, to those present, and let them listen."""
        if self._strategy.reach is Reach.EVERYBODY:
            self._to_everybody(states, spoken)
        elif self._strategy.reach is Reach.AGREED:
            self._to_an_agreed_set(states, spoken)
        else:
            self._to_those_linked(states, spoken, rows)

    def catch_up(self, states: States) -> None:
        """What is still under way is pulled, as before a cut; whoever is away gets nothing."""
        for me in states:
            if late := self._late.pop(me, []):
                self._count(late)
                states[me] = self._strategy.listen(states[me], late, {})
        self._late.clear()

    def bring(self, messages: Sequence[Any], receivers: int) -> None:
        """Count each message at so many receivers, sent again until it is there, as for a cut."""
        for message in messages:
            tries = (
                self._rng.geometric(1 - self._drop, receivers).sum() if self._drop else receivers
            )
            self._count([message], times=int(tries))

    def _to_everybody(self, states: States, spoken: Spoken) -> None:
        fresh = list(spoken.values())
        for me in states:
            others = [message for message in fresh if message.sender != me]
            coming = self._late.pop(me, []) + others
            arrived = self._arrivals(coming)
            lost = [m for m, here in zip(coming, arrived, strict=True) if not here]
            if lost:
                self._late[me] = lost
            heard = [m for m, here in zip(coming, arrived, strict=True) if here]
            own = [spoken[me]] if me in spoken else []
            states[me] = self._strategy.listen(states[me], own + heard, {})

    def _to_an_agreed_set(self, states: States, spoken: Spoken) -> None:
        coming = [*self._waiting, *spoken.values()]
        heard = self._drawn(coming)
        reduced = isinstance(self._strategy, Diloco)
        # A ring all-reduce passes each vector on twice; a log brings each message to all others.
        self._count(heard, times=1 if reduced else len(states) - 2)
        # An outer gradient belongs to its round; a delta is as good in the next one.
        self._waiting = [] if reduced else [m for m in coming if m not in heard]
        for me in states:
            states[me] = self._strategy.listen(states[me], heard, {})

    def _to_those_linked(self, states: States, spoken: Spoken, rows: Mapping[bytes, Row]) -> None:
        if isinstance(self._strategy, Choco):
            self._repair(self._strategy, states)
        for me in states:
            row = rows.get(me, {})
            heard = self._drawn([spoken[other] for other in row if other in spoken])
            states[me] = self._strategy.listen(states[me], heard, row)

    def _repair(self, choco: Choco, states: States) -> None:
        """Whoever noticed a gap in the last round is answered in this one, before it listens."""
        for me in states:
            for other, after in states[me].wanted.items():
                if other in states:
                    answers = self._drawn(choco.answer(states[other], after))
                    states[me] = choco.repair(states[me], answers)

    def _drawn(self, messages: Sequence[Any]) -> list[Any]:
        arrived = self._arrivals(messages)
        return [m for m, here in zip(messages, arrived, strict=True) if here]

    def _arrivals(self, messages: Sequence[Any]) -> Sequence[bool]:
        self._count(messages)
        if self._drop == 0.0:
            return [True] * len(messages)
        arrived: list[bool] = (self._rng.random(len(messages)) >= self._drop).tolist()
        return arrived

    def _count(self, messages: Iterable[Any], times: int = 1) -> None:
        self.bytes_sent += times * sum(message.size_bytes for message in messages)


def spread_rounds(
    links: Mapping[bytes, Sequence[bytes]], drop: float, chance: Callable[[], float]
) -> int:
    """In how many exchanges news of the first peer reaches all, each link losing a share `drop`."""
    reached = {min(links)}
    rounds = 0
    while len(reached) < len(links):
        told = {other for me in reached for other in links[me] if chance() >= drop}
        reached |= told
        rounds += 1
    return rounds
