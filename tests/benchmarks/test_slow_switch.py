"""The benchmarks' switch: nothing arrives early or faster than the line, nobody is forgotten."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.slow_switch import QUEUE_SECONDS, Line, Switch

EVERYBODY = b"\xff" * 6
ANNE, BERT, CARL = (bytes([2, 0, 0, 0, 0, number]) for number in range(3))


def frame(destination: bytes, source: bytes, length: int = 100) -> bytes:
    return (destination + source).ljust(length, b"\0")


def three_lines() -> Switch:
    return Switch({port: Line(delay=0.02, bytes_per_second=1e6) for port in range(3)})


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 0.01), st.integers(64, 9000)), max_size=60))
def test_a_line_keeps_its_delay_its_rate_and_the_order(sent: list[tuple[float, int]]) -> None:
    line = Line(delay=0.02, bytes_per_second=1e6)
    now, put = 0.0, []
    for pause, length in sent:
        now += pause
        line.put(bytes(length), now)
        put.append((now, length))
    arrivals = []
    while (at := line.next_at) is not None:
        assert not line.arrived(at - 1e-9)
        arrivals += [(at, len(frame)) for frame in line.arrived(at)]
    assert len(arrivals) + line.dropped == len(put)
    if not line.dropped:
        assert [length for _, length in arrivals] == [length for _, length in put]
        for (entered, length), (left, _) in zip(put, arrivals, strict=True):
            assert left >= entered + 0.02 + length / 1e6 - 1e-9
    for (earlier, _), (later, length) in pairwise(arrivals):
        assert later - earlier >= length / 1e6 - 1e-9


def test_a_full_queue_drops_and_an_idle_line_takes_again() -> None:
    line = Line(delay=0.0, bytes_per_second=1e4)
    for _ in range(10):
        line.put(bytes(1000), 0.0)
    assert line.dropped == 10 - (1 + int(QUEUE_SECONDS / 0.1))
    dropped = line.dropped
    line.put(bytes(1000), 10.0)
    assert line.dropped == dropped


def test_an_unknown_address_reaches_all_others_and_a_known_one_its_member() -> None:
    switch = three_lines()
    switch.take(0, frame(EVERYBODY, ANNE), 0.0)
    switch.take(1, frame(CARL, BERT), 0.0)
    assert [len(line.frames) for line in switch.lines.values()] == [1, 1, 2]
    switch.take(2, frame(ANNE, CARL), 0.0)
    assert [len(line.frames) for line in switch.lines.values()] == [2, 1, 2]
