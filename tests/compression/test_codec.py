"""Delta -> frame -> delta, and frames whose streams lie."""

import struct
import time
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.compression.codec import SparseDelta, decode, encode
from shoal.compression.frame import Frame, FrameError, pack_frame, parse_frame
from shoal.compression.layout import CHUNK, Layout
from shoal.compression.select import select
from shoal.compression.streams import compress, gaps_to_bytes

MEBIBYTE = 1 << 20
LAYOUT = Layout((5000, 3))
# A ten-million-parameter model, so that the frame limit leaves room for the bombs.
LARGE = Layout((10_000_000,))
sizes = st.lists(st.one_of(st.integers(1, 20), st.integers(1, 9000)), min_size=1, max_size=5).map(
    tuple
)


REASONS = {
    "truncated",
    "trailing-data",
    "too-large",
    "bad-version",
    "bad-density",
    "bad-tensor-count",
    "bad-checksum",
    "bad-centroids",
    "bad-counts",
    "bad-padding",
    "bad-stream",
    "bad-stream-size",
    "bad-window",
    "bad-gaps",
    "index-out-of-range",
    "bad-chunk",
}


def make_delta(layout: Layout = LAYOUT, kept_per_chunk: int = 64, seed: int = 1) -> SparseDelta:
    error = torch.randn(layout.total, generator=torch.Generator().manual_seed(seed))
    return select(error, layout, kept_per_chunk)


def with_streams(
    delta: SparseDelta, *, gaps: bytes | None = None, magnitudes: bytes | None = None
) -> bytes:
    """The frame of a delta with another compressed gap stream or magnitude plane in it."""
    frame = parse_frame(encode(delta), delta.layout)
    middle = frame.gap_bytes + frame.magnitude_bytes
    gaps = frame.body[: frame.gap_bytes] if gaps is None else gaps
    magnitudes = frame.body[frame.gap_bytes : middle] if magnitudes is None else magnitudes
    changed: Frame = replace(
        frame,
        gap_bytes=len(gaps),
        magnitude_bytes=len(magnitudes),
        body=gaps + magnitudes + frame.body[middle:],
    )
    return pack_frame(changed, delta.layout)


