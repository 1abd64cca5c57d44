"""What addresses may ask that nobody knows. Time is told, nothing sleeps."""

from contextlib import ExitStack

import pytest

from shoal.node.admission import HOSTS_MAX, LIMITS, WAIT_MAX_S, Admission, host_of
from shoal.node.errors import PeerError

HERE = "ipv4:192.0.2.1:4711"
ELSEWHERE = "ipv4:192.0.2.2:4711"


def calls(admission: Admission, kind: str, peer: str, count: int, now: float) -> list[float]:
    """Waits of calls that end at once; a refused one waits for ever."""
    waits = []
    for _ in range(count):
        try:
            with admission.call(kind, peer, now) as wait_s:
                waits.append(wait_s)
        except PeerError:
            waits.append(float("inf"))
    return waits


def test_a_burst_is_free_then_calls_wait_then_they_are_refused() -> None:
    admission, limit = Admission(), LIMITS["join"]
    waits = calls(admission, "join", HERE, 30, 0.0)
    assert waits[: int(limit.burst)] == [0.0] * int(limit.burst)
    later = waits[int(limit.burst) :]
    assert all(0 < wait_s <= WAIT_MAX_S for wait_s in later[:2])
    assert later[2:] == [float("inf")] * len(later[2:])
    assert calls(admission, "join", ELSEWHERE, 1, 0.0) == [0.0]
    assert calls(admission, "fetch", HERE, 1, 0.0) == [0.0]
    assert calls(admission, "join", HERE, 1, 60.0) == [0.0]


def test_open_calls_are_bounded_by_address_and_in_all() -> None:
    admission, limit = Admission(), LIMITS["handshake"]
    with ExitStack() as held:
        for _ in range(limit.open_max):
            held.enter_context(admission.call("handshake", HERE, 0.0))
        with pytest.raises(PeerError, match="from there are open"):
            held.enter_context(admission.call("handshake", HERE, 0.0))
        for number in range(limit.open_of_all_max - limit.open_max):
            held.enter_context(admission.call("handshake", f"ipv4:198.51.100.{number}:1", 0.0))
        with pytest.raises(PeerError, match="of this kind"):
            held.enter_context(admission.call("handshake", ELSEWHERE, 0.0))
    assert calls(admission, "handshake", ELSEWHERE, 1, 0.0) == [0.0]


def test_so_many_addresses_are_remembered_and_no_more() -> None:
    admission = Admission()
    calls(admission, "join", HERE, 30, 0.0)
    for number in range(HOSTS_MAX):
        calls(admission, "join", f"ipv4:10.{number >> 8}.{number & 255}.1:1", 1, 0.0)
    assert calls(admission, "join", HERE, 1, 0.0) == [0.0]


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2::3%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::9]:1", "2001:db8:1:2::/64"),
        ("ipv4:127.0.0.1:4711", "ipv4:127.0.0.1:4711"),
        ("ipv6:%5B::1%5D:4711", "ipv6:%5B::1%5D:4711"),
        ("unix:", "unix:"),
    ],
)
def test_who_is_counted_together(peer: str, host: str) -> None:
    assert host_of(peer) == host
