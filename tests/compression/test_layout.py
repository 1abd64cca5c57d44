"""Chunks: where they lie and how many values each one sends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.compression.layout import CHUNK, Layout, kept_of_chunk

sizes = st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=6).map(tuple)


def test_chunks_start_anew_with_every_tensor() -> None:
    layout = Layout((5000, 3, CHUNK))
    assert layout.total == 5003 + CHUNK
    assert layout.offsets.tolist() == [0, 5000, 5003, 5003 + CHUNK]
    assert layout.chunk_offsets.tolist() == [0, CHUNK, 5000, 5003, 5003 + CHUNK]
    assert layout.tensor_chunks.tolist() == [0, 2, 3, 4]


def test_a_short_chunk_keeps_its_share_rounded_up() -> None:
    layout = Layout((5000, 3, CHUNK))
    assert layout.kept(64).tolist() == [64, 15, 1, 64]
    assert layout.kept_per_tensor(64).tolist() == [79, 1, 64]


def test_neighbours_of_one_size_make_one_run() -> None:
    layout = Layout((2 * CHUNK, CHUNK, 128, 128, 5000))
    assert layout.runs == ((0, 3, CHUNK), (12288, 2, 128), (12544, 1, CHUNK), (16640, 1, 904))


@given(sizes, st.integers(1, CHUNK))
def test_chunks_cover_the_vector_and_never_span_tensors(
    tensor_sizes: tuple[int, ...], per_chunk: int
) -> None:
    layout = Layout(tensor_sizes)
    chunk_sizes = [
        min(CHUNK, size - start) for size in tensor_sizes for start in range(0, size, CHUNK)
    ]
    assert np.diff(layout.chunk_offsets).tolist() == chunk_sizes
    assert [size for run in layout.runs for size in [run.size] * run.rows] == chunk_sizes
    kept = layout.kept(per_chunk)
    assert kept.tolist() == [kept_of_chunk(size, per_chunk) for size in chunk_sizes]
    assert all(1 <= count <= size for count, size in zip(kept, chunk_sizes, strict=True))
    assert layout.kept_per_tensor(per_chunk).sum() == kept.sum()


def test_the_tables_cannot_be_changed_by_accident() -> None:
    layout = Layout((5, 6))
    with pytest.raises(ValueError, match="read-only"):
        layout.offsets[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        layout.chunk_offsets[0] = 1


@pytest.mark.parametrize("tensor_sizes", [(), (0,), (4, 0), (-1,)])
def test_a_layout_without_elements_is_our_own_mistake(tensor_sizes: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Layout(tensor_sizes)


@pytest.mark.parametrize("per_chunk", [0, -1, CHUNK + 1])
def test_a_density_outside_the_chunk_is_our_own_mistake(per_chunk: int) -> None:
    with pytest.raises(AssertionError):
        Layout((10,)).kept(per_chunk)
