"""A whole mesh in memory: real books, relays and anchors on a network that misbehaves.

One seed decides everything. Messages are lost, doubled and overtake each other; links flap; nodes
crash and come back from what they stored; a sender may sign two deltas under one number. Cuts are
committed by an oracle that stands for consensus, and reach every node in its own time. What the
nodes must end up with is equal state, bit for bit.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from shoal.compression.codec import SparseDelta
from shoal.gossip.anchor import Anchor
from shoal.gossip.book import DeltaBook, Settled
from shoal.gossip.delta import DeltaHeader, DeltaKey, DeltaReference
from shoal.gossip.errors import DeltaError, EquivocationError
from shoal.gossip.parameters import (
    EpochParameters,
    contribution_of,
    genesis_parameters,
    next_parameters,
)
from shoal.gossip.relay import Relay, RelaySettings
from shoal.gossip.relay_events import (
    Announce,
    Announced,
    Effect,
    Event,
    Fetch,
    FetchFailed,
    Held,
    LinkDown,
    LinkUp,
    Refused,
    SendSummary,
    SummaryReceived,
    Tick,
    Wanted,
)
from shoal.gossip.schema import ModelSchema, TensorSchema
from shoal.gossip.settled import SettledState
from tests.gossip.builders import MESH, brimful_anchor, hashed_delta, header, member, members

SCHEMA = ModelSchema((TensorSchema("w", (48,), 28), TensorSchema("b", (8,), 24)))
SETTINGS = RelaySettings(
    summary_interval_s=1.0, fetch_timeout_s=0.6, fetch_parallel=2, retry_s=0.4, refused_s=1.0
)
TICK_S = 0.2


@cache
def content(label: str) -> SparseDelta:
    """The decoded delta behind a header's hash; half of them large enough to wrap around."""
    size = 2.0**-10 if int(label, 16) % 2 else 0.45
    return hashed_delta(label, SCHEMA, kept_per_chunk=700, size=size)


def delta_of(head: DeltaHeader) -> SparseDelta:
    return content(f"{head.frame_sha256[0] % 32:x}")


@dataclass(frozen=True)
class Faults:
    loss: float = 0.3
    duplication: float = 0.3
    latency_s: tuple[float, float] = (0.01, 0.4)
    flaps: int = 3
    crashes: int = 1
    equivocations: int = 1


@dataclass
class Committed:
    """What the oracle decided at one height."""

    entries: tuple[DeltaReference, ...]
    parameters: EpochParameters


