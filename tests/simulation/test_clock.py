"""The clock of a simulated node: monotonic whatever happens to it, and late rather than early."""

import random

from tests.simulation.clock import Clock


def test_what_a_process_reads_never_goes_backwards() -> None:
    rng = random.Random(3)
    for drift in (0, 200, 50_000):
        clock = Clock(rng, drift)
        clock.restart(0)
        now, last = 0, clock.read(0)
        for _ in range(500):
            now += rng.randint(0, 300)
            dice = rng.random()
            if dice < 0.1:
                clock.jump(now, rng.randint(0, 5_000))
            elif dice < 0.2:
                clock.stall(now, rng.randint(0, 5_000))
            assert clock.read(now) >= last
            last = clock.read(now)


def test_a_timer_is_due_when_the_clock_says_so_and_not_before() -> None:
    rng = random.Random(4)
    for _ in range(300):
        clock = Clock(rng, 50_000)
        clock.restart(1_000)
        target = clock.read(1_000) + rng.randint(1, 100_000)
        due = clock.when(target, 1_000)
        assert clock.read(due) >= target > clock.read(due - 1)


def test_a_jump_brings_timers_forward_and_a_stall_puts_them_off() -> None:
    clock = Clock(random.Random(5), 0)
    clock.restart(0)
    target = clock.read(0) + 1_000
    assert clock.when(target, 0) == 1_000
    clock.jump(0, 400)
    assert clock.when(target, 0) == 600
    clock.stall(100, 2_000)
    assert clock.read(100) == clock.read(2_100) < clock.read(2_101)
    assert clock.when(target, 100) == 2_600
    clock.jump(200, 5_000)
    assert clock.when(target, 200) == 200


def test_every_process_starts_at_another_time() -> None:
    clock = Clock(random.Random(6), 0)
    starts = set()
    for now in range(10):
        clock.restart(now)
        starts.add(clock.read(now))
    assert len(starts) == 10