def assert_equal(one: SparseDelta, other: SparseDelta) -> None:
    assert one.kept_per_chunk == other.kept_per_chunk
    for name in ("indices", "codes", "centroids", "counts"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert np.array_equal(left, right), name


def assert_is_sound(delta: SparseDelta) -> None:
    """What gossip relies on, whoever sent the delta."""
    layout = delta.layout
    kept = layout.kept(delta.kept_per_chunk)
    assert delta.indices.size == delta.codes.size == kept.sum()
    assert (np.diff(delta.indices) > 0).all()
    chunks = np.searchsorted(layout.chunk_offsets, delta.indices, side="right") - 1
    assert np.array_equal(np.bincount(chunks, minlength=kept.size), kept)
    assert delta.codes.max() <= 3
    assert np.isfinite(delta.centroids).all()
    assert (np.diff(delta.centroids, axis=1) >= 0).all()
    counted = np.bincount(delta.tensor_ids() * 4 + delta.codes, minlength=delta.counts.size)
    assert np.array_equal(counted.reshape(-1, 4), delta.counts)


@settings(max_examples=80, deadline=None)
@given(
    sizes,
    st.one_of(st.integers(1, CHUNK), st.sampled_from([1, 16, 64, CHUNK])),
    st.integers(0, 1000),
)
def test_a_delta_comes_back_as_it_was(
    tensor_sizes: tuple[int, ...], kept_per_chunk: int, seed: int
) -> None:
    delta = make_delta(Layout(tensor_sizes), kept_per_chunk, seed)
    received = decode(encode(delta), delta.layout)
    assert_equal(received, delta)
    assert_is_sound(received)


def test_tensors_know_their_values() -> None:
    delta = make_delta(Layout((3, 5000)), 64)
    edges = delta.layout.offsets
    expected = np.searchsorted(edges, delta.indices, side="right") - 1
    assert np.array_equal(delta.tensor_ids(), expected)
    plain = [delta.centroids[t, c] for t, c in zip(delta.tensor_ids(), delta.codes, strict=True)]
    assert np.array_equal(delta.values(), np.array(plain))
    scaled = delta.values(np.array([1.0, 0.1]))
    assert np.array_equal(scaled[expected == 0], delta.values()[expected == 0])
    assert scaled[-1] == np.float32(float(delta.values()[-1]) * 0.1)


def test_a_kept_value_costs_less_than_nine_and_a_half_bits() -> None:
    delta = make_delta(LARGE, 64)
    assert 8 * len(encode(delta)) / delta.indices.size < 9.5


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_a_peer_writes_is_refused_or_sound(data: st.DataObject) -> None:
    """Bytes changed at will under a valid checksum never do more than raise FrameError."""
    covered = bytearray(encode(make_delta())[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        covered[data.draw(st.integers(0, len(covered) - 1))] = data.draw(st.integers(0, 255))
    sealed = bytes(covered) + struct.pack("<I", zlib.crc32(covered))
    reason = None
    try:
        delta = decode(sealed, LAYOUT)
    except FrameError as error:
        reason = error.reason
    if reason is None:
        assert_is_sound(delta)
    else:
        assert reason in REASONS


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(FrameError):
        decode(noise, LAYOUT)


def moved(delta: SparseDelta, value: int, position: int) -> bytes:
    indices = delta.indices.copy()
    indices[value] = position
    assert (np.diff(indices) > 0).all()
    return with_streams(delta, gaps=compress(gaps_to_bytes(indices)))


def test_a_value_in_the_neighbouring_chunk_is_refused() -> None:
    delta = make_delta()
    # The last value of chunk 0 moves to the first free place of chunk 1.
    assert delta.indices[64] > CHUNK
    with pytest.raises(FrameError) as refusal:
        decode(moved(delta, 63, CHUNK), LAYOUT)
    assert refusal.value.reason == "bad-chunk"


def test_a_position_behind_the_vector_is_refused() -> None:
    delta = make_delta()
    with pytest.raises(FrameError) as refusal:
        decode(moved(delta, -1, LAYOUT.total), LAYOUT)
    assert refusal.value.reason == "index-out-of-range"


def test_another_number_of_positions_is_refused() -> None:
    delta = make_delta()
    stream = gaps_to_bytes(delta.indices)
    for changed, reason in ((stream + b"\x00", "bad-gaps"), (stream[:-1], "bad-stream-size")):
        with pytest.raises(FrameError) as refusal:
            decode(with_streams(delta, gaps=compress(changed)), LAYOUT)
        assert refusal.value.reason == reason


def test_endless_escapes_do_not_overflow() -> None:
    delta = make_delta()
    most = 80 + (LAYOUT.total - 80) // 255
    with pytest.raises(FrameError) as refusal:
        decode(with_streams(delta, gaps=compress(b"\xff" * most)), LAYOUT)
    assert refusal.value.reason == "bad-gaps"
    with pytest.raises(FrameError) as refusal:
        decode(with_streams(delta, gaps=compress(b"\xff" * (most + 1))), LAYOUT)
    assert refusal.value.reason == "bad-stream-size"


def test_a_magnitude_plane_of_another_length_is_refused() -> None:
    for size in (9, 11):
        with pytest.raises(FrameError) as refusal:
            decode(with_streams(make_delta(), magnitudes=compress(bytes(size))), LAYOUT)
        assert refusal.value.reason == "bad-stream-size"


def test_codes_must_be_those_that_were_counted() -> None:
    with pytest.raises(FrameError) as refusal:
        decode(with_streams(make_delta(), magnitudes=compress(b"\xff" * 10)), LAYOUT)
    assert refusal.value.reason == "bad-counts"


def zstd_bomb(*, declared: int | None, window_log: int = 27) -> bytes:
    """A gibibyte of zeros in 32 KiB: 8192 run-length blocks of 128 KiB."""
    header = bytes.fromhex("28b52ffd") + bytes([0xC0 if declared else 0, (window_log - 10) << 3])
    header += declared.to_bytes(8, "little") if declared else b""
    block, last = ((128 << 10) << 3 | 1 << 1 | end for end in (0, 1))
    return (
        header
        + (block.to_bytes(3, "little") + b"\x00") * 8191
        + last.to_bytes(3, "little")
        + b"\x00"
    )


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        pytest.param(zstd_bomb(declared=1 << 30), "bad-stream-size", id="declared"),
        pytest.param(zstd_bomb(declared=None), "bad-stream-size", id="undeclared"),
        pytest.param(zstd_bomb(declared=160_000), "bad-window", id="window"),
        pytest.param(zstd_bomb(declared=160_000, window_log=18), "bad-stream", id="lying"),
        pytest.param(compress(bytes(1 << 28)), "bad-stream-size", id="honest"),
    ],
)
def test_a_bomb_is_refused_at_once_and_in_little_memory(bomb: bytes, reason: str) -> None:
    delta = make_delta(LARGE, 64)
    frame = with_streams(delta, gaps=bomb)

    def refuse() -> float:
        start = time.perf_counter()
        with pytest.raises(FrameError) as refusal:
            decode(frame, LARGE)
        assert refusal.value.reason == reason
        return time.perf_counter() - start

    # The quickest of three, since the machine has other things to do.
    assert min(refuse() for _ in range(3)) < 0.050
    tracemalloc.start()
    refuse()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * MEBIBYTE


def test_decoding_takes_little_more_than_what_it_returns() -> None:
    frame = encode(make_delta(LARGE, 64))
    kept = int(LARGE.kept(64).sum())
    tracemalloc.start()
    decode(frame, LARGE)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * kept


def test_a_delta_that_contradicts_itself_is_our_own_mistake() -> None:
    delta = make_delta()
    with pytest.raises(AssertionError):
        encode(replace(delta, counts=delta.counts + 1))
    with pytest.raises(AssertionError):
        encode(replace(delta, centroids=delta.centroids + 1))
