"""How small and how fast the codec is: python -m benchmarks.codec [--quick], JSON lines.

Trains the default model for a few rounds of AdamW on the built-in text, with one residual per
density, so that what is compressed is what a node compresses. Sizes count every byte of the frame
and stand beside the bound: log2 of the number of ways to keep k of a chunk, per kept value, plus
the entropy of the codes. Times are those of a ten-million-parameter delta on one thread, drawn
from the magnitudes of the trained one, beside the copy of such a vector in the same process.

Exits with 1 when k = 64 of 4096 costs more than 8.6 bits per kept value.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta, decode, encode
from shoal.compression.frame import parse_frame
from shoal.compression.layout import Layout
from shoal.compression.residual import Residual
from shoal.compression.select import select
from shoal.compression.streams import codes_to_planes, compress
from shoal.training.data import load
from shoal.training.model import FlatModel, build_model, default_config
from shoal.training.tokenizer import ByteTokenizer

DENSITIES = (16, 32, 64, 128, 256)
LIMIT_BITS = 8.6
BETA = 0.95
# A Llama of 10.0 M parameters: hidden 320, eight layers, intermediate 864.
LARGE = Layout((256 * 320, *(8 * (4 * (320 * 320,) + 3 * (864 * 320,) + 2 * (320,))), 320))


@dataclass
class Tally:
    """Bytes and bits of one density, summed over all rounds."""

    kept: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, delta: SparseDelta, data: bytes) -> None:
        """Count one encoded delta, part by part, all in bits."""
        frame = parse_frame(data, delta.layout)
        signs = (delta.codes.size + 7) // 8
        magnitudes, _ = codes_to_planes(delta.codes)
        assert len(compress(magnitudes)) == frame.magnitude_bytes
        bits = {
            "frame": 8 * len(data),
            "header": 8 * (len(data) - len(frame.body)),
            "gaps": 8 * frame.gap_bytes,
            "values": 8 * (frame.magnitude_bytes + signs),
            "values_packed": 8 * min(len(compress(pack(delta.codes))), len(pack(delta.codes))),
            "gaps_bound": position_bits(delta),
            "values_entropy": code_bits(delta),
        }
        self.kept += delta.indices.size
        for name, count in bits.items():
            self.sums[name] = self.sums.get(name, 0.0) + count

    def per_value(self, name: str) -> float:
        """Bits per kept value."""
        return self.sums[name] / self.kept


def pack(codes: NDArray[np.uint8]) -> bytes:
    """Four 2-bit codes a byte: what the two planes compete with."""
    padded = np.zeros((codes.size + 3) // 4 * 4, dtype=np.uint8)
    padded[: codes.size] = codes
    first, second, third, fourth = padded.reshape(-1, 4).T
    packed = first | second << 2 | third << 4 | fourth << 6
    return packed.astype(np.uint8).tobytes()


def position_bits(delta: SparseDelta) -> float:
    """log2 of the number of ways to choose the kept positions, chunk by chunk."""
    sizes = np.diff(delta.layout.chunk_offsets).tolist()
    kept = delta.layout.kept(delta.kept_per_chunk).tolist()
    nats = sum(
        math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
        for size, count in zip(sizes, kept, strict=True)
    )
    return nats / math.log(2)


def code_bits(delta: SparseDelta) -> float:
    """Entropy of the codes, all tensors taken together."""
    shares = np.bincount(delta.codes, minlength=4) / delta.codes.size
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum() * delta.codes.size)


def train(rounds: int, steps: int) -> tuple[dict[int, Tally], torch.Tensor]:
    """Sizes per density, and the last error vector at k = 64."""
    torch.manual_seed(1)
    model = FlatModel(build_model(default_config(), seed=1))
    corpus = load("builtin:0/4", ByteTokenizer())
    layout = Layout(tuple(math.prod(shape) for _, shape in model.names_and_shapes()))
    optimizer = torch.optim.AdamW(
        model.module.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1
    )
    residuals = {k: Residual(torch.zeros(layout.total), BETA) for k in DENSITIES}
    tallies = {k: Tally() for k in DENSITIES}
    scales = np.ones(len(layout.sizes))
    for number in range(rounds):
        start = model.flat.clone()
        for step in range(steps):
            windows = corpus.batch(seed=1, round=number, step=step, batch=8, sequence=128)
            model.gradient.zero_()
            loss = model.loss(windows)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            optimizer.step()
        print(f"round {number}: loss {loss.item():.3f}", file=sys.stderr)
        for k, residual in residuals.items():
            residual.absorb(start - model.flat)
            error = residual.error.clone()
            delta = select(residual.error, layout, k)
            tallies[k].add(delta, encode(delta))
            residual.subtract(delta, scales)
            if k == 64:
                last_error = error
    return tallies, last_error


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The quickest of some runs: what the machine can do, not what else it was doing."""
    quickest = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        quickest = min(quickest, time.perf_counter() - start)
    return 1e3 * quickest


def time_large(sample: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Times of a ten-million-parameter delta with the magnitudes of `sample`, one thread."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(2)
    error = sample[torch.randint(sample.numel(), (LARGE.total,), generator=generator)]
    delta = select(error, LARGE, 64)
    data = encode(delta)
    target = torch.empty_like(error)
    anchor = torch.zeros(LARGE.total, dtype=torch.int32)
    increments = torch.arange(4 * len(LARGE.sizes), dtype=torch.int32)

    def apply() -> None:
        ids = torch.from_numpy(delta.table_ids())
        anchor.index_add_(0, torch.from_numpy(delta.indices), increments[ids], alpha=-1)

    copy_ms = milliseconds(lambda: target.copy_(error), repeats)
    select_ms = milliseconds(lambda: select(error, LARGE, 64), repeats)
    frame_ms = milliseconds(lambda: encode(delta), repeats)
    decode_ms = milliseconds(lambda: decode(data, LARGE), repeats)
    apply_ms = milliseconds(apply, repeats)
    times = {
        "copy_ms": copy_ms,
        "select_ms": select_ms,
        "frame_ms": frame_ms,
        "encode_ms": select_ms + frame_ms,
        "decode_ms": decode_ms,
        "apply_ms": apply_ms,
        "encode_copies": (select_ms + frame_ms) / copy_ms,
        "decode_apply_copies": (decode_ms + apply_ms) / copy_ms,
    }
    rounded = {name: round(value, 2) for name, value in times.items()}
    return {"measure": "time", "parameters": LARGE.total, "kept_per_chunk": 64, **rounded}


def main() -> int:
    """Print one line per density and one with times; 1 when the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats")
    quick = parser.parse_args().quick
    rounds, steps = (2, 8) if quick else (6, 15)
    tallies, error = train(rounds, steps)
    for k, tally in tallies.items():
        bits = {f"{name}_bits": round(tally.per_value(name), 3) for name in tally.sums}
        bound = tally.per_value("gaps_bound") + tally.per_value("values_entropy")
        times_smaller = 32 * error.numel() * rounds / tally.sums["frame"]
        line = {
            "measure": "size",
            "kept_per_chunk": k,
            **bits,
            "bound_bits": round(bound, 3),
            "times_smaller_than_fp32": round(times_smaller, 1),
        }
        print(json.dumps(line), flush=True)
    print(json.dumps(time_large(error, 5 if quick else 25)), flush=True)
    measured = tallies[64].per_value("frame")
    if measured > LIMIT_BITS:
        print(f"k = 64 costs {measured:.2f} bits, more than {LIMIT_BITS}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
