"""What a hostile neighbour can say to a detector, and what it cannot bring about."""

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.gossip.detector import TICK_S, Detector, Event
from shoal.gossip.eyes import DetectorSettings, Effect
from shoal.gossip.liveness import (
    RUMOURS_MAX,
    Alive,
    Changed,
    Heard,
    Kind,
    Members,
    Message,
    Rumour,
    State,
    Suspicion,
    Tell,
    Tick,
    answer_bytes,
    first_incarnation,
)
from shoal.gossip.relay_events import LinkDown, LinkUp
from shoal.gossip.rumours import QUEUED_MAX
from tests.gossip.simulated_eyes import MESH, name_of, sign_as, verify

ME, A, B, C, D = (name_of(index) for index in range(5))
EVERYBODY = frozenset((ME, A, B, C, D))
FIRST = first_incarnation(1)


class Bench:
    """One detector, linked to all others, and what it did."""

    def __init__(self, linked: Iterable[bytes] = (A, B, C, D)) -> None:
        self.detector = Detector(
            me=ME,
            mesh_id=MESH,
            incarnation=FIRST,
            settings=DetectorSettings(),
            rng=random.Random(1),
            sign=lambda data: sign_as(ME, data),
            verify=verify,
        )
        self.now = 0.0
        self.give(Members(EVERYBODY, EVERYBODY))
        for peer in linked:
            self.give(LinkUp(peer))

    def give(self, event: Event) -> list[Effect]:
        return self.detector.step(self.now, event)

    def hear(self, peer: bytes, *rumours: Rumour, kind: Kind = Kind.NEWS) -> list[Effect]:
        return self.give(Heard(peer, Message(kind, rumours=rumours)))

    def wait(self, seconds: float, answering: Iterable[bytes] = ()) -> list[Effect]:
        """Tick on; these members answer every probe at once."""
        done: list[Effect] = []
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            effects = self.give(Tick())
            done += effects
            for effect in effects:
                if isinstance(effect, Tell) and effect.peer in answering:
                    self._answer(effect.peer, effect.message)
        return done

    def _answer(self, peer: bytes, message: Message) -> None:
        if message.kind is Kind.PROBE:
            self.give(Heard(peer, Message(Kind.ACK, message.nonce)))
        elif message.kind is Kind.ASK:
            self.give(Heard(peer, Message(Kind.ANSWER, message.nonce, message.member)))

    @property
    def rumours(self) -> int:
        return len(self.detector._hearsay._rumours)


def alive(member: bytes, incarnation: int) -> Alive:
    unsigned = Alive(member, incarnation)
    return unsigned._replace(signature=sign_as(member, unsigned.signed_bytes(MESH)))


def accusation(accuser: bytes, subject: bytes, incarnation: int) -> Suspicion:
    word = alive(subject, incarnation).signature if incarnation else b""
    unsigned = Suspicion(accuser, subject, incarnation, word)
    return unsigned._replace(signature=sign_as(accuser, unsigned.signed_bytes(MESH)))


def own_words(effects: Iterable[Effect]) -> set[int]:
    return {
        rumour.incarnation
        for effect in effects
        if isinstance(effect, Tell)
        for rumour in effect.message.rumours
        if isinstance(rumour, Alive) and rumour.member == ME
    }


def test_accusations_alone_kill_nobody_who_answers() -> None:
    bench = Bench()
    for accuser in (B, C, D):
        bench.hear(accuser, accusation(accuser, A, FIRST))
    bench.wait(30, answering=(A, B, C, D))
    assert bench.detector.state(A) is State.ALIVE
    assert len(bench.detector.opinions()[A].accusers) == 3


def test_an_accusation_right_after_a_good_probe_is_looked_into_all_the_same() -> None:
    bench = Bench()
    bench.wait(5, answering=(A, B, C, D))
    asked: list[float] = []
    for _ in range(20):
        # Somewhere in between A has just been probed: whenever it is accused, it is probed soon.
        bench.hear(B, alive(A, FIRST + len(asked)))
        bench.hear(B, accusation(B, A, FIRST + len(asked)))
        begun = bench.now
        while not any(
            isinstance(effect, Tell) and (effect.peer, effect.message.kind) == (A, Kind.PROBE)
            for effect in bench.wait(TICK_S, answering=(A, B, C, D))
        ):
            assert bench.now - begun < 0.8
        asked.append(bench.now - begun)


def test_an_own_failure_alone_kills_nobody() -> None:
    bench = Bench()
    bench.wait(20, answering=(B, C, D))
    assert bench.detector.state(A) is State.SUSPECT
    assert bench.detector.opinions()[A].note == "too few others confirm it"
    bench.hear(B, accusation(B, A, 0))
    bench.wait(5, answering=(B, C, D))
    assert bench.detector.state(A) is State.SUSPECT, "one is not enough"
    bench.hear(C, accusation(C, A, 0))
    bench.wait(1, answering=(B, C, D))
    assert bench.detector.state(A) is State.DEAD


def test_one_liar_cannot_speak_with_two_voices() -> None:
    bench = Bench()
    forged = accusation(C, A, 0)._replace(signature=bytes(64))
    bench.hear(B, accusation(B, A, 0), forged, accusation(B, A, 0))
    bench.wait(20, answering=(B, C, D))
    assert bench.detector.opinions()[A].accusers == (B,)
    assert bench.detector.state(A) is State.SUSPECT


