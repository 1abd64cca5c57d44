"""Fixed binary layouts: big-endian integers, fixed-size fields, length-prefixed blobs.

Everything that is signed or hashed must have exactly one encoding, and protobuf promises none
(consensus.md 1.9). So the layouts are written by hand, out of these few pieces. The reader
checks every bound before it takes a slice and insists that nothing is left over at the end.
"""

from struct import Struct
from typing import Any

from shoal.consensus.errors import ConsensusError

ID_BYTES = 32
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64


def u8(value: int) -> bytes:
    """An unsigned integer in one byte."""
    return value.to_bytes(1, "big")


def u16(value: int) -> bytes:
    """An unsigned integer in two bytes."""
    return value.to_bytes(2, "big")


def u32(value: int) -> bytes:
    """An unsigned integer in four bytes."""
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    """An unsigned integer in eight bytes."""
    return value.to_bytes(8, "big")


def blob(data: bytes) -> bytes:
    """A byte string with its length in four bytes before it."""
    return len(data).to_bytes(4, "big") + data


class Reader:
    """Takes fields off the front of a byte string; raises ConsensusError("truncated")."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise ConsensusError("truncated", f"{size} bytes wanted at {self._position}")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Several fixed-size fields at once, as the struct names them."""
        return layout.unpack(self.take(layout.size))

    def u8(self) -> int:
        return self.take(1)[0]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def flag(self) -> bool:
        value = self.u8()
        if value > 1:
            raise ConsensusError("bad-flag", str(value))
        return value == 1

    def count(self, limit: int) -> int:
        """A number of items that follow, in two bytes."""
        value = self.u16()
        if value > limit:
            raise ConsensusError("too-many", f"{value} items, at most {limit}")
        return value

    def blob(self, limit: int) -> bytes:
        size = self.u32()
        if size > limit:
            raise ConsensusError("too-large", f"{size} bytes, at most {limit}")
        return self.take(size)

    def end(self) -> None:
        if self._position != len(self._data):
            raise ConsensusError("trailing-bytes", str(len(self._data) - self._position))
