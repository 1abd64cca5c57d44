"""A whole mesh of real failure detectors on a network that misbehaves; one seed decides everything.

Messages are lost and delayed, in one direction only if wanted; processes die (their links end at
once), are cut off (their links stay up until somebody notices), stand still for seconds, or lie.
Signatures are modelled: nobody can make one for another.
"""

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoal.gossip.detector import TICK_S, Detector, Event
from shoal.gossip.eyes import DetectorSettings
from shoal.gossip.liveness import (
    Changed,
    Evidence,
    Heard,
    Kind,
    Members,
    Message,
    State,
    Suspicion,
    Tell,
    Tick,
    first_incarnation,
)
from shoal.gossip.relay_events import LinkDown, LinkUp
from shoal.gossip.topology import neighbours

MESH = b"mesh" * 8
# What node/links.py does: a silent link is closed after so long, and dialled again.
SILENT_LINK_S = 12.0
REDIAL_S = 0.3


def name_of(index: int) -> bytes:
    return index.to_bytes(2, "big") + hashlib.sha256(index.to_bytes(2, "big")).digest()[:30]


def sign_as(member: bytes, data: bytes) -> bytes:
    digest = hashlib.sha256(member + data).digest()
    return digest + digest


def verify(member: bytes, data: bytes, signature: bytes) -> bool:
    return signature == sign_as(member, data)


@dataclass(frozen=True)
class Weather:
    """Of every message; seconds."""

    loss: float = 0.0
    latency_s: tuple[float, float] = (0.001, 0.01)


@dataclass
class Host:
    """One process: its detector, and what can happen to it."""

    name: bytes
    detector: Detector
    dead: bool = False
    asleep_until: float = 0.0
    backlog: list[Event] = field(default_factory=list)
    liar: bool = False


@dataclass(frozen=True)
class Verdict:
    """At `at`, `judge` took `subject` for this."""

    at: float
    judge: bytes
    subject: bytes
    state: State
    evidence: Evidence


