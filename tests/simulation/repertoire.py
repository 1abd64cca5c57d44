"""The rest of the repertoire, and the table of all behaviours.

None of these tells a lie that a peer could prove: they are late, choosy, or repeat what was true.
"""

from shoal.consensus.records import operation_digest
from shoal.consensus.votes import VoteKind
from tests.simulation.adversary import Coalition, Equivocator, Liar, Mutator, Sent, Silent
from tests.simulation.forgery import Forger, NewViewForger
from tests.simulation.plan import Behaviour
from tests.simulation.rewriting import Rewriter
from tests.simulation.wire import CANDIDATE, NEW_VIEW, PRE_PREPARE, REQUEST, VIEW_CHANGE

# What each withholder keeps to itself: combinations of kinds, by the message's first byte.
WITHHELD: tuple[frozenset[int], ...] = (
    frozenset({VoteKind.PREPARE}),
    frozenset({VoteKind.COMMIT}),
    frozenset({VoteKind.STABLE}),
    frozenset({VoteKind.ATTEST}),
    frozenset({VoteKind.READY}),
    frozenset({VIEW_CHANGE}),
    frozenset({VIEW_CHANGE, NEW_VIEW}),
    frozenset({VoteKind.PREPARE, VoteKind.COMMIT, VoteKind.STABLE}),
)


class Twin(Liar):
    """Two processes of the honest code with one key; the driver routes (see Driver)."""

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        self.counts["twins"] += 1
        return [(0, data)]


class SlowPrimary(Liar):
    """Proposes, and starts views, just before the others' patience ends."""

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        if data[0] in (PRE_PREPARE, NEW_VIEW, CANDIDATE):
            self.counts["slow-primary"] += 1
            return [(self.coalition.timeout_ms * 9 // 10, data)]
        return [(0, data)]


class Selective(Liar):
    """Speaks to some peers and not to others, and changes its mind about which now and then."""

    def __init__(self, me: int, coalition: Coalition) -> None:
        super().__init__(me, coalition)
        self._chosen: set[int] = set()

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        if not self._chosen or self.rng.random() < 0.01:
            self._chosen = {
                index for index in range(len(self.coalition.keys)) if self.rng.random() < 0.5
            }
        if target in self._chosen:
            return [(0, data)]
        self.counts["selective"] += 1
        return []


class Withholder(Liar):
    """Never sends its votes of certain kinds."""

    def __init__(self, me: int, coalition: Coalition) -> None:
        super().__init__(me, coalition)
        self._withheld = self.rng.choice(WITHHELD)

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        if data[0] in self._withheld:
            self.counts["withhold"] += 1
            return []
        return [(0, data)]


class Stale(Liar):
    """Replays what it heard, whoever said it: whole VIEW-CHANGE quorums, NEW-VIEWs, old votes."""

    def __init__(self, me: int, coalition: Coalition) -> None:
        super().__init__(me, coalition)
        self._views: list[bytes] = []

    def incoming(self, data: bytes) -> bool:
        if data[0] in (VIEW_CHANGE, NEW_VIEW) and len(self._views) < 64:
            self._views.append(data)
        return super().incoming(data)

    def outgoing(self, target: int, data: bytes) -> list[Sent]:
        if data[0] == NEW_VIEW and len(self._views) < 64:
            self._views.append(data)
        if self.rng.random() > 0.1:
            return [(0, data)]
        self.counts["stale"] += 1
        again = [self.rng.choice(self.coalition.heard)] if self.coalition.heard else []
        if self._views and self.rng.random() < 0.5:
            start = self.rng.randrange(len(self._views))
            again += self._views[start : start + self.coalition.n + 1]
        return [(0, data), *((0, old) for old in again)]


class Censor(Liar):
    """Orders everything as it should, except the operations that it does not like."""

    def incoming(self, data: bytes) -> bool:
        if data[0] == REQUEST and operation_digest(data[1:])[0] % 2:
            self.counts["censor"] += 1
            return False
        return super().incoming(data)


REPERTOIRE: dict[Behaviour, type[Liar]] = {
    "equivocate": Equivocator,
    "silent": Silent,
    "mutate": Mutator,
    "twins": Twin,
    "slow-primary": SlowPrimary,
    "selective": Selective,
    "withhold": Withholder,
    "stale": Stale,
    "newview": NewViewForger,
    "forge": Forger,
    "censor": Censor,
    "rewrite": Rewriter,
}
