"""What one node knows about one member's life: own evidence, others' accusations, a verdict.

A member counts as dead only when this node's own probes failed *and* two others say the same of
the same incarnation, where the mesh has that many others (reference/consensus.md 3.6); so no liar
and no broken line of one's own suffices. Accusations alone change nothing here: they make this
node look for itself.

All times are seconds awake (patience.AwakeClock).
"""

from collections import deque
from dataclasses import dataclass, field

from shoal.gossip.liveness import Evidence, Opinion, State, Suspicion, boot_of
from shoal.gossip.patience import (
    RoundTrips,
    reconnect_allowed_s,
    silence_allowed_s,
    suspicion_timeout_s,
)

# Others that must confirm, and how many shorten the wait (Lifeguard's K); of more than the last
# nobody needs to hear.
CONFIRMATIONS = 2
CONFIRMATIONS_EXPECTED = 3
ACCUSERS_MAX = 6
FALSE_SILENCES_KEPT = 8


@dataclass(slots=True)
class Flight:
    """A probe that is under way.

    sent_at in seconds of the real clock, sent_awake awake; late_s: how long the process had stood
    still before; relays: who was asked for a detour, and what they said so far; asked_awake: when.
    """

    nonce: int
    sent_at: float
    sent_awake: float
    late_s: float
    direct: bool
    relays: dict[bytes, str] = field(default_factory=dict)
    asked_awake: float | None = None


@dataclass(slots=True)
class OwnEvidence:
    """Why this node itself takes a member for ill.

    since: the first probe that stayed without an answer, or the moment that its link ended;
    deadline_s: what the last failed probe was given; relays: who was asked, and what they said.
    """

    kind: Evidence
    since: float
    deadline_s: float = 0.0
    relays: tuple[tuple[bytes, str], ...] = ()


@dataclass(slots=True)
class Case:
    """One member, as seen from here."""

    member: bytes
    # When this node first heard that there is such a member.
    known_at: float
    incarnation: int = 0
    # The member's signature under its incarnation.
    word: bytes = b""
    heard_at: float | None = None
    own: OwnEvidence | None = None
    # The first probe that is not answered yet, and the end of the last link that is not made again.
    unanswered_at: float | None = None
    reset_at: float | None = None
    # Accusations of this incarnation, by accuser.
    accusers: dict[bytes, Suspicion] = field(default_factory=dict)
    flight: Flight | None = None
    probed_at: float | None = None
    # Somebody accuses it since the last probe began.
    doubted: bool = False
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    false_silences: deque[float] = field(default_factory=lambda: deque(maxlen=FALSE_SILENCES_KEPT))
    state: State = State.SUSPECT

    @property
    def is_open(self) -> bool:
        """Whether time alone can bring a verdict."""
        return self.own is not None and self.state is not State.DEAD

    def proved_alive(self, awake: float) -> None:
        """It answered, linked, or signed a new incarnation: whatever spoke against it is over."""
        if self.own is not None and self.own.kind is Evidence.SILENT:
            self.false_silences.append(awake - self.own.since)
        self.heard_at = awake
        self.own = self.unanswered_at = self.reset_at = self.flight = None

    def raise_to(self, incarnation: int, word: bytes) -> bool:
        """Take in the member's own word; whether it is news. Older accusations end with it."""
        if incarnation <= self.incarnation and (self.word or incarnation < self.incarnation):
            return False
        if boot_of(incarnation) != boot_of(self.incarnation):
            # Another process: how long the one before it stood still says nothing about this one.
            self.false_silences.clear()
        self.incarnation, self.word = incarnation, word
        self.accusers.clear()
        return True

    def has_room_for(self, suspicion: Suspicion) -> bool:
        """Whether this accusation counts for something that is not known yet."""
        if suspicion.incarnation < self.incarnation or suspicion.accuser in self.accusers:
            return False
        return suspicion.incarnation > self.incarnation or len(self.accusers) < ACCUSERS_MAX

    def link_ended(self, awake: float) -> None:
        """Its link is gone: no proof, since lines break, but a reason to look and to wait less."""
        self.flight, self.reset_at = None, awake
        if self.own is not None:
            self.own.kind = Evidence.RESET

    def failed(
        self, awake: float, deadline_s: float, relays: tuple[tuple[bytes, str], ...]
    ) -> bool:
        """A probe and all detours came to nothing; whether this is the first time."""
        first = self.own is None
        since = awake if self.unanswered_at is None else self.unanswered_at
        kind = Evidence.SILENT
        if self.reset_at is not None:
            # An ended link is no proof by itself; with a failed detour it is, and a fast one.
            kind, since = Evidence.RESET, min(since, self.reset_at)
        elif self.heard_at is None:
            kind = Evidence.UNHEARD
        if self.own is not None:
            since = min(since, self.own.since)
        self.own = OwnEvidence(kind, since, deadline_s, relays)
        return first

    def timeout_s(self, others: int, patience: float) -> float:
        """How long it may be silent; `others`: members that could confirm."""
        own = self.own
        if own is not None and own.kind is Evidence.RESET:
            least = reconnect_allowed_s(self.round_trips.usual_s)
        else:
            longest = max(self.false_silences, default=0.0)
            least = silence_allowed_s(self.round_trips.deadline_s(), longest)
        expected = min(CONFIRMATIONS_EXPECTED, others)
        return patience * suspicion_timeout_s(least, len(self.accusers), expected)

    def judge(self, awake: float, *, others: int, patience: float, enough_reached: bool) -> State:
        """What this member is taken for now.

        others: members that could confirm, without those that are suspect themselves;
        enough_reached: whether this node reaches at least half of the mesh. One that does not is
        probably cut off itself and says nothing about anybody's death.
        """
        own = self.own
        if own is None:
            # Its own word may be old and told again; but it did start, and probes will show.
            return State.ALIVE if self.heard_at is not None or self.word else State.SUSPECT
        if self.state is State.DEAD:
            return State.DEAD
        if not enough_reached or len(self.accusers) < min(CONFIRMATIONS, others):
            return State.SUSPECT
        late = awake - own.since >= self.timeout_s(others, patience)
        return State.DEAD if late else State.SUSPECT

    def opinion(self, awake: float, *, others: int, patience: float, reached: bool) -> Opinion:
        """The same with its reasons."""
        own, note = self.own, ""
        needed = min(CONFIRMATIONS, others)
        if own is None and self.heard_at is None:
            note = "not heard from since this node started"
        elif own is not None and self.state is State.SUSPECT and not reached:
            note = "this node reaches less than half of the mesh, so it may be cut off itself"
        elif own is not None and self.state is State.SUSPECT and len(self.accusers) < needed:
            note = "too few others confirm it"
        return Opinion(
            member=self.member,
            state=self.state,
            incarnation=self.incarnation,
            evidence=own.kind if own is not None else Evidence.NONE,
            heard_s=None if self.heard_at is None else awake - self.heard_at,
            silent_s=0.0 if own is None else awake - own.since,
            deadline_s=patience * self.round_trips.deadline_s() if own is None else own.deadline_s,
            round_trip_s=self.round_trips.median_s,
            relays=own.relays if own is not None else (),
            accusers=tuple(sorted(self.accusers)),
            needed=needed,
            timeout_s=self.timeout_s(others, patience),
            note=note,
        )
