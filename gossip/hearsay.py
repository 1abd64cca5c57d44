"""What members tell about each other: hear it, pass it on, refute what is said of oneself.

Every record is signed, and checked before it has any effect; what is known already is dropped
before that costs anything. An accusation only ever makes this node look for itself.
"""

from collections.abc import Callable, Iterable

from shoal.gossip.eyes import Eyes
from shoal.gossip.liveness import RUMOURS_MAX, Alive, Kind, Message, Rumour, Suspicion, Tell
from shoal.gossip.rumours import Rumours, retransmissions
from shoal.gossip.suspicion import Case

# Least time between two refutations, and between two probes of one suspect: bounds on what liars
# can make a node do.
REFUTE_S = 0.5
CHECK_S = 0.5


class Hearsay:
    """One node's part in spreading news."""

    def __init__(self, eyes: Eyes, incarnation: int, look: Callable[[Case], None]) -> None:
        """`look` starts an own probe of a member that somebody accuses."""
        self._eyes = eyes
        self._look = look
        self._rumours = Rumours()
        self._news = False
        self._word = Alive(eyes.me, incarnation)
        self._refute = False
        self._refuted_at = -REFUTE_S
        self._say_alive(incarnation)

    # --- telling --------------------------------------------------------------------------------

    def tell(self, peer: bytes, message: Message) -> None:
        """Send a message with what there is to tell on its back."""
        eyes = self._eyes
        if peer not in eyes.linked:
            return
        # Who is accused hears it from everybody that it talks to (Lifeguard's buddy system).
        case = eyes.cases[peer]
        own = [self.suspicion(case)] if case.own is not None else []
        about = [*own, *case.accusers.values()][:2]
        further = self._rumours.take(peer, RUMOURS_MAX - len(about))
        rumours = (*about, *(rumour for rumour in further if rumour not in about))
        eyes.effects.append(Tell(peer, message._replace(rumours=rumours)))

    def greet(self, peer: bytes) -> None:
        """To a new neighbour: the own word, and whom this node gets no answer from."""
        own = [self.suspicion(case) for case in self._eyes.cases.values() if case.own is not None]
        news = Message(Kind.NEWS, rumours=(self._word, *own[: RUMOURS_MAX - 1]))
        self._eyes.effects.append(Tell(peer, news))

    def accuse(self, case: Case) -> None:
        """Tell everybody that this node gets no answer from a member."""
        self._spread(self.suspicion(case))

    def suspicion(self, case: Case) -> Suspicion:
        """This node's signed word that a member does not answer."""
        unsigned = Suspicion(self._eyes.me, case.member, case.incarnation, case.word)
        signature = self._eyes.sign(unsigned.signed_bytes(self._eyes.mesh_id))
        return unsigned._replace(signature=signature)

    def flush(self) -> None:
        """Tell what is new to a few at once; the rest hear it with whatever is said anyway."""
        if not self._news or not self._eyes.linked:
            return
        self._news = False
        linked = sorted(self._eyes.linked)
        fanout = min(self._eyes.settings.fanout, len(linked))
        for peer in self._eyes.rng.sample(linked, fanout):
            if len(self._rumours):
                self.tell(peer, Message(Kind.NEWS))

    def _spread(self, rumour: Rumour) -> None:
        self._rumours.add(rumour, retransmissions(len(self._eyes.cases) + 1))
        self._news = True

    def _say_alive(self, incarnation: int) -> None:
        unsigned = Alive(self._eyes.me, incarnation)
        signature = self._eyes.sign(unsigned.signed_bytes(self._eyes.mesh_id))
        self._word = unsigned._replace(signature=signature)
        self._spread(self._word)

    # --- hearing --------------------------------------------------------------------------------

    def hear(self, rumours: Iterable[Rumour]) -> None:
        """Take in what a neighbour tells, about anybody."""
        for rumour in rumours:
            if isinstance(rumour, Alive):
                self._hear_alive(rumour)
            elif rumour.subject == self._eyes.me:
                self._hear_of_myself(rumour)
            else:
                self._hear_suspicion(rumour)

    def tick(self) -> None:
        """Say what could not be said so soon after the last time."""
        if self._refute and self._eyes.awake - self._refuted_at >= REFUTE_S:
            self._refute, self._refuted_at = False, self._eyes.awake
            self._say_alive(self._word.incarnation + 1)

    def _hear_alive(self, alive: Alive) -> bool:
        """A member's own word; whether it is valid and not older than what is known."""
        eyes = self._eyes
        case = eyes.cases.get(alive.member)
        if case is None or alive.incarnation < case.incarnation:
            return False
        if case.word and alive.incarnation == case.incarnation:
            return True
        signed = alive.signed_bytes(eyes.mesh_id)
        if not eyes.verify(alive.member, signed, alive.signature):
            return False
        case.raise_to(alive.incarnation, alive.signature)
        self._rumours.forget(alive.member, alive.incarnation)
        self._spread(alive)
        eyes.touched.add(case.member)
        if case.own is not None:
            # It heard what spoke against it and signed a higher number. See whether it answers.
            eyes.prove_alive(case)
            self._look(case)
        return True

    def _hear_suspicion(self, suspicion: Suspicion) -> None:
        eyes = self._eyes
        case = eyes.cases.get(suspicion.subject)
        if case is None or suspicion.accuser not in eyes.cases:
            return
        if not case.has_room_for(suspicion):
            return
        signed = suspicion.signed_bytes(eyes.mesh_id)
        if not eyes.verify(suspicion.accuser, signed, suspicion.signature):
            return
        word = Alive(suspicion.subject, suspicion.incarnation, suspicion.word)
        if suspicion.incarnation > case.incarnation and not self._hear_alive(word):
            return
        case.accusers[suspicion.accuser] = suspicion
        eyes.touched.add(case.member)
        self._spread(suspicion)
        case.doubted = True
        if case.own is None and (case.probed_at is None or eyes.awake - case.probed_at >= CHECK_S):
            self._look(case)

    def _hear_of_myself(self, suspicion: Suspicion) -> None:
        """Answer an accusation with a higher number; not oftener than every REFUTE_S."""
        eyes = self._eyes
        if suspicion.accuser not in eyes.cases or self._refute:
            return
        if suspicion.incarnation < self._word.incarnation:
            # The accuser has not heard the answer yet; the queue holds it only once.
            self._rumours.add(self._word, retransmissions(len(eyes.cases) + 1))
            return
        signed = suspicion.signed_bytes(eyes.mesh_id)
        if suspicion.incarnation > self._word.incarnation or not eyes.verify(
            suspicion.accuser, signed, suspicion.signature
        ):
            return
        self._refute = True
        eyes.health.worse()
        self.tick()