@dataclass
class Node:
    """What node/ will do with this folder, less the disk and the sockets."""

    name: bytes
    world: "World"
    book: DeltaBook
    live: Anchor
    relay: Relay
    store: dict[bytes, DeltaHeader] = field(default_factory=dict)
    names: dict[DeltaKey, bytes] = field(default_factory=dict)
    applied: set[bytes] = field(default_factory=set)
    needed: set[bytes] = field(default_factory=set)
    aside: dict[bytes, DeltaHeader] = field(default_factory=dict)
    sequence: int = 0
    lag_until: float = 0.0
    # What is being asked of whom, and until when.
    outstanding: dict[DeltaKey, tuple[bytes, float]] = field(default_factory=dict)

    def move(self, head: DeltaHeader, sign: int) -> None:
        """Add a delta to the live anchor or take it out; twice the same would be a bug."""
        parameters = self.world.epochs[head.height]
        delta = delta_of(head)
        table = parameters.increments(delta, sender=head.sender, steps=head.steps, schema=SCHEMA)
        if sign > 0:
            assert head.id not in self.applied
            self.applied.add(head.id)
            self.live.apply(delta, table)
        else:
            self.applied.remove(head.id)
            self.live.undo(delta, table)

    def publish(self, rival: bool = False) -> DeltaHeader:
        if not rival:
            self.sequence += 1
        head = header(
            self.name,
            self.sequence,
            height=self.book.height,
            tokens=100 + self.sequence,
            frame=f"{self.name.hex()} {self.sequence} {rival}",
        )
        return head

    def receive(self, now: float, head: DeltaHeader) -> None:
        """A whole delta came in, or was made here."""
        self.outstanding.pop(head.key, None)
        if head.id in self.store and head.id not in self.needed:
            return
        try:
            fresh = self.book.admit(head)
        except EquivocationError:
            self.world.evidence += 1
            fresh = False
        except DeltaError as error:
            if head.id not in self.needed:
                self.world.reasons.add(error.reason)
                if error.reason == "future":
                    self.aside[head.id] = head
                self.act(now, Refused(head.key))
                return
            # A cut named it, so it is in, whatever the book would say of a newcomer.
            self.move(head, +1)
            fresh = False
        self.needed.discard(head.id)
        self.store[head.id] = head
        self.names.setdefault(head.key, head.id)
        if fresh:
            self.move(head, +1)
        self.act(now, Held(head))

    def commit(self, now: float) -> None:
        """Take the next committed cut, if the oracle has one."""
        decided = self.world.log[self.book.height]
        settled: Settled = self.book.commit(decided.entries, decided.parameters)
        for head in settled.expired:
            self.move(head, -1)
        for head in settled.included:
            assert head.id in self.applied
        lacking = []
        for entry in settled.unknown:
            if entry.delta_id in self.store:
                self.move(self.store[entry.delta_id], +1)
            else:
                self.needed.add(entry.delta_id)
                lacking.append(entry)
        self.act(now, Wanted(tuple(lacking)))
        aside, self.aside = self.aside, {}
        for head in aside.values():
            self.receive(now, head)

    def crash(self, now: float) -> None:
        """Come back with what was stored: settled bytes, headers, and the live anchor."""
        settled = SettledState.from_bytes(self.book.settled.to_bytes())
        self.book = DeltaBook.restore(MESH, settled, self.book.pending())
        self.relay = Relay(self.book, SETTINGS, random.Random(self.world.rng.random()))
        self.outstanding.clear()
        wanted = [
            entry
            for decided in self.world.log[: self.book.height]
            for entry in decided.entries
            if entry.delta_id in self.needed
        ]
        self.act(now, Wanted(tuple(wanted)))
        for peer in sorted(self.world.neighbours[self.name]):
            if self.world.linked(self.name, peer):
                self.act(now, LinkUp(peer))

    def act(self, now: float, event: Event) -> None:
        for effect in self.relay.step(now, event):
            self.carry_out(now, effect)

    def carry_out(self, now: float, effect: Effect) -> None:
        match effect:
            case Announce(peer, items):
                self.world.send(self.name, peer, "announce", items)
            case SendSummary(peer):
                self.world.send(self.name, peer, "summary", self.book.summary())
            case Fetch(peer, items):
                for item in items:
                    _, until = self.outstanding.get(item.key, (peer, 0.0))
                    assert until <= now, "one delta was asked of two peers at a time"
                    self.outstanding[item.key] = (peer, now + SETTINGS.fetch_timeout_s)
                    self.world.send(self.name, peer, "fetch", item)

    def hear(self, now: float, sender: bytes, kind: str, body: Any) -> None:
        match kind:
            case "announce":
                self.act(now, Announced(sender, body))
            case "summary":
                self.act(now, SummaryReceived(sender, body))
            case "fetch":
                delta_id = body.delta_id or self.names.get(body.key, b"")
                self.world.send(self.name, sender, "reply", (body.key, self.store.get(delta_id)))
            case "reply":
                key, head = body
                if head is not None:
                    self.receive(now, head)
                else:
                    if self.outstanding.get(key, (b"", 0.0))[0] == sender:
                        del self.outstanding[key]
                    self.act(now, FetchFailed(sender, key))