def test_nobody_can_push_the_number_of_another_up() -> None:
    bench = Bench()
    bench.hear(B, alive(A, FIRST))
    forged = Alive(A, FIRST + 9, sign_as(B, Alive(A, FIRST + 9).signed_bytes(MESH)))
    invented = accusation(B, A, FIRST + 9)._replace(word=bytes(64))
    bench.hear(B, forged, invented)
    opinion = bench.detector.opinions()[A]
    assert opinion.incarnation == FIRST and not opinion.accusers


def test_an_accusation_of_an_older_number_counts_for_nothing() -> None:
    bench = Bench()
    bench.hear(A, alive(A, FIRST + 1))
    bench.hear(B, accusation(B, A, FIRST))
    assert not bench.detector.opinions()[A].accusers


def test_being_accused_is_answered_but_not_as_often_as_a_liar_likes() -> None:
    bench = Bench()
    bench.wait(1, answering=EVERYBODY)
    said: set[int] = set()
    for _ in range(50):
        bench.now += 0.02
        newest = max(said, default=FIRST)
        said |= own_words(bench.hear(B, accusation(B, ME, newest)))
        said |= own_words(bench.give(Tick()))
    assert FIRST < max(said) <= FIRST + 4


def test_a_relay_cannot_answer_for_the_dead() -> None:
    bench = Bench(linked=(B, C, D))
    bench.now += TICK_S
    asks = [
        effect
        for effect in bench.give(LinkUp(A)) + bench.give(LinkDown(A))
        if isinstance(effect, Tell) and effect.message.kind is Kind.ASK
    ]
    assert len(asks) == 3
    nonce = asks[0].message.nonce
    lie = sign_as(B, answer_bytes(MESH, ME, nonce))
    bench.give(Heard(B, Message(Kind.ANSWER, nonce, A, lie)))
    for relay in (C, D):
        bench.give(Heard(relay, Message(Kind.ANSWER, nonce, A)))
    assert bench.detector.state(A) is State.SUSPECT
    truth = sign_as(A, answer_bytes(MESH, ME, nonce))
    bench.give(Heard(B, Message(Kind.ANSWER, nonce, A, truth)))
    assert bench.detector.state(A) is State.SUSPECT, "that probe is over"


def test_a_probe_on_behalf_of_another_is_answered_with_a_signature_for_it() -> None:
    bench = Bench()
    (reply,) = bench.give(Heard(B, Message(Kind.PROBE, 7, C)))
    assert isinstance(reply, Tell) and reply.peer == B and reply.message.kind is Kind.ACK
    assert verify(ME, answer_bytes(MESH, C, 7), reply.message.signature)


def test_a_stranger_is_not_heard() -> None:
    bench = Bench()
    stranger = name_of(77)
    assert bench.hear(stranger, accusation(stranger, A, 0), kind=Kind.PROBE) == []
    bench.hear(B, accusation(stranger, A, 0), accusation(B, stranger, 0))
    assert not bench.detector.opinions()[A].accusers


def test_a_process_that_stood_still_accuses_nobody() -> None:
    bench = Bench()
    bench.wait(10, answering=EVERYBODY)
    for _ in range(10):
        bench.wait(1)
        bench.now += 5.0
        effects = bench.wait(3, answering=EVERYBODY)
        bench.wait(6, answering=EVERYBODY)
        assert not [e for e in effects if isinstance(e, Changed) and e.opinion.state is State.DEAD]
    assert bench.detector.health_factor > 1 or all(
        bench.detector.state(member) is State.ALIVE for member in (A, B, C, D)
    )


names = st.sampled_from([ME, A, B, C, D, name_of(9)])
numbers = st.sampled_from([0, 1, FIRST, FIRST + 1, 2**62])
rumours = st.one_of(
    st.builds(alive, names, numbers),
    st.builds(accusation, names, names, numbers),
    st.builds(Alive, names, numbers, st.just(bytes(64))),
)
messages = st.builds(
    Message,
    st.sampled_from(Kind),
    st.integers(0, 3),
    names | st.just(b""),
    st.just(b"") | st.just(bytes(64)),
    st.lists(rumours, max_size=RUMOURS_MAX).map(tuple),
)
events = st.one_of(
    st.builds(Heard, names, messages),
    st.builds(LinkUp, names),
    st.builds(LinkDown, names),
    st.builds(lambda some: Members(some | {ME}, some), st.frozensets(names)),
    st.just(Tick()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), events), max_size=60))
def test_no_sequence_of_events_breaks_it_or_fills_its_memory(
    story: list[tuple[float, Event]],
) -> None:
    bench = Bench()
    linked, members = {A, B, C, D}, set(EVERYBODY)
    for gap, event in story:
        bench.now += gap
        match event:
            case Members(everybody, _):
                members, linked = set(everybody), linked & everybody
            case LinkUp(peer) if peer in members - {ME}:
                linked.add(peer)
            case LinkDown(peer):
                linked.discard(peer)
        for effect in bench.give(event):
            if isinstance(effect, Tell):
                assert effect.peer in linked, "only neighbours are told anything"
                assert len(effect.message.rumours) <= RUMOURS_MAX
            else:
                assert effect.opinion.member in members
        opinions = bench.detector.opinions()
        assert opinions.keys() == members - {ME}
        assert bench.rumours <= QUEUED_MAX
        for opinion in opinions.values():
            if opinion.state is State.DEAD:
                assert opinion.evidence, "nobody is dead without own evidence"