class Sky:
    """The simulation: run it, break things, read `verdicts`."""

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        weather: Weather | None = None,
        hubs: int = 31,
        settings: DetectorSettings | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.weather = weather or Weather()
        self.now = 0.0
        self.names = [name_of(index) for index in range(size)]
        self.hubs = frozenset(self.names[:hubs])
        self.settings = settings or DetectorSettings()
        self.verdicts: list[Verdict] = []
        self.messages = 0
        self.sent_bytes = 0
        # Directions in which nothing gets through.
        self.cut: set[tuple[bytes, bytes]] = set()
        self.links: set[frozenset[bytes]] = set()
        self._wanted = self._wanted_links()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.hosts = {name: Host(name, self._detector(name, boot=1)) for name in self.names}
        for name in self.names:
            self._start(name)
        for pair in sorted(self._wanted, key=sorted):
            self.at(self.rng.uniform(0, 0.5), lambda pair=pair: self._connect(pair))  # type: ignore[misc]

    def _wanted_links(self) -> set[frozenset[bytes]]:
        pairs: set[frozenset[bytes]] = set()
        for name in self.names:
            near = {*neighbours(self.names, name, MESH), *self.hubs} - {name}
            pairs.update(frozenset((name, other)) for other in near)
        return pairs

    def _detector(self, name: bytes, *, boot: int) -> Detector:
        return Detector(
            me=name,
            mesh_id=MESH,
            incarnation=first_incarnation(boot),
            settings=self.settings,
            rng=random.Random(self.rng.random()),
            sign=lambda data: sign_as(name, data),
            verify=verify,
        )

    def _start(self, name: bytes) -> None:
        self.give(name, Members(frozenset(self.names), self.hubs))
        self.at(self.now + self.rng.uniform(0, TICK_S), lambda: self._tick(self.hosts[name]))

    # --- time -----------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def _tick(self, host: Host) -> None:
        if host.dead or self.hosts[host.name] is not host:
            return
        if self.now < host.asleep_until:
            # A blocked event loop: when it is over, this tick comes first and late.
            self.at(host.asleep_until, lambda: self._tick(host))
            return
        backlog, host.backlog = host.backlog, []
        for event in (Tick(), *backlog):
            self.give(host.name, event)
        if host.liar:
            self._lie(host)
        self.at(self.now + TICK_S, lambda: self._tick(host))

    # --- what the driver does -------------------------------------------------------------------

    def give(self, name: bytes, event: Event) -> None:
        host = self.hosts[name]
        if host.dead:
            return
        if self.now < host.asleep_until:
            host.backlog.append(event)
            return
        for effect in host.detector.step(self.now, event):
            match effect:
                case Tell(peer, message):
                    self._send(host, peer, message)
                case Changed(opinion):
                    self.verdicts.append(
                        Verdict(self.now, name, opinion.member, opinion.state, opinion.evidence)
                    )

    def _send(self, host: Host, peer: bytes, message: Message) -> None:
        if host.liar and message.kind is Kind.ANSWER:
            message = message._replace(signature=b"")
        self.messages += 1
        self.sent_bytes += 60 + 200 * len(message.rumours)
        if frozenset((host.name, peer)) not in self.links:
            return
        if (host.name, peer) in self.cut or self.rng.random() < self.weather.loss:
            return
        self.at(
            self.now + self.rng.uniform(*self.weather.latency_s),
            lambda: self._arrive(host.name, peer, message),
        )

    def _arrive(self, sender: bytes, peer: bytes, message: Message) -> None:
        if frozenset((sender, peer)) in self.links:
            self.give(peer, Heard(sender, message))

    # --- links ----------------------------------------------------------------------------------

    def _connect(self, pair: frozenset[bytes]) -> None:
        a, b = sorted(pair)
        if pair in self.links:
            return
        able = not (self.hosts[a].dead or self.hosts[b].dead) and (
            (a, b) not in self.cut and (b, a) not in self.cut
        )
        if not able or self.now < max(self.hosts[a].asleep_until, self.hosts[b].asleep_until):
            self.at(self.now + REDIAL_S, lambda: self._connect(pair))
            return
        self.links.add(pair)
        self.give(a, LinkUp(b))
        self.give(b, LinkUp(a))

    def _disconnect(self, pair: frozenset[bytes]) -> None:
        if pair not in self.links:
            return
        self.links.discard(pair)
        for name, other in (sorted(pair), sorted(pair, reverse=True)):
            self.give(name, LinkDown(other))
        self.at(self.now + REDIAL_S, lambda: self._connect(pair))

    # --- what goes wrong ------------------------------------------------------------------------

    def kill(self, name: bytes) -> None:
        """As kill -9: the kernel closes its connections."""
        self.hosts[name].dead = True
        for pair in [pair for pair in self.links if name in pair]:
            self.at(
                self.now + self.rng.uniform(*self.weather.latency_s),
                lambda pair=pair: self._disconnect(pair),  # type: ignore[misc]
            )

    def restart(self, name: bytes) -> None:
        self.hosts[name] = Host(name, self._detector(name, boot=2))
        self._start(name)

    def cut_off(self, name: bytes) -> None:
        """Nothing in or out, and nobody is told; as SIGSTOP or a pulled cable."""
        self.block([name], [other for other in self.names if other != name])
        self.block([other for other in self.names if other != name], [name])

    def block(self, senders: Iterable[bytes], receivers: Iterable[bytes]) -> None:
        """Nothing gets through in this direction; links notice after SILENT_LINK_S."""
        for sender in senders:
            for receiver in receivers:
                self.cut.add((sender, receiver))
                pair = frozenset((sender, receiver))
                self.at(
                    self.now + SILENT_LINK_S,
                    lambda pair=pair: self._close_if_cut(pair),  # type: ignore[misc]
                )

    def _close_if_cut(self, pair: frozenset[bytes]) -> None:
        a, b = sorted(pair)
        if (a, b) in self.cut or (b, a) in self.cut:
            self._disconnect(pair)

    def heal(self) -> None:
        self.cut.clear()

    def stall(self, name: bytes, seconds: float) -> None:
        """Its event loop is blocked."""
        self.hosts[name].asleep_until = self.now + seconds

    def stall_often(self, name: bytes, *, seconds: float, every_s: float) -> None:
        def again() -> None:
            self.stall(name, seconds)
            self.at(self.now + every_s, again)

        self.at(self.now + self.rng.uniform(0, every_s), again)

    def _lie(self, host: Host) -> None:
        """Accuse a living member of its newest incarnation, as often as it can."""
        opinions = host.detector.opinions()
        subject = self.rng.choice(sorted(opinions))
        # The same object would know the word of its subject; a liar uses what it was told.
        case = host.detector._eyes.cases[subject]
        unsigned = Suspicion(host.name, subject, case.incarnation, case.word)
        lie = unsigned._replace(signature=sign_as(host.name, unsigned.signed_bytes(MESH)))
        for peer in sorted(host.detector._eyes.linked):
            self._send(host, peer, Message(Kind.NEWS, rumours=(lie,)))

    # --- what is asked afterwards ---------------------------------------------------------------

    def took_for_dead(self, subject: bytes, *, since: float = 0.0) -> dict[bytes, float]:
        """Who took `subject` for dead, and when first."""
        found: dict[bytes, float] = {}
        for verdict in self.verdicts:
            if verdict.subject == subject and verdict.state is State.DEAD and verdict.at >= since:
                found.setdefault(verdict.judge, verdict.at)
        return found

    def false_deaths(self) -> list[Verdict]:
        """Verdicts of the living and honest over the living."""
        gone = {name for name, host in self.hosts.items() if host.dead}
        return [
            verdict
            for verdict in self.verdicts
            if verdict.state is State.DEAD
            and verdict.subject not in gone
            and verdict.judge not in gone
            and not self.hosts[verdict.judge].liar
        ]

    def states(self, judge: bytes) -> dict[bytes, State]:
        host = self.hosts[judge]
        return {name: host.detector.state(name) for name in self.names if name != judge}
