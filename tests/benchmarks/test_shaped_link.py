"""Reading the time to a loss off curves."""

import pytest

from benchmarks.shaped_link import reaches, time_to_loss

CURVE = [(100.0, 2.6), (200.0, 2.2), (400.0, 1.8)]


def line(system: str, points: list[tuple[int, float, float]], per_step: float) -> dict[str, object]:
    return {
        "system": system,
        "seconds_per_step": per_step,
        "points": [{"steps": a, "seconds": b, "loss": c} for a, b, c in points],
    }


def test_between_two_marks_it_is_linear_in_the_logarithm() -> None:
    assert reaches(CURVE, 2.2) == pytest.approx(200)
    assert reaches(CURVE, 2.0) == pytest.approx(200 * 2**0.5)
    assert reaches(CURVE, 3.0) == 100
    assert reaches(CURVE, 1.0) is None


def test_a_run_that_got_there_counts_itself() -> None:
    own = line("ddp", [(10, 5.0, 2.6), (20, 10.0, 2.2)], 0.5)
    seconds, extrapolated = time_to_loss(own, [], 2.2)
    assert seconds == pytest.approx(10.0)
    assert not extrapolated


def test_a_short_run_borrows_the_steps_of_long_ones() -> None:
    short = line("ddp", [(10, 90.0, 4.0)], 9.0)
    long = [line("ddp", [(100, 1, 2.5), (200, 2, 2.1)], 0.1) for _ in range(3)]
    seconds, extrapolated = time_to_loss(short, long, 2.1)
    assert seconds == pytest.approx(9.0 * 200)
    assert extrapolated
    assert time_to_loss(short, [], 2.1) == (None, False)


def test_shoal_borrows_nothing() -> None:
    short = line("shoal", [(10, 90.0, 4.0)], 9.0)
    assert time_to_loss(short, [line("shoal", [(100, 1, 2.0)], 0.1)], 2.1) == (None, False)
