"""The choice of values: the plain per-chunk sort is the specification."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.compression import select as select_module
from shoal.compression.codec import encode
from shoal.compression.layout import CHUNK, Layout
from shoal.compression.select import ONE_MAGNITUDE_MAX, NonFiniteError, select

sizes = st.lists(
    st.one_of(st.integers(1, 40), st.integers(1, 2 * CHUNK + 100)), min_size=1, max_size=4
).map(tuple)
densities = st.one_of(st.integers(1, CHUNK), st.sampled_from([1, 64, ONE_MAGNITUDE_MAX, CHUNK]))


def random_error(layout: Layout, seed: int, levels: int) -> torch.Tensor:
    """Normal values; with few levels most magnitudes occur many times, zero among them."""
    values = np.random.default_rng(seed).standard_normal(layout.total)
    if levels:
        values = np.round(values * levels) / levels
    return torch.from_numpy(values.astype(np.float32))


def sorted_choice(values: NDArray[np.float32], layout: Layout, per_chunk: int) -> list[int]:
    chosen: list[int] = []
    edges = layout.chunk_offsets.tolist()
    for start, end in itertools.pairwise(edges):
        by_magnitude = sorted(range(start, end), key=lambda i: (-abs(float(values[i])), i))
        chosen += sorted(by_magnitude[: math.ceil((end - start) * per_chunk / CHUNK)])
    return chosen


@settings(max_examples=60, deadline=None)
@given(sizes, densities, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]))
def test_it_picks_what_a_sort_would(
    tensor_sizes: tuple[int, ...], per_chunk: int, seed: int, levels: int
) -> None:
    layout = Layout(tensor_sizes)
    error = random_error(layout, seed, levels)
    before = error.clone()
    selection = select(error, layout, per_chunk)
    assert selection.indices.tolist() == sorted_choice(error.numpy(), layout, per_chunk)
    assert torch.equal(error, before)


@settings(max_examples=40, deadline=None)
@given(sizes, densities, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 4]))
def test_a_sign_and_the_mean_magnitude_of_which_there_are_two_where_many_are_kept(
    tensor_sizes: tuple[int, ...], per_chunk: int, seed: int, levels: int
) -> None:
    layout = Layout(tensor_sizes)
    error = random_error(layout, seed, levels)
    selection = select(error, layout, per_chunk)
    values = error.numpy()[selection.indices].astype(np.float64)
    for tensor in range(len(tensor_sizes)):
        mine = values[selection.tensor_ids() == tensor]
        codes = selection.codes[selection.tensor_ids() == tensor]
        large = np.abs(mine) >= np.float32(np.abs(mine).mean())
        large &= per_chunk > ONE_MAGNITUDE_MAX
        assert np.array_equal(np.isin(codes, (0, 3)), large)
        assert np.array_equal(codes >= 2, ~np.signbit(mine))
        assert selection.counts[tensor].tolist() == np.bincount(codes, minlength=4).tolist()
        low, high = selection.centroids[tensor, 2:].tolist()
        assert selection.centroids[tensor].tolist() == [-high, -low, low, high]
        assert 0 <= low <= high
        if large.any():
            assert high == pytest.approx(np.abs(mine[large]).mean(), rel=1e-6)
        if not large.all():
            assert low == pytest.approx(np.abs(mine[~large]).mean(), rel=1e-6)


def test_a_single_value_is_sent_as_it_is() -> None:
    selection = select(torch.tensor([-0.3]), Layout((1,)), 64)
    assert selection.values().tolist() == [np.float32(-0.3)]


def test_a_vector_of_zeros_is_no_special_case() -> None:
    layout = Layout((2 * CHUNK, 7))
    selection = select(torch.zeros(layout.total), layout, 3)
    assert selection.indices.tolist() == [0, 1, 2, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK]
    assert not selection.values().any()


@pytest.mark.parametrize("poison", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 4095, 4096, 9_000, 9_999])
def test_not_a_number_never_leaves_the_node(poison: float, position: int) -> None:
    layout = Layout((9_000, 1_000))
    error = torch.randn(layout.total, generator=torch.Generator().manual_seed(1))
    error[position] = poison
    with pytest.raises(NonFiniteError):
        select(error, layout, 1)


def test_the_largest_float_is_still_finite() -> None:
    largest = torch.finfo(torch.float32).max
    selection = select(torch.full((4096,), largest), Layout((4096,)), 4096)
    assert selection.centroids[0].tolist() == [-largest, -largest, largest, largest]


def test_the_frame_does_not_depend_on_the_number_of_threads() -> None:
    layout = Layout((300_000, 128, 70_001))
    error = random_error(layout, 5, 16)
    threads = torch.get_num_threads()
    try:
        frames = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            frames.append(encode(select(error, layout, 64)))
    finally:
        torch.set_num_threads(threads)
    assert frames[0] == frames[1] == frames[2]


@pytest.mark.parametrize("levels", [0, 1])
def test_the_accelerator_path_makes_the_same_choice(
    levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout((3 * CHUNK, 5000, 1, 128))
    error = random_error(layout, 9, levels)
    expected = encode(select(error, layout, 64))
    monkeypatch.setattr(select_module, "_OnCpu", select_module._OnDevice)
    assert encode(select(error, layout, 64)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("levels", [0, 1])
def test_cuda_makes_the_same_choice(levels: int) -> None:
    layout = Layout((300 * CHUNK, 5000, 1, 128))
    error = random_error(layout, 9, levels)
    assert encode(select(error.cuda(), layout, 64)) == encode(select(error, layout, 64))
    error[77] = math.nan
    with pytest.raises(NonFiniteError):
        select(error.cuda(), layout, 64)


def test_another_shape_or_type_is_our_own_mistake() -> None:
    layout = Layout((10,))
    for wrong in (torch.zeros(9), torch.zeros(2, 5), torch.zeros(10, dtype=torch.float64)):
        with pytest.raises(AssertionError):
            select(wrong, layout, 64)
