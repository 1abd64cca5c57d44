"""Probing members: directly, through others, and for others (SWIM, Das et al. 2002, section 3.1).

A probe is direct where there is a link. When its deadline passes, or where there is none, k others
are asked to probe; the subject signs its answer to them, so no relay can speak for the dead. What
is asked of this node is bounded, and answered with "no" when it comes to nothing: a relay that says
nothing at all is a sign that this node itself does not hear (Lifeguard's nacks).
"""

from collections.abc import Callable

from shoal.gossip.eyes import Eyes
from shoal.gossip.hearsay import CHECK_S, Hearsay
from shoal.gossip.liveness import Kind, Message, State, answer_bytes
from shoal.gossip.suspicion import Case, Flight

# A member that was never heard gets this long to start before its silence counts.
GRACE_S = 10.0
# And is asked for so often until it is.
FIRST_AGAIN_S = 2.0
RELAYED_MAX = 256
# A detour is two trips, and the relay waits for its own deadline in between.
DETOUR_FACTOR = 3.0
NONCE_BITS = 62


class Probes:
    """One node's probes, and those that it makes for others."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        self.hearsay: Hearsay
        # (subject, asker, asker's nonce) -> until when to wait for its answer, in seconds awake.
        self._relayed: dict[tuple[bytes, bytes, int], float] = {}
        self._order: list[bytes] = []
        self._next_at = 0.0
        self._handlers: dict[Kind, Callable[[bytes, Message], None]] = {
            Kind.PROBE: self._on_probe,
            Kind.ACK: self._on_ack,
            Kind.ASK: self._on_ask,
            Kind.ANSWER: self._on_answer,
        }

    def hear(self, peer: bytes, message: Message) -> None:
        """Act on what a neighbour asks or answers; rumours are hearsay's."""
        handler = self._handlers.get(message.kind)
        if handler is not None:
            handler(peer, message)

    def tick(self) -> None:
        """Give up what is overdue, and start the next probe when it is time."""
        eyes = self._eyes
        for case in list(eyes.cases.values()):
            if case.flight is not None:
                self._look_at(case, case.flight)
            elif case.is_open or case.doubted or case.heard_at is None:
                # One lost message is no verdict: as long as it can still be saved, ask again.
                pause_s = CHECK_S if case.is_open or case.doubted else FIRST_AGAIN_S
                if eyes.awake - (case.probed_at or 0.0) >= pause_s:
                    self.probe(case)
        for key in [key for key, until in self._relayed.items() if eyes.awake >= until]:
            del self._relayed[key]
            subject, asker, nonce = key
            self.hearsay.tell(asker, Message(Kind.ANSWER, nonce, subject))
        if eyes.awake >= self._next_at:
            # Jitter, so that nodes that start together do not probe in step for ever.
            pause_s = eyes.settings.interval_s / eyes.settings.probes
            self._next_at = eyes.awake + pause_s * eyes.rng.uniform(0.8, 1.2)
            self._probe_next()

    def _probe_next(self) -> None:
        """Everybody once, in an order that is drawn anew for each time round (SWIM 4.3)."""
        eyes = self._eyes
        for _ in range(2):
            while self._order:
                case = eyes.cases.get(self._order.pop())
                if case is not None and case.flight is None:
                    self.probe(case)
                    return
            self._order = sorted(eyes.cases)
            eyes.rng.shuffle(self._order)

    def probe(self, case: Case) -> None:
        """Start a probe, unless one is under way."""
        eyes = self._eyes
        if case.flight is not None:
            return
        case.probed_at, case.doubted = eyes.awake, False
        linked = case.member in eyes.linked
        nonce = eyes.rng.getrandbits(NONCE_BITS)
        case.flight = Flight(nonce, eyes.now, eyes.awake, eyes.clock.late_s, linked)
        if case.unanswered_at is None:
            case.unanswered_at = eyes.awake
        if linked:
            self.hearsay.tell(case.member, Message(Kind.PROBE, nonce))
        else:
            self._ask_relays(case, case.flight)

    def _look_at(self, case: Case, flight: Flight) -> None:
        """Whether a probe that is under way has taken too long."""
        eyes = self._eyes
        if flight.asked_awake is None:
            if eyes.awake - flight.sent_awake >= eyes.deadline_s(case.member):
                self._ask_relays(case, flight)
            return
        waits = [eyes.deadline_s(relay) for relay in flight.relays if relay in eyes.cases]
        allowed = DETOUR_FACTOR * max([eyes.deadline_s(case.member), *waits])
        silent = any(not said for said in flight.relays.values())
        if silent and eyes.awake - flight.asked_awake < allowed:
            return
        if silent:
            eyes.health.worse()
        self._fail(case, flight)

    def _ask_relays(self, case: Case, flight: Flight) -> None:
        """Ask k others; first those that surely have a link to the subject."""
        eyes, subject = self._eyes, case.member
        able = [
            peer
            for peer in sorted(eyes.linked - {subject})
            if eyes.cases[peer].state is State.ALIVE
        ]
        eyes.rng.shuffle(able)
        if subject not in eyes.hubs:
            able.sort(key=lambda peer: peer not in eyes.hubs)
        flight.asked_awake = eyes.awake
        flight.relays = dict.fromkeys(able[: eyes.settings.relays], "")
        for relay in flight.relays:
            self.hearsay.tell(relay, Message(Kind.ASK, flight.nonce, subject))
        if not flight.relays:
            self._fail(case, flight)

    def _fail(self, case: Case, flight: Flight) -> None:
        eyes = self._eyes
        case.flight = None
        if case.heard_at is None and eyes.awake - case.known_at < GRACE_S:
            case.unanswered_at = None
            return
        relays = tuple((relay, said or "silent") for relay, said in flight.relays.items())
        eyes.touched.add(case.member)
        if case.failed(eyes.awake, eyes.deadline_s(case.member), relays):
            self.hearsay.accuse(case)

    # --- messages -------------------------------------------------------------------------------

    def _on_probe(self, peer: bytes, message: Message) -> None:
        signature, asker = b"", message.member
        if asker:
            signed = answer_bytes(self._eyes.mesh_id, asker, message.nonce)
            signature = self._eyes.sign(signed)
        self.hearsay.tell(peer, Message(Kind.ACK, message.nonce, asker, signature))

    def _on_ack(self, peer: bytes, message: Message) -> None:
        eyes, asker = self._eyes, message.member
        if asker:
            if self._relayed.pop((peer, asker, message.nonce), None) is not None:
                answer = Message(Kind.ANSWER, message.nonce, peer, message.signature)
                self.hearsay.tell(asker, answer)
            return
        case = eyes.cases[peer]
        flight = case.flight
        if flight is not None and flight.direct and flight.nonce == message.nonce:
            if flight.late_s == eyes.clock.late_s:
                # Otherwise it was this node that was slow.
                case.round_trips.add(eyes.now - flight.sent_at)
            if flight.asked_awake is None:
                eyes.health.better()
        # An answer to an earlier probe is late, but its link proves whose it is: it lives.
        eyes.prove_alive(case)

    def _on_ask(self, peer: bytes, message: Message) -> None:
        eyes, subject = self._eyes, message.member
        if subject not in eyes.linked or len(self._relayed) >= RELAYED_MAX:
            self.hearsay.tell(peer, Message(Kind.ANSWER, message.nonce, subject))
            return
        self._relayed[subject, peer, message.nonce] = eyes.awake + eyes.deadline_s(subject)
        self.hearsay.tell(subject, Message(Kind.PROBE, message.nonce, peer))

    def _on_answer(self, peer: bytes, message: Message) -> None:
        eyes, case = self._eyes, self._eyes.cases.get(message.member)
        flight = case.flight if case is not None else None
        if case is None or flight is None or flight.nonce != message.nonce:
            return
        if peer not in flight.relays:
            return
        signed = answer_bytes(eyes.mesh_id, eyes.me, message.nonce)
        if message.signature and eyes.verify(case.member, signed, message.signature):
            eyes.prove_alive(case)
            return
        flight.relays[peer] = "no"
        if all(flight.relays.values()):
            self._look_at(case, flight)
