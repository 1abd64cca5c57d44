"""The three streams of a frame's body: gaps, magnitude plane, sign plane.

Sorted positions become gaps, and gaps become bytes with 255 as "skip 255 and go on". Positions
chosen by magnitude are close to uniform, so gaps are close to geometric, and a geometric variable
written this way is a sequence of independent bytes, escapes included: zstd's Huffman stage alone
then comes within a few hundredths of a bit of the entropy at every density. Signs are fair coins
and stay raw; only about one kept value in five is large, so the plane of magnitudes shrinks to
three quarters (docs/adr/0004-value-streams.md has the figures).
"""

import numpy as np
import zstandard
from numpy.typing import NDArray

from shoal.compression.frame import FrameError

# Matches in noise cost more than they save: the fastest strategy with the longest shortest match
# finds the fewest, and packs as well as level 3 or better at every density (ADR 0004).
COMPRESSION = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7
)
MAX_WINDOW_BYTES = 8 << 20
ESCAPE = 255


def gaps_to_bytes(indices: NDArray[np.int64]) -> bytes:
    """Strictly ascending flat positions [K] -> one byte per gap, escapes in front of wide ones."""
    gaps = np.diff(indices, prepend=-1)
    gaps -= 1
    # Few gaps are wide, so the division is done for those alone.
    wide = np.flatnonzero(gaps >= ESCAPE)
    escapes = gaps[wide] // ESCAPE
    gaps[wide] -= ESCAPE * escapes
    last_bytes = np.ones(gaps.size, dtype=np.int64)
    last_bytes[wide] += escapes
    np.cumsum(last_bytes, out=last_bytes)
    stream = np.full(int(last_bytes[-1]), ESCAPE, dtype=np.uint8)
    stream[last_bytes - 1] = gaps
    return stream.tobytes()


def bytes_to_gaps(stream: bytes, kept: int, total: int) -> NDArray[np.int64]:
    """The inverse: positions int64 [kept], strictly ascending and below `total`.

    Raises FrameError("bad-gaps") when the stream holds another number of values, and
    FrameError("index-out-of-range") when it runs past the end of the vector.
    """
    raw = np.frombuffer(stream, dtype=np.uint8)
    # A byte below 255 finishes a value and takes the position itself along: one step more.
    finishes = raw != ESCAPE
    if int(np.count_nonzero(finishes)) != kept or not finishes[-1]:
        raise FrameError("bad-gaps", f"the gap stream does not hold {kept} values")
    ends: NDArray[np.int64] = np.cumsum(raw, dtype=np.int64)[finishes]
    ends += np.arange(kept)
    if ends[-1] >= total:
        raise FrameError("index-out-of-range", f"position {ends[-1]} of {total}")
    return ends


def codes_to_planes(codes: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Codes [K] (0 -hi, 1 -lo, 2 +lo, 3 +hi) -> (magnitude plane, sign plane), 8 values a byte.

    A bit of the magnitude plane is 1 for hi, a bit of the sign plane is 1 for plus.
    """
    signs = codes >> 1
    large = (codes & 1) ^ signs ^ 1
    return (
        np.packbits(large, bitorder="little").tobytes(),
        np.packbits(signs, bitorder="little").tobytes(),
    )


def planes_to_codes(magnitude_plane: bytes, sign_plane: bytes, kept: int) -> NDArray[np.uint8]:
    """The inverse: uint8 [kept]. Raises FrameError("bad-padding") when a spare bit is set."""
    if kept % 8 and (magnitude_plane[-1] | sign_plane[-1]) >> kept % 8:
        raise FrameError("bad-padding", "a bit behind the last value is set")
    large = _unpack(magnitude_plane, kept)
    signs = _unpack(sign_plane, kept)
    codes = large ^ signs
    codes ^= 1
    codes |= signs << 1
    return codes


def compress(stream: bytes) -> bytes:
    """One zstd frame that declares its content size."""
    return zstandard.ZstdCompressor(compression_params=COMPRESSION).compress(stream)


def decompress(data: bytes, *, at_least: int, at_most: int) -> bytes:
    """Expand one zstd frame to between `at_least` and `at_most` bytes, or raise FrameError.

    python-zstandard's `max_output_size` is ignored whenever the frame declares its content size,
    so the declaration is checked first. It then is the size of the one output buffer, which the
    decoder cannot leave: a frame that expands to more fails there.
    """
    try:
        parameters = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise FrameError("bad-stream", "a stream is not a zstd frame") from error
    # An undeclared size reads as 2^64 - 1, so it is refused here as well.
    if not at_least <= parameters.content_size <= at_most:
        raise FrameError("bad-stream-size", f"a stream declares {parameters.content_size} bytes")
    if parameters.window_size > MAX_WINDOW_BYTES:
        raise FrameError("bad-window", f"a stream wants a window of {parameters.window_size} bytes")
    try:
        stream = zstandard.ZstdDecompressor().decompress(
            data, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise FrameError("bad-stream", "a stream does not decompress") from error
    if len(stream) != parameters.content_size:
        raise FrameError("bad-stream-size", "a stream is shorter than it declares")
    return stream


def _unpack(plane: bytes, kept: int) -> NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(plane, dtype=np.uint8), count=kept, bitorder="little")
