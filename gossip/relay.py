"""How deltas get around: announce, then pull; and compare sets now and then.

Whoever comes to hold a delta announces its name to all neighbours, and who lacks it pulls it from
one of those that hold it: a frame crosses each link once at most, however many neighbours
announce it. Announcements may be lost. So neighbours also send each other summaries of what they
hold, at once when a link comes up and from time to time after that; whatever one lacks it pulls.
Sets that are compared again and again over a connected graph become equal: that is all the
delivery guarantee there is, and all that is needed.

The relay does no I/O: `step(now, event)` gives effects, to be carried out in order. It never asks
two peers for one delta at a time. Everything it remembers is bounded, per peer, so that a peer
that talks nonsense pushes out nobody's memory but its own.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from shoal.gossip.book import DeltaBook, Summary
from shoal.gossip.delta import DeltaHeader, DeltaKey, DeltaReference
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
    Unwanted,
    Wanted,
)

# Names remembered of one peer, names a cut can need, names remembered as useless.
OFFERS_MAX = 4096
NEEDED_MAX = 8192
REFUSED_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RelaySettings:
    """How hard to try.

    summary_interval_s: time between two summaries to one peer, +-20 %; fetch_timeout_s: after
    that the next holder is asked; fetch_parallel: pulls in flight per peer; fetch_bytes: what one
    pull is taken to cost; bytes_per_s: of pulls started per peer, None for no limit; retry_s:
    pause between two tries for a delta that a cut names; refused_s: how long a name is left
    alone after what came under it was of no use.
    """

    summary_interval_s: float = 5.0
    fetch_timeout_s: float = 20.0
    fetch_parallel: int = 4
    fetch_bytes: int = 1
    bytes_per_s: float | None = None
    retry_s: float = 1.0
    refused_s: float = 30.0


@dataclass(slots=True)
class _Peer:
    summary_at: float
    # Bytes of pulls that may start now, as of `credited_at`.
    credit: float
    credited_at: float
    # What it said it holds -> the id, empty where a summary said so. Oldest first.
    offers: dict[DeltaKey, bytes] = field(default_factory=dict)
    # What to pull from it, in this order; used as an ordered set.
    queue: dict[DeltaKey, None] = field(default_factory=dict)
    fetching: int = 0


@dataclass(slots=True)
class _Flight:
    peer: bytes
    delta_id: bytes
    deadline: float


@dataclass(slots=True)
class _Need:
    delta_id: bytes
    retry_at: float


class Relay:
    """One node's part in spreading deltas; `rng` is only asked for jitter and ties."""

    def __init__(self, book: DeltaBook, settings: RelaySettings, rng: random.Random) -> None:
        self._book = book
        self._settings = settings
        self._rng = rng
        self._peers: dict[bytes, _Peer] = {}
        self._flights: dict[DeltaKey, _Flight] = {}
        self._needed: dict[DeltaKey, _Need] = {}
        self._refused: dict[DeltaKey, float] = {}

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Linked peers in ascending order."""
        return tuple(sorted(self._peers))

    @property
    def missing(self) -> int:
        """How many deltas are known to exist and not held: in flight, queued or needed."""
        queued = {key for peer in self._peers.values() for key in peer.queue if self._wants(key)}
        return len(queued | self._flights.keys() | self._needed.keys())

    def step(self, now: float, event: Event) -> list[Effect]:
        """Take in one event; `now` in seconds never decreases."""
        match event:
            case LinkUp(peer):
                return self._link_up(now, peer)
            case LinkDown(peer):
                return self._link_down(now, peer)
            case Announced(peer, items):
                return self._announced(now, peer, items)
            case SummaryReceived(peer, summary):
                return self._summary_received(now, peer, summary)
            case Held(header):
                return self._held(now, header)
            case FetchFailed(peer, key):
                return self._fetch_failed(now, peer, key)
            case Refused(key):
                return self._refuse(now, key)
            case Wanted(items, peer_or_none):
                return self._want(now, items, peer_or_none)
            case Unwanted(keys):
                for key in keys:
                    self._needed.pop(key, None)
                return []
            case Tick():
                return self._tick(now)

    def _link_up(self, now: float, name: bytes) -> list[Effect]:
        effects = self._link_down(now, name)
        limit = self._credit_max()
        self._peers[name] = _Peer(self._next_summary(now), credit=limit, credited_at=now)
        return [*effects, SendSummary(name)]

    def _link_down(self, now: float, name: bytes) -> list[Effect]:
        if self._peers.pop(name, None) is None:
            return []
        lost = [key for key, flight in self._flights.items() if flight.peer == name]
        for key in lost:
            del self._flights[key]
        return self._ask_others(now, lost)

    def _announced(self, now: float, name: bytes, items: Iterable[DeltaReference]) -> list[Effect]:
        peer = self._peers.get(name)
        if peer is None:
            return []
        for item in items:
            key = item.key
            held = self._book.get(key)
            if held is not None and held.id != item.delta_id and key not in self._needed:
                # Two headers under one number. Worth one pull: both together are evidence, and
                # a cut may name the other one.
                self._need(item, now)
                self._offer(peer, key, item.delta_id)
            elif held is not None or self._wants(key):
                self._offer(peer, key, item.delta_id)
        return self._fill(now, name)

    def _summary_received(self, now: float, name: bytes, summary: Summary) -> list[Effect]:
        peer = self._peers.get(name)
        if peer is None:
            return []
        for key in self._book.missing(summary):
            self._offer(peer, key, b"")
        return self._fill(now, name)

    def _held(self, now: float, header: DeltaHeader) -> list[Effect]:
        key = header.key
        flight = self._flights.get(key)
        effects: list[Effect] = []
        if flight is not None and flight.delta_id in (b"", header.id):
            self._land(key)
            effects = self._fill(now, flight.peer)
        need = self._needed.get(key)
        if need is not None and need.delta_id == header.id:
            del self._needed[key]
        pending = self._book.get(key)
        if pending is None or pending.id != header.id:
            return effects
        news: list[Effect] = [
            Announce(name, (header.reference,))
            for name in self.peers
            if self._peers[name].offers.get(key) not in (b"", header.id)
        ]
        return news + effects

    def _fetch_failed(self, now: float, name: bytes, key: DeltaKey) -> list[Effect]:
        peer = self._peers.get(name)
        if peer is not None:
            peer.offers.pop(key, None)
        flight = self._flights.get(key)
        if flight is None or flight.peer != name:
            return []
        self._land(key)
        return self._ask_others(now, [key]) + self._fill(now, name)

    def _refuse(self, now: float, key: DeltaKey) -> list[Effect]:
        self._refused.pop(key, None)
        self._refused[key] = now + self._settings.refused_s
        if len(self._refused) > REFUSED_MAX:
            del self._refused[next(iter(self._refused))]
        flight = self._flights.get(key)
        if flight is None:
            return []
        self._land(key)
        return self._fill(now, flight.peer)

    def _want(
        self, now: float, items: Iterable[DeltaReference], name: bytes | None
    ) -> list[Effect]:
        peer = self._peers.get(name) if name is not None else None
        first: dict[DeltaKey, None] = {}
        for item in items:
            if self._need(item, now) and peer is not None:
                peer.offers[item.key] = item.delta_id
                first[item.key] = None
        if peer is None or name is None:
            return self._ask_for_needed(now)
        peer.queue = {**first, **peer.queue}
        return self._fill(now, name)

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        late = [key for key, flight in self._flights.items() if flight.deadline <= now]
        for key in late:
            self._peers[self._flights[key].peer].offers.pop(key, None)
            self._land(key)
        effects += self._ask_others(now, late)
        effects += self._ask_for_needed(now)
        for name in self.peers:
            peer = self._peers[name]
            effects += self._fill(now, name)
            if peer.summary_at <= now:
                peer.summary_at = self._next_summary(now)
                effects.append(SendSummary(name))
                # What is settled by now need not be remembered.
                peer.offers = {
                    key: delta_id
                    for key, delta_id in peer.offers.items()
                    if self._wants(key) or self._book.get(key) is not None
                }
        return effects

    def _wants(self, key: DeltaKey) -> bool:
        return key in self._needed or (key not in self._refused and self._book.wants(key))

    def _need(self, item: DeltaReference, now: float) -> bool:
        if len(self._needed) >= NEEDED_MAX:
            return False
        self._needed[item.key] = _Need(item.delta_id, retry_at=now)
        return True

    def _offer(self, peer: _Peer, key: DeltaKey, delta_id: bytes) -> None:
        peer.offers[key] = delta_id or peer.offers.get(key, b"")
        if self._wants(key):
            peer.queue[key] = None
        if len(peer.offers) > OFFERS_MAX:
            oldest = next(iter(peer.offers))
            del peer.offers[oldest]
            peer.queue.pop(oldest, None)

    def _ask_others(self, now: float, keys: Iterable[DeltaKey]) -> list[Effect]:
        """Queue keys whose pull came to nothing at everyone else who offered them."""
        holders = set()
        for key in keys:
            for name in self.peers:
                if key in self._peers[name].offers:
                    self._peers[name].queue[key] = None
                    holders.add(name)
        return [effect for name in sorted(holders) for effect in self._fill(now, name)]

    def _ask_for_needed(self, now: float) -> list[Effect]:
        """Ask somebody, holder or not, for what a cut names and nobody is being asked for."""
        chosen = set()
        for key, need in self._needed.items():
            if key in self._flights or need.retry_at > now or not self._peers:
                continue
            need.retry_at = now + self._settings.retry_s
            holders = [name for name in self.peers if key in self._peers[name].offers]
            name = self._rng.choice(holders or self.peers)
            self._peers[name].queue[key] = None
            chosen.add(name)
        return [effect for name in sorted(chosen) for effect in self._fill(now, name)]

    def _fill(self, now: float, name: bytes) -> list[Effect]:
        """Start as many pulls from a peer as it has room and bytes for."""
        peer = self._peers.get(name)
        if peer is None:
            return []
        self._expire_refusals(now)
        self._refill(peer, now)
        items = []
        while peer.queue and peer.fetching < self._settings.fetch_parallel:
            if self._settings.bytes_per_s is not None and peer.credit < self._settings.fetch_bytes:
                break
            key = next(iter(peer.queue))
            del peer.queue[key]
            if key in self._flights or not self._wants(key):
                continue
            need = self._needed.get(key)
            delta_id = need.delta_id if need is not None else peer.offers.get(key, b"")
            deadline = now + self._settings.fetch_timeout_s
            self._flights[key] = _Flight(name, delta_id, deadline)
            peer.fetching += 1
            peer.credit -= self._settings.fetch_bytes
            items.append(DeltaReference(*key, delta_id))
        return [Fetch(name, tuple(items))] if items else []

    def _land(self, key: DeltaKey) -> None:
        flight = self._flights.pop(key)
        self._peers[flight.peer].fetching -= 1

    def _expire_refusals(self, now: float) -> None:
        # All wait equally long, so the oldest entry is always the first to go.
        while self._refused and next(iter(self._refused.values())) <= now:
            del self._refused[next(iter(self._refused))]

    def _credit_max(self) -> float:
        return max(self._settings.bytes_per_s or 0.0, float(self._settings.fetch_bytes))

    def _refill(self, peer: _Peer, now: float) -> None:
        earned = (self._settings.bytes_per_s or 0.0) * (now - peer.credited_at)
        peer.credit = min(self._credit_max(), peer.credit + earned)
        peer.credited_at = now

    def _next_summary(self, now: float) -> float:
        return now + self._settings.summary_interval_s * self._rng.uniform(0.8, 1.2)
