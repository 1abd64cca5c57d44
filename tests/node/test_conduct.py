"""What a peer may spend, and when it has misbehaved enough. Time is told, nothing sleeps."""

import pytest

from shoal.node.conduct import (
    COOL_OFF_S,
    MESSAGES,
    PEERS_MAX,
    REFORMED_S,
    STRIKE_FORGIVEN_S,
    STRIKES_MAX,
    Conduct,
)
from shoal.node.errors import PeerError
from shoal.node.wire import Announced, ConsensusMessages, Ping, SummaryMessage

PEER, OTHER = b"p" * 32, b"o" * 32
VOTES = ConsensusMessages((b"vote",) * 1000)


def strikes(conduct: Conduct, count: int, now: float, peer: bytes = PEER) -> list[bool]:
    return [conduct.strike(peer, "malformed-message", now) for _ in range(count)]


def test_a_busy_honest_peer_never_waits() -> None:
    conduct = Conduct()
    vote = ConsensusMessages((bytes(124),) * 9)
    for tick in range(6000):
        now = tick / 100
        assert conduct.spend(PEER, vote, 1200, now) == 0.0
    assert conduct.spend(PEER, SummaryMessage(1, {}), 1000, 60.0) == 0.0
    assert conduct.spend(PEER, Ping(1), 9, 60.0) == 0.0


def test_who_spends_more_is_read_more_slowly_and_nobody_else() -> None:
    conduct = Conduct()
    per_s, burst = MESSAGES["consensus"]
    waits = [conduct.spend(PEER, VOTES, 5000, 0.0) for _ in range(20)]
    assert waits[:8] == [0.0] * 8
    assert waits[-1] == pytest.approx((20_000 - burst) / per_s)
    assert conduct.spend(OTHER, VOTES, 5000, 0.0) == 0.0
    assert conduct.spend(PEER, VOTES, 5000, 60.0) == 0.0


def test_bytes_count_whatever_they_are_part_of() -> None:
    conduct = Conduct()
    reference = (bytes(32), 1, bytes(32))
    waits = [conduct.spend(PEER, Announced((reference,)), 2 << 20, 0.0) for _ in range(40)]
    assert waits[0] == 0.0
    assert waits[-1] == pytest.approx((80 - 32) / 16)


def test_eight_strikes_end_it_and_it_cools_off_longer_each_time() -> None:
    conduct = Conduct()
    now = 0.0
    for repeat in range(8):
        assert strikes(conduct, STRIKES_MAX, now) == [False] * (STRIKES_MAX - 1) + [True]
        cool_s = min(COOL_OFF_S[0] * 2**repeat, COOL_OFF_S[1])
        for tool in (
            lambda at: conduct.require_welcome(PEER, at),
            lambda at: conduct.spend(PEER, Ping(1), 9, at),
        ):
            with pytest.raises(PeerError, match="cooling-off"):
                tool(now + cool_s - 0.1)
        conduct.require_welcome(OTHER, now)
        now += cool_s
        conduct.require_welcome(PEER, now)
    now += REFORMED_S + 1
    strikes(conduct, STRIKES_MAX, now)
    conduct.require_welcome(PEER, now + COOL_OFF_S[0])


def test_strikes_are_forgiven_with_time() -> None:
    conduct = Conduct()
    for tick in range(200):
        assert strikes(conduct, 1, tick * STRIKE_FORGIVEN_S) == [False]


def test_what_may_have_an_honest_reason_is_no_strike() -> None:
    conduct = Conduct()
    for reason in ("wrong-epoch", "stale", "unknown-signer", "inbox-full", "equivocation"):
        assert not any(conduct.strike(PEER, reason, 0.0) for _ in range(100))


def test_so_many_peers_are_remembered_and_no_more() -> None:
    conduct = Conduct()
    for number in range(PEERS_MAX + 50):
        strikes(conduct, STRIKES_MAX, 0.0, number.to_bytes(32, "big"))
    conduct.require_welcome((0).to_bytes(32, "big"), 0.0)
    with pytest.raises(PeerError):
        conduct.require_welcome((PEERS_MAX + 49).to_bytes(32, "big"), 0.0)
