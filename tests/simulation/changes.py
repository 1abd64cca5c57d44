"""Who wants which validator set while everything breaks, and which sets may come of it.

A wish is one change that a client pursues during the chaos: it has a quorum of honest validators
approve it, or a member say goodbye or come back, and asks again until it sees it done. Whether it
is done in the end is not for the client to say, so every set that any part of what was asked for
could give must be one in which at most f are faulty. Of those that survive in core mode enough
must be in each of these sets.

Which sets there may be is worked out from the furthest ledger that was ever seen, whether or not
anybody who holds it is up: what was decided once stays decided. What was asked for counts until
that ledger refuses it for good, even when the client is content, or has given up.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, combinations

from shoal.consensus.changes import Approve, Change, ChangeKind, objection
from shoal.consensus.invitations import Invitation
from shoal.consensus.ledger import Ledger
from shoal.consensus.records import Join, Leave, operation_bytes
from tests.simulation.book import EpochBook
from tests.simulation.clockwork import Clockwork
from tests.simulation.cluster import Cluster
from tests.simulation.driver import Driver
from tests.simulation.node import SimulatedNode

# Wishes that make the set larger, in the end, and smaller. Often there is nobody left to promote,
# so growing is asked for first twice as often as shrinking, which makes it happen about as often.
# Who was expelled never comes back.
GROWING = ("promote", "promote", "rejoin")
SHRINKING = ("demote", "demote", "demote", "leave", "leave", "expel")
NOBODY = NEVER = -1
# Times in Joins and Leaves; those of the genesis are 0.
TIME_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Wish:
    """`kind` and whom it concerns (a node's number; NOBODY for parameters)."""

    kind: str
    node: int
    time_ms: int


def _subsets(things: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    pool = sorted(things)
    return chain.from_iterable(combinations(pool, size) for size in range(len(pool) + 1))


class Changes:
    """Draws wishes, pursues them, and knows what may still come of them."""

    def __init__(
        self,
        cluster: Cluster,
        book: EpochBook,
        driver: Driver,
        *,
        rng: random.Random,
        work: Clockwork,
    ) -> None:
        self.cluster = cluster
        self.book = book
        self.driver = driver
        self.rng = rng
        self.work = work
        self.open: list[Wish] = []
        # Those that are not pursued any more, but of which something may still be on its way.
        self._settled: list[Wish] = []
        # The last epoch in which anybody approved what the wish is for.
        self._approved_in: dict[Wish, int] = {}
        self._furthest = cluster.genesis
        faulty = {*cluster.liars, *cluster.rotten}
        self._faulty = {cluster.keys[index] for index in faulty}
        self._liars = {cluster.keys[index] for index in cluster.liars}
        self._honest = [i for i in range(len(cluster.keys)) if i not in faulty]

    def plan(self, count: int, until_ms: int) -> None:
        """So many wishes come up during the chaos."""
        for _ in range(count):
            self.work.at(self.rng.randint(0, until_ms), self._come_up)

    # Which sets there may be.

    def _nodes(self) -> list[SimulatedNode]:
        return [self.driver.nodes[index] for index in self._honest]

    def furthest(self) -> Ledger:
        """The ledger that has come furthest of all that an honest node ever had, down by now or
        not: what it executed was decided, so whatever comes, comes after it."""
        ledgers = [node.replica.ledger for node in self._nodes() if node.replica is not None]
        self._furthest = max([self._furthest, *ledgers], key=lambda ledger: ledger.sequence)
        return self._furthest

    def possible_sets(self, wishes: Iterable[Wish]) -> set[frozenset[bytes]]:
        """Every set that is in force somewhere, or may come to be so.

        Up to the furthest ledger the sets are known. After it, those who are to change at the
        next stability points, and those whom a wish concerns, may be in or out.
        """
        ledger = self.furthest()
        earliest = min(node.epoch for node in self._nodes())
        known = self.book.pages[earliest : ledger.epoch.number]
        keys = frozenset(ledger.epoch.keys)
        # A Join makes a member, never a validator.
        about = {wish.node for wish in wishes if wish.kind not in ("parameters", "rejoin")}
        loose = set(ledger.turns) | {self.cluster.keys[node] for node in about}
        coming = {
            (keys - loose - set(evicted)) | set(chosen)
            for evicted in _subsets(self._liars & keys)
            for chosen in _subsets(loose)
        }
        return ({frozenset(page.keys) for page in known} | coming) - {frozenset()}

    def survivors(self, candidates: list[int]) -> set[int]:
        """As few of these as hold a quorum of every possible set, drawn at random.

        Nobody asks for anything any more, so it is only what was asked for that counts.
        """
        ledger = self.furthest()
        asked = [wish for wish in self.open + self._settled if not self._is_spent(wish, ledger)]
        sets = self.possible_sets(asked)
        left = list(candidates)
        for index in self.rng.sample(candidates, len(candidates)):
            fewer = {self.cluster.keys[other] for other in left if other != index}
            if all(len(fewer & one) >= _quorum(len(one)) for one in sets):
                left.remove(index)
        return set(left)

    # Wishes.

    def _come_up(self) -> None:
        if not self.driver.chaos:
            return
        ledger = self.furthest()
        self._drop_settled(ledger)
        for kind in self._kinds():
            fits = [wish for wish in self._wishes(kind) if self._makes_sense(wish, ledger)]
            if not fits:
                continue
            wish = self.rng.choice(fits)
            sets = self.possible_sets([*self.open, *self._settled, wish])
            if all(len(one & self._faulty) <= (len(one) - 1) // 3 for one in sets):
                self.open.append(wish)
                self.driver.counts[f"wish {wish.kind}"] += 1
                self._pursue(wish)
                return

    def _kinds(self) -> list[str]:
        """All kinds, in the order in which to look whether one makes sense."""
        growing, shrinking = (self.rng.sample(kinds, len(kinds)) for kinds in (GROWING, SHRINKING))
        kinds = growing + shrinking if self.rng.random() < 2 / 3 else shrinking + growing
        return ["parameters", *kinds] if self.rng.random() < 0.15 else [*kinds, "parameters"]

    def _wishes(self, kind: str) -> list[Wish]:
        """One for each node that nobody has another wish for."""
        taken = {wish.node for wish in self.open}
        nodes = [NOBODY] if kind == "parameters" else self._honest
        time_ms = TIME_MS + self.work.now_ms
        return [Wish(kind, node, time_ms) for node in nodes if node not in taken]

    def _makes_sense(self, wish: Wish, ledger: Ledger) -> bool:
        if wish.kind == "parameters":
            return True
        key = self.cluster.keys[wish.node]
        member, votes = key in ledger.members, key in ledger.coming_validators()
        match wish.kind:
            case "promote":
                return member and not votes
            case "demote" | "expel":
                return member and votes
            case "leave":
                return member
            case _:
                return not member and not ledger.is_evicted(key)

    def _drop_settled(self, ledger: Ledger) -> None:
        """Those that are done are not pursued any more, and forgotten once nothing is left."""
        settled = [wish for wish in self.open if self._is_settled(wish, ledger)]
        self.open = [wish for wish in self.open if wish not in settled]
        self._settled = [
            wish for wish in self._settled + settled if not self._is_spent(wish, ledger)
        ]

    def _is_spent(self, wish: Wish, ledger: Ledger) -> bool:
        """Whether nothing that was asked for it can change the set after this ledger."""
        if wish.kind in ("parameters", "rejoin"):
            return True
        if wish.kind != "leave":
            # An approval is for one epoch only.
            return ledger.epoch.number > self._approved_in.get(wish, NEVER)
        # A Leave is for who joined before it, and once.
        key = self.cluster.keys[wish.node]
        member = ledger.members.get(key)
        last = ledger.departed.get(key, NEVER) if member is None else member.time_ms
        return last >= wish.time_ms

    def _is_settled(self, wish: Wish, ledger: Ledger) -> bool:
        if wish.kind == "parameters":
            return ledger.epoch.parameters == _parameters(wish)
        key = self.cluster.keys[wish.node]
        match wish.kind:
            case "promote":
                return key in ledger.epoch.keys
            case "rejoin":
                return key in ledger.members
            case _:
                gone = key not in ledger.members or wish.kind == "demote"
                return gone and key not in ledger.epoch.keys

    def _pursue(self, wish: Wish) -> None:
        """Submit what the wish needs, at whoever would take it, and look again later."""
        if not self.driver.chaos:
            return
        self._drop_settled(self.furthest())
        if wish not in self.open:
            return
        for operation, node in self._operations(wish):
            self._submit_if_wanted(operation, node)
        self.work.at(self.work.now_ms + self.rng.randint(300, 2_000), self._pursue, wish)

    def ask_for_parameters(self, core: set[int]) -> bytes:
        """After the chaos: no more of the core than a quorum approve a change, until it is made.

        Any more of them would fill the epoch that the change is to end. Returns what is to come.
        """
        wish = Wish("parameters", NOBODY, TIME_MS + self.work.now_ms)
        self._ask_calmly(wish, core)
        return _parameters(wish)

    def _ask_calmly(self, wish: Wish, core: set[int]) -> None:
        keys = self.furthest().epoch.keys
        voting = [node for node in self._nodes() if node.identity.public in keys]
        voting = [node for node in voting if node.index in core][: _quorum(len(keys))]
        change = Change(ChangeKind.PARAMETERS, parameters=_parameters(wish))
        for node in voting:
            self._submit_if_wanted(self._approval(change, node, wish), node)
        self.work.at(self.work.now_ms + 5_000, self._ask_calmly, wish, core)

    def _submit_if_wanted(self, operation: bytes, node: SimulatedNode) -> None:
        if node.replica is not None and node.replica.check(operation) is None:
            self.driver.submit(node, operation)

    def _operations(self, wish: Wish) -> list[tuple[bytes, SimulatedNode]]:
        if wish.kind in ("leave", "rejoin"):
            operation = self._own_word(wish)
            return [(operation, self.rng.choice(self._nodes()))]
        return [
            (self._approval(self._change(wish, node.replica.ledger), node, wish), node)
            for node in self._nodes()
            if node.replica is not None
        ]

    def _change(self, wish: Wish, ledger: Ledger) -> Change:
        """Every other node is put out by opinions instead of people, as often as one is."""
        if wish.kind == "parameters":
            return Change(ChangeKind.PARAMETERS, parameters=_parameters(wish))
        member = self.cluster.keys[wish.node]
        if wish.kind == "expel" and wish.node % 2:
            return objection(member, ledger.height)
        return Change(ChangeKind[wish.kind.upper()], member)

    def _own_word(self, wish: Wish) -> bytes:
        identity, mesh_id = self.cluster.identities[wish.node], self.cluster.mesh_id
        said: Leave | Join
        if wish.kind == "leave":
            said = Leave(member=identity.public, time_ms=wish.time_ms)
        else:
            said = Join(
                member=identity.public,
                address="again:1",
                shard_tokens=1_000,
                share_permille=500,
                time_ms=wish.time_ms,
                invitation=self._invitation(wish),
            )
        return operation_bytes(replace(said, signature=identity.sign(said.signed_bytes(mesh_id))))

    def _invitation(self, wish: Wish) -> Invitation:
        """One of the hosts asks the node back, which takes an invitation of its own each time."""
        host = self.cluster.hosts[wish.node % len(self.cluster.hosts)]
        nodes = len(self.cluster.keys)
        return host.invite(self.cluster.mesh_id, wish.time_ms * nodes + wish.node)

    def _approval(self, change: Change, node: SimulatedNode, wish: Wish) -> bytes:
        assert node.replica is not None
        epoch = node.replica.validators.epoch
        self._approved_in[wish] = max(epoch, self._approved_in.get(wish, NEVER))
        approve = Approve(change=change, epoch=epoch, validator=node.identity.public)
        signature = node.identity.sign(approve.signed_bytes(self.cluster.mesh_id))
        return operation_bytes(replace(approve, signature=signature))


def _parameters(wish: Wish) -> bytes:
    return b"parameters since %d" % wish.time_ms


def _quorum(n: int) -> int:
    return (n + (n - 1) // 3 + 2) // 2
