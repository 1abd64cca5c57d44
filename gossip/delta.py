"""A delta: what one node learned in one round, signed.

The header has one fixed layout of 128 bytes; its SHA-256 is the delta's id, its signature covers
a domain tag and the header, and the header covers the frame by length and hash. So a header can
be judged (member? stale? seen?) before a single byte of the frame is believed, and a frame is
hashed before it is parsed, let alone decompressed.

The header names the committed height under whose parameters the delta was made. Those parameters
say what the delta is worth (gain, weight, clip), never the receiver's present state: otherwise
two receivers at different heights would add different integers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from struct import Struct
from typing import NamedTuple, TypeAlias

from shoal.gossip.errors import DeltaError

SIGNING_DOMAIN = b"SHOAL-DELTA\x01"
# mesh id, sender, sequence, height, steps, tokens, bytes of the frame, SHA-256 of the frame
HEADER = Struct(">32s32sQQIQI32s")
HEADER_BYTES = HEADER.size
SIGNATURE_BYTES = 64
BLOB_OVERHEAD_BYTES = HEADER_BYTES + SIGNATURE_BYTES
# Above anything that can be reached by counting, below where sums could leave 64 bits.
COUNTER_MAX = 1 << 62
TOKENS_MAX = 1 << 40

# (member, sequence): where a delta stands in its sender's numbering.
DeltaKey: TypeAlias = tuple[bytes, int]
# verify(public key, message, signature), injected: this folder holds no cryptography.
Verify: TypeAlias = Callable[[bytes, bytes, bytes], bool]


class DeltaReference(NamedTuple):
    """One delta by name. `delta_id` is empty where whatever stands at that sequence will do."""

    member: bytes
    sequence: int
    delta_id: bytes

    @property
    def key(self) -> DeltaKey:
        return self.member, self.sequence


@dataclass(frozen=True)
class DeltaHeader:
    """What a sender signs. `sequence` counts its deltas from 1; `height` is the checkpoint whose
    parameters were in force; `steps` and `tokens` are what the round trained on."""

    mesh_id: bytes
    sender: bytes
    sequence: int
    height: int
    steps: int
    tokens: int
    frame_bytes: int
    frame_sha256: bytes

    def __post_init__(self) -> None:
        if not {len(self.mesh_id), len(self.sender), len(self.frame_sha256)} == {32}:
            raise DeltaError("bad-header", "an id or a hash is not 32 bytes")
        if not 1 <= self.sequence <= COUNTER_MAX or not 0 <= self.height <= COUNTER_MAX:
            raise DeltaError("bad-header", "sequence or height out of range")
        if not 1 <= self.steps < 1 << 32 or not 1 <= self.tokens <= TOKENS_MAX:
            raise DeltaError("bad-header", "steps or tokens out of range")
        if not 1 <= self.frame_bytes < 1 << 32:
            raise DeltaError("bad-header", "bytes of the frame out of range")

    def to_bytes(self) -> bytes:
        """The 128 bytes that are hashed and signed."""
        return HEADER.pack(
            self.mesh_id,
            self.sender,
            self.sequence,
            self.height,
            self.steps,
            self.tokens,
            self.frame_bytes,
            self.frame_sha256,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "DeltaHeader":
        """Raises DeltaError("truncated" or "bad-header")."""
        if len(data) != HEADER_BYTES:
            raise DeltaError("truncated", f"a header of {len(data)} bytes")
        return cls(*HEADER.unpack(data))

    @cached_property
    def id(self) -> bytes:
        """SHA-256 of the header: names the delta, frame included."""
        return hashlib.sha256(self.to_bytes()).digest()

    @property
    def key(self) -> DeltaKey:
        """(sender, sequence)."""
        return self.sender, self.sequence

    @property
    def reference(self) -> DeltaReference:
        """(sender, sequence, id)."""
        return DeltaReference(self.sender, self.sequence, self.id)

    @property
    def signing_bytes(self) -> bytes:
        """What the signature covers."""
        return SIGNING_DOMAIN + self.to_bytes()


@dataclass(frozen=True)
class Delta:
    """A header, its signature and its frame (compression/frame.py)."""

    header: DeltaHeader
    signature: bytes
    frame: bytes

    def to_bytes(self) -> bytes:
        """One blob: header, signature, frame. What is stored and what travels."""
        assert len(self.signature) == SIGNATURE_BYTES, "an Ed25519 signature has 64 bytes"
        assert len(self.frame) == self.header.frame_bytes, "the header is of another frame"
        return b"".join((self.header.to_bytes(), self.signature, self.frame))

    @classmethod
    def from_bytes(cls, data: bytes, *, frame_bytes_max: int) -> "Delta":
        """Cut a blob apart and compare the frame with its header; the signature is not checked.

        Raises DeltaError("truncated", "bad-header", "too-large", "wrong-size" or
        "bad-frame-hash").
        """
        if len(data) < BLOB_OVERHEAD_BYTES:
            raise DeltaError("truncated", f"a delta of {len(data)} bytes")
        header = DeltaHeader.from_bytes(data[:HEADER_BYTES])
        if header.frame_bytes > frame_bytes_max:
            raise DeltaError("too-large", f"{header.frame_bytes} of {frame_bytes_max} bytes")
        if len(data) != BLOB_OVERHEAD_BYTES + header.frame_bytes:
            raise DeltaError("wrong-size", f"{len(data)} bytes for {header.frame_bytes}")
        frame = data[BLOB_OVERHEAD_BYTES:]
        if hashlib.sha256(frame).digest() != header.frame_sha256:
            raise DeltaError("bad-frame-hash")
        return cls(header, data[HEADER_BYTES:BLOB_OVERHEAD_BYTES], frame)

    def require_signature(self, verify: Verify) -> None:
        """Raises DeltaError("bad-signature") unless the sender signed this header."""
        if not verify(self.header.sender, self.header.signing_bytes, self.signature):
            raise DeltaError("bad-signature")


def make_delta(
    frame: bytes,
    *,
    mesh_id: bytes,
    sender: bytes,
    sequence: int,
    height: int,
    steps: int,
    tokens: int,
    sign: Callable[[bytes], bytes],
) -> Delta:
    """Sign one's own delta; `sign` returns 64 bytes."""
    header = DeltaHeader(
        mesh_id=mesh_id,
        sender=sender,
        sequence=sequence,
        height=height,
        steps=steps,
        tokens=tokens,
        frame_bytes=len(frame),
        frame_sha256=hashlib.sha256(frame).digest(),
    )
    return Delta(header, sign(header.signing_bytes), frame)
