"""What the parameters of the model are: names, shapes, and where the binary point stands.

Every member must cut the flat parameter vector in the same places and read the same integers in
the same scale, so the schema is part of the genesis and its digest is bound into every Merkle
root of the anchor. A tensor's value is its int32 divided by 2 ** fraction_bits.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from struct import pack
from typing import Any, NamedTuple

from shoal.compression.layout import Layout
from shoal.gossip.errors import GossipError

# With MEMBERS_MAX of parameters.py, so that the parameters of an epoch always fit 64 KiB.
TENSORS_MAX = 2048
RANK_MAX = 8
PARAMETERS_MAX = 1 << 36
FRACTION_BITS_MAX = 30
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
DOMAIN = b"SHOAL-SCHEMA\x01"

# An anchor's values stay within +-2^30 (anchor.py), so 24 fraction bits reach 64 and 22 reach 256.
# Weights grow while they are trained, and a tensor beyond its scale ends the mesh: there is room
# for sixteen times what it starts with, or four times (docs/adr/0003).
FINE_FRACTION_BITS = 24
COARSE_FRACTION_BITS = 22
FINE_BELOW = 4.0
COARSE_BELOW = 64.0


def choose_fraction_bits(max_abs: float) -> int:
    """The scale for a tensor whose largest magnitude is `max_abs`: 24 or 22 fraction bits.

    Raises ValueError for a magnitude that is not finite or does not fit.
    """
    if not max_abs < COARSE_BELOW:
        raise ValueError(f"a weight of magnitude {max_abs} does not fit the integer anchor")
    return FINE_FRACTION_BITS if max_abs < FINE_BELOW else COARSE_FRACTION_BITS


class ScaleRun(NamedTuple):
    """Neighbouring tensors with one scale: flat positions start to end, exclusive."""

    start: int
    end: int
    fraction_bits: int


@dataclass(frozen=True, slots=True)
class TensorSchema:
    """One tensor: its name in the model, its shape, its fixed-point scale."""

    name: str
    shape: tuple[int, ...]
    fraction_bits: int

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise GossipError("bad-schema", f"tensor name {self.name[:80]!r}")
        if len(self.shape) > RANK_MAX or not all(1 <= d <= PARAMETERS_MAX for d in self.shape):
            raise GossipError("bad-schema", f"shape of {self.name}")
        if not 0 <= self.fraction_bits <= FRACTION_BITS_MAX:
            raise GossipError("bad-schema", f"fraction bits of {self.name}")

    @property
    def size(self) -> int:
        """Number of elements; a scalar has one."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelSchema:
    """All tensors of the model, in the order of the flat vector."""

    tensors: tuple[TensorSchema, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.tensors) <= TENSORS_MAX:
            raise GossipError("bad-schema", f"{len(self.tensors)} tensors")
        if len({tensor.name for tensor in self.tensors}) != len(self.tensors):
            raise GossipError("bad-schema", "two tensors share a name")
        if sum(tensor.size for tensor in self.tensors) > PARAMETERS_MAX:
            raise GossipError("bad-schema", "too many parameters")

    @cached_property
    def layout(self) -> Layout:
        """Where each tensor lies in the flat vector, in compression's terms."""
        return Layout(tuple(tensor.size for tensor in self.tensors))

    @cached_property
    def scale_runs(self) -> tuple[ScaleRun, ...]:
        """The flat vector in as few pieces of one scale as there are."""
        offsets = self.layout.offsets.tolist()
        runs = []
        first = 0
        for bits, group in groupby(tensor.fraction_bits for tensor in self.tensors):
            last = first + len(list(group))
            runs.append(ScaleRun(offsets[first], offsets[last], bits))
            first = last
        return tuple(runs)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the one fixed layout of this schema, 32 bytes."""
        pieces = [DOMAIN, pack(">I", len(self.tensors))]
        for tensor in self.tensors:
            name = tensor.name.encode()
            pieces.append(pack(">HBB", len(name), len(tensor.shape), tensor.fraction_bits))
            pieces.append(name)
            pieces.append(pack(f">{len(tensor.shape)}Q", *tensor.shape))
        return hashlib.sha256(b"".join(pieces)).digest()

    def to_json(self) -> list[dict[str, Any]]:
        """What `from_json` reads."""
        return [
            {"name": t.name, "shape": list(t.shape), "fraction_bits": t.fraction_bits}
            for t in self.tensors
        ]

    @classmethod
    def from_json(cls, content: object) -> "ModelSchema":
        """Check a parsed JSON list from anywhere; raises GossipError("bad-schema")."""
        if not isinstance(content, Sequence) or not 1 <= len(content) <= TENSORS_MAX:
            raise GossipError("bad-schema", "not a list of tensors")
        return cls(tuple(_parse_tensor(entry) for entry in content))


def _parse_tensor(entry: object) -> TensorSchema:
    if not isinstance(entry, dict) or set(entry) != {"name", "shape", "fraction_bits"}:
        raise GossipError("bad-schema", "a tensor has a name, a shape and fraction bits")
    name, shape, fraction_bits = entry["name"], entry["shape"], entry["fraction_bits"]
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) > RANK_MAX:
        raise GossipError("bad-schema", "a name or a shape of the wrong kind")
    # bool is a subclass of int, and JSON's true is no dimension.
    if not all(type(number) is int for number in (*shape, fraction_bits)):
        raise GossipError("bad-schema", f"a number of {name[:80]!r} is not whole")
    return TensorSchema(name, tuple(shape), fraction_bits)
