"""The envelope: every rule of README.md has somebody who breaks it."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch

from shoal.compression.codec import SparseDelta, decode, encode
from shoal.compression.frame import (
    HEADER,
    FrameError,
    max_frame_bytes,
    parse_frame,
    tensor_norms,
)
from shoal.compression.layout import Layout
from shoal.compression.select import select

# Two tensors, 64 of 4096 kept: 79 + 1 values. Magnitudes start at byte 16, lo before hi; counts
# take 3 * (7 + 1) bits, so 3 bytes from byte 32.
LAYOUT = Layout((5000, 3))
COUNTS_AT = HEADER.size + 8 * 2
BODY_AT = COUNTS_AT + 3


def make_delta(layout: Layout = LAYOUT, kept_per_chunk: int = 64, seed: int = 1) -> SparseDelta:
    error = torch.randn(layout.total, generator=torch.Generator().manual_seed(seed))
    return select(error, layout, kept_per_chunk)


def seal(covered: bytes) -> bytes:
    """What a peer does who means harm: the checksum is right."""
    return covered + struct.pack("<I", zlib.crc32(covered))


def put(frame: bytes, at: int, new: bytes) -> bytes:
    """The frame with other bytes from `at` on, and the checksum to match."""
    return seal(frame[:at] + new + frame[at + len(new) : -4])


def reason_of(data: bytes, *, kept_per_chunk: int | None = None) -> str:
    with pytest.raises(FrameError) as refusal:
        decode(data, LAYOUT, kept_per_chunk=kept_per_chunk)
    return refusal.value.reason


FRAME = encode(make_delta())


def test_the_header_tells_the_norms_without_decompressing() -> None:
    delta = make_delta()
    frame = parse_frame(FRAME, LAYOUT)
    assert frame.kept_per_chunk == 64
    assert np.array_equal(frame.centroids, delta.centroids)
    assert np.array_equal(frame.counts, delta.counts)
    assert frame.counts.sum(axis=1).tolist() == LAYOUT.kept_per_tensor(64).tolist()
    values = delta.values().astype(np.float64)
    for tensor, norm in enumerate(tensor_norms(frame)):
        assert norm == pytest.approx(np.linalg.norm(values[delta.tensor_ids() == tensor]))


def test_norms_are_plain_fp64_arithmetic() -> None:
    frame = parse_frame(FRAME, LAYOUT)
    for centroids, counts, norm in zip(
        frame.centroids.tolist(), frame.counts.tolist(), tensor_norms(frame), strict=True
    ):
        square = 0.0
        for centroid, count in zip(centroids, counts, strict=True):
            square += count * (centroid * centroid)
        assert norm == math.sqrt(square)


@pytest.mark.parametrize("length", [0, 1, HEADER.size - 1, HEADER.size + 3])
def test_less_than_a_header_is_truncated(length: int) -> None:
    assert reason_of(FRAME[:length]) == "truncated"


def test_every_cut_is_truncated() -> None:
    reasons = {reason_of(FRAME[:length]) for length in range(len(FRAME))}
    assert reasons == {"truncated"}


@pytest.mark.parametrize("extra", [b"\x00", FRAME])
def test_anything_behind_the_frame_is_trailing_data(extra: bytes) -> None:
    expected = "trailing-data" if len(extra) == 1 else "too-large"
    assert reason_of(FRAME + extra) == expected


def test_every_single_flipped_bit_is_noticed() -> None:
    reasons = set()
    for bit in range(8 * len(FRAME)):
        damaged = bytearray(FRAME)
        damaged[bit // 8] ^= 1 << bit % 8
        reasons.add(reason_of(bytes(damaged)))
    in_the_header = {"bad-version", "bad-density", "bad-tensor-count", "too-large"}
    assert reasons <= in_the_header | {"truncated", "trailing-data", "bad-checksum"}
    assert "bad-checksum" in reasons


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(put(FRAME, 0, b"\x02"), "bad-version", id="version-2"),
        pytest.param(put(FRAME, 1, b"\x01"), "bad-version", id="second-byte"),
        pytest.param(put(FRAME, 2, struct.pack("<H", 0)), "bad-density", id="nothing-kept"),
        pytest.param(put(FRAME, 2, struct.pack("<H", 4097)), "bad-density", id="4097-kept"),
        pytest.param(put(FRAME, 2, struct.pack("<H", 65)), "truncated", id="65-kept"),
        pytest.param(put(FRAME, 4, struct.pack("<I", 1)), "bad-tensor-count", id="1-tensor"),
        pytest.param(put(FRAME, 4, b"\xff" * 4), "bad-tensor-count", id="4-billion-tensors"),
        pytest.param(put(FRAME, 8, b"\xff" * 4), "truncated", id="gap-stream-too-long"),
        pytest.param(put(FRAME, 12, b"\xff" * 4), "truncated", id="plane-too-long"),
        pytest.param(put(FRAME, 8, b"\x00" * 4), "trailing-data", id="gap-stream-too-short"),
        pytest.param(
            put(FRAME, 16, struct.pack("<f", math.nan)), "bad-centroids", id="nan-magnitude"
        ),
        pytest.param(
            put(FRAME, 20, struct.pack("<f", math.inf)), "bad-centroids", id="infinite-magnitude"
        ),
        pytest.param(put(FRAME, 16, struct.pack("<f", -0.0)), "bad-centroids", id="negative-zero"),
        pytest.param(
            put(FRAME, 16, struct.pack("<f", -1.0)), "bad-centroids", id="negative-magnitude"
        ),
        pytest.param(put(FRAME, 16, struct.pack("<ff", 2.0, 1.0)), "bad-centroids", id="unordered"),
        pytest.param(put(FRAME, COUNTS_AT, b"\xff" * 3), "bad-counts", id="more-than-kept"),
    ],
)
def test_a_broken_rule_is_seen_before_anything_is_decompressed(data: bytes, reason: str) -> None:
    with pytest.raises(FrameError) as refusal:
        parse_frame(data, LAYOUT)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(
            # The last bit of how many are -lo, which is 1: one of them becomes a +hi.
            put(FRAME, COUNTS_AT, bytes([FRAME[COUNTS_AT] ^ 0x80])),
            "bad-counts",
            id="miscounted",
        ),
        pytest.param(put(FRAME, BODY_AT, b"\x00"), "bad-stream", id="gaps-not-zstd"),
    ],
)
def test_what_only_the_streams_can_tell_is_refused_after_them(data: bytes, reason: str) -> None:
    parse_frame(data, LAYOUT)
    assert reason_of(data) == reason


def test_spare_bits_behind_the_counts_must_be_zero() -> None:
    layout = Layout((3,))
    frame = encode(make_delta(layout))
    counts_at = HEADER.size + 8
    with pytest.raises(FrameError) as refusal:
        parse_frame(put(frame, counts_at, bytes([frame[counts_at] | 0x80])), layout)
    assert refusal.value.reason == "bad-padding"


def test_the_epoch_may_prescribe_the_density() -> None:
    assert decode(FRAME, LAYOUT, kept_per_chunk=64).kept_per_chunk == 64
    assert reason_of(FRAME, kept_per_chunk=65) == "bad-density"


def test_a_frame_of_another_model_is_refused() -> None:
    for other in (Layout((5000,)), Layout((5000, 3, 1)), Layout((5000, 300)), Layout((9000, 3))):
        with pytest.raises(FrameError):
            decode(FRAME, other)


@pytest.mark.parametrize("sizes", [(1,), (7, 1), (5000, 3), (70_000,)])
@pytest.mark.parametrize("kept_per_chunk", [1, 16, 64, 1024, 4096])
def test_no_frame_is_larger_than_the_limit(sizes: tuple[int, ...], kept_per_chunk: int) -> None:
    layout = Layout(sizes)
    limit = max_frame_bytes(layout, kept_per_chunk)
    for seed in range(3):
        assert len(encode(make_delta(layout, kept_per_chunk, seed))) <= limit


def test_more_bytes_than_any_frame_of_that_density_are_not_looked_at() -> None:
    limit = max_frame_bytes(LAYOUT, 64)
    assert reason_of(FRAME + bytes(limit + 1 - len(FRAME))) == "too-large"
    assert reason_of(FRAME + bytes(limit - len(FRAME))) == "trailing-data"
