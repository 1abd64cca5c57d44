"""The streams of a frame's body, and what a hostile one gets to hear."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shoal.compression.frame import FrameError
from shoal.compression.streams import (
    bytes_to_gaps,
    codes_to_planes,
    compress,
    decompress,
    gaps_to_bytes,
    planes_to_codes,
)

ZSTD_MAGIC = bytes.fromhex("28b52ffd")
MEBIBYTE = 1 << 20


def zstd_frame(expands_to: int, *, declared: int | None, window_log: int = 17) -> bytes:
    """A hand-made zstd frame of zeros in run-length blocks: four bytes for every 128 KiB."""
    descriptor = 0xC0 if declared is not None else 0x00
    header = ZSTD_MAGIC + bytes([descriptor, (window_log - 10) << 3])
    if declared is not None:
        header += declared.to_bytes(8, "little")
    blocks = []
    while expands_to > 0:
        size = min(expands_to, 128 << 10)
        expands_to -= size
        last = expands_to == 0
        blocks.append((size << 3 | 1 << 1 | last).to_bytes(3, "little") + b"\x00")
    return header + b"".join(blocks)


def test_a_gap_is_one_byte_and_255_means_go_on() -> None:
    indices = np.array([0, 1, 256, 257 + 255, 513 + 1000])
    expected = bytes([0, 0, 254, 255, 0, 255, 255, 255, 235])
    assert gaps_to_bytes(indices) == expected
    assert bytes_to_gaps(expected, 5, 2000).tolist() == indices.tolist()


@given(st.sets(st.integers(0, 100_000), min_size=1, max_size=300))
def test_positions_survive_as_gaps(positions: set[int]) -> None:
    indices = np.array(sorted(positions))
    stream = gaps_to_bytes(indices)
    assert np.array_equal(bytes_to_gaps(stream, indices.size, int(indices[-1]) + 1), indices)


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x01\x01", "bad-gaps"),  # one value too few
        (b"\x01\x01\x01\x01", "bad-gaps"),  # one too many
        (b"\x01\x01\x01\xff", "bad-gaps"),  # an escape that leads nowhere
        (b"\xff\xff\xff", "bad-gaps"),
        (b"\x01\x01\x60", "index-out-of-range"),  # 1, 3, 100
        (b"\x01\x01\xff\xff\x00", "index-out-of-range"),
    ],
)
def test_gaps_that_are_no_three_positions_below_100(stream: bytes, reason: str) -> None:
    with pytest.raises(FrameError) as refusal:
        bytes_to_gaps(stream, 3, 100)
    assert refusal.value.reason == reason


def test_the_last_position_of_the_vector_is_still_in_range() -> None:
    assert bytes_to_gaps(b"\x01\x01\x5f", 3, 100).tolist() == [1, 3, 99]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=70))
def test_codes_survive_as_two_planes(values: list[int]) -> None:
    codes = np.array(values, dtype=np.uint8)
    magnitudes, signs = codes_to_planes(codes)
    assert [magnitudes[i // 8] >> i % 8 & 1 for i in range(codes.size)] == [
        code in (0, 3) for code in values
    ]
    assert [signs[i // 8] >> i % 8 & 1 for i in range(codes.size)] == [code >= 2 for code in values]
    assert planes_to_codes(magnitudes, signs, codes.size).tolist() == values


@pytest.mark.parametrize("planes", [(b"\x08", b"\x00"), (b"\x00", b"\x80")])
def test_spare_bits_must_be_zero(planes: tuple[bytes, bytes]) -> None:
    with pytest.raises(FrameError) as refusal:
        planes_to_codes(*planes, 3)
    assert refusal.value.reason == "bad-padding"


@given(st.binary(min_size=1, max_size=2000))
def test_what_is_compressed_declares_its_size_and_comes_back(stream: bytes) -> None:
    data = compress(stream)
    assert zstandard.get_frame_parameters(data).content_size == len(stream)
    assert decompress(data, at_least=len(stream), at_most=len(stream)) == stream


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "bad-stream", id="empty"),
        pytest.param(b"not zstd at all", "bad-stream", id="not-zstd"),
        pytest.param(ZSTD_MAGIC, "bad-stream", id="cut-in-the-header"),
        pytest.param(compress(bytes(range(200)))[:-1], "bad-stream", id="cut-short"),
        pytest.param(compress(bytes(200)) + b"\x00", "bad-stream", id="trailing-byte"),
        pytest.param(compress(bytes(200)) * 2, "bad-stream", id="two-frames"),
        pytest.param(compress(bytes(2000)), "bad-stream-size", id="honestly-too-long"),
        pytest.param(compress(bytes(3)), "bad-stream-size", id="honestly-too-short"),
        pytest.param(zstd_frame(200, declared=None), "bad-stream-size", id="undeclared"),
        pytest.param(
            zstd_frame(1024 * MEBIBYTE, declared=None), "bad-stream-size", id="undeclared-bomb"
        ),
        pytest.param(
            zstd_frame(1024 * MEBIBYTE, declared=1024 * MEBIBYTE),
            "bad-stream-size",
            id="declared-bomb",
        ),
        pytest.param(zstd_frame(1024 * MEBIBYTE, declared=200), "bad-stream", id="lying-bomb"),
        pytest.param(zstd_frame(100, declared=200), "bad-stream", id="shorter-than-declared"),
        pytest.param(
            zstd_frame(200, declared=200, window_log=30), "bad-window", id="oversized-window"
        ),
        pytest.param(bytes.fromhex("502a4d18c8000000") + bytes(200), "bad-stream", id="skippable"),
    ],
)
def test_a_hostile_stream_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FrameError) as refusal:
        decompress(data, at_least=200, at_most=1000)
    assert refusal.value.reason == reason


def test_the_hand_made_frame_is_otherwise_good() -> None:
    assert decompress(zstd_frame(200, declared=200), at_least=200, at_most=1000) == bytes(200)
