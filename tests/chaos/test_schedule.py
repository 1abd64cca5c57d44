"""The schedule keeps its promises for any seed: dense, finite, repeatable, and varied."""

import pytest

from tests.chaos.network import HEALTHY, Condition, conditions_of
from tests.chaos.schedule import PROCESS_FAULTS, WEIGHTS, Fault, draw_schedule, longest_gap_s

KINDS = tuple(WEIGHTS)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("nodes", [4, 7])
def test_a_fault_every_ten_seconds_and_an_end(seed: int, nodes: int) -> None:
    faults = draw_schedule(seed, nodes=nodes, seconds=600, kinds=KINDS)
    assert faults[0].at_s <= 10
    assert longest_gap_s(faults) <= 10
    assert max(fault.ends_s for fault in faults) <= 600
    assert faults[-1].at_s > 570
    assert {fault.kind for fault in faults} == set(KINDS)


def test_a_seed_repeats_and_another_differs() -> None:
    first = draw_schedule(1, nodes=4, seconds=300, kinds=KINDS)
    assert first == draw_schedule(1, nodes=4, seconds=300, kinds=KINDS)
    assert first != draw_schedule(2, nodes=4, seconds=300, kinds=KINDS)


@pytest.mark.parametrize("seed", range(20))
def test_a_process_suffers_one_fault_at_a_time(seed: int) -> None:
    faults = draw_schedule(seed, nodes=4, seconds=600, kinds=KINDS)
    for node in range(4):
        last = 0.0
        for fault in faults:
            if node in fault.nodes:
                assert fault.kind in PROCESS_FAULTS
                assert fault.at_s >= last
                last = fault.ends_s


def test_more_than_f_nodes_go_at_once_now_and_then() -> None:
    faults = draw_schedule(1, nodes=4, seconds=600, kinds=KINDS)
    assert any(len(fault.nodes) > 1 for fault in faults)


def test_faults_of_one_link_add_up() -> None:
    pair = (0, 1)
    active = [
        Fault("delay", 0, 9, pairs=(pair,), amount=0.25),
        Fault("delay", 1, 9, pairs=(pair,), amount=0.5),
        Fault("rate", 1, 9, pairs=(pair, (0, 2)), amount=500.0),
        Fault("loss", 1, 9, pairs=(pair,), amount=0.3),
        Fault("one-way", 2, 9, pairs=(pair,)),
        Fault("kill", 2, 9, nodes=(1,)),
    ]
    conditions = conditions_of(active)
    assert conditions[pair] == Condition(blocked=True, loss=0.3, delay_s=0.75, rate=500)
    assert conditions[0, 2] == Condition(rate=500)
    assert conditions.get((1, 0), HEALTHY) == HEALTHY
