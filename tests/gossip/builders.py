"""Small models, deltas and headers for the tests, made from hashes so that they never change."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.compression.codec import SparseDelta
from shoal.gossip.anchor import Anchor
from shoal.gossip.delta import DeltaHeader
from shoal.gossip.parameters import EpochParameters, genesis_parameters
from shoal.gossip.schema import ModelSchema, TensorSchema

MESH = b"M" * 32
# Two chunks, two scales, a tensor shorter than a chunk and a scalar.
SCHEMA = ModelSchema(
    (
        TensorSchema("embed.weight", (66, 64), 28),
        TensorSchema("norm.weight", (64,), 24),
        TensorSchema("scale", (), 28),
        TensorSchema("head.weight", (3, 100), 28),
    )
)


def member(number: int) -> bytes:
    """A member id; ids ascend with their numbers."""
    return bytes([number]) * 32


def members(count: int) -> list[tuple[bytes, int, int]]:
    """Equal members: (id, shard tokens, share permille)."""
    return [(member(number), 1000, 1000) for number in range(1, count + 1)]


def hashed_words(label: str, count: int) -> NDArray[np.uint32]:
    """`count` numbers that look random and are the same on every machine, for ever."""
    data = hashlib.shake_128(label.encode()).digest(4 * count)
    return np.frombuffer(data, dtype="<u4").astype(np.uint32)


def hashed_weights(label: str, schema: ModelSchema = SCHEMA) -> torch.Tensor:
    """float32 [P] between -0.5 and 0.5."""
    words = hashed_words(label, schema.layout.total)
    return torch.from_numpy((words / 2**32 - 0.5).astype(np.float32))


def hashed_anchor(label: str, schema: ModelSchema = SCHEMA) -> Anchor:
    return Anchor.from_weights(schema, hashed_weights(label, schema))


def brimful_anchor(label: str, schema: ModelSchema = SCHEMA) -> Anchor:
    """Values all over int32, half of them where the next delta may wrap them around."""
    words = hashed_words(label, schema.layout.total)
    near_the_edge = 2**31 - 1 - words % 2**20
    values = np.where(words % 2 == 0, words, near_the_edge).astype(np.uint32).view(np.int32)
    return Anchor(schema, torch.from_numpy(values.copy()))


def hashed_delta(
    label: str,
    schema: ModelSchema = SCHEMA,
    *,
    kept_per_chunk: int = 256,
    size: float = 2.0**-10,
) -> SparseDelta:
    """A valid delta: positions and codes from a hash, magnitudes about `size`."""
    layout = schema.layout
    order = hashed_words(f"{label} order", layout.total)
    indices = []
    offsets = layout.chunk_offsets.tolist()
    for start, end, kept in zip(
        offsets, offsets[1:], layout.kept(kept_per_chunk).tolist(), strict=False
    ):
        chosen = np.argsort(order[start:end], kind="stable")[:kept]
        indices.append(np.sort(chosen) + start)
    positions = np.concatenate(indices).astype(np.int64)
    codes = (hashed_words(f"{label} codes", positions.size) % 4).astype(np.uint8)
    tensors = len(layout.sizes)
    low = (hashed_words(f"{label} low", tensors) % 1000 + 1) / 1024 * size
    high = low + (hashed_words(f"{label} high", tensors) % 1000) / 1024 * size
    centroids = np.stack((-high, -low, low, high), axis=1).astype(np.float32)
    ids = np.repeat(np.arange(tensors), layout.kept_per_tensor(kept_per_chunk)) * 4 + codes
    counts = np.bincount(ids, minlength=4 * tensors).reshape(tensors, 4).astype(np.int64)
    return SparseDelta(layout, kept_per_chunk, positions, codes, centroids, counts)


def header(
    sender: bytes, sequence: int, *, height: int = 0, tokens: int = 100, frame: str = ""
) -> DeltaHeader:
    """A header over the hash of `frame`: another word makes a rival under the same number."""
    return DeltaHeader(
        mesh_id=MESH,
        sender=sender,
        sequence=sequence,
        height=height,
        steps=8,
        tokens=tokens,
        frame_bytes=1000,
        frame_sha256=hashlib.sha256(frame.encode()).digest(),
    )


def epoch(
    height: int, count: int, *, schema: ModelSchema = SCHEMA, alpha: float = 1.0
) -> EpochParameters:
    """Parameters of `count` equal members at some height."""
    start = genesis_parameters(members(count), schema, kept_per_chunk=256, alpha=alpha)
    return EpochParameters(
        height, start.alpha, start.weights, start.clip, start.kept_per_chunk, 0, start.trust
    )