class World:
    """The clock, the network, the oracle."""

    def __init__(
        self, seed: int, edges: set[frozenset[int]], faults: Faults, *, staleness: int = 2
    ) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.deltas_sent = self.evidence = 0
        self.reasons: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        count = max(max(edge) for edge in edges)
        self.members = members(count)
        genesis = genesis_parameters(self.members, SCHEMA, kept_per_chunk=700, alpha=1.3)
        self.epochs = [genesis]
        self.log: list[Committed] = []
        self.down: set[frozenset[bytes]] = set()
        self.neighbours = {
            member(number): {
                member(other) for edge in edges if number in edge for other in edge - {number}
            }
            for number in range(1, count + 1)
        }
        self.nodes: dict[bytes, Node] = {}
        for name in self.neighbours:
            book = DeltaBook(MESH, SettledState.genesis(genesis, staleness=staleness))
            relay = Relay(book, SETTINGS, random.Random(self.rng.random()))
            self.nodes[name] = Node(name, self, book, brimful_anchor("mesh", SCHEMA), relay)
        for name in self.neighbours:
            for peer in sorted(self.neighbours[name]):
                self.nodes[name].act(0.0, LinkUp(peer))

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, action))

    def run_until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def linked(self, one: bytes, other: bytes) -> bool:
        return frozenset((one, other)) not in self.down

    def send(self, sender: bytes, to: bytes, kind: str, body: Any) -> None:
        self.deltas_sent += kind == "reply"
        if not self.linked(sender, to) or self.rng.random() < self.faults.loss:
            return
        copies = 2 if self.rng.random() < self.faults.duplication else 1
        for _ in range(copies):
            arrival = self.now + self.rng.uniform(*self.faults.latency_s)

            def deliver() -> None:
                if self.linked(sender, to):
                    self.nodes[to].hear(self.now, sender, kind, body)

            self.at(arrival, deliver)

    def tick_everybody(self) -> None:
        for node in self.nodes.values():
            node.act(self.now, Tick())
            if node.book.height < len(self.log) and self.now >= node.lag_until:
                node.commit(self.now)
                node.lag_until = self.now + self.rng.choice([0.0, 0.3, 2.0])
        self.at(self.now + TICK_S, self.tick_everybody)

    def flap(self, edge: frozenset[bytes]) -> None:
        """A link fails, both ends notice, and it comes back."""
        if edge in self.down:
            return
        self.down.add(edge)
        one, other = sorted(edge)
        for name, gone in ((one, other), (other, one)):
            node = self.nodes[name]
            asked = node.outstanding.items()
            node.outstanding = {key: flight for key, flight in asked if flight[0] != gone}
            node.act(self.now, LinkDown(gone))
        self.at(self.now + self.rng.uniform(0.2, 3.0), lambda: self.mend(edge))

    def mend(self, edge: frozenset[bytes]) -> None:
        self.down.discard(edge)
        one, other = sorted(edge)
        self.nodes[one].act(self.now, LinkUp(other))
        self.nodes[other].act(self.now, LinkUp(one))

    def decide(self) -> None:
        """Consensus, as gossip sees it: somebody's cut becomes everybody's next height."""
        ready = [node for node in self.nodes.values() if node.book.height == len(self.log)]
        if not ready:
            return
        proposer = self.rng.choice(ready)
        if proposer.needed:
            return
        contributions = []
        entries = proposer.book.cut()
        for entry in entries:
            head = proposer.store[entry.delta_id]
            assert proposer.book.examine(head) == self.epochs[head.height]
            delta = delta_of(head)
            contributions.append(
                contribution_of(
                    head,
                    delta,
                    parameters=self.epochs[head.height],
                    schema=SCHEMA,
                    load=lambda delta=delta: delta,  # type: ignore[misc]
                )
            )
        parameters = next_parameters(self.epochs[-1], contributions, self.members, SCHEMA)
        self.epochs.append(parameters)
        self.log.append(Committed(entries, parameters))

    def make(self, name: bytes) -> None:
        node = self.nodes[name]
        node.receive(self.now, node.publish())

    def equivocate(self, name: bytes) -> None:
        """The sender shows one delta to itself and another, of the same number, to somebody."""
        self.make(name)
        victim = self.rng.choice([other for other in self.nodes if other != name])
        self.nodes[victim].receive(self.now, self.nodes[name].publish(rival=True))

    def play(self, *, duration_s: float, deltas: int, cuts: int) -> None:
        """Schedule a whole run, and run it."""
        rng, names = self.rng, sorted(self.nodes)
        edges = sorted({frozenset((a, b)) for a in names for b in self.neighbours[a]}, key=sorted)
        for name in names:
            for _ in range(deltas):
                self.at(rng.uniform(0, duration_s), lambda name=name: self.make(name))  # type: ignore[misc]
        for _ in range(cuts):
            self.at(rng.uniform(0, duration_s), self.decide)
        for _ in range(self.faults.flaps):
            edge = rng.choice(edges)
            self.at(rng.uniform(0, duration_s), lambda edge=edge: self.flap(edge))  # type: ignore[misc]
        for _ in range(self.faults.crashes):
            name = rng.choice(names)
            self.at(
                rng.uniform(0, duration_s),
                lambda name=name: self.nodes[name].crash(self.now),  # type: ignore[misc]
            )
        for _ in range(self.faults.equivocations):
            name = rng.choice(names)
            self.at(rng.uniform(0, duration_s), lambda name=name: self.equivocate(name))  # type: ignore[misc]
        self.at(0.0, self.tick_everybody)
        self.run_until(duration_s)

    def settle(self, limit_s: float) -> float:
        """Let gossip finish, faults and all; the time that took, or AssertionError."""
        start = self.now
        while not self.in_agreement():
            assert self.now < start + limit_s, "gossip did not converge"
            self.run_until(self.now + 0.5)
        return self.now - start

    def in_agreement(self) -> bool:
        nodes = list(self.nodes.values())
        return (
            all(node.book.height == len(self.log) and not node.needed for node in nodes)
            and len({node.book.settled.digest for node in nodes}) == 1
            and len({frozenset(h.key for h in node.book.pending()) for node in nodes}) == 1
        )
