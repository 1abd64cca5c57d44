"""The dial: what a budget pays for, alike at every member, and no dearer than the table says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import encode
from shoal.compression.layout import Layout
from shoal.compression.select import select
from shoal.gossip.density import (
    LEVELS,
    SAID_MIN,
    STRETCHES,
    budget_for,
    copies,
    kept_per_chunk,
    stretch,
)

LAYOUT = Layout((40 * 4096, 192, 192 * 512))


def heavy_tailed(seed: int) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_t(3, LAYOUT.total)
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize(("kept", "cost"), LEVELS)
def test_a_delta_takes_the_bytes_that_the_table_says(kept: int, cost: float) -> None:
    taken = len(encode(select(heavy_tailed(kept), LAYOUT, kept))) / LAYOUT.total
    # A small model's headers weigh more; the values weigh what they weigh in a large one.
    assert 0.85 * cost < taken < 1.05 * cost + 200 / LAYOUT.total


@settings(deadline=None)
@given(budget=st.floats(1e-4, 1e3), members=st.integers(1, 1024))
def test_what_is_kept_fits_the_budget_and_nothing_larger_would(budget: float, members: int) -> None:
    kept = kept_per_chunk(budget, members)
    spent = dict(LEVELS)[kept] * copies(members)
    assert spent <= budget or kept == LEVELS[0][0]
    assert all(cost * copies(members) > budget for level, cost in LEVELS if level > kept)


@settings(deadline=None)
@given(budget=st.floats(1e-4, 1e3), members=st.integers(1, 1024))
def test_a_small_budget_buys_rarer_deltas_instead_of_deltas_of_nothing(
    budget: float, members: int
) -> None:
    longer = stretch(budget, members)

    def is_enough(budget: float) -> bool:
        kept = kept_per_chunk(budget, members)
        paid = dict(LEVELS)[kept] * copies(members) <= budget
        return paid and kept * members >= SAID_MIN

    assert is_enough(longer * budget) or longer == STRETCHES[-1]
    assert not any(is_enough(less * budget) for less in STRETCHES if less < longer)


@given(kept=st.integers(1, 4096), members=st.integers(1, 1024))
def test_a_budget_for_a_density_gives_at_least_that(kept: int, members: int) -> None:
    found = kept_per_chunk(budget_for(kept, members), members)
    assert found >= kept
    assert found == kept or kept not in dict(LEVELS)


def test_who_comes_makes_everybody_say_less_and_who_goes_more() -> None:
    kept = [kept_per_chunk(0.06, members) for members in (2, 4, 7, 31, 1024)]
    assert kept == [256, 64, 32, 4, 1]
    assert kept_per_chunk(0.06, 1) == 256, "alone it costs nothing, and the next may come"


def test_in_a_mesh_beyond_its_budget_members_speak_less_often() -> None:
    found = [stretch(0.06, members) for members in (1, 4, 31, 64, 256, 1024)]
    assert found == [1, 1, 1, 1, 4, 16]
    all_sizes = [stretch(0.06, members) for members in range(1, 1025)]
    assert all_sizes == sorted(all_sizes), "with the usual dial, who comes never quickens rounds"


def test_a_smaller_dial_makes_rounds_longer_before_deltas_are_of_nothing() -> None:
    budgets = (0.06, 0.016, 0.015, 0.008, 0.004, 0.0005, 0.0001)
    found = [(stretch(b, 4), kept_per_chunk(stretch(b, 4) * b, 4)) for b in budgets]
    assert found == [(1, 64), (1, 16), (2, 32), (2, 16), (4, 16), (32, 16), (128, 11)]
